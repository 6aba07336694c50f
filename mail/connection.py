"""A connection to the mail server: opened, secured and logged in, kept for several messages, and closed.

Sources: RFC 5321 (SMTP), RFC 2920 (PIPELINING), RFC 8305 (happy eyeballs), RFC 8314 (implicit TLS), RFC 3207
(STARTTLS).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

from aiohappyeyeballs import start_connection
from aiosmtplib import (
    SMTP,
    SMTPAuthenticationError,
    SMTPException,
    SMTPHeloError,
    SMTPResponse,
    SMTPResponseException,
    SMTPServerDisconnected,
)

from config.address import domain
from mail.login import BY_PASSWORD, BY_TOKEN, log_in
from mail.oauth import Tokens
from mail.protocol import Protocol
from mail.replies import SMTPFault
from mail.verdicts import Stage, Verdict
from settings import Security, Settings

CONNECTION_AGE: Final = 300.0
"""Seconds after which a connection is replaced: servers close old ones unasked."""
CONNECTION_IDLE: Final = 30.0
"""Seconds without a message after which a connection is closed, for the same reason."""
SPARE_IDLE: Final = 2.0
"""Seconds without a message after which a connection is closed that another process may need."""
QUIT_TIMEOUT: Final = 0.5
"""Seconds to wait for the reply to QUIT."""
ADDRESS_REST: Final = 60.0
"""Seconds for which an address of the server comes last after a connection to it has failed."""
ATTEMPT_DELAY: Final = 0.25
"""Seconds before the server's next address is tried as well (RFC 8305, section 5)."""
PIPELINING_PAUSE: Final = 600.0
"""Seconds without pipelining after commands sent together were not answered as they should."""
NOT_IMPLEMENTED: Final = frozenset({500, 501, 502, 504})
"""Replies to a command that the server does not have after all (RFC 5321, section 4.2.4)."""


@dataclass(eq=False, slots=True)
class Connection:
    """One conversation with the server, for one message after another.

    The methods that send raise `SMTPResponseException` for a reply of another class than the one that goes on, and
    aiosmtplib's other errors.
    """

    smtp: SMTP
    protocol: Protocol
    pipelines: bool
    opened: float = field(default_factory=time.monotonic)
    used: float = field(default_factory=time.monotonic)
    messages: int = 0
    stage: Stage = Stage.CONNECT
    """How far the conversation about the current message has come."""
    together: bool = False
    """Whether its commands were sent together."""
    refused: bool = False
    """Whether the last message was refused, so that its transaction must be left first."""

    def usable(self, messages: int) -> bool:
        """Return whether the server can be expected to still listen, and to bear another of so many messages."""
        now = time.monotonic()
        return (
            self.smtp.is_connected
            and self.messages < messages
            and now - self.opened < CONNECTION_AGE
            and now - self.used < CONNECTION_IDLE
        )

    @property
    def idle(self) -> bool:
        """Whether it has not been needed for a while."""
        return time.monotonic() - self.used > SPARE_IDLE

    def send(self, *commands: str) -> None:
        """Send commands; `reply` reads the reply to each. Several may be sent at once if the server `pipelines`."""
        self.protocol.send(*(command.encode() for command in commands))

    async def reply(self, kind: int, timeout: float) -> None:  # noqa: ASYNC109 - aiosmtplib's name
        """Read the reply to the next command. Any of this kind accepts it, such as 252 (RFC 5321, section 4.2.1)."""
        _expect(kind, await self.protocol.next_reply(timeout))

    async def end_message(self, message: bytes, timeout: float) -> None:  # noqa: ASYNC109
        """Send the message and its final dot. Any 2xx accepts it."""
        _expect(2, await self.protocol.execute_message(message, timeout))

    async def reset(self, timeout: float) -> None:  # noqa: ASYNC109
        """Leave a refused transaction: read the replies that are still to come, and say RSET."""
        while self.protocol.expected:
            if (await self.protocol.next_reply(timeout)).code // 100 == 3:
                raise SMTPServerDisconnected("the server waits for a message without a recipient")
        self.send("RSET")
        if (await self.protocol.next_reply(timeout)).code // 100 != 2:
            raise SMTPServerDisconnected("the server does not leave a transaction")
        self.refused = False

    async def quit(self) -> None:
        """Say goodbye, then close."""
        with contextlib.suppress(SMTPException):
            await self.smtp.quit(timeout=QUIT_TIMEOUT)
        self.drop()

    def drop(self) -> None:
        """Close at once. The closing handshake of a server that hangs would hang too."""
        _drop(self.smtp)


def _expect(kind: int, response: SMTPResponse) -> None:
    if response.code // 100 != kind:
        raise SMTPResponseException(response.code, response.message)


def _drop(smtp: SMTP) -> None:
    if smtp.transport is not None:
        cast("asyncio.WriteTransport", smtp.transport).abort()
    smtp.close()


SILENT_STEP: Final = "the greeting"
ADDRESSES: Final = 4
"""Addresses of the server that are tried for one connection, after the first."""
Address = tuple[str, int]
AddressInfo = tuple[socket.AddressFamily, socket.SocketKind, int, str, Any]
EXPECTS_TLS: Final = "; a server that expects TLS from the start needs SMTP_SECURITY=tls"
"""Such a server waits for us in silence (SMTPS on another port than 465)."""


