"""The e-mails that this process has leased: which is next, whether it is still wanted, and the lease's extension."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Final

from config.checks import parse_address
from mail.stops import Mail
from mongo.document import JSONObject
from mongo.errors import StoreError, Unavailable
from mongo.outbox import Outbox
from mongo.owed import FLUSHED, OwedEmail

log = logging.getLogger("notifier.delivery")

SENDING_PART: Final = 0.8  # fraction of a lease during which sending may start: the message takes time too
EXTENSION_PART: Final = 1 / 3  # fraction of a lease after which it is extended
RETRY_PART: Final = 0.03  # fraction of a lease to wait after a failed extension
SECONDS: Final = 1.0  # seconds of sending in the window: more would wait here while another process is idle
SMALLEST: Final = 16  # users whose e-mails are claimed at once, at least
LARGEST: Final = 128  # users whose e-mails are claimed at once: those of one user may take a megabyte
REFILL: Final = 0.5  # seconds after which a window is filled up before it is half empty, as there may be urgent e-mails
TURN: Final = 4  # one e-mail in four is not urgent, so that those do not starve
VALID: Final = 0.05  # seconds for which a look holds; MAIL follows no later, so an opt-out counts from the look on
AHEAD: Final = 40  # e-mails of the window that a look includes, at most


@dataclass(eq=False, slots=True)
class Lease:
    """An e-mail that this process holds, until `ends` (monotonic seconds) unless the lease is extended."""

    email: OwedEmail
    ends: float
    required: bool = False  # by its kind, so that it counts as wanted
    wanted: bool = True  # by the user, as far as is known until `known_until`
    told: Sequence[JSONObject] = ()  # the notifications that an e-mail with `ids` speaks of, as far as is known
    known_until: float = math.inf
    replaced: bool = False  # another worker goes on meanwhile, as the reply to the message does not come soon
    began: float = 0.0  # when the e-mail was taken in order to be sent
    then: Lease | None = None  # the e-mail whose commands went with the message, once that was accepted
    mail: Mail = field(init=False)  # the e-mail as evidence

    def __post_init__(self) -> None:
        email = self.email
        fresh, counted, urged = email.tried is None, email.tries > 0, email.held == FLUSHED
        about = email.id, email.key, email.user_id, parse_address(email.address) or ""
        self.mail = Mail(*about, fresh=fresh, counted=counted, urged=urged)

    @property
    def held(self) -> bool:
        """Whether the lease has not ended. Once it has, the e-mail may be another worker's."""
        return time.monotonic() < self.ends

    @property
    def known(self) -> bool:
        return time.monotonic() < self.known_until

    @property
    def is_read(self) -> bool:
        """Whether all that the e-mail was to speak of is read, deleted or pushed out."""
        return bool(self.email.ids) and not self.told

    def lose(self) -> None:
        self.ends = -math.inf


class Leases(set[Lease]):
    """All leases that this process holds, each of which is extended, by `seconds`, until it is discarded."""

    def __init__(self, outbox: Outbox, seconds: float) -> None:
        super().__init__()
        self._outbox = outbox
        self.seconds = seconds

    def end(self) -> float:
        """Return when a lease taken now ends for us: sooner than for others."""
        return time.monotonic() + SENDING_PART * self.seconds

    async def keep(self) -> None:
        pause = self.seconds * EXTENSION_PART
        while True:
            await asyncio.sleep(pause)
            # A lease that has ended may be another worker's, and must not be taken back.
            if leases := [lease for lease in self if lease.held]:
                pause = self.seconds * (EXTENSION_PART if await self._extend(leases) else RETRY_PART)

    async def _extend(self, leases: Sequence[Lease]) -> bool:
        end = self.end()
        try:
            async with asyncio.timeout(self.seconds * EXTENSION_PART):
                await self._outbox.extend([lease.email for lease in leases], self.seconds)
        except Exception as exc:  # noqa: BLE001 - there is time for another attempt
            log.warning("leases could not be extended: %s", type(exc).__name__)
            return False
        for lease in leases:
            if lease.held:  # it may have been lost meanwhile
                lease.ends = end
        return True


