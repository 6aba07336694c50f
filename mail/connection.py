"""A connection to the mail server: how it is opened, and the conversations on it: MAIL, RCPT, DATA and the message.

Sources: RFC 5321 (SMTP), 2920 (PIPELINING), 3207 (STARTTLS), 8305 (happy eyeballs) and 8314 (implicit TLS).
"""

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
from aiosmtplib import SMTP, SMTPResponse, errors
from aiosmtplib.protocol import COMMAND_INJECTION_REGEX, MAX_RESPONSE_LENGTH, SMTPProtocol

from config.checks import domain, mailbox
from mail.login import BY_PASSWORD, BY_TOKEN, Tokens, log_in
from mail.replies import SMTPFault, Stage, Verdict
from settings import Security, Settings

Address = tuple[str, int]
AddressInfo = tuple[socket.AddressFamily, socket.SocketKind, int, str, Any]
ADDRESS_REST: Final = 60.0  # seconds for which an address is tried last after a connection to it has failed
ADDRESSES: Final = 4  # addresses that are tried for one connection, after the first
ATTEMPT_DELAY: Final = 0.25  # seconds before the server's next address is tried as well (RFC 8305, section 5)
NOT_IMPLEMENTED: Final = frozenset({500, 501, 502, 504})  # replies to an unknown command (RFC 5321, section 4.2.4)
SILENT_STEP: Final = "the greeting"  # the step at which a server that expects TLS is silent, as the client must begin
EXPECTS_TLS: Final = "; a server that expects TLS from the start needs SMTP_SECURITY=tls"
NO_STARTTLS: Final = "the server offers no STARTTLS, and SMTP_SECURITY requires it: only none logs in without TLS"
CONNECTION_AGE: Final = 300.0  # seconds after which a connection is replaced: servers close old ones unasked
CONNECTION_IDLE: Final = 30.0  # seconds without a message after which it is closed, for the same reason
QUIT_TIMEOUT: Final = 0.5  # seconds to wait for the reply to QUIT
REPLY_TIMEOUT: Final = 600.0
"""Seconds to wait for the reply to a message (RFC 5321, section 4.5.3.2.6). To give up earlier is to send the e-mail
again although the server may have accepted it."""


class Protocol(SMTPProtocol):
    """Pairs commands with replies, which may travel together (RFC 2920), whatever the server says unasked."""

    def __init__(self, smtp: SMTP) -> None:
        super().__init__(asyncio.get_running_loop(), lambda _: smtp.close())
        if smtp.transport is None:
            raise errors.SMTPServerDisconnected("Connection lost")
        self.connection_made(smtp.transport)
        self._response_pending = False  # the greeting was read before
        self.expected = 0
        smtp.transport.set_protocol(self)
        smtp.protocol = self

    def data_received(self, data: bytes) -> None:
        """Take a part of a reply. Discards an empty line before it."""
        if not self._buffer:
            data = data.lstrip(b"\r\n")
        is_read = bool(self._response_waiter and self._response_waiter.done())
        if self.expected > is_read and (is_read or not self._response_pending):
            self._buffer.extend(data[:MAX_RESPONSE_LENGTH])  # which `next_reply` will read
        elif data:
            super().data_received(data)

    def send(self, *commands: bytes, message: bytes | None = None) -> None:
        """Send a message that the server asked for, and commands, in one write; `next_reply` returns each reply.

        Discards anything received earlier. The lines of the message end with CRLF, and the first is a header. A dot at
        the beginning of one is doubled (RFC 5321, section 4.5.2).
        """
        if any(COMMAND_INJECTION_REGEX.search(command) for command in commands):
            raise ValueError("a control character in a command")
        self._buffer.clear()
        self.expected, self._response_pending = len(commands) + (message is not None), True
        before = b"" if message is None else message.replace(b"\r\n.", b"\r\n..") + b".\r\n"
        self.write(before + b"\r\n".join((*commands, b"")))

    async def next_reply(self, timeout: float) -> SMTPResponse:  # noqa: ASYNC109 - aiosmtplib's name
        self._buffer[:] = self._buffer.lstrip(b"\r\n")
        response = self._read_response_from_buffer()  # it may have come with the one before, and be the last
        response = response or await self.read_response(timeout)
        self.expected -= 1
        return response

    async def execute_command(self, *args: bytes, timeout: float | None = None) -> SMTPResponse:  # noqa: ASYNC109
        self._buffer.clear()
        return await super().execute_command(*args, timeout=timeout)


