"""Serving until a signal, and stopping without a failed request (RFC 9112, section 9.6)."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, cast

from aiohttp import web

from api.middleware import SERVER
from api.problems import HEADER_LIMIT, TooManyConnections, render
from api.streams import HUB
from config import descriptors
from ops.listening import announce, bind, cease, listen
from ops.logs import Throttle
from settings import Settings

log = logging.getLogger("notifier.http")

OPTIONS: Final[Mapping[str, Any]] = {  # how aiohttp is to treat bodies and headers
    "auto_decompress": False,  # a small body may inflate to any size
    "lingering_time": 2.0,  # seconds for which an unwanted body is read, so that its client gets the answer
    "max_line_size": HEADER_LIMIT,
    "max_field_size": HEADER_LIMIT,  # a browser sends every cookie of the site in one
}
GC_THRESHOLDS: Final = (50_000, 20, 50)
"""Requests leave hardly any garbage that only the collector finds. With the default thresholds it takes a twelfth of
the CPU, and the slowest hundredth of the lists take twice as long."""
UNREADY_PERIOD: Final = 1.0  # seconds after SIGTERM in which connections are accepted, while `/readyz` answers 503
LAST_REQUESTS_PERIOD: Final = 0.3  # seconds for the last accepted connections to send their request
SHUTDOWN_TIMEOUT: Final = 1.0
"""Seconds for the remaining requests; aiohttp applies it twice. With the grace periods of delivery, mailer and store,
the process ends within `STOP_LIMIT`."""
STOP_LIMIT: Final = 7.7  # seconds after SIGTERM in which the process ends, whatever hangs; Docker waits for 10 s
REFUSING: Final = 32  # connections refused at a time; beyond that the oldest is aborted, as it may never send a request
REFUSAL_TIMEOUT: Final = 2.0  # seconds for a refused client to send its request and read the answer
USER_TIMEOUT: Final = getattr(socket, "TCP_USER_TIMEOUT", None)  # RFC 5482, on Linux
USER_TIMEOUT_MS: Final = 30_000  # milliseconds that sent bytes may stay unacknowledged; by default, 15 minutes


class Admission:
    """Refuses connections while descriptors are scarce: those whose own is `last` or higher."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.refusing: dict[Connection, None] = {}
        self._throttle = Throttle()

    def refuse(self, connection: Connection) -> None:
        """Abort a connection soon, whatever its client does."""
        if self._throttle.allows("descriptors"):
            log.error("connections are refused, as the process has nearly as many files open as it may (ulimit -n)")
        self.refusing[connection] = None
        if len(self.refusing) > REFUSING:
            next(iter(self.refusing)).abort()
        asyncio.get_running_loop().call_later(REFUSAL_TIMEOUT, connection.abort)


class Connection(web.RequestHandler):
    """A client's connection. Requests that reach no middleware are answered with a problem, too."""

    def __init__(self, admission: Admission, server: web.Server, **options: Any) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), **options)
        self._admission = admission

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Serve the connection, or refuse its request. A client would lose an answer sent before the request."""
        super().connection_made(transport)
        connection = transport.get_extra_info("socket")
        if USER_TIMEOUT:
            connection.setsockopt(socket.IPPROTO_TCP, USER_TIMEOUT, USER_TIMEOUT_MS)
        if connection.fileno() >= self._admission.last:
            self._request_handler = _refuse
            self._admission.refuse(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._admission.refusing.pop(self, None)
        super().connection_lost(exc)

    def abort(self) -> None:
        self._admission.refusing.pop(self, None)
        if self.transport:
            self.transport.abort()

    def handle_error(self, request: web.BaseRequest, status: int = 500, exc: Any = None, message: Any = None) -> Any:
        """Return the answer. Raises `ConnectionError` if another has begun."""
        super().handle_error(request, status, exc, message)
        return _closing(exc if isinstance(exc, Exception) else Exception())


def _closing(exc: Exception) -> web.Response:
    """Return the answer to a request that no middleware has seen, after which its connection is closed."""
    response = render(exc)
    response.headers["Server"] = SERVER
    response.force_close()
    return response


async def _refuse(_: web.BaseRequest) -> web.StreamResponse:
    return _closing(TooManyConnections())


def run(app: web.Application, settings: Settings, *, is_worker: bool) -> None:
    """Run the process that serves. Raises what `serve` raises, except `CancelledError`."""
    gc.set_threshold(*GC_THRESHOLDS)
    descriptors.raise_limit()
    with suppress(KeyboardInterrupt, asyncio.CancelledError):
        asyncio.run(serve(app, settings, is_worker=is_worker))


async def serve(app: web.Application, settings: Settings, *, is_worker: bool) -> None:
    """Serve until SIGTERM. Raises `CannotListen`, what the start raises, and `CancelledError` if interrupted."""
    stop, interrupted = asyncio.Event(), asyncio.current_task()
    host, port = settings.host, settings.port
    runner = web.AppRunner(app, shutdown_timeout=SHUTDOWN_TIMEOUT)
    options = {**OPTIONS, "access_log": None, "keepalive_timeout": settings.keep_alive_seconds}
    admission = Admission(descriptors.for_clients())

    def connection() -> Connection:
        return Connection(admission, cast("web.Server", runner.server), **options)  # it is there once that is set up

    def end() -> None:
        if runner.server:
            stop.set()
        elif interrupted:
            interrupted.cancel()

    _on_sigterm(end)
    if is_worker:
        _end_with_supervisor()
    server = await bind(connection, host, port, share=is_worker)  # first, as a port in use needs no waiting for MongoDB
    try:
        await runner.setup()
        await listen(server, host, port)
        announce(settings)
        await stop.wait()
        app[HUB].close()  # from now on every answer closes its connection
        await asyncio.sleep(UNREADY_PERIOD)
        await cease(server, connection)
        await asyncio.sleep(LAST_REQUESTS_PERIOD)
    finally:
        server.close()
        await runner.cleanup()


def _on_sigterm(end: Callable[[], None]) -> None:
    """Call `end` in the event loop on the first SIGTERM, and end the process after `STOP_LIMIT` at the latest."""
    loop = asyncio.get_running_loop()

    def received(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        threading.Timer(STOP_LIMIT, os._exit, [1]).start()
        loop.call_soon_threadsafe(end)

    # Not the loop's own handler, which does nothing while the loop is stuck.
    signal.signal(signal.SIGTERM, received)


def _end_with_supervisor() -> None:
    """Stop when the supervisor's end of the pipe closes, which happens however the supervisor ends."""

    def ended() -> None:
        loop.remove_reader(sys.stdin)
        os.kill(os.getpid(), signal.SIGTERM)

    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin, ended)
