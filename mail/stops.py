"""What can stop (the line, a kind, a domain), the probes that start it again, and when an e-mail is tried again."""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from mail.replies import Outcome, Verdict
from mongo.owed import OwedEmail

log = logging.getLogger("notifier.delivery")

LONGEST: Final = {"line": 25.0, "kind": 300.0, "domain": 4 * 3600.0}  # seconds between two probes of a group, at most
SOFT: Final = (0.25, 1.3)  # seconds of the first pause after 4xx and breaks, and the factor by which it grows
HARD: Final = (1.0, 2.0)  # the same after 5xx, and after refused logins: servers lock accounts that fail often
PATIENCE: Final = 30.0  # seconds to wait for the outcome of a probe before another is sent
HOLD: Final = (30.0, 3600.0)  # seconds for which e-mails are put aside. When the stop is over, they fall due at once
DEATH_PROBES: Final = 10  # refused probes after which a domain that stopped lets its e-mails die
DEATH_WITNESSES: Final = 3  # this many of them must have come after an acceptance elsewhere
COPIES: Final = 3  # most messages that the server may have accepted of one e-mail without saying so
CRASHES: Final = 3  # how often the rendering of one e-mail may end the process that renders for all
COUNTED: Final = 3  # attempts after which others got through, before an e-mail dies for an unknown reason
LONGEST_LIFE: Final = 14 * 86_400.0  # seconds after which an e-mail dies that was tried, even without any evidence
ALARM_INTERVAL: Final = 0.5  # seconds between two looks at what has stopped
ALARM_AFTER: Final = 5.0  # seconds after which a stop is no passing trouble; one by 5xx never is
OFTEN: Final = 60.0  # seconds between two alarms about the same stop
SELDOM: Final = 3600.0  # the same after its first hour
CONSEQUENCES: Final = {
    "line": "no e-mail gets through, so all wait, and none is lost; see the SMTP settings and the account",
    "kind": "no e-mail of this kind gets through, so they wait, and none is lost; see its template",
    "domain": "no e-mail to a domain gets through, so those to it wait",
}


class Group(NamedTuple):
    """What stops as one. `name` is `line`, `kind` or `domain`, and `value` says which kind or domain."""

    name: str
    value: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.value}".rstrip()


LINE: Final = Group("line")


class Mail(NamedTuple):
    """An e-mail, as far as it is evidence. Several users may have the same address."""

    id: str
    kind: str
    user: str
    recipient: str
    fresh: bool = True  # whether it has never been tried
    counted: bool = False  # whether it was refused before while others got through
    urged: bool = False  # whether an operator wants it to be tried now, whatever has stopped

    @property
    def domain(self) -> str:
        return self.recipient.rpartition("@")[2].lower()

    @property
    def groups(self) -> tuple[Group, Group, Group]:
        return LINE, Group("kind", self.kind), Group("domain", self.domain)


@dataclass(slots=True)
class Clock:
    """When the next probe may be sent: `due`, or earlier if the one under way shows nothing."""

    due: float = 0.0
    pause: float = 0.0
    probe: str | None = None

    def wait(self, now: float) -> float:
        return max(0.0, self.due - now)

    def start(self, mail: Mail, now: float) -> None:
        self.probe, self.due = mail.id, now + PATIENCE

    def abandon(self) -> None:
        self.probe, self.due = None, 0.0


@dataclass(slots=True)
class Stop:
    """A group that has stopped: since when, why, and its probes.

    Probes to domains whose last outcome was an acceptance have a clock of their own, `proven`, so that nobody can make
    them wait by provoking refusals at other domains.
    """

    group: Group
    began: float
    reply: str
    unreachable: bool = False  # no connection could be opened, so it is over as soon as MAIL is accepted
    firm: bool = False  # e-mails were refused by 5xx, or the login was
    proven: Clock = field(default_factory=Clock)
    others: Clock = field(default_factory=Clock)
    probes: int = 0
    witnessed: int = 0
    last_refused: float = 0.0
    alarm_due: float = 0.0
    _scout_until: float = 0.0

    @property
    def clocks(self) -> tuple[Clock, Clock]:
        return self.proven, self.others

    def wait(self, now: float) -> float:
        return min(clock.wait(now) for clock in self.clocks)

    def clock_of(self, *, proven: bool) -> Clock:
        return self.proven if proven and self.group.name != "domain" else self.others

    def hold(self, now: float) -> float:
        """Return the seconds for which to put an e-mail aside.

        The first comes back as the next probe; the others later, as a thousand would keep the rest from being claimed:
        after the next probe but one, or as long as the stop has lasted.
        """
        wait = self.others.wait(now)
        if now >= self._scout_until:
            self._scout_until = now + wait + 1
            return wait
        shortest, longest = HOLD
        return max(shortest, 2 * wait, min(now - self.began, longest))

    def refuse(self, clock: Clock, *, hard: bool, witnessed: bool, now: float) -> None:
        """Note that a probe was refused; `witnessed`, if others were accepted since the one before."""
        self.probes += 1
        self.firm = self.firm or hard
        self.witnessed += witnessed
        self.last_refused = now
        first, factor = HARD if hard else SOFT
        clock.pause = min(max(first, clock.pause * factor), LONGEST[self.group.name])
        clock.due, clock.probe = now + clock.pause, None


