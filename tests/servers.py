"""Real servers for tests and measurements: MongoDB, and an SMTP server that misbehaves when told to."""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import random
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, cast

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session
from pymongo import MongoClient

from ops.mongod import find_mongod, mongod_environment
from tests.waiting import eventually

LOGIN: Final = "mailer@example.com"
PASSWORD: Final = "correct horse"  # noqa: S105 - of the server below
PROCESSES: Final = 64
"""Processes of tests at the most, among which the ports are divided. Soak and bench are such, too."""
Script = Callable[[str, str], Awaitable[str | None]]
"""How an SMTP server behaves: see `MailServer`."""


@functools.cache
def localhost() -> str:
    """Return the name by which this machine knows itself, or its address in a chroot without `/etc/hosts`."""
    try:
        socket.getaddrinfo("localhost", 0)
    except socket.gaierror:
        return "127.0.0.1"
    return "localhost"


def free_port() -> int:
    """Return a port of the loopback interface on which nothing listens.

    It is below those that the kernel gives to connections, each process of tests has ports of its own, and gives none
    again before all others: nobody takes it before the test does, nor where the test wants nobody to listen.
    """
    while True:
        port = next(_ports())
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@functools.cache
def _ports() -> Iterator[int]:
    number = os.environ.get("PYTEST_XDIST_WORKER", f"gw{os.getpid()}").removeprefix("gw")
    ports = [*range(10_000 + int(number) % PROCESSES, 32_000, PROCESSES)]
    random.shuffle(ports)
    return itertools.cycle(ports)


class Mongod:
    """A MongoDB server that can be killed, frozen and started again with its data."""

    def __init__(
        self,
        folder: Path,
        replica_set: str | None = None,
        *arguments: str,
        cache_gb: float = 0.5,
        oplog_mb: int = 64,
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._environment = environment
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._folder = folder
        self._arguments = ["--wiredTigerCacheSizeGB", str(cache_gb), "--oplogSize", str(oplog_mb)]
        self._arguments += [*(("--replSet", replica_set) if replica_set else ()), *arguments]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        self._folder.mkdir(parents=True, exist_ok=True)
        program = os.environ.get("NOTIFIER_MONGOD") or find_mongod()
        with (self._folder / "mongod.out").open("ab") as output:
            self._process = subprocess.Popen(
                [
                    *(program, "--dbpath", str(self._folder), "--port", str(self.port)),
                    *("--bind_ip", "127.0.0.1", "--nounixsocket", "--setParameter", "enableTestCommands=1"),
                    *("--setParameter", "diagnosticDataCollectionEnabled=false"),
                    *("--wiredTigerEngineConfigString", "log=(file_max=16MB,prealloc=false)"),  # not 300 MB each
                    *self._arguments,
                ],
                env={**mongod_environment(self._folder / "lib"), **self._environment},
                stdout=output,
                stderr=output,
            )
        with self.client() as client:
            eventually(lambda: client.admin.command("ping"))

    @property
    def pid(self) -> int:
        """The id of its process."""
        assert self._process
        return self._process.pid

    def client(self) -> MongoClient[dict[str, Any]]:
        """Return a client of this server alone."""
        return MongoClient(
            self.address,
            directConnection=True,
            serverSelectionTimeoutMS=3000,
            tz_aware=True,
            datetime_conversion="DATETIME_AUTO",
        )

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, such as SIGSTOP to freeze it."""
        assert self._process
        os.kill(self._process.pid, number)

    def alive(self) -> bool:
        """Return whether its process runs."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """Kill it, as a power failure would."""
        if self._process and self.alive():
            self.signal(signal.SIGKILL)
            self._process.wait()


def initiate(members: list[Mongod], replica_set: str) -> None:
    """Make the servers a replica set and wait until the first one is its primary."""
    config = {
        "_id": replica_set,
        "members": [
            {"_id": i, "host": member.address, "priority": 2 if i == 0 else 1} for i, member in enumerate(members)
        ],
        "settings": {"electionTimeoutMillis": 2000},
    }
    with members[0].client() as client:
        client.admin.command("replSetInitiate", config)

        def is_primary() -> None:
            assert client.admin.command("hello")["isWritablePrimary"]

        eventually(is_primary, 30)


@dataclass
class MailServer:
    """An SMTP server's mail and behaviour.

    At each stage of a conversation ("MAIL", "RCPT" or "DATA"), `script` is called with the stage and the recipient,
    which is empty at MAIL. It returns the reply to give, or `None` to accept. It may wait, or raise `Drop`.
    """

    port: int = 0
    received: list[tuple[str, Message]] = field(default_factory=list)
    began: list[float] = field(default_factory=list)  # when the conversation about each of them did (monotonic)
    connections: int = 0
    logins: int = 0
    script: Script | None = None

    @property
    def ids(self) -> list[str]:
        """Return the ids of the e-mails received, in their order."""
        return [message["Message-ID"].strip("<>").split("@")[0] for _, message in self.received]

    async def _ask(self, stage: str, server: SMTP, recipient: str = "") -> str | None:
        try:
            return await self.script(stage, recipient) if self.script else None
        except Drop:
            _abort(server)
            return "421 dropped"

    async def handle_EHLO(  # noqa: N802 - aiosmtpd's names, here and below
        self, _server: SMTP, session: Session, _envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        self.connections += 1
        session.host_name = hostname
        return responses

    async def handle_MAIL(  # noqa: N802
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        session.began = time.monotonic()  # type: ignore[attr-defined]
        reply = await self._ask("MAIL", server)
        if reply is None:
            envelope.mail_from = address
            envelope.mail_options.extend(options)
        return reply or "250 OK"

    async def handle_RCPT(  # noqa: N802
        self, server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        reply = await self._ask("RCPT", server, address)
        if reply is None:
            envelope.rcpt_tos.append(address)
        return reply or "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        reply = await self._ask("DATA", server, envelope.rcpt_tos[0])
        if reply is None or reply.startswith("2"):
            self.received.append((envelope.rcpt_tos[0], message_from_bytes(envelope.original_content or b"")))
            self.began.append(session.began)  # type: ignore[attr-defined]
        if reply == "250 OK and drop":
            _abort(server)
        return reply or "250 OK"

    def authenticate(self, *arguments: Any) -> AuthResult:
        """Accept `LOGIN` with `PASSWORD` and nothing else."""
        self.logins += 1
        given = arguments[-1]
        right = isinstance(given, LoginPassword) and given == (LOGIN.encode(), PASSWORD.encode())
        return AuthResult(success=right, handled=False)


def _abort(server: SMTP) -> None:
    cast("asyncio.WriteTransport", server.transport).abort()


class Drop(Exception):
    """Break the connection."""


@asynccontextmanager
async def smtp_server(
    tls: ssl.SSLContext | None,
    *,
    starttls: ssl.SSLContext | None = None,
    port: int = 0,
    auth: bool = True,
    mail_server: MailServer | None = None,
) -> AsyncIterator[MailServer]:
    """Run an SMTP server: over TLS if `tls` is given, with STARTTLS if `starttls` is. If `auth`, it wants a login."""
    loop = asyncio.get_running_loop()
    state = mail_server or MailServer()
    options: dict[str, Any] = {"hostname": "localhost", "enable_SMTPUTF8": True, "loop": loop, "tls_context": starttls}
    if auth:
        options |= {"authenticator": state.authenticate, "auth_required": True, "auth_require_tls": bool(starttls)}
    server = await loop.create_server(lambda: SMTP(state, **options), "127.0.0.1", port, ssl=tls)
    state.port = server.sockets[0].getsockname()[1]
    try:
        yield state
    finally:
        server.close()
