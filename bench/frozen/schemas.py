"""The schemas of requests."""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import orjson
from marshmallow import EXCLUDE, RAISE, Schema, ValidationError, post_load, pre_load, validate, validates_schema
from marshmallow import fields as mf

OBJECT_ID: Final = "[0-9a-fA-F]{24}"
DATA_LIMIT: Final = 16 * 1024
DATA_DEPTH: Final = 32
USERS_LIMIT: Final = 1000
INT64_MAX: Final = 2**63 - 1
PAGE_LIMIT: Final = 1000
UNKNOWN_LIMIT: Final = 16
SELECTORS: Final = ("notification_id", "target_id", "key", "all")

JSON = dict[str, Any]


class IdType(enum.Enum):
    """The type of ids."""

    OBJECTID = "objectid"

    @property
    def pattern(self) -> str:
        """The regular expression of a whole id."""
        return OBJECT_ID if self is IdType.OBJECTID else ""

    def parse(self, text: str) -> str | None:
        """Return the one form of an id, or `None` if it is not one."""
        if not re.fullmatch(self.pattern, text):
            return None
        return text.lower() if self is IdType.OBJECTID else text


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of notification, and where it goes."""

    name: str
    in_app: bool = True
    email: bool = False


Kinds = Mapping[str, Kind]
SPECIFIED: Final[Kinds] = {
    kind.name: kind
    for kind in (
        Kind(name="registration", in_app=False, email=True),
        Kind(name="new_message"),
        Kind(name="new_post"),
        Kind(name="new_login", email=True),
    )
}


@dataclass(frozen=True, slots=True)
class Create:
    """A valid `POST /create`."""

    user_id: str
    kind: Kind
    target_id: str | None = None
    data: JSON | None = None
    idempotency_key: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class CreateMany:
    """A valid `POST /create` for many users."""

    user_ids: Sequence[str]
    each: Create


@dataclass(frozen=True, slots=True)
class ListQuery:
    """A valid `GET /list`."""

    user_id: str
    skip: int
    limit: int
    is_new: bool | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """A valid `POST /read`: the notifications whose `field` has this value."""

    user_id: str
    field: str | None = None
    value: str | None = None


# --- fields ----------------------------------------------------------------------------------------


class IdField(mf.String):
    """An id of the type that its schema has."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> str:
        id_type: IdType = self.root.id_type  # type: ignore[union-attr]
        parsed = id_type.parse(super()._deserialize(value, attr, data, **kwargs))
        if parsed is None:
            raise ValidationError("Not a valid ObjectId.")
        return parsed


class IdsField(mf.List[str]):
    """Distinct ids of users."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(IdField(), **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> list[Any]:
        if isinstance(value, list) and not 1 <= len(value) <= USERS_LIMIT:
            raise ValidationError(f"Not 1 to {USERS_LIMIT} ids.")
        ids = super()._deserialize(value, attr, data, **kwargs)
        first = {id_: n for n, id_ in reversed(list(enumerate(ids)))}
        if repeated := {n: ["Is in the list already."] for n, id_ in enumerate(ids) if first[id_] < n}:
            raise ValidationError(repeated)
        return ids


class QueryInteger(mf.Integer):
    """Decimal digits."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> int:
        if not re.fullmatch("-?[0-9]{1,19}", str(value)):
            raise self.make_error("invalid", input=value)
        return int(value)


class QueryBoolean(mf.Boolean):
    """`true` or `false`."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(truthy={"true"}, falsy={"false"}, **kwargs)


class DataField(mf.Field[JSON]):
    """An object that survives MongoDB and JSON unchanged."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> JSON:
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
                if name.startswith("$"):
                    yield "A name must not start with '$'."
                if "\0" in name:
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


# --- schemas ---------------------------------------------------------------------------------------


class IdSchema(Schema):
    """A schema whose ids are of one type, and whose keys are the names of kinds."""

    def __init__(self, id_type: IdType, kinds: Kinds = SPECIFIED) -> None:
        super().__init__()
        self.id_type = id_type
        self.kinds = kinds
        if "key" in self.fields:
            self.fields["key"].validators = [validate.OneOf(list(kinds), error="Must be one of: {choices}.")]


class CreateSchema(IdSchema):
    """The body of `POST /create`."""

    class Meta:
        """Refuse unknown fields."""

        unknown = RAISE

    user_id = IdField()
    user_ids = IdsField()
    target_id = IdField(allow_none=True)
    key = mf.String(required=True)
    data = DataField(allow_none=True)

    @pre_load
    def _cap_unknown(self, values: Mapping[str, Any], **_: object) -> Mapping[str, Any]:
        known = {name: value for name, value in values.items() if name in self.fields}
        unknown = ((name, value) for name, value in values.items() if name not in self.fields)
        return known | dict(islice(unknown, UNKNOWN_LIMIT))

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def _one_or_many(self, _: object, original: Mapping[str, Any], **__: object) -> None:
        if "user_ids" not in original and "user_id" not in original:
            raise ValidationError({"user_id": [self.fields["user_id"].error_messages["required"]]})
        if "user_ids" in original and "user_id" in original:
            raise ValidationError({"user_ids": ["Give either user_id or user_ids."]})

    @post_load
    def _make(self, values: dict[str, Any], **_: object) -> Create | CreateMany:
        kind, user_ids = self.kinds[values.pop("key")], values.pop("user_ids", None)
        if user_ids is None:
            return Create(kind=kind, **values)
        return CreateMany(user_ids, Create(user_id="", kind=kind, **values))


class UserSchema(IdSchema):
    """The query of a request about one user."""

    class Meta:
        """Ignore unknown parameters."""

        unknown = EXCLUDE

    user_id = IdField(required=True)


class ListSchema(UserSchema):
    """The query of `GET /list`."""

    skip = QueryInteger(load_default=0, validate=validate.Range(0, INT64_MAX))
    limit = QueryInteger(load_default=10, validate=validate.Range(0, PAGE_LIMIT))
    is_new = QueryBoolean()

    @post_load
    def _make(self, values: dict[str, Any], **_: object) -> ListQuery:
        return ListQuery(**values)


class SelectionSchema(UserSchema):
    """The query of `POST /read`."""

    notification_id = mf.String(validate=[validate.Length(1, 128), _encodable])
    target_id = IdField()
    key = mf.String()
    all = QueryBoolean(validate=validate.OneOf([True], error="Must be true, or left out."))

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def _one_selector(self, _: object, original: Mapping[str, Any], **__: object) -> None:
        given = [name for name in SELECTORS if name in original]
        if len(given) != 1:
            message = f"Give exactly one of {', '.join(SELECTORS)}."
            raise ValidationError({name: [message] for name in given or ["notification_id"]})

    @post_load
    def _make(self, values: dict[str, Any], **_: object) -> Selection:
        user_id = values.pop("user_id")
        ((name, value),) = values.items()
        match name:
            case "all":
                return Selection(user_id)
            case "notification_id":
                return Selection(user_id, "id", value)
        return Selection(user_id, name, value)
