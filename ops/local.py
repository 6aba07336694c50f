"""The local run: a real MongoDB and a mailbox on loopback, with their files under `.notifier/`.

Its packages are in `requirements-local.txt` and not in the container.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import socket
import time
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from aiosmtpd.smtp import SMTP, Envelope, Session
from pymongo.errors import OperationFailure, PyMongoError

from config.background import background
from mongo.connection import Database, connected
from mongo.errors import Patience
from ops.mailbox import DB_URI_FILE, FOLDER, MAILBOX
from ops.mongod import LocalRunError, Program, find_mongod
from settings import Security, Settings

log = logging.getLogger("notifier.local")

DATABASE: Final = FOLDER / "db"
MONGOD_LOG: Final = FOLDER / "mongod.log"
LIBRARIES: Final = FOLDER / "lib"
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


@asynccontextmanager
async def embedded(settings: Settings) -> AsyncIterator[Settings]:
    """Start MongoDB and the mailbox and return settings for them. Their data stays for the next run.

    Raises `LocalRunError`.
    """
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    FOLDER.chmod(0o700)  # an older version left it open to every user of the machine
    for folder in (DATABASE, MAILBOX):
        folder.mkdir(parents=True, exist_ok=True)
    async with _mongod() as port, _mailbox() as smtp_port:
        log.info("the mailbox on port %d writes e-mails to %s", smtp_port, MAILBOX)
        db_uri = _uri(port)
        log.info("MongoDB, at %s, keeps its data in %s", db_uri, DATABASE)
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


def _uri(port: int) -> str:
    return f"mongodb://127.0.0.1:{port}/notifier?directConnection=true"


@asynccontextmanager
async def _mongod() -> AsyncIterator[int]:
    """Run MongoDB; yield its port. Raises `LocalRunError` if it does not start, or has ended by the end."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    process = await _start_mongod(find_mongod(LIBRARIES), port)
    try:
        async with background(_end_with(process)):
            yield port
    finally:
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
    with MONGOD_LOG.open("ab") as output:
        return await asyncio.create_subprocess_exec(
            *("sh", "-c", TIED_TO_US, "sh", program.path, *where.split(), *what.split()),
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


@asynccontextmanager
async def _mailbox() -> AsyncIterator[int]:
    loop, handler = asyncio.get_running_loop(), _Mailbox()
    logging.getLogger("mail.log").setLevel(logging.WARNING)  # aiosmtpd logs addresses

    def protocol() -> SMTP:
        return SMTP(handler, hostname="localhost", enable_SMTPUTF8=True, loop=loop)

    async with await loop.create_server(protocol, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


class _Mailbox:
    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd's
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}.eml"
        part = MAILBOX / f"{name}.part"  # so that nobody reads half an e-mail
        try:
            part.write_bytes(envelope.original_content or b"")
        except OSError:
            return "452 4.3.1 The mailbox has no room"
        part.rename(MAILBOX / name)
        return "250 OK"
