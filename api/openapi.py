"""The OpenAPI 3.1 document of the service, made from the operations, the schemas that validate, and the problems.

A route without an operation is a `KeyError`, so nothing can be described in part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from typing import Any, Final

from aiohttp import web
from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from marshmallow import Schema, ValidationError
from marshmallow.fields import Field

from api.components import (
    DATA,
    INVALID_REQUEST,
    PROBLEM_HEADERS,
    REQUEST_ID,
    SECURITY,
    component_schemas,
    id_schema,
    ref,
)
from api.fields import DataField, IdField
from api.operation import Answer, Operation
from api.operations import TAGS, operations
from api.problem import MEDIA_TYPE, Problem
from api.problems import BY_EXCEPTION, problem_of
from config.ids import IdType
from kinds import Kinds
from mongo.document import JSONObject
from mongo.errors import OutboxFull, UnknownUser
from mongo.fan_out import Incomplete, NotYetComplete
from mongo.preferences import EVERY_KIND


@dataclass(slots=True)
class Document:
    """The OpenAPI document of the service, made when it is first asked for, which hardly any process ever is."""

    make: Callable[[], JSONObject]
    made: JSONObject | None = None

    def get(self) -> JSONObject:
        """Return the document."""
        if self.made is None:
            self.made = self.make()
        return self.made


DOCUMENT: Final = web.AppKey("DOCUMENT", Document)
VERSION: Final = "0.1.0"
ABOUT: Final = (
    "In-app notifications and e-mail for users who live in MongoDB. Every failure is a problem as in "
    "[RFC 9457](https://www.rfc-editor.org/rfc/rfc9457)."
)


INCOMPLETE: Final[Mapping[type[Exception], Incomplete]] = {
    Incomplete: Incomplete({7: UnknownUser()}),
    NotYetComplete: NotYetComplete({7: OutboxFull()}),
}
"""Examples of requests for many users that failed for one."""
ONE, MANY = {"required": ["user_id"]}, {"required": ["user_ids"]}
ONE_OR_MANY: Final[JSONObject] = {"if": MANY, "then": {"not": ONE}, "else": ONE}
"""A body has one of the two. Of a `oneOf`, client generators would make two types."""


PREFERENCE: Final = {
    "type": ["object", "null"],
    "required": ["email"],
    "properties": {"email": {"type": ["boolean", "null"]}},
    "additionalProperties": False,
}


def describe(routes: Iterable[web.RouteDef], kinds: Kinds, id_type: IdType) -> JSONObject:
    """Return the OpenAPI document of these routes, for a service with these kinds and ids.

    Raises `KeyError` for a route without an operation.
    """
    described = operations(kinds, id_type)
    plugin = MarshmallowPlugin(schema_name_resolver=_name)
    spec = APISpec("notifier", VERSION, "3.1.0", [plugin], info={"description": ABOUT}, servers=[{"url": "./"}])
    converter: Any = plugin.converter  # set by APISpec
    converter.add_attribute_function(_describe_own({IdField: id_schema(id_type), DataField: DATA}))
    for name, description in TAGS.items():
        spec.tag({"name": name, "description": description})
    for name, scheme in SECURITY.items():
        spec.components.security_scheme(name, scheme)
    for name, schema in component_schemas(id_type).items():
        spec.components.schema(name, schema)
    for route in routes:
        operation = _operation(described[f"{route.method} {route.path}"])
        operation["operationId"] = route.handler.__name__.strip("_")
        spec.path(route.path, operations={route.method.lower(): operation})
    document = spec.to_dict()
    schemas = document["components"]["schemas"]
    schemas["Create"] |= ONE_OR_MANY
    names = [EVERY_KIND, *(kind.name for kind in kinds.values() if kind.email)]
    schemas["Preferences"] |= {"propertyNames": {"enum": names}, "additionalProperties": PREFERENCE}
    _fill_in_examples(document)
    return document


def _fill_in_examples(document: JSONObject) -> None:
    """Give parameters the examples of their schemas: Swagger UI fills in only what the parameter itself has."""
    for path in document["paths"].values():
        for operation in path.values():
            for parameter in operation.get("parameters", ()):
                if examples := parameter["schema"].get("examples"):
                    parameter["example"] = examples[0]


def _name(schema: type[Schema] | Schema) -> str:
    return (schema if isinstance(schema, type) else type(schema)).__name__.removesuffix("Schema")


def _describe_own(schemas: Mapping[type[Field[Any]], JSONObject]) -> Callable[..., JSONObject]:
    """Return what tells apispec the schemas of our own fields."""

    def describe_field(_converter: object, own: Field[Any], **_: object) -> JSONObject:
        known = schemas.get(type(own), {})
        return known | {"type": [known["type"], "null"]} if known and own.allow_none else known

    return describe_field


def _operation(operation: Operation) -> JSONObject:
    described: JSONObject = {
        "tags": [operation.tag],
        "summary": operation.summary,
        "description": operation.description,
        "security": [{caller: []} for caller in operation.callers],
        "parameters": [
            {"in": where, "schema": schema}
            for where, schema in (("path", operation.path), ("header", operation.headers), ("query", operation.query))
            if schema
        ],
        "responses": {status: _answer(answer) for status, answer in operation.answers.items()} | _problems(operation),
    }
    if operation.body:
        content = {"application/json": {"schema": operation.body, "examples": _examples(operation.examples)}}
        described["requestBody"] = {"required": operation.needs_body, "content": content}
    return {name: value for name, value in described.items() if value}


def _answer(answer: Answer) -> JSONObject:
    described: JSONObject = {
        "description": answer.description,
        "headers": {"X-Request-ID": REQUEST_ID, **answer.headers},
    }
    if answer.schema:
        content = {"schema": answer.schema, "examples": _examples(answer.examples)}
        described["content"] = {answer.media_type: content}
    return described


def _examples(values: Mapping[str, Any]) -> JSONObject:
    return {name: {"value": value} for name, value in values.items()}


def _problems(operation: Operation) -> JSONObject:
    """Describe the problems by status: the details as a list, and an example of each."""
    by_status = attrgetter("status")
    problems = sorted((BY_EXCEPTION[exception] for exception in operation.problems), key=by_status)
    responses = {}
    for status, group in groupby(problems, key=by_status):
        same = list(group)
        details = [problem.meaning for problem in same]
        described = _answer(
            Answer(
                description=details[0] if len(details) == 1 else "\n".join(f"- {detail}" for detail in details),
                schema=ref("Problem"),
                media_type=MEDIA_TYPE,
                headers=PROBLEM_HEADERS.get(status, {}),
            )
        )
        described["content"][MEDIA_TYPE]["examples"] = {problem.name: _example(problem, operation) for problem in same}
        responses[status] = described
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
    """Return what an invalid request really raises."""
    errors: JSONObject = {}
    for schema in filter(None, (operation.body, operation.query)):
        errors |= schema.validate(INVALID_REQUEST)
    return ValidationError(errors)
