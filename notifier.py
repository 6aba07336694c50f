"""In-app notifications and e-mail for users in MongoDB: the entry, and the lifetime of every resource."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Final

import aiohttp_cors
from aiohttp import web

import handlers
import openapi
import pages
from auth import Gate
from changes import Changes
from commands import fail, parse_arguments, run_command
from delivery import running_delivery
from live import Live
from logs import configure_logging
from metrics import Metrics
from outbox import Outbox
from schemas import BODY_LIMIT
from settings import Settings, SettingsError, load_settings
from store import Fault, Unavailable, open_store, uri_fault
from workers import supervise

log = logging.getLogger("notifier")

SETTINGS: Final = web.AppKey("SETTINGS", Settings)
LISTEN_BACKLOG: Final = 4096
"""Connections that wait to be accepted: beyond, a client would try again only a second later."""
NOT_READY: Final = 1.0
SHUTDOWN_TIMEOUT: Final = 1.0
"""Seconds after SIGTERM in which requests are still taken, though `/readyz` says not to send them; and seconds that
those under way are then given (aiohttp spends them twice). With those of the delivery, the mailer and the store they
are less than 8, and Docker waits for 10."""


def create_app(settings: Settings) -> web.Application:
    """Make the application. Nothing is opened before it is started."""
    middlewares = [handlers.middleware]
    if settings.local and settings.host in handlers.LOOPBACK:
        middlewares.append(handlers.own_name_only)
    app = web.Application(middlewares=middlewares, client_max_size=BODY_LIMIT)
    app[SETTINGS] = settings
    app[handlers.GATE] = Gate(settings)
    app[handlers.METRICS] = Metrics()
    app[handlers.DRAINING] = asyncio.Event()
    app[handlers.DOCUMENT] = openapi.describe(handlers.ROUTES)
    app.add_routes(handlers.ROUTES)
    app.add_routes(pages.routes(demo=settings.demo or settings.local, mailbox=settings.local))
    if settings.cors_origins:
        allow_cors(app, settings.cors_origins)
    if settings.local:
        app.cleanup_ctx.append(local_run)
    app.cleanup_ctx.extend([mongodb, delivery, streams, event_loop])
    app.on_shutdown.append(end_streams)
    return app


def allow_cors(app: web.Application, origins: Sequence[str]) -> None:
    """Let the pages of these origins call what a browser may call."""
    options = aiohttp_cors.ResourceOptions(
        allow_headers=("Authorization", "If-None-Match", "X-Request-ID"), expose_headers=("ETag", "X-Request-ID")
    )
    cors = aiohttp_cors.setup(app, defaults=dict.fromkeys(origins, options))
    for route in list(app.router.routes()):
        if route.resource and route.resource.canonical in handlers.FOR_BROWSERS:
            cors.add(route)


async def drain_on_sigterm(app: web.Application) -> None:
    """On SIGTERM, say first that no more requests should be sent, and stop a moment later (in place of aiohttp's)."""

    def stop() -> None:
        raise web.GracefulExit

    def drain() -> None:
        if not app[handlers.DRAINING].is_set():
            app[handlers.DRAINING].set()
            app[handlers.LIVE].close()
            loop.call_later(NOT_READY, stop)

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, drain)


async def end_with_supervisor(_: web.Application) -> None:
    """Stop when the other end of the pipe is closed, as it is however the supervisor ended."""

    def ended() -> None:
        loop.remove_reader(sys.stdin)
        os.kill(os.getpid(), signal.SIGTERM)

    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin, ended)


async def local_run(app: web.Application) -> AsyncIterator[None]:
    """Run on an embedded MongoDB and mailbox."""
    try:
        from local import LocalRunError, embedded, read_mailbox  # noqa: PLC0415 - the container has not what it needs
    except ModuleNotFoundError:
        sys.exit(
            "Nothing is configured: set DB_URI, EMAIL and SMTP_HOST; or install requirements-dev.txt to run locally."
        )
    try:
        async with embedded(app[SETTINGS]) as settings:
            app[SETTINGS] = settings
            app[pages.READ_MAILBOX] = read_mailbox
            yield
    except LocalRunError as exc:
        sys.exit(f"{exc}")


