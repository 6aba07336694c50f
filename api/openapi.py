"""The OpenAPI 3.1 document of the service, made from the operations, the schemas that validate, and the problems.

A route without an operation is a `KeyError`, so nothing can be described in part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache
from itertools import groupby
from operator import attrgetter
from typing import Any, Final

from aiohttp import web
from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from marshmallow import ValidationError
from marshmallow.fields import Field

from api.auth import Route
from api.components import (
    DATA,
    INVALID_REQUEST,
    PROBLEM_HEADERS,
    REQUEST_ID,
    SECURITY,
    component_schemas,
    content,
    id_schema,
    preferences,
    ref,
)
from api.fields import DataField, IdField, KindNameField
from api.operations import CHAPTERS, Operation, operations
from api.problems import MEDIA_TYPE, PROBLEMS, Problem, problem_of
from config.ids import IdType
from kinds import Kinds
from mongo.document import JSONObject
from mongo.errors import OutboxFull, UnknownUser
from mongo.fan_out import Incomplete, NotYetComplete
from schemas import CreateSchema

VERSION: Final = "1.0.0"
ABOUT: Final = (
    "In-app notifications and e-mail for users who live in MongoDB. Every failure is a problem as in "
    "[RFC 9457](https://www.rfc-editor.org/rfc/rfc9457)."
)
INCOMPLETE: Final[Mapping[type[Exception], Incomplete]] = {
    Incomplete: Incomplete({7: UnknownUser()}),
    NotYetComplete: NotYetComplete({7: OutboxFull()}),
}
"""Creates for many users that failed for one, as examples."""
DOCUMENT: Final[web.AppKey[Callable[[], JSONObject]]] = web.AppKey("DOCUMENT")


def describe(routes: Iterable[Route], kinds: Kinds, id_type: IdType) -> JSONObject:
    """Return the OpenAPI document of these routes, for a service with these kinds and ids.

    Raises `KeyError` for a route without an operation.
    """
    described = operations(routes, kinds, id_type)
    plugin, tags = MarshmallowPlugin(), [{"name": name} for name in CHAPTERS.values()]
    about: JSONObject = {"info": {"description": ABOUT}, "servers": [{"url": "./"}], "tags": tags}
    spec = APISpec("notifier", VERSION, "3.1.0", [plugin], **about)
    converter: Any = plugin.converter  # set by APISpec
    key = {"type": "string", "enum": list(kinds)}
    converter.add_parameter_attribute_function(_example_of_schema)
    converter.add_attribute_function(_describe_own({IdField: id_schema(id_type), DataField: DATA, KindNameField: key}))
    chapter = ""
    for route in routes:
        chapter = CHAPTERS.get(route.path, chapter)
        operation = _operation(described[f"{route.method} {route.path}"])
        operation |= {"operationId": route.handler.__name__.strip("_"), "tags": [chapter]}
        spec.path(route.path, operations={route.method.lower(): operation})
    document = spec.to_dict()
    fields = CreateSchema(id_type, kinds).fields
    created = {name: _present(converter.field2property(field)) for name, field in fields.items()}
    schemas = document["components"]["schemas"] | component_schemas(id_type, created)
    schemas["Preferences"] |= preferences(kinds)
    document["components"] = {"schemas": schemas, "securitySchemes": SECURITY}
    return document


def described_once(routes: Iterable[Route], kinds: Kinds, id_type: IdType) -> Callable[[], JSONObject]:
    """Return a function that makes the document when it is first called: most processes are never asked for it."""
    return cache(lambda: describe(routes, kinds, id_type))


def _example_of_schema(_converter: object, _field: Field[Any], ret: JSONObject) -> JSONObject:
    """Return the example of a parameter: Swagger UI fills in only this one, not those of the schema."""
    examples = ret["schema"].get("examples")
    return {"example": examples[0]} if examples else {}


def _present(schema: JSONObject) -> JSONObject:
    """Return the schema of a field that is absent rather than null."""
    return schema | ({"type": schema["type"][0]} if isinstance(schema["type"], list) else {})


def _describe_own(schemas: Mapping[type[Field[Any]], JSONObject]) -> Callable[..., JSONObject]:
    """Return a function that tells apispec the schemas of our own fields."""

    def describe_field(_converter: object, own: Field[Any], **_: object) -> JSONObject:
        schema = next((schema for class_, schema in schemas.items() if isinstance(own, class_)), {})
        return schema | {"type": [schema["type"], "null"]} if schema and own.allow_none else schema

    return describe_field


def _operation(operation: Operation) -> JSONObject:
    described: JSONObject = {
        "summary": operation.summary,
        "description": operation.description,
        "security": [{caller: []} for caller in operation.callers],
        "parameters": [
            {"in": where, "schema": schema}
            for where, schema in (("path", operation.path), ("header", operation.headers), ("query", operation.query))
            if schema
        ],
        "responses": {**operation.answers, **_problems(operation)},
    }
    if operation.bodies:
        schema = {"oneOf": [*operation.bodies]} if len(operation.bodies) > 1 else operation.bodies[0]
        described["requestBody"] = {"required": operation.needs_body, "content": content(schema, operation.examples)}
    return {name: value for name, value in described.items() if value}


def _problems(operation: Operation) -> JSONObject:
    """Describe the problems by status, with an example of each."""
    by_status = attrgetter("status")
    problems = sorted((problem for problem in PROBLEMS if problem.exception in operation.problems), key=by_status)
    responses = {}
    for status, group in groupby(problems, key=by_status):
        same = list(group)
        responses[status] = {
            "description": "\n".join(f"- {problem.meaning}" for problem in same),
            "headers": {"X-Request-ID": REQUEST_ID, **PROBLEM_HEADERS.get(status, {})},
            "content": {
                MEDIA_TYPE: {
                    "schema": ref("Problem"),
                    "examples": {problem.name: _example(problem, operation) for problem in same},
                }
            },
        }
    return responses


def _example(problem: Problem, operation: Operation) -> JSONObject:
    if problem.exception is ValidationError:
        problem = problem_of(_validation_error(operation))
    if problem.exception in INCOMPLETE:
        problem = problem_of(INCOMPLETE[problem.exception])
    shown = replace(problem, detail=problem.detail.format(problem.example))
    example = {"summary": problem.name, "description": problem.advice, "value": shown.document()}
    return {name: value for name, value in example.items() if value}


def _validation_error(operation: Operation) -> ValidationError:
    """Return the error that an invalid request really raises."""
    errors: JSONObject = {}
    for schema in filter(None, (*operation.bodies[:1], operation.query)):
        errors |= schema.validate(INVALID_REQUEST)
    return ValidationError(errors)
