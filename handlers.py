"""The HTTP API: the list of routes, and a handler for each: parse, act, answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from aiohttp import web
from marshmallow import Schema

import schemas
from api import pages, sse, unsubscribe
from api.answers import IN_FLIGHT, JSON_HEADERS, is_large, json_bytes, revalidated, send
from api.auth import Caller, identify
from api.body import load_all, read_object, single_values
from api.hub import HUB
from api.middleware import DRAINING, ORIGIN, audit, complete
from api.problems import NoSuchNotification
from api.stream import Stopping
from config.ids import named
from config.keys import Scope
from kinds import Kinds
from mongo.creation import Recorded
from mongo.errors import StoreError
from mongo.fan_out import incomplete
from mongo.page import Page
from mongo.preferences import wants_email
from mongo.requests import CreateMany, ListQuery, Selection
from ops.metrics import CONTENT_TYPE, METRICS
from store import Store

log = logging.getLogger("notifier.http")

STORE: Final = web.AppKey("STORE", Store)
EMAIL_OWED: Final = web.AppKey("EMAIL_OWED", asyncio.Event)
"""Set when an e-mail is owed, so that the delivery need not wait for its next poll."""

CREATE: Final = web.AppKey("CREATE", schemas.CreateSchema)
KINDS: Final[web.AppKey[Kinds]] = web.AppKey("KINDS")
KINDS_BODY: Final = web.AppKey("KINDS_BODY", bytes)
"""The body of `GET /kinds`."""
CREATE_HEADERS: Final = schemas.CreateHeaders()
CREATE_MANY_HEADERS: Final = schemas.CreateManyHeaders()
LIST: Final = web.AppKey("LIST", schemas.ListSchema)
SELECTION: Final = web.AppKey("SELECTION", schemas.SelectionSchema)
USER: Final = web.AppKey("USER", schemas.UserSchema)
PREFERENCES: Final = web.AppKey("PREFERENCES", schemas.PreferencesSchema)
SUPPRESSION: Final = schemas.SuppressionSchema()
SUCCESS: Final = b'{"success": true}'
OUTCOME_HEADERS: Final[Mapping[Recorded, Mapping[str, str]]] = {
    Recorded.CREATED: {},
    Recorded.REPLAYED: {"Idempotent-Replayed": "true"},
    Recorded.NOT_OWED: {"X-Email": "not-owed"},
}


async def create(request: web.Request) -> web.Response:
    """Record a notification, owe an e-mail, or both."""
    identify(request, Scope.CREATE)
    body, headers = await read_object(request), single_values(request.headers, "Idempotency-Key")
    parts: list[tuple[Schema, Mapping[str, Any]]] = [(request.app[CREATE], body)]
    if headers or "user_ids" in body:  # most requests need no second schema
        parts.append((CREATE_MANY_HEADERS if "user_ids" in body else CREATE_HEADERS, headers))
    new, *given = load_all(*parts)
    identified = {"origin": request[ORIGIN], **(given[0] if given else {})}
    if isinstance(new, CreateMany):
        return await _create_many(request, replace(new, each=replace(new.each, **identified)))
    created = await request.app[STORE].create(replace(new, **identified))
    if new.kind.email and new.kind.window is None:
        _emails_owed(request, [created.outcome])
    return _answer(SUCCESS, 201, {"X-Notification-ID": created.id, **OUTCOME_HEADERS[created.outcome]})


def _emails_owed(request: web.Request, outcomes: Sequence[Recorded | StoreError]) -> None:
    """Wake the delivery, and count the e-mails that are not owed as the outbox is full."""
    request.app[EMAIL_OWED].set()
    request.app[METRICS].not_owed.inc(outcomes.count(Recorded.NOT_OWED))


async def _create_many(request: web.Request, many: CreateMany) -> web.Response:
    outcomes = await request.app[STORE].create_many(many)
    if many.each.kind.email:
        _emails_owed(request, outcomes)
    failures = {index: outcome for index, outcome in enumerate(outcomes) if isinstance(outcome, StoreError)}
    if failures:
        raise incomplete(failures, not_owed=Recorded.NOT_OWED in outcomes)
    replayed, not_owed = outcomes.count(Recorded.REPLAYED), outcomes.count(Recorded.NOT_OWED)
    counts = {"success": True, "created": len(outcomes) - replayed, "replayed": replayed}
    return _answer(json_bytes(counts | ({"not_owed": not_owed} if not_owed else {})), 201)


async def list_(request: web.Request) -> web.Response:
    """Return a page of a user's notifications and the counts, or 304 to a client that has them already."""
    caller = identify(request, Scope.INBOX)
    query: ListQuery = request.app[LIST].load(single_values(request.query))
    caller.must_act_for(query.user_id)
    in_flight = request.app[IN_FLIGHT]
    size = await in_flight.take(query.user_id, query.limit)
    try:
        body = _listed(query, await request.app[STORE].list(query))
        size = in_flight.give(query.user_id, size, keep=len(body))
        response = revalidated(request, body, "private, no-cache")  # it may be kept, but must be revalidated
        if is_large(response):
            complete(request, response)
            await send(request, response)
    finally:
        in_flight.give(query.user_id, size)
    return response


