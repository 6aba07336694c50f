"""The live inbox: who listens to which user, and what they are told when that user's notifications change.

One change stream of MongoDB serves the whole process, while somebody listens. After a change its user's streams are
owed an event; the inboxes of all who are owed one are read together; and a stream holds one event at the most, the
newest. So nothing grows with the number of changes, nor with how slowly somebody reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import orjson
from aiohttp.abc import AbstractStreamWriter

from changes import Changes, HistoryLost, Inbox, NotReplicated
from metrics import Metrics
from store import Unavailable

log = logging.getLogger("notifier.live")

USER_LIMIT: Final = 8
"""Streams of one user in one process."""
KEEP_ALIVE: Final = 15.0
"""Seconds without an event after which a comment keeps proxies awake."""
STALL: Final = 10.0
"""Seconds within which a client must take what it is sent."""
FIRST_DEADLINE: Final = 10.0
"""Seconds within which a new stream must have its first event: as long as the store tries."""
SWEEP: Final = 1.0
"""Seconds until it is noticed that a client has gone: aiohttp tells a handler only when it writes."""
READ_PAUSE: Final = 0.02
"""Seconds between two queries: under load more users share one, and a single change does not wait."""
READ_AT_ONCE: Final = 100
"""Users whose inboxes are read by one query."""
RETRY_MS: Final = (1000, 5000)
"""Between these a client comes back: the thousands whom a process loses must not come to the next one at once."""
BACKOFF_MIN, BACKOFF_MAX = 0.1, 5.0
"""Seconds to wait after a failure of MongoDB; they double."""
COMMENT: Final = b": keep-alive\n\n"
EMPTY: Final = Inbox()
"""That of a user who has no document."""


class Refused(Exception):
    """The base of why a stream is not to be had here and now."""


class UserFull(Refused):
    """The user has `USER_LIMIT` streams already."""


class ProcessFull(Refused):
    """The process has as many streams as it may."""


class Closing(Refused):
    """The process is about to stop."""


class Unreadable(Refused):
    """The user's document cannot be read: the log says why."""


class Gone(Exception):
    """The client has gone."""


class Stalled(Exception):
    """The client does not take what it is sent."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event as it travels (WHATWG HTML, section 9.2.6), and when the change that it tells was written."""

    text: bytes
    at: datetime | None


@dataclass(slots=True)
class Debt:
    """Whom an event is owed, and since when."""

    streams: set[Stream]
    at: datetime | None


class Stream:
    """One listener, and the one event that it is to be sent next."""

    def __init__(self, gone: Callable[[], bool]) -> None:
        self.gone = gone
        self.told = False
        self._event: Event | None = None
        self._end: type[Exception] | None = None
        self._woken = asyncio.Event()

    def offer(self, text: bytes, at: datetime | None) -> None:
        """Let this be sent next, in place of what was not sent yet."""
        self._event = Event(text, (self._event and self._event.at) or at)
        self.told = True
        self._woken.set()

    def close(self, reason: type[Exception]) -> None:
        """Let whoever waits for an event have this instead."""
        self._end = self._end or reason
        self._woken.set()

    async def first(self) -> Event:
        """Return the event to be sent next, as soon as there is one. Raises what the stream was closed with."""
        while True:
            if self._end:
                raise self._end
            if self._event:
                return self._event
            self._woken.clear()
            await self._woken.wait()

    async def next(self) -> Event:
        """Return each event once. Otherwise as `first`."""
        event = await self.first()
        self._event = None
        return event


