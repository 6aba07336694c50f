"""A relay and a queue in virtual time: days of deliveries in milliseconds, judged by the real rooms."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import count
from types import SimpleNamespace
from typing import Any, Final

import pytest
from aiosmtplib import SMTPResponseException, SMTPServerDisconnected

from mail.feedback import Feedback
from mail.pool import FIRST_TRIES
from mail.replies import Outcome, Stage, Verdict, judge
from mail.stops import COPIES, LINE, Group, Mail, Schedule, Stop
from mongo.owed import OwedEmail
from settings import Settings

RTT: Final = 0.02
"""Seconds for a conversation."""
WORKERS: Final = 20
SENT: Final = Outcome(verdict=Verdict.SENT, status="250", stage=Stage.DATA)
UNTRIED: Final = (Verdict.CONNECTION, Verdict.CONFIGURATION, Verdict.TOO_FAST)


def refusal(stage: Stage, code: int, words: str) -> Outcome:
    """Return what a reply means by itself."""
    return judge(SMTPResponseException(code, words), stage)


def broken(stage: Stage) -> Outcome:
    """Return what a broken conversation means by itself."""
    return judge(SMTPServerDisconnected("Connection lost"), stage)


@dataclass(eq=False)
class Line:
    """A connection: how many messages it has carried, and which of two machines behind the name it leads to."""

    number: int
    machine: int
    messages: int = 0


Failed = tuple[tuple[Line, Outcome], ...]
"""The connections on which a message has failed, and how."""


@dataclass(eq=False)
class Letter:
    """An e-mail in the simulation."""

    owed: OwedEmail
    born: float
    due: float
    tried: float | None = None
    delivered: float | None = None
    died: str | None = None
    first_refusal: bool = False
    born_again: float = 0.0
    refusals: int = 0

    @property
    def mail(self) -> Mail:
        """The e-mail as evidence."""
        email = self.owed
        return Mail(
            email.id, email.key, email.user_id, f"{email.address}", fresh=self.tried is None, counted=email.tries > 0
        )


@dataclass
class World:
    """A process that delivers to a relay.

    `relay` says what an e-mail gets at a time over a connection, `None` for acceptance; `door`, what an attempt to
    connect gets while so many connections are open.
    """

    patch: pytest.MonkeyPatch
    relay: Callable[[Mail, float, Line], Outcome | None]
    door: Callable[[float, int], Outcome | None] = lambda _now, _open: None
    connections: int = 20
    rate: float | None = None
    now: float = 1000.0
    letters: list[Letter] = field(default_factory=list)
    attempts: int = 0
    refused: int = 0
    too_fast: int = 0
    doubts: list[Group] = field(default_factory=list)
    stops: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.patch.setattr("mail.feedback.time", SimpleNamespace(monotonic=lambda: self.now))
        settings = Settings(smtp_connections=self.connections, smtp_rate=self.rate)
        self.feedback = Feedback(settings, again=self._lift_soon, doubted=self._revive)
        self.schedule = Schedule(settings.mail_retry_minutes, settings.mail_give_up_hours)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._ready: list[tuple[bool, float, float, Letter]] = []
        self._order = count()
        self._busy = 0
        self.lines: list[Line] = []
        self._free: list[Line] = []
        self._asking: list[tuple[Letter, float, Failed]] = []
        self._wake = math.inf

    # --- the queue ---------------------------------------------------------------------------------

    def owe(self, recipient: str, key: str = "new_login", at: float | None = None) -> Letter:
        """Owe an e-mail at a time, by default now."""
        at = self.now if at is None else at
        owed = OwedEmail(
            document_id=None, user_id=recipient, id=f"{len(self.letters)}", key=key, at=datetime.now(UTC), tries=0,
            token="", address=recipient,
        )  # fmt: skip
        letter = Letter(owed, at, at)
        self.letters.append(letter)
        self._at(at, lambda: self._fall_due(letter, at))
        return letter

    def owe_all(self, recipients: Iterable[str], key: str = "new_login", **options: Any) -> list[Letter]:
        """Owe an e-mail to each."""
        return [self.owe(recipient, key, **options) for recipient in recipients]

    def _at(self, when: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), event))

    def _fall_due(self, letter: Letter, due: float) -> None:
        if letter.due == due and letter.delivered is None and letter.died is None:
            heapq.heappush(
                self._ready, (letter.owed.tries > 0, max(letter.born, letter.born_again), next(self._order), letter)
            )

    def _put(self, letter: Letter, place: int | None) -> None:
        """Let an e-mail be sent again: as the next one, as the one after it, or as the last."""
        if place is None or not self._ready:
            return self._wait(letter, 0.0)
        letter.due = self.now
        tried, born, order, _ = self._ready[0]
        return heapq.heappush(self._ready, (tried, born, order - 0.5 + place, letter))

    def _wait(self, letter: Letter, delay: float) -> None:
        letter.due = due = self.now + delay
        self._at(due, lambda: self._fall_due(letter, due))

    def _lift_soon(self, group: Group, since: float | None) -> None:
        """Lift once what is under way is settled, as the delivery does."""
        self._at(self.now, lambda: self._lift(group, since))

    def _lift(self, group: Group, since: float | None) -> None:
        for letter in self.letters:
            of_kind = group.name == "line" or letter.owed.key == group.value
            tried = since is not None and (letter.tried or 0.0) >= since - 1 and of_kind
            if self.now < letter.due < math.inf and (tried or letter.owed.held == f"{group}"):
                self._wait(letter, 0.0)

    def _revive(self, group: Group) -> None:
        self.doubts.append(group)
        for letter in self.letters:
            if letter.died and letter.first_refusal and group.value in {"", letter.mail.domain}:
                letter.died = None
                letter.owed, letter.tried = replace(letter.owed, tries=0, waited=0.0), None
                self._wait(letter, 0.0)

    # --- the process -------------------------------------------------------------------------------

    def run(self, seconds: float) -> World:
        """Let so much time pass."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            when, _, event = heapq.heappop(self._events)
            self.now = max(self.now, when)
            event()
            self._dispatch()
        self.now = end
        return self

    def _dispatch(self) -> None:
        feedback = self.feedback
        self.stops |= {f"{group}" for group in feedback.evidence.stops}
        while self._ready and self._busy < min(WORKERS, self.connections):
            wait = max(feedback.wait(self.now), self._room())
            if wait:
                return self._wake_in(wait)
            letter = self._take()
            if letter is None:
                waits = [clock.wait(self.now) for clock in feedback.evidence.stops[LINE].clocks]
                return self._wake_in(min(wait for wait in waits if wait))
            self._begin(letter)
        return None

    def _room(self) -> float:
        wait = 0.0 if self._free else self.feedback.limits.wait(self.now)
        return math.inf if wait is None else wait

    def _wake_in(self, wait: float) -> None:
        when = self.now + wait + 1e-6
        if when < math.inf and not self.now < self._wake <= when + 1e-3:
            self._wake = when
            self._at(when, lambda: None)

    def _take(self) -> Letter | None:
        if not self.feedback.evidence.line:
            return heapq.heappop(self._ready)[-1]
        ranked = []
        for entry in heapq.nsmallest(8, self._ready):
            rank = self.feedback.evidence.suitability(entry[-1].mail, self.now)
            if rank is not None:
                ranked.append((rank, entry))
        if not ranked:
            return None
        self._ready.remove(chosen := min(ranked)[1])
        heapq.heapify(self._ready)
        return chosen[-1]

    def _has_witness(self, letter: Letter) -> bool:
        since = self.feedback.evidence.accepted_since
        return letter.tried is not None and since(letter.tried, f"{letter.owed.address}")

    def _begin(self, letter: Letter) -> None:
        feedback = self.feedback
        letter.due = math.inf  # claimed
        if self._has_witness(letter):
            letter.owed = replace(letter.owed, tries=letter.owed.tries + 1)
            letter.tried = letter.tried
        if letter.owed.copies >= COPIES - 1 and not self._has_witness(letter):
            return self._hold(letter)
        if feedback.evidence.admit(letter.mail, self.now):
            return self._hold(letter)
        feedback.pace.take(self.now)
        self._busy += 1
        began, line = self.now, self._free.pop() if self._free else self._connect()
        if isinstance(line, Outcome):
            fault = line
            return self._at(self.now + RTT, lambda: self._finish(letter, began, fault))
        return self._converse(letter, began, line, ())

    def _hold(self, letter: Letter) -> None:
        after = self.schedule.hold(self._stop_of(letter), letter.owed, self.now - letter.born, self.now)
        if after.given_up:
            letter.died = after.given_up
            return
        letter.owed = replace(letter.owed, waited=after.waited, held=after.held)
        self._wait(letter, after.delay)

    def _converse(self, letter: Letter, began: float, line: Line, failed: Failed) -> None:
        self.attempts += 1
        outcome = self.relay(letter.mail, self.now, line)
        self.refused += outcome is not None
        self._at(self.now + RTT, lambda: self._answer(letter, began, line, outcome, failed))

    def _connect(self) -> Line | Outcome:
        tries = [self.door(self.now, len(self.lines)) for _ in range(1 if self.lines else FIRST_TRIES)]
        if (fault := tries[-1]) and all(tries):
            self.feedback.not_connected(fault)
            return fault
        line = Line(next(self._order), random.randrange(2))
        self.lines.append(line)
        self.feedback.connected(len(self.lines))
        return line

    @property
    def _proven(self) -> int:
        return sum(line.messages > 0 for line in self.lines)

    def _answer(self, letter: Letter, began: float, line: Line, outcome: Outcome | None, failed: Failed) -> None:
        if outcome is None or outcome.stage is not Stage.CONNECT:
            self.feedback.reached()
        if outcome is None:
            line.messages += 1
            self.feedback.limits.bore(line.messages)
            if line.messages == 1:
                self.feedback.limits.proved(self._proven)
        elif (
            not failed or (len(failed) == 1 and failed[0][0].messages > 0 == line.messages)
        ) and self.feedback.may_be_the_connection(letter.mail, outcome, letter.owed.copies, proven=line.messages > 0):
            if outcome.verdict is Verdict.AMBIGUOUS:
                letter.owed = replace(letter.owed, copies=1)
            if outcome.broken or not line.messages:
                self._after(line, outcome)
            return self._elsewhere(letter, began, (*failed, (line, outcome)))
        self._compare(letter, began, failed, line, accepted=outcome is None)
        self._after(line, outcome)
        return self._finish(letter, began, outcome or SENT)

    def _after(self, line: Line, outcome: Outcome | None) -> None:
        """Keep or close a connection on which an e-mail got this."""
        if outcome and (outcome.broken or (outcome.worth_another_connection and not line.messages)):
            self._drop(line)
        else:
            self._keep(line)

    def _elsewhere(self, letter: Letter, began: float, failed: Failed) -> None:
        """Wait for a connection that has delivered, or else open one, as the pool does."""
        last, outcome = failed[-1]
        most = math.inf if not last.messages else 0 if outcome.broken else last.messages
        if better := [line for line in self._free if 0 < line.messages < most]:
            self._free.remove(better[-1])
            return self._converse(letter, began, better[-1], failed)
        aside = {line for *_, others in [*self._asking, (letter, began, failed)] for line, _ in others}
        if not last.messages and any(line.messages for line in {*self.lines} - {*self._free} - aside):
            return self._asking.append((letter, began, failed))
        other = self._connect()
        if isinstance(other, Line):
            return self._converse(letter, began, other, failed)
        self._compare(letter, began, failed, last, accepted=False)
        return self._finish(letter, began, other if outcome.broken else outcome)

    def _compare(self, letter: Letter, began: float, failed: Failed, last: Line, *, accepted: bool) -> None:
        if failed and not accepted and not any(line.messages for line in (*(line for line, _ in failed), last)):
            self.feedback.refused_by_unproven(letter.mail, began)
        for line, outcome in failed:
            if accepted and (outcome.code or not line.messages):
                self.feedback.blame(line.messages, self._proven)
            if line in self.lines and line not in self._free:
                (self._drop if accepted else self._keep)(line)

    def _keep(self, line: Line) -> None:
        if line.messages >= self.feedback.limits.messages:
            self._drop(line)
        elif line.messages and self._asking:
            letter, began, failed = self._asking.pop(0)
            self._converse(letter, began, line, failed)
        else:
            self._free.append(line)

    def _drop(self, line: Line) -> None:
        self.lines.remove(line)
        self.feedback.disconnected(len(self.lines))
        asking, self._asking = self._asking, []
        for letter, began, failed in asking:
            self._elsewhere(letter, began, failed)

    def _finish(self, letter: Letter, began: float, outcome: Outcome) -> None:
        self._busy -= 1
        judged = self.feedback.judge(letter.mail, outcome, began)
        assert judged
        self.too_fast += judged.verdict is Verdict.TOO_FAST
        if judged.verdict is Verdict.SENT:
            letter.delivered = self.now
        elif judged.verdict in UNTRIED:
            letter.born_again = self.now
            self._put(letter, self.feedback.pace.place(letter.mail))
        elif judged.verdict is Verdict.PERMANENT:
            letter.died, letter.first_refusal = judged.detail, letter.owed.waited == 0
        else:
            self._try_again(letter, judged)

    def _stop_of(self, letter: Letter) -> Stop | None:
        return next(iter(self.feedback.evidence.stops_of(letter.mail)), None)

    def _try_again(self, letter: Letter, outcome: Outcome) -> None:
        age, stop = self.now - letter.born, self._stop_of(letter)
        after = self.schedule.after_refusal(stop, letter.owed, outcome, age, self.now)
        letter.tried = self.now
        letter.owed = replace(letter.owed, waited=after.waited, held=after.held, copies=after.copies)
        if after.given_up:
            letter.died = after.given_up
        else:
            self._wait(letter, after.delay * random.uniform(0.8, 1.2))

    # --- what came of it ---------------------------------------------------------------------------

    @property
    def dead(self) -> list[Letter]:
        """The e-mails that died."""
        return [letter for letter in self.letters if letter.died]

    def last(self, letters: Iterable[Letter] | None = None) -> float:
        """Return when the last of some e-mails was delivered; infinity if one was not."""
        chosen = self.letters if letters is None else letters
        return max(math.inf if letter.delivered is None else letter.delivered for letter in chosen)


def delays(letters: Iterable[Letter]) -> list[float]:
    """Return how late e-mails were, in order."""
    return sorted(math.inf if letter.delivered is None else letter.delivered - letter.born for letter in letters)
