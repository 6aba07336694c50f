"""Writes to users' documents that share calls: each is atomic and has its own outcome."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace

from pymongo.errors import DuplicateKeyError

from mongo.batcher import FREE_REQUESTS, Batcher
from mongo.connection import Collection
from mongo.document import SIMPLE
from mongo.errors import Conflict
from mongo.lanes import Calls, Outcome, Write


class Writes:
    """Writes to single documents of a collection, which share a call with those that wait beside them."""

    def __init__(
        self, collection: Collection, calls: Calls, patience: float, *, free_requests: int = FREE_REQUESTS
    ) -> None:
        self._collection = collection
        self._calls = calls
        self.used_at = -math.inf
        """When a write was last begun or done, by the clock of the event loop."""
        self._batcher: Batcher[Write, Outcome] = Batcher(
            self.together,
            patience=patience,
            free_items=free_requests,
            kind=lambda write: write.numbered,
        )

    async def make(self, write: Write, *, attempt: int) -> bool:
        """Update a document, or insert it if the write is an upsert; return whether the conditions held.

        The first attempt (number 0) shares a call, later ones do not: one of the writes may have failed the whole call.
        Raises `Conflict`, `Unavailable`, PyMongo's errors, `TimeoutError`, or `QueueFull`.
        """
        loop = asyncio.get_running_loop()
        self.used_at = loop.time()
        try:
            outcome = None if attempt else await self._batcher(write)
            return await self.alone(write) if outcome is None else bool(outcome)
        except DuplicateKeyError as exc:
            if list((exc.details or {}).get("keyPattern", {"_id": 1})) != ["_id"]:
                raise Conflict("a unique index") from None  # on the address, say, which all new users share
            # Either a condition failed, so that the server tried to insert, or another upsert inserted in between.
            # Without upsert there is only one meaning left.
            return await self.alone(replace(write, upsert=False))
        finally:
            self.used_at = loop.time()

    async def together(self, writes: Sequence[Write]) -> Sequence[Outcome]:
        """Make several writes in one call; return the outcome of each. Raises as `Calls.run`."""
        return await self._calls.run(writes) if len(writes) > 1 else [await self.alone(writes[0])]

    async def alone(self, write: Write) -> bool:
        """Make one write, as the driver does it; return whether it found its document. Raises PyMongo's errors."""
        conditions = write.conditions(guarded=True)
        if write.upsert:
            await self._collection.find_one_and_update(
                conditions, write.update, {"_id": 1}, upsert=True, collation=SIMPLE
            )
            return True
        result = await self._collection.update_one(
            conditions, write.update, array_filters=write.array_filters, collation=SIMPLE
        )
        return bool(result.matched_count)
