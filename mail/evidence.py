"""What the outcomes of all e-mails together say about one of them.

Pure: events in, decisions out, the clock an argument.

No table of replies is ever complete. What others get at the same time says more than a server's words: if everybody is
refused, the fault is ours or the relay's; if others get through, it is the e-mail's, its kind's or its domain's.

Refusals are counted in runs, which an acceptance ends: for the line, each kind and each domain. When five different
recipients in a row are refused, that group stops. From then on, only probes are sent, until one of them is accepted.
While the line or a kind is stopped, no attempt of its e-mails counts, and none of them dies.

All of it is in memory, bounded, and harmless to lose.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final, TypeVar

from mail.replies import Outcome, Stage, Verdict
from mail.stops import LINE, Clock, Group, Mail, Run, Stop

T = TypeVar("T")
REMEMBERED: Final = 10_000
"""Domains and kinds that are remembered, those used last."""
OF_DOMAIN: Final = (10, 3)
"""Of a domain's last 10 different recipients, 3 must be unknown."""
OF_RELAY: Final = (5, 5)
"""The same for the last recipients at any domain."""
DOUBT_LASTS: Final = 3600.0
"""Seconds that a doubt lasts after its last cause."""
DOUBTED_DOMAINS: Final = 1000
"""Domains with unknown mailboxes that are remembered, the latest ones."""


class Domain:
    """What is known of a domain: whether it has ever accepted, whether it did so last, and its refusals."""

    def __init__(self) -> None:
        self.accepted = False
        self.proven = False
        self.run = Run()


class _Sample:
    """What the last different recipients got: whether each was unknown."""

    def __init__(self, size: int, cause: int) -> None:
        self._size = size
        self._cause = cause
        self._unknown: OrderedDict[int, bool] = OrderedDict()
        self._until = 0.0

    def add(self, mail: Mail, *, unknown: bool, now: float) -> bool:
        """Add what a recipient got; return whether that raises a doubt. Nothing matters before the first unknown."""
        if not unknown and not self._unknown:
            return False
        self._unknown[hash(mail.user)] = unknown
        self._unknown.move_to_end(hash(mail.user))
        if len(self._unknown) > self._size:
            self._unknown.popitem(last=False)
        if sum(self._unknown.values()) < self._cause:
            return False
        raised = not self.doubtful(now)
        self._until = now + DOUBT_LASTS
        return raised

    def doubtful(self, now: float) -> bool:
        """Return whether there is a doubt."""
        return now < self._until


class Doubts:
    """Doubts about domains, and about the relay: whether a mailbox that a server calls unknown is unknown.

    In December 2020, Gmail said 550 5.1.1 of a part of its users for almost seven hours. So when many recipients in a
    row are unknown, the refusals are in doubt: of one domain, or of the relay.
    """

    def __init__(self) -> None:
        self._relay = _Sample(*OF_RELAY)
        self._domains: OrderedDict[str, _Sample] = OrderedDict()

    def add(self, mail: Mail, *, unknown: bool, now: float) -> Group | None:
        """Note what a recipient got; return the group about which that raises a doubt, if it does."""
        if unknown and mail.domain not in self._domains:
            self._domains[mail.domain] = _Sample(*OF_DOMAIN)
            if len(self._domains) > DOUBTED_DOMAINS:
                self._domains.popitem(last=False)
        domain = self._domains.get(mail.domain)
        raised = domain is not None and domain.add(mail, unknown=unknown, now=now)
        if self._relay.add(mail, unknown=unknown, now=now):
            return LINE
        return Group("domain", mail.domain) if raised else None

    def doubtful(self, mail: Mail, now: float) -> bool:
        """Return whether it is in doubt that the recipient is unknown."""
        domain = self._domains.get(mail.domain)
        return self._relay.doubtful(now) or (domain is not None and domain.doubtful(now))


