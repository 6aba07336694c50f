"""The table of operations: what each route does, who may call it, and what it answers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from aiohttp import web
from marshmallow import Schema, ValidationError, validate
from marshmallow import fields as mf

from api import auth
from api.bodies import BODY_LIMIT, BodyTooSlow, Compressed, NotJSON, TooMuchInFlight
from api.components import CREATED_HEADERS, ETAG, EVENTS, PAGE, SUCCESS, USER, answer, ref
from api.problems import NoSuchNotification
from api.streams import KEEP_ALIVE, Stopping, TooManyOfProcess, TooManyOfUser, Unreadable
from api.unsubscribe import CHOICES
from config.ids import IdType
from kinds import Kinds, describe_kinds
from mail.unsubscribe import NoSuchLink
from mongo.changes import NotReplicated
from mongo.document import JSONObject
from mongo.errors import Busy, Conflict, EmailUnderWay, KeyReused, OutboxFull, TooLarge, Unavailable, UnknownUser
from mongo.fan_out import Incomplete, NotYetComplete
from schemas import SELECTORS, Schemas
from settings import Scope

CHAPTERS: Final = {
    "/create": "Notifications",
    "/preferences": "Users",
    "/stream": "Streams",
    "/healthz": "Operation",
    "/openapi.json": "Documentation",
}
"""The path of the first route of each chapter, and what the document calls the chapter."""
TOKEN: Final = Schema.from_dict(
    {"token": mf.String(required=True, metadata={"description": "From the link in an e-mail."})}
)
CHOICE: Final = Schema.from_dict(
    {
        "choice": mf.String(
            validate=validate.OneOf(CHOICES[1:]),
            metadata={"description": "Without one: unsubscribe from e-mails of this kind."},
        )
    }
)
OF_CALLERS: Final = (auth.ForeignPage, auth.NoCredential, auth.BadCredential, auth.TokenExpired, auth.OutOfScope)
OF_BODIES: Final = (Compressed, NotJSON, BodyTooSlow, web.HTTPRequestEntityTooLarge)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A route as its callers see it.

    `scope` is what its callers must have, if it is not open to everyone. `bodies` are the schemas that its body
    may have. `raises` are the exceptions that do not follow from the rest.
    """

    summary: str
    description: str = ""
    scope: Scope | None = None
    path: Schema | None = None
    query: Schema | None = None
    headers: Schema | None = None
    bodies: tuple[Schema, ...] = ()
    needs_body: bool = True
    examples: Mapping[str, JSONObject] = field(default_factory=dict)
    answers: Mapping[int, JSONObject]
    raises: tuple[type[Exception], ...] = ()

    @property
    def callers(self) -> tuple[str, ...]:
        """The security schemes that it accepts once API keys are set; without any, it is open to everyone."""
        return ("key", "token") if self.scope in auth.OF_A_USER else ("key",) if self.scope else ()

    @property
    def problems(self) -> tuple[type[Exception], ...]:
        """The exceptions that it may answer with."""
        return (
            web.HTTPMethodNotAllowed,
            *(OF_CALLERS if self.callers else ()),
            *((auth.OtherUser,) if "token" in self.callers else ()),
            *(OF_BODIES if self.bodies else ()),
            *((ValidationError, Unavailable) if self.callers and (self.query or self.bodies) else ()),
            *self.raises,
        )


def _ok(description: str, schema: str = "Success", example: JSONObject = SUCCESS) -> Mapping[int, JSONObject]:
    return {200: answer(description, ref(schema), {"example": example})}


def _text(description: str, media_type: str, examples: Mapping[str, str] | None = None) -> Mapping[int, JSONObject]:
    return {200: answer(description, {"type": "string"}, examples, media_type=media_type)}


def _cached(description: str, schema: str, example: Any) -> Mapping[int, JSONObject]:
    """Return an answer that has an ETag, and the one to a client that has it already."""
    unchanged = "Nothing has changed since the answer that `If-None-Match` names."
    return {
        200: answer(description, ref(schema), {"example": example}, headers=ETAG),
        304: answer(unchanged, headers=ETAG),
    }


