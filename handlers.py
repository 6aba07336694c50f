"""HTTP: the routes; parse, act, answer; and the one place that renders errors.

Every failure is a problem of RFC 9457, with the envelope of the successes in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import re
import socket
from collections.abc import Mapping
from hashlib import blake2b
from http import HTTPStatus
from time import perf_counter
from typing import Any, Final

import orjson
from aiohttp import hdrs, web
from aiohttp.typedefs import Handler
from marshmallow import Schema, ValidationError
from multidict import MultiMapping

import auth
import changes
import docs
import live
import outbox
import schemas
import store
from metrics import CONTENT_TYPE, Metrics

log = logging.getLogger("notifier.http")

STORE: Final = web.AppKey("STORE", store.Store)
OUTBOX: Final = web.AppKey("OUTBOX", outbox.Outbox)
LIVE: Final = web.AppKey("LIVE", live.Live)
MAIL_OWED: Final = web.AppKey("MAIL_OWED", asyncio.Event)
"""Set when an e-mail was owed, so that the delivery need not wait for its next poll."""
DOCUMENT: Final = web.AppKey("DOCUMENT", dict[str, Any])
"""The OpenAPI document of the service."""

METRICS: Final = web.AppKey("METRICS", Metrics)
REQUEST_ID: Final = web.RequestKey("REQUEST_ID", str)
STARTED: Final = web.RequestKey("STARTED", float)
GATE: Final = web.AppKey("GATE", auth.Gate)
DRAINING: Final = web.AppKey("DRAINING", asyncio.Event)
"""Set when the service is about to stop, and should be sent no more requests."""

CREATE: Final = schemas.CreateSchema()
CREATE_HEADERS: Final = schemas.CreateHeaders()
LIST: Final = schemas.ListSchema()
READ: Final = schemas.ReadSchema()
STREAM: Final = schemas.StreamSchema()
EVENT_STREAM: Final = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
VANISHED: Final = getattr(socket, "TCP_USER_TIMEOUT", None)  # RFC 5482; Linux has it
VANISHED_MS: Final = 30_000
"""For how long what was sent may stay unacknowledged; the kernel itself would try for a quarter of an hour."""
SEND_BUFFER: Final = 64 * 1024
"""Bytes that the kernel may hold for a stream; of itself it would take megabytes for a client that does not read."""
SUCCESS: Final = b'{"success": true}'
LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
BODY_TIMEOUT: Final = 30.0
JSON_HEADERS: Final = {"Content-Type": "application/json; charset=utf-8"}


async def create(request: web.Request) -> web.Response:
    """Record a notification, owe an e-mail, or both."""
    _caller(request).must_be_backend()
    body = await _read_object(request)
    new, headers = _load((CREATE, body), (CREATE_HEADERS, _single(request.headers, "Idempotency-Key")))
    replayed = await request.app[STORE].create(new, headers.get("idempotency_key"), request[REQUEST_ID])
    if new.key.mailed:
        request.app[MAIL_OWED].set()
    return _answer(SUCCESS, 201, {"Idempotent-Replayed": "true"} if replayed else None)


async def list_(request: web.Request) -> web.Response:
    """Return a page of a user's notifications, and the counts; nothing to a poller who has them already."""
    caller = _caller(request)
    query: schemas.ListQuery = LIST.load(_single(request.query))
    caller.must_act_for(query.user_id)
    page = await request.app[STORE].list(query)
    asked = {"user_id": query.user_id, "skip": query.skip, "limit": query.limit}
    if query.is_new is not None:
        asked["is_new"] = query.is_new
    data = {"elements": page.elements, "new": page.new, "request": asked, "list": page.list}
    # What other programs keep in the array may hold types that JSON has not; it must not break the list.
    body = orjson.dumps({"success": True, "data": data}, default=str)
    etag = blake2b(body, digest_size=12).hexdigest()
    known = {tag.value for tag in request.if_none_match or ()}
    response = web.Response(status=304) if etag in known else _answer(body)
    response.etag = etag
    response.headers["Cache-Control"] = "private, no-cache"  # that is: keep it, but ask whether it still holds
    return response


async def read(request: web.Request) -> web.Response:
    """Mark notifications as read: one, or those that have something in common."""
    caller = _caller(request)
    query: schemas.ReadQuery = READ.load(_single(request.query))
    caller.must_act_for(query.user_id)
    if not await request.app[STORE].mark_read(query) and query.field == "id":
        raise Problem(404, "The user has no such notification.")
    return _answer(SUCCESS)


async def stream(request: web.Request) -> web.StreamResponse:
    """Send a user's inbox, and again after each change, as an event stream (WHATWG HTML, section 9.2).

    With aiohttp's own response: aiohttp-sse writes its comments from a second task, waits for a client that does not
    read only after each 64 KiB, and without a deadline.
    """
    caller = _caller(request)
    user_id = STREAM.load(_single(request.query))["user_id"]
    caller.must_act_for(user_id)
    async with request.app[LIVE].listen(user_id, lambda: request.transport is None) as listener:
        response = web.StreamResponse(headers=EVENT_STREAM)
        response.force_close()  # a client that comes back should be free to find another process
        _finish(request, response)
        try:
            _bound_buffers(request)
            if writer := await response.prepare(request):
                await request.app[LIVE].send(listener, writer, caller.until)
        except live.Stalled:
            if request.transport:
                request.transport.abort()
        except ConnectionError:
            log.debug("the client of a stream has gone")
    return response


