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

from mail.connection import Connection, drop
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
SENT: Final = Outcome(Verdict.SENT, "250", stage=Stage.DATA)


class Worker:
    """What the mailer asks of its caller. By itself, no e-mail follows another."""

    def late(self, lease: Lease) -> None:
        """Note that the reply to the message does not come soon."""

    def following(self) -> Lease | None:
        """Take the next e-mail, if there is one that may be sent at once."""
        return None

    def give_back(self, lease: Lease) -> None:
        """Take back an e-mail that was to follow: the server has not got it."""


class Mailer:
    """Sends e-mails, each over one connection at a time, and reports to `feedback` what happens.

    To a server that pipelines, a message travels in one write with the commands about the next one (RFC 2920, section
    3.1). Of the replies to these, only acceptance counts: after any other, the next e-mail is sent anew, so that no
    reply is taken for another e-mail's, and nothing is sent ahead for some time to a server that does not keep step.
    """

    def __init__(self, settings: Settings, feedback: Feedback, letters: Letters, worker: Worker) -> None:
        self._feedback = feedback
        self._letters = letters
        self._worker = worker
        self.pool = Pool(settings, feedback)
        self._ahead: dict[Lease, Letter] = {}  # those whose commands were sent ahead
        self._none_ahead_until = -math.inf
        self._one_by_one_until = -math.inf

    async def send(self, lease: Lease) -> Outcome | None:
        """Send an e-mail and return what became of it; `None` if its lease ended before the message was sent.

        If `lease.then` is set afterwards, that e-mail is begun, and must be sent next. Raises only what
        `Letters.content` raises.
        """
        if lease.email.ids and lease not in self._ahead and not await self._letters.is_wanted(lease):
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
        connection = self._ahead[lease].connection if lease in self._ahead else await self.pool.take()
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
        for connection in failed:
            self.pool.keep(connection)
        if is_ambiguous:
            await self.pool.ask_whether_the_server_lives()

    async def _converse(self, connection: Connection, lease: Lease) -> Outcome | None:
        """Hand an e-mail to the server, and keep the connection if it is sound. Raises what writing raises."""
        try:
            return await self._hand_in(connection, lease)
        except FAULTS as exc:
            return await self._fault(connection, exc)
        finally:
            if lease.then is None:
                self.pool.keep(connection)

    async def _hand_in(self, connection: Connection, lease: Lease) -> Outcome | None:
        letter = self._ahead.pop(lease, None)
        if letter is None or not await self._has_accepted(letter):
            await connection.begin()
            letter = await self._letters.write(lease, connection)
            if letter is None:
                return unwanted(lease)
            connection.prepare(letter.commands, letter.concern, together=time.monotonic() > self._one_by_one_until)
            await self._say(letter)
        return await self._hand_over(letter)

    async def _say(self, letter: Letter) -> None:
        connection, (mail, rcpt, data) = letter.connection, letter.commands
        await connection.say(mail, letter.concern, 2)
        self._feedback.reached()
        await connection.say(rcpt, Stage.RCPT, 2)
        await connection.say(data, Stage.DATA_COMMAND, 3)

    async def _fault(self, connection: Connection, exc: Exception) -> Outcome:
        """Judge a fault of a conversation. Only after a refusal, the connection can still be used."""
        outcome = judge(exc, self._stage(connection, exc))
        connection.refused = outcome.code > 0 and outcome.tried and not outcome.broken
        if not connection.refused:
            drop(connection.smtp)  # its next reply may belong to an old command
        elif outcome.worth_another_connection and not connection.messages:
            await connection.quit()  # it may lead to a broken machine
        return outcome

    def _stage(self, connection: Connection, exc: Exception) -> Stage:
        """Return how far a failed conversation had come.

        A server may hold back the replies to commands that were sent together (RFC 2920, section 3.2), MAIL's too
        while it ponders the recipient. So on a new connection silence is about the e-mail, and not about the server.
        """
        stage, kind = connection.stage, exc.code // 100 if isinstance(exc, SMTPResponseException) else None
        if not connection.together or stage is Stage.DATA or (kind is None and connection.messages):
            return stage
        if kind in {None, 2, 3}:  # or the replies may be out of step with the commands
            self._one_by_one_until = time.monotonic() + PIPELINING_PAUSE
        return Stage.RCPT if kind is None and stage is Stage.MAIL else stage

    async def _hand_over(self, letter: Letter) -> Outcome | None:
        """Send the message, and with it the commands about the next one, if it is ready; `None` if the lease ended."""
        lease, connection, next_ = letter.lease, letter.connection, await self._next_letter(letter.connection)
        if next_:
            self._ahead[next_.lease] = next_
        if not lease.held:
            self._give_back(next_)
            return None
        call_later = asyncio.get_running_loop().call_later
        timers = call_later(SOON, self._give_back, next_), call_later(LATE, self._replace, letter, next_)
        try:
            await connection.hand_over(letter.message, next_.commands if next_ else ())
        except BaseException:
            if self._give_back(next_):
                drop(connection.smtp)  # as the server may wait for a message
            raise
        finally:
            for timer in timers:
                timer.cancel()
        self.pool.delivered(connection)
        if next_ and next_.lease in self._ahead:
            lease.then = next_.lease
        return SENT

    async def _next_letter(self, connection: Connection) -> Letter | None:
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

    async def _has_accepted(self, letter: Letter) -> bool:
        """Return whether the server has accepted the commands sent ahead. No other answer to them counts."""
        connection = letter.connection
        try:
            async with asyncio.timeout(SOON):
                await self._say(letter)
        except FAULTS as exc:
            connection.refused = isinstance(exc, SMTPResponseException) and exc.code // 100 in {4, 5}
            if not (connection.refused and connection.stage is Stage.RCPT):  # it is more than a refused recipient
                self._pause_ahead()
            if not connection.refused:
                drop(connection.smtp)
            return False
        return True

    def _give_back(self, letter: Letter | None) -> bool:
        """Let a letter that was to follow be sent over another connection; return whether it was still to follow."""
        if letter is None or not self._ahead.pop(letter.lease, None):
            return False
        self._pause_ahead()
        self._worker.give_back(letter.lease)
        return True

    def _pause_ahead(self, seconds: float = PIPELINING_PAUSE) -> None:
        self._none_ahead_until = max(self._none_ahead_until, time.monotonic() + seconds)

    def _replace(self, letter: Letter, next_: Letter | None) -> None:
        self._give_back(next_)
        self._worker.late(letter.lease)
        if letter.lease.replaced:
            self.pool.leave(letter.connection)
