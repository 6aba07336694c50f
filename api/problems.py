"""The table of errors: how each exception is answered.

The OpenAPI document and the table in `docs/api.md` are made from it, with the advice in `docs/openapi.json`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import Any, Final

from aiohttp import http_exceptions, web
from marshmallow import ValidationError

from api import auth, bodies, streams
from api.bodies import json_line
from mail.unsubscribe import NoSuchLink
from mongo import changes, errors
from mongo.document import OUTBOX_LIMIT

MEDIA_TYPE: Final = "application/problem+json"
HEADER_LIMIT: Final = 32 * 1024  # bytes of a header, and of the address
TITLES: Final = {413: "Content Too Large", 422: "Unprocessable Content"}  # Python 3.11 has those before RFC 9110


@dataclass(frozen=True, slots=True)
class Problem:
    exception: type[Exception]
    status: int
    detail: str  # `{}` in it stands for the exception's own message
    errors: Mapping[str, Any] | None = None
    pause: int = 5  # seconds, for problems that pass by themselves

    @property
    def name(self) -> str:
        return self.exception.__name__.removeprefix("HTTP")

    @property
    def retry_after(self) -> int | None:
        return self.pause if self.status in {429, 503} else None

    def document(self) -> dict[str, Any]:
        title = TITLES.get(self.status) or HTTPStatus(self.status).phrase
        known = {"title": title, "status": self.status, "detail": self.detail}
        errors = {} if self.errors is None else {"errors": self.errors}
        return {"success": False, "type": "about:blank", **known, **errors}


class NoSuchNotification(Exception):
    """The user has no notification with this id."""


class ForeignHost(Exception):
    """A local run was called by another host name than its own."""


class TooManyConnections(Exception):
    """Nearly all files that the process may open are open."""


PROBLEMS: Final = (
    Problem(http_exceptions.BadHttpMessage, 400, "The request is not valid HTTP."),
    Problem(http_exceptions.LineTooLong, 431, f"A header, or the address, is larger than {HEADER_LIMIT // 1024} KiB."),
    Problem(bodies.Compressed, 415, "The body is compressed, and only uncompressed bodies are accepted."),
    Problem(bodies.NotJSON, 400, "The body is not a JSON object in UTF-8: {}."),
    Problem(bodies.ClientGone, 400, "The client closed the connection too early."),
    Problem(bodies.BodyTooSlow, 408, f"The body did not arrive within {bodies.BODY_TIMEOUT:.0f} s."),
    Problem(web.HTTPRequestEntityTooLarge, 413, f"The body is larger than {bodies.BODY_LIMIT // 1024} KiB."),
    Problem(
        auth.NoCredential, 401, "The request must have exactly one header Authorization: Bearer, with a key or token."
    ),
    Problem(auth.BadCredential, 401, "This key or token is not valid."),
    Problem(auth.TokenExpired, 401, "The token has expired."),
    Problem(auth.OutOfScope, 403, "This key or token is not for this."),
    Problem(auth.ForeignPage, 403, "A page of another site may not call this service while it has no API keys."),
    Problem(auth.OtherUser, 403, "The token belongs to another user."),
    Problem(ForeignHost, 421, "A local run answers only to localhost, 127.0.0.1 and the names in LOCAL_NAMES."),
    Problem(web.HTTPNotFound, 404, "There is no such resource."),
    Problem(errors.UnknownUser, 404, "The user has no document."),
    Problem(NoSuchLink, 404, "This link to unsubscribe is not valid."),
    Problem(NoSuchNotification, 404, "The user has no such notification."),
    Problem(web.HTTPMethodNotAllowed, 405, "This resource does not support that method."),
    Problem(ValidationError, 422, "The request is not valid."),
    Problem(
        errors.KeyReused,
        422,
        "The Idempotency-Key belongs to another request.",
        errors={"Idempotency-Key": ["Was used with another body before."]},
    ),
    Problem(errors.Incomplete, 409, "Some of the users could not be notified."),
    Problem(errors.NotYetComplete, 503, "Some of the users are not notified yet."),
    Problem(errors.Conflict, 409, "The users' collection does not admit this write. The service's log has the reason."),
    Problem(errors.TooLarge, 413, "The user's document has no room for this."),
    Problem(errors.Unavailable, 503, "MongoDB did not answer in time."),
    Problem(errors.Busy, 503, "Too many requests are waiting for MongoDB.", pause=1),
    Problem(
        errors.OutboxFull, 503, f"The user is owed {OUTBOX_LIMIT} e-mails that could not be delivered yet.", pause=60
    ),
    Problem(errors.EmailUnderWay, 503, "An e-mail to the user is being sent."),
    Problem(TooManyConnections, 503, "This process has as many connections open as it may."),
    Problem(bodies.TooMuchInFlight, 503, "Answers to this user wait to be read."),
    Problem(changes.NotReplicated, 501, "Streams need a replica set, and MongoDB is a standalone server."),
    Problem(
        streams.TooManyOfUser, 429, f"The user has {streams.STREAMS_PER_USER} streams open in this process already."
    ),
    Problem(streams.TooManyOfProcess, 503, "This process has as many streams open as it may."),
    Problem(streams.Stopping, 503, "The service is stopping."),
    Problem(Exception, 500, "The service failed to handle this request."),
)
BY_EXCEPTION: Final = {problem.exception: problem for problem in PROBLEMS}


def problem_of(exc: Exception) -> Problem:
    """Return how an exception is answered: the row of its class, or of the nearest base class."""
    problem = next(BY_EXCEPTION[kind] for kind in type(exc).__mro__ if kind in BY_EXCEPTION)
    if isinstance(exc, ValidationError):
        return replace(problem, errors=exc.messages_dict)
    if isinstance(exc, errors.Incomplete):
        reasons = {f"{index}": [problem_of(failure).detail] for index, failure in exc.failures.items()}
        return replace(problem, errors={"user_ids": reasons})
    if isinstance(exc, web.HTTPException) and problem.exception is Exception:  # one that aiohttp may add
        return replace(problem, status=exc.status, detail=exc.reason)
    return replace(problem, detail=problem.detail.format(exc))


def render(exc: Exception) -> web.Response:
    problem, headers = problem_of(exc), {}
    if problem.retry_after:
        headers["Retry-After"] = f"{problem.retry_after}"
    if isinstance(exc, errors.Incomplete) and exc.not_owed:
        headers["X-Email"] = "not-owed"
    if isinstance(exc, web.HTTPMethodNotAllowed):
        headers["Allow"] = exc.headers["Allow"]
    if isinstance(exc, bodies.Compressed):
        headers["Accept-Encoding"] = "identity"  # RFC 9110, section 15.5.16
    if problem.status == 401:
        error = ', error="invalid_token"' if isinstance(exc, auth.BadCredential) else ""  # RFC 6750
        headers["WWW-Authenticate"] = f'Bearer realm="notifier"{error}'
    response = web.json_response(
        problem.document(), status=problem.status, headers=headers, content_type=MEDIA_TYPE, dumps=json_line
    )
    if isinstance(exc, streams.TooManyOfProcess):
        response.force_close()  # its connection would take one from another client
    return response