def _bound_buffers(request: web.Request) -> None:
    """Let the connection hold little for a client that does not read, and break when the client does not answer."""
    if request.transport:
        request.transport.set_write_buffer_limits(high=0)  # what was sent has drained when the kernel has all of it
        connection = request.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        if VANISHED:
            connection.setsockopt(socket.IPPROTO_TCP, VANISHED, VANISHED_MS)


async def healthz(_: web.Request) -> web.Response:
    """Answer: the process is alive, and its event loop turns."""
    return _answer(SUCCESS)


async def readyz(request: web.Request) -> web.Response:
    """Answer whether requests should be sent here. A mail server that is down is no reason not to: the outbox waits."""
    if request.app[DRAINING].is_set():
        raise _unavailable("The service is stopping.", retry_after=5)
    await request.app[STORE].ping()
    return _answer(SUCCESS)


async def metrics(request: web.Request) -> web.Response:
    """Return what Prometheus asks for; what only MongoDB knows is NaN while it is away."""
    _caller(request).must_be_backend()
    instruments = request.app[METRICS]
    backlog: tuple[float, float] = (math.nan, math.nan)
    with contextlib.suppress(store.Unavailable):
        backlog = await request.app[OUTBOX].backlog()
    instruments.owed.set(backlog[0])
    instruments.oldest.set(backlog[1])
    return web.Response(body=instruments.render(), headers={"Content-Type": CONTENT_TYPE})


async def openapi(request: web.Request) -> web.Response:
    """Return the OpenAPI document."""
    return web.json_response(request.app[DOCUMENT])


async def read_docs(request: web.Request) -> web.Response:
    """Return the OpenAPI document as a page."""
    text = docs.page(request.app[DOCUMENT])
    return web.Response(text=text, content_type="text/html", headers={"Content-Security-Policy": docs.POLICY})


ROUTES: Final = (
    web.post("/create", create),
    web.get("/list", list_),
    web.post("/read", read),
    web.get("/stream", stream, allow_head=False),
    web.get("/healthz", healthz),
    web.get("/readyz", readyz),
    web.get("/metrics", metrics),
    web.get("/openapi.json", openapi),
    web.get("/docs", read_docs),
)
FOR_BROWSERS: Final = ("/list", "/read", "/stream")
"""What pages of other origins may call, where `CORS_ORIGINS` names them."""


