"""All data that comes from outside with a request, or from a user's document, and the limits it is held to.

Everything is validated here, once. What leaves this module is trusted by every other one.
"""

from __future__ import annotations

import enum
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self, cast

import idna
import orjson
from marshmallow import EXCLUDE, RAISE, Schema, ValidationError, post_load, validate, validates_schema
from marshmallow import fields as mf

BODY_LIMIT: Final = 64 * 1024
"""Bytes of a request body."""
DATA_LIMIT: Final = 16 * 1024
"""Bytes of `data`, serialised as compact UTF-8 JSON."""
DATA_DEPTH: Final = 32
"""Levels of nesting in `data`; the object itself is the first."""
PAGE_LIMIT: Final = 1000
READ_BY: Final = ("notification_id", "target_id", "key", "all")
OBJECT_ID: Final = "[0-9a-fA-F]{24}"
INT64_MAX: Final = 2**63 - 1

JSONObject = dict[str, Any]


class Key(enum.Enum):
    """What happened, and with it what is done: record it for the user, e-mail the user, or both."""

    stored: bool
    mailed: bool

    def __new__(cls, value: str, stored: bool, mailed: bool) -> Self:  # noqa: FBT001 - the table below reads well
        """Keep the two flags beside the value that travels."""
        member = object.__new__(cls)
        member._value_ = value
        member.stored = stored
        member.mailed = mailed
        return member

    # the value, whether it is stored, whether it is mailed
    REGISTRATION = "registration", False, True
    NEW_MESSAGE = "new_message", True, False
    NEW_POST = "new_post", True, False
    NEW_LOGIN = "new_login", True, True


