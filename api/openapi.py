"""What the service says of itself: an OpenAPI 3.1 document, made from the schemas that validate.

`OPERATIONS` has a line for every route; one that is missing stops the start, so that nothing is served undescribed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web
from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from marshmallow import Schema
from marshmallow.fields import Field

import schemas
from api.hub import STREAMS_PER_USER as USER_LIMIT
from api.sse import KEEP_ALIVE
from mongo.document import JSONObject
from schemas import INT64_MAX

DOCUMENT: Final = web.AppKey("DOCUMENT", dict[str, Any])
"""The OpenAPI document of the service."""
VERSION: Final = "0.1.0"
ABOUT: Final = (
    "In-app notifications and e-mail for users in MongoDB. Every answer has an `X-Request-ID`: that of the request, "
    "if it had a good one, else a new one."
)
PROBLEM_TYPE: Final = "application/problem+json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A success: what it means, its headers, and, unless it has no body, its media type, schema and examples of it."""

    description: str
    schema: JSONObject | None = None
    media_type: str = "application/json"
    examples: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, JSONObject] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A route as its callers see it.

    `callers` are those of `SECURITY` that it takes where the API is not open; `problems` says of each status when.
    """

    summary: str
    description: str = ""
    callers: tuple[str, ...] = ()
    query: type[Schema] | None = None
    headers: type[Schema] | None = None
    body: type[Schema] | None = None
    examples: Mapping[str, JSONObject] = field(default_factory=dict)
    answers: Mapping[int, Answer]
    problems: Mapping[int, str] = field(default_factory=dict)


# --- the tables -----------------------------------------------------------------------------------


def _ref(name: str) -> JSONObject:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(properties: JSONObject, *optional: str) -> JSONObject:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "required": required, "properties": properties}


OBJECT_ID: Final = {"type": "string", "pattern": f"^{schemas.OBJECT_ID}$", "minLength": 24, "maxLength": 24}
COUNT: Final = {"type": "integer", "minimum": 0}
SUCCESS: Final = {"success": True}
USER: Final = "638f394d4b7243fc0399ea67"
NOTIFICATION: Final = {
    "id": "6b03bbf4b2edf30b56b0d266",
    "timestamp": 1698138241,
    "is_new": True,
    "user_id": USER,
    "key": "new_message",
    "target_id": "0399ea67638f394d4b7243fc",
    "data": {"some_field": "some_value"},
}
PAGE: Final = {
    "success": True,
    "data": {
        "elements": 23,
        "new": 12,
        "request": {"user_id": USER, "skip": 0, "limit": 10},
        "list": [NOTIFICATION],
    },
}

INBOX: Final = {"elements": 23, "new": 12, "latest": NOTIFICATION}
EVENTS: Final = f"retry: 3000\n\nevent: inbox\ndata: {json.dumps(INBOX)}\n\n: keep-alive\n\n"

DATA: Final = {
    "type": "object",
    "propertyNames": {"pattern": r"^(?!\$)[^\u0000]*$"},
    "additionalProperties": _ref("Value"),
}
FIELDS: Final[Mapping[type[Field[Any]], JSONObject]] = {schemas.ObjectIdField: OBJECT_ID, schemas.DataField: DATA}
"""What apispec cannot know of our own fields."""

COMPONENTS: Final[Mapping[str, JSONObject]] = {
    "Value": {
        "description": "Any JSON; names and integers are such as MongoDB keeps.",
        "anyOf": [
            {"type": ["null", "boolean", "string"]},
            {"type": "number", "minimum": -INT64_MAX - 1, "maximum": INT64_MAX},
            {"type": "array", "items": _ref("Value")},
            DATA,
        ],
    },
    "Success": _object({"success": {"const": True}}),
    "Notification": _object(
        {
            "id": {"type": "string", "description": "Opaque: what `/read` takes as `notification_id`."},
            "timestamp": {"type": "integer", "description": "When it was created, in Unix seconds."},
            "is_new": {"type": "boolean", "description": "Whether it is unread."},
            "user_id": OBJECT_ID,
            "key": {"type": "string", "enum": [key.value for key in schemas.Key if key.stored]},
            "target_id": OBJECT_ID,
            "data": {"type": "object"},
        },
        "target_id",
        "data",
    ),
    "Page": _object(
        {
            "success": {"const": True},
            "data": _object(
                {
                    "elements": COUNT | {"description": "How many notifications the user has."},
                    "new": COUNT | {"description": "How many of them are unread."},
                    "request": _object(
                        {"user_id": OBJECT_ID, "skip": COUNT, "limit": COUNT, "is_new": {"type": "boolean"}}, "is_new"
                    ),
                    "list": {"type": "array", "items": _ref("Notification"), "description": "Newest first."},
                }
            ),
        }
    ),
    "Inbox": _object(
        {
            "elements": COUNT | {"description": "How many notifications the user has."},
            "new": COUNT | {"description": "How many of them are unread."},
            "latest": {"description": "The newest.", "anyOf": [_ref("Notification"), {"type": "null"}]},
        }
    ),
    "Problem": _object(
        {
            "success": {"const": False},
            "type": {"const": "about:blank"},
            "title": {"type": "string", "description": "The status in words."},
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "detail": {"type": "string", "description": "What is wrong, for people."},
            "errors": {
                "type": "object",
                "description": "Every fault of the request, by the name of the field.",
                "additionalProperties": {"type": "array", "items": {"type": "string"}, "minItems": 1},
            },
        },
        "errors",
    ),
}

RETRY_AFTER: Final = {"required": True, "description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}
ALLOW: Final = {"required": True, "description": "The methods there are.", "schema": {"type": "string"}}
CHALLENGE: Final = {"required": True, "description": "RFC 6750.", "schema": {"type": "string", "pattern": "^Bearer "}}
REQUEST_ID: Final = {
    "required": True,
    "description": "That of the request, if it had a good one, else a new one; the logs have it too.",
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9_.-]{1,64}$"},
}
ETAG: Final = {"required": True, "description": "For `If-None-Match`.", "schema": {"type": "string"}}
PROBLEM_HEADERS: Final[Mapping[int, JSONObject]] = {
    401: {"WWW-Authenticate": CHALLENGE},
    405: {"Allow": ALLOW},
    429: {"Retry-After": RETRY_AFTER},
    503: {"Retry-After": RETRY_AFTER},
}
SECURITY: Final = {
    "key": {
        "type": "http",
        "scheme": "bearer",
        "description": "One of `API_KEYS`. Where there are none, the API is open.",
    },
    "token": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "HS256 with `USER_TOKEN_SECRET`; `sub` is the one user it is for, `exp` is required.",
    },
}
PROBLEM_EXAMPLES: Final[Mapping[int, JSONObject]] = {
    400: {"title": "Bad Request", "detail": "The body is not a JSON object."},
    401: {"title": "Unauthorized", "detail": "The token has expired."},
    403: {"title": "Forbidden", "detail": "The token is another user's."},
    408: {"title": "Request Timeout", "detail": "The body did not come within 30 s."},
    404: {"title": "Not Found", "detail": "The user has no such notification."},
    405: {"title": "Method Not Allowed", "detail": "This resource does not have that method."},
    409: {"title": "Conflict", "detail": "The users' collection does not admit this: see the service's log."},
    413: {"title": "Content Too Large", "detail": f"The body is larger than {65536 // 1024} KiB."},
    422: {
        "title": "Unprocessable Content",
        "detail": "The request is not valid.",
        "errors": {"user_id": ["Not a valid ObjectId."]},
    },
    429: {"title": "Too Many Requests", "detail": f"The user has {USER_LIMIT} streams open already."},
    501: {
        "title": "Not Implemented",
        "detail": "MongoDB must be a replica set for this, one of a single member is enough.",
    },
    503: {"title": "Service Unavailable", "detail": "The database did not confirm in time."},
}

WRONG_METHOD: Final = {405: "The method is wrong."}
INVALID: Final = {422: "Parameters are missing or wrong; `errors` names all of them."}
UNCONFIRMED: Final = {503: "MongoDB did not confirm within 10 s; ask again after `Retry-After` seconds."}
REFUSED: Final = {
    401: "The key or token is missing, wrong or expired; `WWW-Authenticate` says which.",
    403: "A user's token, for another user or for what only a backend may do.",
}
OPERATIONS: Final[Mapping[str, Operation]] = {
    "POST /create": Operation(
        summary="Create a notification",
        description="Keeps the notification for `/list`, owes the user an e-mail, or both, as `key` says. "
        "A missing user is created. The body is read as JSON whatever its Content-Type; it is at most 64 KiB.",
        callers=("key",),
        headers=schemas.CreateHeaders,
        body=schemas.CreateSchema,
        examples={
            "e-mail only": {"user_id": USER, "key": "registration"},
            "all fields": {name: NOTIFICATION[name] for name in ("user_id", "key", "target_id", "data")},
        },
        answers={
            201: Answer(
                description="What was asked is on disk on a majority of MongoDB's members.",
                schema=_ref("Success"),
                examples={"created": SUCCESS},
                headers={
                    "Idempotent-Replayed": {
                        "description": "There where this `Idempotency-Key` was answered before: nothing was done.",
                        "schema": {"type": "string", "enum": ["true"]},
                    }
                },
            )
        },
        problems=WRONG_METHOD
        | REFUSED
        | {
            408: "The body did not come within 30 s.",
            400: "The body is not JSON in UTF-8, gives a name twice, or is not an object.",
            409: "The collection does not admit the write: a unique index, or a `notifications` that is no array.",
            413: "The body is over 64 KiB, or the user's document would pass MongoDB's 16 MiB.",
            422: "Fields are missing or wrong, `errors` names all of them; "
            "or the `Idempotency-Key` came with another body before.",
            503: "MongoDB did not confirm within 10 s, or the user is owed 20 e-mails already; "
            "ask again after `Retry-After` seconds, best with an `Idempotency-Key`.",
        },
    ),
    "GET /list": Operation(
        summary="List a user's notifications",
        description="A page, newest first, and the counts. A user who has no document has an empty list.",
        callers=("key", "token"),
        query=schemas.ListSchema,
        answers={
            200: Answer(description="A page.", schema=_ref("Page"), examples={"page": PAGE}, headers={"ETag": ETAG}),
            304: Answer(description="It is still what `If-None-Match` names.", headers={"ETag": ETAG}),
        },
        problems=WRONG_METHOD | REFUSED | INVALID | UNCONFIRMED,
    ),
    "POST /read": Operation(
        summary="Mark notifications as read",
        description="Takes exactly one of `notification_id`, `target_id`, `key` and `all`. Doing so twice is no error.",
        callers=("key", "token"),
        query=schemas.ReadSchema,
        answers={200: Answer(description="They are read.", schema=_ref("Success"), examples={"read": SUCCESS})},
        problems=WRONG_METHOD
        | REFUSED
        | {404: "The user has no notification with this `notification_id`."}
        | INVALID
        | UNCONFIRMED,
    ),
    "GET /stream": Operation(
        summary="Follow a user's notifications",
        description="Server-Sent Events. On connect, and after each change of the user's notifications by whomever, an "
        "event `inbox`, whose data is an `Inbox`; changes close together may share one. Comments come every "
        f"{KEEP_ALIVE:.0f} s. The stream ends when the token expires or the service stops; after `retry`, ask again.",
        callers=("key", "token"),
        query=schemas.StreamSchema,
        answers={
            200: Answer(
                description="A stream of events, the first at once.",
                schema={"type": "string"},
                media_type="text/event-stream",
                examples={"events": EVENTS},
            )
        },
        problems=WRONG_METHOD
        | REFUSED
        | INVALID
        | {
            429: f"The user has {USER_LIMIT} streams open already.",
            501: "MongoDB is a standalone server; a replica set of one member is enough.",
            503: "MongoDB cannot be followed now, the process has `STREAM_LIMIT` streams open, or it is about to stop.",
        },
    ),
    "GET /healthz": Operation(
        summary="Whether the process is alive",
        answers={200: Answer(description="It is.", schema=_ref("Success"), examples={"alive": SUCCESS})},
        problems=WRONG_METHOD,
    ),
    "GET /readyz": Operation(
        summary="Whether requests should be sent here",
        answers={200: Answer(description="MongoDB answers.", schema=_ref("Success"), examples={"ready": SUCCESS})},
        problems=WRONG_METHOD | {503: "MongoDB does not answer, or the service is about to stop."},
    ),
    "GET /metrics": Operation(
        summary="Metrics for Prometheus",
        callers=("key",),
        answers={200: Answer(description="Its text format.", schema={"type": "string"}, media_type="text/plain")},
        problems=WRONG_METHOD | REFUSED,
    ),
    "GET /openapi.json": Operation(
        summary="This document",
        answers={200: Answer(description="OpenAPI 3.1.", schema={"type": "object"})},
        problems=WRONG_METHOD,
    ),
    "GET /docs": Operation(
        summary="This document, for people to read",
        answers={200: Answer(description="A page.", schema={"type": "string"}, media_type="text/html")},
        problems=WRONG_METHOD,
    ),
}


# --- the document ---------------------------------------------------------------------------------


def describe(routes: Iterable[web.RouteDef]) -> JSONObject:
    """Return the OpenAPI document of these routes.

    Raises `KeyError` for a route that `OPERATIONS` has not.
    """
    plugin = MarshmallowPlugin(schema_name_resolver=_name)
    info = {"description": ABOUT}
    spec = APISpec("notifier", VERSION, "3.1.0", [plugin], info=info)
    converter: Any = plugin.converter  # which APISpec made
    converter.add_attribute_function(_own_field)
    for name, scheme in SECURITY.items():
        spec.components.security_scheme(name, scheme)
    for name, component in COMPONENTS.items():
        spec.components.schema(name, component)
    for route in routes:
        operation = _operation(OPERATIONS[f"{route.method} {route.path}"])
        operation["operationId"] = route.handler.__name__.strip("_")
        spec.path(route.path, operations={route.method.lower(): operation})
    return spec.to_dict()


def _name(schema: type[Schema] | Schema) -> str:
    return (schema if isinstance(schema, type) else type(schema)).__name__.removesuffix("Schema")


def _own_field(_converter: object, own: Field[Any], **_: object) -> JSONObject:
    known = FIELDS.get(type(own), {})
    return known | {"type": [known["type"], "null"]} if known and own.allow_none else known


def _operation(operation: Operation) -> JSONObject:
    described: JSONObject = {
        "summary": operation.summary,
        "description": operation.description,
        "security": [{caller: []} for caller in operation.callers],
        "parameters": [
            {"in": where, "schema": schema}
            for where, schema in (("header", operation.headers), ("query", operation.query))
            if schema
        ],
        "responses": {status: _answer(answer) for status, answer in operation.answers.items()}
        | {status: _problem(status, when) for status, when in sorted(operation.problems.items())},
    }
    if operation.body:
        content = {"application/json": {"schema": operation.body, "examples": _examples(operation.examples)}}
        described["requestBody"] = {"required": True, "content": content}
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


def _problem(status: int, when: str) -> JSONObject:
    example = {"success": False, "type": "about:blank", "status": status} | PROBLEM_EXAMPLES[status]
    return _answer(
        Answer(
            description=when,
            schema=_ref("Problem"),
            media_type=PROBLEM_TYPE,
            examples={"problem": example},
            headers=PROBLEM_HEADERS.get(status, {}),
        )
    )


def _examples(values: Mapping[str, Any]) -> JSONObject:
    return {name: {"value": value} for name, value in values.items()}
