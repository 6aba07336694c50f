"""What the outcomes of all e-mails together say about one of them.

No table of replies is ever complete. What others get at the same time says more than a server's words: if everybody is
refused, the fault is ours or the relay's; if others get through, it is the e-mail's, its kind's or its domain's. So
refusals are counted in runs, for the line, each kind and each domain, which stop a group (docs/email.md).

Pure: the clock is an argument. All of it is in memory, bounded, and harmless to lose.
"""

from collections import OrderedDict, deque
from typing import Final

from mail.replies import Outcome, Stage, Verdict
from mail.stops import LINE, Clock, Group, Mail, Stop

REMEMBERED: Final = 10_000  # domains and kinds, those used last
RUN: Final = 5  # different recipients refused in a row, after which a group stops
RUN_LIMIT: Final = 64  # recipients that a run remembers
OF_DOMAIN: Final = (10, 3)  # of a domain's last 10 different recipients, 3 must be unknown to raise a doubt
OF_RELAY: Final = (5, 5)  # the same for the last recipients at any domain
GREYLISTING: Final = 900.0  # seconds after which 4xx at RCPT to everybody are not greylisting
DOUBT_LASTS: Final = 3600.0  # seconds after its last cause


class Cohort:
    """What is known of the line, a kind or a domain: its run of refusals, and its recipients that are unknown.

    If many are called unknown, that is in doubt: in December 2020, Gmail said 550 5.1.1 of some users for seven hours.
    """

    def __init__(self, group: Group) -> None:
        self.group = group
        self.accepted = False  # ever
        self.proven = False  # whether the last outcome was an acceptance
        self.began = 0.0  # when the run began
        self._refusals: dict[int, tuple[str, Stage, int]] = {}  # by recipient: domain, stage, and class of the code
        self._unknown: dict[int, bool] = {}  # the last recipients, and whether each was unknown
        self._doubtful_until = 0.0

    def accept(self, mail: Mail, now: float) -> None:
        self.accepted = self.proven = True
        self._refusals.clear()
        if self._unknown:  # nothing matters before the first
            self.sample(mail, unknown=False, now=now)

    def refuse(self, mail: Mail, outcome: Outcome, now: float) -> None:
        if not self._refusals:
            self.began = now
        if len(self._refusals) < RUN_LIMIT:
            self._refusals[hash(mail.user)] = mail.domain, outcome.stage, outcome.code // 100

    def long(self, now: float) -> bool:
        """Return whether the run is long enough to stop the group. 4xx at RCPT may be greylisting, which ends soon."""
        others = sum(refusal[1:] != (Stage.RCPT, 4) for refusal in self._refusals.values())
        return others >= RUN or (len(self._refusals) >= RUN and now - self.began >= GREYLISTING)

    @property
    def wide(self) -> bool:
        return len({domain for domain, _, _ in self._refusals.values()}) > 1

    @property
    def at_mail(self) -> bool:
        """Whether enough were refused before the server knew the recipient."""
        return sum(stage is Stage.MAIL for _, stage, _ in self._refusals.values()) >= RUN

    def doubtful(self, now: float) -> bool:
        return now < self._doubtful_until

    def sample(self, mail: Mail, *, unknown: bool, now: float) -> bool:
        """Note what a recipient got; return whether that raises a doubt."""
        size, cause = OF_RELAY if self.group == LINE else OF_DOMAIN
        self._unknown.pop(hash(mail.user), None)
        self._unknown[hash(mail.user)] = unknown
        if len(self._unknown) > size:
            del self._unknown[next(iter(self._unknown))]
        if sum(self._unknown.values()) < cause:
            return False
        raised = not self.doubtful(now)
        self._doubtful_until = now + DOUBT_LASTS
        return raised