class Opener:
    """Opens connections, as the settings say."""

    def __init__(self, settings: Settings, local_hostname: str) -> None:
        self._settings = settings
        self._local_hostname = domain(settings.smtp_helo) if settings.smtp_helo else local_hostname
        self._tls = ssl.create_default_context()
        if settings.smtp_ca_file:
            self._tls.load_verify_locations(settings.smtp_ca_file)
        if settings.smtp_client_cert:
            self._tls.load_cert_chain(settings.smtp_client_cert)
        self.tokens = Tokens(settings, self._tls) if settings.smtp_oauth_token_url else None
        self._step = ""
        self._address: Address | None = None
        self._resting: dict[Address, float] = {}
        self._one_by_one_until = -math.inf

    @property
    def step(self) -> str:
        """How far the last connection came."""
        return self._step

    @property
    def pipelining(self) -> bool:
        """Whether commands may be sent together to a server that offers it."""
        return time.monotonic() > self._one_by_one_until

    def pause_pipelining(self) -> None:
        """Send commands one by one for some time, which shows what each is answered."""
        self._one_by_one_until = time.monotonic() + PIPELINING_PAUSE

    async def open(self) -> Connection:
        """Open a connection. If that fails, try the server's other addresses, unless they have failed lately.

        Raises `SMTPFault`, and the errors of aiosmtplib, ssl and the network.
        """
        if self.tokens:
            return await self.tokens.try_with(self._open_somewhere)
        return await self._open_somewhere(self._settings.smtp_password or "")

    async def close(self) -> None:
        """Close what opening needs."""
        if self.tokens:
            await self.tokens.close()

    async def _open_somewhere(self, secret: str) -> Connection:
        for _ in range(ADDRESSES):
            self._address = None
            try:
                return await self._open_in_time(secret)
            except SMTPAuthenticationError:  # which another address would refuse as well
                raise
            except (SMTPException, SMTPFault, OSError):
                if not await self._rest():
                    raise
        return await self._open_in_time(secret)

    async def _rest(self) -> bool:
        """Let the last address rest, for the fault may lie behind it; return whether there is one that does not."""
        if self._address is None:
            return False
        self._resting[self._address] = time.monotonic() + ADDRESS_REST
        return not all(self._rests(info) for info in await self._addresses())

    def _rests(self, info: AddressInfo) -> bool:
        return self._resting.get(info[4][:2], -math.inf) > time.monotonic()

    async def _addresses(self) -> Sequence[AddressInfo]:
        host, port = self._settings.smtp_host, self._settings.smtp_port
        return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)

    async def _open_in_time(self, secret: str) -> Connection:
        timeout = self._settings.smtp_connect_timeout
        try:
            async with asyncio.timeout(timeout):
                return await self._open(secret)
        except TimeoutError:
            hint = EXPECTS_TLS if self._step == SILENT_STEP else ""
            raise SMTPFault(Verdict.CONNECTION, f"{self._step} timed out after {timeout:g} s{hint}") from None

    async def _open(self, secret: str) -> Connection:
        settings, security = self._settings, self._settings.security
        self._step = "connecting"
        smtp = SMTP(
            hostname=settings.smtp_host,  # the name that the certificate must have
            port=None,
            sock=await self._socket(),
            use_tls=security is Security.TLS,
            start_tls=False,  # decided in _upgrade
            tls_context=self._tls,
            local_hostname=self._local_hostname,  # aiosmtplib would ask DNS for our name
            timeout=settings.smtp_connect_timeout,
        )
        try:
            self._step = "TLS or the greeting" if security is Security.TLS else SILENT_STEP
            await smtp.connect()
            protocol = Protocol(smtp)
            await self._greet(smtp)
            if security in {Security.AUTO, Security.STARTTLS}:
                await self._upgrade(smtp, required=security is Security.STARTTLS)
            if settings.smtp_login:
                self._step = "the login"
                await log_in(smtp, settings.smtp_login, secret, BY_TOKEN if self.tokens else BY_PASSWORD)
        except BaseException:
            _drop(smtp)
            raise
        return Connection(smtp, protocol, smtp.supports_extension("pipelining"))

    async def _socket(self) -> socket.socket:
        """Connect to the first of the server's addresses that answers; those that rest come last. Raises `OSError`."""
        addresses = sorted(await self._addresses(), key=self._rests)
        found = await start_connection(addresses, happy_eyeballs_delay=ATTEMPT_DELAY, interleave=1)
        self._address = found.getpeername()[:2]
        return found

    async def _greet(self, smtp: SMTP) -> None:
        """Say EHLO, or HELO to a server that does not know EHLO (RFC 5321, section 3.2)."""
        self._step = "EHLO"
        try:
            await smtp.ehlo()
        except SMTPHeloError as exc:
            if exc.code not in NOT_IMPLEMENTED:
                raise
            await smtp.helo()

    async def _upgrade(self, smtp: SMTP, *, required: bool) -> None:
        if smtp.supports_extension("starttls"):
            self._step = "STARTTLS"
            await smtp.starttls()
            await self._greet(smtp)
        elif required:
            raise SMTPFault(Verdict.CONFIGURATION, "the server offers no STARTTLS, and SMTP_SECURITY requires it")
        elif self._settings.smtp_login or self._settings.smtp_client_cert:
            raise SMTPFault(
                Verdict.CONFIGURATION,
                "the server offers no STARTTLS, and nobody logs in without TLS unless SMTP_SECURITY=none",
            )