def _listed(query: ListQuery, page: Page) -> bytes:
    asked = {"user_id": query.user_id, "skip": query.skip, "limit": query.limit}
    asked |= {name: value for name in ("is_new", "key") if (value := getattr(query, name)) is not None}
    data = {"elements": page.elements, "new": page.new, "request": asked, "list": page.list}
    if page.unseen is not None:
        data["unseen"] = page.unseen
    return json_bytes({"success": True, "data": data}).rstrip()  # to the byte as specified


async def read(request: web.Request) -> web.Response:
    """Mark one notification as read, or all that match."""
    return await _mark(request, is_new=False)


async def unread(request: web.Request) -> web.Response:
    """Mark one notification as unread, or all that match."""
    return await _mark(request, is_new=True)


async def _mark(request: web.Request, *, is_new: bool) -> web.Response:
    selection = _selection(request)
    return _answer_found(selection, found=await request.app[STORE].mark(selection, is_new=is_new))


async def delete(request: web.Request) -> web.Response:
    """Delete one notification, or all that match."""
    selection = _selection(request)
    return _answer_found(selection, found=await request.app[STORE].deletions.delete(selection))


def _selection(request: web.Request) -> Selection:
    caller = identify(request, Scope.INBOX)
    selection: Selection = request.app[SELECTION].load(single_values(request.query))
    caller.must_act_for(selection.user_id)
    return selection


def _answer_found(selection: Selection, *, found: bool) -> web.Response:
    if not found and selection.field == "id":
        raise NoSuchNotification
    return _answer(SUCCESS)


async def seen(request: web.Request) -> web.Response:
    """Note that a user has seen all there is now."""
    await request.app[STORE].seen.mark(_user(request, identify(request, Scope.INBOX)))
    return _answer(SUCCESS)


async def preferences(request: web.Request) -> web.Response:
    """Return which e-mails a user wants."""
    user_id = _user(request, identify(request, Scope.INBOX))
    return _preferences(request, await request.app[STORE].preferences.of_user(user_id))


async def change_preferences(request: web.Request) -> web.Response:
    """Set which e-mails a user wants, and return the same."""
    caller = identify(request, Scope.INBOX)
    changes, user = load_all((request.app[PREFERENCES], await read_object(request)), _query(request))
    caller.must_act_for(user["user_id"])
    return _preferences(request, await request.app[STORE].preferences.change(user["user_id"], changes))


def _preferences(request: web.Request, stored: object) -> web.Response:
    data = {
        name: {"email": kind.required or wants_email(stored, name), "required": kind.required}
        for name, kind in request.app[KINDS].items()
        if kind.email
    }
    return _answer(json_bytes({"success": True, "data": data}), headers={"Cache-Control": "no-store"})


async def erase(request: web.Request) -> web.Response:
    """Remove what the service holds of a user."""
    caller = identify(request, Scope.ERASE)
    user_id = _user(request, caller)
    await request.app[STORE].erase(user_id)
    audit.info("%s has erased %s", caller.name, named(user_id), extra=request[ORIGIN])
    return _answer(SUCCESS)


