"""What the service does for its collections beside serving: indexes are made, and dead letters that are old leave."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from pymongo.errors import PyMongoError

from config.checks import DEAD_MAIL
from mongo.dead_mail import DeadMail
from mongo.errors import StoreError
from mongo.indexes import Index

log = logging.getLogger("notifier.mongo")

INTERVAL: Final = 60.0
"""Seconds between two looks. An index that is missed is made at once."""
PAUSE: Final = 2.0
"""Seconds after a failure of MongoDB."""
HEAD_START: Final = 1.0
"""Seconds for which the start waits for the indexes: where there are few documents, they are there by then."""


class Upkeep:
    """Keeps the indexes, `due` first, and deletes the dead letters that are older than `days`."""

    def __init__(self, due: Index, dead_mail: DeadMail, days: float | None) -> None:
        letters = due.collection.database[DEAD_MAIL]
        self._due = due
        self._others = (
            Index(due.collection, "notifier.suppression.at", sparse=True),
            Index(letters, "collection", "died_at"),
            Index(letters, "user_id"),
        )
        self._dead_mail = dead_mail
        self._days = days
        self._looked = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Do so meanwhile."""
        self._due.is_missing = True
        task = asyncio.create_task(self._run())
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(HEAD_START):
                    await self._looked.wait()
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        while True:
            pause = INTERVAL
            try:
                for index in (self._due, *self._others):
                    await index.make()
                self._looked.set()
                if self._days is not None:
                    await self._dead_mail.expire(self._days)
            except (StoreError, PyMongoError, TimeoutError):
                log.debug("MongoDB fails; its indexes are looked at again soon")
                pause = PAUSE
            except Exception:
                log.exception("unexpected error: indexes are not looked after")
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._due.lost.wait()
