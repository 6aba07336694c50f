"""Answers: large ones are sent within a deadline, and those of one user take few megabytes of memory."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from contextlib import suppress
from hashlib import blake2b
from typing import Final

import orjson
from aiohttp import web

JSON_HEADERS: Final = {"Content-Type": "application/json; charset=utf-8"}
SEND_TIMEOUT: Final = 30.0
"""Seconds in which a client must take an answer."""
LARGE: Final = 64 * 1024
"""Bytes above which an answer is large: asyncio buffers no more before it makes the sender wait."""
SEND_BUFFER: Final = 128 * 1024
"""Bytes of a large answer that the kernel may buffer. Its default is megabytes for a client that does not read."""
LIMIT: Final = 8 << 20
"""Bytes of memory for all answers to one user."""
ELEMENT: Final = 17 * 1024
"""Upper bound for the bytes of a notification in a list."""
LINGER: Final = 2.0
"""Seconds for which an unwanted body is read after the answer, so that the client gets the answer."""
LINGER_PAUSE: Final = 0.2
"""Seconds between two such reads of about 100 KiB, so that an endless body costs little."""
PATIENCE: Final = 10.0
"""Seconds for which an answer waits until the user's other answers have been sent."""


def json_bytes(value: object) -> bytes:
    """Return JSON. Values that JSON has no type for, stored by other programs, become strings."""
    return orjson.dumps(value, default=str, option=orjson.OPT_APPEND_NEWLINE)


def json_line(value: object) -> str:
    """Return JSON with a newline at the end, so that a shell's prompt begins on a line of its own."""
    return f"{json.dumps(value)}\n"


class TooMuchInFlight(Exception):
    """The user's clients have not read the answers that they asked for."""


class InFlight:
    """Memory taken by the answers to each user, from before they are read until the clients have them.

    `longest` is the greatest number of notifications in an answer.
    """

    def __init__(self, longest: int, limit: int = LIMIT) -> None:
        self.held: Counter[str] = Counter()
        self._longest = longest
        self._limit = limit
        self._freed = asyncio.Event()

    async def take(self, user_id: str, notifications: int) -> int:
        """Reserve memory for these notifications, and return its bytes. One answer may always go, however large.

        Raises `TooMuchInFlight`.
        """
        size = ELEMENT * min(notifications, self._longest)
        if not self._has_room(user_id, size):
            try:
                async with asyncio.timeout(PATIENCE):
                    while not self._has_room(user_id, size):
                        self._freed.clear()
                        await self._freed.wait()
            except TimeoutError:
                raise TooMuchInFlight from None
        self.held[user_id] += size
        return size

    def _has_room(self, user_id: str, size: int) -> bool:
        held = self.held[user_id]
        return not held or held + size <= self._limit

    def give(self, user_id: str, size: int, keep: int = 0) -> int:
        """Release reserved bytes, but for those to `keep`; return these."""
        self.held[user_id] += keep - size
        if not self.held[user_id]:
            del self.held[user_id]
        self._freed.set()
        return keep


def revalidated(request: web.Request, body: bytes, cache_control: str) -> web.Response:
    """Return an answer with this body and its ETag, or a 304 if the client has it already."""
    etag = blake2b(body, digest_size=12).hexdigest()
    headers = {"ETag": f'"{etag}"', "Cache-Control": cache_control}
    if etag in {tag.value for tag in request.if_none_match or ()}:
        return web.Response(status=304, headers=headers)
    return web.Response(body=body, headers=JSON_HEADERS | headers)


def is_large(response: web.StreamResponse) -> bool:
    """Return whether a slow client could delay the sending."""
    return isinstance(response, web.Response) and (response.content_length or 0) > LARGE


async def send(request: web.Request, response: web.StreamResponse) -> None:
    """Send an answer. If the client does not read it in time, abort the connection."""
    if request.transport:
        request.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    try:
        with suppress(ConnectionError):
            async with asyncio.timeout(SEND_TIMEOUT):
                await response.prepare(request)
                await response.write_eof()
    except TimeoutError:
        if request.transport:
            request.transport.abort()


async def answer_before_body(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """Answer a request whose body has not fully arrived, and let its connection be closed.

    Closing it at once would reset it, and the client might lose the answer (RFC 9112, section 9.6). aiohttp would go on
    reading as fast as the client sends.
    """
    response.force_close()
    with suppress(ConnectionError, web.RequestPayloadError, TimeoutError):
        await response.prepare(request)
        await response.write_eof()
        async with asyncio.timeout(LINGER):
            while not request.content.is_eof():
                await request.content.readany()
                await asyncio.sleep(LINGER_PAUSE)


IN_FLIGHT: Final = web.AppKey("IN_FLIGHT", InFlight)
