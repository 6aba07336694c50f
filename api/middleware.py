"""Around every request: its id, problems in place of exceptions, a metric and a log line."""

import asyncio
import logging
import random
import re
from collections.abc import Callable, Iterable, Mapping
from time import perf_counter, time
from typing import Final

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from api.auth import Refused
from api.bodies import is_large, send
from api.problems import ForeignHost, problem_of, render
from api.streams import HUB
from config.checks import LOOPBACK, in_url
from mongo.errors import Conflict, Incomplete, Unavailable, UnknownError
from ops.logs import JSONFormatter, LineHandler, Throttle, json_line
from ops.metrics import METRICS

log = logging.getLogger("notifier.http")
audit = logging.getLogger("notifier.audit")

ORIGIN: Final[web.RequestKey[Mapping[str, str]]] = web.RequestKey("ORIGIN")
"""The `request_id`, and the `traceparent` if there is one, for the log lines of the request and of its e-mail."""
RENDER_FAILURE: Final[web.RequestKey[Callable[[Exception], web.Response]]] = web.RequestKey("RENDER_FAILURE")
"""Set by a handler that answers failures in its own way."""
STARTED: Final = web.RequestKey("STARTED", float)
SPAN: Final = web.RequestKey("SPAN", str)  # the `traceparent` of the request's own span, if the service sends spans
REQUEST_ID_PATTERN: Final = "[A-Za-z0-9_.-]{1,64}"
TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
"""W3C Trace Context, section 3.2, which asks to ignore any other value."""
SERVER: Final = "notifier"  # the `Server` header; by default, aiohttp reveals its version in it
PROBES: Final = ("/healthz", "/readyz")  # orchestrators call these every few seconds
PORT: Final = re.compile(r":\d{1,5}$")
THROTTLE: Final = web.AppKey("THROTTLE", Throttle)


def own_name_only(names: Iterable[str]) -> Middleware:
    """Return middleware that rejects other Host names: any site can make its own lead here (DNS rebinding)."""
    own = {in_url(name) for name in (*LOOPBACK, *names)}

    @web.middleware
    async def refuse_others(request: web.Request, handler: Handler) -> web.StreamResponse:
        # `X-Forwarded-Host` does not count: a page of such a site may set it.
        if PORT.sub("", request.host.lower()) not in own:
            raise ForeignHost
        return await handler(request)

    return refuse_others


@web.middleware
async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every failure as a problem. Count, time and log every request, without query, body or address."""
    request[STARTED] = perf_counter()
    request[ORIGIN] = origin_of(request)
    await asyncio.sleep(0)  # one request of a pipeline at a time, in turn with other connections
    try:
        response = await handler(request)
    except Exception as exc:  # noqa: BLE001 - no failure may leave as anything but a problem
        _log_failure(exc, request[ORIGIN], request.app[THROTTLE])
        response = request.get(RENDER_FAILURE, render)(exc)
    if not response.prepared:  # a stream was completed when it began
        complete(request, response)
        if is_large(response):
            await send(request, response)
    return response


def origin_of(request: web.Request) -> Mapping[str, str]:
    """Return the ids by which a request is found in logs: those of its headers if valid, else a new request id."""
    request_id = request.headers.get("X-Request-ID", "")
    trace = request.get(SPAN, "") or request.headers.get("traceparent", "")
    if not re.fullmatch(REQUEST_ID_PATTERN, request_id):
        request_id = f"{random.getrandbits(128):032x}"
    origin = {"request_id": request_id}
    return origin | {"traceparent": trace} if TRACEPARENT.fullmatch(trace) else origin


def route_of(request: web.Request) -> tuple[str, str]:
    """Return the method and route for logs, labels and spans: known names only, never the client's own text."""
    resource = request.match_info.route.resource
    return request.method if request.method in hdrs.METH_ALL else "-", resource.canonical if resource else "-"


def _log_failure(exc: Exception, extra: Mapping[str, str], throttle: Throttle) -> None:
    if isinstance(exc, Refused):
        audit.info("%s is refused: %s", exc, problem_of(exc).detail, extra=extra)
    for reason in exc.failures.values() if isinstance(exc, Incomplete) else [exc]:
        if isinstance(reason, Conflict | Unavailable | UnknownError) and f"{reason}" and throttle.allows(f"{reason}"):
            log.error("requests fail: %s", reason, extra=extra)
    if not isinstance(exc, UnknownError) and problem_of(exc).status == 500:
        log.error("unexpected error", exc_info=exc, extra=extra)


def complete(request: web.Request, response: web.StreamResponse) -> None:
    """Add the last headers to a response about to be sent; count, time and log its request."""
    seconds, status, origin = perf_counter() - request[STARTED], response.status, request[ORIGIN]
    response.headers["X-Request-ID"] = origin["request_id"]
    response.headers["Server"] = SERVER
    if request.app[HUB].stopping or not request.content.is_eof():
        response.force_close()  # the next request should reach another process, or would follow an unread body
    if request.headers.get("Origin"):
        response.headers["Vary"] = "Origin"  # aiohttp-cors leaves it out
    method, route = route_of(request)
    request.app[METRICS].requests_of(route, method, status).observe(seconds)
    level = logging.DEBUG if route in PROBES and status == 200 else logging.INFO
    extra = {"method": method, "route": route, "status": status, "seconds": seconds, **origin}
    log_line(level, f"{method} {route} {status} {seconds * 1e3:.1f} ms", extra)


def log_line(level: int, message: str, extra: Mapping[str, object]) -> None:
    """Log as `Logger.log` does, at a fifth of its cost if the line only goes to standard error as JSON."""
    if not log.isEnabledFor(level):
        return
    match logging.getLogger().handlers:
        case [LineHandler(formatter=JSONFormatter()) as handler]:
            handler.write(json_line(time(), logging.getLevelName(level), log.name, message, extra))
        case _:
            log.log(level, "%s", message, extra=extra)
