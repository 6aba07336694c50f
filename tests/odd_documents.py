"""A generator of documents that the service did not write: any BSON in any of its fields."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, cast

from bson import (
    Binary,
    Code,
    CodecOptions,
    DatetimeMS,
    Decimal128,
    Int64,
    MaxKey,
    MinKey,
    ObjectId,
    Regex,
    Timestamp,
    encode,
)
from bson.codec_options import DatetimeConversion
from bson.raw_bson import RawBSONDocument
from hypothesis import strategies as st

from tests.client import DB, USER

PAST: Final = datetime(2020, 1, 1, tzinfo=UTC)
NOTIFICATION: Final[dict[str, Any]] = {
    "id": "a" * 24,
    "timestamp": 1698138241,
    "is_new": True,
    "user_id": "638f394d4b7243fc0399ea67",
    "key": "new_message",
}
EMAIL: Final[dict[str, Any]] = {
    "id": "b" * 24,
    "key": "registration",
    "at": PAST,
    "next_at": PAST,
    "tries": 0,
    "token": "0" * 24,
    "error": None,
    "dead": False,
}
KEY: Final[dict[str, Any]] = {"k": "a-key", "h": "a hash", "id": "c" * 24}
ELEMENTS: Final[dict[str, dict[str, Any]]] = {"notifications": NOTIFICATION, "outbox": EMAIL, "recent": KEY}
DELIVERABLE: Final = {"id": str, "key": str, "token": str, "at": datetime, "next_at": datetime}

OWN: Final = {"_id": 7, "to": "someone", "sent": False}
"""Elements that a team may keep in an array."""

NO_OBJECTS: Final[list[Any]] = [
    None,
    "text",
    5,
    True,
    PAST,
    [],
    ["text", 5],
    [OWN],
    [{"outbox": [EMAIL], "due": PAST, "recent": [KEY], "deleted": [], "preferences": {}, "suppression": {}}],
]
"""Values of a field named `notifier` that belongs to the team."""

RAW: Final[CodecOptions[RawBSONDocument]] = CodecOptions(
    document_class=RawBSONDocument,
    unicode_decode_error_handler="replace",
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
)
BAD_TEXT: Final = RawBSONDocument(encode({"x": "?"}).replace(b"?", b"\xff"))
"""A string that is not UTF-8."""
SCALARS: Final = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-3, 3).map(Int64),
    st.floats(),
    st.sampled_from(["", "a", "a" * 24, "@", "id", "\n", "é", "new_login", "x" * 2000, "user@example.com"]),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8),
    st.sampled_from([PAST, datetime(2100, 1, 1, tzinfo=UTC), DatetimeMS(2**62), DatetimeMS(-(2**62))]),
    st.binary(max_size=4),
    st.sampled_from([Binary(b"123", 4), Binary(b"x" * 16, 3), MinKey(), MaxKey(), Timestamp(1, 1), ObjectId("f" * 24)]),
    st.sampled_from([Decimal128("NaN"), Decimal128("0"), Regex("x", "i"), Code("x"), Code("x", {"y": 1}), BAD_TEXT]),
)
NAMES: Final = st.sampled_from(
    [
        "id",
        "k",
        "h",
        "key",
        "is_new",
        "token",
        "tries",
        "at",
        "next_at",
        "0",
        "outbox",
        "due",
        "email",
        "$ref",
        "$id",
        "$set",
        "a.b",
        "",
        "@",
    ]
)
VALUES: Final = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(NAMES, inner, max_size=4)),
    max_leaves=8,
)


@st.composite
def _elements(draw: st.DrawFn, field: str) -> Any:
    """Draw an array as the service writes it, but for some elements, or some fields of elements."""
    array = []
    for n in range(draw(st.integers(1, 22))):
        element = {**ELEMENTS[field], next(iter(ELEMENTS[field])): f"{n:024x}"}
        match draw(st.integers(0, 5)):
            case 0:
                array.append(draw(VALUES))
            case 1:
                array.append(draw(st.dictionaries(NAMES, VALUES)) | {next(iter(element)): draw(VALUES)})
            case 2:
                element[draw(st.sampled_from(sorted({*element, "copies", "data", "request_id", "target_id"})))] = draw(
                    VALUES
                )
                array.append(element)
            case 3:
                del element[draw(st.sampled_from(sorted(element)))]
                array.append(element)
            case _:
                array.append(element)
    return array


PARTS: Final = {
    "outbox": st.one_of(VALUES, _elements("outbox")),
    "due": st.one_of(VALUES, st.just(PAST)),
    "recent": st.one_of(VALUES, _elements("recent")),
    "deleted": st.one_of(VALUES, st.lists(SCALARS, max_size=3)),
    "preferences": st.one_of(VALUES, st.dictionaries(st.sampled_from(["*", "new_login"]), VALUES, max_size=2)),
    "suppression": VALUES,
    "of another version": VALUES,
}


@st.composite
def _ours(draw: st.DrawFn) -> Any:
    """Draw an object as the service writes it, each part with any value."""
    return draw(st.fixed_dictionaries({}, optional=PARTS))


FIELDS: Final = {
    "notifications": st.one_of(VALUES, _elements("notifications")),
    "notifier": st.one_of(_ours(), _ours(), VALUES, st.lists(_ours(), max_size=2)),
    "email": st.one_of(VALUES, st.lists(SCALARS, max_size=2), st.just("user@example.com")),
}
DOCUMENTS: Final = st.fixed_dictionaries({}, optional=FIELDS).filter(bool)
"""Some of the service's fields, each with any value."""


def may_be_sent(document: dict[str, Any]) -> bool:
    """Return whether the outbox has anything that may count as a due e-mail of the service."""
    notifier = document.get("notifier")
    outbox = notifier.get("outbox") if isinstance(notifier, dict) else None
    return isinstance(outbox, list) and any(
        isinstance(item, dict)
        and all(isinstance(item.get(name), kind) for name, kind in DELIVERABLE.items())
        and isinstance(item.get("tries"), int | float)
        for item in outbox
    )


def is_ours(item: Any) -> bool:
    """Return whether an element of `notifications` may be the service's: a notification or a `null`."""
    if item is None:
        return True
    return isinstance(item, Mapping) and _has_type(item.get("id"), str) and _has_type(item.get("is_new"), bool)


def _has_type(value: object, kind: type) -> bool:
    """Return what MongoDB's `$type` says: an array has the types of its elements."""
    return isinstance(value, kind) or (isinstance(value, list) and any(isinstance(item, kind) for item in value))


def raw(database: DB, user_id: str = USER) -> bytes | None:
    """Return the bytes of a user's document."""
    found = cast("Any", database.get_collection("users", RAW)).find_one(ObjectId(user_id))
    return bytes(found.raw) if found else None
