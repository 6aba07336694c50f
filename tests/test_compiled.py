"""A compiled schema loads what marshmallow's own `load` loads, and raises the same errors."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from marshmallow import (
    EXCLUDE,
    INCLUDE,
    RAISE,
    Schema,
    ValidationError,
    missing,
    post_load,
    pre_load,
    validate,
    validates,
    validates_schema,
)
from marshmallow import fields as mf

import schemas
from api.compiled import CompiledSchema
from api.fields import DATA_DEPTH, DATA_LIMIT, INT64_MAX, USERS_LIMIT
from config.ids import IdType
from kinds import load_kinds
from tests.client import OTHER, USER

KINDS = load_kinds(None)
SCHEMAS = [
    *(schemas.CreateSchema(id_type, KINDS) for id_type in IdType),
    *(schemas.SelectionSchema(id_type, KINDS) for id_type in IdType),
    *(schemas.ListSchema(id_type, KINDS) for id_type in IdType),
    *(schemas.UserSchema(id_type) for id_type in IdType),
    schemas.CreateHeaders(),
    schemas.CreateManyHeaders(),
]
"""Every compiled schema of the API."""
VALID: Mapping[type[Schema], Mapping[str, Any]] = {
    schemas.CreateSchema: {"user_id": USER, "target_id": OTHER.upper(), "key": "new_post", "data": {"a": [1, "b"]}},
    schemas.SelectionSchema: {"user_id": USER, "key": "new_post", "other": "x"},
    schemas.ListSchema: {"user_id": USER, "skip": "3", "is_new": "true", "key": "new_post"},
    schemas.UserSchema: {"user_id": USER},
    schemas.CreateHeaders: {"Idempotency-Key": "k"},
    schemas.CreateManyHeaders: {"Idempotency-Key": "k"},
}

TEXTS = st.sampled_from([USER, *KINDS, "", "true", "false", "0", "10", "-1", "1_0", f"{INT64_MAX + 1}", "a\nb"])
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
    except (AttributeError, TypeError, ValueError) as exc:  # a hook is given what it does not expect
        return repr(exc)


def assert_loads_as_marshmallow(schema: CompiledSchema, data: Any) -> None:
    before = copy.deepcopy(data)
    assert outcome(CompiledSchema.load, schema, data) == outcome(Schema.load, schema, data)
    assert repr(data) == repr(before)


def requests(schema: Schema) -> st.SearchStrategy[dict[str, Any]]:
    """Return valid requests, of which some fields are then changed."""
    keys, valid = [field.data_key or name for name, field in schema.load_fields.items()], VALID[type(schema)]
    changes = st.fixed_dictionaries({}, optional=dict.fromkeys([*keys, "unknown"], VALUES | st.just(missing)))
    return changes.map(lambda new: {key: value for key, value in {**valid, **new}.items() if value is not missing})


@pytest.mark.parametrize("schema", SCHEMAS, ids=repr)
@given(data=st.data())
def test_requests_are_loaded_as_by_marshmallow(schema: CompiledSchema, data: st.DataObject) -> None:
    assert_loads_as_marshmallow(schema, data.draw(requests(schema)))


def test_the_schemas_tried_are_all_that_are_compiled() -> None:
    classes = [value for value in vars(schemas).values() if isinstance(value, type)]
    compiled = {each for each in classes if issubclass(each, CompiledSchema)} - {
        CompiledSchema,
        schemas.IdSchema,
        schemas.KeySchema,
    }
    assert compiled == set(VALID) == {type(schema) for schema in SCHEMAS}


@pytest.mark.parametrize("schema", SCHEMAS, ids=repr)
def test_valid_requests_never_reach_the_load_of_marshmallow(
    schema: CompiledSchema, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = Schema.load(schema, VALID[type(schema)])
    monkeypatch.delattr(Schema, "load")
    assert schema.load(VALID[type(schema)]) == expected


class Hooked(CompiledSchema):
    """Has hooks of all kinds that are supported, which show what they are given."""

    @pre_load
    def _copy(self, values: Any, **options: Any) -> Any:
        return {"a": 1, **values, "options": options} if isinstance(values, dict) else values

    @pre_load(pass_collection=True)
    def _unwrap(self, values: Any, **_: Any) -> Any:
        return values.get("wrapped", values) if isinstance(values, dict) else values

    @validates_schema(pass_original=True)
    def _check_input(self, values: Any, original: Any, **_: Any) -> None:
        if "c" in original and "a" in values:
            raise ValidationError({"a": ["Not with c."]})

    @validates_schema(skip_on_field_errors=False, pass_collection=True)
    def _check_values(self, values: Any, **_: Any) -> None:
        if len(values) > 2:
            raise ValidationError("Too many.")

    @post_load(pass_original=True)
    def _make(self, values: Any, original: Any, **options: Any) -> Any:
        return "made", values, original, options

    @post_load(pass_collection=True)
    def _refuse(self, values: Any, **_: Any) -> Any:
        if values.get("b") == 0:
            raise ValidationError({"b": ["Not 0."]})
        return values


def _not_7(value: object) -> None:
    if value == 7:
        raise ValidationError("Not 7.")


NAMES = ["a", "b", "c"]
FIELDS: list[Callable[..., mf.Field[Any]]] = [
    *(mf.String, mf.Integer, mf.Boolean, mf.Raw, mf.Raw, mf.Raw),
    lambda **options: mf.List(mf.Integer(), **options),
    lambda **options: mf.Nested({"a": mf.Integer(required=True)}, **options),
    lambda **options: mf.Constant(7, **options),
]
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "allow_none": st.booleans(),
        "data_key": st.sampled_from([None, None, *NAMES, "", "A-1"]),
        "dump_only": st.sampled_from([False, False, False, True]),
        "validate": st.lists(st.sampled_from([_not_7, validate.OneOf([0, "0", 7])]), max_size=1),
        "pre_load": st.sampled_from([[], [], lambda value: value or 1]),
        "post_load": st.sampled_from([[], lambda value: [value]]),
    },
)
MISSING: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    [{}, {}, {"required": True}, {"load_default": None}, {"load_default": 5}, {"load_default": list}]
)


@st.composite
def compiled(draw: st.DrawFn) -> CompiledSchema:
    """Make a schema of any of these fields, with any options."""
    names = draw(st.lists(st.sampled_from(NAMES), unique=True))
    members: dict[str, Any] = {
        name: draw(st.sampled_from(FIELDS))(**{**draw(MISSING), **draw(OPTIONS)}, load_only=True) for name in names
    }
    members["Meta"] = type(
        "Meta", (), {"unknown": draw(st.sampled_from([RAISE, INCLUDE, EXCLUDE, EXCLUDE])), "register": False}
    )
    made: CompiledSchema = type("Made", (draw(st.sampled_from([CompiledSchema, Hooked])),), members)()
    return made


FIELD_VALUES = st.sampled_from([None, 0, 7, "0", "x", True, [7], {"a": 7}])
INPUTS = st.dictionaries(st.sampled_from([*NAMES, "A-1", ""]), FIELD_VALUES)
ANY_INPUT = INPUTS | INPUTS.map(lambda values: {"wrapped": values}) | JSON


@settings(max_examples=500)
@given(compiled(), ANY_INPUT)
def test_any_schema_loads_as_marshmallow(schema: CompiledSchema, data: Any) -> None:
    assert_loads_as_marshmallow(schema, data)


@given(compiled(), ANY_INPUT)
def test_options_of_load_work_as_in_marshmallow(schema: CompiledSchema, data: Any) -> None:
    for options in ({"many": True}, {"partial": True}, {"partial": ("a",)}, {"unknown": INCLUDE}, {"unknown": None}):
        assert outcome(CompiledSchema.load, schema, data, **options) == outcome(Schema.load, schema, data, **options)


@pytest.mark.parametrize("value", [None, 7])
@pytest.mark.parametrize(
    "field",
    [
        *(mf.Raw(), mf.Raw(allow_none=True), mf.Constant(7), mf.Raw(validate=_not_7)),
        *(mf.Raw(pre_load=str), mf.Raw(post_load=str), mf.Raw(allow_none=True, post_load=str)),
    ],
)
def test_no_step_of_a_field_is_left_out(field: mf.Field[Any], value: object) -> None:
    schema: CompiledSchema = type("Made", (CompiledSchema,), {"a": field})()
    assert_loads_as_marshmallow(schema, {"a": value})


class _OfMany(CompiledSchema):
    class Meta:
        many = True


class _OfValidator(CompiledSchema):
    a = mf.Integer()

    @validates("a")
    def _check(self, value: int, **_: Any) -> None:
        _not_7(value)


class _OfDots(CompiledSchema):
    a = mf.Integer(attribute="b.c")


@pytest.mark.parametrize("schema", [_OfMany, _OfValidator, _OfDots])
def test_a_schema_that_cannot_be_compiled_is_refused(schema: type[CompiledSchema]) -> None:
    with pytest.raises(TypeError, match=f"{schema.__name__}: .* not supported"):
        schema()
