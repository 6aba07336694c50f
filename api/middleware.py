"""What surrounds every request: a request id, problems in place of exceptions, a metric and a log line."""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import Callable, Iterable
from time import perf_counter
from typing import Final

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from api.answers import is_large, send
from api.body import answer_before_body
from api.problems import ForeignHost, Incomplete, problem_of, render
from config.checks import in_url
from mongo.errors import Conflict, Unavailable, UnknownError
from ops.logs import Throttle, log_info
from ops.metrics import METRICS

log = logging.getLogger("notifier.http")

REQUEST_ID: Final = web.RequestKey("REQUEST_ID", str)
RENDER_FAILURE: Final[web.RequestKey[Callable[[Exception], web.Response]]] = web.RequestKey("RENDER_FAILURE")
"""How a request's failures are answered, if not as problems only."""
STARTED: Final = web.RequestKey("STARTED", float)
REQUEST_ID_PATTERN: Final = "[A-Za-z0-9_.-]{1,64}"
LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
PORT: Final = re.compile(r":\d{1,5}$")
DRAINING: Final = web.AppKey("DRAINING", asyncio.Event)
"""Set when the service is about to stop and should be sent no more requests."""
THROTTLE: Final = web.AppKey("THROTTLE", Throttle)


def own_name_only(names: Iterable[str]) -> Middleware:
    """Make what refuses requests for other hosts, on any port.

    The name of any site can point to this machine (DNS rebinding), and then its pages may call the service. `Host` has
    that name. What `X-Forwarded-Host` has counts for nothing, as such a page may set it.
    """
    own = {in_url(name) for name in (*LOOPBACK, *names)}

    @web.middleware
    async def refuse_others(request: web.Request, handler: Handler) -> web.StreamResponse:
        if PORT.sub("", request.host.lower()) not in own:
            raise ForeignHost
        return await handler(request)

    return refuse_others


@web.middleware
async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every failure as a problem. Count, time and log every request, without query, body or address."""
    request[STARTED] = perf_counter()
    given = request.headers.get("X-Request-ID", "")
    request[REQUEST_ID] = request_id = (
        given if re.fullmatch(REQUEST_ID_PATTERN, given) else f"{random.getrandbits(128):032x}"
    )
    await asyncio.sleep(0)  # one request of a pipeline at a time, in turn with other connections
    try:
        response = await handler(request)
    except Exception as exc:  # noqa: BLE001 - no failure may leave as anything but a problem
        _log_failure(exc, request_id, request.app[THROTTLE])
        response = request.get(RENDER_FAILURE, render)(exc)
    if not response.prepared:  # a stream was completed when it began
        complete(request, response)
        if not request.content.is_eof():
            await answer_before_body(request, response)
        elif is_large(response):
            await send(request, response)
    return response


def _log_failure(exc: Exception, request_id: str, throttle: Throttle) -> None:
    extra = {"request_id": request_id}
    reasons = exc.failures.values() if isinstance(exc, Incomplete) else [exc]
    for reason in reasons:
        if isinstance(reason, Conflict | Unavailable | UnknownError) and f"{reason}" and throttle.allows(f"{reason}"):
            log.error("requests fail: %s", reason, extra=extra)
    if not isinstance(exc, UnknownError) and problem_of(exc).status == 500:
        log.error("unexpected error", exc_info=exc, extra=extra)


def complete(request: web.Request, response: web.StreamResponse) -> None:
    """Add the last headers to a response that is about to be sent, and count, time and log its request."""
    seconds = perf_counter() - request[STARTED]
    response.headers["X-Request-ID"] = request_id = request[REQUEST_ID]
    if request.app[DRAINING].is_set():
        response.force_close()  # the client's next request should reach another process
    if request.headers.get("Origin"):
        response.headers["Vary"] = "Origin"  # aiohttp-cors leaves it out
    resource = request.match_info.route.resource
    route = resource.canonical if resource else "-"  # never the client's own words, in a log or a label
    method = request.method if request.method in hdrs.METH_ALL else "-"
    request.app[METRICS].requests_of(route, method, response.status).observe(seconds)
    log_info(
        log,
        "%s %s %d %.1f ms",
        *(method, route, response.status, seconds * 1e3),
        method=method,
        route=route,
        status=response.status,
        seconds=seconds,
        request_id=request_id,
    )
