"""SMTP: compose a message, hold the connections, and say what a reply means.

Sources: RFC 5321 (SMTP), RFC 3463 and its registry (enhanced status codes), RFC 3207 (STARTTLS), RFC 4954 (AUTH),
RFC 6531 (SMTPUTF8), RFC 8314 (implicit TLS), RFC 5322 (the message), RFC 3834 (Auto-Submitted).
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import re
import ssl
import time
from dataclasses import dataclass, field
from datetime import datetime
from email import policy
from email.headerregistry import Address, HeaderRegistry
from email.message import EmailMessage
from typing import Any, Final, cast

from aiosmtplib import SMTP, SMTPException, SMTPResponseException
from marshmallow import ValidationError

from schemas import envelope_address
from settings import Security, Settings
from templates import Content


class _HeaderClasses(HeaderRegistry):
    """The registry, with the class of each header kept: to make it anew each time takes half of `compose`."""

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[str, type] = {}

    def __getitem__(self, name: str) -> type:
        if name not in self._made:
            self._made[name] = super().__getitem__(name)
        return self._made[name]


MESSAGE_POLICY: Final = {False: policy.SMTP, True: policy.SMTPUTF8}
CONTENT_POLICY: Final = policy.default.clone(cte_type="7bit", header_factory=_HeaderClasses())
"""Not every server takes a text that is not ASCII as it is (RFC 6152)."""
AUTO_SUBMITTED: Final = CONTENT_POLICY.header_factory("Auto-Submitted", "auto-generated")
MESSAGES_A_CONNECTION: Final = 100
CONNECTION_AGE: Final = 300.0
CONNECTION_IDLE: Final = 30.0
"""Messages, seconds and seconds after which a connection is not used again: servers close them unasked."""
QUIT_TIMEOUT: Final = 0.5
DETAIL_LIMIT: Final = 500
"""Characters of a server's reply that are kept."""


class Stage(enum.Enum):
    """How far a conversation has come."""

    CONNECT = "connect"
    """The greeting, TLS and the login included."""
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"


class Verdict(enum.Enum):
    """What became of an e-mail."""

    SENT = "sent"
    TRANSIENT = "transient"
    """Not now, for this e-mail."""
    PERMANENT = "permanent"
    """Never, for this e-mail."""
    AMBIGUOUS = "ambiguous"
    """The connection broke while the server had the message: it may have taken it."""
    CONNECTION = "connection"
    """The server cannot be worked with now. It says nothing of the e-mail."""
    CONFIGURATION = "configuration"
    """The server will not work with us as we are configured. It says nothing of the e-mail."""


VERDICTS: Final = (
    # stages, what the reply begins with, and what that means; the first that fits
    (Stage, r"421", Verdict.CONNECTION),  # "service not available, closing transmission channel"
    (Stage, r"503|530|534|535|538", Verdict.CONFIGURATION),  # AUTH is wrong, or is wanted first (RFC 4954)
    (Stage, r"5\d\d 5\.(1\.[78]|7\.(57|60|8|9|1[13]))\b", Verdict.CONFIGURATION),  # our sender or login, said late
    (
        Stage,
        r"5.*(sender address rejected|not owned by user|relay access denied|relaying denied|unable to relay)",
        Verdict.CONFIGURATION,
    ),  # as Postfix, Sendmail and Exchange say it, at RCPT and with no code of its own
    ({Stage.CONNECT}, r"5", Verdict.CONFIGURATION),
    ({Stage.CONNECT}, r"", Verdict.CONNECTION),
    ({Stage.MAIL}, r"552|5\d\d 5\.3\.4", Verdict.PERMANENT),  # the message is too large
    ({Stage.MAIL}, r"5", Verdict.CONFIGURATION),  # the sender is refused
    (Stage, r"5", Verdict.PERMANENT),
    (Stage, r"4", Verdict.TRANSIENT),
    ({Stage.DATA}, r"", Verdict.AMBIGUOUS),  # neither yes nor no to a message that it has
    (Stage, r"", Verdict.CONNECTION),  # not SMTP
)