def operations(routes: Iterable[auth.Route], kinds: Kinds, id_type: IdType) -> Mapping[str, Operation]:
    """Return the operations, by method and path, of a service with these kinds and ids.

    Raises `KeyError` for one that has no route.
    """
    scopes = {f"{route.method} {route.path}": route.scope for route in routes}
    described = _described(Schemas(id_type, kinds))
    return {name: replace(operation, scope=scopes[name]) for name, operation in described.items()}


def _described(schemas: Schemas) -> Mapping[str, Operation]:
    return {
        **_creating(schemas),
        "GET /list": Operation(
            summary="List a user's notifications",
            description="Returns one page, newest first, and the counts. A user without a document has an empty list.",
            query=schemas.list,
            answers=_cached("A page and the counts.", "Page", PAGE),
            raises=(TooMuchInFlight, Busy),
        ),
        "POST /read": _marking(schemas, "Mark notifications as read", "They are read."),
        "POST /unread": _marking(schemas, "Mark notifications as unread", "They are unread."),
        "POST /delete": _marking(schemas, "Delete notifications", "They, and e-mails about them, are gone for good."),
        "POST /seen": Operation(
            summary="Note that the inbox was seen",
            description="All that there is now has been seen, read or not. From the first call on, `/list` and the "
            "stream have `unseen`. Asking twice is not an error.",
            query=schemas.user,
            answers=_ok("Noted."),
            raises=(Conflict, TooLarge, Busy),
        ),
        "GET /kinds": Operation(
            summary="List the kinds of notification",
            description="What each does, and what pages say of it: its label, url, name and icon.",
            answers=_cached("The kinds by name.", "Kinds", describe_kinds(schemas.kinds)),
        ),
        **_of_users(schemas),
        "GET /stream": Operation(
            summary="Follow a user's notifications",
            description="Keeps the answer open and sends Server-Sent Events. An event `inbox` comes at once and again "
            "after each change of the user's notifications, whoever made it. Its data is an `Inbox`. Changes in quick "
            f"succession may share one event. A comment comes after {KEEP_ALIVE:.0f} s without one. The stream ends "
            "when the token expires or the service stops. Reconnect after `retry` milliseconds.",
            query=schemas.user,
            answers=_text("A stream of events.", "text/event-stream", {"events": EVENTS}),
            raises=(Unreadable, TooManyOfUser, TooManyOfProcess, Stopping, NotReplicated),
        ),
        "GET /healthz": Operation(summary="Check that the process is alive", answers=_ok("It is alive.")),
        "GET /readyz": Operation(
            summary="Check whether to send requests here",
            answers=_ok("MongoDB answers."),
            raises=(Unavailable, Stopping),
        ),
        "GET /metrics": Operation(
            summary="Read the metrics",
            answers=_text("The metrics in Prometheus's text format.", "text/plain"),
        ),
        "GET /openapi.json": Operation(
            summary="Get this document",
            answers={200: answer("The OpenAPI document.", {"type": "object"})},
        ),
        "GET /docs": Operation(summary="Read this document as a page", answers=_text("Swagger UI.", "text/html")),
    }


def _creating(schemas: Schemas) -> Mapping[str, Operation]:
    """Describe a create, with examples of a body with the fields that must be there, and of one with all."""
    emailed = next((name for name, kind in schemas.kinds.items() if kind.email), next(iter(schemas.kinds)))
    kept = next((name for name, kind in schemas.kinds.items() if kind.in_app), next(iter(schemas.kinds)))
    fields = schemas.create.fields.items()
    all_fields = {name: field.metadata["examples"][0] for name, field in fields if name != "key"} | {"key": kept}
    return {
        "POST /create": Operation(
            summary="Create a notification",
            description="Keeps the notification for `/list`, owes the user an e-mail, or both, as `key` says. A "
            "missing user is created, unless `UNKNOWN_USERS` says otherwise. `user_ids` in place of `user_id` notifies "
            "many users at once. The body is read as JSON, whatever its Content-Type. It may have "
            f"{BODY_LIMIT // 1024} KiB.",
            headers=schemas.create_headers,
            bodies=(schemas.create, schemas.create_many),
            examples={"required fields": {"user_id": USER, "key": emailed}, "all fields": all_fields},
            answers={
                201: answer(
                    "The notification and the e-mail owed are on disk on a majority of MongoDB's members.",
                    ref("Created"),
                    {"created": SUCCESS, "many": SUCCESS | {"created": 998, "replayed": 2}},
                    headers=CREATED_HEADERS,
                )
            },
            raises=(UnknownUser, KeyReused, Conflict, TooLarge, Busy, OutboxFull, Incomplete, NotYetComplete),
        )
    }


