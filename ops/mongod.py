"""The MongoDB server of a local run: where it is, the libraries that it needs, and its process.

PyPI has both, so that a machine needs neither root nor a package manager. `requirements-local.txt` names them.
"""

import asyncio
import logging
import os
import shutil
import signal
import socket
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from pymongo.errors import OperationFailure, PyMongoError

from mongo.connection import Database, connected
from mongo.errors import Patience, Unavailable

log = logging.getLogger("notifier.local")

FOLDER: Final = Path(".notifier")  # of a local run
DATABASE: Final = FOLDER / "db"
MONGOD_LOG: Final = FOLDER / "mongod.log"
LIBRARIES: Final = {  # which a system may lack, and where packages from PyPI carry them, under names of their own
    "libcurl.so.4": "pycurl.libs/libcurl-*.so.4*",
    "libcrypto.so.3": "pycurl.libs/libcrypto-*.so.3",
    "libssl.so.3": "pycurl.libs/libssl-*.so.3",
    "libcrypto.so.1.1": "psycopg2_binary.libs/libcrypto-*.so.1.1",
    "libssl.so.1.1": "psycopg2_binary.libs/libssl-*.so.1.1",
}
TIED_TO_US: Final = 'exec 3<&0; (read -r _ <&3 || kill -9 $$) & exec 3<&-; exec "$@" </dev/null'
"""The shell becomes mongod, so that it is our child process. A subshell stays behind and waits for our end of the pipe
to close, which it does however we die, kill -9 included; then it kills mongod, whose journal has all it confirmed."""
START_TIMEOUT: Final = 20.0  # seconds in which MongoDB must take writes
STOP_TIMEOUT: Final = 15.0  # seconds that MongoDB is given to close its files
PROBING: Final = Patience(attempt=1.0)  # for one question to a MongoDB that is starting
IN_USE: Final = 100  # an exit code of mongod
ALREADY_INITIALIZED: Final = 23  # an error code of `replSetInitiate`


def find_mongod() -> str:
    """Return the path of the MongoDB server installed from PyPI, or else on `PATH`. Raises `Unavailable`."""
    packages = [f"{folder}/fiftyone/db/bin" for folder in sys.path]
    path = shutil.which("mongod", path=os.pathsep.join([*packages, os.environ.get("PATH", os.defpath)]))
    if not path:
        raise Unavailable(
            "A local run needs a MongoDB server: install requirements-local.txt, which has one for Linux (x86-64, and "
            "ARM with Python 3.11 or 3.12) and for macOS; put a mongod on PATH; or set DB_URI and SMTP_HOST."
        )
    return path


def mongod_environment(links: Path) -> Mapping[str, str]:
    """Return an environment in which MongoDB finds the libraries that packages carry, by links that have its names."""
    files = {
        name: file.resolve()
        for name, pattern in LIBRARIES.items()
        for folder in sys.path
        for file in Path(folder).glob(pattern)
    }
    if not files:
        return os.environ
    links.mkdir(parents=True, exist_ok=True)
    for name, file in files.items():
        (links / name).unlink(missing_ok=True)  # it may lead to a .venv that is gone
        (links / name).symlink_to(file)
    beside = {file.parent for file in files.values()}  # what these libraries need themselves
    folders = [f"{folder}" for folder in (links.resolve(), *beside)]
    if before := os.environ.get("LD_LIBRARY_PATH"):
        folders.append(before)
    return {**os.environ, "LD_LIBRARY_PATH": ":".join(folders)}


@asynccontextmanager
async def running_mongod() -> AsyncIterator[str]:
    """Run MongoDB, and yield its address. Raises `Unavailable` if it does not start, or ends too early."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    process = await _spawn(port)
    ended = asyncio.create_task(process.wait())
    try:
        await _wait_until_primary(port, ended)
        ended.add_done_callback(_end_the_run)
        yield _uri(port)
    finally:
        ended.remove_done_callback(_end_the_run)
        if was_running := process.returncode is None:
            process.terminate()
        await asyncio.wait({ended}, timeout=STOP_TIMEOUT)  # if it hangs, it is killed when this process ends
    if not was_running:
        raise Unavailable(_why_ended(ended.result()))


async def _spawn(port: int) -> Process:
    where = f"--dbpath {DATABASE} --port {port} --bind_ip 127.0.0.1 --nounixsocket"
    what = "--replSet local --oplogSize 64 --wiredTigerCacheSizeGB 0.25"
    command = ["sh", "-c", TIED_TO_US, "sh", find_mongod(), *where.split(), *what.split()]
    with MONGOD_LOG.open("ab") as output:
        return await asyncio.create_subprocess_exec(
            *command,
            env=mongod_environment(FOLDER / "lib"),
            stdin=PIPE,
            stdout=output,
            stderr=STDOUT,
            start_new_session=True,  # Ctrl-C is for us; we stop it once it is no longer needed
        )


def _uri(port: int) -> str:
    return f"mongodb://127.0.0.1:{port}/notifier?directConnection=true"


async def _wait_until_primary(port: int, ended: asyncio.Task[int]) -> None:
    try:
        async with asyncio.timeout(START_TIMEOUT), connected(_uri(port), patience=PROBING) as connection:
            while not ended.done():
                with suppress(PyMongoError):  # not yet
                    if await _is_primary(connection.database.client.admin, f"127.0.0.1:{port}"):
                        return
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise Unavailable(f"MongoDB did not start in {START_TIMEOUT:.0f} s. See {MONGOD_LOG}.") from None
    raise Unavailable(_why_ended(ended.result()))


async def _is_primary(admin: Database, address: str) -> bool:
    """Return whether MongoDB takes writes. If not, make it a replica set of one, or give the set its new port."""
    if (await admin.command("hello"))["isWritablePrimary"]:
        return True
    config = {"_id": "local", "members": [{"_id": 0, "host": address}]}
    try:
        await admin.command("replSetInitiate", config)
    except OperationFailure as exc:
        if exc.code != ALREADY_INITIALIZED:
            raise
        current = (await admin.command("replSetGetConfig"))["config"]
        if current["members"][0]["host"] != address:
            await admin.command("replSetReconfig", config | {"version": current["version"] + 1}, force=True)
    return False


def _end_the_run(ended: asyncio.Task[int]) -> None:
    log.error("%s The local run ends.", _why_ended(ended.result()))
    os.kill(os.getpid(), signal.SIGTERM)


def _why_ended(code: int) -> str:
    if code == IN_USE:
        return f"{FOLDER} is in use: is another local run running in this folder?"
    return f"The MongoDB of the local run ended with exit code {code}: see {MONGOD_LOG}."
