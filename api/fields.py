"""What marshmallow lacks: the fields of requests with their limits, and a schema that loads valid input fast."""

import math
import re
from collections.abc import Mapping
from typing import Any, Final

import orjson
from marshmallow import EXCLUDE, RAISE, Schema, ValidationError, missing, validates_schema
from marshmallow import fields as mf

from config.checks import mailbox
from kinds import Kind, Kinds
from mongo.document import JSONObject
from settings import IdType

DATA_LIMIT: Final = 16 * 1024  # bytes of `data` as compact UTF-8 JSON
DATA_DEPTH: Final = 32  # levels of nesting in `data`; the object itself is the first
USERS_LIMIT: Final = 1000  # users of one request
INT64_MAX: Final = 2**63 - 1
SURROGATE: Final = re.compile("[\ud800-\udfff]")
UNKNOWN_LIMIT: Final = 16  # unknown fields that an error names: a body has room for thousands


class RequestSchema(Schema):
    """A body, a query, or headers. As by default in marshmallow, unknown fields are refused: a typo must not pass.

    `load` calls the fields directly, which takes less than half as long as marshmallow's own `load`. If the input turns
    out to be invalid, that one starts over, so results and errors are always its own.
    """

    def __init__(self, id_type: IdType, kinds: Kinds) -> None:
        super().__init__()
        self.id_type = id_type
        self.kinds = kinds
        self._fast = [(f.data_key or name, f.attribute or name, f) for name, f in self.load_fields.items()]
        self._known = {key for key, _, _ in self._fast}

    def check(self, original: Mapping[str, Any]) -> None:
        """Check the input as a whole. Raises `ValidationError`."""

    @validates_schema(pass_original=True, skip_on_field_errors=False)
    def _check(self, _: object, original: Mapping[str, Any], **__: object) -> None:
        self.check(original)

    def load(self, data: Any, **_: Any) -> Any:
        """Load the input as `Schema.load` does. Raises `ValidationError`, with few unknown fields in it."""
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
        for key, name, field in self._fast:
            value = data.get(key, missing)
            if value is missing or value is None:
                value = field.deserialize(value, key, data)
            else:
                value = field._deserialize(value, key, data)  # noqa: SLF001 - what fields override
                for validate in field.validators:
                    validate(value)
            if value is not missing:
                values[name] = value
        self.check(data)
        return values


class TextField(mf.String):
    """A string that stands for a value: `parse` returns the value, or raises `ValidationError`."""

    root: RequestSchema

    def parse(self, text: str) -> Any:
        raise NotImplementedError

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> Any:
        if not isinstance(value, str):
            raise self.make_error("invalid")
        return self.parse(value)


class IdField(TextField):
    def parse(self, text: str) -> str:
        id_type = self.root.id_type
        if not id_type.matches(text):
            raise ValidationError(id_type.fault)
        return id_type.canonical(text)


class KindNameField(TextField):
    def parse(self, text: str) -> Any:
        if text not in self.root.kinds:
            raise ValidationError(f"Must be one of: {', '.join(self.root.kinds)}.")
        return text


class KindField(KindNameField):
    def parse(self, text: str) -> Kind:
        return self.root.kinds[super().parse(text)]


class JSONBoolean(mf.Boolean):
    """`true` or `false` of JSON. marshmallow would also accept `1`, `"yes"` and many others."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> bool:
        if not isinstance(value, bool):
            raise self.make_error("invalid")
        return value


class AddressField(TextField):
    """An e-mail address, normalised. It may be written in `<>`, and behind a name."""

    def parse(self, text: str) -> str:
        return mailbox(text)[1]


class IdsField(mf.List[str]):
    """Distinct ids; bad ones are named by their index. Loaded one by one, a thousand would hold up the event loop."""

    root: RequestSchema

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(IdField(), **kwargs)

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> list[Any]:
        if not isinstance(value, list):
            raise self.make_error("invalid")
        if not 1 <= len(value) <= USERS_LIMIT:
            raise ValidationError(f"Not 1 to {USERS_LIMIT} ids.")
        id_type = self.root.id_type
        ids, faults = dict[str, None](), dict[int, list[str]]()
        for n, item in enumerate(value):
            if not isinstance(item, str) or not id_type.matches(item):
                faults[n] = [id_type.fault]
            elif (id_ := id_type.canonical(item)) in ids:
                faults[n] = ["Is in the list already."]
            else:
                ids[id_] = None
        if faults:
            raise ValidationError(faults)
        return list(ids)


class DataField(mf.Field[JSONObject]):
    """An object that MongoDB and JSON return unchanged. The error names every fault at once."""

    def _deserialize(self, value: Any, *_: Any, **__: Any) -> JSONObject:
        if not isinstance(value, dict):
            raise ValidationError("Not an object.")
        faults: set[str] = set()
        _find_faults(value, faults)
        if faults:
            raise ValidationError(sorted(faults))
        if len(orjson.dumps(value)) > DATA_LIMIT:
            raise ValidationError(f"Larger than {DATA_LIMIT // 1024} KiB of JSON.")
        return value


def _find_faults(value: object, faults: set[str], depth: int = 1) -> None:
    match value:
        case str() if not value.isascii() and SURROGATE.search(value):
            faults.add("A text must not contain a lone surrogate.")
        case dict() | list() if depth > DATA_DEPTH:
            faults.add(f"Nested deeper than {DATA_DEPTH} levels.")
        case dict():
            for name, item in value.items():
                # {"$ref": …} would be read back as a DBRef, which JSON does not have. BSON ends a name at NUL.
                if name.startswith("$") or "\0" in name:
                    faults.add("A name must not start with '$' or contain NUL.")
                _find_faults(name, faults, depth)
                _find_faults(item, faults, depth + 1)
        case list():
            for item in value:
                _find_faults(item, faults, depth + 1)
        case int() if not -INT64_MAX - 1 <= value <= INT64_MAX:
            faults.add("An integer must fit in 64 bits.")
        case float() if not math.isfinite(value):
            faults.add("A number must be finite.")
