"""Group commit: calls that wait at the same moment share one.

The technique is that of database logs (DeWitt et al., "Implementation Techniques for Main Memory Database Systems",
SIGMOD 1984, section 5.2). While little is in flight, an item leaves at once; otherwise items wait until less is in
flight, and leave together. Under light load nothing waits.
"""

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Final, Generic, NamedTuple, TypeVar

from pymongo.errors import DuplicateKeyError

from mongo.connection import Collection
from mongo.document import SIMPLE
from mongo.errors import Busy
from mongo.lanes import Calls, Outcome, Write

Item = TypeVar("Item")
Result = TypeVar("Result")

CALLS_AT_ONCE: Final = 8  # in flight, without those that are late; under light load each holds one request
FREE_REQUESTS: Final = 32
"""While fewer requests than this are in flight, a new one starts at once. A lower limit makes many small calls, which
cost more CPU in total; with the largest possible, MongoDB and this process would wait for each other in turn."""
BATCH_LIMIT: Final = 64
"""Requests in one shared call. 16 KiB of JSON become at most 80 KiB of BSON, twice that with an e-mail: this many stay
below MongoDB's limit of 16 MiB a command."""
QUEUE_LIMIT: Final = 4096  # requests that may wait for a shared call
LATE: Final = 0.05  # seconds after which a batch in flight stops holding back new ones
LATE_FACTOR: Final = 4  # with late batches, up to this many times `CALLS_AT_ONCE` may be in flight


class _Waiting(NamedTuple, Generic[Item, Result]):
    item: Item
    future: asyncio.Future[Result]
    since: float


class Batcher(Generic[Item, Result]):
    """Sends items in batches of one kind.

    `run` sends a batch and returns one outcome for each of its items, in order: a result, or an exception for the
    caller of that item. An exception that it raises goes to every caller of the batch.

    While fewer than `free_items` are in flight, a new item leaves at once. None waits longer than `patience` seconds.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Awaitable[Sequence[Result | Exception]]],
        *,
        patience: float,
        free_items: int = FREE_REQUESTS,
        kind: Callable[[Item], Hashable] = lambda _: None,
    ) -> None:
        self._run = run
        self._free_items = free_items
        self._free_places = QUEUE_LIMIT
        self._patience = patience
        self._kind = kind
        self._waiting: dict[Hashable, deque[_Waiting[Item, Result]]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._in_flight: dict[object, int] = {}  # the task of each batch, with its items; 0 once it is late

    async def __call__(self, item: Item) -> Result:
        """Return the outcome. A cancelled caller leaves the queue, but not a batch in flight. May raise `Busy`."""
        if not self._free_places:
            raise Busy
        self._free_places -= 1
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._send)  # items of the same turn of the event loop leave together
        self._waiting.setdefault(self._kind(item), deque()).append(_Waiting(item, future, loop.time()))
        if not self._timer:  # one for all, as a timer for each item costs more than its place in a batch
            self._timer = loop.call_later(self._patience, self._expire)
        return await future

    def _may_send(self) -> bool:
        in_time = [items for items in self._in_flight.values() if items]
        if len(in_time) >= CALLS_AT_ONCE or len(self._in_flight) >= LATE_FACTOR * CALLS_AT_ONCE:
            return False
        return sum(in_time) < self._free_items

    def _send(self) -> None:
        while self._waiting and self._may_send():
            if batch := self._next_batch():
                task = asyncio.create_task(self._run_batch(batch))
                self._in_flight[task] = len(batch)
                asyncio.get_running_loop().call_later(LATE, self._is_late, task)

    def _is_late(self, task: asyncio.Task[None]) -> None:
        if task in self._in_flight:
            self._in_flight[task] = 0
            self._send()

    def _expire(self) -> None:
        loop, self._timer = asyncio.get_running_loop(), None
        for kind, queue in list(self._waiting.items()):
            while queue and queue[0].since + self._patience <= loop.time():
                self._free_places += 1
                if not (future := queue.popleft().future).done():
                    future.set_exception(TimeoutError())
            if not queue:
                del self._waiting[kind]
        if self._waiting:
            oldest = min(queue[0].since for queue in self._waiting.values())
            self._timer = loop.call_at(oldest + self._patience, self._expire)

    def _next_batch(self) -> Sequence[_Waiting[Item, Result]]:
        """Take the first items of one kind from the queue. What is left of the kind goes behind the other kinds."""
        kind = next(iter(self._waiting))
        queue = self._waiting.pop(kind)
        leaving = [queue.popleft() for _ in range(min(BATCH_LIMIT, len(queue)))]
        self._free_places += len(leaving)
        if queue:
            self._waiting[kind] = queue
        return [waiting for waiting in leaving if not waiting.future.done()]

    async def _run_batch(self, batch: Sequence[_Waiting[Item, Result]]) -> None:
        outcomes: Sequence[Result | Exception]
        try:
            outcomes = await self._run([waiting.item for waiting in batch])
        except Exception as exc:  # noqa: BLE001 - it belongs to the callers
            outcomes = [exc] * len(batch)
        finally:  # the next batch leaves before the callers of this one go on, so that MongoDB need not wait for them
            del self._in_flight[asyncio.current_task()]
            self._send()
        for waiting, outcome in zip(batch, outcomes, strict=True):
            if not waiting.future.done():
                if isinstance(outcome, Exception):
                    waiting.future.set_exception(outcome)
                else:
                    waiting.future.set_result(outcome)


class Writes:
    """Writes to single documents of a collection, which share a call with those that wait beside them."""

    def __init__(self, collection: Collection, calls: Calls, *, free_requests: int = FREE_REQUESTS) -> None:
        self._collection = collection
        self._calls = calls
        self.used_at = -math.inf  # when a write was last begun or done, by the clock of the event loop
        self._batcher: Batcher[Write, Outcome] = Batcher(
            self.together, patience=calls.patience.operation, free_items=free_requests, kind=attrgetter("numbered")
        )

    async def make(self, write: Write, *, attempt: int) -> bool:
        """Update a document, or insert it if the write is an upsert; return whether the conditions held."""
        loop = asyncio.get_running_loop()
        self.used_at = loop.time()
        try:
            # Later attempts share no call: one of the writes may have failed the whole call.
            outcome = None if attempt else await self._batcher(write)
            return await self.alone(write) if outcome is None else bool(outcome)
        except DuplicateKeyError as exc:
            if list((exc.details or {}).get("keyPattern", {"_id": 1})) != ["_id"]:
                raise  # a unique index on the address, say, which all new users share
            # Either a condition failed, so that the server tried to insert, or another upsert inserted in between.
            # Without upsert there is only one meaning left.
            return await self.alone(replace(write, upsert=False))
        finally:
            self.used_at = loop.time()

    async def together(self, writes: Sequence[Write]) -> Sequence[Outcome]:
        return await self._calls.run(writes) if len(writes) > 1 else [await self.alone(writes[0])]

    async def alone(self, write: Write) -> bool:
        """Make one write, as the driver does it; return whether it found its document. Raises PyMongo's errors."""
        conditions, update, collection = write.filter | write.guard, write.update, self._collection
        if write.upsert:
            await collection.find_one_and_update(conditions, update, {"_id": 1}, upsert=True, collation=SIMPLE)
            return True
        result = await collection.update_one(conditions, update, array_filters=write.array_filters, collation=SIMPLE)
        return bool(result.matched_count)