async def alarm(stops: Mapping[Group, Stop]) -> None:
    """Log an error about each group that has stopped, again and again, for ever."""
    while True:
        now = time.monotonic()
        for group, stop in stops.items():
            age = now - stop.began
            if now >= stop.alarm_due and (age >= ALARM_AFTER or stop.firm):
                stop.alarm_due = now + (OFTEN if age < SELDOM else SELDOM)
                what = "a domain" if group.name == "domain" else group
                words = "%s stopped %.0f s ago: %s: %s; next probe in %.0f s"
                log.error(words, what, age, CONSEQUENCES[group.name], stop.reply, stop.wait(now))
        await asyncio.sleep(ALARM_INTERVAL)


class Next(NamedTuple):
    """What follows: the seconds until the next attempt, and what the e-mail then knows. `given_up`: none follows."""

    delay: float = 0.0
    waited: float = 0.0
    copies: int = 0
    held: str | None = None
    given_up: str | None = None


@dataclass(frozen=True)
class Schedule:
    """When an e-mail is tried again, and when it is given up (RFC 5321, section 4.5.4.1)."""

    minutes: Sequence[float]  # before each further attempt; the last value repeats
    give_up_hours: float

    def delay(self, waited: float) -> float:
        """Return the seconds to the next attempt, after `waited` seconds of the schedule."""
        for minutes in self.minutes:
            if waited < 60 * minutes - 0.001:
                return 60 * minutes
            waited -= 60 * minutes
        return 60 * self.minutes[-1]

    def too_old(self, email: OwedEmail, age: float) -> str | None:
        """Return why an e-mail is given up, whatever others got."""
        if not email.error or age <= LONGEST_LIFE:
            return None
        return probably(email.copies, email.error) if email.copies else f"Given up after 14 days: {email.error}"

    def hold(self, stop: Stop | None, email: OwedEmail, age: float, now: float) -> Next:
        """Return what follows without an attempt. `age` is the e-mail's, in seconds."""
        if stop is None:
            return Next(self.delay(email.waited), email.waited, email.copies)
        if self._is_lost(stop, age, now):
            return Next(given_up=f"Given up: the domain refuses all e-mails: {stop.reply}")
        return Next(stop.hold(now), email.waited, email.copies, f"{stop.group}")

    def after_refusal(self, stop: Stop | None, email: OwedEmail, outcome: Outcome, age: float, now: float) -> Next:
        """Return what follows after an attempt, which counts only while nothing has stopped."""
        delay = self.delay(email.waited)
        copies = email.copies + (outcome.verdict is Verdict.AMBIGUOUS)
        long_enough = email.tries >= COUNTED and email.waited + delay > 3600 * self.give_up_hours
        over = self._is_lost(stop, age, now) if stop else long_enough
        if copies >= COPIES or (over and copies):
            return Next(given_up=probably(copies, outcome.detail))
        if over or (outcome.verdict is Verdict.UNRENDERED and email.crashes + 1 >= CRASHES):
            return Next(given_up=f"Given up: {outcome.detail}")
        if outcome.verdict is Verdict.OVERSIZED and email.tries:
            return Next(given_up=outcome.detail)
        if stop:
            return Next(delay, email.waited, copies, f"{stop.group}")
        return Next(delay, email.waited + delay, copies)

    def _is_lost(self, stop: Stop, age: float, now: float) -> bool:
        """Return whether its domain has refused all for as long as any e-mail is tried, while others accepted."""
        condemned = stop.group.name == "domain" and stop.probes >= DEATH_PROBES and stop.witnessed >= DEATH_WITNESSES
        return condemned and min(age, now - stop.began) > 3600 * self.give_up_hours


def probably(copies: int, error: str) -> str:
    times = f"{copies} times" if copies > 1 else "once"
    return f"Probably delivered: the server had the message {times}, and did not say that it accepted it. {error}"