def _marking(schemas: Schemas, summary: str, done: str) -> Operation:
    """Describe an operation on the notifications that its query selects."""
    return Operation(
        summary=summary,
        description=f"Takes exactly one of {', '.join(f'`{name}`' for name in SELECTORS)}. Asking twice is not "
        "an error.",
        query=schemas.selection,
        answers=_ok(done),
        raises=(NoSuchNotification, Conflict, Busy),
    )


def _of_users(schemas: Schemas) -> Mapping[str, Operation]:
    """Describe what users decide, and what is known of their addresses."""
    emailed = [kind for kind in schemas.kinds.values() if kind.email]
    optional = next((kind.name for kind in emailed if not kind.required), "*")
    wanted = {kind.name: {"email": True, "required": kind.required} for kind in emailed}
    unwanted = {kind.name: {"email": kind.required, "required": kind.required} for kind in emailed}
    return {
        "GET /preferences": Operation(
            summary="Show which e-mails a user wants",
            description="Names every kind that is e-mailed. A user without a document has the default.",
            query=schemas.user,
            answers=_ok("The state, by kind.", "UserPreferences", SUCCESS | {"data": wanted}),
        ),
        "POST /preferences": Operation(
            summary="Set which e-mails a user wants",
            description="Kinds that the body does not name stay as they are. `*` stands for every kind without a "
            "preference of its own. `null` restores the default. Opting out also stops e-mails that are owed already, "
            "but not one that is being sent. A missing user is created, unless `UNKNOWN_USERS` says otherwise.",
            query=schemas.user,
            bodies=(schemas.preferences,),
            examples={"one kind": {optional: {"email": False}}, "all that are not required": {"*": {"email": False}}},
            answers=_ok("The state, by kind.", "UserPreferences", SUCCESS | {"data": unwanted}),
            raises=(UnknownUser, Conflict, TooLarge),
        ),
        "POST /erase": Operation(
            summary="Erase a user",
            description="Removes all that the service holds of a user, dead letters included. The rest of the user's "
            "document is yours and stays. Asking twice is not an error.",
            query=schemas.user,
            answers=_ok("Nothing is left."),
            raises=(Conflict, EmailUnderWay),
        ),
        "POST /suppress": Operation(
            summary="Suppress an address",
            description="For the webhook of a mail provider that reports bounces: e-mails to the user's present "
            "address become dead letters at once, until the address changes. The body may be left out. `user_id` may "
            "be, if the body has an `address` and an index finds the users who have it.",
            query=schemas.suppressed_user,
            bodies=(schemas.suppression,),
            needs_body=False,
            examples={"a bounce": {"address": "ann@example.com", "code": "5.1.1"}, "lift it": {"suppressed": False}},
            answers=_ok(
                "Whether the present address is suppressed now.", "Suppressed", SUCCESS | {"data": {"suppressed": True}}
            ),
            raises=(UnknownUser, Conflict, TooLarge),
        ),
        "GET /u/{token}": _link(
            "Show the page to unsubscribe", "Changes nothing, whoever follows the link.", None, Unavailable
        ),
        "POST /u/{token}": _link(
            "Unsubscribe without a login",
            "For mail programs (RFC 8058), and for the buttons of the page. No body is read. Asking twice is not an "
            "error.",
            CHOICE(),
            Conflict,
            TooLarge,
            Unavailable,
        ),
    }


def _link(summary: str, description: str, query: Schema | None = None, *raises: type[Exception]) -> Operation:
    return Operation(
        summary=summary,
        description=f"{description} A browser (`Accept: text/html`) is shown its problems as pages, too.",
        path=TOKEN(),
        query=query,
        answers=_text("A page.", "text/html"),
        raises=(NoSuchLink, *raises),
    )
