"""MongoDB's clock: one for all processes, whatever the clocks of their machines show."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from mongo.connection import Database
from mongo.errors import PING_DEADLINE, persist


class Clock:
    """Tells MongoDB's time: its last reading, and the monotonic time since. Our own clock counts until the first.

    It is behind by at most the time that a reply takes.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._read_at = time.monotonic()
        self._time = datetime.now(UTC)

    def now(self) -> datetime:
        return self._time + timedelta(seconds=time.monotonic() - self._read_at)

    def seconds_since(self, moment: datetime) -> float:
        """Return the seconds since a moment that MongoDB's clock told; never negative."""
        return max(0.0, (self.now() - moment).total_seconds())

    async def sync(self, deadline: float | None = PING_DEADLINE) -> float:
        """Read the clock (the `hello` command's `localTime`); return by how many seconds it was set back since."""
        asked, database = self.now(), self._database
        hello = await persist(lambda _: database.command("hello", codec_options=database.codec_options), deadline)
        self._time, self._read_at = hello["localTime"], time.monotonic()
        return max(0.0, (asked - self._time).total_seconds())
