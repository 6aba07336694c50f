"""Reading a request: its JSON body, its query and its headers, as values to validate.

JSON here is that of RFC 8259, more strictly than `json.loads` reads it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, Final

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
