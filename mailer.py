"""One message over SMTPS: the connections, and the conversation that hands a message to the server.

Sources: RFC 5321 (SMTP), RFC 2920 (PIPELINING), RFC 8314 (implicit TLS), RFC 3207 (STARTTLS), RFC 4954 (AUTH),
RFC 6531 (SMTPUTF8).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final

from aiosmtplib import SMTPException, SMTPResponseException
from marshmallow import ValidationError

from config.address import envelope_address
from mail.breaker import Breaker
from mail.connection import Connection, Opener
from mail.lease import Lease
from mail.message import Sender, compose
from mail.replies import Outcome, SMTPFault, judge
from mail.templates import Content
from mail.verdicts import Stage, Verdict
from mongo.owed import OwedEmail
from mongo.suppression import Suppression
from settings import Settings

REPLY_TIMEOUT: Final = 600.0
"""Seconds to wait for the reply to a message, at the least (RFC 5321, section 4.5.3.2.6). To give up earlier is to send
the e-mail again although the server may have accepted it."""
IDLE_INTERVAL: Final = 1.0
"""Seconds between two looks for kept connections that are too old."""

MUTED: Final = Outcome(verdict=Verdict.MUTED, status="opted out", stage=Stage.CONNECT)
READ: Final = Outcome(verdict=Verdict.READ, status="nothing to tell", stage=Stage.CONNECT)
Render = Callable[[Lease], Awaitable[Content]]
"""Returns what an e-mail says, after the look that brings what it tells."""


async def _no_look(_: Lease) -> None:
    return


class Mailer:
    """Sends e-mails, each over one connection at a time. Connections are kept for the next e-mails.

    Before MAIL it calls `look`, unless it is known that the user wants the e-mail; `late` if the reply to the message
    does not come soon; and `changed` whenever the breaker may admit other e-mails than before.
    """

    def __init__(
        self,
        settings: Settings,
        look: Callable[[Lease], Awaitable[None]] = _no_look,
        late: Callable[[Lease], None] = lambda _: None,
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        self.breaker = Breaker(changed)
        self._look = look
        self._late = late
        self._settings = settings
        self._sender = Sender(*settings.sender)
        self._opener = Opener(settings, self._sender.domain)
        self._kept: list[Connection] = []
        self._connecting = asyncio.Lock()
        self._busy = 0

    @property
    def connections(self) -> int:
        """Number of connections that are open or being opened."""
        return len(self._kept) + self._busy

    async def send(self, lease: Lease, render: Render) -> Outcome | None:
        """Send an e-mail and return what became of it; `None` if its lease ended before the message was sent.

        It must be that the breaker `admits` it. Raises only when its task is cancelled. Then the server may have
        accepted the message if `lease.sending`.
        """
        if lease.email.ids and not await self._is_wanted(lease):  # what was read makes no dead letter
            return _unwanted(lease)
        address = lease.email.address
        if not address:
            return _unsendable("The user's document has no e-mail address.")
        try:
            to = envelope_address(address)
        except ValidationError:
            return _unsendable("The e-mail address in the user's document is not valid.")
        suppression = lease.email.suppression
        if suppression and suppression.address == to:
            return _suppressed(suppression)
        ticket = self.breaker.admit()
        self._busy += 1
        try:
            outcome = await self._send(ticket, lease, to, render)
        except BaseException:
            self.breaker.abandon(ticket)
            raise
        finally:
            self._busy -= 1
        self._report(ticket, lease, outcome)
        return outcome

    def _report(self, ticket: object, lease: Lease, outcome: Outcome | None) -> None:
        """Tell the breaker what an attempt says about the server."""
        if outcome is None or outcome.verdict in {Verdict.MUTED, Verdict.READ}:
            self.breaker.abandon(ticket)
        elif outcome.blames_server:
            self.breaker.fail(ticket, outcome.detail)
        elif outcome.suspects_server:
            self.breaker.suspect(ticket, lease.email.id, outcome.detail)
        else:
            self.breaker.succeed(ticket)

    async def _send(self, ticket: object, lease: Lease, to: str, render: Render) -> Outcome | None:
        if kept := await self._take():
            outcome = await self._converse(kept, ticket, lease, to, render)
            if outcome is None or not outcome.worth_a_new_connection:
                return outcome
        return await self._converse(None, ticket, lease, to, render)

    async def _converse(
        self, connection: Connection | None, ticket: object, lease: Lease, to: str, render: Render
    ) -> Outcome | None:
        lease.sending = False
        try:
            try:
                if connection is None:
                    connection = await self._connect()
                connection.stage = Stage.CONNECT
                content = await self._prepare(lease, render)
                if content is None:
                    self._kept.append(connection)
                    return _unwanted(lease)
                option = self._option(connection, to)
                message = _as_bytes(lease.email, self._sender, to, content)
                if not await self._say_envelope(connection, ticket, lease, to, option):
                    connection.drop()
                    return None
                connection.stage, lease.sending = Stage.DATA, True
                await self._hand_over(connection, message, ticket, lease)
            except BaseException:
                # After any fault, a cancellation included, the server's next reply may belong to an old command.
                if connection:
                    connection.drop()
                raise
        except (SMTPException, SMTPFault, OSError, ValueError) as exc:
            return judge(exc, self._stage(connection, exc) if connection else Stage.CONNECT)
        connection.messages += 1
        connection.used = time.monotonic()
        self._kept.append(connection)
        return Outcome(verdict=Verdict.SENT, status="250")

    async def _is_wanted(self, lease: Lease) -> bool:
        if not lease.known:
            await self._look(lease)
        return lease.held and lease.wanted and not lease.is_read

    async def _prepare(self, lease: Lease, render: Render) -> Content | None:
        """Render what the last look has brought, and look again if that took long; `None` if nothing is to be sent."""
        content, told = None, lease.told
        while content is None or not lease.known:
            if not await self._is_wanted(lease):
                return None
            if content is None or lease.told != told:
                told = lease.told
                content = await render(lease)
        return content

    async def _say_envelope(self, connection: Connection, ticket: object, lease: Lease, to: str, option: str) -> bool:
        """Say MAIL, RCPT and DATA: all at once to a server that pipelines (RFC 2920).

        Return `False` if the lease ends meanwhile.
        """
        # With an option for the sake of its recipient, the first command is about this e-mail.
        first = Stage.RCPT if option and self._sender.address.isascii() else Stage.MAIL
        commands = {
            f"MAIL FROM:<{self._sender.address}>{option}": (first, 2),
            f"RCPT TO:<{to}>": (Stage.RCPT, 2),
            "DATA": (Stage.DATA_COMMAND, 3),
        }
        connection.stage = first
        connection.together = connection.pipelines and self._opener.pipelining
        if connection.together:
            connection.send(*commands)
        for command, (stage, kind) in commands.items():
            if not lease.held:
                return False
            connection.stage = stage
            if not connection.together:
                connection.send(command)
            await connection.reply(kind, self._settings.smtp_command_timeout)
            self.breaker.reach(ticket)
        return lease.held

    def _stage(self, connection: Connection, exc: Exception) -> Stage:
        """Return how far a conversation had come that failed.

        A server may hold back the replies to commands that were sent together (RFC 2920, section 3.2), MAIL's too
        while it ponders the recipient. So on a new connection silence is about the e-mail, and not about the server.
        """
        stage, kind = connection.stage, exc.code // 100 if isinstance(exc, SMTPResponseException) else None
        if not connection.together or stage is Stage.DATA or (kind is None and connection.messages):
            return stage
        if kind in {None, 2, 3}:  # or the replies may be out of step with the commands
            self._opener.pause_pipelining()
        return Stage.RCPT if kind is None and stage is Stage.MAIL else stage

    async def _hand_over(self, connection: Connection, message: bytes, ticket: object, lease: Lease) -> None:
        """Send the message and wait for the reply as long as RFC 5321 asks. Raises aiosmtplib's errors."""
        soon = self._settings.smtp_data_timeout
        timer = asyncio.get_running_loop().call_later(soon, self._wait_for_reply, ticket, lease)
        try:
            await connection.end_message(message, max(REPLY_TIMEOUT, soon))
        finally:
            timer.cancel()

    def _wait_for_reply(self, ticket: object, lease: Lease) -> None:
        """Let others go on: another e-mail may show meanwhile how the server is."""
        self._late(lease)
        self.breaker.abandon(ticket)

    async def _connect(self) -> Connection:
        """Open a connection: one at a time until one has worked, so that a wrong password is not tried by all."""
        if self.breaker.closed:
            return await self._opener.open()
        async with self._connecting:
            if self.breaker.wait():
                raise SMTPFault(Verdict.CONNECTION, self.breaker.fault)
            return await self._opener.open()

    def _option(self, connection: Connection, to: str) -> str:
        """Ask for SMTPUTF8 if an address needs it. Raises `SMTPFault` if the server lacks it (RFC 6531)."""
        if (self._sender.address + to).isascii():
            return ""
        if not connection.smtp.supports_extension("smtputf8"):
            ours = not self._sender.address.isascii()
            verdict = Verdict.CONFIGURATION if ours else Verdict.PERMANENT
            raise SMTPFault(verdict, "the server offers no SMTPUTF8, which the address needs")
        return " SMTPUTF8"

    async def _take(self) -> Connection | None:
        """Return the usable connection used last, if any. Close those on the way to it."""
        while self._kept:
            connection = self._kept.pop()
            if connection.usable():
                return connection
            await connection.quit()
        return None

    async def close_idle(self) -> None:
        """Close the kept connections that will not be used again, for ever."""
        while True:
            await asyncio.sleep(IDLE_INTERVAL)
            if old := [connection for connection in self._kept if not connection.usable()]:
                self._kept = [connection for connection in self._kept if connection not in old]
                await asyncio.gather(*(connection.quit() for connection in old))

    async def close(self) -> None:
        """Close every kept connection."""
        kept, self._kept = self._kept, []
        await asyncio.gather(*(connection.quit() for connection in kept))


def _unwanted(lease: Lease) -> Outcome | None:
    """Return the outcome of an e-mail that is not sent."""
    return (READ if lease.wanted else MUTED) if lease.held else None


def _as_bytes(email: OwedEmail, sender: Sender, to: str, content: Content) -> bytes:
    """Make the message. Raises `SMTPFault` if that cannot be done, which says nothing about the server."""
    try:
        return compose(email, sender, to, content)
    except ValueError as exc:
        raise SMTPFault(Verdict.TRANSIENT, f"the message cannot be made: {type(exc).__name__}") from exc


def _suppressed(suppression: Suppression) -> Outcome:
    detail = f"Suppressed: no e-mail is sent to this address ({suppression.code})."
    return Outcome(verdict=Verdict.SUPPRESSED, status="no attempt", detail=detail, stage=Stage.CONNECT)


def _unsendable(detail: str) -> Outcome:
    return Outcome(verdict=Verdict.PERMANENT, status="no address", detail=detail, stage=Stage.CONNECT)