@dataclass(eq=False, slots=True)
class Connection:
    """Carries one message after another. Methods raise aiosmtplib's errors; for a refusal, `SMTPResponseException`."""

    smtp: SMTP
    protocol: Protocol
    timeout: float  # seconds for each command
    address: Address  # the one of the server's addresses to which it leads
    opened: float = field(default_factory=time.monotonic)
    used: float = field(default_factory=time.monotonic)
    messages: int = 0  # that the server has accepted
    stage: Stage = Stage.CONNECT  # of the conversation about the current message
    together: bool = False  # whether its commands were sent together
    refused: bool = False  # whether the last message was refused, so that its transaction must be left first

    def usable(self, messages: int) -> bool:
        """Return whether the server can be expected to still listen, and has carried fewer messages than this."""
        now = time.monotonic()
        is_young = now - self.opened < CONNECTION_AGE and now - self.used < CONNECTION_IDLE
        return is_young and self.messages < messages and self.smtp.is_connected

    @property
    def sound(self) -> bool:
        """Whether another conversation can begin: none is under way, or the last message was refused."""
        is_over = self.stage is Stage.CONNECT and not self.protocol.expected
        return self.smtp.is_connected and (self.refused or is_over)

    async def begin(self) -> None:
        """If the last message was refused, leave its transaction by RSET."""
        self.stage, self.together = Stage.CONNECT, False
        if not self.refused:
            return
        while self.protocol.expected:
            if (await self.protocol.next_reply(self.timeout)).code // 100 == 3:
                raise errors.SMTPServerDisconnected("the server waits for a message without a recipient")
        self.protocol.send(b"RSET")
        if (await self.protocol.next_reply(self.timeout)).code // 100 != 2:
            raise errors.SMTPServerDisconnected("the server does not leave a transaction")
        self.refused = False

    def prepare(self, commands: Sequence[bytes], stage: Stage, *, together: bool) -> None:
        """Say these commands all at once, if the server pipelines. The first is at this stage."""
        self.stage, self.together = stage, together and self.smtp.supports_extension("pipelining")
        if self.together:
            self.protocol.send(*commands)

    async def say(self, command: bytes, stage: Stage, kind: int) -> None:
        """Say a command. Any reply of this kind accepts it, such as 252 (RFC 5321, section 4.2.1)."""
        self.stage = stage
        if not self.together:
            self.protocol.send(command)
        _expect(kind, await self.protocol.next_reply(self.timeout))

    async def hand_over(self, message: bytes, ahead: Sequence[bytes]) -> None:
        self.protocol.send(*ahead, message=message)
        self.stage = Stage.DATA
        _expect(2, await self.protocol.next_reply(REPLY_TIMEOUT))
        self.stage, self.messages, self.used = Stage.CONNECT, self.messages + 1, time.monotonic()

    async def quit(self) -> None:
        with contextlib.suppress(errors.SMTPException):
            await self.smtp.quit(timeout=QUIT_TIMEOUT)
        drop(self.smtp)


def _expect(kind: int, response: SMTPResponse) -> None:
    if response.code // 100 != kind:
        raise errors.SMTPResponseException(response.code, response.message)


def drop(smtp: SMTP) -> None:
    """Close at once. The closing handshake of a server that hangs would hang too."""
    if smtp.transport is not None:
        cast("asyncio.WriteTransport", smtp.transport).abort()
    smtp.close()


@dataclass(slots=True)
class Attempt:
    """How far an attempt to open a connection came: its last step, and the address that accepted it."""

    step: str = ""
    address: Address | None = None


