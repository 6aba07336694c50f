"""Writes `api/openapi.json`: the words of `openapi.json` in this folder, with the schemas and problems of the code.

In both files, `{"x-code": …}` stands for a value from the code. What depends on a service's kinds and ids stays for
`api/openapi.py`. `x-problems` names the problems of an operation besides those that follow from its callers,
parameters and body.
"""

import json
from collections.abc import Iterable, Mapping
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, Final

from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from marshmallow import Schema, ValidationError
from marshmallow.fields import Field

from api.auth import OF_A_USER
from api.bodies import NotJSON
from api.fields import INT64_MAX, DataField, IdField, KindNameField
from api.openapi import VERSION
from api.problems import MEDIA_TYPE, PROBLEMS, Problem, problem_of
from handlers import ROUTES
from kinds import SETTINGS, SPECIFIED
from mongo.document import JSONObject
from mongo.errors import Incomplete, NotYetComplete, OutboxFull, UnknownUser
from schemas import Schemas
from settings import IdType, Scope

WORDS: Final = Path(__file__).with_suffix(".json").read_text("utf-8")
ADVISED: Final[dict[str, str]] = json.loads(WORDS)["x-advice"]
RETRY: Final = ADVISED.pop("retry")  # what `{retry}` stands for
ADVICE: Final = {name: text.format(retry=RETRY) for name, text in ADVISED.items()}  # what to know about a problem
OF_CALLERS: Final = {"ForeignPage", "NoCredential", "BadCredential", "TokenExpired", "OutOfScope"}
OF_BODIES: Final = {"Compressed", "NotJSON", "BodyTooSlow", "RequestEntityTooLarge"}
STATUS_HEADERS: Final = {"401": ["WWW-Authenticate"], "405": ["Allow"], "429": ["Retry-After"], "503": ["Retry-After"]}
EXAMPLES: Final[Mapping[str, Exception]] = {
    "NotJSON": NotJSON("NaN is not a number"),
    "Incomplete": Incomplete({7: UnknownUser()}),
    "NotYetComplete": NotYetComplete({7: OutboxFull()}),
}
INVALID_REQUEST: Final = {"user_id": ""}  # refused by every operation that takes a user
# The rules for `data` apply at every level, but client generators cannot read a recursive schema.
DATA: Final = {
    "propertyNames": {"pattern": r"^(?!\$)[^\u0000]*$"},
    "additionalProperties": {"minimum": -INT64_MAX - 1, "maximum": INT64_MAX},
}


def document() -> JSONObject:
    """Return the document of the routes, for any kinds and ids.

    Raises `KeyError` for a route without words, and `ValueError` for a problem that does not exist.
    """
    plugin = MarshmallowPlugin()
    spec = APISpec("notifier", VERSION, "3.1.0", [plugin])
    converter: Any = plugin.converter  # set by APISpec
    _teach(converter)
    known = _known(converter, json.loads(WORDS)["x-fields"])
    described: JSONObject = json.loads(WORDS, object_hook=lambda part: known.get(part.get("x-code", ""), part))
    del described["x-fields"], described["x-advice"]
    headers = described["components"].pop("headers")
    for method, path, handler, scope in ROUTES:
        operation = described["paths"][path][method.lower()]
        operation["operationId"] = handler.__name__.strip("_")
        _complete(operation, callers(scope), headers)
    for operations in described["paths"].values():
        plugin.operation_helper(operations=operations)
    described["components"]["schemas"] |= spec.components.schemas
    described["info"]["version"] = VERSION
    return described


def callers(scope: Scope | None) -> tuple[str, ...]:
    """Return the security schemes for a scope. Without one, and without API keys, an operation is open to everyone."""
    if scope is None:
        return ()
    return ("key", "token") if scope in OF_A_USER else ("key",)


def _teach(converter: Any) -> None:
    """Tell apispec what our own fields accept, and that a parameter shows the example of its schema."""

    def describe_own(_converter: object, own: Field[Any], **_: object) -> JSONObject:
        match own:
            case IdField():
                return {"x-code": "id"}
            case KindNameField():
                return {"x-code": "kind"}
            case DataField():
                return DATA
        return {}

    def show_example(_converter: object, _: Field[Any], ret: JSONObject) -> JSONObject:
        examples = ret["schema"].get("examples")
        return {"example": examples[0]} if examples else {}  # Swagger UI fills in only this one

    converter.map_to_openapi_type(DataField, "object", None)
    converter.add_attribute_function(describe_own)
    converter.add_parameter_attribute_function(show_example)


