"""Claims the e-mails that are next, a window at a time, looks at them before they are sent, or gives them back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from typing import Final

from kinds import Kinds
from mail.evidence import Evidence
from mail.lease import Lease, Leases
from mail.settlement import Settlements, Settler
from mongo.errors import StoreError, Unavailable
from mongo.outbox import Outbox
from store import Store

log = logging.getLogger("notifier.delivery")

POLL: Final = 1.0
"""Seconds between two looks for e-mails that fell due or that another process owes."""
POLL_SPREAD: Final = (0.8, 1.2)
"""Factors between which the polls are spread, so that workers do not look all at once."""
CLAIM_PAUSE: Final = 0.02
"""Seconds between two claims when one found less than it asked for. What is owed meanwhile shares the next."""
PROBE_INTERVAL: Final = 5.0
"""Seconds between two searches for an e-mail that would be a good probe, while others would not do."""
PROBES: Final = 8
"""Users of whose e-mails the best is chosen as a probe."""
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
VALID: Final = 0.05
"""Seconds for which a look holds. MAIL follows no later, so an opt-out counts from the look on."""
AHEAD: Final = 40
"""E-mails of the window that a look includes at the most."""


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

    def put(self, lease: Lease, *, urgent: bool, place: int | None = None) -> None:
        """Add an e-mail at a place among those of its priority, by default the last."""
        leases = self._urgent if urgent else self._others
        leases.insert(len(leases) if place is None else place, lease)

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
        leases = [*self._urgent, *self._others]
        self._urgent.clear()
        self._others.clear()
        return leases


class Claimer:
    """Keeps a window filled. Set `owed` when there may be something to claim; `claimed` is called when there was."""

    def __init__(  # noqa: PLR0913, PLR0917 - all that it brings together
        self,
        store: Store,
        kinds: Kinds,
        owed: asyncio.Event,
        leases: Leases,
        evidence: Evidence,
        settlements: Settlements,
        settler: Settler,
        claimed: Callable[[], None],
    ) -> None:
        self.owed = owed
        self.window = Window()
        self._outbox = store.outbox
        self._kinds = kinds
        self._leases = leases
        self._evidence = evidence
        self._settlements = settlements
        self._settler = settler
        self._claimed = claimed
        self._stopped = False
        self._probed = -math.inf

    def stop(self) -> None:
        self._stopped = True
        self.owed.set()

    async def run(self) -> None:
        """Claim until stopped, then give back what nobody has begun."""
        while not self._stopped:
            self.owed.clear()
            try:
                pause = await self._claim_if_needed()
            except Exception:
                log.exception("unexpected error: e-mails wait")
                pause = POLL
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self.owed.wait()
        await self._give_back()

    async def _claim_if_needed(self) -> float:
        """Claim e-mails if the window has room; return the seconds to wait unless something happens."""
        users, now = self.window.room(), time.monotonic()
        if line := self._evidence.line:
            # A domain that accepted lately may be among those claimed, so it is looked for more often.
            wait = min(line.others.wait(now), max(line.proven.wait(now), self._probed + PROBE_INTERVAL - now))
            if wait > 0:
                await self._give_back()
                return wait
            users, self._probed = 0 if self.window else PROBES, now
        if not users:
            return REFILL
        claimed = await self._claim(users)
        if 0 < claimed < users:
            await asyncio.sleep(CLAIM_PAUSE)
        if claimed and self.window.low and not self._evidence.line:
            self.owed.set()
        return POLL * random.uniform(*POLL_SPREAD)

    async def _claim(self, users: int) -> int:
        """Claim e-mails of so many users; return how many e-mails there were."""
        end = self._leases.end()  # from before the request, so never later than MongoDB's
        try:
            emails = await self._outbox.claim(users, self._leases.seconds)
        except StoreError as exc:
            log.warning("no e-mails can be claimed: %s", exc)
            return 0
        now = time.monotonic()
        for email in emails:
            self._accept(Lease(self._settlements.count(email, now), end), now)
        self._claimed()
        return len(emails)

    def _accept(self, lease: Lease, now: float) -> None:
        self._leases.add(lease)
        if outcome := self._settlements.without_attempt(lease.email, now):
            self._settler.put(lease, outcome)
            return
        self.put(lease)

    def put(self, lease: Lease, place: int | None = None) -> None:
        """Let an e-mail be sent. `place` is its place in the queue, by default the last."""
        kind = self._kinds.get(lease.email.key)
        lease.known_until, lease.required = 0.0, bool(kind and kind.required)
        self.window.put(lease, urgent=bool(kind and kind.rank == "high"), place=place)

    async def _give_back(self) -> None:
        """Give back the e-mails that nobody has begun, so that another process can send them."""
        leases = self.window.clear()
        held = [lease.email for lease in leases if lease.held]
        try:
            if held:
                await self._outbox.release(held)
        except StoreError as exc:
            log.warning("some e-mails could not be given back, so they wait until their leases end: %s", exc)
        finally:
            for lease in leases:
                self._leases.discard(lease)


class Looks:
    """Looks at users' documents: whether a lease is still held, and whether the user still wants the e-mail.

    One look is for many e-mails: those that workers are about to send, and the next ones of the window.
    """

    def __init__(self, outbox: Outbox, window: Window) -> None:
        self._outbox = outbox
        self._window = window
        self._asked: dict[Lease, asyncio.Future[None]] = {}
        self._wake = asyncio.Event()

    async def __call__(self, lease: Lease) -> None:
        """Find out whether the user wants an e-mail, and whether the lease is held."""
        future = self._asked.get(lease)
        if not future or future.done():  # whoever asked may have given up
            future = self._asked[lease] = asyncio.get_running_loop().create_future()
        self._wake.set()
        await future

    def prefetch(self) -> None:
        """Look soon if there is one among the next e-mails that has not been looked at."""
        if not all(lease.known for lease in self._window.next(self._ahead() // 2)):
            self._wake.set()

    def _ahead(self) -> int:
        """Return how many e-mails will be begun while a look holds."""
        return min(AHEAD, round(self._window.pace * VALID))

    async def run(self) -> None:
        """Look whenever it is needed, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            asked, self._asked = self._asked, {}
            ahead = [lease for lease in self._window.next(self._ahead()) if not lease.known]
            try:
                await self._look([*asked, *ahead])
            finally:
                for future in asked.values():
                    if not future.done():
                        future.set_result(None)

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
