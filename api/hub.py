"""All streams of a process. Each is sent an event whenever its user's notifications change.

While there are streams, one MongoDB change stream serves all of them. A change makes the streams of its user pending.
The inboxes of all pending users are read together, and each stream holds only the newest event. So memory depends
neither on the number of changes nor on how slowly a client reads.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from aiohttp import web

from api.bodies import ClientGone
from api.stream import Stopping, Stream, TooManyOfProcess, TooManyOfUser, Unreadable, encode
from mongo.changes import Changes, NotReplicated
from mongo.connection import end
from mongo.errors import Unavailable
from ops.metrics import Metrics

log = logging.getLogger("notifier.streams")

STREAMS_PER_USER: Final = 8
"""Streams of one user in one process."""
FIRST_EVENT_TIMEOUT: Final = 10.0
"""Seconds for the first event of a new stream: the deadline of any operation."""
GONE_INTERVAL: Final = 1.0
"""Seconds between two checks for clients that have left, which aiohttp reports only when a handler writes."""
READ_PAUSE: Final = 0.02
"""Seconds between two queries, so that under load users share one. A single change does not wait."""
READ_LIMIT: Final = 100
"""Inboxes in one query."""
PAUSE: Final = (0.25, 0.75)
"""Shortest and longest pause, in seconds, after MongoDB has failed."""


@dataclass(slots=True)
class Pending:
    """Streams of a user that await an event, and when the first change that it reports was written."""

    streams: set[Stream]
    at: datetime | None


class Hub:
    def __init__(self, changes: Changes, metrics: Metrics, limit: int) -> None:
        self._changes = changes
        self._metrics = metrics
        self._limit = limit
        self._streams: dict[str, set[Stream]] = {}
        self._count = 0
        self._pending: dict[str, Pending] = {}
        self._any_stream = asyncio.Event()
        self._any_pending = asyncio.Event()
        self._following = False
        self._stopping = False
        self._failing: set[str] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(_forever(turn)) for turn in (self._follow, self._read, self._drop_gone)]
        try:
            yield
        finally:
            await end(*tasks)

    def close(self) -> None:
        """End every stream and refuse new ones, so that their clients turn to another process."""
        self._stopping = True
        self._end(self._all(), Stopping)

    @asynccontextmanager
    async def listen(self, user_id: str, request: web.Request) -> AsyncIterator[Stream]:
        """Open a stream of the user's inbox, and wait for its first event.

        Raises `StreamEnd`, `NotReplicated`, or `Unavailable` when MongoDB did not yield the first event in time.
        """
        if self._stopping:
            raise Stopping
        if len(self._streams.get(user_id, ())) >= STREAMS_PER_USER:
            raise TooManyOfUser
        if self._count >= self._limit:
            raise TooManyOfProcess
        stream = Stream(request, self._metrics, self._changes.clock.seconds_since)
        streams = self._streams.setdefault(user_id, set())
        streams.add(stream)
        self._count += 1
        self._metrics.streams.set(self._count)
        self._any_stream.set()
        if self._following:  # otherwise once it is, so that no change is lost between the event and the change stream
            self._mark_pending(user_id, {stream})
        try:
            await self._first_event(stream)
            yield stream
        finally:
            streams.discard(stream)
            if not streams:
                del self._streams[user_id]
            self._count -= 1
            self._metrics.streams.set(self._count)

    async def _first_event(self, stream: Stream) -> None:
        try:
            async with asyncio.timeout(FIRST_EVENT_TIMEOUT):
                await stream.peek()
        except TimeoutError:
            raise Unavailable from None

    # --- from the change stream to the streams -------------------------------------------------------

    async def _follow(self) -> None:
        """While there are streams, mark those as pending whose inboxes change."""
        await self._any_stream.wait()
        try:
            await self._follow_changes()
        except NotReplicated:
            self._end(self._all(), NotReplicated)
            await asyncio.sleep(PAUSE[0])  # time for them to leave
        except Unavailable as exc:
            await self._pause_after("the change stream", exc)
        if not self._streams:
            self._any_stream.clear()

    async def _follow_changes(self) -> None:
        """Follow the change stream while there are streams. All begin with what their inboxes are once it is open."""
        try:
            async with aclosing(self._changes.follow()) as changes:
                async for change in changes:
                    if not self._following:
                        self._following = True
                        self._works_again("the change stream")
                        for user_id, streams in self._streams.items():
                            self._mark_pending(user_id, streams)
                    if change and change.user_id in self._streams:
                        self._mark_pending(change.user_id, self._streams[change.user_id], change.at)
                    if not self._streams:
                        return
        finally:
            self._following = False

    def _mark_pending(self, user_id: str, streams: set[Stream], at: datetime | None = None) -> None:
        if not streams:
            return
        pending = self._pending.setdefault(user_id, Pending(set(), at))
        pending.streams.update(streams)
        pending.at = pending.at or at
        self._any_pending.set()

    async def _read(self) -> None:
        """Read the inboxes that are pending, and offer them to their streams."""
        await self._any_pending.wait()
        batch = {user_id: self._pending.pop(user_id) for user_id in list(itertools.islice(self._pending, READ_LIMIT))}
        if not self._pending:
            self._any_pending.clear()
        try:
            await self._offer(batch)
        except Unavailable as exc:
            for user_id, pending in batch.items():
                self._mark_pending(user_id, pending.streams & self._streams.get(user_id, set()), pending.at)
            await self._pause_after("reading inboxes", exc)
        else:
            self._works_again("reading inboxes")
            await asyncio.sleep(READ_PAUSE)

    async def _offer(self, batch: Mapping[str, Pending]) -> None:
        """Read the inboxes together; if that fails, one by one, so that an unreadable document harms no other user."""
        try:
            inboxes = await self._changes.inboxes(batch)
            events = {user_id: encode(inboxes[user_id]) for user_id in batch}
        except Unavailable:
            raise
        except Exception:
            if len(batch) > 1:
                for user_id, pending in batch.items():
                    await self._offer({user_id: pending})
                return
            log.exception("unexpected error: an inbox cannot be read")
            for pending in batch.values():
                self._end(pending.streams, Unreadable)
        else:
            for user_id, pending in batch.items():
                for stream in pending.streams:
                    stream.offer(events[user_id], pending.at)

    async def _drop_gone(self) -> None:
        await asyncio.sleep(GONE_INTERVAL)
        self._end((stream for stream in self._all() if stream.has_begun and stream.is_gone), ClientGone)

    def _all(self) -> Iterator[Stream]:
        return itertools.chain.from_iterable(self._streams.values())

    def _end(self, streams: Iterable[Stream], reason: type[Exception]) -> None:
        for stream in streams:
            stream.close(reason)

    async def _pause_after(self, what: str, exc: Unavailable) -> None:
        """Log a failure once until it is over, and wait before the next attempt."""
        if what not in self._failing:
            log.warning("%s failed and will be retried: %s", what, exc)
            self._failing.add(what)
        await asyncio.sleep(random.uniform(*PAUSE))

    def _works_again(self, what: str) -> None:
        if what in self._failing:
            log.info("%s works again", what)
            self._failing.discard(what)


async def _forever(turn: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await turn()
        except Exception:
            log.exception("unexpected error: streams wait")
            await asyncio.sleep(PAUSE[1])


HUB: Final = web.AppKey("HUB", Hub)