class Evidence:
    """Judges e-mails by what happens to all of them. `stops` are the groups that have stopped."""

    def __init__(self) -> None:
        self.stops: dict[Group, Stop] = {}
        self._cohorts: OrderedDict[Group, Cohort] = OrderedDict()
        self._acceptances: deque[tuple[float, int]] = deque(maxlen=2)  # the last two, of different recipients

    def _cohort(self, group: Group) -> Cohort:
        if cohort := self._cohorts.get(group):
            self._cohorts.move_to_end(group)
            return cohort
        if len(self._cohorts) >= REMEMBERED:
            self._cohorts.popitem(last=False)
        return self._cohorts.setdefault(group, Cohort(group))

    def _is_proven(self, mail: Mail) -> bool:
        return self._cohort(mail.groups[-1]).proven

    @property
    def line(self) -> Stop | None:
        return self.stops.get(LINE)

    def suitability(self, mail: Mail, now: float) -> int | None:
        """Return how good a probe an e-mail is, the lower the better; `None`, not now. New and old ones take turns."""
        proven, line = self._is_proven(mail), self.line
        if line and line.clock_of(proven=proven).wait(now) and not mail.urged:
            return None
        turn = line is not None and line.probes % 2 == 1
        return 0 if proven else 1 if mail.fresh is not turn else 2

    def admit(self, mail: Mail, now: float) -> Stop | None:
        """Return the stop for which an e-mail must wait, if any. Otherwise it may be sent, as a probe if need be."""
        probed: list[Clock] = []
        for stop in self.stops_of(mail):
            clock = stop.clock_of(proven=self._is_proven(mail))
            if clock.wait(now) and not mail.urged:
                return stop
            probed.append(clock)
        for clock in probed:
            clock.start(mail, now)
        return None

    def stops_of(self, mail: Mail) -> list[Stop]:
        """Return those that concern an e-mail, the line's first."""
        return [self.stops[group] for group in mail.groups if group in self.stops] if self.stops else []

    def shown(self, now: float) -> list[tuple[str, str, float, float]]:
        """Return what `Metrics.stops` shows. A domain is no label."""
        stops = [stop for stop in self.stops.values() if stop.group.name != "domain"]
        return [(f"{stop.group}", stop.reply, now - stop.began, stop.wait(now)) for stop in stops]

    def abandon(self, mail: Mail) -> None:
        for _, clock in self._probes_of(mail):
            clock.abandon()

    def _probes_of(self, mail: Mail) -> list[tuple[Stop, Clock]]:
        return [(stop, clock) for stop in self.stops_of(mail) for clock in stop.clocks if clock.probe == mail.id]

    def reached(self) -> Stop | None:
        """Note that MAIL was accepted. If the server could not be reached before, that is over: return the stop."""
        return self.stops.pop(LINE) if self.line and self.line.unreachable else None

    def accepted(self, mail: Mail, now: float) -> list[Stop]:
        """Note that an e-mail was accepted; return the stops that are over."""
        user = hash(mail.user)
        if self._acceptances and self._acceptances[-1][1] == user:
            self._acceptances.pop()
        self._acceptances.append((now, user))
        for group in mail.groups:
            self._cohort(group).accept(mail, now)
        return [self.stops.pop(stop.group) for stop in self.stops_of(mail)]

    def accepted_since(self, moment: float, user: str) -> bool:
        """Return whether somebody else's e-mail was accepted after a moment."""
        return any(at > moment and other != hash(user) for at, other in self._acceptances)

    def unreachable(self, reply: str, *, hard: bool, now: float) -> None:
        """Note that no connection can be opened while none is open."""
        stop = self.stops.setdefault(LINE, Stop(LINE, now, reply, unreachable=True))
        for clock in stop.clocks:
            if clock.probe or clock.due <= now:  # several that fail together are one fault
                stop.refuse(clock, hard=hard, witnessed=False, now=now)

    def unknown(self, mail: Mail, now: float) -> tuple[bool, Group | None]:
        """Note that a mailbox is called unknown; return whether that is doubtful, and the group where this is new."""
        line, _, domain = map(self._cohort, mail.groups)
        raised = [cohort.group for cohort in (domain, line) if cohort.sample(mail, unknown=True, now=now)]
        return line.doubtful(now) or domain.doubtful(now), raised[-1] if raised else None

    def refused(self, mail: Mail, outcome: Outcome, now: float) -> None:
        """Note that an e-mail was refused, or that its conversation broke. That may stop a group."""
        hard = outcome.code // 100 == 5
        for stop, clock in self._probes_of(mail):
            witnessed = any(at > stop.last_refused for at, _ in self._acceptances)
            stop.refuse(clock, hard=hard, witnessed=witnessed, now=now)
            stop.reply = outcome.quote
        line, kind, domain = map(self._cohort, mail.groups)
        domain.proven = False
        if outcome.verdict is Verdict.DEFERRED:
            return
        if hard:
            domain.refuse(mail, outcome, now)
        if self._is_witness(mail, domain, outcome):
            line.refuse(mail, outcome, now)
            kind.refuse(mail, outcome, now)
        if line.long(now) and (line.wide or line.at_mail or self._is_the_only_one(domain)):
            self._stop(line, outcome, now)
        elif kind.long(now) and kind.wide:
            self._stop(kind, outcome, now)
        elif domain.long(now):
            self._stop(domain, outcome, now)

    def _is_witness(self, mail: Mail, domain: Cohort, outcome: Outcome) -> bool:
        """Return whether a refusal speaks against the line or a kind. One that nonsense may have provoked does not."""
        if outcome.verdict in {Verdict.PERMANENT, Verdict.DOUBTED} or mail.counted:
            return False
        return outcome.stage is Stage.MAIL or domain.accepted or not self._acceptances

    def _is_the_only_one(self, domain: Cohort) -> bool:
        return not any(group.name == "domain" and group != domain.group for group in self._cohorts)

    def _stop(self, cohort: Cohort, outcome: Outcome, now: float) -> None:
        stop = Stop(cohort.group, cohort.began, outcome.quote, firm=outcome.code // 100 == 5, last_refused=now)
        self.stops.setdefault(cohort.group, stop)
