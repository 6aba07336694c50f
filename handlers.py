"""The HTTP API: the list of routes, and a handler for each: parse, act, answer."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cache, partial
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler
from prometheus_client import CONTENT_TYPE_LATEST

from api import bodies, openapi, pages, unsubscribe
from api.auth import GATE, Caller, Gate, Route
from api.bodies import IN_FLIGHT, json_bytes, load_both, read_object, single_values
from api.middleware import ORIGIN, THROTTLE, audit, complete
from api.problems import NoSuchNotification
from api.streams import EVENT_STREAM, HUB, Stopping
from kinds import describe_kinds
from mail.unsubscribe import Links
from mongo.backlog import owed
from mongo.creation import Create, Recorded
from mongo.document import JSONObject
from mongo.errors import PING_DEADLINE, Incomplete, NotYetComplete, StoreError, Unavailable
from mongo.inbox import ListQuery, Page, Selection, wants_email
from ops.logs import Throttle
from ops.metrics import METRICS, Metrics
from schemas import Schemas
from settings import Scope, Settings, named
from store import Store

STORE: Final = web.AppKey("STORE", Store)
EMAIL_OWED: Final = web.AppKey("EMAIL_OWED", asyncio.Event)  # set so that the delivery need not wait for its next poll
SCHEMAS: Final = web.AppKey("SCHEMAS", Schemas)
SUCCESS: Final = b'{"success": true}'
OUTCOME_HEADERS: Final[Mapping[Recorded, Mapping[str, str]]] = {
    Recorded.CREATED: {},
    Recorded.REPLAYED: {"Idempotent-Replayed": "true"},
    Recorded.NOT_OWED: {"X-Email": "not-owed"},
}


async def create(request: web.Request, _: Caller) -> web.Response:
    body, headers = await read_object(request), single_values(request.headers, "Idempotency-Key")
    schemas = request.app[SCHEMAS]
    if "user_ids" in body and "user_id" not in body:
        fields, key = load_both(schemas.create_many, body, schemas.create_many_headers, headers)
        user_ids = fields.pop("user_ids")
        return await _create_many(request, user_ids, Create("", **fields, **key, origin=request[ORIGIN]))
    fields, key = load_both(schemas.create, body, schemas.create_headers, headers)
    new = Create(**fields, **key, origin=request[ORIGIN])
    id_, outcome = await request.app[STORE].create(new)
    if new.kind.email and new.kind.window is None:
        _emails_owed(request, [outcome])
    return _answer(SUCCESS, 201, {"X-Notification-ID": id_, **OUTCOME_HEADERS[outcome]})


def _emails_owed(request: web.Request, outcomes: Sequence[Recorded | StoreError]) -> None:
    """Wake the delivery, and count the e-mails that are not owed as the outbox is full."""
    request.app[EMAIL_OWED].set()
    request.app[METRICS].not_owed.inc(outcomes.count(Recorded.NOT_OWED))


async def _create_many(request: web.Request, user_ids: Sequence[str], new: Create) -> web.Response:
    outcomes = await request.app[STORE].create_many(user_ids, new)
    if new.kind.email:
        _emails_owed(request, outcomes)
    not_owed = outcomes.count(Recorded.NOT_OWED)
    failures = {index: outcome for index, outcome in enumerate(outcomes) if isinstance(outcome, StoreError)}
    if failures:
        may_succeed = any(isinstance(failure, Unavailable) for failure in failures.values())
        raise (NotYetComplete if may_succeed else Incomplete)(failures, not_owed=not_owed > 0)
    replayed = outcomes.count(Recorded.REPLAYED)
    counts = {"success": True, "created": len(outcomes) - replayed, "replayed": replayed}
    return _answer(json_bytes(counts | ({"not_owed": not_owed} if not_owed else {})), 201)


async def list_(request: web.Request, caller: Caller) -> web.Response:
    """Return a page of a user's notifications and the counts, or 304 to a client that has them already."""
    query = ListQuery(**request.app[SCHEMAS].list.load(single_values(request.query)))
    caller.must_act_for(query.user_id)
    in_flight = request.app[IN_FLIGHT]
    size = await in_flight.take(query.user_id, query.limit)
    try:
        body = _listed(query, await request.app[STORE].inbox.list(query))
        size = in_flight.give(query.user_id, size, keep=len(body))
        response = bodies.revalidated(request, body, {"Cache-Control": "private, no-cache"})
        if bodies.is_large(response):
            complete(request, response)
            await bodies.send(request, response)
    finally:
        in_flight.give(query.user_id, size)
    return response


