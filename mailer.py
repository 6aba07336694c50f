"""One message over SMTPS: the connections, and the conversation that hands a message to the server.

Sources: RFC 5321 (SMTP), RFC 2920 (PIPELINING), RFC 8314 (implicit TLS), RFC 3207 (STARTTLS), RFC 4954 (AUTH),
RFC 6531 (SMTPUTF8).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Final

from aiosmtplib import SMTPResponseException
from marshmallow import ValidationError

from config.address import envelope_address
from mail.connection import Connection
from mail.feedback import Feedback
from mail.lease import Lease
from mail.message import Sender, compose, sender_of
from mail.opening import Opener
from mail.pool import FAULTS, Pool
from mail.replies import Outcome, SMTPFault, judge
from mail.stops import Mail
from mail.templates import Content
from mail.verdicts import Stage, Verdict
from mongo.owed import OwedEmail
from mongo.suppression import Suppression
from settings import Settings

LATE: Final = 30.0
"""Seconds after which a message without a reply lets others go on."""

SENT: Final = Outcome(verdict=Verdict.SENT, status="250")
MUTED: Final = Outcome(verdict=Verdict.MUTED, status="opted out", stage=Stage.CONNECT)
READ: Final = Outcome(verdict=Verdict.READ, status="nothing to tell", stage=Stage.CONNECT)
Render = Callable[[Lease], Awaitable[Content]]
"""Returns what an e-mail says, after the look that brings what it tells. Its errors reach the caller of the mailer, so
it must raise none of `FAULTS`."""


async def _no_look(_: Lease) -> None:
    return


class Mailer:
    """Sends e-mails, each over one connection at a time. Connections are kept for the next e-mails.

    Before MAIL it calls `look`, unless it is known that the user wants the e-mail; and `late` if the reply to the
    message does not come soon. What happens is reported to `feedback`.
    """

    def __init__(
        self,
        settings: Settings,
        feedback: Feedback,
        look: Callable[[Lease], Awaitable[None]] = _no_look,
        late: Callable[[Lease], None] = lambda _: None,
    ) -> None:
        self._feedback = feedback
        self._look = look
        self._late = late
        self._settings = settings
        self._sender = sender_of(settings)
        self._opener = Opener(settings, self._sender.domain)
        self.pool = Pool(self._opener, feedback)

    async def send(self, lease: Lease, render: Render) -> Outcome | None:
        """Send an e-mail and return what became of it; `None` if its lease ended before the message was sent.

        Raises only what `render` raises, and when its task is cancelled.
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
        if suppression and suppression.covers(to, lease.email.at):
            return _suppressed(suppression)
        try:
            return await self._send(lease, to, render)
        except FAULTS as exc:
            return judge(exc, Stage.CONNECT)

    async def _send(self, lease: Lease, to: str, render: Render) -> Outcome | None:
        """Send over one connection, and at once over another if that one may be at fault. Raises `FAULTS`."""
        failed: dict[Connection, Outcome] = {}
        outcome: Outcome | None = None
        began = time.monotonic()
        connection = await self.pool.take()
        try:
            while True:
                proven = connection.messages > 0
                outcome = await self._converse(connection, lease, to, render)
                # A third one is asked if one that has delivered and a new one have failed.
                is_last = len(failed) > 1 or any(proven or not other.messages for other in failed)
                if outcome is None or is_last:
                    return outcome
                if not self._feedback.may_be_the_connection(lease.mail, outcome, lease.email.copies, proven=proven):
                    return outcome
                failed[connection] = outcome
                try:
                    connection = await self.pool.another(connection)
                except FAULTS as exc:
                    ambiguous = outcome.verdict is Verdict.AMBIGUOUS
                    return judge(exc, Stage.CONNECT) if outcome.broken and not ambiguous else outcome
                if outcome.verdict is Verdict.AMBIGUOUS:
                    lease.email = replace(lease.email, copies=1)
        finally:
            await self._compare(lease.mail, began, failed, connection, outcome)

    async def _compare(
        self,
        mail: Mail,
        began: float,
        failed: Mapping[Connection, Outcome],
        last: Connection,
        outcome: Outcome | None,
    ) -> None:
        """Judge the connections on which a message failed by what became of it on the last one."""
        if outcome and outcome.verdict is Verdict.SENT:
            for connection, fault in failed.items():
                if fault.code or not connection.messages:  # else the server had closed it
                    await self.pool.blame(connection)
        elif failed:
            ambiguous = outcome and outcome.verdict is Verdict.AMBIGUOUS  # a third copy has its time
            if not ambiguous and not any(connection.messages for connection in (*failed, last)):
                self._feedback.refused_by_unproven(mail, began)
            for connection, fault in failed.items():
                if not fault.broken:
                    self.pool.keep(connection)
        if outcome and outcome.verdict is Verdict.AMBIGUOUS:
            await self.pool.ask_whether_the_server_lives()

    async def _converse(self, connection: Connection, lease: Lease, to: str, render: Render) -> Outcome | None:
        if fault := await self._guard(connection, connection.begin()):
            return fault
        try:
            content = await self._prepare(lease, render)
        except BaseException:  # which says nothing about the connection
            self.pool.keep(connection)
            raise
        if content is None:
            self.pool.keep(connection)
            return _unwanted(lease)
        return await self._guard(connection, self._hand_in(connection, lease, to, content))

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
        return content if lease.held else None

    async def _guard(self, connection: Connection, talk: Awaitable[Outcome | None]) -> Outcome | None:
        """Return what a talk with the server returns, or what its fault means; keep the connection if it is sound."""
        try:
            return await talk
        except FAULTS as exc:
            outcome = judge(exc, self._stage(connection, exc))
            # After any other fault, the server's next reply may belong to an old command.
            if not outcome.code or not outcome.tried or outcome.broken:
                self.pool.drop(connection)
            elif outcome.worth_another_connection and not connection.messages:
                await self.pool.close(connection)  # it may lead to a broken machine
            else:
                connection.refused = True
                self.pool.keep(connection)
            return outcome
        except BaseException:
            self.pool.drop(connection)
            raise

    async def _hand_in(self, connection: Connection, lease: Lease, to: str, content: Content) -> Outcome | None:
        """Hand a message to the server: MAIL, RCPT, DATA; `None` if its lease ends meanwhile."""
        option = self._option(connection, to)
        message = _as_bytes(lease.email, self._sender, to, content)
        # If only the recipient needs an option, a refused MAIL concerns this e-mail.
        first = Stage.RCPT if option and self._sender.is_ascii else Stage.MAIL
        commands = {
            f"MAIL FROM:<{self._sender.envelope}>{option}": (first, 2),
            f"RCPT TO:<{to}>": (Stage.RCPT, 2),
            "DATA": (Stage.DATA_COMMAND, 3),
        }
        connection.stage = first
        connection.prepare(*commands, together=self._opener.pipelining)
        for command, (stage, kind) in commands.items():
            if not lease.held:
                break
            await connection.say(command, stage, kind)
            self._feedback.reached()
        if not lease.held:
            self.pool.drop(connection)
            return None
        await self._hand_over(connection, message, lease)
        self.pool.delivered(connection)
        return SENT

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

    async def _hand_over(self, connection: Connection, message: bytes, lease: Lease) -> None:
        timer = asyncio.get_running_loop().call_later(LATE, self._let_others_go_on, connection, lease)
        try:
            await connection.hand_over(message)
        finally:
            timer.cancel()

    def _let_others_go_on(self, connection: Connection, lease: Lease) -> None:
        self._late(lease)
        if lease.replaced:
            self.pool.leave(connection)

    def _option(self, connection: Connection, to: str) -> str:
        """Ask for SMTPUTF8 if an address needs it. Raises `SMTPFault` if the server lacks it (RFC 6531)."""
        if self._sender.is_ascii and to.isascii():
            return ""
        if not connection.smtp.supports_extension("smtputf8"):
            ours = not self._sender.is_ascii
            verdict = Verdict.CONFIGURATION if ours else Verdict.PERMANENT
            raise SMTPFault(verdict, "the server offers no SMTPUTF8, which the address needs")
        return " SMTPUTF8"


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
