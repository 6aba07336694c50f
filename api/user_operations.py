"""The operations on what users decide, and on what is known of their addresses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from marshmallow import ValidationError

import schemas
from api.components import SUCCESS, ref
from api.fields import IdField
from api.operation import BAD_BODY, NOT_A_BACKEND, NOT_THE_USER, WRONG_METHOD, Answer, Operation
from api.unsubscribe import LinkPath, LinkQuery
from config.ids import IdType
from mail.unsubscribe import NoSuchLink
from mongo import errors
from mongo.document import JSONObject
from ops.kinds import Kinds

UNQUEUED: Final = (errors.Unavailable,)
"""These write without sharing calls, so that they do not queue."""


class SuppressQuery(schemas.UserSchema):
    """The query of `POST /suppress`, whose body may name an address instead."""

    user_id = IdField(metadata=schemas.USER_ID)


def user_operations(kinds: Kinds, id_type: IdType) -> Mapping[str, Operation]:
    """Return the operations, by method and path."""
    emailed = [kind for kind in kinds.values() if kind.email]
    optional = next((kind.name for kind in emailed if not kind.required), "*")
    default = {kind.name: {"email": True, "required": kind.required} for kind in emailed}
    changed: JSONObject = {name: value | {"email": value["required"]} for name, value in default.items()}
    return {
        "GET /preferences": Operation(
            tag="Users",
            summary="Show which e-mails a user wants",
            description="Names every kind that is e-mailed. A user without a document has the default.",
            callers=("key", "token"),
            query=schemas.UserSchema(id_type),
            answers={200: _preferences(default)},
            problems=(*WRONG_METHOD, *NOT_THE_USER, ValidationError, *UNQUEUED),
        ),
        "POST /preferences": Operation(
            tag="Users",
            summary="Set which e-mails a user wants",
            description="Kinds that the body does not name stay as they are. `*` stands for every kind without a "
            "preference of its own. `null` restores the default. Opting out also stops e-mails that are owed already, "
            "but not one that is being sent. A missing user is created, unless `UNKNOWN_USERS` says otherwise.",
            callers=("key", "token"),
            query=schemas.UserSchema(id_type),
            body=schemas.PreferencesSchema(kinds),
            examples={"one kind": {optional: {"email": False}}, "all that are not required": {"*": {"email": False}}},
            answers={200: _preferences(changed)},
            problems=(
                *WRONG_METHOD,
                *NOT_THE_USER,
                *BAD_BODY,
                ValidationError,
                errors.UnknownUser,
                errors.Conflict,
                errors.TooLarge,
                *UNQUEUED,
            ),
        ),
        "POST /erase": Operation(
            tag="Users",
            summary="Erase a user",
            description="Removes all that the service holds of a user, dead letters included. The rest of the user's "
            "document is yours and stays. Asking twice is not an error.",
            callers=("key",),
            query=schemas.UserSchema(id_type),
            answers={200: Answer(description="Nothing is left.", schema=ref("Success"), examples={"erased": SUCCESS})},
            problems=(
                *WRONG_METHOD,
                *NOT_A_BACKEND,
                ValidationError,
                errors.Conflict,
                errors.EmailUnderWay,
                *UNQUEUED,
            ),
        ),
        "POST /suppress": Operation(
            tag="Users",
            summary="Suppress an address",
            description="For the webhook of a mail provider that reports bounces: e-mails to the user's present "
            "address become dead letters at once, until the address changes. The body may be left out. `user_id` may "
            "be, if the body has an `address` and an index finds the users who have it.",
            callers=("key",),
            query=SuppressQuery(id_type),
            body=schemas.SuppressionSchema(),
            needs_body=False,
            examples={
                "a bounce": {"address": "ann@example.com", "code": "5.1.1"},
                "lift it": {"suppressed": False},
            },
            answers={
                200: Answer(
                    description="Whether the present address is suppressed now.",
                    schema=ref("Suppressed"),
                    examples={"suppressed": SUCCESS | {"data": {"suppressed": True}}},
                )
            },
            problems=(
                *WRONG_METHOD,
                *NOT_A_BACKEND,
                *BAD_BODY,
                ValidationError,
                errors.UnknownUser,
                errors.Conflict,
                errors.TooLarge,
                *UNQUEUED,
            ),
        ),
        "GET /u/{token}": _link(
            "Show the page to unsubscribe", "Changes nothing, whoever follows the link.", None, *UNQUEUED
        ),
        "POST /u/{token}": _link(
            "Unsubscribe without a login",
            "For mail programs (RFC 8058), and for the buttons of the page. No body is read. Asking twice is not an "
            "error.",
            LinkQuery(),
            errors.Conflict,
            errors.TooLarge,
            *UNQUEUED,
        ),
    }


def _link(summary: str, description: str, query: LinkQuery | None, *problems: type[Exception]) -> Operation:
    return Operation(
        tag="Users",
        summary=summary,
        description=f"{description} A browser (`Accept: text/html`) is shown its problems as pages, too.",
        path=LinkPath,
        query=query,
        answers={200: Answer(description="A page.", schema={"type": "string"}, media_type="text/html")},
        problems=(*WRONG_METHOD, NoSuchLink, *problems),
    )


def _preferences(example: JSONObject) -> Answer:
    return Answer(
        description="The state, by kind.",
        schema=ref("UserPreferences"),
        examples={"preferences": SUCCESS | {"data": example}},
    )
