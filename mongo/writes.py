"""Writes to users' documents that share calls: each is atomic and has its own outcome."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pymongo
from pymongo.errors import PyMongoError, WriteConcernError

from mongo.batcher import Batcher
from mongo.connection import Collection
from mongo.document import SIMPLE, JSONObject
from mongo.errors import write_error

CALLS_AT_ONCE: Final = 8
"""Shared calls in flight, without those that are late. Under light load each holds one request, sent at once."""
FREE_REQUESTS: Final = 32
"""While fewer requests than this are in flight, a new one starts at once. Smaller shared calls would be more work
in sum; with the largest possible, MongoDB and this process would wait for each other in turn."""
SHARED_TIMEOUT: Final = 2.0
"""Timeout of a shared call in seconds. A request that stalls one is retried alone, so it delays the others once."""
BATCH_LIMIT: Final = 64
"""Requests in one shared call. 16 KiB of JSON become at most 80 KiB of BSON, twice that with an e-mail: this many stay
below MongoDB's limit of 16 MiB a command."""
QUEUE_LIMIT: Final = 4096
"""Requests that may wait for a shared call."""


@dataclass(frozen=True, slots=True)
class Write:
    """A write to one document that may share a call with others. Without upsert it must be safe to repeat."""

    filter: JSONObject
    update: JSONObject | list[JSONObject]
    upsert: bool = False
    array_filters: list[Mapping[str, Any]] | None = None

    def statement(self) -> JSONObject:
        """Return it as the `update` command takes it."""
        statement: JSONObject = {"q": self.filter, "u": self.update, "upsert": self.upsert, "collation": SIMPLE}
        return statement | ({"arrayFilters": self.array_filters} if self.array_filters else {})


class Writes:
    """A queue of writes to one collection. Each queue shares calls only among its own writes."""

    def __init__(self, collection: Collection, *, free_requests: int = FREE_REQUESTS) -> None:
        self._collection = collection
        self.used_at = -math.inf
        """When a write was last begun or done, by the clock of the event loop."""
        self._batcher: Batcher[Write, bool | None] = Batcher(
            self.write_together,
            calls_at_once=CALLS_AT_ONCE,
            free_items=free_requests,
            batch_limit=BATCH_LIMIT,
            queue_limit=QUEUE_LIMIT,
        )

    def attempts(self) -> Callable[[Write], Awaitable[bool]]:
        """Return a function that makes one attempt at a write and returns whether it found its document.

        The first attempt shares a call. The others do not: one of the writes may have made the call fail as a whole.

        The function raises PyMongo's errors, and `QueueFull`.
        """
        shared, self.used_at = True, asyncio.get_running_loop().time()

        async def attempt(write: Write) -> bool:
            nonlocal shared
            found = None
            if shared:
                shared = False
                found = await self._batcher(write)
            found = await self.write_alone(write) if found is None else found
            self.used_at = asyncio.get_running_loop().time()
            return found

        return attempt

    async def write_together(self, writes: Sequence[Write]) -> Sequence[bool | Exception | None]:
        """Make several writes in one call.

        Return for each whether it found its document, or its error, or `None` where the reply does not say whether
        it found one: then it changed nothing, or may be repeated.
        """
        with pymongo.timeout(SHARED_TIMEOUT):
            if len(writes) == 1:
                return [await self.write_alone(writes[0])]
            # The driver's bulk_write sends the same command, with several times the work for each write.
            reply = await self._collection.database.command(
                "update",
                self._collection.name,
                updates=[write.statement() for write in writes],
                ordered=False,
                writeConcern=self._collection.write_concern.document,
                codec_options=self._collection.codec_options,  # a validator's refusal quotes the team's own values
            )
        return _outcomes(writes, reply)

    async def write_alone(self, write: Write) -> bool:
        """Make one write; return whether it found its document. Raises PyMongo's errors."""
        if write.upsert:
            await self._collection.find_one_and_update(
                write.filter, write.update, {"_id": 1}, upsert=True, collation=SIMPLE
            )
            return True
        result = await self._collection.update_one(
            write.filter, write.update, array_filters=write.array_filters, collation=SIMPLE
        )
        return bool(result.matched_count)


def _outcomes(writes: Sequence[Write], reply: Mapping[str, Any]) -> Sequence[bool | PyMongoError | None]:
    errors = reply.get("writeErrors", ())
    outcomes: list[bool | PyMongoError | None] = [True] * len(writes)
    if concern := reply.get("writeConcernError"):
        outcomes = [WriteConcernError(concern["errmsg"], concern["code"])] * len(writes)
    for error in errors:
        outcomes[error["index"]] = write_error(error)
    if reply["n"] + len(errors) < len(writes):
        # Some found nothing, and the reply does not say which. An upsert either finds, inserts or fails.
        for n, write in enumerate(writes):
            if outcomes[n] is True and not write.upsert:
                outcomes[n] = None
    return outcomes


async def update_many(collection: Collection, statements: Sequence[JSONObject]) -> int:
    """Make several updates in one call; return how many documents they found. Raises PyMongo's errors."""
    reply = await collection.database.command(
        "update",
        collection.name,
        updates=statements,
        ordered=False,
        writeConcern=collection.write_concern.document,
        codec_options=collection.codec_options,
    )
    if errors := reply.get("writeErrors"):
        raise write_error(errors[0])
    if concern := reply.get("writeConcernError"):
        raise WriteConcernError(concern["errmsg"], concern["code"])
    found: int = reply["n"]
    return found
