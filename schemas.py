"""What a request may hold, and its limits. Input is validated here once; every other module trusts it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import orjson
from marshmallow import EXCLUDE, RAISE, Schema, ValidationError, post_load, pre_load, validate, validates_schema
from marshmallow import fields as mf

from mongo.document import RECENT_LIMIT, JSONObject
from mongo.ids import IdType
from ops.kinds import Kind, Kinds

DATA_LIMIT: Final = 16 * 1024
"""Bytes of `data` as compact UTF-8 JSON."""
DATA_DEPTH: Final = 32
"""Levels of nesting in `data`. The object itself is the first."""
PAGE_LIMIT: Final = 1000
"""Notifications in one page."""
UNKNOWN_LIMIT: Final = 16
"""Unknown fields of a body that its error names."""
SELECTORS: Final = ("notification_id", "target_id", "key", "all")
"""The ways to say which notifications are meant."""
INT64_MAX: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Create:
    """A valid `POST /create`. Ids are in their one form."""

    user_id: str
    kind: Kind
    target_id: str | None = None
    data: JSONObject | None = None

    def fingerprint(self) -> str:
        """Return a hash of everything but the user. Bodies with the same meaning have the same one."""
        meaning = json.dumps([self.kind.name, self.target_id, self.data], sort_keys=True)
        return hashlib.blake2b(meaning.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class ListQuery:
    """A valid `GET /list`. `is_new` selects only the unread, or only the read."""

    user_id: str
    skip: int
    limit: int
    is_new: bool | None = None


@dataclass(frozen=True, slots=True)
class ReadQuery:
    """A valid `POST /read`: the user's notifications whose `field` has this value, or all without a field."""

    user_id: str
    field: str | None = None
    value: str | None = None


class IdField(mf.String):
    """An id of the type that its schema has."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> str:
        id_type: IdType = self.root.id_type  # type: ignore[union-attr]
        parsed = id_type.parse(super()._deserialize(value, attr, data, **kwargs))
        if parsed is None:
            raise ValidationError(id_type.fault)
        return parsed


class QueryInteger(mf.Integer):
    """Decimal digits. `int()` would also accept `1_0`, ` 1 ` and the digits of every script."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> int:
        if not re.fullmatch("-?[0-9]{1,19}", str(value)):
            raise self.make_error("invalid", input=value)
        return int(value)