async def suppress(request: web.Request) -> web.Response:
    """Send nothing more to an address, or send again: to a user's, or to that of all users who have it."""
    identify(request, Scope.SUPPRESS)
    body, query = await read_object(request) if request.body_exists else {}, _query(request)
    by_address = body.get("address") and "user_id" not in query[1]
    asked, *user = load_all((SUPPRESSION, body), *(() if by_address else (query,)))
    suppressions = request.app[STORE].suppressions
    users = [user[0]["user_id"]] if user else await suppressions.users_with(asked["address"])
    are_suppressed = [await suppressions.change(user_id, **asked) for user_id in users]
    return _answer(json_bytes({"success": True, "data": {"suppressed": any(are_suppressed)}}))


def _query(request: web.Request) -> tuple[Schema, Mapping[str, Any]]:
    """Return the schema and the values of a query that names a user."""
    return request.app[USER], single_values(request.query)


def _user(request: web.Request, caller: Caller) -> str:
    """Return the user whom a request is about."""
    (user,) = load_all(_query(request))
    caller.must_act_for(user["user_id"])
    return str(user["user_id"])


async def stream(request: web.Request) -> web.StreamResponse:
    """Send a user's inbox, and again after each change, as an event stream."""
    caller, hub = identify(request, Scope.INBOX), request.app[HUB]
    user_id = _user(request, caller)
    async with hub.listen(user_id, lambda: request.transport is None) as listener:
        response = web.StreamResponse(headers=sse.HEADERS)
        response.force_close()  # a client that returns should be free to reach another process
        complete(request, response)
        try:
            sse.bound_buffers(request)
            if writer := await response.prepare(request):
                await hub.wire.send(listener, writer, caller.until)
        except sse.Stalled:
            if request.transport:
                request.transport.abort()
        except ConnectionError:
            log.debug("the client of a stream has gone")
    return response


async def kinds(request: web.Request) -> web.Response:
    """Return the kinds of notification, or 304 to a client that has them already."""
    response = revalidated(request, request.app[KINDS_BODY], "public, max-age=60")
    response.headers["Access-Control-Allow-Origin"] = "*"  # for the bell in any page; it is no secret
    return response


async def healthz(_: web.Request) -> web.Response:
    """Answer that the process is alive and its event loop turns."""
    return _answer(SUCCESS)


async def readyz(request: web.Request) -> web.Response:
    """Answer whether to send requests here. They do not need the mail server, so its state does not matter."""
    if request.app[DRAINING].is_set():
        raise Stopping
    await request.app[STORE].ping()
    return _answer(SUCCESS)


async def metrics(request: web.Request) -> web.Response:
    """Return the metrics. They are useful without MongoDB too."""
    identify(request, Scope.METRICS)
    instruments, backlog, dead = request.app[METRICS], (float("nan"),) * 3, float("nan")
    with contextlib.suppress(StoreError):
        backlog = await request.app[STORE].outbox.backlog()
        dead = await request.app[STORE].dead_mail.count()
    instruments.dead.set(dead)
    for gauge, value in zip((instruments.owed, instruments.oldest, instruments.waiting), backlog, strict=True):
        gauge.set(value)
    return web.Response(body=instruments.render(), headers={"Content-Type": CONTENT_TYPE})


ROUTES: Final = (
    web.post("/create", create),
    web.get("/list", list_),
    web.post("/read", read),
    web.post("/unread", unread),
    web.post("/delete", delete),
    web.post("/seen", seen),
    web.get("/preferences", preferences),
    web.post("/preferences", change_preferences),
    web.post("/erase", erase),
    web.post("/suppress", suppress),
    web.get("/u/{token}", unsubscribe.show_page),
    web.post("/u/{token}", unsubscribe.unsubscribe),
    web.get("/stream", stream, allow_head=False),
    web.get("/healthz", healthz),
    web.get("/readyz", readyz),
    web.get("/metrics", metrics),
    web.get("/kinds", kinds),
    web.get("/openapi.json", pages.openapi),
    web.get("/docs", pages.docs),
)
FOR_BROWSERS: Final = ("/list", "/read", "/unread", "/delete", "/seen", "/preferences", "/stream")
"""What pages of the origins in `CORS_ORIGINS` may call."""


def _answer(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(body=body, status=status, headers={**JSON_HEADERS, **(headers or {})})
