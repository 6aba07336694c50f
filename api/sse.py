"""Server-Sent Events: the wire format of a stream, and sending it (WHATWG HTML, section 9.2).

aiohttp's own response is used: aiohttp-sse sends comments from a second task, waits for a slow client only once in
64 KiB, and waits without a deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import socket
import time
from collections.abc import Callable
from datetime import datetime
from typing import Final

import orjson
from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from api.stream import Refused, Stream
from mongo.changes import Inbox, NotReplicated
from ops.metrics import Metrics

HEADERS: Final = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
COMMENT: Final = b": keep-alive\n\n"
KEEP_ALIVE: Final = 15.0
"""Seconds without an event after which a comment keeps proxies from closing the connection."""
SEND_TIMEOUT: Final = 10.0
"""Seconds in which a client must accept what it is sent."""
RETRY_MS: Final = (1000, 5000)
"""Shortest and longest time before a client reconnects. It is random, so that the clients of a process that stops do
not all reach the next one at once."""
SEND_BUFFER: Final = 64 * 1024
"""Bytes the kernel may hold for one stream. Its own default is megabytes for a client that does not read."""


class Stalled(Exception):
    """The client does not accept what it is sent."""


def encode(inbox: Inbox) -> bytes:
    """Return an `inbox` event. Values that JSON has no type for, stored by other programs, become strings."""
    data = {"elements": inbox.elements, "new": inbox.new, "latest": inbox.latest}
    if inbox.unseen is not None:
        data["unseen"] = inbox.unseen
    return b"event: inbox\ndata: %b\n\n" % orjson.dumps(data, default=str)


def bound_buffers(request: web.Request) -> None:
    """Hold little for a client that does not read."""
    if request.transport:
        request.transport.set_write_buffer_limits(high=0)  # drained means that the kernel has everything
        connection = request.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)


class Wire:
    """Sends streams."""

    def __init__(self, metrics: Metrics, seconds_since: Callable[[datetime], float]) -> None:
        self.keep_alive = KEEP_ALIVE
        self.send_timeout = SEND_TIMEOUT
        self._metrics = metrics
        self._seconds_since = seconds_since

    async def send(self, stream: Stream, writer: AbstractStreamWriter, until: float = math.inf) -> None:
        """Send events, and comments between them, until the stream is closed or it is `until` (Unix seconds).

        Raises `Stalled`, or `ConnectionError` when the client has gone.
        """
        await self._write(writer, b"retry: %d\n\n" % random.randint(*RETRY_MS))
        with contextlib.suppress(Refused, NotReplicated):
            while (now := time.time()) < until:
                try:
                    async with asyncio.timeout(min(self.keep_alive, until - now)):
                        event = await stream.next()
                except TimeoutError:
                    await self._write(writer, COMMENT)
                else:
                    await self._write(writer, event.text)
                    self._metrics.stream_events.inc()
                    if event.at:
                        self._metrics.stream_lag.observe(self._seconds_since(event.at))

    async def _write(self, writer: AbstractStreamWriter, chunk: bytes) -> None:
        try:
            async with asyncio.timeout(self.send_timeout):
                await writer.write(chunk)
                await writer.drain()  # `write` itself drains only once in 64 KiB
        except TimeoutError:
            self._metrics.streams_dropped.inc()
            raise Stalled from None
