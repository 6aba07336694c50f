"""In-app notifications and e-mail for users in MongoDB: the entry, and the lifetime of every resource."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from typing import Final

from aiohttp import web

import handlers
import openapi
from delivery import running_delivery
from schemas import BODY_LIMIT
from settings import Settings, SettingsError, describe_settings, load_settings
from store import OutboxFull, Store, Unavailable, open_store, uri_fault

log = logging.getLogger("notifier")

SETTINGS: Final = web.AppKey("SETTINGS", Settings)
SHUTDOWN_TIMEOUT: Final = 3.0
"""Seconds that requests under way are given; with those of the delivery less than the 10 that Docker waits."""


def create_app(settings: Settings) -> web.Application:
    """Make the application. Nothing is opened before it is started."""
    app = web.Application(middlewares=[handlers.middleware], client_max_size=BODY_LIMIT)
    app[SETTINGS] = settings
    app[handlers.DOCUMENT] = openapi.describe(handlers.ROUTES)
    app.add_routes(handlers.ROUTES)
    if settings.local:
        app.cleanup_ctx.append(local_run)
    app.cleanup_ctx.extend([mongodb, delivery])
    return app


async def local_run(app: web.Application) -> AsyncIterator[None]:
    """Run on an embedded MongoDB and mailbox."""
    try:
        from local import LocalRunError, embedded  # noqa: PLC0415 - the container has not what it needs
    except ModuleNotFoundError:
        sys.exit(
            "Nothing is configured: set DB_URI, EMAIL and SMTP_HOST; or install requirements-dev.txt to run locally."
        )
    try:
        async with embedded(app[SETTINGS]) as settings:
            app[SETTINGS] = settings
            yield
    except LocalRunError as exc:
        sys.exit(f"{exc}")


async def mongodb(app: web.Application) -> AsyncIterator[None]:
    """Hold the connection to MongoDB."""
    async with open_store(app[SETTINGS]) as store:
        app[handlers.STORE] = store
        yield


async def delivery(app: web.Application) -> AsyncIterator[None]:
    """Deliver e-mails in the background."""
    app[handlers.MAIL_OWED] = owed = asyncio.Event()
    async with running_delivery(app[handlers.STORE], app[SETTINGS], owed):
        yield


LOCAL_RUN: Final = """\
This is a LOCAL RUN, on an embedded MongoDB and mailbox under .notifier/; set DB_URI and SMTP_HOST for any other.
Listening on http://{host}:{port} - try it (Ctrl-C stops):

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


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="notifier.py",
        description="In-app notifications and e-mail for users in MongoDB, over HTTP. Without a command, it serves.",
        epilog="Environment variables (or lines of a file .env):\n"
        f"{describe_settings()}\n\n"
        "With neither DB_URI nor SMTP_HOST it runs on an embedded MongoDB and mailbox, under .notifier/.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="")
    dead = commands.add_parser("dead", help="list the e-mails that could not be delivered, and why")
    dead.add_argument("--json", action="store_true", help="one JSON object a line")
    retry = commands.add_parser("retry", help="owe dead letters again")
    which = retry.add_mutually_exclusive_group(required=True)
    which.add_argument("ids", metavar="ID", nargs="*", default=[], help="as `dead` lists them")
    which.add_argument("--all", action="store_true", help="every dead letter")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Serve until stopped by a signal, or run a command.

    Returns 0; 1 when it could not be done; 2 when it is configured wrongly.
    """
    options = parse_arguments(arguments)
    try:
        settings = load_settings(uri_fault)
    except SettingsError as exc:
        return _fail(f"{exc}", 2)
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("pymongo").setLevel(logging.WARNING)
    try:
        if options.command:
            return asyncio.run(run_command(options, settings))
        web.run_app(
            create_app(settings),
            host=settings.host,
            port=settings.port,
            access_log=None,
            print=partial(announce, settings),
            shutdown_timeout=SHUTDOWN_TIMEOUT,
        )
    except Unavailable:
        return _fail("MongoDB cannot be reached, or does not confirm a write: see DB_URI.")
    except OSError as exc:
        return _fail(f"The service cannot start: {exc}.")
    return 0


async def run_command(options: argparse.Namespace, settings: Settings) -> int:
    """Run a command on the configured database, or on that of the local run that is running.

    Raises `Unavailable`.
    """
    if settings.local:
        from local import DB_URI_FILE  # noqa: PLC0415 - the container has it not

        if not DB_URI_FILE.exists():
            return _fail("There is no local run in this folder; set DB_URI, EMAIL and SMTP_HOST for any other.")
        settings = replace(settings, db_uri=DB_URI_FILE.read_text())
    async with open_store(settings) as store:
        if options.command == "dead":
            return await list_dead(store, as_json=options.json)
        return await retry_dead(store, None if options.all else options.ids)


async def list_dead(store: Store, *, as_json: bool) -> int:
    """Print the dead letters, oldest first."""
    letters = await store.dead_letters()
    if as_json:
        for letter in letters:
            _say(json.dumps(letter, default=str))
    elif letters:
        row = "{_id:24}  {died_at:%Y-%m-%d %H:%M}  {user_id:24}  {key:12}  {tries:>5}  {email}  {error}"
        _say(
            "id                        died (UTC)        user_id                   key           tries  address, reason"
        )
        for letter in letters:
            _say(row.format(**letter | {"email": letter["email"] or "-"}))
    else:
        _say("There are no dead letters.")
    return 0


async def retry_dead(store: Store, ids: list[str] | None) -> int:
    """Owe these dead letters again, or all."""
    letters = await store.dead_letters(ids)
    failures = dict.fromkeys(set(ids or ()) - {letter["_id"] for letter in letters}, "there is no such dead letter")
    for letter in letters:
        try:
            if not await store.owe_again(letter):
                failures[letter["_id"]] = "its user is gone"
        except OutboxFull:
            failures[letter["_id"]] = "its user is owed too many e-mails already; try again later"
    for id_, reason in sorted(failures.items()):
        _fail(f"{id_}: {reason}.")
    _say(f"Owed again: {len(letters) - len(failures.keys() & {letter['_id'] for letter in letters})}.")
    return 1 if failures else 0


def _say(line: str) -> None:
    print(line)  # noqa: T201 - what the command is for


def _fail(message: str, code: int = 1) -> int:
    print(message, file=sys.stderr)  # noqa: T201 - for whoever starts it
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
