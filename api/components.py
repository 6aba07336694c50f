"""The parts that the operations of the OpenAPI document share: schemas, examples, headers and security schemes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from api.fields import INT64_MAX
from api.middleware import REQUEST_ID_PATTERN
from api.streams import COMMENT, RETRY_MS, encode
from config.ids import OBJECT_ID, STRING_LIMIT, IdType
from kinds import SETTINGS, TOLD, Kinds
from mongo.document import OUTBOX_LIMIT, JSONObject
from mongo.inbox import EVERY_KIND, Page


def ref(name: str) -> JSONObject:
    return {"$ref": f"#/components/schemas/{name}"}


# --- examples ---------------------------------------------------------------------------------------

USER: Final = "638f394d4b7243fc0399ea67"
SUCCESS: Final = {"success": True}
NOTIFICATION: Final[JSONObject] = {
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
EVENTS: Final = f"retry: {RETRY_MS[0]}\n\n{encode(Page(23, 12, [NOTIFICATION])).decode()}{COMMENT.decode()}"
INVALID_REQUEST: Final = {"user_id": ""}
"""Every operation that takes a user refuses this one."""

# --- schemas ----------------------------------------------------------------------------------------


def _typed(type_: str, description: str) -> JSONObject:
    return {"type": type_, "description": description}


COUNT: Final = {"type": "integer", "minimum": 0}


def _object(properties: JSONObject, optional: Collection[str] = ()) -> JSONObject:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "required": required, "properties": properties}


def _with_data(data: JSONObject) -> JSONObject:
    return _object({"success": {"const": True}, "data": data})


COUNTS: Final = {
    "elements": COUNT | {"description": "How many notifications the user has."},
    "new": COUNT | {"description": "How many of them are unread."},
    "unseen": COUNT | {"description": "How many unread ones came since `/seen`; absent before its first call."},
}
REASONS: Final = {"type": "array", "items": {"type": "string"}, "minItems": 1}
DATA: Final = {
    "type": "object",
    "propertyNames": {"pattern": r"^(?!\$)[^\u0000]*$"},
    "additionalProperties": {"minimum": -INT64_MAX - 1, "maximum": INT64_MAX},
}
"""The rules for `data` apply at every level, but client generators cannot read a recursive schema."""
KIND: Final = {name: setting.metadata["schema"] for name, setting in SETTINGS.items()}
PREFERENCE: Final = {
    "email": _typed("boolean", "Whether e-mails of this kind are sent."),
    "required": _typed("boolean", "Whether the user cannot opt out."),
}
PROBLEM: Final = {
    "success": {"const": False},
    "type": {"const": "about:blank"},
    "title": _typed("string", "The status in words."),
    "status": {"type": "integer", "minimum": 400, "maximum": 599},
    "detail": _typed("string", "What is wrong, for people."),
    "errors": {
        "type": "object",
        "description": "Every fault of the request, by the name of the field; in a list, also by index.",
        "additionalProperties": {
            "anyOf": [REASONS, {"type": "object", "additionalProperties": REASONS, "minProperties": 1}]
        },
    },
}


def id_schema(id_type: IdType) -> JSONObject:
    if id_type is IdType.OBJECTID:
        return {"type": "string", "pattern": f"^{OBJECT_ID}$", "minLength": 24, "maxLength": 24}
    return {"type": "string", "minLength": 1, "maxLength": STRING_LIMIT}


def preferences(kinds: Kinds) -> JSONObject:
    """Return what the body of `POST /preferences` may have besides being an object."""
    wanted = {
        "type": ["object", "null"],
        "required": ["email"],
        "properties": {"email": {"type": ["boolean", "null"]}},
        "additionalProperties": False,
    }
    names = [EVERY_KIND, *(kind.name for kind in kinds.values() if kind.email)]
    return {"propertyNames": {"enum": names}, "additionalProperties": wanted}


def component_schemas(id_type: IdType, created: JSONObject) -> Mapping[str, JSONObject]:
    """Return the schemas of answers, by name. `created` are the properties that a notification has from its request."""
    optional = created.keys() - {"user_id", "key"}
    request = {"user_id": id_schema(id_type), "skip": COUNT, "limit": COUNT}
    request |= {"is_new": {"type": "boolean"}, "key": {"type": "string"}}
    notifications = {"type": "array", "items": ref("Notification"), "description": "Newest first."}
    page = {**COUNTS, "request": _object(request, {"is_new", "key"}), "list": notifications}
    latest = {"description": "The newest.", "anyOf": [ref("Notification"), {"type": "null"}]}
    return {
        "Success": _object({"success": {"const": True}}),
        "Created": _object(
            {
                "success": {"const": True},
                "created": COUNT | {"description": "Of `user_ids`: how many were notified by this request."},
                "replayed": COUNT | {"description": "Of `user_ids`: how many were notified before."},
                "not_owed": COUNT
                | {"description": "Of `created`, if there are any: how many are owed no e-mail, as too many wait."},
            },
            optional=("created", "replayed", "not_owed"),
        ),
        "Notification": _object(
            {
                "id": _typed("string", "Opaque. `/read` takes it as `notification_id`."),
                "timestamp": _typed("integer", "When it was created, in Unix seconds."),
                "is_new": _typed("boolean", "Whether it is unread."),
                **created,
                "key": _typed("string", "Its kind, which may have left the table since."),
                "count": {"type": "integer", "minimum": 1, "description": "With `collapse`: how many it stands for."},
            },
            optional={*optional, "count"},
        ),
        "Page": _with_data(_object(page, {"unseen"})),
        "Inbox": _object({**COUNTS, "latest": latest}, {"unseen"}),
        "Kinds": _with_data({"type": "object", "additionalProperties": ref("Kind")}),
        "Kind": _object(KIND, KIND.keys() - TOLD),
        "UserPreferences": _with_data({"type": "object", "additionalProperties": ref("UserPreference")}),
        "UserPreference": _object(PREFERENCE),
        "Suppressed": _with_data(_object({"suppressed": {"type": "boolean"}})),
        "Problem": _object(PROBLEM, {"errors"}),
    }


# --- answers, their headers, and security schemes ---------------------------------------------------


def content(schema: object, examples: Mapping[str, object], media_type: str = "application/json") -> JSONObject:
    return {media_type: {"schema": schema, "examples": {name: {"value": value} for name, value in examples.items()}}}


def answer(
    description: str,
    schema: JSONObject | None = None,
    examples: Mapping[str, object] | None = None,
    *,
    media_type: str = "application/json",
    headers: JSONObject | None = None,
) -> JSONObject:
    """Return a success. One without a schema has no body."""
    body = {"content": content(schema, examples or {}, media_type)} if schema else {}
    return {"description": description, "headers": {"X-Request-ID": REQUEST_ID, **(headers or {})}, **body}


def _header(description: str, *, required: bool = True, **schema: Any) -> JSONObject:
    return {"required": required, "description": description, "schema": {"type": "string", **schema}}


REQUEST_ID: Final = _header(
    "The one of the request if that has 1 to 64 letters, digits or `._-`, otherwise a new one. It is in the log as "
    "well.",
    pattern=f"^{REQUEST_ID_PATTERN}$",
)
ETAG: Final = {"ETag": _header("For `If-None-Match`.")}
RETRY_AFTER: Final = {"Retry-After": _header("Seconds.", type="integer", minimum=1)}
PROBLEM_HEADERS: Final[Mapping[int, JSONObject]] = {
    401: {"WWW-Authenticate": _header("RFC 6750.", pattern="^Bearer ")},
    405: {"Allow": _header("The methods it supports.")},
    429: RETRY_AFTER,
    503: RETRY_AFTER,
}
CREATED_HEADERS: Final = {
    "X-Notification-ID": _header(
        "Present unless `user_ids` were given: the `id` that `/list` shows and `/delete` takes, also of a kind that is "
        "only e-mailed.",
        required=False,
    ),
    "Idempotent-Replayed": _header(
        "Present if a request with this `Idempotency-Key` was answered before. This one had no effect.",
        required=False,
        enum=["true"],
    ),
    "X-Email": _header(
        "Present if the notification is kept, but its e-mail is not owed, as the user is owed "
        f"{OUTBOX_LIMIT} e-mails already.",
        required=False,
        enum=["not-owed"],
    ),
}
SECURITY: Final = {
    "key": {
        "type": "http",
        "scheme": "bearer",
        "description": "A backend's key: one of `API_KEYS`, which may be for some operations only. While there are "
        "none, the API is open to everyone.",
    },
    "token": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A user's token: a JWT signed with one of `USER_TOKEN_SECRETS` (HS256). `sub` is the user's id; "
        "`exp` is required.",
    },
}
