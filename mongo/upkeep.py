"""What runs beside serving: making indexes, following MongoDB's clock, and expiring dead letters."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

from pymongo.errors import PyMongoError

from mongo import backlog
from mongo.connection import Clock, end
from mongo.dead_mail import DeadMail
from mongo.errors import StoreError, Unavailable
from mongo.indexes import Index
from mongo.outbox import Outbox

log = logging.getLogger("notifier.mongo")

INTERVAL: Final = 60.0
"""Seconds between two checks. An index that delivery finds missing is made at once."""
PAUSE: Final = 2.0
"""Seconds after a failure of MongoDB."""
HEAD_START: Final = 1.0
"""Seconds for which the start waits for the indexes: where there are few documents, they are there by then."""
SYNC_INTERVAL: Final = 10.0
"""Seconds between two readings of MongoDB's clock."""
SET_BACK: Final = 20.0
"""Seconds by which the clock may be set back without a correction. An e-mail is late by no more than this."""


class Upkeep:
    """Makes the indexes, `due` first, follows MongoDB's clock, and deletes dead letters older than `days`.

    A lease lasts `lease` seconds.
    """

    def __init__(self, clock: Clock, outbox: Outbox, dead_mail: DeadMail, lease: float, days: float | None) -> None:
        self._clock = clock
        self._outbox = outbox
        self._dead_mail = dead_mail
        self._lease = lease
        self._days = days
        letters = outbox.users.shared.database[dead_mail.letters.collection.name]
        self._indexes = (
            outbox.due,
            Index(outbox.users.shared, "notifier.suppression.at", sparse=True),
            Index(letters, "collection", "died_at"),
            Index(letters, "user_id"),
        )
        self._set_back: float | None = 0.0
        """Seconds by which the clock was set back since the last correction, else `None`. 0: unknown, at the start."""
        self._looked = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self._outbox.due.is_missing = True
        tasks = [asyncio.create_task(run) for run in (self._run(), self._follow_clock())]
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(HEAD_START):
                    await self._looked.wait()
            yield
        finally:
            await end(*tasks)

    async def _run(self) -> None:
        while True:
            pause = INTERVAL
            try:
                for index in self._indexes:
                    await index.make()
                self._looked.set()
                await self.correct()
                if self._days is not None:
                    await self._dead_mail.expire(self._days)
            except (StoreError, PyMongoError, TimeoutError):
                log.debug("MongoDB fails; its indexes are checked again soon")
                pause = PAUSE
            except Exception:
                log.exception("unexpected error: indexes are not checked")
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._outbox.due.lost.wait()

    async def _follow_clock(self) -> None:
        """Read the clock again and again. While MongoDB cannot be reached, log why."""
        told = ""
        while True:
            reason = ""
            try:
                await self.read_clock()
            except StoreError as exc:
                reason = f"{exc}"
            if reason != told:
                log.warning("%s", reason or "MongoDB answers again.")
                told = reason
            await asyncio.sleep(SYNC_INTERVAL)

    async def read_clock(self) -> None:
        if (seconds := await self._clock.sync()) > SET_BACK:
            log.warning("MongoDB's clock was set back by %.0f s, so e-mails that wait are due now", seconds)
            self._set_back = seconds + (self._set_back or 0.0)
            self._outbox.due.lost.set()

    async def correct(self) -> None:
        """Correct the due times once after each setback of the clock, and once after the start."""
        if self._set_back is not None and not self._outbox.due.is_missing:
            seconds = self._set_back
            try:
                await backlog.set_back(self._outbox, seconds, self._lease)
            except Unavailable:
                raise
            except StoreError as exc:  # because of a single document
                log.warning("some e-mails may be late, as MongoDB does not let them be changed: %s", exc)
            self._set_back = self._set_back - seconds or None
