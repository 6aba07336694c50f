"""Streams of Server-Sent Events (WHATWG HTML, section 9.2): an event whenever a user's notifications change.

While there are streams, one MongoDB change stream serves all of them. The inboxes of all users with a change are read
together, and each stream holds only the newest event, so memory depends on neither the changes nor slow clients.
aiohttp-sse would wait for a slow client only once in 64 KiB, and without a deadline.
"""

import asyncio
import logging
import math
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import datetime
from itertools import chain, islice
from typing import Final

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from api.bodies import ClientGone, json_bytes
from mongo.changes import Changes, NotReplicated
from mongo.connection import end
from mongo.errors import Unavailable
from mongo.inbox import Page
from ops.logs import Throttle
from ops.metrics import Metrics

log = logging.getLogger("notifier.streams")

EVENT_STREAM: Final = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
COMMENT: Final = b": keep-alive\n\n"
KEEP_ALIVE: Final = 15.0  # seconds without an event after which a comment keeps proxies from closing the connection
SEND_TIMEOUT: Final = 10.0  # seconds in which a client must accept what it is sent
RETRY_MS: Final = (1000, 5000)  # range of the time before a client reconnects, so that clients come one by one
SEND_BUFFER: Final = 64 * 1024  # bytes that the kernel may buffer for a stream; its default is megabytes
STREAMS_PER_USER: Final = 8  # in one process
FIRST_EVENT_TIMEOUT: Final = 10.0  # seconds for the first event of a new stream, as for any operation
GONE_INTERVAL: Final = 1.0  # seconds between two checks for clients that have left: aiohttp tells only writers
READ_LIMIT: Final = 100  # inboxes in one query
READ_PAUSE: Final = 0.02  # seconds between two queries, so that under load users share one
PAUSE: Final = (0.25, 0.75)  # shortest and longest pause, in seconds, after MongoDB has failed


class TooManyOfUser(Exception):
    """The user has reached the limit of streams in this process."""


class TooManyOfProcess(Exception):
    """The process has reached its limit of streams."""


class Stopping(Exception):
    """The process is about to stop."""


def encode(page: Page) -> bytes:
    data = {"elements": page.elements, "new": page.new, "latest": page.list[0] if page.list else None}
    if page.unseen is not None:
        data["unseen"] = page.unseen
    return b"event: inbox\ndata: %b\n" % json_bytes(data)


class Stream:
    """A client, and a mailbox for one event. A newer event replaces an unsent one, so a slow client costs nothing."""

    def __init__(self, request: web.Request, metrics: Metrics, seconds_since: Callable[[datetime], float]) -> None:
        self.request = request
        self.changed_at: datetime | None = None  # when the first change that the next event reports was written
        self._metrics = metrics
        self._seconds_since = seconds_since
        self._event = b""
        self._end: type[Exception] | None = None
        self._woken = asyncio.Event()

    def offer(self, event: bytes) -> None:
        self._event = event
        self._woken.set()

    def close(self, reason: type[Exception]) -> None:
        """End the stream. Anything that waits for an event gets this exception instead."""
        self._end = self._end or reason
        self._woken.set()

    async def peek(self) -> bytes:
        """Wait for the next event and leave it in place. Raises the reason that the stream was closed for."""
        while True:
            if self._end:
                raise self._end
            if self._event:
                return self._event
            self._woken.clear()
            await self._woken.wait()

    async def send(self, response: web.StreamResponse, until: float = math.inf) -> None:
        """Send events until the stream is closed, the client stops reading, or it is `until` (Unix seconds)."""
        response.force_close()  # a client that returns should be free to reach another process
        if transport := self.request.transport:
            transport.set_write_buffer_limits(high=0)  # drained means that the kernel has everything
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        try:
            if writer := await response.prepare(self.request):
                await self._send_events(writer, until)
        except TimeoutError:
            self._metrics.streams_dropped.inc()
            if transport:
                transport.abort()
        except ConnectionError:
            log.debug("the client of a stream has gone")

    async def _send_events(self, writer: AbstractStreamWriter, until: float) -> None:
        await _write(writer, b"retry: %d\n\n" % random.randint(*RETRY_MS))
        with suppress(Stopping, ClientGone, NotReplicated):
            while (now := time.time()) < until:
                try:
                    async with asyncio.timeout(min(KEEP_ALIVE, until - now)):
                        event = await self.peek()
                except TimeoutError:
                    await _write(writer, COMMENT)
                else:
                    changed_at, self.changed_at, self._event = self.changed_at, None, b""
                    await _write(writer, event)
                    self._metrics.stream_events.inc()
                    if changed_at:
                        self._metrics.stream_lag.observe(self._seconds_since(changed_at))


