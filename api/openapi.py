"""The OpenAPI 3.1 document of the service: `openapi.json`, completed with what only the code knows.

In that file, `{"$ref": "code:…"}` stands for a value of `_known`, and `x-problems` names the problems of an operation
besides those that follow from its callers, parameters and body.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, Final

from aiohttp import web
from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from marshmallow import Schema, ValidationError
from marshmallow.fields import Field

from api.auth import OF_A_USER, Route
from api.bodies import NotJSON
from api.fields import INT64_MAX, DataField, IdField, KindNameField
from api.problems import MEDIA_TYPE, PROBLEMS, Problem, problem_of
from config.ids import OBJECT_ID, STRING_LIMIT, IdType
from kinds import SETTINGS, Kinds, describe_kinds
from mongo.document import JSONObject
from mongo.errors import Incomplete, NotYetComplete, OutboxFull, UnknownUser
from mongo.inbox import EVERY_KIND
from schemas import Schemas
from settings import Scope

VERSION: Final = "1.0.0"
FILE: Final = Path(__file__).with_suffix(".json")
DOCUMENT: Final[web.AppKey[Callable[[], JSONObject]]] = web.AppKey("DOCUMENT")
OF_CALLERS: Final = {"ForeignPage", "NoCredential", "BadCredential", "TokenExpired", "OutOfScope"}
OF_BODIES: Final = {"Compressed", "NotJSON", "BodyTooSlow", "RequestEntityTooLarge"}
STATUS_HEADERS: Final = {"401": ["WWW-Authenticate"], "405": ["Allow"], "429": ["Retry-After"], "503": ["Retry-After"]}
EXAMPLES: Final[Mapping[str, Exception]] = {
    "NotJSON": NotJSON("NaN is not a number"),
    "Incomplete": Incomplete({7: UnknownUser()}),
    "NotYetComplete": NotYetComplete({7: OutboxFull()}),
}
INVALID_REQUEST: Final = {"user_id": ""}  # refused by every operation that takes a user
IDS: Final[Mapping[IdType, JSONObject]] = {
    IdType.OBJECTID: {"pattern": f"^{OBJECT_ID}$", "minLength": 24, "maxLength": 24},
    IdType.STRING: {"minLength": 1, "maxLength": STRING_LIMIT},
}
# The rules for `data` apply at every level, but client generators cannot read a recursive schema.
DATA: Final = {
    "propertyNames": {"pattern": r"^(?!\$)[^\u0000]*$"},
    "additionalProperties": {"minimum": -INT64_MAX - 1, "maximum": INT64_MAX},
}


def describe(routes: Iterable[Route], kinds: Kinds, id_type: IdType) -> JSONObject:
    """Return the OpenAPI document of these routes, for a service with these kinds and ids.

    Raises `KeyError` for a route that the file lacks, and `ValueError` for a problem that does not exist.
    """
    plugin = MarshmallowPlugin()
    spec = APISpec("notifier", VERSION, "3.1.0", [plugin])
    converter: Any = plugin.converter  # set by APISpec
    _teach(converter, kinds, id_type)
    known = _known(Schemas(id_type, kinds), converter)
    text = FILE.read_text("utf-8")
    document: JSONObject = json.loads(text, object_hook=lambda part: known.get(part.get("$ref", ""), part))
    headers = document["components"].pop("headers")
    for method, path, handler, scope in routes:
        operation = document["paths"][path][method.lower()]
        operation["operationId"] = handler.__name__.strip("_")
        _complete(operation, callers(scope), headers)
    for operations in document["paths"].values():
        plugin.operation_helper(operations=operations)
    document["components"]["schemas"] |= spec.components.schemas
    document["info"]["version"] = VERSION
    return document


def callers(scope: Scope | None) -> tuple[str, ...]:
    """Return the security schemes for a scope. Without one, and without API keys, an operation is open to everyone."""
    if scope is None:
        return ()
    return ("key", "token") if scope in OF_A_USER else ("key",)


def _teach(converter: Any, kinds: Kinds, id_type: IdType) -> None:
    """Tell apispec what our own fields accept, and that a parameter shows the example of its schema."""

    def describe_own(_converter: object, own: Field[Any], **_: object) -> JSONObject:
        match own:
            case IdField():
                return IDS[id_type]
            case KindNameField():
                return {"enum": [*kinds]}
            case DataField():
                return DATA
        return {}

    def show_example(_converter: object, _: Field[Any], ret: JSONObject) -> JSONObject:
        examples = ret["schema"].get("examples")
        return {"example": examples[0]} if examples else {}  # Swagger UI fills in only this one

    converter.map_to_openapi_type(DataField, "object", None)
    converter.add_attribute_function(describe_own)
    converter.add_parameter_attribute_function(show_example)


def _known(schemas: Schemas, converter: Any) -> Mapping[str, object]:
    """Return what the file leaves to the code, by the reference that stands for it."""
    kinds = [*schemas.kinds.values()]
    emailed, kept = [kind for kind in kinds if kind.email], [kind for kind in kinds if kind.in_app]
    optional = [kind.name for kind in emailed if not kind.required]
    fields = converter.schema2jsonschema(schemas.create)["properties"]
    validating = {type(schema).__name__: schema for schema in vars(schemas).values() if isinstance(schema, Schema)}
    known = validating | {
        "id": {"type": "string", **IDS[schemas.create.id_type]},
        "kind_settings": {name: setting.metadata["schema"] for name, setting in SETTINGS.items()},
        "kinds": describe_kinds(schemas.kinds),
        "emailed_kinds": {"enum": [EVERY_KIND, *(kind.name for kind in emailed)]},
        "an_emailed_kind": [*emailed, *kinds][0].name,
        "a_kept_kind": [*kept, *kinds][0].name,
        "an_opt_out": {[*optional, EVERY_KIND][0]: {"email": False}},
        "wanted": {kind.name: {"email": True, "required": kind.required} for kind in emailed},
        "unwanted": {kind.name: {"email": kind.required, "required": kind.required} for kind in emailed},
        **{name: _present(schema) for name, schema in fields.items()},
    }
    return {f"code:{name}": value for name, value in known.items()}


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
    return ValidationError(errors)


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
            "description": "\n".join(f"- {problem.meaning}" for problem in same),
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": examples}},
        }
    return responses


def _example(problem: Problem, raised: Exception | None) -> JSONObject:
    advice = {"description": problem.advice} if problem.advice else {}
    shown = problem_of(raised) if raised else problem
    return {"summary": problem.name, **advice, "value": shown.document()}