def _listed(query: ListQuery, page: Page) -> bytes:
    echo = {"user_id": query.user_id, "skip": query.skip, "limit": query.limit}
    echo |= {name: value for name in ("is_new", "key") if (value := getattr(query, name)) is not None}
    data = {"elements": page.elements, "new": page.new, "request": echo, "list": page.list}
    if page.unseen is not None:
        data["unseen"] = page.unseen
    return json_bytes({"success": True, "data": data}).rstrip()  # to the byte as specified


async def read(request: web.Request, caller: Caller) -> web.Response:
    return await _change_selected(request, caller, partial(request.app[STORE].inbox.mark, is_new=False))


async def unread(request: web.Request, caller: Caller) -> web.Response:
    return await _change_selected(request, caller, partial(request.app[STORE].inbox.mark, is_new=True))


async def delete(request: web.Request, caller: Caller) -> web.Response:
    return await _change_selected(request, caller, request.app[STORE].inbox.delete)


async def _change_selected(
    request: web.Request, caller: Caller, change: Callable[[Selection], Awaitable[bool]]
) -> web.Response:
    values = request.app[SCHEMAS].selection.load(single_values(request.query))
    user_id = values.pop("user_id")
    caller.must_act_for(user_id)
    ((field, value),) = values.items()
    selection = Selection(user_id) if field == "all" else Selection(user_id, field, value)
    if not await change(selection) and field == "id":
        raise NoSuchNotification
    return _answer(SUCCESS)


async def seen(request: web.Request, caller: Caller) -> web.Response:
    await request.app[STORE].inbox.see(_user(request, caller))
    return _answer(SUCCESS)


def _user(request: web.Request, caller: Caller) -> str:
    user_id: str = request.app[SCHEMAS].user.load(single_values(request.query))["user_id"]
    caller.must_act_for(user_id)
    return user_id


async def preferences(request: web.Request, caller: Caller) -> web.Response:
    user_id = _user(request, caller)
    return _preferences(request, await request.app[STORE].preferences.of_user(user_id))


async def change_preferences(request: web.Request, caller: Caller) -> web.Response:
    schemas, body = request.app[SCHEMAS], await read_object(request)
    wanted, user = load_both(schemas.preferences, body, schemas.user, single_values(request.query))
    caller.must_act_for(user["user_id"])
    changes = {name: value and value["email"] for name, value in wanted.items()}
    return _preferences(request, await request.app[STORE].preferences.change(user["user_id"], changes))


def _preferences(request: web.Request, stored: object) -> web.Response:
    data = {
        name: {"email": kind.required or wants_email(stored, name), "required": kind.required}
        for name, kind in request.app[SCHEMAS].kinds.items()
        if kind.email
    }
    return _answer(json_bytes({"success": True, "data": data}), headers={"Cache-Control": "no-store"})


async def erase(request: web.Request, caller: Caller) -> web.Response:
    user_id = _user(request, caller)
    await request.app[STORE].erase(user_id)
    audit.info("%s has erased %s", caller.name, named(user_id), extra=request[ORIGIN])
    return _answer(SUCCESS)


async def suppress(request: web.Request, _: Caller) -> web.Response:
    """Suppress an address, or lift its suppression, for one user or for all users who have it."""
    body, schemas = await read_object(request) if request.body_exists else {}, request.app[SCHEMAS]
    user_schema = schemas.suppressed_user if body.get("address") else schemas.user
    suppression, user = load_both(schemas.suppression, body, user_schema, single_values(request.query))
    suppressions = request.app[STORE].suppressions
    users = [user["user_id"]] if user else await suppressions.users_with(suppression["address"])
    are_suppressed = [await suppressions.change(user_id, **suppression) for user_id in users]
    return _answer(json_bytes({"success": True, "data": {"suppressed": any(are_suppressed)}}))


