"""The e-mails that are claimed and not yet begun: about a second's worth at the current pace."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain, islice
from typing import Final

from mail.lease import Lease

SECONDS: Final = 1.0
"""Seconds that the e-mails claimed may last. More would wait here while another process has nothing to do."""
SMALLEST: Final = 16
LARGEST: Final = 128
"""Users whose e-mails are claimed at once. A user's e-mails may take a megabyte."""
REFILL: Final = 0.5
"""Seconds after which a window that is not full is filled up, so that what is urgent does not wait until it is half
empty."""
TURN: Final = 4
"""Of so many e-mails taken, one is not urgent, so that these do not starve."""


class Window:
    """A queue whose size follows the pace at which it is emptied."""

    def __init__(self) -> None:
        self._urgent: deque[Lease] = deque()
        self._others: deque[Lease] = deque()
        self._size = SMALLEST
        self._taken = 0
        self._filled_at = time.monotonic()
        self.pace = 0.0
        """E-mails taken a second, between the last two times that it was filled."""

    def __len__(self) -> int:
        """Return how many e-mails wait."""
        return len(self._urgent) + len(self._others)

    @property
    def low(self) -> bool:
        """Whether it is time to fill it."""
        return len(self) < self._size / 2

    def room(self) -> int:
        """Return how many e-mails to claim now; 0 while it is full enough."""
        now = time.monotonic()
        if not self.low and now - self._filled_at < REFILL:
            return 0
        self.pace = self._taken / max(now - self._filled_at, 0.001)
        self._size = min(max(SMALLEST, round(self.pace * SECONDS)), 2 * self._size, LARGEST)
        self._taken, self._filled_at = 0, now
        return max(0, self._size - len(self))

    def put(self, lease: Lease, *, urgent: bool) -> None:
        """Add an e-mail."""
        (self._urgent if urgent else self._others).append(lease)

    def take(self) -> Lease:
        """Remove the next e-mail: the oldest urgent one, but every fourth time the oldest of the others."""
        self._taken += 1
        is_their_turn = self._others and (not self._urgent or self._taken % TURN == 0)
        return (self._others if is_their_turn else self._urgent).popleft()

    def take_best(self, rank: Callable[[Lease], int | None]) -> Lease | None:
        """Remove the e-mail of the lowest rank; leave those that have none."""
        ranked = [(of_lease, n) for n, lease in enumerate(self.next(LARGEST)) if (of_lease := rank(lease)) is not None]
        if not ranked:
            return None
        lease = next(islice(self.next(LARGEST), min(ranked)[1], None))
        (self._urgent if lease in self._urgent else self._others).remove(lease)
        return lease

    def next(self, count: int) -> Iterator[Lease]:
        """Return about those e-mails that will be taken next."""
        return islice(chain(self._urgent, self._others), count)

    def clear(self) -> list[Lease]:
        """Remove and return all e-mails."""
        leases = [*self._urgent, *self._others]
        self._urgent.clear()
        self._others.clear()
        return leases
