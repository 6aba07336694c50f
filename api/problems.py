"""The one table of errors: how each exception is answered.

The middleware answers from it; the OpenAPI document and the table in `docs/api.md` are made from it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from aiohttp import http_exceptions, web
from marshmallow import ValidationError

from api import answers, auth, body, hub, stream
from api.problem import MEDIA_TYPE, Problem, json_line
from mail.unsubscribe import NoSuchLink
from mongo import changes, errors
from mongo.document import OUTBOX_LIMIT
from mongo.fan_out import Incomplete, NotYetComplete


class NoSuchNotification(Exception):
    """The user has no notification with this id."""


class ForeignHost(Exception):
    """A local run was called by another host name than its own."""


HEADER_LIMIT: Final = 32 * 1024
"""Bytes of a header, and of the address."""


class TooManyConnections(Exception):
    """Nearly all files that the process may open are open."""


RETRY: Final = (
    "Ask again after `Retry-After` seconds. A `POST /create` with an `Idempotency-Key` cannot take effect twice."
)
PROBLEMS: Final = (
    # --- the connection
    Problem(exception=http_exceptions.BadHttpMessage, status=400, detail="The request is not valid HTTP."),
    Problem(
        exception=http_exceptions.LineTooLong,
        status=431,
        detail=f"A header, or the address, is larger than {HEADER_LIMIT // 1024} KiB.",
        advice="Is it a cookie, which the browser sends to every service of the host?",
    ),
    # --- the body
    Problem(
        exception=body.WrongCharset,
        status=400,
        detail="The body must be JSON in UTF-8, but its Content-Type declares another charset.",
    ),
    Problem(
        exception=body.Compressed,
        status=415,
        detail="The body is compressed, and only uncompressed bodies are accepted.",
        advice="Send no Content-Encoding.",
    ),
    Problem(exception=body.NotUTF8, status=400, detail="The body is not valid UTF-8."),
    Problem(exception=body.NotJSON, status=400, detail="The body is not JSON: {}.", example="NaN is not a number"),
    Problem(exception=body.NotAnObject, status=400, detail="The body must be a JSON object."),
    Problem(
        exception=body.BrokenBody,
        status=400,
        detail="The connection broke before the body was complete.",
        advice="Only the log and the metrics have this answer.",
    ),
    Problem(
        exception=body.BodyTooSlow, status=408, detail=f"The body did not arrive within {body.BODY_TIMEOUT:.0f} s."
    ),
    Problem(
        exception=web.HTTPRequestEntityTooLarge,
        status=413,
        detail=f"The body is larger than {body.BODY_LIMIT // 1024} KiB.",
    ),
    # --- the caller
    Problem(
        exception=auth.NoCredential,
        status=401,
        detail="The request must have exactly one header Authorization: Bearer, with a key or token.",
    ),
    Problem(exception=auth.BadCredential, status=401, detail="This key or token is not valid."),
    Problem(exception=auth.TokenExpired, status=401, detail="The token has expired."),
    Problem(exception=auth.TokenWithoutUser, status=401, detail="The token's `sub` is not the id of a user."),
    Problem(exception=auth.BackendOnly, status=403, detail="Only a backend with a key may do this."),
    Problem(
        exception=auth.OutOfScope,
        status=403,
        detail="This key is not for this.",
        advice="A key with scopes in `API_KEYS` may do only what they say.",
    ),
    Problem(
        exception=auth.ForeignPage,
        status=403,
        detail="A page of another site may not call this service while it has no API keys.",
        advice="Name the page's origin in `CORS_ORIGINS`, or set `API_KEYS`.",
    ),
    Problem(exception=auth.OtherUser, status=403, detail="The token belongs to another user."),
    Problem(
        exception=ForeignHost,
        status=421,
        detail="A local run answers only to localhost, 127.0.0.1 and the names in LOCAL_NAMES.",
        advice="The name of any site can point to this machine, so a local run refuses other names.",
    ),
    # --- the resource
    Problem(exception=web.HTTPNotFound, status=404, detail="There is no such resource."),
    Problem(
        exception=errors.UnknownUser,
        status=404,
        detail="The user has no document.",
        advice="With `UNKNOWN_USERS=refuse` the service creates no users; `/suppress` never does.",
    ),
    Problem(exception=NoSuchLink, status=404, detail="This link to unsubscribe is not valid."),
    Problem(exception=NoSuchNotification, status=404, detail="The user has no such notification."),
    Problem(
        exception=web.HTTPMethodNotAllowed,
        status=405,
        detail="This resource does not support that method.",
        advice="`Allow` names those it supports.",
    ),
    # --- the request
    Problem(
        exception=ValidationError,
        status=422,
        detail="The request is not valid.",
        advice="`errors` names every missing or wrong field.",
    ),
    Problem(
        exception=errors.KeyReused,
        status=422,
        detail="The Idempotency-Key belongs to another request.",
        advice="Use a new key for every notification.",
        errors={"Idempotency-Key": ["Was used with another body before."]},
    ),
    # --- many users
    Problem(
        exception=Incomplete,
        status=409,
        detail="Some of the users could not be notified.",
        advice="All others were. `errors.user_ids` has the reason of each, by its index in `user_ids`.",
    ),
    Problem(
        exception=NotYetComplete,
        status=503,
        detail="Some of the users are not notified yet.",
        advice="Ask again after `Retry-After` seconds with the same key: that notifies the rest, and nobody twice.",
        retry_after=5,
    ),
    # --- MongoDB
    Problem(
        exception=errors.Conflict,
        status=409,
        detail="The users' collection does not admit this write. The service's log has the reason.",
        advice="An index or a validator of yours is in the way, or a field of yours has one of the service's names.",
    ),
    Problem(
        exception=errors.TooLarge,
        status=413,
        detail="The user's document has no room for this.",
        advice="MongoDB's limit for a document is 16 MiB.",
    ),
    Problem(
        exception=errors.Unavailable,
        status=503,
        detail="MongoDB did not answer in time.",
        advice=f"It had {errors.DEADLINE:.0f} s, or {errors.PING_DEADLINE:.0f} s for `/readyz`. {RETRY}",
        retry_after=5,
    ),
    Problem(
        exception=errors.Busy,
        status=503,
        detail="Too many requests are waiting for MongoDB.",
        advice=RETRY,
        retry_after=1,
    ),
    Problem(
        exception=errors.OutboxFull,
        status=503,
        detail=f"The user is owed {OUTBOX_LIMIT} e-mails that could not be delivered yet.",
        advice=f"A kind that is kept is created all the same, with `X-Email: not-owed`. {RETRY}",
        retry_after=60,
    ),
    Problem(
        exception=errors.EmailUnderWay,
        status=503,
        detail="An e-mail to the user is being sent.",
        advice="Ask again when that has ended. If its process died, it is after `MAIL_LEASE_SECONDS` at the latest.",
        retry_after=5,
    ),
    # --- the process
    Problem(
        exception=TooManyConnections,
        status=503,
        detail="This process has as many connections open as it may.",
        advice="The limit of open files (`ulimit -n`) sets how many.",
        retry_after=5,
    ),
    Problem(
        exception=answers.TooMuchInFlight,
        status=503,
        detail="Answers to this user wait to be read.",
        advice=f"At most {answers.LIMIT >> 20} MB of them may, each for {answers.SEND_TIMEOUT:.0f} s.",
        retry_after=5,
    ),
    # --- streams
    Problem(
        exception=changes.NotReplicated,
        status=501,
        detail="Streams need a replica set, and MongoDB is a standalone server.",
        advice="One member is enough: start mongod with `--replSet rs0` and call `rs.initiate()` once. "
        "Until then, poll `/list`.",
    ),
    Problem(
        exception=stream.TooManyOfUser,
        status=429,
        detail=f"The user has {hub.STREAMS_PER_USER} streams open in this process already.",
        advice="Close one.",
        retry_after=5,
    ),
    Problem(
        exception=stream.TooManyOfProcess,
        status=503,
        detail="This process has as many streams open as it may.",
        advice="The limit of open files (`ulimit -n`) sets how many, up to 10,000.",
        retry_after=5,
    ),
    Problem(
        exception=stream.Unreadable,
        status=409,
        detail="The user's notifications cannot be sent. The service's log says why.",
        advice="Another program has stored something in `notifications` that JSON cannot express.",
    ),
    Problem(exception=stream.Stopping, status=503, detail="The service is stopping.", retry_after=5),
    Problem(
        exception=stream.ClientGone,
        status=503,
        detail="The client closed the connection before the stream began.",
        advice="Nobody receives this answer; the log and the metrics count it.",
        retry_after=5,
    ),
    # --- everything else
    Problem(
        exception=Exception,
        status=500,
        detail="The service failed to handle this request.",
        advice="This is a fault of the service. Its log has the `X-Request-ID`.",
    ),
)
BY_EXCEPTION: Final = {problem.exception: problem for problem in PROBLEMS}


def problem_of(exc: Exception) -> Problem:
    """Return how an exception is answered: the row of its class, or of the nearest base class."""
    problem = next(BY_EXCEPTION[kind] for kind in type(exc).__mro__ if kind in BY_EXCEPTION)
    if isinstance(exc, ValidationError):
        return replace(problem, errors=exc.messages_dict)
    if isinstance(exc, Incomplete):
        reasons = {f"{index}": [problem_of(failure).detail] for index, failure in exc.failures.items()}
        return replace(problem, errors={"user_ids": reasons})
    if isinstance(exc, web.HTTPException) and problem.exception is Exception:  # one that aiohttp may add
        return replace(problem, status=exc.status, detail=exc.reason)
    return replace(problem, detail=problem.detail.format(exc))


def render(exc: Exception) -> web.Response:
    """Return the answer to a request that failed with this exception."""
    problem, headers = problem_of(exc), {}
    if problem.retry_after:
        headers["Retry-After"] = f"{problem.retry_after}"
    if isinstance(exc, Incomplete) and exc.not_owed:
        headers["X-Email"] = "not-owed"
    if isinstance(exc, web.HTTPMethodNotAllowed):
        headers["Allow"] = exc.headers["Allow"]
    if isinstance(exc, body.Compressed):
        headers["Accept-Encoding"] = "identity"  # RFC 9110, section 15.5.16
    if isinstance(exc, auth.Unauthenticated):
        error = f', error="{exc.error}"' if exc.error else ""
        headers["WWW-Authenticate"] = f'Bearer realm="notifier"{error}'
    response = web.json_response(
        problem.document(), status=problem.status, headers=headers, content_type=MEDIA_TYPE, dumps=json_line
    )
    if isinstance(exc, stream.TooManyOfProcess):
        response.force_close()  # its connection would take one from another client
    return response