async def stream(request: web.Request, caller: Caller) -> web.StreamResponse:
    async with request.app[HUB].listen(_user(request, caller), request) as listener:
        response = web.StreamResponse(headers=EVENT_STREAM)
        complete(request, response)
        await listener.send(response, caller.until)
    return response


async def kinds(request: web.Request) -> web.Response:
    body = json_bytes(describe_kinds(request.app[SCHEMAS].kinds))
    # The bell may ask from any page; there is no secret in it.
    headers = {"Cache-Control": "public, max-age=60", "Access-Control-Allow-Origin": "*"}
    return bodies.revalidated(request, body, headers)


async def healthz(_: web.Request) -> web.Response:
    return _answer(SUCCESS)


async def readyz(request: web.Request) -> web.Response:
    """Answer whether to send requests here. They do not need the mail server, so its state does not matter."""
    if request.app[HUB].stopping:
        raise Stopping
    await request.app[STORE].ping()
    return _answer(SUCCESS)


async def metrics(request: web.Request, _: Caller) -> web.Response:
    """Return the metrics. They are useful without MongoDB too."""
    instruments, store, values = request.app[METRICS], request.app[STORE], (float("nan"),) * 4
    with contextlib.suppress(StoreError):
        backlog = await owed(store.outbox, PING_DEADLINE)
        values = (backlog.owed, max(backlog.oldest_seconds or 0, 0), backlog.waiting, await store.dead_mail.count())
    gauges = (instruments.owed, instruments.oldest, instruments.waiting, instruments.dead)
    for gauge, value in zip(gauges, values, strict=True):
        gauge.set(value)
    return web.Response(body=instruments.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})


ROUTES: Final = (
    Route("POST", "/create", create, Scope.CREATE),
    Route("GET", "/list", list_, Scope.INBOX),
    Route("POST", "/read", read, Scope.INBOX),
    Route("POST", "/unread", unread, Scope.INBOX),
    Route("POST", "/delete", delete, Scope.INBOX),
    Route("POST", "/seen", seen, Scope.INBOX),
    Route("GET", "/kinds", kinds, None),
    Route("GET", "/preferences", preferences, Scope.INBOX),
    Route("POST", "/preferences", change_preferences, Scope.INBOX),
    Route("POST", "/erase", erase, Scope.ERASE),
    Route("POST", "/suppress", suppress, Scope.SUPPRESS),
    Route("GET", "/u/{token}", unsubscribe.show_page, None),
    Route("POST", "/u/{token}", unsubscribe.unsubscribe, None),
    Route("GET", "/stream", stream, Scope.INBOX),
    Route("GET", "/healthz", healthz, None),
    Route("GET", "/readyz", readyz, None),
    Route("GET", "/metrics", metrics, Scope.METRICS),
    Route("GET", "/openapi.json", pages.openapi, None),
    Route("GET", "/docs", pages.docs, None),
)
FOR_BROWSERS: Final = frozenset(route.path for route in ROUTES if route.scope is Scope.INBOX)  # for CORS_ORIGINS


def setup(app: web.Application, settings: Settings) -> None:
    """Add the routes, and what their handlers need besides the store."""
    kinds, id_type = settings.kinds, settings.id_type
    app[GATE], app[METRICS], app[THROTTLE] = Gate(settings), Metrics(), Throttle()
    app[IN_FLIGHT] = bodies.InFlight(settings.notifications_limit)
    app[SCHEMAS] = Schemas(id_type, kinds)
    document: Callable[[], JSONObject] = cache(partial(openapi.describe, kinds, id_type))
    app[openapi.DOCUMENT] = document  # made when it is first asked for, which most processes never are
    app[unsubscribe.LINKS] = Links(settings)
    for method, path, handler, scope in ROUTES:
        add = app.router.add_post if method == "POST" else partial(app.router.add_get, allow_head=handler is not stream)
        add(path, _guarded(handler, scope) if scope else handler)


def _guarded(handler: Callable[..., Awaitable[web.StreamResponse]], scope: Scope) -> Handler:
    async def identified(request: web.Request) -> web.StreamResponse:
        return await handler(request, request.app[GATE].identify(request, scope))

    return identified


def _answer(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(body=body, status=status, headers={"Content-Type": bodies.JSON, **(headers or {})})
