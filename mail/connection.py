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
from dataclasses import dataclass, field
from typing import Final, cast

from aiohappyeyeballs import start_connection
from aiosmtplib import (
    SMTP,
    SMTPException,
    SMTPHeloError,
    SMTPResponse,
    SMTPResponseException,
    SMTPServerDisconnected,
)
from aiosmtplib.protocol import COMMAND_INJECTION_REGEX, MAX_RESPONSE_LENGTH, SMTPProtocol

from config.address import domain
from mail.login import BY_PASSWORD, BY_TOKEN, log_in
from mail.oauth import Tokens
from mail.replies import SMTPFault
from mail.verdicts import Stage, Verdict
from settings import Security, Settings

MESSAGES_PER_CONNECTION: Final = 100
CONNECTION_AGE: Final = 300.0
"""Seconds after which a connection is replaced: servers close old ones unasked."""
CONNECTION_IDLE: Final = 30.0
"""Seconds without a message after which a connection is closed, for the same reason."""
QUIT_TIMEOUT: Final = 0.5
"""Seconds to wait for the reply to QUIT."""
ATTEMPT_DELAY: Final = 0.25
"""Seconds before the server's next address is tried as well (RFC 8305, section 5)."""
PIPELINING_PAUSE: Final = 600.0
"""Seconds without pipelining after commands sent together were not answered as they should."""
NOT_IMPLEMENTED: Final = frozenset({500, 501, 502, 504})
"""Replies to a command that the server does not have after all (RFC 5321, section 4.2.4)."""


class _Protocol(SMTPProtocol):
    """Pairs commands with replies, whatever the server says unasked: an empty line, or a reply twice."""

    def __init__(self, smtp: SMTP) -> None:
        super().__init__(asyncio.get_running_loop(), lambda _: smtp.close())
        if smtp.transport is None:
            raise SMTPServerDisconnected("Connection lost")
        self.connection_made(smtp.transport)
        self._response_pending = False  # the greeting was read before
        self._expected = 0
        smtp.transport.set_protocol(self)
        smtp.protocol = self

    def data_received(self, data: bytes) -> None:
        """Take a part of a reply. An empty line is none. Replies to several commands may come together."""
        if not self._buffer:
            data = data.lstrip(b"\r\n")
        if self._expected > 1 and self._response_waiter and self._response_waiter.done():
            self._buffer.extend(data[:MAX_RESPONSE_LENGTH])  # which `next_reply` will read
        elif data:
            super().data_received(data)

    def send(self, *commands: bytes) -> None:
        """Send commands, for each of which `next_reply` returns the reply. What came before them is none."""
        if any(COMMAND_INJECTION_REGEX.search(command) for command in commands):
            raise ValueError("a control character in a command")
        self._buffer.clear()
        self._expected, self._response_pending = len(commands), True
        self.write(b"\r\n".join((*commands, b"")))

    async def next_reply(self, timeout: float) -> SMTPResponse:  # noqa: ASYNC109 - aiosmtplib's name
        """Return the reply to the next of the commands."""
        self._buffer[:] = self._buffer.lstrip(b"\r\n")
        response = self._read_response_from_buffer()  # it may have come with the one before, and be the last
        response = response or await self.read_response(timeout)
        self._expected -= 1
        return response

    async def execute_command(self, *args: bytes, timeout: float | None = None) -> SMTPResponse:  # noqa: ASYNC109
        """Send a command and return the reply to it. What came before it is none."""
        self._buffer.clear()
        return await super().execute_command(*args, timeout=timeout)

    async def execute_message(self, message: bytes, timeout: float) -> SMTPResponse:  # noqa: ASYNC109 - as above
        """Send a message that the server asked for, and return the reply to it. Its lines end with CRLF.

        A dot at the beginning of a line is doubled (RFC 5321, section 4.5.2). The first line is a header.
        """
        self._buffer.clear()
        self.write(message.replace(b"\r\n.", b"\r\n..") + b".\r\n")
        return await self.read_response(timeout)


@dataclass(eq=False, slots=True)
class Connection:
    """One conversation with the server, for one message after another.

    The methods that send raise `SMTPResponseException` for a reply of another class than the one that goes on, and
    aiosmtplib's other errors.
    """

    smtp: SMTP
    protocol: _Protocol
    pipelines: bool
    opened: float = field(default_factory=time.monotonic)
    used: float = field(default_factory=time.monotonic)
    messages: int = 0
    stage: Stage = Stage.CONNECT
    """How far the conversation about the current message has come."""
    together: bool = False
    """Whether its commands were sent together."""

    def usable(self) -> bool:
        """Return whether the server can be expected to still listen."""
        now = time.monotonic()
        return (
            self.smtp.is_connected
            and self.messages < MESSAGES_PER_CONNECTION
            and now - self.opened < CONNECTION_AGE
            and now - self.used < CONNECTION_IDLE
        )

    def send(self, *commands: str) -> None:
        """Send commands; `reply` reads the reply to each. Several may be sent at once if the server `pipelines`."""
        self.protocol.send(*(command.encode() for command in commands))

    async def reply(self, kind: int, timeout: float) -> None:  # noqa: ASYNC109 - aiosmtplib's name
        """Read the reply to the next command. Any of this kind accepts it, such as 252 (RFC 5321, section 4.2.1)."""
        _expect(kind, await self.protocol.next_reply(timeout))

    async def end_message(self, message: bytes, timeout: float) -> None:  # noqa: ASYNC109
        """Send the message and its final dot. Any 2xx accepts it."""
        _expect(2, await self.protocol.execute_message(message, timeout))

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
        self._faults = 0
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
        """Open a connection. Raises `SMTPFault`, and the errors of aiosmtplib, ssl and the network."""
        if self.tokens:
            return await self.tokens.try_with(self._open_in_time)
        return await self._open_in_time(self._settings.smtp_password or "")

    async def close(self) -> None:
        """Close what opening needs."""
        if self.tokens:
            await self.tokens.close()

    async def _open_in_time(self, secret: str) -> Connection:
        timeout = self._settings.smtp_connect_timeout
        try:
            async with asyncio.timeout(timeout):
                return await self._open(secret)
        except TimeoutError:
            self._faults += 1
            hint = EXPECTS_TLS if self._step == SILENT_STEP else ""
            raise SMTPFault(Verdict.CONNECTION, f"{self._step} timed out after {timeout:g} s{hint}") from None
        except Exception:
            self._faults += 1
            raise

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
            protocol = _Protocol(smtp)
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
        """Connect to the first of the server's addresses that answers. Raises `OSError`.

        The one to begin with changes with each fault, for it may lie behind the connection: a greeting, a certificate.
        """
        host, port = self._settings.smtp_host, self._settings.smtp_port
        addresses = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        first = self._faults % len(addresses)
        addresses = addresses[first:] + addresses[:first]
        return await start_connection(addresses, happy_eyeballs_delay=ATTEMPT_DELAY, interleave=1)

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
