"""One message over SMTPS: the connections, and the conversation that hands a message to the server.

Sources: RFC 5321 (SMTP), RFC 2920 (PIPELINING).
"""

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from aiosmtplib import SMTPResponseException

from mail.connection import Connection
from mail.feedback import Feedback
from mail.lease import Lease
from mail.message import Letter, Letters, unsendable, unwanted
from mail.pool import FAULTS, Pool
from mail.replies import Outcome, Stage, Verdict, judge
from settings import Settings

LATE: Final = 30.0  # seconds after which a message without a reply lets others go on
SOON: Final = 1.0  # seconds after which the e-mail whose commands went with that message takes another connection
READY: Final = 0.02  # seconds that a message may wait for the next e-mail to get ready
PIPELINING_PAUSE: Final = 600.0  # seconds without pipelining after commands sent together got the wrong replies

SENT: Final = Outcome(verdict=Verdict.SENT, status="250", stage=Stage.DATA)


class Worker:
    """What the mailer asks of its caller. By itself, no e-mail follows another."""

    def late(self, lease: Lease) -> None:
        """Note that the reply to the message does not come soon."""

    def following(self) -> Lease | None:
        """Take the next e-mail, if there is one that may be sent at once."""
        return None

    def give_back(self, lease: Lease) -> None:
        """Take an e-mail back that followed, and that the server has not got."""


