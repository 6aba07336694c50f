"""What became of each conversation, judged by evidence, pace and limits. Those are pure; here they get the time."""

import time
from collections.abc import Callable
from dataclasses import replace

from mail.evidence import Evidence
from mail.limits import WITHIN, Limits, Pace
from mail.replies import Outcome, Stage, Verdict
from mail.stops import LINE, Group, Mail, Stop
from settings import Settings


class Feedback:
    """Judges outcomes.

    `changed` is called when e-mails may be sent that had to wait; `again` with each group that goes on, and since when
    its e-mails were tried in vain; `doubted` with one that calls so many mailboxes unknown that it is doubtful.
    """

    def __init__(
        self,
        settings: Settings,
        changed: Callable[[], None] = lambda: None,
        again: Callable[[Group, float | None], None] = lambda _group, _since: None,
        doubted: Callable[[Group], None] = lambda _: None,
    ) -> None:
        self.evidence = Evidence()
        self.pace = Pace(settings.smtp_rate)
        self.limits = Limits(settings.smtp_connections)
        self._changed = changed
        self._again = again
        self._doubted = doubted
        self._unproven_since: float | None = None

    def wait(self, now: float) -> float:
        """Return the seconds until an e-mail may be sent, if there is a connection for it."""
        line = self.evidence.line
        return max(line.wait(now) if line else 0.0, self.pace.wait(now))

    def connected(self, number: int) -> None:
        self.limits.open = number
        self.limits.opened(time.monotonic())
        self._changed()

    def disconnected(self, number: int) -> None:
        self.limits.open = number
        self._changed()

    def not_connected(self, fault: Outcome) -> None:
        now = time.monotonic()
        if self.limits.open:  # they may be all that the server admits
            self.limits.refused(self.limits.open + 1, now)
        else:
            self.limits.forget()
            self.evidence.unreachable(fault.quote, hard=fault.verdict is Verdict.CONFIGURATION, now=now)
        self._changed()

    def may_be_the_connection(self, mail: Mail, outcome: Outcome, copies: int, *, proven: bool) -> bool:
        """Return whether a message should be sent over another connection at once: this one may be at fault.

        One that is not `proven`, as nothing was accepted on it yet, may lead to a broken machine.
        """
        ambiguous, stage = outcome.verdict is Verdict.AMBIGUOUS, outcome.stage
        if outcome.broken and (proven or stage is Stage.CONNECT):
            return not ambiguous and (stage is Stage.MAIL or not outcome.timed_out)
        if self.evidence.stops_of(mail):
            return False
        if ambiguous:
            return not copies and not outcome.timed_out
        if outcome.broken:  # at RCPT, it is probably the recipient, unless the server is silent
            return stage is not Stage.RCPT or outcome.timed_out
        return outcome.worth_another_connection and not (self.pace.paused or self.pace.knows(outcome.status))

    def blame(self, messages: int, proven: int) -> None:
        """Note that a connection that had borne `messages` refused one that another took. `proven` have delivered."""
        if messages:
            self.limits.worn_out(messages)
        else:
            self.limits.refused(proven + 1, time.monotonic())

    def reached(self) -> None:
        if stop := self.evidence.reached():
            self._go_on(stop)
            self._changed()

    def judge(self, mail: Mail, outcome: Outcome | None, began: float) -> Outcome | None:
        """Return what an outcome means in the light of all others. `began` is when sending began."""
        now = time.monotonic()
        waited = self._others_wait(now)
        if outcome is None or outcome.stage is Stage.CONNECT:
            self.abandon(mail)
            if outcome and outcome.verdict is Verdict.CONFIGURATION and not (outcome.code or outcome.broken):
                # A fault of ours that shows only now: our address needs SMTPUTF8, which the server lacks.
                self.evidence.unreachable(outcome.quote, hard=True, now=now)
        elif outcome.verdict is Verdict.SENT:
            self._accept(mail, began, now)
        elif self._is_too_fast(mail, outcome, began, now):
            self.evidence.abandon(mail)
            outcome = replace(outcome, verdict=Verdict.TOO_FAST)
        else:
            outcome = self._refuse(mail, outcome, now)
        if waited or self._others_wait(now):
            self._changed()
        return outcome

    def _others_wait(self, now: float) -> bool:
        return bool(self.evidence.stops) or self.limits.growing or self.pace.wait(now) > 0

    def abandon(self, mail: Mail) -> None:
        """Withdraw an attempt that showed nothing."""
        self.evidence.abandon(mail)
        self.pace.finish()

    def refused_by_unproven(self, mail: Mail, began: float) -> None:
        """Note that an e-mail, begun at `began`, was refused by connections on which nothing has been accepted.

        They may be at fault, so a new e-mail is tried again, once, as soon as another is accepted, or was meanwhile.
        """
        if not mail.fresh:
            return
        if self.evidence.accepted_since(began, mail.user):
            self._again(LINE, began)
        else:
            self._unproven_since = self._unproven_since or time.monotonic()

    def _accept(self, mail: Mail, began: float, now: float) -> None:
        self.pace.accepted(mail, began, now)
        self.limits.accepted()
        if self._unproven_since is not None:
            self._again(LINE, self._unproven_since)
            self._unproven_since = None
        for stop in self.evidence.accepted(mail, now):
            self._go_on(stop)

    def _go_on(self, stop: Stop) -> None:
        self._again(stop.group, None if stop.group.name == "domain" else stop.began)

    def _is_too_fast(self, mail: Mail, outcome: Outcome, began: float, now: float) -> bool:
        if outcome.code // 100 != 4 or outcome.verdict is Verdict.DEFERRED:
            return False
        is_news = not self.pace.knows(outcome.status)
        too_fast = self.pace.refused(mail, outcome, began, now)
        if too_fast and is_news:  # so the refusals before were misjudged
            self._again(LINE, now - WITHIN)
        return too_fast

    def _refuse(self, mail: Mail, outcome: Outcome, now: float) -> Outcome:
        self.pace.finish()
        if outcome.verdict is Verdict.TOO_FAST:  # for this recipient only
            outcome = replace(outcome, verdict=Verdict.DEFERRED)
        if outcome.verdict is Verdict.PERMANENT and outcome.code:
            doubtful, raised = self.evidence.unknown(mail, now)
            if raised:
                self._doubted(raised)
            outcome = replace(outcome, verdict=Verdict.DOUBTED) if doubtful else outcome
        self.evidence.refused(mail, outcome, now)
        return outcome
