"""One message over SMTPS: the connections, and the conversation that hands a message to the server.

Sources: RFC 5321 (SMTP), RFC 8314 (implicit TLS), RFC 3207 (STARTTLS), RFC 4954 (AUTH), RFC 6531 (SMTPUTF8).
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from dataclasses import dataclass, field
from typing import Final, cast

from aiosmtplib import SMTP, SMTPException
from marshmallow import ValidationError

from mail.address import envelope_address
from mail.breaker import Breaker
from mail.message import WIRE_POLICY, Sender, compose
from mail.replies import Outcome, SMTPFault, Stage, Verdict, judge
from mail.templates import Content
from mongo.outbox import OwedEmail
from settings import Security, Settings

MESSAGES_PER_CONNECTION: Final = 100
CONNECTION_AGE: Final = 300.0
"""Seconds after which a connection is replaced: servers close old ones unasked."""
CONNECTION_IDLE: Final = 30.0
"""Seconds without a message after which a connection is closed, for the same reason."""
QUIT_TIMEOUT: Final = 0.5
"""Seconds to wait for the reply to QUIT."""


@dataclass(slots=True)
class Connection:
    """One conversation with the server, for one message after another."""

    smtp: SMTP
    opened: float = field(default_factory=time.monotonic)
    used: float = field(default_factory=time.monotonic)
    messages: int = 0

    def usable(self) -> bool:
        """Return whether the server can be expected to still listen."""
        now = time.monotonic()
        return (
            self.smtp.is_connected
            and self.messages < MESSAGES_PER_CONNECTION
            and now - self.opened < CONNECTION_AGE
            and now - self.used < CONNECTION_IDLE
        )

    async def quit(self) -> None:
        """Say goodbye, then close."""
        with contextlib.suppress(SMTPException):
            await self.smtp.quit(timeout=QUIT_TIMEOUT)
        self.drop()

    def drop(self) -> None:
        """Close at once. The closing handshake of a server that hangs would hang too."""
        if self.smtp.transport is not None:
            cast("asyncio.WriteTransport", self.smtp.transport).abort()
        self.smtp.close()


class Mailer:
    """Sends e-mails, each over one connection at a time. Connections are kept for the next e-mails."""

    def __init__(self, settings: Settings) -> None:
        self.breaker = Breaker()
        self._settings = settings
        self._tls = ssl.create_default_context()
        if settings.smtp_ca_file:
            self._tls.load_verify_locations(settings.smtp_ca_file)
        self._sender = Sender(*settings.sender)
        self._kept: list[Connection] = []
        self._connecting = asyncio.Lock()
        self._busy = 0

    @property
    def connections(self) -> int:
        """Number of connections that are open or being opened."""
        return len(self._kept) + self._busy

    async def send(self, email: OwedEmail, content: Content) -> Outcome:
        """Send an e-mail and return what became of it. Raises only when its task is cancelled.

        It takes at most the connect timeout, four command timeouts and the data timeout of the settings.
        """
        if not email.address:
            return Outcome(Verdict.PERMANENT, "no address", "The user's document has no e-mail address.")
        try:
            to = envelope_address(email.address)
        except ValidationError:
            return Outcome(Verdict.PERMANENT, "no address", "The e-mail address in the user's document is not valid.")
        ticket = self.breaker.admit()
        if ticket is None:
            return Outcome(Verdict.CONNECTION, "not tried", self.breaker.fault)
        self._busy += 1
        try:
            outcome = await self._send(email, to, content)
        except BaseException:
            self.breaker.abandon(ticket)
            raise
        finally:
            self._busy -= 1
        if outcome.verdict in {Verdict.CONNECTION, Verdict.CONFIGURATION}:
            self.breaker.fail(ticket, outcome.detail)
        else:
            self.breaker.succeed(ticket)
        return outcome

    async def _send(self, email: OwedEmail, to: str, content: Content) -> Outcome:
        kept = await self._take()
        if kept:
            outcome = await self._converse(kept, email, to, content)
            if outcome.verdict is not Verdict.CONNECTION:
                return outcome
        # The server may close a kept connection at any time. That is no fault yet.
        return await self._converse(None, email, to, content)

    async def _converse(self, connection: Connection | None, email: OwedEmail, to: str, content: Content) -> Outcome:
        settings, stage = self._settings, Stage.CONNECT
        try:
            try:
                if connection is None:
                    connection = await self._connect()
                smtp = connection.smtp
                timeout = settings.smtp_command_timeout
                options = self._options(smtp, to)
                stage = Stage.MAIL
                await smtp.mail(self._sender.address, options=options, encoding="utf-8", timeout=timeout)
                stage = Stage.RCPT
                await smtp.rcpt(to, encoding="utf-8", timeout=timeout)
                stage = Stage.DATA
                message = compose(email.id, email.at, self._sender, to, content)
                await smtp.data(message.as_bytes(policy=WIRE_POLICY[bool(options)]), timeout=settings.smtp_data_timeout)
            except BaseException:
                # After any fault, a cancellation included, the server's next reply may belong to an old command.
                if connection:
                    connection.drop()
                raise
        except (SMTPException, SMTPFault, OSError, ValueError) as exc:
            return judge(exc, stage)
        connection.messages += 1
        connection.used = time.monotonic()
        self._kept.append(connection)
        return Outcome(Verdict.SENT, "250", "")

    async def _connect(self) -> Connection:
        """Open a connection, one at a time, so that a wrong password is not tried by all of them at once.

        Raises `SMTPFault`, and the errors of aiosmtplib, ssl and the network.
        """
        async with self._connecting:
            if self.breaker.wait():
                raise SMTPFault(Verdict.CONNECTION, self.breaker.fault)
            settings = self._settings
            security = settings.security
            smtp = SMTP(
                hostname=settings.smtp_host,
                port=settings.smtp_port,
                use_tls=security is Security.TLS,
                start_tls=False,  # decided in _upgrade
                tls_context=self._tls,
                local_hostname=self._sender.domain,  # aiosmtplib would ask DNS for our name
                timeout=settings.smtp_connect_timeout,
            )
            try:
                async with asyncio.timeout(settings.smtp_connect_timeout):
                    await smtp.connect()
                    await smtp.ehlo()
                    if security in {Security.AUTO, Security.STARTTLS}:
                        await self._upgrade(smtp, required=security is Security.STARTTLS)
                    if settings.smtp_login:
                        await self._login(smtp, settings.smtp_login, settings.smtp_password or "")
            except BaseException:
                Connection(smtp).drop()
                raise
            return Connection(smtp)

    def _options(self, smtp: SMTP, to: str) -> list[str]:
        """Ask for SMTPUTF8 if an address needs it. Raises `SMTPFault` if the server lacks it (RFC 6531)."""
        if (self._sender.address + to).isascii():
            return []
        if not smtp.supports_extension("smtputf8"):
            raise SMTPFault(Verdict.PERMANENT, "the server offers no SMTPUTF8, which the address needs")
        return ["SMTPUTF8"]

    async def _upgrade(self, smtp: SMTP, *, required: bool) -> None:
        if smtp.supports_extension("starttls"):
            await smtp.starttls()
            await smtp.ehlo()
        elif required:
            raise SMTPFault(Verdict.CONFIGURATION, "the server offers no STARTTLS, and SMTP_SECURITY requires it")
        elif self._settings.smtp_login:
            raise SMTPFault(
                Verdict.CONFIGURATION,
                "the server offers no STARTTLS, and the password is not sent in the clear unless SMTP_SECURITY=none",
            )

    async def _login(self, smtp: SMTP, login: str, password: str) -> None:
        """Try one mechanism once: servers lock accounts that fail often."""
        offered = smtp.server_auth_methods
        for name, mechanism in (
            ("plain", smtp.auth_plain),
            ("login", smtp.auth_login),
            ("cram-md5", smtp.auth_crammd5),
        ):
            if name in offered:
                await mechanism(login, password)
                return
        raise SMTPFault(Verdict.CONFIGURATION, "the server offers no AUTH that we know (PLAIN, LOGIN, CRAM-MD5)")

    async def _take(self) -> Connection | None:
        """Return the kept connection used last, if any, and close those that are too old."""
        await self.close_idle()
        return self._kept.pop() if self._kept else None

    async def close_idle(self) -> None:
        """Close the kept connections that will not be used again."""
        old = [connection for connection in self._kept if not connection.usable()]
        self._kept = [connection for connection in self._kept if connection not in old]
        await asyncio.gather(*(connection.quit() for connection in old))

    async def close(self) -> None:
        """Close every kept connection."""
        kept, self._kept = self._kept, []
        await asyncio.gather(*(connection.quit() for connection in kept))