class Mailer:
    """Sends e-mails, each over one connection at a time, and reports to `feedback` what happens.

    To a server that pipelines, a message travels in one write with the commands about the next one: the content may
    come first in a group (RFC 2920, section 3.1). To these commands, only acceptance counts. Whatever else they are
    answered, the next e-mail is sent anew, so that no reply is taken for that to another e-mail, and a server that
    does not keep step is no longer sent anything ahead for some time.
    """

    def __init__(self, settings: Settings, feedback: Feedback, letters: Letters, worker: Worker) -> None:
        self._feedback = feedback
        self._letters = letters
        self._worker = worker
        self.pool = Pool(settings, feedback)
        self._ahead: dict[Connection, Letter] = {}  # those whose commands were sent ahead
        self._none_ahead_until = -math.inf
        self._one_by_one_until = -math.inf

    async def send(self, lease: Lease) -> Outcome | None:
        """Send an e-mail and return what became of it; `None` if its lease ended before the message was sent.

        If it has a `then`, that e-mail is begun, and must be sent next. Raises only what `Letters.content` raises.
        """
        if lease.email.ids and not lease.connection and not await self._letters.is_wanted(lease):
            return unwanted(lease)  # what was read makes no dead letter
        if outcome := unsendable(lease):
            return outcome
        try:
            return await self._send(lease)
        except FAULTS as exc:
            return judge(exc, Stage.CONNECT)

    async def _send(self, lease: Lease) -> Outcome | None:
        """Send over one connection, and at once over another if that one may be at fault. Raises `FAULTS`."""
        failed: dict[Connection, Outcome] = {}
        outcome: Outcome | None = None
        connection = lease.connection or await self.pool.take()
        lease.connection = None
        try:
            while True:
                proven = connection.messages > 0
                outcome = await self._converse(connection, lease)
                # A third one is asked if one that has delivered and a new one have failed.
                is_last = len(failed) > 1 or any(proven or not other.messages for other in failed)
                if outcome is None or outcome is SENT or is_last:
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
            await self._compare(lease, failed, connection, outcome)

    async def _compare(
        self, lease: Lease, failed: Mapping[Connection, Outcome], last: Connection, outcome: Outcome | None
    ) -> None:
        """Judge the connections on which a message failed by what became of it on the last one."""
        if outcome is SENT:
            for connection, fault in failed.items():
                if fault.code or not connection.messages:  # else the server had closed it
                    self.pool.blame(connection)
            return
        is_ambiguous = outcome is not None and outcome.verdict is Verdict.AMBIGUOUS  # a third copy has its time
        if failed and not is_ambiguous and not any(connection.messages for connection in (*failed, last)):
            self._feedback.refused_by_unproven(lease.mail, lease.began)
        for connection, fault in failed.items():
            if not fault.broken:
                self.pool.keep(connection)
        if is_ambiguous:
            await self.pool.ask_whether_the_server_lives()

    async def _converse(self, connection: Connection, lease: Lease) -> Outcome | None:
        """Hand an e-mail to the server over a connection, and keep that if it is sound. Raises what writing raises."""
        try:
            return await self._hand_in(connection, lease)
        except FAULTS as exc:
            return await self._fault(connection, exc)
        except BaseException:
            if connection.stage is Stage.CONNECT:  # the letter could not be written
                self.pool.keep(connection)
            else:
                self.pool.drop(connection)
            raise

    async def _hand_in(self, connection: Connection, lease: Lease) -> Outcome | None:
        letter = self._ahead.pop(connection, None)
        if letter is None or not await self._has_accepted(connection, letter):
            await connection.begin()
            letter = await self._letters.write(lease, connection)
            if letter is None:
                self.pool.keep(connection)
                return unwanted(lease)
            connection.prepare(letter.commands, letter.concern, together=time.monotonic() > self._one_by_one_until)
            await self._say(connection, letter)
        return await self._hand_over(connection, letter)

    async def _say(self, connection: Connection, letter: Letter) -> None:
        mail, rcpt, data = letter.commands
        await connection.say(mail, letter.concern, 2)
        self._feedback.reached()
        await connection.say(rcpt, Stage.RCPT, 2)
        await connection.say(data, Stage.DATA_COMMAND, 3)

    async def _fault(self, connection: Connection, exc: Exception) -> Outcome:
        """Judge a fault of a conversation. After a refusal, the connection is kept."""
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

    def _stage(self, connection: Connection, exc: Exception) -> Stage:
        """Return how far a conversation had come that failed.

        A server may hold back the replies to commands that were sent together (RFC 2920, section 3.2), MAIL's too
        while it ponders the recipient. So on a new connection silence is about the e-mail, and not about the server.
        """
        stage, kind = connection.stage, exc.code // 100 if isinstance(exc, SMTPResponseException) else None
        if not connection.together or stage is Stage.DATA or (kind is None and connection.messages):
            return stage
        if kind in {None, 2, 3}:  # or the replies may be out of step with the commands
            self._one_by_one_until = time.monotonic() + PIPELINING_PAUSE
        return Stage.RCPT if kind is None and stage is Stage.MAIL else stage

    async def _hand_over(self, connection: Connection, letter: Letter) -> Outcome | None:
        """Send the message, and with it the commands about the next one, if it is ready; `None` if the lease ended."""
        lease, next_ = letter.lease, await self._next_letter(connection)
        if next_:
            self._ahead[connection] = next_
        if not lease.held:
            self._give_back(connection)
            self.pool.drop(connection)
            return None
        call_later = asyncio.get_running_loop().call_later
        timers = call_later(SOON, self._give_back, connection), call_later(LATE, self._replace, connection, lease)
        try:
            await connection.hand_over(letter.message, next_.commands if next_ else ())
        except BaseException:
            if self._give_back(connection):
                self.pool.drop(connection)  # as it may wait for a message
            raise
        finally:
            for timer in timers:
                timer.cancel()
        self._go_on(connection, lease)
        return SENT

    def _go_on(self, connection: Connection, lease: Lease) -> None:
        """Keep a connection on which a message was accepted, unless the next e-mail goes over it."""
        self.pool.delivered(connection)
        if next_ := self._ahead.get(connection):
            lease.then, next_.lease.connection = next_.lease, connection
        elif connection.protocol.expected:
            self.pool.drop(connection)
        else:
            self.pool.keep(connection)

    async def _next_letter(self, connection: Connection) -> Letter | None:
        """Prepare the next e-mail, if one can follow at once over this connection."""
        if not (connection.together and connection.messages and self.pool.bears_another(connection)):
            return None
        if time.monotonic() < self._none_ahead_until or not (lease := self._worker.following()):
            return None
        letter = None
        try:
            async with asyncio.timeout(READY):
                letter = None if unsendable(lease) else await self._letters.write(lease, connection)
        except Exception:  # noqa: BLE001 - a fault is met again, and told, when the e-mail is sent by itself
            self._pause_ahead(SOON)  # or what takes long would be done twice for every e-mail
        finally:
            if letter is None:
                self._worker.give_back(lease)
        return letter

    async def _has_accepted(self, connection: Connection, letter: Letter) -> bool:
        """Return whether the server has accepted the commands sent ahead. No other answer to them counts."""
        try:
            async with asyncio.timeout(SOON):
                await self._say(connection, letter)
        except FAULTS as exc:
            connection.refused = isinstance(exc, SMTPResponseException) and exc.code // 100 in {4, 5}
            if not (connection.refused and connection.stage is Stage.RCPT):  # it is more than a refused recipient
                self._pause_ahead()
            if not connection.refused:
                self.pool.drop(connection)
            return False
        return True

    def _give_back(self, connection: Connection) -> bool:
        """Let the next e-mail be sent over another connection; return whether its commands were sent ahead."""
        if letter := self._ahead.pop(connection, None):
            self._pause_ahead()
            self._worker.give_back(letter.lease)
        return letter is not None

    def _pause_ahead(self, seconds: float = PIPELINING_PAUSE) -> None:
        self._none_ahead_until = max(self._none_ahead_until, time.monotonic() + seconds)

    def _replace(self, connection: Connection, lease: Lease) -> None:
        self._give_back(connection)
        self._worker.late(lease)
        if lease.replaced:
            self.pool.leave(connection)
