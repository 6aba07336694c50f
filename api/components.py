"""The parts that the operations of the OpenAPI document share: schemas, examples, headers and security schemes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from api.fields import INT64_MAX
from api.middleware import REQUEST_ID_PATTERN
from api.sse import COMMENT, RETRY_MS, encode
from config.ids import OBJECT_ID, STRING_LIMIT, IdType
from mongo.changes import Inbox
from mongo.document import JSONObject


def ref(name: str) -> JSONObject:
    """Return a reference to one of the schemas."""
    return {"$ref": f"#/components/schemas/{name}"}


def _object(properties: JSONObject, *optional: str) -> JSONObject:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "required": required, "properties": properties}


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
EVENTS: Final = f"retry: {RETRY_MS[0]}\n\n{encode(Inbox(23, 12, NOTIFICATION)).decode()}{COMMENT.decode()}"
INVALID_REQUEST: Final = {"user_id": ""}
"""Every operation that takes a user refuses this one."""

# --- schemas ----------------------------------------------------------------------------------------

COUNT: Final = {"type": "integer", "minimum": 0}
COUNTS: Final = {
    "elements": COUNT | {"description": "How many notifications the user has."},
    "new": COUNT | {"description": "How many of them are unread."},
    "unseen": COUNT | {"description": "How many unread ones came since `/seen`; absent before its first call."},
}
TEXTS: Final = {
    "type": "object",
    "additionalProperties": {"type": "string"},
    "description": "The same by language.",
}
REASONS: Final = {"type": "array", "items": {"type": "string"}, "minItems": 1}
DATA: Final = {
    "type": "object",
    "propertyNames": {"pattern": r"^(?!\$)[^\u0000]*$"},
    "additionalProperties": {"minimum": -INT64_MAX - 1, "maximum": INT64_MAX},
}
"""The rules for `data` hold at every level. A recursive schema could say so, but client generators choke on one."""


def id_schema(id_type: IdType) -> JSONObject:
    """Return the schema of an id."""
    if id_type is IdType.OBJECTID:
        return {"type": "string", "pattern": f"^{OBJECT_ID}$", "minLength": 24, "maxLength": 24}
    return {"type": "string", "minLength": 1, "maxLength": STRING_LIMIT}


def component_schemas(id_type: IdType) -> Mapping[str, JSONObject]:
    """Return the schemas of answers, by name."""
    id_ = id_schema(id_type)
    return {
        "Kinds": _object(
            {
                "success": {"const": True},
                "data": {"type": "object", "additionalProperties": ref("Kind")},
            }
        ),
        "Kind": _object(
            {
                "in_app": {"type": "boolean", "description": "Whether it is kept for `/list`."},
                "email": {"type": "boolean", "description": "Whether it is e-mailed."},
                "required": {"type": "boolean", "description": "Whether the user cannot opt out."},
                "label": {"type": "string", "description": "What the bell says, with placeholders."},
                "url": {"type": "string", "description": "Where a click leads, with placeholders."},
                "labels": TEXTS,
                "name": {"type": "string", "description": "What settings call it."},
                "names": TEXTS,
                "icon": {"type": "string", "description": "An emoji, an https address, or a path."},
                "email_after": {"type": "string", "description": "How long an e-mail waits, such as `10m`."},
                "email_batch": {"enum": ["target", "kind"], "description": "What one e-mail is about."},
                "collapse": {"type": "boolean", "description": "A new one replaces the unread one of its target."},
            },
            *("label", "url", "labels", "name", "names", "icon", "email_after", "email_batch", "collapse"),
        ),
        "UserPreferences": _object(
            {
                "success": {"const": True},
                "data": {"type": "object", "additionalProperties": ref("UserPreference")},
            }
        ),
        "UserPreference": _object(
            {
                "email": {"type": "boolean", "description": "Whether e-mails of this kind are sent."},
                "required": {"type": "boolean", "description": "Whether the user cannot opt out."},
            }
        ),
        "Suppressed": _object(
            {"success": {"const": True}, "data": _object({"suppressed": {"type": "boolean"}})},
        ),
        "Success": _object({"success": {"const": True}}),
        "Created": _object(
            {
                "success": {"const": True},
                "created": COUNT | {"description": "Of `user_ids`: how many were notified by this request."},
                "replayed": COUNT | {"description": "Of `user_ids`: how many were notified before."},
                "not_owed": COUNT
                | {"description": "Of `created`, if there are any: how many are owed no e-mail, as too many wait."},
            },
            "created",
            "replayed",
            "not_owed",
        ),
        "Notification": _object(
            {
                "id": {"type": "string", "description": "Opaque. `/read` takes it as `notification_id`."},
                "timestamp": {"type": "integer", "description": "When it was created, in Unix seconds."},
                "is_new": {"type": "boolean", "description": "Whether it is unread."},
                "user_id": id_,
                "key": {"type": "string", "description": "Its kind, which may have left the table since."},
                "target_id": id_,
                "data": {"type": "object"},
                "count": {"type": "integer", "minimum": 1, "description": "Of a kind with `collapse`: how many it is."},
            },
            "target_id",
            "data",
            "count",
        ),
        "Page": _object(
            {
                "success": {"const": True},
                "data": _object(
                    {
                        **COUNTS,
                        "request": _object(
                            {
                                "user_id": id_,
                                "skip": COUNT,
                                "limit": COUNT,
                                "is_new": {"type": "boolean"},
                                "key": {"type": "string"},
                            },
                            *("is_new", "key"),
                        ),
                        "list": {"type": "array", "items": ref("Notification"), "description": "Newest first."},
                    },
                    "unseen",
                ),
            }
        ),
        "Inbox": _object(
            {**COUNTS, "latest": {"description": "The newest.", "anyOf": [ref("Notification"), {"type": "null"}]}},
            "unseen",
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
                    "description": "Every fault of the request, by the name of the field; in a list, also by index.",
                    "additionalProperties": {
                        "anyOf": [REASONS, {"type": "object", "additionalProperties": REASONS, "minProperties": 1}]
                    },
                },
            },
            "errors",
        ),
    }


# --- headers and security schemes -------------------------------------------------------------------

REQUEST_ID: Final = {
    "required": True,
    "description": "The one of the request if that has 1 to 64 letters, digits or `._-`, otherwise a new one. "
    "It is in the log as well.",
    "schema": {"type": "string", "pattern": f"^{REQUEST_ID_PATTERN}$"},
}
ETAG: Final = {"required": True, "description": "For `If-None-Match`.", "schema": {"type": "string"}}
RETRY_AFTER: Final = {"required": True, "description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}
ALLOW: Final = {"required": True, "description": "The methods it supports.", "schema": {"type": "string"}}
CHALLENGE: Final = {"required": True, "description": "RFC 6750.", "schema": {"type": "string", "pattern": "^Bearer "}}
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
