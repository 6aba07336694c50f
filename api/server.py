"""Serving until a signal, and stopping without a failed request: RFC 9112, section 9.6, says how a server closes."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, cast

from aiohttp import web

from api.admission import Admission
from api.hub import HUB
from api.middleware import DRAINING
from api.problems import HEADER_LIMIT, render
from config import descriptors
from ops.listening import bind, cease, listen
from settings import Settings

OPTIONS: Final[Mapping[str, Any]] = {
    "auto_decompress": False,  # a small body may inflate to any size
    "lingering_time": 0,  # see `answer_before_body`
    "max_line_size": HEADER_LIMIT,
    "max_field_size": HEADER_LIMIT,  # a browser sends every cookie of the site in one
}
"""How aiohttp is to treat bodies and headers."""
GC_THRESHOLDS: Final = (50_000, 20, 50)
"""Requests leave hardly any garbage that only the collector finds. With its default thresholds it takes a twelfth of
the CPU, and the slowest hundredth of the lists takes twice as long."""
UNREADY_PERIOD: Final = 1.0
"""Seconds after SIGTERM in which connections are still accepted while `/readyz` answers 503."""
LAST_REQUESTS_PERIOD: Final = 0.3
"""Seconds in which the connections accepted last may send their request."""
SHUTDOWN_TIMEOUT: Final = 1.0
"""Seconds that requests under way are then given; aiohttp applies it twice. With the graces of delivery, mailer and
store the process ends within `STOP_LIMIT`."""
STOP_LIMIT: Final = 7.7
"""Seconds after SIGTERM in which the process ends, whatever hangs. Docker waits for 10 s."""


class Connection(web.RequestHandler):
    """A client's connection. What is refused before its resource is known is answered as a problem, too."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Return the answer. Raises `ConnectionError` if another has begun."""
        super().handle_error(request, status, exc, message)
        response = render(exc if isinstance(exc, Exception) else Exception())
        response.headers["Server"] = "notifier"  # without one, aiohttp tells its version
        response.force_close()
        return response


async def hide_versions(_: web.Request, response: web.StreamResponse) -> None:
    """Leave out the header that tells the versions of Python and aiohttp."""
    response.headers.pop("Server", None)


def run(app: web.Application, settings: Settings, announce: Callable[[], None], *, is_worker: bool) -> None:
    """Be the process that serves. Raises as `serve`."""
    gc.set_threshold(*GC_THRESHOLDS)
    descriptors.raise_limit()
    with suppress(KeyboardInterrupt, asyncio.CancelledError):
        asyncio.run(serve(app, settings, announce, is_worker=is_worker))


async def serve(app: web.Application, settings: Settings, announce: Callable[[], None], *, is_worker: bool) -> None:
    """Serve until SIGTERM; call `announce` once the service listens.

    Raises `CannotListen`, what the start of the application raises, and `CancelledError` if SIGTERM interrupts that.
    """
    stop, interrupted, loop = asyncio.Event(), asyncio.current_task(), asyncio.get_running_loop()
    host, port = settings.host, settings.port
    runner = web.AppRunner(app, shutdown_timeout=SHUTDOWN_TIMEOUT)
    options = {**OPTIONS, "access_log": None, "keepalive_timeout": settings.keep_alive_seconds}

    def protocol() -> asyncio.BaseProtocol:
        return Connection(cast("web.Server", runner.server), loop=loop, **options)  # it is there once that is set up

    admission = Admission(protocol, descriptors.for_clients())
    asyncio.get_running_loop().set_exception_handler(admission.handle)

    def end() -> None:
        if runner.server:
            stop.set()
        elif interrupted:
            interrupted.cancel()

    _on_sigterm(end)
    if is_worker:
        _end_with_supervisor()
    server = await bind(admission, host, port, share=is_worker)  # first, as a port in use needs no waiting for MongoDB
    try:
        await runner.setup()
        await listen(server, host, port)
        announce()
        await stop.wait()
        app[DRAINING].set()  # from now on every answer closes its connection
        app[HUB].close()
        await asyncio.sleep(UNREADY_PERIOD)
        await cease(server, admission)
        await asyncio.sleep(LAST_REQUESTS_PERIOD)
    finally:
        server.close()
        await runner.cleanup()


def _on_sigterm(end: Callable[[], None]) -> None:
    """Call `end` in the event loop on the first SIGTERM, and end the process after `STOP_LIMIT` at the latest."""
    loop, pending = asyncio.get_running_loop(), [end]

    def received(*_: object) -> None:
        if pending:
            threading.Timer(STOP_LIMIT, os._exit, [1]).start()
            loop.call_soon_threadsafe(pending.pop())

    # Not the loop's own handler, which needs a loop that turns.
    signal.signal(signal.SIGTERM, received)


def _end_with_supervisor() -> None:
    """Stop when the supervisor's end of the pipe closes, which happens however the supervisor ends."""

    def ended() -> None:
        loop.remove_reader(sys.stdin)
        os.kill(os.getpid(), signal.SIGTERM)

    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin, ended)
