"""In-app notifications and e-mail for users in MongoDB: the entry, and the lifetime of every resource."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

sys.path.insert(0, str(Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

import aiohttp_cors
from aiohttp import web
from aiohttp.typedefs import Middleware

import handlers
from api import demo, openapi, pages, server, unsubscribe
from api.answers import IN_FLIGHT, InFlight, json_bytes
from api.auth import GATE, Gate
from api.body import BODY_LIMIT
from api.hub import HUB, Hub
from api.middleware import DRAINING, THROTTLE, middleware, own_name_only
from cli.check import run_check
from cli.environment import SettingsError, read_settings
from cli.output import INTERRUPTED, fail, fail_to_write
from cli.target import NoDatabase, nothing_configured
from commands import parse_arguments, run_command
from config import descriptors
from delivery import running_delivery
from mongo.errors import PATIENCE, Misconfigured, Patience, StoreError, Unavailable
from mongo.start import patiently
from ops.banner import banner
from ops.kinds import describe_kinds
from ops.listening import CannotListen
from ops.logs import Throttle, configure_logging
from ops.metrics import METRICS, Metrics
from ops.mongod import LocalRunError
from ops.workers import supervise
from schemas import CreateSchema, ListSchema, PreferencesSchema, SelectionSchema, UserSchema
from settings import Settings
from store import open_store

if TYPE_CHECKING:
    from api.tracing import Tracing

log = logging.getLogger("notifier")

SETTINGS: Final = web.AppKey("SETTINGS", Settings)
TRACING: Final[web.AppKey[Tracing | None]] = web.AppKey("TRACING")
PATIENT: Final = web.AppKey("PATIENT", Patience)
GC_THRESHOLDS: Final = (50_000, 20, 50)
"""Hardly anything of a request is garbage that only the collector finds. With its default thresholds it takes a
twelfth of the CPU and makes the slowest hundredth of the lists twice as slow."""
REMINDER_INTERVAL: Final = 3600.0
"""Seconds."""


def create_app(settings: Settings, patience: Patience = PATIENCE) -> web.Application:
    """Make the application. Nothing is opened before it is started."""
    tracing = tracing_of(settings)
    middlewares: list[Middleware] = [*([tracing.request] if tracing else ()), middleware]
    if settings.local:
        middlewares.append(own_name_only([settings.host, *settings.local_names]))
    app = web.Application(middlewares=middlewares, client_max_size=BODY_LIMIT)
    app[SETTINGS], app[PATIENT] = settings, patience
    kinds = settings.kinds
    app[GATE] = Gate(settings)
    app[METRICS] = Metrics()
    app[DRAINING] = asyncio.Event()
    app[THROTTLE] = Throttle()
    app[IN_FLIGHT] = InFlight(settings.notifications_limit)
    app[openapi.DOCUMENT] = openapi.Document(partial(openapi.describe, handlers.ROUTES, kinds, settings.id_type))
    app[handlers.CREATE] = CreateSchema(settings.id_type, kinds)
    app[handlers.LIST] = ListSchema(settings.id_type, kinds)
    app[handlers.SELECTION] = SelectionSchema(settings.id_type, kinds)
    app[unsubscribe.PAGE] = unsubscribe.UnsubscribePage(settings)
    app[handlers.USER] = UserSchema(settings.id_type)
    app[handlers.PREFERENCES] = PreferencesSchema(kinds)
    app[handlers.KINDS], app[handlers.KINDS_BODY] = kinds, json_bytes(describe_kinds(kinds))
    app.add_routes(handlers.ROUTES)
    app.add_routes(pages.routes())
    app.add_routes(demo.routes(settings))
    if settings.cors_origins:
        allow_cors(app, settings.cors_origins)
    if settings.local:
        app.cleanup_ctx.append(local_run)
    app[TRACING] = tracing
    app.cleanup_ctx.extend([traces, mongodb, delivery, streams, event_loop, reminder])
    app.on_response_prepare.append(hide_versions)
    app.on_shutdown.append(end_streams)
    return app


def tracing_of(settings: Settings) -> Tracing | None:
    """Return what makes spans, if the settings ask for them."""
    if not settings.otel_exporter_otlp_endpoint:
        return None
    try:
        from api.tracing import Tracing  # noqa: PLC0415 - its packages are optional
    except ModuleNotFoundError:
        log.warning("OTEL_EXPORTER_OTLP_ENDPOINT is set, but no spans are sent: install requirements-otel.txt")
        return None
    return Tracing()


async def traces(app: web.Application) -> AsyncIterator[None]:
    """Send spans, if the settings ask for them."""
    async with AsyncExitStack() as stack:
        if (tracing := app[TRACING]) and (endpoint := app[SETTINGS].otel_exporter_otlp_endpoint):
            await stack.enter_async_context(tracing.sending(endpoint))
        yield


def allow_cors(app: web.Application, origins: Sequence[str]) -> None:
    """Let the pages of these origins call what a browser may call."""
    options = aiohttp_cors.ResourceOptions(
        allow_headers=("Authorization", "Content-Type", "If-None-Match", "X-Request-ID"),
        expose_headers=("ETag", "X-Request-ID"),
        max_age=7200,  # seconds; the longest that Chromium keeps
    )
    cors = aiohttp_cors.setup(app, defaults=dict.fromkeys(origins, options))
    for route in list(app.router.routes()):
        if route.resource and route.resource.canonical in handlers.FOR_BROWSERS:
            cors.add(route)


async def local_run(app: web.Application) -> AsyncIterator[None]:
    """Run on an embedded MongoDB and mailbox."""
    try:
        from ops.local import embedded  # noqa: PLC0415 - its packages are optional
    except ModuleNotFoundError:
        raise nothing_configured() from None
    try:
        async with embedded(app[SETTINGS]) as settings:
            app[SETTINGS] = settings
            yield
    except LocalRunError as exc:
        sys.exit(f"{exc}")


async def mongodb(app: web.Application) -> AsyncIterator[None]:
    """Wait for MongoDB, and hold the connection to it."""
    settings = app[SETTINGS]
    async with AsyncExitStack() as stack:
        app[handlers.STORE] = await patiently(
            lambda deadline: stack.enter_async_context(
                open_store(settings, deadline, serves=True, patience=app[PATIENT])
            ),
            settings.start_timeout,
        )
        app[unsubscribe.PREFERENCES] = app[handlers.STORE].preferences
        yield


async def delivery(app: web.Application) -> AsyncIterator[None]:
    """Deliver e-mails in the background."""
    app[handlers.EMAIL_OWED] = owed = asyncio.Event()
    record = tracing.record if (tracing := app[TRACING]) else None
    async with running_delivery(app[handlers.STORE], app[SETTINGS], owed, app[METRICS], record):
        yield


async def streams(app: web.Application) -> AsyncIterator[None]:
    """Serve streams."""
    limit = min(app[SETTINGS].stream_limit, descriptors.for_streams())
    app[HUB] = hub = Hub(app[handlers.STORE].changes, app[METRICS], limit)
    async with hub.running():
        yield


async def end_streams(app: web.Application) -> None:
    """End the streams, which never end by themselves, before aiohttp waits for the requests under way."""
    app[HUB].close()


async def event_loop(app: web.Application) -> AsyncIterator[None]:
    """Measure how late the event loop is."""
    async with app[METRICS].measuring_lag():
        yield


async def reminder(app: web.Application) -> AsyncIterator[None]:
    """Say again and again if anyone may call."""
    app[METRICS].open.set(bool(app[SETTINGS].openness))
    task = asyncio.create_task(remind(app[SETTINGS]))
    yield
    task.cancel()


async def remind(settings: Settings) -> None:
    """Warn once an hour if anyone may call."""
    while settings.openness:
        await asyncio.sleep(REMINDER_INTERVAL)
        log.warning("%s", settings.openness)


async def hide_versions(_: web.Request, response: web.StreamResponse) -> None:
    """Leave out the header that tells the versions of Python and aiohttp."""
    response.headers.pop("Server", None)


def announce(settings: Settings) -> None:
    """Tell where the service listens."""
    if settings.local:
        print(banner(settings), flush=True)  # noqa: T201 - for the newcomer
    else:
        log.info("listening on %s port %d", settings.host, settings.port)
    if settings.openness:
        log.warning("%s", settings.openness)


def serve(settings: Settings, *, is_worker: bool) -> None:
    """Serve until a signal stops it. Raises `StoreError` or `CannotListen`."""
    gc.set_threshold(*GC_THRESHOLDS)
    descriptors.raise_limit()
    app = create_app(settings)
    with contextlib.suppress(KeyboardInterrupt, asyncio.CancelledError):
        asyncio.run(server.serve(app, settings, partial(announce, settings), is_worker=is_worker))


def explain(exc: Exception) -> int:
    """Print in one sentence why the service cannot start; return the exit code, 2 if only the configuration helps."""
    logging.shutdown()  # what was logged comes first
    match exc:
        case SettingsError() | NoDatabase():
            return fail(f"{exc}", 2)
        case Unavailable():
            return fail(f"{exc}", 2 if isinstance(exc, Misconfigured) else 1)
        case CannotListen():
            return fail(f"{exc}", 1 if exc.is_taken else 2)
    return fail(f"The service cannot start: {exc}.")


def main(arguments: list[str]) -> int:
    """Serve, or run a command. Return the exit code: 0, 1 after a failure, 2 for a wrong configuration."""
    try:
        options = parse_arguments(arguments)
        if options.command == "check":  # which tells the faults of the configuration too
            return run_check(options)
        settings, warnings = read_settings()
        configure_logging(settings.log_level)
        if not options.worker:
            for warning in warnings:
                log.warning("%s", warning)
        return run_command(options, settings) if options.command else serve_or_supervise(options, settings)
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else fail(f"{exc.code}")
    except (SettingsError, NoDatabase, StoreError, CannotListen, OSError) as exc:
        return explain(exc)


def serve_or_supervise(options: argparse.Namespace, settings: Settings) -> int:
    """Serve in this process, or in several; return the exit code. Raises as `serve`."""
    if settings.workers > 1 and not options.worker:
        return asyncio.run(supervise(settings))
    serve(settings, is_worker=options.worker)
    return 0


def end(code: int) -> NoReturn:
    """End the process, with all output written."""
    logging.shutdown()
    try:
        if sys.stdout:  # it may be closed
            sys.stdout.flush()
    except OSError as exc:
        code = code or fail_to_write(exc)
    # Not sys.exit: Python would wait for the driver's threads, and those wait for a MongoDB that hangs.
    os._exit(code)


def run() -> NoReturn:
    """Be the process: what `python notifier.py` and `notifier.pyz` do."""
    end(main(sys.argv[1:]))


if __name__ == "__main__":
    run()
