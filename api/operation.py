"""An operation of the API as its callers see it, and the problems that many operations share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import web
from marshmallow import Schema

from api import auth, body
from mongo import errors
from mongo.document import JSONObject


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A success. Without a schema it has no body."""

    description: str
    schema: JSONObject | None = None
    media_type: str = "application/json"
    examples: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, JSONObject] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A route as its callers see it.

    `callers` are the security schemes that it accepts once API keys are set; without any, it is open to everyone.
    `problems` are the exceptions that it may answer with.
    """

    tag: str
    summary: str
    description: str = ""
    callers: tuple[str, ...] = ()
    path: type[Schema] | None = None
    query: Schema | None = None
    headers: type[Schema] | None = None
    body: Schema | None = None
    needs_body: bool = True
    examples: Mapping[str, JSONObject] = field(default_factory=dict)
    answers: Mapping[int, Answer]
    problems: tuple[type[Exception], ...]


WRONG_METHOD: Final = (web.HTTPMethodNotAllowed,)
UNKNOWN_CALLER: Final = (auth.NoCredential, auth.BadCredential, auth.TokenExpired, auth.TokenWithoutUser)
NOT_A_BACKEND: Final = (*UNKNOWN_CALLER, auth.BackendOnly, auth.OutOfScope, auth.ForeignPage)
NOT_THE_USER: Final = (*UNKNOWN_CALLER, auth.OtherUser, auth.OutOfScope, auth.ForeignPage)
BAD_BODY: Final = (
    body.Compressed,
    body.WrongCharset,
    body.NotUTF8,
    body.NotJSON,
    body.NotAnObject,
    body.BodyTooSlow,
    web.HTTPRequestEntityTooLarge,
)
UNCONFIRMED: Final = (errors.Unavailable, errors.Busy)
