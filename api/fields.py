"""What marshmallow lacks: the fields of requests with their limits, and a schema that loads valid input fast."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson
from marshmallow import EXCLUDE, RAISE, Schema, ValidationError, missing, validates_schema
from marshmallow import fields as mf

from config.checks import mailbox
from config.ids import IdType
from kinds import Kinds
from mongo.document import JSONObject

DATA_LIMIT: Final = 16 * 1024
"""Bytes of `data` as compact UTF-8 JSON."""
DATA_DEPTH: Final = 32
"""Levels of nesting in `data`. The object itself is the first."""
USERS_LIMIT: Final = 1000
"""Users of one request."""
INT64_MAX: Final = 2**63 - 1
UNKNOWN_LIMIT: Final = 16
"""Unknown fields of a body that its error names: a body has room for thousands."""


class RequestSchema(Schema):
    """A body, a query, or headers.

    `load` calls the fields directly, which takes less than half as long as marshmallow's own `load`. If the input turns
    out to be invalid, that one starts over, so results and errors are always its own.
    """

    class Meta:
        """Refuse unknown fields, so that a typo does not pass."""

        unknown = RAISE

    def __init__(self, id_type: IdType, kinds: Kinds) -> None:
        super().__init__()
        self.id_type = id_type
        self.kinds = kinds
        self._fast = [
            (field.data_key or name, field.attribute or name, _direct(field))
            for name, field in self.load_fields.items()
        ]
        self._known = {key for key, _, _ in self._fast}

    def check(self, original: Mapping[str, Any]) -> None:
        """Check the input as a whole. Raises `ValidationError`."""

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def _check(self, _: object, original: Mapping[str, Any], **__: object) -> None:
        self.check(original)

    def load(self, data: Any, **options: Any) -> Any:
        """Load the input as `Schema.load` does. Raises `ValidationError`, which names few unknown fields."""
        if options:
            return super().load(data, **options)
        try:
            return self._load_valid(data)
        except ValidationError:  # the first of perhaps many
            unknown = [name for name in data if name not in self._known]
            left_out = set(unknown[UNKNOWN_LIMIT:] if self.unknown == RAISE else ())
            return super().load({name: value for name, value in data.items() if name not in left_out})

    def _load_valid(self, data: Mapping[str, Any]) -> Any:
        if self.unknown != EXCLUDE and not data.keys() <= self._known:
            raise ValidationError("Perhaps not valid.")
        values = {}
        for key, name, deserialize in self._fast:
            value = deserialize(data.get(key, missing), key, data)
            if value is not missing:
                values[name] = value
        self.check(data)
        return values


def _direct(field: mf.Field[Any]) -> Callable[[Any, str, Mapping[str, Any]], Any]:
    """Return `field.deserialize` without the steps that none of our fields has."""
    parse = field._deserialize  # noqa: SLF001 - what fields override

    def deserialize(value: Any, key: str, data: Mapping[str, Any]) -> Any:
        if value is missing or value is None:
            return field.deserialize(value, key, data)
        parsed = parse(value, key, data)
        for validate in field.validators:
            validate(parsed)
        return parsed

    return deserialize


class IdField(mf.String):
    """An id of the schema's `id_type`."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> str:
        id_type: IdType = self.root.id_type  # type: ignore[union-attr]
        parsed = id_type.parse(super()._deserialize(value, attr, data, **kwargs))
        if parsed is None:
            raise ValidationError(id_type.fault)
        return parsed


class IdsField(mf.List[str]):
    """Distinct ids of users. The error names bad ones by their index."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(IdField(), **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> list[Any]:
        if isinstance(value, list) and not 1 <= len(value) <= USERS_LIMIT:  # a body has room for 30,000 wrong ones
            raise ValidationError(f"Not 1 to {USERS_LIMIT} ids.")
        id_type: IdType = self.root.id_type  # type: ignore[union-attr]
        if isinstance(value, list) and all(type(item) is str for item in value):
            parsed = list(map(id_type.parse, value))
            if None not in parsed and len(set(parsed)) == len(parsed):
                return parsed  # a thousand ids by marshmallow, which names what is wrong, hold up the event loop
        ids = super()._deserialize(value, attr, data, **kwargs)
        first = {id_: n for n, id_ in reversed(list(enumerate(ids)))}
        if repeated := {n: ["Is in the list already."] for n, id_ in enumerate(ids) if first[id_] < n}:
            raise ValidationError(repeated)
        return ids


class KindNameField(mf.String):
    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> str:
        kinds: Kinds = self.root.kinds  # type: ignore[union-attr]
        name = super()._deserialize(value, attr, data, **kwargs)
        if name not in kinds:
            raise ValidationError(f"Must be one of: {', '.join(kinds)}.")
        return name


class KindField(KindNameField):
    """A kind, by its name."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        kinds: Kinds = self.root.kinds  # type: ignore[union-attr]
        return kinds[super()._deserialize(value, attr, data, **kwargs)]


class QueryInteger(mf.Integer):
    """An integer in decimal digits. `int()` would also accept `1_0`, ` 1 ` and the digits of every script."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> int:
        if not re.fullmatch("-?[0-9]{1,19}", str(value)):
            raise self.make_error("invalid", input=value)
        return int(value)


class QueryBoolean(mf.Boolean):
    """`true` or `false`. marshmallow would also accept many other words."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(truthy={"true"}, falsy={"false"}, **kwargs)


class JSONBoolean(mf.Boolean):
    """`true` or `false` of JSON. marshmallow would also accept `1`, `"yes"` and many others."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> bool:
        if not isinstance(value, bool):
            raise self.make_error("invalid", input=value)
        return value


class AddressField(mf.String):
    """An e-mail address, normalised. It may be written in `<>`, and behind a name."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> str:
        return mailbox(super()._deserialize(value, attr, data, **kwargs))[1]


class DataField(mf.Field[JSONObject]):
    """An object that MongoDB and JSON return unchanged. The error names every fault at once."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> JSONObject:
        if not isinstance(value, dict):
            raise ValidationError("Not an object.")
        faults: set[str] = set()
        _find_faults(value, 1, faults)
        if faults:
            raise ValidationError(sorted(faults))
        if len(orjson.dumps(value)) > DATA_LIMIT:
            raise ValidationError(f"Larger than {DATA_LIMIT // 1024} KiB of JSON.")
        return value


def _find_faults(value: Any, depth: int, faults: set[str]) -> None:  # noqa: C901 - a table
    match value:
        case str():
            if not is_unicode(value):
                faults.add("A text must not contain a lone surrogate.")
        case dict() | list() if depth > DATA_DEPTH:
            faults.add(f"Nested deeper than {DATA_DEPTH} levels.")
        case dict():
            for name, item in value.items():
                if name.startswith("$"):  # {"$ref": …} would be read back as a DBRef, which JSON has not
                    faults.add("A name must not start with '$'.")
                if "\0" in name:  # BSON ends a name at NUL
                    faults.add("A name must not contain NUL.")
                _find_faults(name, depth, faults)
                _find_faults(item, depth + 1, faults)
        case list():
            for item in value:
                _find_faults(item, depth + 1, faults)
        case int() if not -INT64_MAX - 1 <= value <= INT64_MAX:
            faults.add("An integer must fit in 64 bits.")
        case float() if not math.isfinite(value):
            faults.add("A number must be finite.")


def is_unicode(text: str) -> bool:
    """Return whether a text can be encoded: JSON may hold half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
