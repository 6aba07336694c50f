"""Bodies: those of requests, read as values to validate, and those of answers, sent within a deadline.

JSON here is that of RFC 8259, more strictly than `json.loads` reads it. The answers of one user take few megabytes.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from hashlib import blake2b
from typing import Any, Final

import orjson
from aiohttp import web
from marshmallow import Schema, ValidationError
from multidict import MultiMapping

from mongo.document import JSONObject

BODY_LIMIT: Final = 64 * 1024
"""Bytes of a request body."""
BODY_TIMEOUT: Final = 30.0
"""Seconds."""
BOM: Final = "\N{ZERO WIDTH NO-BREAK SPACE}"
CHARSETS: Final = frozenset({"utf-8", "utf8", "us-ascii", "ascii"})
JSON_HEADERS: Final = {"Content-Type": "application/json; charset=utf-8"}
SEND_TIMEOUT: Final = 30.0
"""Seconds in which a client must take an answer."""
LARGE: Final = 64 * 1024
"""Bytes above which an answer is large: asyncio buffers no more before it makes the sender wait."""
SEND_BUFFER: Final = 128 * 1024
"""Bytes of a large answer that the kernel may buffer. Its default is megabytes for a client that does not read."""
ANSWERS_LIMIT: Final = 8 << 20
"""Bytes of memory for all answers to one user."""
ELEMENT: Final = 17 * 1024
"""Upper bound for the bytes of a notification in a list."""
LINGER: Final = 2.0
"""Seconds for which an unwanted body is read after the answer, so that the client gets the answer."""
LINGER_PAUSE: Final = 0.2
"""Seconds between two such reads of about 100 KiB, so that an endless body costs little."""
ANSWERS_PATIENCE: Final = 10.0
"""Seconds for which an answer waits until the user's other answers have been sent."""


class WrongCharset(Exception):
    """The Content-Type declares a charset that JSON does not have."""


class Compressed(Exception):
    """The body is compressed, which only a proxy may undo: a small body may inflate to any size."""


class NotUTF8(Exception):
    """The body is not UTF-8."""


class NotJSON(Exception):
    """The body is not JSON. The message says why, as part of a sentence."""


class NotAnObject(Exception):
    """The body is JSON, but not an object."""


class ClientGone(Exception):
    """The client closed the connection before it had sent the whole body, or before its stream began."""


class BodyTooSlow(Exception):
    """The body did not arrive in time."""


async def read_object(request: web.Request) -> Mapping[str, Any]:
    """Read the body as a JSON object, whatever its media type.

    JSON between systems is UTF-8 without a byte order mark (RFC 8259, section 8.1), so another declared charset is
    refused. Raises the exceptions above, and aiohttp's `HTTPRequestEntityTooLarge`.
    """
    if any(coding.strip().lower() not in {"", "identity"} for coding in request.headers.getall("Content-Encoding", [])):
        raise Compressed
    if (request.charset or "utf-8").lower() not in CHARSETS:
        raise WrongCharset
    try:
        if request.content.is_eof():  # it arrived with the headers
            raw = await request.read()
        else:
            async with asyncio.timeout(BODY_TIMEOUT):
                raw = await request.read()
        body = parse_json(raw.decode())
    except TimeoutError:
        raise BodyTooSlow from None
    except UnicodeDecodeError:
        raise NotUTF8 from None
    except ValueError as exc:
        raise NotJSON(f"{exc}") from None
    except (web.RequestPayloadError, ConnectionResetError):
        raise ClientGone from None
    if not isinstance(body, dict):
        raise NotAnObject
    return body


def parse_json(text: str) -> object:
    """Parse JSON.

    `NaN` and `Infinity` are refused, and so is a name given twice: the sender may have meant either value (RFC 8259,
    section 4).

    Raises `ValueError` whose message is part of a sentence.
    """
    if text.startswith(BOM):
        raise ValueError("it begins with a byte order mark")
    try:
        return DECODER.decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except json.JSONDecodeError:
        raise
    except ValueError as exc:
        if "set_int_max_str_digits" in f"{exc}":  # Python's words, about Python
            raise ValueError("a number has too many digits") from None
        raise


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a number")


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> JSONObject:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("an object gives a name twice")
    return members


DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_refuse_duplicates)


def single_values(values: MultiMapping[str], *names: str) -> dict[str, object]:
    """Return the values of these names, or of all. A repeated name gets a list, which no field accepts.

    Headers must be looked up by name, since clients write them in any case.
    """
    lists = {name: values.getall(name, []) for name in names or set(values)}
    return {name: items[0] if len(items) == 1 else items for name, items in lists.items() if items}


def load_both(body: Schema, fields: Mapping[str, Any], others: Schema, values: Mapping[str, Any]) -> tuple[Any, Any]:
    """Load a body, and the query or the headers beside it. Raises one `ValidationError` with the faults of both."""
    try:
        loaded = body.load(fields)
    except ValidationError as exc:
        raise ValidationError(exc.messages_dict | others.validate(values)) from None
    return loaded, others.load(values)


# --- answers ----------------------------------------------------------------------------------------


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

    def __init__(self, longest: int, limit: int = ANSWERS_LIMIT) -> None:
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
                async with asyncio.timeout(ANSWERS_PATIENCE):
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
