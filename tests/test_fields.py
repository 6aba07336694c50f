"""A schema of requests loads what marshmallow's own `load` loads, and raises the same errors."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from marshmallow import INCLUDE, Schema, ValidationError, missing

import schemas
from api.fields import DATA_DEPTH, DATA_LIMIT, INT64_MAX, USERS_LIMIT, RequestSchema
from kinds import SPECIFIED
from settings import IdType
from tests.client import OTHER, USER

VALID: Mapping[type[RequestSchema], Mapping[str, Any]] = {
    schemas.CreateSchema: {"user_id": USER, "target_id": OTHER.upper(), "key": "new_post", "data": {"a": [1, "b"]}},
    schemas.CreateManySchema: {"user_ids": [USER, OTHER], "key": "new_post", "data": {"a": [1, "b"]}},
    schemas.CreateHeaders: {"Idempotency-Key": "k"},
    schemas.CreateManyHeaders: {"Idempotency-Key": "k"},
    schemas.ListSchema: {"user_id": USER, "skip": "3", "is_new": "true", "key": "new_post"},
    schemas.SelectionSchema: {"user_id": USER, "key": "new_post", "other": "x"},
    schemas.UserSchema: {"user_id": USER},
    schemas.PreferencesSchema: {"new_login": {"email": True}, "*": {"email": False}, "registration": None},
    schemas.SuppressionSchema: {"suppressed": False, "address": "Ann <ann@example.com>", "code": "5.1.1"},
    schemas.SuppressedUserSchema: {"user_id": USER},
}
SCHEMAS = [schema(id_type, SPECIFIED) for schema in VALID for id_type in IdType]

TEXTS = st.sampled_from([USER, *SPECIFIED, "", "true", "false", "0", "10", "-1", "1_0", f"{INT64_MAX + 1}", "a\nb"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=4) | TEXTS
JSON = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=3), SCALARS, max_size=3)
DEEP: Any = json.loads('{"a":' * DATA_DEPTH + "0" + "}" * DATA_DEPTH)
DATA = [{"$ref": 1, "b": "\ud800"}, {"a\0": 2**63}, DEEP, {"a": DEEP}, {"a": "x" * DATA_LIMIT}, {"a": float("nan")}]
VALUES = JSON | st.sampled_from([*DATA, [USER], [USER, OTHER, USER], [USER] * (USERS_LIMIT + 1)])


def outcome(load: Callable[..., Any], schema: Schema, data: Any, **options: Any) -> str:
    """Return what a `load` makes of the input, or its errors in their order; as text, because NaN is not NaN."""
    try:
        return repr(load(schema, data, **options))
    except ValidationError as exc:
        return repr((exc.messages, exc.valid_data, exc.data))


def assert_loads_as_marshmallow(schema: RequestSchema, data: Any) -> None:
    before = copy.deepcopy(data)
    assert outcome(RequestSchema.load, schema, data) == outcome(Schema.load, schema, data)
    assert repr(data) == repr(before)


def requests(schema: RequestSchema) -> st.SearchStrategy[dict[str, Any]]:
    """Return valid requests, of which some fields are then changed."""
    keys, valid = [field.data_key or name for name, field in schema.load_fields.items()], VALID[type(schema)]
    changes = st.fixed_dictionaries({}, optional=dict.fromkeys([*keys, "unknown"], VALUES | st.just(missing)))
    return changes.map(lambda new: {key: value for key, value in {**valid, **new}.items() if value is not missing})


@pytest.mark.parametrize("schema", SCHEMAS, ids=repr)
@given(data=st.data())
def test_requests_are_loaded_as_by_marshmallow(schema: RequestSchema, data: st.DataObject) -> None:
    assert_loads_as_marshmallow(schema, data.draw(requests(schema)))


def test_the_schemas_tried_are_all_that_there_are() -> None:
    held = vars(schemas.Schemas(IdType.OBJECTID, SPECIFIED)).values()
    assert {type(schema) for schema in held if isinstance(schema, Schema)} == set(VALID)


@pytest.mark.parametrize("schema", [schema for schema in SCHEMAS if schema.unknown != INCLUDE], ids=repr)
def test_valid_requests_never_reach_the_load_of_marshmallow(
    schema: RequestSchema, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Schema.load(schema, VALID[type(schema)])
    monkeypatch.delattr(Schema, "load")
    assert schema.load(VALID[type(schema)]) == expected


def test_an_error_names_few_of_many_unknown_fields() -> None:
    schema = schemas.CreateSchema(IdType.OBJECTID, SPECIFIED)
    with pytest.raises(ValidationError) as error:
        schema.load({"user_id": 1, "key": "new_post"} | {f"unknown {n}": n for n in range(1000)})
    assert error.value.messages_dict.keys() == {"user_id", *(f"unknown {n}" for n in range(16))}
