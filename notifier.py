"""In-app notifications and e-mail for users in MongoDB: the settings, the application, and the lifetime of the rest."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

sys.path.insert(0, str(Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

from aiohttp import web

import cli.main
import handlers
from api import pages, server, unsubscribe
from api.auth import allow_cors
from api.bodies import BODY_LIMIT
from api.middleware import middleware, own_name_only
from api.streams import HUB, Hub
from config import descriptors
from delivery import Delivery, Record
from mongo.errors import PATIENCE, Patience
from mongo.serving import patiently
from ops.listening import announce, warn_if_open
from ops.local import embedded
from ops.metrics import METRICS
from settings import Settings
from store import open_store

if TYPE_CHECKING:
    from api.tracing import Tracing

log = logging.getLogger("notifier")

SETTINGS: Final = web.AppKey("SETTINGS", Settings)
RECORD: Final[web.AppKey[Record | None]] = web.AppKey("RECORD")
PATIENT: Final = web.AppKey("PATIENT", Patience)


def create_app(settings: Settings, patience: Patience = PATIENCE) -> web.Application:
    """Make the application. Nothing is opened before it is started."""
    app = web.Application(middlewares=[middleware], client_max_size=BODY_LIMIT)
    app[SETTINGS], app[PATIENT], app[RECORD] = settings, patience, None
    if settings.local:
        app.middlewares.append(own_name_only([settings.host, *settings.local_names]))
        app.cleanup_ctx.append(local_run)
    if tracing := tracing_of(settings):
        app.middlewares.insert(0, tracing.request)
        app.cleanup_ctx.append(tracing.sending)
        app[RECORD] = tracing.record
    handlers.setup(app, settings)
    app.add_routes([*pages.routes(), *pages.demo_routes(settings)])
    if settings.cors_origins:
        allow_cors(app, settings.cors_origins, handlers.FOR_BROWSERS)
    app.cleanup_ctx.extend([mongodb, delivery, streams, watch])
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
    return Tracing(settings.otel_exporter_otlp_endpoint)


async def local_run(app: web.Application) -> AsyncIterator[None]:
    """Run on an embedded MongoDB and mailbox. Raises `NoDatabase` or `LocalRunError`."""
    async with embedded(app[SETTINGS]) as app[SETTINGS]:
        yield


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
    app[handlers.EMAIL_OWED] = owed = asyncio.Event()
    async with Delivery(app[handlers.STORE], app[SETTINGS], owed, app[METRICS], app[RECORD]):
        yield


async def streams(app: web.Application) -> AsyncIterator[None]:
    limit = min(app[SETTINGS].stream_limit, descriptors.for_streams())
    app[HUB] = hub = Hub(app[handlers.STORE].changes, app[METRICS], limit)
    async with hub.running():
        yield


async def end_streams(app: web.Application) -> None:
    """End the streams, which never end by themselves, before aiohttp waits for the requests under way."""
    app[HUB].close()


async def watch(app: web.Application) -> AsyncIterator[None]:
    """Measure how late the event loop is, and warn of an open API."""
    app[METRICS].open.set(bool(app[SETTINGS].openness))
    tasks = [asyncio.create_task(run) for run in (app[METRICS].measure_lag(), warn_if_open(app[SETTINGS]))]
    yield
    for task in tasks:
        task.cancel()


def serve(settings: Settings, is_worker: bool) -> None:  # noqa: FBT001 - as `cli.main.Serve`
    """Serve until a signal stops it. Raises `StoreError`, `CannotListen`, `NoDatabase` or `LocalRunError`."""
    server.run(create_app(settings), settings, partial(announce, settings), is_worker=is_worker)


def run() -> NoReturn:
    """Be the process: what `python notifier.py` and `notifier.pyz` do."""
    cli.main.run(serve)


if __name__ == "__main__":
    run()
