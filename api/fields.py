"""The fields of requests that marshmallow does not have, and their limits."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

import orjson
from marshmallow import ValidationError
from marshmallow import fields as mf

from config.address import mailbox
from config.ids import IdType
from mongo.document import JSONObject

DATA_LIMIT: Final = 16 * 1024
"""Bytes of `data` as compact UTF-8 JSON."""
DATA_DEPTH: Final = 32
"""Levels of nesting in `data`. The object itself is the first."""
USERS_LIMIT: Final = 1000
"""Users of one request."""
INT64_MAX: Final = 2**63 - 1


class IdField(mf.String):
    """An id of the type that its schema has."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> str:
        id_type: IdType = self.root.id_type  # type: ignore[union-attr]
        parsed = id_type.parse(super()._deserialize(value, attr, data, **kwargs))
        if parsed is None:
            raise ValidationError(id_type.fault)
        return parsed


class IdsField(mf.List[str]):
    """Distinct ids of users. Its error names each by its index."""

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
    """An object that survives MongoDB and JSON unchanged. Its error names every fault at once."""

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
