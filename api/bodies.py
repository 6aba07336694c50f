"""Bodies: those of requests, read as values to validate, and those of answers, sent within a deadline."""

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

BODY_LIMIT: Final = 64 * 1024  # bytes of a request body
BODY_TIMEOUT: Final = 30.0  # seconds in which a whole body must arrive
JSON: Final = "application/json; charset=utf-8"
SEND_TIMEOUT: Final = 30.0  # seconds in which a client must take an answer
LARGE: Final = 64 * 1024  # bytes above which an answer is large: asyncio buffers no more before the sender must wait
SEND_BUFFER: Final = 128 * 1024  # bytes of a large answer that the kernel may buffer; its default is megabytes
ANSWERS_LIMIT: Final = 8 << 20  # bytes of memory for all answers to one user
ANSWERS_PATIENCE: Final = 10.0  # seconds for which an answer waits until the user's other answers have been sent
ELEMENT: Final = 17 * 1024  # upper bound for the bytes of a notification in a list


class Compressed(Exception):
    """The body is compressed. The service decompresses none, as a small body may inflate to any size."""


class NotJSON(Exception):
    """The body is not a JSON object. The message says why, as part of a sentence."""


class ClientGone(Exception):
    """The client closed the connection before it had sent the whole body, or before its stream began."""


class BodyTooSlow(Exception):
    """The body did not arrive in time."""


class TooMuchInFlight(Exception):
    """The user's clients have not read the answers that they asked for."""


async def read_object(request: web.Request) -> Mapping[str, Any]:
    """Read the body as a JSON object in UTF-8, whatever its media type. Raises one of the exceptions above."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Compressed
    try:
        if request.content.is_eof():  # it arrived with the headers
            raw = await request.read()
        else:
            async with asyncio.timeout(BODY_TIMEOUT):
                raw = await request.read()
        body = parse_json(raw.decode())
    except TimeoutError:
        raise BodyTooSlow from None
    except ValueError as exc:
        raise NotJSON(f"{exc}".partition(";")[0]) from None  # Python's advice about numbers is for programmers
    except (web.RequestPayloadError, ConnectionResetError):
        raise ClientGone from None
    if not isinstance(body, dict):
        raise NotJSON("it has another type")
    return body


def parse_json(text: str) -> object:
    """Parse JSON, without `NaN` and `Infinity`. Raises `ValueError` whose message is part of a sentence."""
    try:
        return DECODER.decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a number")


DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant)


def single_values(values: MultiMapping[str], *names: str) -> dict[str, object]:
    """Return the values of these names, or of all. A repeated name gets a list, which no field accepts."""
    lists = {name: values.getall(name, []) for name in names or set(values)}  # of headers by name, in any case
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
    """Return JSON and a newline, so that a shell's prompt begins a line. It also writes invalid Unicode."""
    return f"{json.dumps(value)}\n"


class InFlight:
    """Memory taken by the answers to each user, of at most `longest` notifications, until the clients have them."""

    def __init__(self, longest: int, limit: int = ANSWERS_LIMIT) -> None:
        self.held: Counter[str] = Counter()
        self._longest = longest
        self._limit = limit
        self._freed = asyncio.Event()

    async def take(self, user_id: str, notifications: int) -> int:
        """Reserve memory for an answer with this many notifications; return its bytes. A first one always fits."""
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
        """Release reserved bytes, except those to `keep`; return `keep`."""
        self.held[user_id] += keep - size
        if not self.held[user_id]:
            del self.held[user_id]
        self._freed.set()
        return keep


def revalidated(request: web.Request, body: bytes, headers: Mapping[str, str], of_type: str = JSON) -> web.Response:
    """Return an answer with this body and its ETag, or a 304 if the client has it already."""
    etag = blake2b(body, digest_size=12).hexdigest()
    headers = {**headers, "ETag": f'"{etag}"'}
    if {tag.value for tag in request.if_none_match or ()} & {etag, "*"}:
        return web.Response(status=304, headers=headers)
    return web.Response(body=body, headers={**headers, "Content-Type": of_type})


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


IN_FLIGHT: Final = web.AppKey("IN_FLIGHT", InFlight)