@dataclass(frozen=True, slots=True)
class Letter:
    """An e-mail to send. `id` and `at` make its `Message-ID` and `Date`, the same at every attempt."""

    id: str
    at: datetime
    to: object
    content: Content


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an e-mail; `status` is for logs (no address in it), `detail` for people with a right to see it."""

    verdict: Verdict
    status: str
    detail: str


class SMTPFault(Exception):
    """The conversation cannot go on, for a reason that is no reply."""

    def __init__(self, verdict: Verdict, message: str) -> None:
        super().__init__(message)
        self.verdict = verdict


class Breaker:
    """Keeps the whole process from a server that cannot be worked with.

    Closed while sending works. A fault opens it for 1 s, each further one for twice as long, up to 60 s. In between
    one probe at a time is let through, and so it is before anything was ever sent: a wrong password is tried once.
    """

    FIRST: Final = 1.0
    LONGEST: Final = 60.0

    def __init__(self) -> None:
        self.closed = False
        self.fault = ""
        self._delay = 0.0
        self._until = 0.0
        self._probe: object = None

    def wait(self) -> float:
        """Return the seconds until a probe may be sent; 0 when one may be now."""
        return max(0.0, self._until - time.monotonic())

    def admit(self) -> object | None:
        """Return a ticket to go on with, or `None`. Whoever has one must tell how it went."""
        if not self.closed and (self._probe or self.wait()):
            return None
        ticket = object()
        if not self.closed:
            self._probe = ticket
        return ticket

    def succeed(self, ticket: object) -> None:
        """Close, if this was the probe: the server can be worked with."""
        if ticket is self._probe:
            self.closed, self._probe, self._delay = True, None, 0.0

    def fail(self, ticket: object, fault: str) -> None:
        """Open. Those who were let through together count as one, and say nothing of a probe after them."""
        if self.closed or ticket is self._probe:
            self.closed, self._probe, self.fault = False, None, fault
            self._delay = min(max(self.FIRST, self._delay * 2), self.LONGEST)
            self._until = time.monotonic() + self._delay

    def abandon(self, ticket: object) -> None:
        """Give up a probe that nothing was learnt from."""
        if ticket is self._probe:
            self._probe = None


@dataclass(slots=True)
class Connection:
    """One conversation with the server, for one message after another."""

    smtp: SMTP
    opened: float = field(default_factory=time.monotonic)
    used: float = field(default_factory=time.monotonic)
    messages: int = 0

    def usable(self) -> bool:
        """Say whether the server can be expected to still listen."""
        now = time.monotonic()
        return (
            self.smtp.is_connected
            and self.messages < MESSAGES_A_CONNECTION
            and now - self.opened < CONNECTION_AGE
            and now - self.used < CONNECTION_IDLE
        )

    async def quit(self) -> None:
        """Part politely, without waiting long for an answer."""
        with contextlib.suppress(SMTPException):
            await self.smtp.quit(timeout=QUIT_TIMEOUT)
        self.drop()

    def drop(self) -> None:
        """Close at once. A closing handshake with a server that hangs would hang as well."""
        if self.smtp.transport is not None:
            cast("asyncio.WriteTransport", self.smtp.transport).abort()
        self.smtp.close()


class Mailer:
    """Sends letters, each over a connection of its own while it is sent; connections are kept for the next."""

    def __init__(self, settings: Settings) -> None:
        self.breaker = Breaker()
        self._settings = settings
        self._tls = ssl.create_default_context()
        if settings.smtp_ca_file:
            self._tls.load_verify_locations(settings.smtp_ca_file)
        name, address = settings.sender
        self._sender = envelope_address(address)
        local, domain = self._sender.rsplit("@", 1)
        self._domain = domain
        self._from = sender_header(Address(display_name=name, username=local, domain=domain))
        self._kept: list[Connection] = []
        self._connecting = asyncio.Lock()
        self._busy = 0

    @property
    def connections(self) -> int:
        """Count the open connections, and those being opened."""
        return len(self._kept) + self._busy

    async def send(self, letter: Letter) -> Outcome:
        """Send a letter and say what became of it. It raises nothing but the cancellation of its task.

        It takes at most the connect timeout, four command timeouts and the data timeout of the settings.
        """
        if not letter.to:
            return Outcome(Verdict.PERMANENT, "no address", "The user's document has no e-mail address.")
        try:
            to = envelope_address(letter.to)
        except ValidationError:
            return Outcome(Verdict.PERMANENT, "no address", "The e-mail address in the user's document is not valid.")
        ticket = self.breaker.admit()
        if ticket is None:
            return Outcome(Verdict.CONNECTION, "not tried", self.breaker.fault)
        self._busy += 1
        try:
            outcome = await self._send(letter, to)
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

    async def _send(self, letter: Letter, to: str) -> Outcome:
        kept = await self._take()
        if kept:
            outcome = await self._converse(kept, letter, to)
            if outcome.verdict is not Verdict.CONNECTION:
                return outcome
        # A kept connection may have been closed by the server at any time: that is no fault yet.
        return await self._converse(None, letter, to)

    async def _converse(self, connection: Connection | None, letter: Letter, to: str) -> Outcome:
        settings, stage = self._settings, Stage.CONNECT
        try:
            try:
                if connection is None:
                    connection = await self._connect()
                smtp = connection.smtp
                timeout = settings.smtp_command_timeout
                options = self._options(smtp, to)
                stage = Stage.MAIL
                await smtp.mail(self._sender, options=options, encoding="utf-8", timeout=timeout)
                stage = Stage.RCPT
                await smtp.rcpt(to, encoding="utf-8", timeout=timeout)
                stage = Stage.DATA
                message = compose(letter, self._from, to).as_bytes(policy=MESSAGE_POLICY[bool(options)])
                await smtp.data(message, timeout=settings.smtp_data_timeout)
            except BaseException:
                # Whatever went wrong, and a cancellation too: what this server says next may answer an old command.
                if connection:
                    connection.drop()
                raise
        except (SMTPException, SMTPFault, OSError, ValueError) as exc:
            return _judge(exc, stage)
        connection.messages += 1
        connection.used = time.monotonic()
        self._kept.append(connection)
        return Outcome(Verdict.SENT, "250", "")

    async def _connect(self) -> Connection:
        """Connect one at a time, so that a wrong password is not tried by all at once.

        Raises `SMTPFault`, and what aiosmtplib, ssl and the network raise.
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
                start_tls=False,  # ours to decide, below
                tls_context=self._tls,
                local_hostname=self._domain,  # else DNS is asked for our name
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
        """Ask for SMTPUTF8 where an address needs it; raises `SMTPFault` where the server has it not (RFC 6531)."""
        if (self._sender + to).isascii():
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
        """Try one mechanism, once: servers lock accounts that fail often."""
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
        """Take the connection that was used last, and close those that are too old."""
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