class Evidence:
    """Judges e-mails by what happens to all of them. `stops` are the groups that have stopped."""

    def __init__(self) -> None:
        self.stops: dict[Group, Stop] = {}
        self.doubts = Doubts()
        self._line = Run()
        self._kinds: OrderedDict[str, Run] = OrderedDict()
        self._domains: OrderedDict[str, Domain] = OrderedDict()
        self._acceptances: deque[tuple[float, int]] = deque(maxlen=2)  # the last two, of different recipients

    # --- may it be sent? ---------------------------------------------------------------------------

    def line(self, now: float) -> Stop | None:
        """Return the stop of the line that lets only probes through, if there is one."""
        stop = self.stops.get(LINE)
        return stop if stop and not stop.soft(now) else None

    def wait(self, now: float) -> float:
        """Return the seconds until an e-mail may be sent, whichever it is."""
        line = self.line(now)
        return line.wait(now) if line else 0.0

    def suitability(self, mail: Mail, now: float) -> int | None:
        """Return how good a probe of the line an e-mail would be: the lower, the better; `None`, not now.

        Best are domains whose last outcome was an acceptance. Of the others, new e-mails and old ones take turns.
        """
        proven, line = self._domain(mail).proven, self.line(now)
        if line and line.clock_of(proven=proven).wait(now) and not mail.urged:
            return None
        turn = line is not None and line.probes % 2 == 1
        return 0 if proven else 1 if mail.fresh is not turn else 2

    def admit(self, mail: Mail, now: float) -> Stop | None:
        """Return the stop for which an e-mail must wait, if any. Otherwise it may be sent, as a probe if need be."""
        probed: list[Clock] = []
        for stop in self.stops_of(mail):
            clock = stop.clock_of(proven=self._domain(mail).proven)
            if stop.soft(now):
                continue
            if clock.wait(now) and not mail.urged:
                return stop
            probed.append(clock)
        for clock in probed:
            clock.start(mail, now)
        return None

    def stops_of(self, mail: Mail) -> list[Stop]:
        """Return the stops of the line, the e-mail's kind and its domain, in this order."""
        if not self.stops:
            return []
        groups = (LINE, Group("kind", mail.kind), Group("domain", mail.domain))
        return [self.stops[group] for group in groups if group in self.stops]

    def shown(self, now: float) -> list[tuple[str, str, float, float]]:
        """Return what metrics show of the line and the kinds that have stopped."""
        stops = [stop for stop in self.stops.values() if stop.group.name != "domain"]
        return [(f"{stop.group}", stop.reply, now - stop.began, stop.wait(now)) for stop in stops]

    # --- what happened -----------------------------------------------------------------------------

    def abandon(self, mail: Mail) -> None:
        """Withdraw an attempt that showed nothing."""
        for _, clock in self._probes_of(mail):
            clock.probe = None

    def _probes_of(self, mail: Mail) -> list[tuple[Stop, Clock]]:
        return [(stop, clock) for stop in self.stops_of(mail) for clock in stop.clocks if clock.probe == mail.id]

    def reached(self) -> Stop | None:
        """Note that MAIL was accepted. If the server could not be reached before, that is over: return the stop."""
        stop = self.stops.get(LINE)
        return self.stops.pop(LINE) if stop and stop.unreachable else None

    def accepted(self, mail: Mail, now: float) -> list[Stop]:
        """Note that an e-mail was accepted; return the stops that are over."""
        domain, user = self._domain(mail), hash(mail.user)
        domain.accepted = domain.proven = True
        if self._acceptances and self._acceptances[-1][1] == user:
            self._acceptances.pop()
        self._acceptances.append((now, user))
        self._line.clear()
        domain.run.clear()
        self._kinds.pop(mail.kind, None)
        self.doubts.add(mail, unknown=False, now=now)
        over = self.stops_of(mail)
        for stop in over:
            del self.stops[stop.group]
        return over

    def accepted_since(self, moment: float, user: str) -> bool:
        """Return whether somebody else's e-mail was accepted after a moment."""
        return any(at > moment and other != hash(user) for at, other in self._acceptances)

    def unreachable(self, reply: str, *, hard: bool, now: float) -> None:
        """Note that no connection can be opened while none is open."""
        stop = self.stops.get(LINE)
        if stop is None or stop.soft(now):
            stop = self.stops[LINE] = Stop(group=LINE, began=now, reply=reply, unreachable=True)
        for clock in stop.clocks:
            if clock.due <= now:  # several that fail together are one fault
                stop.refuse(clock, hard=hard, witnessed=False, now=now)

    def refused(self, mail: Mail, outcome: Outcome, now: float) -> None:
        """Note that an e-mail was refused, or that its conversation broke."""
        hard = outcome.code // 100 == 5
        for stop, clock in self._probes_of(mail):
            witnessed = any(at > stop.last_refused for at, _ in self._acceptances)
            stop.refuse(clock, hard=hard, witnessed=witnessed, now=now)
            stop.reply = outcome.quote
        domain = self._domain(mail)
        domain.proven = False
        if outcome.verdict is Verdict.DEFERRED:
            return
        if hard:
            domain.run.add(mail, outcome, now)
        if self._is_witness(mail, domain, outcome):
            self._line.add(mail, outcome, now)
            _recall(self._kinds, mail.kind, Run).add(mail, outcome, now)
        self._stop(mail, domain, outcome, now)

    def _is_witness(self, mail: Mail, domain: Domain, outcome: Outcome) -> bool:
        """Return whether a refusal speaks against the line or a kind.

        Not if somebody may have provoked it, for example by signing up with nonsense.
        """
        if outcome.verdict in {Verdict.PERMANENT, Verdict.DOUBTED} or mail.counted:
            return False
        return outcome.stage is Stage.MAIL or domain.accepted or not self._acceptances

    def _stop(self, mail: Mail, domain: Domain, outcome: Outcome, now: float) -> None:
        """Stop the first group whose run is long enough: the line, the kind or the domain."""
        line, kind = self._line, self._kinds.get(mail.kind)
        if line.wide or line.at_mail or (line.long and len(self._domains) == 1):
            group, run = LINE, line
        elif kind and kind.wide:
            group, run = Group("kind", mail.kind), kind
        elif domain.run.long:
            group, run = Group("domain", mail.domain), domain.run
        else:
            return
        stop = self.stops.get(group)
        if stop is None:
            stop = self.stops[group] = Stop(group=group, began=run.began, reply=outcome.quote, last_refused=now)
            stop.greylisting = run.may_be_greylisting
            stop.firm = outcome.code // 100 == 5
        elif not run.may_be_greylisting:
            stop.greylisting = False

    def _domain(self, mail: Mail) -> Domain:
        return _recall(self._domains, mail.domain, Domain)


def _recall(memory: OrderedDict[str, T], name: str, make: type[T]) -> T:
    """Return what is remembered of a domain or a kind, and forget the one used longest ago if there are too many."""
    if name not in memory:
        memory[name] = make()
        if len(memory) > REMEMBERED:
            memory.popitem(last=False)
    memory.move_to_end(name)
    return memory[name]
