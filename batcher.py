"""Group commit: calls that wait at the same moment share one.

The technique is that of database logs (DeWitt et al., "Implementation Techniques for Main Memory Database Systems",
SIGMOD 1984, section 5.2): whoever finds nothing under way goes at once, and those who come meanwhile go together, next.
Nobody waits for company, but for those under way while they are many: light load goes alone, each at once.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Final, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


LATE: Final = 0.05
"""Seconds after which those under way are waited for no longer: something holds them up that need not hold others."""
PATIENCE: Final = 4
"""As many times the `flights` may be under way while most of them are late."""


class QueueFull(Exception):
    """More calls wait than may; this one was not made."""


class Batcher(Generic[Item, Result]):
    """Makes calls in batches of at most `most` items of a kind, with at most `flights` batches under way at once.

    While `few` items or more are under way, those who come wait and go together. Batches that are `LATE` count neither
    for this nor as `flights`, until there are `PATIENCE` times as many.

    `run` takes the items of a batch and returns as many outcomes, in order: a result, or the exception that the
    caller of this one item gets. What it raises, all of them get. At most `queue` items wait.
    """

    def __init__(  # noqa: PLR0913 - all but the first by name
        self,
        run: Callable[[Sequence[Item]], Awaitable[Sequence[Result | Exception]]],
        *,
        flights: int,
        few: int,
        most: int,
        queue: int,
        kind: Callable[[Item], Hashable] = lambda _: None,
    ) -> None:
        self._run = run
        self._flights = flights
        self._few = few
        self._most = most
        self._free = queue
        self._kind = kind
        self._waiting: dict[Hashable, deque[tuple[Item, asyncio.Future[Result]]]] = {}
        self._under_way: dict[asyncio.Task[None], int] = {}  # and how many items it counts for

    async def __call__(self, item: Item) -> Result:
        """Return what came of `item`. Who is cancelled leaves the queue, but not a batch that is under way.

        Raises `QueueFull`, or what `run` raised or returned for it.
        """
        if not self._free:
            raise QueueFull
        self._free -= 1
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._waiting.setdefault(self._kind(item), deque()).append((item, future))
        if self._may_depart():
            loop.call_soon(self._depart)  # after all who come in the same turn of the event loop
        return await future

    def _may_depart(self) -> bool:
        in_time = [items for items in self._under_way.values() if items]
        room = len(in_time) < self._flights and len(self._under_way) < PATIENCE * self._flights
        return room and sum(in_time) < self._few

    def _depart(self) -> None:
        while self._waiting and self._may_depart():
            if batch := self._next_batch():
                task = asyncio.create_task(self._fly(batch))
                self._under_way[task] = len(batch)
                task.add_done_callback(self._arrived)
                asyncio.get_running_loop().call_later(LATE, self._is_late, task)

    def _is_late(self, task: asyncio.Task[None]) -> None:
        if task in self._under_way:
            self._under_way[task] = 0
            self._depart()

    def _arrived(self, task: asyncio.Task[None]) -> None:
        del self._under_way[task]
        self._depart()

    def _next_batch(self) -> Sequence[tuple[Item, asyncio.Future[Result]]]:
        """Take the first of a kind off the queue; what is left of it waits behind the other kinds."""
        kind = next(iter(self._waiting))
        queue = self._waiting.pop(kind)
        leaving = [queue.popleft() for _ in range(min(self._most, len(queue)))]
        self._free += len(leaving)
        if queue:
            self._waiting[kind] = queue
        return [(item, future) for item, future in leaving if not future.done()]

    async def _fly(self, batch: Sequence[tuple[Item, asyncio.Future[Result]]]) -> None:
        outcomes: Sequence[Result | Exception]
        try:
            outcomes = await self._run([item for item, _ in batch])
        except Exception as exc:  # noqa: BLE001 - it is the callers'
            outcomes = [exc] * len(batch)
        for (_, future), outcome in zip(batch, outcomes, strict=True):
            if future.done():
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)