def sender_header(sender: Address) -> Any:
    """Make the header that `compose` takes: once, as the making of headers is most of the work for a message."""
    return CONTENT_POLICY.header_factory("From", (sender,))


def compose(letter: Letter, sender: Any, to: str) -> EmailMessage:
    """Make the message: a text, or a text and the same in HTML for programs that show it."""
    message = EmailMessage(CONTENT_POLICY)
    message["From"] = sender
    message["To"] = to
    message["Subject"] = letter.content.subject
    message["Date"] = letter.at
    message["Message-ID"] = f"<{letter.id}@{sender.addresses[0].domain}>"
    message["Auto-Submitted"] = AUTO_SUBMITTED
    message.set_content(letter.content.text + "\n")
    if letter.content.html:
        message.add_alternative(letter.content.html + "\n", subtype="html")
    return message


def _judge(exc: Exception, stage: Stage) -> Outcome:
    if isinstance(exc, SMTPFault):
        return Outcome(exc.verdict, str(exc), str(exc))
    if isinstance(exc, SMTPResponseException):
        # A reply may be in any charset and of any length: what is kept must fit into a document.
        reply = f"{exc.code} {exc.message}".encode("utf-8", "replace").decode()[:DETAIL_LIMIT]
        matches = (
            what
            for stages, start, what in VERDICTS
            if stage in stages and re.match(start, reply, re.IGNORECASE | re.DOTALL)
        )
        codes = re.match(r"-?\d+( [245]\.\d{1,3}\.\d{1,3}\b)?", reply)
        return Outcome(next(matches), f"{codes[0] if codes else ''} at {stage.value}", f"{stage.value}: {reply}")
    if isinstance(exc, ValueError) and not isinstance(exc, OSError):
        verdict = Verdict.PERMANENT  # an address that cannot be put into a command
    elif stage is Stage.DATA:
        verdict = Verdict.AMBIGUOUS
    elif any(isinstance(e, ssl.SSLError) and not isinstance(e, ssl.SSLEOFError) for e in (exc, exc.__cause__)):
        verdict = Verdict.CONFIGURATION  # a certificate we do not trust, or no TLS where we expect it
    else:
        verdict = Verdict.CONNECTION
    text = f"{stage.value}: {type(exc.__cause__ or exc).__name__}: {exc}"[:DETAIL_LIMIT]
    return Outcome(verdict, text, text)