async def mongodb(app: web.Application) -> AsyncIterator[None]:
    """Hold the connection to MongoDB."""
    async with open_store(app[SETTINGS]) as store:
        app[handlers.STORE] = store
        app[handlers.OUTBOX] = Outbox(store)
        yield


async def delivery(app: web.Application) -> AsyncIterator[None]:
    """Deliver e-mails in the background."""
    app[handlers.MAIL_OWED] = owed = asyncio.Event()
    async with running_delivery(app[handlers.OUTBOX], app[SETTINGS], owed, app[handlers.METRICS]):
        yield


async def streams(app: web.Application) -> AsyncIterator[None]:
    """Tell whoever listens of changes."""
    app[handlers.LIVE] = live = Live(Changes(app[handlers.STORE]), app[handlers.METRICS], app[SETTINGS].stream_limit)
    async with live.running():
        yield


async def end_streams(app: web.Application) -> None:
    """End the streams, which would not end by themselves, before aiohttp waits for what is under way."""
    app[handlers.LIVE].close()


async def event_loop(app: web.Application) -> AsyncIterator[None]:
    """Measure how late the event loop is."""
    async with app[handlers.METRICS].measuring_lag():
        yield


LOCAL_RUN: Final = """\
This is a LOCAL RUN, on an embedded MongoDB and mailbox under .notifier/; set DB_URI and SMTP_HOST for any other.
Open http://{host}:{port}/ in a browser and see it work, or try it here (Ctrl-C stops):

  curl -d '{{"user_id": "638f394d4b7243fc0399ea67", "key": "new_login"}}' http://{host}:{port}/create
  curl 'http://{host}:{port}/list?user_id=638f394d4b7243fc0399ea67'
  ls .notifier/mail/
"""


def announce(settings: Settings, _: str) -> None:
    """Say that it serves, and where."""
    if settings.local:
        print(LOCAL_RUN.format(host=settings.host, port=settings.port), flush=True)  # noqa: T201 - for the newcomer
    else:
        log.info("listening on %s port %d", settings.host, settings.port)
    if not settings.api_keys and settings.host not in handlers.LOOPBACK:
        log.warning("API_KEYS is not set: whoever reaches %s port %d may do everything", settings.host, settings.port)


def main(arguments: list[str]) -> int:
    """Serve until stopped by a signal, or run a command.

    Returns 0; 1 when it could not be done; 2 when it is configured wrongly.
    """
    options = parse_arguments(arguments)
    try:
        settings = load_settings(uri_fault)
    except SettingsError as exc:
        return fail(f"{exc}", 2)
    configure_logging(settings.log_level)
    try:
        if options.command:
            return run_command(options, settings)
        if settings.workers > 1 and not options.worker:
            return asyncio.run(supervise(settings))
        # Hardly anything of a request is garbage that only the collector finds: as often as it looks by default, it
        # takes a twelfth of the CPU, and makes the slowest hundredth of the lists twice as slow.
        gc.set_threshold(50_000, 20, 50)
        app = create_app(settings)
        app.on_startup.append(drain_on_sigterm)
        if options.worker:
            app.on_startup.append(end_with_supervisor)
        web.run_app(
            app,
            host=settings.host,
            port=settings.port,
            access_log=None,
            reuse_port=options.worker,
            backlog=LISTEN_BACKLOG,
            print=partial(announce, settings),
            shutdown_timeout=SHUTDOWN_TIMEOUT,
        )
    except Unavailable:
        return fail("MongoDB cannot be reached, or does not confirm a write: see DB_URI.")
    except (Fault, OSError) as exc:
        return fail(f"The service cannot start: {exc}.")
    return 0


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    logging.shutdown()
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    # Not sys.exit: Python would wait for the driver's threads, and they for a MongoDB that hangs.
    os._exit(exit_code)
