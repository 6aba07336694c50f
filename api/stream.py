"""One stream of Server-Sent Events (WHATWG HTML, section 9.2). It holds only the newest event.

aiohttp's own response is used: aiohttp-sse sends comments from a second task, waits for a slow client only once in
64 KiB, and waits without a deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import socket
import time
from collections.abc import Callable
from datetime import datetime
from typing import Final, NamedTuple

import orjson
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from api.bodies import ClientGone
from mongo.changes import NotReplicated
from mongo.inbox import Page
from ops.metrics import Metrics

log = logging.getLogger("notifier.http")

HEADERS: Final = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
COMMENT: Final = b": keep-alive\n\n"
KEEP_ALIVE: Final = 15.0
"""Seconds without an event after which a comment keeps proxies from closing the connection."""
SEND_TIMEOUT: Final = 10.0
"""Seconds in which a client must accept what it is sent."""
RETRY_MS: Final = (1000, 5000)
"""Range of the random time before a client reconnects, so that the clients of a stopped process come one by one."""
SEND_BUFFER: Final = 64 * 1024
"""Bytes that the kernel may buffer for a stream. Its default is megabytes for a client that does not read."""


class StreamEnd(Exception):
    """Base of the reasons why a stream does not begin, or ends."""


class TooManyOfUser(StreamEnd):
    """The user has reached the limit of streams in this process."""


class TooManyOfProcess(StreamEnd):
    """The process has reached its limit of streams."""


class Stopping(StreamEnd):
    """The process is about to stop."""


class Unreadable(StreamEnd):
    """The user's document cannot be read. The log says why."""


class Event(NamedTuple):
    """The text of an event, and when the change that it reports was written."""

    text: bytes
    at: datetime | None


def encode(page: Page) -> bytes:
    """Return an `inbox` event. Values that JSON has no type for, stored by other programs, become strings."""
    data = {"elements": page.elements, "new": page.new, "latest": page.list[0] if page.list else None}
    if page.unseen is not None:
        data["unseen"] = page.unseen
    return b"event: inbox\ndata: %b\n\n" % orjson.dumps(data, default=str)


class Stream:
    """A client, and a mailbox for one event. A newer event replaces an unsent one, so a slow client costs nothing."""

    def __init__(self, request: web.Request, metrics: Metrics, seconds_since: Callable[[datetime], float]) -> None:
        self.has_begun = False
        self._request = request
        self._metrics = metrics
        self._seconds_since = seconds_since
        self._event: Event | None = None
        self._end: type[Exception] | None = None
        self._woken = asyncio.Event()

    @property
    def is_gone(self) -> bool:
        return self._request.transport is None

    def offer(self, text: bytes, at: datetime | None) -> None:
        """Send this event next. It keeps the time of the one it replaces."""
        self._event = Event(text, (self._event and self._event.at) or at)
        self.has_begun = True
        self._woken.set()

    def close(self, reason: type[Exception]) -> None:
        """End the stream. Anything that waits for an event gets this exception instead."""
        self._end = self._end or reason
        self._woken.set()

    async def peek(self) -> Event:
        """Wait for the next event and leave it in place. Raises the reason that the stream was closed for."""
        while True:
            if self._end:
                raise self._end
            if self._event:
                return self._event
            self._woken.clear()
            await self._woken.wait()

    async def send(self, response: web.StreamResponse, until: float = math.inf) -> None:
        """Send events until the stream is closed, the client has left, or it is `until` (Unix seconds).

        If the client does not read, its connection is aborted.
        """
        response.force_close()  # a client that returns should be free to reach another process
        transport = self._request.transport
        if transport:
            transport.set_write_buffer_limits(high=0)  # drained means that the kernel has everything
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        try:
            if writer := await response.prepare(self._request):
                await self._send_events(writer, until)
        except TimeoutError:
            self._metrics.streams_dropped.inc()
            if transport:
                transport.abort()
        except ConnectionError:
            log.debug("the client of a stream has gone")

    async def _send_events(self, writer: AbstractStreamWriter, until: float) -> None:
        await _write(writer, b"retry: %d\n\n" % random.randint(*RETRY_MS))
        with contextlib.suppress(StreamEnd, ClientGone, NotReplicated):
            while (now := time.time()) < until:
                try:
                    async with asyncio.timeout(min(KEEP_ALIVE, until - now)):
                        text, at = await self.peek()
                except TimeoutError:
                    await _write(writer, COMMENT)
                else:
                    self._event = None
                    await _write(writer, text)
                    self._metrics.stream_events.inc()
                    if at:
                        self._metrics.stream_lag.observe(self._seconds_since(at))


async def _write(writer: AbstractStreamWriter, chunk: bytes) -> None:
    async with asyncio.timeout(SEND_TIMEOUT):
        await writer.write(chunk)
        await writer.drain()  # `write` itself drains only once in 64 KiB
