"""Whether a mailbox that a server calls unknown is unknown.

In December 2020, Gmail said 550 5.1.1 of a part of its users for almost seven hours. So when many recipients in a row
are unknown, the refusals are in doubt: of one domain, or of the relay.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from mail.stops import LINE, Group, Mail

OF_DOMAIN: Final = (10, 3)
"""Of a domain's last 10 different recipients, 3 must be unknown."""
OF_RELAY: Final = (5, 5)
"""The same for the last recipients at any domain."""
DURATION: Final = 3600.0
"""Seconds that a doubt lasts after its last cause."""
DOMAINS: Final = 1000
"""Domains with unknown mailboxes that are remembered, the latest ones."""


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
        self._until = now + DURATION
        return raised

    def doubtful(self, now: float) -> bool:
        """Return whether there is a doubt."""
        return now < self._until


class Doubts:
    """Doubts about domains, and about the relay."""

    def __init__(self) -> None:
        self._relay = _Sample(*OF_RELAY)
        self._domains: OrderedDict[str, _Sample] = OrderedDict()

    def add(self, mail: Mail, *, unknown: bool, now: float) -> Group | None:
        """Note what a recipient got; return the group about which that raises a doubt, if it does."""
        if unknown and mail.domain not in self._domains:
            self._domains[mail.domain] = _Sample(*OF_DOMAIN)
            if len(self._domains) > DOMAINS:
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