class Window:
    """A queue whose size follows the pace at which it is emptied."""

    def __init__(self) -> None:
        self._urgent: deque[Lease] = deque()
        self._others: deque[Lease] = deque()
        self._size = SMALLEST
        self._taken = 0
        self._filled_at = time.monotonic()
        self.pace = 0.0  # e-mails taken a second, between the last two times that it was filled

    def __len__(self) -> int:
        return len(self._urgent) + len(self._others)

    @property
    def low(self) -> bool:
        return len(self) < self._size / 2

    def room(self) -> int:
        """Return of how many users to claim e-mails now; 0 while it is full enough."""
        now = time.monotonic()
        if not self.low and now - self._filled_at < REFILL:
            return 0
        self.pace = self._taken / max(now - self._filled_at, 0.001)
        self._size = min(max(SMALLEST, round(self.pace * SECONDS)), 2 * self._size, LARGEST)
        self._taken, self._filled_at = 0, now
        return max(0, self._size - len(self))

    def put(self, lease: Lease, *, urgent: bool, place: int | None = None) -> None:
        leases = self._urgent if urgent else self._others
        leases.insert(len(leases) if place is None else place, lease)

    def take(self) -> Lease:
        """Remove the next e-mail: the oldest urgent one, but every fourth time the oldest of the others."""
        self._taken += 1
        is_their_turn = self._others and (not self._urgent or self._taken % TURN == 0)
        return (self._others if is_their_turn else self._urgent).popleft()

    def take_best(self, rank: Callable[[Lease], int | None]) -> Lease | None:
        """Remove the first e-mail of the lowest rank, if any has one."""
        ranks = {lease: of_lease for lease in self.next(LARGEST) if (of_lease := rank(lease)) is not None}
        if not ranks:
            return None
        best = min(ranks, key=ranks.__getitem__)
        (self._urgent if best in self._urgent else self._others).remove(best)
        return best

    def next(self, count: int) -> Iterator[Lease]:
        return islice(chain(self._urgent, self._others), count)

    def clear(self) -> list[Lease]:
        leases = [*self._urgent, *self._others]
        self._urgent.clear()
        self._others.clear()
        return leases


class Looks:
    """Looks at users' documents: is a lease still held, is the e-mail still wanted? One look is for many e-mails."""

    def __init__(self, outbox: Outbox, window: Window) -> None:
        self._outbox = outbox
        self._window = window
        self._wake = asyncio.Event()
        self._asked: list[Lease] = []
        self._looked = asyncio.Event()  # of those who have asked

    async def __call__(self, lease: Lease) -> None:
        self._asked.append(lease)
        self._wake.set()
        await self._looked.wait()

    def prefetch(self) -> None:
        """Look soon if there is one among the next e-mails that has not been looked at."""
        if not all(lease.known for lease in self._window.next(self._ahead() // 2)):
            self._wake.set()

    def _ahead(self) -> int:
        return min(AHEAD, round(self._window.pace * VALID))

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            asked, self._asked = self._asked, []
            looked, self._looked = self._looked, asyncio.Event()
            try:
                await self._look([*asked, *(lease for lease in self._window.next(self._ahead()) if not lease.known)])
            finally:
                looked.set()

    async def _look(self, leases: Sequence[Lease]) -> None:
        """Look at e-mails. What cannot be read is left alone, until the lease ends and it is claimed again."""
        if not leases:
            return
        try:
            found = await self._outbox.look([lease.email for lease in leases])
        except Exception as exc:  # noqa: BLE001 - whatever it is, nothing is known of the e-mails
            if len(leases) > 1 and not isinstance(exc, Unavailable):  # because of one of them
                for lease in leases:
                    await self._look([lease])
                return
            reason = f"{exc}" if isinstance(exc, StoreError) else type(exc).__name__
            log.warning("%d e-mails wait: their users' preferences cannot be read: %s", len(leases), reason)
            found = [None] * len(leases)
        for lease, look in zip(leases, found, strict=True):
            lease.known_until = time.monotonic() + VALID
            if look is None:
                lease.lose()
            else:
                lease.wanted, lease.told = lease.required or look.wanted, look.told
