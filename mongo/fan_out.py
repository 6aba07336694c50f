"""Creates for many users: batches of the same writes that single creates make, each with an outcome of its own."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from itertools import islice
from typing import Final

from pymongo.errors import PyMongoError

from mongo.batcher import BATCH_LIMIT
from mongo.creation import EXPLAINING, Creates, Creation, Recorded
from mongo.document import JSONObject
from mongo.errors import NO_ANSWER, StoreError, Unavailable

Outcome = Recorded | StoreError

BATCHES_AT_ONCE: Final = 3  # in a process while there are no single creates; more would wait for MongoDB
GENTLE_LIMIT: Final = 8
"""Creations in a batch beside single creates, which wait while a batch is made and while MongoDB is busy with it."""
CALM: Final = 1.0  # after this many seconds without a single create, batches are large


class Incomplete(Exception):
    """A create for many users failed for some, and asking again will not help. `failures` are by index.

    `not_owed` says that some of the others are owed no e-mail because their outboxes are full.
    """

    def __init__(self, failures: Mapping[int, StoreError], *, not_owed: bool = False) -> None:
        self.failures = failures
        self.not_owed = not_owed


class NotYetComplete(Incomplete):
    """A create for many users failed for some, of whom at least one may succeed later."""


class FanOut:
    """Creates for many users. Single creates come first: beside them, one small batch is under way at a time."""

    def __init__(self, creates: Creates) -> None:
        self._creates = creates
        self._users = creates.users
        self._few = asyncio.Semaphore(BATCHES_AT_ONCE)
        self._one = asyncio.Lock()

    async def __call__(self, creations: Iterable[Creation], *, gently: bool = False) -> list[Outcome]:
        """Return for each creation, in order, what it did, or its error.

        With `gently`, behave as though single creates were running, because another process may have some. Creations
        that are not done at the deadline of an operation are `Unavailable`.
        """
        loop = asyncio.get_running_loop()
        deadline, waiting = loop.time() + self._users.patience.operation, iter(creations)
        begun: list[Creation] = []
        outcomes: dict[str, Outcome] = {}

        async def work() -> None:
            while True:
                async with self._turn(gently=gently) as limit:
                    if not (batch := list(islice(waiting, limit))):
                        return
                    begun.extend(batch)
                    outcomes.update(await self._together(batch, deadline))

        await asyncio.gather(*(work() for _ in range(BATCHES_AT_ONCE)))
        while loop.time() < deadline:
            unsettled = [c for c in begun if c.id not in outcomes or type(outcomes[c.id]) is Unavailable]
            if not unsettled:
                break
            for start in range(0, len(unsettled), GENTLE_LIMIT):
                few = unsettled[start : start + GENTLE_LIMIT]
                async with self._turn(gently=gently):
                    await asyncio.gather(*(self._finish(creation, outcomes, deadline) for creation in few))
        return [outcomes.get(creation.id, Unavailable(NO_ANSWER)) for creation in begun]

    @asynccontextmanager
    async def _turn(self, *, gently: bool) -> AsyncIterator[int]:
        """Wait until a batch may be under way; give how many creations it may have."""
        async with self._few:
            calm = not gently and asyncio.get_running_loop().time() - self._users.writes.used_at > CALM
            async with nullcontext() if calm else self._one:
                yield BATCH_LIMIT if calm else GENTLE_LIMIT

    async def _together(self, batch: Sequence[Creation], deadline: float) -> Mapping[str, Outcome]:
        """Write a batch with one call; return the known outcomes by `id`, replays included."""
        outcomes: dict[str, Outcome] = {}
        if asyncio.get_running_loop().time() >= deadline:
            return outcomes
        # Whatever stays unclear has the condition on its key, so it is safe to do it alone.
        with suppress(PyMongoError, TimeoutError, Unavailable):
            async with asyncio.timeout_at(deadline):
                written = await self._users.writes.together([self._creates.sent(creation) for creation in batch])
            for creation, is_written in zip(batch, written, strict=True):
                if is_written is True:
                    outcomes[creation.id] = Recorded.CREATED
                    self._creates.mark_judged(creation)
            unclear = [creation for creation in batch if creation.id not in outcomes]
            users = await self._find(unclear)
            for creation in unclear:
                if outcome := creation.outcome(users.get(creation.write.filter["_id"], {})):
                    outcomes[creation.id] = outcome
        return outcomes

    async def _finish(self, creation: Creation, outcomes: dict[str, Outcome], deadline: float) -> None:
        """Make a creation in a brief call of its own: another program may have locked its document."""
        if (left := deadline - asyncio.get_running_loop().time()) > 0:
            try:
                brief = min(left, self._users.patience.shared_call)
                outcomes[creation.id] = await self._creates.record(creation, brief, alone=True)
            except StoreError as exc:
                outcomes[creation.id] = exc

    async def _find(self, creations: Sequence[Creation]) -> Mapping[object, JSONObject]:
        if not creations:
            return {}
        condition = {"_id": {"$in": [creation.write.filter["_id"] for creation in creations]}}
        users = await self._users.find(condition, EXPLAINING, majority=True, deadline=self._users.patience.shared_call)
        return {user["_id"]: user for user in users}