def _answer(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(body=body, status=status, headers={**JSON_HEADERS, **(headers or {})})


def _caller(request: web.Request) -> auth.Caller:
    return request.app[GATE].identify(request.headers.getall("Authorization", []))


async def _read_object(request: web.Request) -> Mapping[str, Any]:
    """Read the body as a JSON object, whatever media type it claims to be.

    JSON between systems is UTF-8 (RFC 8259, section 8.1); a body declared to be anything else is refused.
    """
    if (request.charset or "utf-8").lower() not in {"utf-8", "utf8", "us-ascii", "ascii"}:
        raise Problem(400, "The body must be JSON in UTF-8; its Content-Type declares another charset.")
    try:
        if request.content.is_eof():  # it came with the headers
            raw = await request.read()
        else:
            async with asyncio.timeout(BODY_TIMEOUT):
                raw = await request.read()
        body = schemas.parse_json(raw.decode())
    except TimeoutError:
        raise Problem(408, f"The body did not come within {BODY_TIMEOUT:.0f} s.") from None
    except UnicodeDecodeError:
        raise Problem(400, "The body is not JSON: it is not UTF-8.") from None
    except ValueError as exc:
        raise Problem(400, f"The body is not JSON: {exc}.") from None
    except (web.RequestPayloadError, ConnectionResetError):
        raise Problem(400, "The body could not be read as its headers describe it.") from None
    if not isinstance(body, dict):
        raise Problem(400, "The body is not a JSON object.")
    return body


def _single(values: MultiMapping[str], *names: str) -> dict[str, object]:
    """Return these values, or all: of a name that is repeated the list, which no field takes.

    It must not be guessed which of them was meant. Headers are looked up by name, as their names come in any case.
    """
    found = {name: values.getall(name, []) for name in names or values}
    return {name: given[0] if len(given) == 1 else given for name, given in found.items() if given}


def _load(*parts: tuple[Schema, Mapping[str, Any]]) -> list[Any]:
    """Validate every part of a request, and name the faults of all of them at once."""
    loaded: list[Any] = []
    errors: dict[str, Any] = {}
    for schema, values in parts:
        try:
            loaded.append(schema.load(values))
        except ValidationError as exc:
            errors |= exc.messages_dict
    if errors:
        raise ValidationError(errors)
    return loaded


# --- errors ---------------------------------------------------------------------------------------


class Problem(Exception):
    """A failure to answer with; `detail` and `errors` are for the caller to read."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        errors: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Keep the parts."""
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = errors
        self.headers = headers


TITLES: Final = {413: "Content Too Large", 422: "Unprocessable Content"}
"""As RFC 9110 has them, where Python 3.11 still has the names of its predecessor."""

DETAILS: Final = {
    404: "There is no such resource.",
    405: "This resource does not have that method.",
    413: f"The body is larger than {schemas.BODY_LIMIT // 1024} KiB.",
}
"""What aiohttp itself raises."""


def _problem_of(exc: Exception, request_id: str) -> Problem:  # noqa: C901, PLR0911, PLR0912 - a table
    traced = {"request_id": request_id}
    match exc:
        case Problem():
            return exc
        case ValidationError():
            return Problem(422, "The request is not valid.", errors=exc.messages_dict)
        case auth.Unauthenticated():
            error = f', error="{exc.error}"' if exc.error else ""
            return Problem(401, f"{exc}", headers={"WWW-Authenticate": f'Bearer realm="notifier"{error}'})
        case auth.Forbidden():
            return Problem(403, f"{exc}")
        case store.KeyReused():
            errors = {"Idempotency-Key": ["Was used with another body before."]}
            return Problem(422, "The request is not valid.", errors=errors)
        case store.TooLarge():
            return Problem(413, "The user's document has no room for this notification.")
        case store.Conflict():
            log.error("MongoDB refuses a write because of what the collection holds: %s", exc, extra=traced)
            return Problem(409, "The users' collection does not admit this: see the service's log.")
        case store.OutboxFull():
            return _unavailable("The user is owed too many e-mails that could not be delivered yet.", retry_after=60)
        case store.Busy():
            return _unavailable("Too many requests wait for the database.", retry_after=1)
        case changes.NotReplicated():
            return Problem(
                501, "MongoDB must be a replica set for this, one of a single member is enough: see the README."
            )
        case live.UserFull():
            detail = f"The user has {live.USER_LIMIT} streams open already."
            return Problem(429, detail, headers={"Retry-After": "5"})
        case live.ProcessFull():
            return _unavailable("This process has as many streams open as it may.", retry_after=5)
        case live.Gone():
            return _unavailable("The client has gone.", retry_after=5)
        case live.Closing():
            return _unavailable("The service is stopping.", retry_after=5)
        case store.Unavailable():
            return _unavailable("The database did not confirm in time.", retry_after=5)
        case web.HTTPException():
            headers = {"Allow": exc.headers["Allow"]} if "Allow" in exc.headers else None
            return Problem(exc.status, DETAILS.get(exc.status, exc.reason), headers=headers)
        case _:
            log.error("unexpected error", exc_info=exc, extra=traced)
            return Problem(500, "The service failed to handle this request.")


def _unavailable(detail: str, *, retry_after: int) -> Problem:
    return Problem(503, detail, headers={"Retry-After": str(retry_after)})


def _render(problem: Problem) -> web.Response:
    body: dict[str, object] = {
        "success": False,
        "type": "about:blank",
        "title": TITLES.get(problem.status) or HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
    }
    if problem.errors is not None:
        body["errors"] = problem.errors
    return web.json_response(
        body, status=problem.status, headers=problem.headers, content_type="application/problem+json"
    )


@web.middleware
async def own_name_only(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse requests that name another host: a page of any site could have its name lead to this machine."""
    if request.url.host not in LOOPBACK:
        raise Problem(421, "A local run answers on localhost and 127.0.0.1 alone.")
    return await handler(request)


@web.middleware
async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every failure as a problem; count, time and log every request: no query, no body, no address."""
    request[STARTED] = perf_counter()
    given = request.headers.get("X-Request-ID", "")
    request[REQUEST_ID] = request_id = (
        given if re.fullmatch(r"[\w.-]{1,64}", given, re.ASCII) else f"{random.getrandbits(128):032x}"
    )
    await asyncio.sleep(0)  # a connection that pipelines has its turn with the others, and not all of it at once
    try:
        response = await handler(request)
    except Exception as exc:  # noqa: BLE001 - no failure may leave as anything but a problem
        response = _render(_problem_of(exc, request_id))
    if not response.prepared:  # as a stream is, which was finished with when it began
        _finish(request, response)
    return response


def _finish(request: web.Request, response: web.StreamResponse) -> None:
    """Complete the headers of an answer that is about to be sent; count, time and log its request."""
    seconds = perf_counter() - request[STARTED]
    response.headers["X-Request-ID"] = request_id = request[REQUEST_ID]
    if request.headers.get("Origin"):
        response.headers["Vary"] = "Origin"  # which aiohttp-cors leaves out
    resource = request.match_info.route.resource
    route = resource.canonical if resource else "-"  # what the client wrote does not belong into a log, or a label
    method = request.method if request.method in hdrs.METH_ALL else "-"
    request.app[METRICS].requests.labels(route, method, response.status).observe(seconds)
    log.info(
        "%s %s %d %.1f ms",
        *(method, route, response.status, seconds * 1e3),
        extra={
            "method": method,
            "route": route,
            "status": response.status,
            "seconds": seconds,
            "request_id": request_id,
        },
    )