def _known(converter: Any, words: Mapping[str, Mapping[str, JSONObject]]) -> Mapping[str, object]:
    """Return what the words leave to the code, by the name that stands for it. `words` are of fields, by schema."""
    schemas = Schemas(IdType.OBJECTID, SPECIFIED)
    validating = [schema for schema in vars(schemas).values() if isinstance(schema, Schema)]
    for schema in validating:
        for of_class in reversed(type(schema).__mro__):
            for name, of_field in words.get(of_class.__name__, {}).items():
                if name in schema.fields:
                    schema.fields[name].metadata = {**schema.fields[name].metadata, **of_field}
    fields = converter.schema2jsonschema(schemas.create)["properties"]
    return {
        **{type(schema).__name__: schema for schema in validating},
        "kind_settings": {name: setting.metadata["schema"] for name, setting in SETTINGS.items()},
        **{name: _present(schema) for name, schema in fields.items()},
    }


def _present(schema: JSONObject) -> JSONObject:
    """Return the schema of a field that is absent rather than null."""
    return schema | ({"type": schema["type"][0]} if isinstance(schema["type"], list) else {})


def _complete(operation: JSONObject, schemes: tuple[str, ...], headers: JSONObject) -> None:
    """Add the security schemes of an operation, its problems, and the headers of all its answers."""
    names = {"MethodNotAllowed", *operation.pop("x-problems", ())}
    if schemes:
        operation["security"] = [{scheme: []} for scheme in schemes]
        names |= OF_CALLERS
    if "token" in schemes:
        names.add("OtherUser")
    if schemes and "parameters" in operation:
        names |= {"ValidationError", "Unavailable"}
    if "requestBody" in operation:
        names |= OF_BODIES
    operation["responses"] |= _problems(names, {**EXAMPLES, "ValidationError": _validation_error(operation)})
    for status, answer in operation["responses"].items():
        of_status = ("X-Request-ID", *STATUS_HEADERS.get(status, ()))
        answer["headers"] = {name: headers[name] for name in of_status} | answer.get("headers", {})


def _validation_error(operation: JSONObject) -> ValidationError:
    """Return the error that an invalid request really raises."""
    schemas = [parameter["schema"] for parameter in operation.get("parameters", ())]
    if "requestBody" in operation:
        schemas.insert(0, operation["requestBody"]["content"]["application/json"]["schema"])
    errors: JSONObject = {}
    for part in schemas:
        match part:
            case {"oneOf": [schema, *_]} | schema if isinstance(schema, Schema):
                errors |= schema.validate(INVALID_REQUEST)
    of_ids = {name: {"x-code": "id_fault"} for name, texts in errors.items() if texts == [IdType.OBJECTID.fault]}
    return ValidationError(errors | of_ids)


def _problems(names: Iterable[str], raised: Mapping[str, Exception]) -> JSONObject:
    """Describe problems by status, each with an example: the answer to what is raised, where that matters."""
    by_status = attrgetter("status")
    known = {problem.name: problem for problem in sorted(PROBLEMS, key=by_status)}
    problems = [known[name] for name in sorted(names, key=[*known].index)]
    responses = {}
    for status, group in groupby(problems, key=by_status):
        same = list(group)
        examples = {problem.name: _example(problem, raised.get(problem.name)) for problem in same}
        responses[f"{status}"] = {
            "description": "\n".join(f"- {meaning(problem)}" for problem in same),
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": examples}},
        }
    return responses


def meaning(problem: Problem) -> str:
    """Return the detail without the words that an exception fills in."""
    return problem.detail.replace("{}.", "…")


def _example(problem: Problem, raised: Exception | None) -> JSONObject:
    words = {"description": ADVICE[problem.name]} if problem.name in ADVICE else {}
    shown = problem_of(raised) if raised else problem
    return {"summary": problem.name, **words, "value": shown.document()}