class Live:
    """All streams of a process."""

    def __init__(self, changes: Changes, metrics: Metrics, limit: int) -> None:
        self.keep_alive = KEEP_ALIVE
        self.stall = STALL
        self._changes = changes
        self._metrics = metrics
        self._limit = limit
        self._streams: dict[str, set[Stream]] = {}
        self._count = 0
        self._owed: dict[str, Debt] = {}
        self._anybody = asyncio.Event()
        self._anything_owed = asyncio.Event()
        self._established = False
        self._token: Mapping[str, Any] | None = None
        self._closing = False
        self._following = _Outage("the change stream")
        self._reading = _Outage("reading inboxes")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve streams meanwhile."""
        tasks = [asyncio.create_task(_forever(turn)) for turn in (self._follow, self._tell, self._sweep)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def close(self) -> None:
        """End every stream at once, and refuse new ones: their clients find another process."""
        self._closing = True
        self._end(self._all(), Closing)

    @asynccontextmanager
    async def listen(self, user_id: str, gone: Callable[[], bool]) -> AsyncIterator[Stream]:
        """Return a stream of the user's inbox, with its first event; `gone` says whether the client has.

        Raises `Refused`; `NotReplicated`; or `Unavailable`, as MongoDB does not let the first event be told.
        """
        if self._closing:
            raise Closing
        if len(self._streams.get(user_id, ())) >= USER_LIMIT:
            raise UserFull
        if self._count >= self._limit:
            raise ProcessFull
        stream = Stream(gone)
        self._enter(user_id, stream)
        try:
            try:
                async with asyncio.timeout(FIRST_DEADLINE):
                    await stream.first()
            except TimeoutError:
                raise Unavailable from None
            yield stream
        finally:
            self._leave(user_id, stream)

    def _enter(self, user_id: str, stream: Stream) -> None:
        self._streams.setdefault(user_id, set()).add(stream)
        self._count += 1
        self._metrics.streams.set(self._count)
        self._anybody.set()
        if self._established:  # else it is owed once that is so: no change may fall between the event and the stream
            self._owe(user_id, {stream})

    def _leave(self, user_id: str, stream: Stream) -> None:
        self._streams[user_id].discard(stream)
        if not self._streams[user_id]:
            del self._streams[user_id]
        self._count -= 1
        self._metrics.streams.set(self._count)

    async def send(self, stream: Stream, writer: AbstractStreamWriter, until: float = math.inf) -> None:
        """Write events, and comments while there are none, until the stream is closed, or it is `until` (Unix time).

        Raises `Stalled`, or `ConnectionError` when the client has gone.
        """
        await self._write(writer, b"retry: %d\n\n" % random.randint(*RETRY_MS))
        with contextlib.suppress(Refused, NotReplicated, Gone):
            while (now := time.time()) < until:
                try:
                    async with asyncio.timeout(min(now + self.keep_alive, until) - now):
                        event = await stream.next()
                except TimeoutError:
                    await self._write(writer, COMMENT)
                else:
                    await self._write(writer, event.text)
                    self._count_sent(event)

    async def _write(self, writer: AbstractStreamWriter, chunk: bytes) -> None:
        try:
            async with asyncio.timeout(self.stall):
                await writer.write(chunk)
                await writer.drain()  # which `write` does once in 64 KiB
        except TimeoutError:
            self._metrics.streams_dropped.inc()
            raise Stalled from None

    def _count_sent(self, event: Event) -> None:
        self._metrics.stream_events.inc()
        if event.at:
            self._metrics.stream_lag.observe(max(0.0, time.time() - event.at.timestamp()))

    # --- from the change stream to the streams -------------------------------------------------------

    async def _follow(self) -> None:
        """Mark whose inbox changes as owed, while anybody listens."""
        await self._anybody.wait()
        try:
            await self._hear()
        except NotReplicated:
            self._end(self._all(), NotReplicated)
            await asyncio.sleep(BACKOFF_MIN)  # in which they leave
        except HistoryLost as exc:
            self._token = None
            await asyncio.sleep(self._following.failed(exc))
        except Unavailable as exc:
            await asyncio.sleep(self._following.failed(exc))
        if not self._streams:
            self._token = None  # who comes next is told everything, and need not hear what happened until then
            self._anybody.clear()

    async def _hear(self) -> None:
        told_before = self._token is not None  # and so nobody who was told has missed anything
        try:
            async with aclosing(self._changes.follow(self._token)) as changes:
                async for change in changes:
                    self._token = change.token
                    if not self._established:
                        self._established = True
                        self._following.worked()
                        for user_id, streams in self._streams.items():
                            self._owe(user_id, {s for s in streams if not (s.told and told_before)})
                    if change.user_id in self._streams:
                        self._owe(change.user_id, self._streams[change.user_id], change.at)
                    if not self._streams:
                        self._token = None
                        return
        finally:
            self._established = False

    def _owe(self, user_id: str, streams: set[Stream], at: datetime | None = None) -> None:
        if not streams:
            return
        debt = self._owed.setdefault(user_id, Debt(set(), at))
        debt.streams.update(streams)
        debt.at = debt.at or at
        self._anything_owed.set()

    async def _tell(self) -> None:
        """Read the inboxes that are owed, and offer them to their streams."""
        await self._anything_owed.wait()
        batch = {user_id: self._owed.pop(user_id) for user_id in list(itertools.islice(self._owed, READ_AT_ONCE))}
        if not self._owed:
            self._anything_owed.clear()
        try:
            await self._offer(batch)
        except Unavailable as exc:
            for user_id, debt in batch.items():
                self._owe(user_id, debt.streams & self._streams.get(user_id, set()), debt.at)
            await asyncio.sleep(self._reading.failed(exc))
        else:
            self._reading.worked()
            await asyncio.sleep(READ_PAUSE)

    async def _offer(self, batch: Mapping[str, Debt]) -> None:
        """Read these together; where that fails, one by one, so that a document that cannot be read harms no other."""
        try:
            inboxes = await self._changes.inboxes(batch)
            events = {user_id: _event(inboxes.get(user_id, EMPTY)) for user_id in batch}
        except Unavailable:
            raise
        except Exception:
            if len(batch) > 1:
                for user_id, debt in batch.items():
                    await self._offer({user_id: debt})
                return
            log.exception("unexpected error: an inbox cannot be read")
            for debt in batch.values():
                self._end(debt.streams, Unreadable)
        else:
            for user_id, debt in batch.items():
                for stream in debt.streams:
                    stream.offer(events[user_id], debt.at)

    async def _sweep(self) -> None:
        """Close the streams whose clients have gone."""
        await asyncio.sleep(SWEEP)
        self._end((stream for stream in self._all() if stream.told and stream.gone()), Gone)

    def _all(self) -> Iterator[Stream]:
        return itertools.chain.from_iterable(self._streams.values())

    def _end(self, streams: Iterable[Stream], reason: type[Exception]) -> None:
        for stream in streams:
            stream.close(reason)


def _event(inbox: Inbox) -> bytes:
    """Return the event; what other programs keep in the array may hold types that JSON has not."""
    data = {"elements": inbox.elements, "new": inbox.new, "latest": inbox.latest}
    return b"event: inbox\ndata: %b\n\n" % orjson.dumps(data, default=str)


class _Outage:
    """Logs once that something fails, and once that it works again."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._failures = 0

    def failed(self, exc: Exception) -> float:
        """Return the seconds to wait before the next attempt."""
        if not self._failures:
            log.warning("%s failed, and is tried again: %s", self._what, type(exc.__cause__ or exc).__name__)
        self._failures += 1
        return random.uniform(0.5, 1.0) * min(BACKOFF_MAX, BACKOFF_MIN * 2.0 ** min(self._failures, 16))

    def worked(self) -> None:
        """Count from the start again."""
        if self._failures:
            log.info("%s works again", self._what)
        self._failures = 0


async def _forever(turn: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await turn()
        except Exception:
            log.exception("unexpected error: streams wait")
            await asyncio.sleep(BACKOFF_MAX)
