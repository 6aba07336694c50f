"""When an e-mail is tried again, and when it is given up. Pure: it reads the evidence, and the clock is an argument."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from mail.evidence import Evidence
from mail.replies import Outcome, Verdict
from mail.stops import Mail, Stop
from mongo.owed import OwedEmail

COPIES: Final = 3
"""Messages at the most that the server may have accepted of one e-mail, without having said so."""
CRASHES: Final = 3
"""How often the rendering of one e-mail may end the process that renders for all."""
COUNTED: Final = 3
"""Attempts that must count before an e-mail dies for an unknown reason: others got through after each of them."""
LONGEST_LIFE: Final = 14 * 86_400.0
"""Seconds after which an e-mail dies that was tried, even without any evidence."""


class Next(NamedTuple):
    """What follows: the seconds until the next attempt, and what the e-mail then knows. `given_up`: none follows."""

    delay: float = 0.0
    waited: float = 0.0
    copies: int = 0
    held: str | None = None
    given_up: str | None = None


class Schedule:
    """`minutes` are those before each further attempt (RFC 5321, section 4.5.4.1); the last value repeats."""

    def __init__(self, minutes: Sequence[float], give_up_hours: float, evidence: Evidence) -> None:
        self._minutes = minutes
        self._give_up = 3600 * give_up_hours
        self._evidence = evidence

    def delay(self, waited: float) -> float:
        """Return the seconds to the next attempt, after so many of the schedule."""
        for minutes in self._minutes:
            if waited < 60 * minutes - 0.001:
                return 60 * minutes
            waited -= 60 * minutes
        return 60 * self._minutes[-1]

    def too_old(self, email: OwedEmail, age: float) -> str | None:
        """Return why an e-mail is given up that nobody's acceptance has ever spoken against."""
        if not email.error or age <= LONGEST_LIFE:
            return None
        return probably(email.copies, email.error) if email.copies else f"Given up after 14 days: {email.error}"

    def hold(self, mail: Mail, email: OwedEmail, age: float, now: float) -> Next:
        """Return what follows without an attempt. `age` is the e-mail's, in seconds."""
        stop = self._stop_of(mail)
        if stop is None:
            return Next(self.delay(email.waited), email.waited, email.copies)
        if self._is_lost(stop, age, now):
            return Next(given_up=f"Given up: the domain refuses all e-mails: {stop.reply}")
        return Next(stop.hold(now), email.waited, email.copies, f"{stop.group}")

    def after_refusal(self, mail: Mail, email: OwedEmail, outcome: Outcome, age: float, now: float) -> Next:
        """Return what follows after an attempt. While the line, its kind or its domain is stopped, none counts."""
        stop, delay = self._stop_of(mail), self.delay(email.waited)
        copies = email.copies + (outcome.verdict is Verdict.AMBIGUOUS)
        over = self._is_lost(stop, age, now) if stop else self._is_over(email, delay)
        if copies >= COPIES or (over and copies):
            return Next(given_up=probably(copies, outcome.detail))
        if over:
            return Next(given_up=f"Given up: {outcome.detail}")
        if outcome.verdict is Verdict.OVERSIZED and email.tries:
            return Next(given_up=outcome.detail)
        counts = stop is None or stop.soft(now)
        return Next(delay, email.waited + delay * counts, copies, f"{stop.group}" if stop else None)

    def after_crash(self, email: OwedEmail, error: str) -> Next:
        """Return what follows when the rendering of an e-mail has ended the process that renders."""
        if email.crashes + 1 >= CRASHES:
            return Next(given_up=f"Given up: {error}")
        delay = self.delay(email.waited)
        return Next(delay, email.waited + delay, email.copies)

    def _is_over(self, email: OwedEmail, delay: float) -> bool:
        """Return whether an e-mail was tried long and often enough, while others got through."""
        return email.tries >= COUNTED and email.waited + delay > self._give_up

    def _is_lost(self, stop: Stop, age: float, now: float) -> bool:
        """Return whether an e-mail's domain has refused everything for as long as any e-mail is tried."""
        return stop.condemned and min(age, now - stop.began) > self._give_up

    def _stop_of(self, mail: Mail) -> Stop | None:
        return next(iter(self._evidence.stops_of(mail)), None)


def probably(copies: int, error: str) -> str:
    """Say of how many copies nobody knows whether they were accepted."""
    times = f"{copies} times" if copies > 1 else "once"
    return f"Probably delivered: the server had the message {times}, and did not say that it accepted it. {error}"