async def _write(writer: AbstractStreamWriter, chunk: bytes) -> None:
    async with asyncio.timeout(SEND_TIMEOUT):
        await writer.write(chunk)
        await writer.drain()  # `write` itself drains only once in 64 KiB


class Hub:
    def __init__(self, changes: Changes, metrics: Metrics, limit: int) -> None:
        self._changes = changes
        self._metrics = metrics
        self._limit = limit
        self._streams: dict[str, set[Stream]] = {}
        self._count = 0
        self._pending: dict[str, set[Stream]] = {}  # those that await an event
        self._any_stream = asyncio.Event()
        self._any_pending = asyncio.Event()
        self._following = False
        self.stopping = False  # once true, clients should turn to another process
        self._throttle = Throttle()
        metrics.watch(metrics.streams, lambda: self._count)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._forever(turn)) for turn in (self._follow, self._read, self._drop_gone)]
        try:
            yield
        finally:
            await end(*tasks)

    async def _forever(self, turn: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await turn()
            except Unavailable as exc:
                if self._throttle.allows("MongoDB"):
                    log.warning("streams wait for MongoDB: %s", exc)
                await asyncio.sleep(random.uniform(*PAUSE))
            except Exception:
                log.exception("unexpected error: streams wait")
                await asyncio.sleep(PAUSE[1])

    def close(self) -> None:
        """End every stream and refuse new ones."""
        self.stopping = True
        for stream in self._all():
            stream.close(Stopping)

    def _all(self) -> Iterator[Stream]:
        return chain.from_iterable(self._streams.values())

    @asynccontextmanager
    async def listen(self, user_id: str, request: web.Request) -> AsyncIterator[Stream]:
        """Open a stream of the user's inbox, and wait for its first event. Raises the reason to refuse it."""
        if self.stopping:
            raise Stopping
        if len(self._streams.get(user_id, ())) >= STREAMS_PER_USER:
            raise TooManyOfUser
        if self._count >= self._limit:
            raise TooManyOfProcess
        stream = Stream(request, self._metrics, self._changes.clock.seconds_since)
        streams = self._streams.setdefault(user_id, set())
        streams.add(stream)
        self._count += 1
        self._any_stream.set()
        if self._following:  # else `_follow` does it, so that no change is lost between event and change stream
            self._mark_pending(user_id, {stream})
        timer = asyncio.get_running_loop().call_later(FIRST_EVENT_TIMEOUT, stream.close, Unavailable)
        try:
            await stream.peek()
            timer.cancel()
            yield stream
        finally:
            streams.discard(stream)
            if not streams:
                del self._streams[user_id]
            self._count -= 1

    async def _follow(self) -> None:
        """While there are streams, mark those whose inboxes change; all of them when the change stream opens."""
        await self._any_stream.wait()
        try:
            async with aclosing(self._changes.follow()) as changes:
                async for change in changes:
                    if not self._following:
                        self._following = True
                        for user_id, streams in self._streams.items():
                            self._mark_pending(user_id, streams)
                    if change and change.user_id in self._streams:
                        self._mark_pending(change.user_id, self._streams[change.user_id], change.at)
                    if not self._streams:
                        return
        except NotReplicated:
            for stream in self._all():
                stream.close(NotReplicated)
            await asyncio.sleep(PAUSE[0])  # time for them to leave
        finally:
            self._following = False
            if not self._streams:
                self._any_stream.clear()

    def _mark_pending(self, user_id: str, streams: set[Stream], at: datetime | None = None) -> None:
        for stream in streams:
            stream.changed_at = stream.changed_at or at
        self._pending.setdefault(user_id, set()).update(streams)
        self._any_pending.set()

    async def _read(self) -> None:
        await self._any_pending.wait()
        batch = {user_id: self._pending.pop(user_id) for user_id in [*islice(self._pending, READ_LIMIT)]}
        if not self._pending:
            self._any_pending.clear()
        try:
            inboxes = await self._changes.inboxes(batch)
            events = {user_id: encode(inboxes[user_id]) for user_id in batch}
        except Exception:
            for user_id, streams in batch.items():
                self._mark_pending(user_id, streams & self._streams.get(user_id, set()))
            raise
        for user_id, streams in batch.items():
            for stream in streams:
                stream.offer(events[user_id])
        await asyncio.sleep(READ_PAUSE)

    async def _drop_gone(self) -> None:
        await asyncio.sleep(GONE_INTERVAL)
        for stream in self._all():
            if stream.request.transport is None:
                stream.close(ClientGone)


HUB: Final = web.AppKey("HUB", Hub)
