"""MongoDB's clock: one for all processes, whatever the clocks of their machines show."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Final

from mongo.connection import Connection
from mongo.errors import PING_DEADLINE, Unavailable, persist

log = logging.getLogger("notifier.mongo")

SYNC_INTERVAL: Final = 10.0
"""Seconds between two readings."""


class Clock:
    """Tells MongoDB's time: its last reading, and the monotonic time since. Our own clock counts until the first.

    It is behind by at most the time that a reply takes.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._database = connection.database
        self._read_at = time.monotonic()
        self._time = datetime.now(UTC)

    def now(self) -> datetime:
        """Return MongoDB's time."""
        return self._time + timedelta(seconds=time.monotonic() - self._read_at)

    def seconds_since(self, moment: datetime) -> float:
        """Return the seconds since a moment that MongoDB's clock told; never negative."""
        return max(0.0, (self.now() - moment).total_seconds())

    async def sync(self, deadline: float | None = PING_DEADLINE) -> None:
        """Read the clock (the `hello` command's `localTime`). Raises `Unavailable`."""
        hello = await persist(
            lambda _: self._database.command("hello", codec_options=self._database.codec_options), deadline
        )
        self._time, self._read_at = hello["localTime"], time.monotonic()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Read the clock again and again meanwhile. While that fails, log why."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _run(self) -> None:
        told = ""
        while True:
            reason = ""
            try:
                await self.sync()
            except Unavailable as exc:
                reason = f"{await self._connection.diagnosis() or exc}"
            if reason != told:
                log.warning("%s", reason or "MongoDB answers again.")
                told = reason
            await asyncio.sleep(SYNC_INTERVAL)
