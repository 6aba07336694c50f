"""What can stop (the line, a kind, a domain): refusals that stop it, probes that start it again, and alarms."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from mail.replies import Outcome, Stage

log = logging.getLogger("notifier.delivery")

RUN: Final = 5
"""Different recipients refused in a row, after which a group stops."""
RUN_LIMIT: Final = 64
"""Recipients that a run remembers."""
LONGEST: Final = {"line": 25.0, "kind": 300.0, "domain": 4 * 3600.0}
"""Longest pause in seconds between two probes of a group."""
SOFT: Final = (0.25, 1.3)
"""First pause in seconds after 4xx and breaks, and the factor by which it grows."""
HARD: Final = (1.0, 2.0)
"""The same after 5xx, and after refused logins: servers lock accounts that fail often."""
PATIENCE: Final = 30.0
"""Seconds to wait for the outcome of a probe before another is sent."""
SHORTEST_HOLD: Final = 30.0
LONGEST_HOLD: Final = 3600.0
"""Seconds for which e-mails are put aside, except for the one that will be the next probe: as long as the stop has
lasted, or until the next probe but one. When it is over, they fall due at once."""
GREYLISTING: Final = 900.0
"""Seconds after which 4xx at RCPT to everybody are not greylisting."""
DEATH_PROBES: Final = 10
"""Refused probes after which a domain that stopped lets its e-mails die."""
DEATH_WITNESSES: Final = 3
"""So many of them must have come after an acceptance elsewhere."""
ALARM_INTERVAL: Final = 0.5
"""Seconds between two looks at what has stopped."""
ALARM_AFTER: Final = 5.0
"""Seconds after which a stop is no passing trouble. One by 5xx never is."""
OFTEN: Final = 60.0
SELDOM: Final = 3600.0
"""Seconds between two alarms about the same stop, in its first hour and later."""
CONSEQUENCES: Final = {
    "line": "no e-mail gets through, so all wait, and none is lost; see the SMTP settings and the account",
    "kind": "no e-mail of this kind gets through, so they wait, and none is lost; see its template",
    "domain": "no e-mail to a domain gets through, so those to it wait",
}


class Mail(NamedTuple):
    """An e-mail, as far as it is evidence.

    `user` tells recipients apart, even if several have the same address. `fresh` is whether it has never been tried;
    `counted`, whether it was refused before while others got through; `urged`, whether an operator wants it to be tried
    now, whatever has stopped.
    """

    id: str
    kind: str
    user: str
    recipient: str
    fresh: bool = True
    counted: bool = False
    urged: bool = False

    @property
    def domain(self) -> str:
        return self.recipient.rpartition("@")[2].lower()


class Group(NamedTuple):
    """What stops as one. `name` is `line`, `kind` or `domain`, and `value` says which kind or domain."""

    name: str
    value: str = ""

    def __str__(self) -> str:
        """Return its name for operators."""
        return f"{self.name} {self.value}".rstrip()


LINE: Final = Group("line")


class Refusal(NamedTuple):
    """What a recipient got."""

    domain: str
    at_mail: bool
    may_be_greylisting: bool


class Run:
    """The different recipients refused since the last acceptance."""

    def __init__(self) -> None:
        self.began = 0.0
        self._refusals: dict[int, Refusal] = {}

    def add(self, mail: Mail, outcome: Outcome, now: float) -> None:
        if not self._refusals:
            self.began = now
        greylisting = outcome.stage is Stage.RCPT and outcome.code // 100 == 4
        if len(self._refusals) < RUN_LIMIT:
            self._refusals[hash(mail.user)] = Refusal(mail.domain, outcome.stage is Stage.MAIL, greylisting)

    def clear(self) -> None:
        """Begin again, as there was an acceptance."""
        self._refusals.clear()

    @property
    def long(self) -> bool:
        """Whether it has enough recipients to stop a group."""
        return len(self._refusals) >= RUN

    @property
    def wide(self) -> bool:
        """Whether it also has recipients at two domains or more."""
        return self.long and len({refusal.domain for refusal in self._refusals.values()}) > 1

    @property
    def at_mail(self) -> bool:
        """Whether the server refused enough of them before it knew the recipient."""
        return sum(refusal.at_mail for refusal in self._refusals.values()) >= RUN

    @property
    def may_be_greylisting(self) -> bool:
        """Whether 4xx at RCPT is what nearly all of them got."""
        return sum(not refusal.may_be_greylisting for refusal in self._refusals.values()) < RUN


@dataclass(slots=True)
class Clock:
    """When the next probe may be sent. The outcome of the last one is awaited until `busy_until`."""

    due: float = 0.0
    pause: float = 0.0
    probe: str | None = None
    busy_until: float = 0.0

    def wait(self, now: float) -> float:
        """Return the seconds until the next probe."""
        return max(0.0, self.busy_until - now if self.probe else 0.0, self.due - now)

    def start(self, mail: Mail, now: float) -> None:
        """Note that an e-mail is the probe."""
        self.probe, self.busy_until = mail.id, now + PATIENCE

    def slow_down(self, longest: float, *, hard: bool, now: float) -> None:
        """Note that the probe was refused."""
        first, factor = HARD if hard else SOFT
        self.pause = min(max(first, self.pause * factor), longest)
        self.due, self.probe = now + self.pause, None


@dataclass(slots=True, kw_only=True)
class Stop:
    """A group that has stopped: since when, why, and its probes.

    Probes to domains whose last outcome was an acceptance go by a clock of their own, `proven`: whoever provokes
    refusals at other domains cannot make them wait.
    """

    group: Group
    began: float
    reply: str
    unreachable: bool = False
    """Whether no connection could be opened, so that it is over as soon as MAIL is accepted."""
    greylisting: bool = False
    """Whether it may be that: 4xx at RCPT for nearly all."""
    proven: Clock = field(default_factory=Clock)
    others: Clock = field(default_factory=Clock)
    firm: bool = False
    """Whether e-mails were refused by 5xx, or the login was."""
    probes: int = 0
    witnessed: int = 0
    last_refused: float = 0.0
    _scout_until: float = 0.0

    @property
    def clocks(self) -> tuple[Clock, Clock]:
        return self.proven, self.others

    def wait(self, now: float) -> float:
        """Return the seconds until some probe may be sent."""
        return min(clock.wait(now) for clock in self.clocks)

    def clock_of(self, *, proven: bool) -> Clock:
        """Return the clock of an e-mail to a proven domain, or to another."""
        return self.proven if proven and self.group.name != "domain" else self.others

    def soft(self, now: float) -> bool:
        """Return whether e-mails go on, though no attempt counts. Greylisting asks for a second one of each."""
        return self.greylisting and now - self.began < GREYLISTING

    def hold(self, now: float) -> float:
        """Return the seconds for which to put an e-mail aside.

        The first comes back as the next probe; the others later, as a thousand would keep the rest from being claimed.
        """
        wait = self.others.wait(now)
        if now >= self._scout_until:
            self._scout_until = now + wait + 1
            return wait
        return max(SHORTEST_HOLD, 2 * wait, min(now - self.began, LONGEST_HOLD))

    def refuse(self, clock: Clock, *, hard: bool, witnessed: bool, now: float) -> None:
        """Note that a probe was refused; `witnessed`, if others were accepted since the one before."""
        self.probes += 1
        self.firm = self.firm or hard
        self.witnessed += witnessed
        self.last_refused = now
        clock.slow_down(LONGEST[self.group.name], hard=hard, now=now)

    @property
    def condemned(self) -> bool:
        """Whether a domain has refused for so long, while others accepted, that its e-mails may die."""
        return self.group.name == "domain" and self.probes >= DEATH_PROBES and self.witnessed >= DEATH_WITNESSES


async def alarm(stops: Mapping[Group, Stop]) -> None:
    """Log an error about each group that has stopped, again and again, for ever."""
    due: dict[Group, float] = {}
    while True:
        now = time.monotonic()
        due = {group: at for group, at in due.items() if group in stops}
        for group, stop in stops.items():
            age = now - stop.began
            if now >= due.get(group, 0.0) and (age >= ALARM_AFTER or stop.firm):
                due[group] = now + (OFTEN if age < SELDOM else SELDOM)
                what = "a domain" if group.name == "domain" else group
                words = "%s stopped %.0f s ago: %s: %s; next probe in %.0f s"
                log.error(words, what, age, CONSEQUENCES[group.name], stop.reply, stop.wait(now))
        await asyncio.sleep(ALARM_INTERVAL)
