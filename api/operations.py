"""The table of operations: what each route does, who may call it, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from marshmallow import ValidationError

import schemas
from api import body, stream
from api.answers import TooMuchInFlight
from api.components import ETAG, EVENTS, NOTIFICATION, PAGE, SUCCESS, USER, ref
from api.operation import BAD_BODY, NOT_A_BACKEND, NOT_THE_USER, UNCONFIRMED, WRONG_METHOD, Answer, Operation
from api.problems import NoSuchNotification
from api.sse import KEEP_ALIVE
from api.user_operations import user_operations
from config.ids import IdType
from mongo import changes, errors
from mongo.document import OUTBOX_LIMIT, JSONObject
from mongo.fan_out import Incomplete, NotYetComplete
from ops.kinds import Kinds, describe_kinds

TAGS: Final = {
    "Notifications": "Create, list and mark notifications.",
    "Users": "What users decide, and what is known of their addresses.",
    "Streams": "Follow a user's notifications live.",
    "Operation": "Probes and metrics.",
    "Documentation": "The API itself.",
}


def _bodies(kinds: Kinds) -> Mapping[str, JSONObject]:
    """Return examples of `POST /create`: one with the fields that must be there, and one with all."""
    emailed = next((name for name, kind in kinds.items() if kind.email), next(iter(kinds)))
    kept = next((name for name, kind in kinds.items() if kind.in_app), next(iter(kinds)))
    fields = ("user_id", "key", "target_id", "data")
    return {
        "required fields": {"user_id": USER, "key": emailed},
        "all fields": {name: NOTIFICATION[name] for name in fields} | {"key": kept},
    }


def _marking(summary: str, done: str, kinds: Kinds, id_type: IdType) -> Operation:
    """Describe an operation on the notifications that its query selects."""
    return Operation(
        tag="Notifications",
        summary=summary,
        description=f"Takes exactly one of {', '.join(f'`{name}`' for name in schemas.SELECTORS)}. Asking twice is not "
        "an error.",
        callers=("key", "token"),
        query=schemas.SelectionSchema(id_type, kinds),
        answers={200: Answer(description=done, schema=ref("Success"), examples={"done": SUCCESS})},
        problems=(
            *WRONG_METHOD,
            *NOT_THE_USER,
            NoSuchNotification,
            ValidationError,
            errors.Conflict,
            *UNCONFIRMED,
        ),
    )


def operations(kinds: Kinds, id_type: IdType) -> Mapping[str, Operation]:
    """Return the operations, by method and path, of a service with these kinds."""
    return {
        "POST /create": Operation(
            tag="Notifications",
            summary="Create a notification",
            description="Keeps the notification for `/list`, owes the user an e-mail, or both, as `key` says. A "
            "missing user is created, unless `UNKNOWN_USERS` says otherwise. `user_ids` in place of `user_id` notifies "
            "many users at once. The body is read as JSON, whatever its Content-Type. It may have "
            f"{body.BODY_LIMIT // 1024} KiB.",
            callers=("key",),
            headers=schemas.CreateHeaders,
            body=schemas.CreateSchema(id_type, kinds),
            examples=_bodies(kinds),
            answers={
                201: Answer(
                    description="The notification and the e-mail owed are on disk on a majority of MongoDB's members.",
                    schema=ref("Created"),
                    examples={"created": SUCCESS, "many": SUCCESS | {"created": 998, "replayed": 2}},
                    headers={
                        "X-Notification-ID": {
                            "description": "Present unless `user_ids` were given: the `id` that `/list` shows and "
                            "`/delete` takes, also of a kind that is only e-mailed.",
                            "schema": {"type": "string"},
                        },
                        "Idempotent-Replayed": {
                            "description": "Present if a request with this `Idempotency-Key` was answered before. "
                            "This one had no effect.",
                            "schema": {"type": "string", "enum": ["true"]},
                        },
                        "X-Email": {
                            "description": f"Present if the notification is kept, but its e-mail is not owed, as the "
                            f"user is owed {OUTBOX_LIMIT} e-mails already.",
                            "schema": {"type": "string", "enum": ["not-owed"]},
                        },
                    },
                )
            },
            problems=(
                *WRONG_METHOD,
                *NOT_A_BACKEND,
                *BAD_BODY,
                ValidationError,
                errors.UnknownUser,
                errors.KeyReused,
                Incomplete,
                errors.Conflict,
                errors.TooLarge,
                *UNCONFIRMED,
                errors.OutboxFull,
                NotYetComplete,
            ),
        ),
        "GET /list": Operation(
            tag="Notifications",
            summary="List a user's notifications",
            description="Returns one page, newest first, and the counts. A user without a document has an empty list.",
            callers=("key", "token"),
            query=schemas.ListSchema(id_type, kinds),
            answers={
                200: Answer(
                    description="A page and the counts.",
                    schema=ref("Page"),
                    examples={"page": PAGE},
                    headers={"ETag": ETAG},
                ),
                304: Answer(
                    description="Nothing has changed since the answer that `If-None-Match` names.",
                    headers={"ETag": ETAG},
                ),
            },
            problems=(*WRONG_METHOD, *NOT_THE_USER, ValidationError, TooMuchInFlight, *UNCONFIRMED),
        ),
        "POST /read": _marking("Mark notifications as read", "They are read.", kinds, id_type),
        "POST /unread": _marking("Mark notifications as unread", "They are unread.", kinds, id_type),
        "POST /delete": _marking(
            "Delete notifications", "They are deleted, for good, and so are e-mails about them.", kinds, id_type
        ),
        "POST /seen": Operation(
            tag="Notifications",
            summary="Note that the inbox was seen",
            description="All that there is now has been seen, read or not. From the first call on, `/list` and the "
            "stream have `unseen`. Asking twice is not an error.",
            callers=("key", "token"),
            query=schemas.UserSchema(id_type),
            answers={200: Answer(description="Noted.", schema=ref("Success"), examples={"noted": SUCCESS})},
            problems=(
                *WRONG_METHOD,
                *NOT_THE_USER,
                ValidationError,
                errors.Conflict,
                errors.TooLarge,
                *UNCONFIRMED,
            ),
        ),
        **user_operations(kinds, id_type),
        "GET /stream": Operation(
            tag="Streams",
            summary="Follow a user's notifications",
            description="Keeps the answer open and sends Server-Sent Events. An event `inbox` comes at once and again "
            "after each change of the user's notifications, whoever made it. Its data is an `Inbox`. Changes in quick "
            f"succession may share one event. A comment comes after {KEEP_ALIVE:.0f} s without one. The stream ends "
            "when the token expires or the service stops. Reconnect after `retry` milliseconds.",
            callers=("key", "token"),
            query=schemas.UserSchema(id_type),
            answers={
                200: Answer(
                    description="A stream of events.",
                    schema={"type": "string"},
                    media_type="text/event-stream",
                    examples={"events": EVENTS},
                )
            },
            problems=(
                *WRONG_METHOD,
                *NOT_THE_USER,
                ValidationError,
                stream.Unreadable,
                stream.TooManyOfUser,
                changes.NotReplicated,
                errors.Unavailable,
                stream.TooManyOfProcess,
                stream.Stopping,
            ),
        ),
        "GET /healthz": Operation(
            tag="Operation",
            summary="Check that the process is alive",
            answers={200: Answer(description="It is alive.", schema=ref("Success"), examples={"alive": SUCCESS})},
            problems=WRONG_METHOD,
        ),
        "GET /readyz": Operation(
            tag="Operation",
            summary="Check whether to send requests here",
            answers={200: Answer(description="MongoDB answers.", schema=ref("Success"), examples={"ready": SUCCESS})},
            problems=(*WRONG_METHOD, errors.Unavailable, stream.Stopping),
        ),
        "GET /metrics": Operation(
            tag="Operation",
            summary="Read the metrics",
            callers=("key",),
            answers={
                200: Answer(
                    description="The metrics in Prometheus's text format.",
                    schema={"type": "string"},
                    media_type="text/plain",
                )
            },
            problems=(*WRONG_METHOD, *NOT_A_BACKEND),
        ),
        "GET /kinds": Operation(
            tag="Notifications",
            summary="List the kinds of notification",
            description="What each does, and what pages say of it: its label, url, name and icon.",
            answers={
                200: Answer(
                    description="The kinds by name.",
                    schema=ref("Kinds"),
                    examples={"kinds": describe_kinds(kinds)},
                    headers={"ETag": ETAG},
                ),
                304: Answer(
                    description="Nothing has changed since the answer that `If-None-Match` names.",
                    headers={"ETag": ETAG},
                ),
            },
            problems=WRONG_METHOD,
        ),
        "GET /openapi.json": Operation(
            tag="Documentation",
            summary="Get this document",
            answers={200: Answer(description="The OpenAPI document.", schema={"type": "object"})},
            problems=WRONG_METHOD,
        ),
        "GET /docs": Operation(
            tag="Documentation",
            summary="Read this document as a page",
            answers={200: Answer(description="Swagger UI.", schema={"type": "string"}, media_type="text/html")},
            problems=WRONG_METHOD,
        ),
    }