class Opener:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._name = domain(settings.smtp_helo or mailbox(settings.smtp_from)[1].rpartition("@")[2])
        self._tls = ssl.create_default_context()
        if settings.smtp_ca_file:
            self._tls.load_verify_locations(settings.smtp_ca_file)
        if settings.smtp_client_cert:
            self._tls.load_cert_chain(settings.smtp_client_cert)
        self.tokens = Tokens(settings, self._tls) if settings.smtp_oauth_token_url else None
        self.last = Attempt()
        self._resting: dict[Address, float] = {}

    async def open(self, tries: int = 1) -> Connection:
        """Try one of the server's addresses after the other; if all have failed lately, up to `tries` times."""
        if not self.tokens:
            return await self._open_somewhere(tries, self._settings.smtp_password or "")
        token = await self.tokens.get()
        try:
            return await self._open_somewhere(tries, token.value)
        except errors.SMTPAuthenticationError:
            token = await self.tokens.another(token)
        return await self._open_somewhere(tries, token.value)

    async def close(self) -> None:
        if self.tokens:
            await self.tokens.close()

    def rest(self, address: Address) -> None:
        """Try an address of the server last for some time, as its machine may be broken."""
        self._resting[address] = time.monotonic() + ADDRESS_REST

    async def _open_somewhere(self, tries: int, secret: str) -> Connection:
        left = ADDRESSES
        while True:
            self.last = attempt = Attempt()
            try:
                return await self._open_in_time(attempt, secret)
            except errors.SMTPAuthenticationError:  # another address would refuse the login as well
                raise
            except (errors.SMTPException, SMTPFault, OSError) as exc:
                if attempt.address is None or not left:
                    raise
                left -= 1
                self.rest(attempt.address)
                if all(map(self._rests, await self._addresses())):
                    tries -= 1
                    if not tries or isinstance(exc, SMTPFault):
                        raise

    def _rests(self, info: AddressInfo) -> float:
        """Return the seconds for which an address is still tried last."""
        return max(0.0, self._resting.get(info[4][:2], -math.inf) - time.monotonic())

    async def _addresses(self) -> Sequence[AddressInfo]:
        host, port = self._settings.smtp_host, self._settings.smtp_port
        return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)

    async def _open_in_time(self, attempt: Attempt, secret: str) -> Connection:
        timeout = self._settings.smtp_connect_timeout
        try:
            async with asyncio.timeout(timeout):
                return await self._open(attempt, secret)
        except TimeoutError:
            hint = EXPECTS_TLS if attempt.step == SILENT_STEP else ""
            raise SMTPFault(Verdict.CONNECTION, f"{attempt.step} timed out after {timeout:g} s{hint}") from None

    async def _open(self, attempt: Attempt, secret: str) -> Connection:
        settings, security = self._settings, self._settings.security
        attempt.step = "connecting"
        addresses = sorted(await self._addresses(), key=self._rests)
        connected = await start_connection(addresses, happy_eyeballs_delay=ATTEMPT_DELAY, interleave=1)
        attempt.address = connected.getpeername()[:2]
        smtp = SMTP(
            hostname=settings.smtp_host.removesuffix("."),  # the name that the certificate must have
            sock=connected,
            use_tls=security is Security.TLS,
            start_tls=False,  # decided in _upgrade
            tls_context=self._tls,
            local_hostname=self._name,  # aiosmtplib would ask DNS for it
            timeout=settings.smtp_connect_timeout,
        )
        try:
            attempt.step = "TLS or the greeting" if security is Security.TLS else SILENT_STEP
            await smtp.connect()
            protocol = Protocol(smtp)
            await self._greet(attempt, smtp)
            if security in {Security.AUTO, Security.STARTTLS}:
                await self._upgrade(attempt, smtp)
            if settings.smtp_login:
                attempt.step = "the login"
                await log_in(smtp, settings.smtp_login, secret, BY_TOKEN if self.tokens else BY_PASSWORD)
        except BaseException:
            drop(smtp)
            raise
        return Connection(smtp, protocol, settings.smtp_command_timeout, attempt.address)

    async def _greet(self, attempt: Attempt, smtp: SMTP) -> None:
        """Say EHLO, or HELO to a server that does not know EHLO (RFC 5321, section 3.2)."""
        attempt.step = "EHLO"
        try:
            await smtp.ehlo()
        except errors.SMTPHeloError as exc:
            if exc.code not in NOT_IMPLEMENTED:
                raise
            await smtp.helo()

    async def _upgrade(self, attempt: Attempt, smtp: SMTP) -> None:
        settings, attempt.step = self._settings, "STARTTLS"
        if smtp.supports_extension("starttls"):
            await smtp.starttls()
            await self._greet(attempt, smtp)
        elif settings.security is Security.STARTTLS or settings.smtp_login or settings.smtp_client_cert:
            raise SMTPFault(Verdict.CONFIGURATION, NO_STARTTLS)
