"""Answers that may be large: each is sent within a deadline, and a user has few megabytes of them in flight."""

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
"""Bytes of an answer that are handed to the kernel without waiting: asyncio holds no more than that."""
SEND_BUFFER: Final = 128 * 1024
"""Bytes that the kernel may hold of it. By itself it would take megabytes for a client that does not read."""
LIMIT: Final = 8 << 20
"""Bytes of the answers to one user that may be in memory."""
ELEMENT: Final = 17 * 1024
"""Bytes that a notification may take: its `data` at the most, and the rest."""
LINGER: Final = 2.0
"""Seconds in which the rest of a body that nobody wants is read after the answer, for the client to get it."""
LINGER_PAUSE: Final = 0.2
"""Seconds between two reads, each of some 100 KiB, so that a body without end costs little."""
PATIENCE: Final = 10.0
"""Seconds for which an answer waits until others of the user are taken."""


def json_bytes(value: object) -> bytes:
    """Return JSON. What other programs store in the array, which it may have no type for, must not break the list."""
    return orjson.dumps(value, default=str, option=orjson.OPT_APPEND_NEWLINE)


def json_line(value: object) -> str:
    """Return JSON in one line, which ends, so that a shell's prompt begins on a new one."""
    return f"{json.dumps(value)}\n"


class TooMuchInFlight(Exception):
    """The clients of the user have not taken the answers that they asked for."""


class InFlight:
    """What the answers to each user hold in memory, from before they are read until clients have taken them.

    `longest` is how many notifications an answer has at the most.
    """

    def __init__(self, longest: int, limit: int = LIMIT) -> None:
        self.held: Counter[str] = Counter()
        self._longest = longest
        self._limit = limit
        self._freed = asyncio.Event()

    async def take(self, user_id: str, notifications: int) -> int:
        """Wait until there is room for so many notifications, or no other answer; return the bytes that they may have.

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
        """Give the bytes back that were taken, but for those that the answer has turned out to have; return these."""
        self.held[user_id] += keep - size
        if not self.held[user_id]:
            del self.held[user_id]
        self._freed.set()
        return keep


def revalidated(request: web.Request, body: bytes, cache_control: str) -> web.Response:
    """Answer with a body and its ETag, or with 304 if the client has it."""
    etag = blake2b(body, digest_size=12).hexdigest()
    known = {tag.value for tag in request.if_none_match or ()}
    response = web.Response(status=304) if etag in known else web.Response(body=body, headers=JSON_HEADERS)
    response.etag = etag
    response.headers["Cache-Control"] = cache_control
    return response


def is_large(response: web.StreamResponse) -> bool:
    """Return whether its client might keep an answer waiting."""
    return isinstance(response, web.Response) and (response.content_length or 0) > LARGE


async def send(request: web.Request, response: web.StreamResponse) -> None:
    """Send an answer, and break the connection of a client that does not take it in time."""
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
    """Send an answer to a request whose body has not all arrived, and let its connection be closed.

    Closing at once would reset the connection, and the client might lose the answer (RFC 9112, section 9.6). aiohttp
    would read on as fast as the client sends.
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
