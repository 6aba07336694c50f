"""In-app notifications and e-mail for users in MongoDB: the settings, the application, and the lifetime of the rest."""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

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
from ops.listening import warn_if_open
from ops.local import embedded
from ops.metrics import METRICS
from settings import Settings
from store import open_store

log = logging.getLogger("notifier")

SETTINGS: Final = web.AppKey("SETTINGS", Settings)


def create_app(settings: Settings, patience: Patience = PATIENCE) -> web.Application:
    """Make the application, which opens nothing before it is started."""
    app = web.Application(middlewares=[middleware], client_max_size=BODY_LIMIT)
    app[SETTINGS] = settings
    record = trace(app, settings.otel_exporter_otlp_endpoint) if settings.otel_exporter_otlp_endpoint else None
    if settings.local:
        app.middlewares.append(own_name_only([settings.host, *settings.local_names]))
        app.cleanup_ctx.append(local_run)
    handlers.setup(app, settings)
    app.add_routes([*pages.routes(), *pages.demo_routes(settings)])
    if settings.cors_origins:
        allow_cors(app, settings.cors_origins, handlers.FOR_BROWSERS)
    app.cleanup_ctx.extend([partial(mongodb, patience=patience), partial(delivery, record=record), streams, watch])
    app.on_shutdown.append(end_streams)
    return app


def trace(app: web.Application, endpoint: str) -> Record | None:
    """Make spans of the requests, and return what makes those of e-mails."""
    try:
        from api.tracing import Tracing  # noqa: PLC0415 - its packages are optional
    except ModuleNotFoundError:
        log.warning("OTEL_EXPORTER_OTLP_ENDPOINT is set, but no spans are sent: install requirements-otel.txt")
        return None
    tracing = Tracing(endpoint)
    app.middlewares.insert(0, tracing.request)
    app.cleanup_ctx.append(tracing.sending)
    return tracing.record


async def local_run(app: web.Application) -> AsyncIterator[None]:
    async with embedded(app[SETTINGS]) as app[SETTINGS]:
        yield


async def mongodb(app: web.Application, patience: Patience) -> AsyncIterator[None]:
    settings = app[SETTINGS]
    opened = partial(open_store, settings, serves=True, patience=patience)
    async with AsyncExitStack() as stack:
        opening = patiently(lambda: stack.enter_async_context(opened()), settings.start_timeout)
        app[handlers.STORE] = store = await opening
        app[unsubscribe.PREFERENCES] = store.preferences
        yield


async def delivery(app: web.Application, record: Record | None) -> AsyncIterator[None]:
    app[handlers.EMAIL_OWED] = owed = asyncio.Event()
    async with Delivery(app[handlers.STORE], app[SETTINGS], owed, app[METRICS], record):
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
    server.run(create_app(settings), settings, is_worker=is_worker)


def run() -> NoReturn:
    """Be the process: what `python notifier.py` and `notifier.pyz` do."""
    cli.main.run(serve)


if __name__ == "__main__":
    run()