class QueryBoolean(mf.Boolean):
    """`true` or `false`. marshmallow would also accept many other words."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(truthy={"true"}, falsy={"false"}, **kwargs)


class DataField(mf.Field[JSONObject]):
    """An object that survives MongoDB and JSON unchanged. Its error names every fault at once."""

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
                if name.startswith("$"):  # {"$ref": …} would be read back as a DBRef, which JSON has not
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


def _accept(kinds: Kinds, schema: Schema) -> None:
    """Let the field `key` of a schema accept these kinds; its error names them all."""
    # Not by `append`: the copies of a field share its list of validators.
    schema.fields["key"].validators = [validate.OneOf(list(kinds), error="Must be one of: {choices}.")]


USER_ID: Final = {"description": "The `_id` of the user's document.", "examples": ["638f394d4b7243fc0399ea67"]}


class IdSchema(Schema):
    """A schema whose ids are of one type."""

    def __init__(self, id_type: IdType) -> None:
        super().__init__()
        self.id_type = id_type


class CreateSchema(IdSchema):
    """The body of `POST /create`. Unknown fields are refused, so that a typo does not pass."""

    def __init__(self, id_type: IdType, kinds: Kinds) -> None:
        super().__init__(id_type)
        self._kinds = kinds
        _accept(kinds, self)

    class Meta:
        """Refuse unknown fields."""

        unknown = RAISE

    user_id = IdField(required=True, metadata=USER_ID)
    target_id = IdField(allow_none=True, metadata={"description": "What the notification is about."})
    key = mf.String(required=True, metadata={"description": "The kind of notification: one of `GET /kinds`."})
    data = DataField(
        allow_none=True,
        metadata={
            "description": f"Returned by `/list` unchanged. At most {DATA_LIMIT // 1024} KiB of JSON and {DATA_DEPTH} "
            "levels deep. Names do not start with `$` or contain NUL; integers fit in 64 bits."
        },
    )

    @pre_load
    def _cap_unknown(self, values: Mapping[str, Any], **_: object) -> Mapping[str, Any]:
        """Name no more than `UNKNOWN_LIMIT` unknown fields: a body has room for thousands."""
        known = {name: value for name, value in values.items() if name in self.fields}
        unknown = ((name, value) for name, value in values.items() if name not in self.fields)
        return known | dict(islice(unknown, UNKNOWN_LIMIT))

    @post_load
    def _make(self, values: dict[str, Any], **_: object) -> Create:
        return Create(kind=self._kinds[values.pop("key")], **values)


class CreateHeaders(Schema):
    """The headers of `POST /create` (draft-ietf-httpapi-idempotency-key-header; its quotes are optional here)."""

    class Meta:
        """Ignore every other header."""

        unknown = EXCLUDE

    idempotency_key = mf.String(
        data_key="Idempotency-Key",
        # OpenAPI has no `\Z`. The newline that `$` lets through cannot be in a header.
        validate=validate.Regexp(r"^[\x21-\x7e]{1,255}$", error="Not 1 to 255 visible ASCII characters."),
        metadata={
            "description": "A new one for every notification. Repeating one of the user's last "
            f"{RECENT_LIMIT} keys with the same body has no further effect."
        },
    )


class ListSchema(IdSchema):
    """The query of `GET /list`. Unknown parameters are ignored."""

    class Meta:
        """Ignore unknown parameters."""

        unknown = EXCLUDE

    user_id = IdField(required=True, metadata=USER_ID)
    skip = QueryInteger(
        load_default=0, validate=validate.Range(0, INT64_MAX), metadata={"description": "How many to skip."}
    )
    limit = QueryInteger(
        load_default=10,
        validate=validate.Range(0, PAGE_LIMIT),
        metadata={"description": "How many to return; 0 for the counts alone."},
    )
    is_new = QueryBoolean(metadata={"description": "`true` lists only the unread, `false` only the read."})

    @post_load
    def _make(self, values: dict[str, Any], **_: object) -> ListQuery:
        return ListQuery(**values)


class StreamSchema(IdSchema):
    """The query of `GET /stream`. Unknown parameters are ignored."""

    class Meta:
        """Ignore unknown parameters."""

        unknown = EXCLUDE

    user_id = IdField(required=True, metadata=USER_ID)


class ReadSchema(IdSchema):
    """The query of `POST /read`: a user and one of the selectors. Unknown parameters are ignored."""

    def __init__(self, id_type: IdType, kinds: Kinds) -> None:
        super().__init__(id_type)
        _accept(kinds, self)

    class Meta:
        """Ignore unknown parameters."""

        unknown = EXCLUDE

    user_id = IdField(required=True, metadata=USER_ID)
    notification_id = mf.String(
        validate=[validate.Length(1, 128), _encodable],
        metadata={"description": "The one with this `id`."},
    )
    target_id = IdField(metadata={"description": "All about this entity."})
    key = mf.String(metadata={"description": "All of this kind."})
    all = QueryBoolean(
        validate=validate.OneOf([True], error="Must be true, or left out."), metadata={"description": "All of them."}
    )

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def _one_selector(self, _: object, original: Mapping[str, Any], **__: object) -> None:
        given = [name for name in SELECTORS if name in original]
        if len(given) != 1:
            message = f"Give exactly one of {', '.join(SELECTORS)}."
            raise ValidationError({name: [message] for name in given or ["notification_id"]})

    @post_load
    def _make(self, values: dict[str, Any], **_: object) -> ReadQuery:
        user_id = values.pop("user_id")
        ((name, value),) = values.items()
        match name:
            case "all":
                return ReadQuery(user_id)
            case "notification_id":
                return ReadQuery(user_id, "id", value)
        return ReadQuery(user_id, name, value)