@dataclass(frozen=True, slots=True)
class Create:
    """A valid `POST /create`. Ids are 24 lower-case hex digits."""

    user_id: str
    key: Key
    target_id: str | None = None
    data: JSONObject | None = None

    def fingerprint(self) -> str:
        """Return a hash of all but the user, the same for bodies that mean the same."""
        meaning = json.dumps([self.key.value, self.target_id, self.data], sort_keys=True)
        return hashlib.blake2b(meaning.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class ListQuery:
    """A valid `GET /list`; `is_new` keeps only the unread, or only the read."""

    user_id: str
    skip: int
    limit: int
    is_new: bool | None = None


@dataclass(frozen=True, slots=True)
class ReadQuery:
    """A valid `POST /read`: those of the user's notifications whose `field` has this value; without a field, all."""

    user_id: str
    field: str | None = None
    value: str | None = None


class ObjectIdField(mf.String):
    """24 hex digits of either case, loaded in lower case."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> str:
        text: str = super()._deserialize(value, attr, data, **kwargs)
        if not re.fullmatch(OBJECT_ID, text):
            raise ValidationError("Not a valid ObjectId.")
        return text.lower()


class QueryInteger(mf.Integer):
    """Decimal digits; `int()` would also take `1_0`, ` 1 ` and the digits of every script."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> int:
        if not re.fullmatch("-?[0-9]{1,19}", str(value)):
            raise self.make_error("invalid", input=value)
        return int(value)


class QueryBoolean(mf.Boolean):
    """`true` or `false`, and none of the many other words that marshmallow takes."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(truthy={"true"}, falsy={"false"}, **kwargs)


class DataField(mf.Field[JSONObject]):
    """An object that MongoDB stores and JSON gives back unchanged; names every fault at once."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> JSONObject:
        if not isinstance(value, dict):
            raise ValidationError("Not an object.")
        faults = sorted(set(_faults(value, 1)))
        if faults:
            raise ValidationError(faults)
        if len(orjson.dumps(value)) > DATA_LIMIT:
            raise ValidationError(f"Larger than {DATA_LIMIT // 1024} KiB of JSON.")
        return value


def _faults(value: Any, depth: int) -> Iterator[str]:  # noqa: C901 - a table
    match value:
        case dict() | list() if depth > DATA_DEPTH:
            yield f"Nested deeper than {DATA_DEPTH} levels."
        case dict():
            for name, item in value.items():
                if name.startswith("$"):  # {"$ref": ..} would come back as a DBRef and break the list
                    yield "A name must not start with '$'."
                if "\0" in name:  # BSON ends a name at NUL
                    yield "A name must not contain NUL."
                yield from _faults(name, depth)
                yield from _faults(item, depth + 1)
        case list():
            for item in value:
                yield from _faults(item, depth + 1)
        case str() if not _is_unicode(value):
            yield "A text must not contain a lone surrogate."
        case int() if not -INT64_MAX - 1 <= value <= INT64_MAX:
            yield "An integer must fit in 64 bits."
        case float() if not math.isfinite(value):
            yield "A number must be finite."


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _encodable(text: str) -> None:
    if not _is_unicode(text):
        raise ValidationError("Not valid Unicode.")


USER_ID: Final = {"description": "The `_id` of the user's document.", "examples": ["638f394d4b7243fc0399ea67"]}


class CreateSchema(Schema):
    """The body of `POST /create`. A field that is not known is refused: a typo must not pass."""

    class Meta:
        """Refuse unknown fields."""

        unknown = RAISE

    user_id = ObjectIdField(required=True, metadata=USER_ID)
    target_id = ObjectIdField(allow_none=True, metadata={"description": "What the notification is about."})
    key = mf.Enum(
        Key,
        by_value=True,
        required=True,
        metadata={
            "type": "string",
            "description": "What happened: `new_message`, `new_post` and `new_login` are kept for `/list`, "
            "`registration` and `new_login` are e-mailed.",
        },
    )
    data = DataField(
        allow_none=True,
        metadata={
            "description": f"Given back by `/list` as it came. At most {DATA_LIMIT // 1024} KiB of JSON and "
            f"{DATA_DEPTH} levels; names without NUL and not beginning with `$`; integers of 64 bits."
        },
    )

    @post_load
    def _make(self, values: dict[str, Any], **_: object) -> Create:
        return Create(**values)


class CreateHeaders(Schema):
    """The headers of `POST /create` (draft-ietf-httpapi-idempotency-key-header; its quotes may be there or not)."""

    class Meta:
        """Ignore every other header."""

        unknown = EXCLUDE

    idempotency_key = mf.String(
        data_key="Idempotency-Key",
        # `$`, as `\Z` is Python's alone: the newline that it lets through cannot be in a header
        validate=validate.Regexp(r"^[\x21-\x7e]{1,255}$", error="Not 1 to 255 visible ASCII characters."),
        metadata={
            "description": "New for every notification. Among the last 32 of a user, the same key and body have "
            "no second effect."
        },
    )


class ListSchema(Schema):
    """The query of `GET /list`. A parameter that is not known is ignored."""

    class Meta:
        """Ignore unknown parameters."""

        unknown = EXCLUDE

    user_id = ObjectIdField(required=True, metadata=USER_ID)
    skip = QueryInteger(
        load_default=0, validate=validate.Range(0, INT64_MAX), metadata={"description": "How many to pass over."}
    )
    limit = QueryInteger(
        load_default=10,
        validate=validate.Range(0, PAGE_LIMIT),
        metadata={"description": "How many to return; 0 for only the counts."},
    )
    is_new = QueryBoolean(metadata={"description": "List only the unread, or only the read."})

    @post_load
    def _make(self, values: dict[str, Any], **_: object) -> ListQuery:
        return ListQuery(**values)


class StreamSchema(Schema):
    """The query of `GET /stream`. A parameter that is not known is ignored."""

    class Meta:
        """Ignore unknown parameters."""

        unknown = EXCLUDE

    user_id = ObjectIdField(required=True, metadata=USER_ID)


class ReadSchema(Schema):
    """The query of `POST /read`: a user and one of four ways to say which. A parameter that is not known is ignored."""

    class Meta:
        """Ignore unknown parameters."""

        unknown = EXCLUDE

    user_id = ObjectIdField(required=True, metadata=USER_ID)
    notification_id = mf.String(
        validate=[validate.Length(1, 128), _encodable],
        metadata={"description": "This one, by the `id` that `/list` gave."},
    )
    target_id = ObjectIdField(metadata={"description": "All about this entity."})
    key = mf.Enum(Key, by_value=True, metadata={"description": "All with this key."})
    all = QueryBoolean(
        validate=validate.OneOf([True], error="Must be true, or left out."), metadata={"description": "All there are."}
    )

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def _one_way(self, _: object, original: Mapping[str, Any], **__: object) -> None:
        given = [name for name in READ_BY if name in original]
        if len(given) != 1:
            message = f"Give exactly one of {', '.join(READ_BY)}."
            raise ValidationError({name: [message] for name in given or ["notification_id"]})

    @post_load
    def _make(self, values: dict[str, Any], **_: object) -> ReadQuery:
        user_id = values.pop("user_id")
        ((name, value),) = values.items()
        match name:
            case "all":
                return ReadQuery(user_id)
            case "key":
                return ReadQuery(user_id, "key", value.value)
            case "notification_id":
                return ReadQuery(user_id, "id", value)
        return ReadQuery(user_id, name, value)


def parse_json(text: str) -> object:
    """Parse JSON as RFC 8259 has it, more strictly than `json.loads`.

    `NaN` and `Infinity` are not JSON. A name given twice is refused: whichever value were taken, the
    sender may have meant the other (RFC 8259, section 4).

    Raises `ValueError` with a sentence for people.
    """
    try:
        return DECODER.decode(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a number")


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> JSONObject:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object gives a name twice")
    return found


DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_refuse_duplicates)


def envelope_address(value: object) -> str:
    """Return the one address of this value, with the domain in A-labels where it is international (RFC 5890).

    Raises `marshmallow.ValidationError` for whatever is not exactly one address.
    """
    try:
        validate.Email(error="Not a valid email address.")(cast("str", value))
        local, domain = str(value).rsplit("@", 1)
        return f"{local}@{domain if domain.isascii() else idna.encode(domain, uts46=True).decode()}"
    except (TypeError, idna.IDNAError):
        raise ValidationError("Not a valid email address.") from None
