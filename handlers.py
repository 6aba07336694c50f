"""HTTP: the routes; parse, act, answer; and the one place that renders errors.

Every failure is a problem of RFC 9457, with the envelope of the successes in it.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from http import HTTPStatus
from time import perf_counter
from typing import Any, Final

from aiohttp import web
from aiohttp.typedefs import Handler
from marshmallow import Schema, ValidationError
from multidict import MultiMapping

import docs
import schemas
import store

log = logging.getLogger("notifier.http")

STORE: Final = web.AppKey("STORE", store.Store)
MAIL_OWED: Final = web.AppKey("MAIL_OWED", asyncio.Event)
"""Set when an e-mail was owed, so that the delivery need not wait for its next poll."""
DOCUMENT: Final = web.AppKey("DOCUMENT", dict[str, Any])
"""The OpenAPI document of the service."""

CREATE: Final = schemas.CreateSchema()
CREATE_HEADERS: Final = schemas.CreateHeaders()
LIST: Final = schemas.ListSchema()
READ: Final = schemas.ReadSchema()
SUCCESS: Final = {"success": True}
JSON: Final = partial(json.dumps, default=str)
"""What other programs keep in the array may hold types that JSON has not; it must not break the list."""


async def create(request: web.Request) -> web.Response:
    """Record a notification, owe an e-mail, or both."""
    body = await _read_object(request)
    new, headers = _load((CREATE, body), (CREATE_HEADERS, _single(request.headers)))
    replayed = await request.app[STORE].create(new, headers.get("idempotency_key"))
    if new.key.mailed:
        request.app[MAIL_OWED].set()
    return web.json_response(SUCCESS, status=201, headers={"Idempotent-Replayed": "true"} if replayed else None)


async def list_(request: web.Request) -> web.Response:
    """Return a page of a user's notifications, and the counts."""
    query: schemas.ListQuery = LIST.load(_single(request.query))
    page = await request.app[STORE].list(query)
    data = {"elements": page.elements, "new": page.new, "request": asdict(query), "list": page.list}
    return web.json_response({"success": True, "data": data}, dumps=JSON)


async def read(request: web.Request) -> web.Response:
    """Mark a notification as read."""
    query: schemas.ReadQuery = READ.load(_single(request.query))
    if not await request.app[STORE].mark_read(query):
        raise Problem(404, "The user has no such notification.")
    return web.json_response(SUCCESS)


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
    web.get("/openapi.json", openapi),
    web.get("/docs", read_docs),
)


async def _read_object(request: web.Request) -> Mapping[str, Any]:
    """Read the body as a JSON object, whatever media type it claims to be.

    JSON between systems is UTF-8 (RFC 8259, section 8.1); a body declared to be anything else is refused.
    """
    if (request.charset or "utf-8").lower() not in {"utf-8", "utf8", "us-ascii", "ascii"}:
        raise Problem(400, "The body must be JSON in UTF-8; its Content-Type declares another charset.")
    try:
        body = schemas.parse_json((await request.read()).decode())
    except UnicodeDecodeError:
        raise Problem(400, "The body is not JSON: it is not UTF-8.") from None
    except ValueError as exc:
        raise Problem(400, f"The body is not JSON: {exc}.") from None
    except web.RequestPayloadError:
        raise Problem(400, "The body could not be read as its headers describe it.") from None
    if not isinstance(body, dict):
        raise Problem(400, "The body is not a JSON object.")
    return body


def _single(values: MultiMapping[str]) -> dict[str, object]:
    """Give a name that is repeated its list, which no field takes: it must not be guessed which one was meant."""
    return {name: found[0] if len(found := values.getall(name)) == 1 else found for name in values}


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


def _problem_of(exc: Exception) -> Problem:  # noqa: PLR0911 - a table
    match exc:
        case Problem():
            return exc
        case ValidationError():
            return Problem(422, "The request is not valid.", errors=exc.messages_dict)
        case store.KeyReused():
            errors = {"Idempotency-Key": ["Was used with another body before."]}
            return Problem(422, "The request is not valid.", errors=errors)
        case store.TooLarge():
            return Problem(413, "The user's document has no room for this notification.")
        case store.Conflict():
            log.error("MongoDB refuses a write because of what the collection holds: %s", exc.__cause__)
            return Problem(409, "The users' collection does not admit this: see the service's log.")
        case store.OutboxFull():
            return _unavailable("The user is owed too many e-mails that could not be delivered yet.", retry_after=60)
        case store.Unavailable():
            return _unavailable("The database did not confirm in time.", retry_after=5)
        case web.HTTPException():
            headers = {"Allow": exc.headers["Allow"]} if "Allow" in exc.headers else None
            return Problem(exc.status, DETAILS.get(exc.status, exc.reason), headers=headers)
        case _:
            log.error("unexpected error", exc_info=exc)
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
async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every failure as a problem, and log one line a request: no query, no body, no address."""
    started = perf_counter()
    try:
        response = await handler(request)
    except Exception as exc:  # noqa: BLE001 - no failure may leave as anything but a problem
        response = _render(_problem_of(exc))
    resource = request.match_info.route.resource
    path = resource.canonical if resource else "-"  # what the client wrote does not belong into a log
    log.info("%s %s %d %.1f ms", request.method, path, response.status, (perf_counter() - started) * 1e3)
    return response
