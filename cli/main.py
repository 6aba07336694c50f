"""The process and its command line: the arguments of every command, the exit code, and in a sentence what went wrong.

The exit code is 0, 1 after a failure, or 2 for a wrong configuration or wrong arguments.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import re
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from typing import NoReturn

from marshmallow import ValidationError

from api.auth import sign_token
from api.openapi import VERSION
from cli.check import run_check
from cli.emails import discard_dead, discard_owed, flush, list_dead, list_emails, retry_dead, show_status, since
from cli.environment import read_settings
from cli.health import check_health
from cli.output import INTERRUPTED, BadInput, fail, fail_to_write, say
from cli.send import UserList, notification, preview, send
from cli.variables import SettingsError
from config.address import envelope_address
from mongo.errors import Misconfigured, StoreError, Unavailable
from ops.listening import CannotListen, supervise
from ops.local import NoDatabase, with_database
from ops.logs import configure_logging
from ops.mongod import LocalRunError
from settings import SECRETS, Settings, default_of, grouped
from store import open_store

log = logging.getLogger("notifier")

Serve = Callable[[Settings, bool], None]
"""Serves until a signal, in a process that is a worker or is alone. Raises `StoreError` or `CannotListen`."""


def run(serve: Serve) -> NoReturn:
    """Be the process, and end it with all output written."""
    code = main(sys.argv[1:], serve)
    logging.shutdown()
    try:
        if sys.stdout:  # it may be closed
            sys.stdout.flush()
    except OSError as exc:
        code = code or fail_to_write(exc)
    # Not sys.exit: Python would wait for the driver's threads, and those wait for a MongoDB that hangs.
    os._exit(code)


def main(arguments: list[str], serve: Serve) -> int:
    """Serve, or run a command; return the exit code."""
    try:
        options = parse_arguments(arguments)
        if options.command == "check":  # which reports the faults of the configuration itself
            return run_check(options)
        settings, warnings = read_settings()
        configure_logging(settings.log_level)
        if not options.worker:
            for warning in warnings:
                log.warning("%s", warning)
        return _run_command(options, settings) if options.command else _serve(options, settings, serve)
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else fail(f"{exc.code}")
    except (SettingsError, NoDatabase, LocalRunError, StoreError, CannotListen, OSError) as exc:
        return explain(exc)


def _serve(options: argparse.Namespace, settings: Settings, serve: Serve) -> int:
    if settings.workers > 1 and not options.worker:
        return asyncio.run(supervise(settings))
    serve(settings, options.worker)
    return 0


def explain(exc: Exception) -> int:
    """Print in one sentence why the service cannot start; return the exit code."""
    logging.shutdown()  # what was logged comes first
    match exc:
        case SettingsError() | NoDatabase() | Misconfigured():
            return fail(f"{exc}", 2)
        case CannotListen():
            return fail(f"{exc}", 1 if exc.is_taken else 2)
        case Unavailable() | LocalRunError():
            return fail(f"{exc}")
    return fail(f"The service cannot start: {exc}.")


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="notifier.py",
        description="In-app notifications and e-mail for users in MongoDB, over HTTP. Without a command, it serves.",
        epilog="Environment variables, or lines of a file .env:\n"
        f"{describe_settings()}\n\n"
        "With neither DB_URI nor SMTP_HOST it runs on an embedded MongoDB and mailbox, under .notifier/.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"notifier {VERSION}")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)  # for ops/listening.py
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")

    def command(name: str, does: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}.")

    check = command("check", "check the configuration, MongoDB, the users and the mail server, step by step")
    check.add_argument("--to", metavar="ADDRESS", type=_address, help="send one test e-mail to this address")
    check.add_argument("--json", action="store_true", help="one JSON object")
    command("health", "say by the exit code, 0 or 1, whether the service on this machine answers")
    status = command("status", "show what is owed and why it waits, and why e-mails died")
    status.add_argument("--json", action="store_true", help="one JSON object")
    dead = command("dead", "list the e-mails that could not be delivered, and why")
    dead.add_argument("--json", action="store_true", help="one JSON object a line")
    dead.add_argument("--key", metavar="KIND", help="only those of this kind")
    dead.add_argument(
        "--since", metavar="TIME", type=since, help="only those that died since: 2026-11-25T10:00 (UTC), 30m, 2h or 3d"
    )
    retry = command("retry", "owe the e-mails of dead letters again")
    discard = command("discard", "delete dead letters, or the e-mails that are owed; nothing brings them back")
    retried, discarded = (which.add_mutually_exclusive_group(required=True) for which in (retry, discard))
    for letters in (retried, discarded):
        letters.add_argument("ids", metavar="ID", nargs="*", default=[], help="as listed by `dead`")
        letters.add_argument("--all", action="store_true", help="every dead letter")
    discarded.add_argument("--owed", action="store_true", help="every e-mail owed, for example on a copy of production")
    flush = command("flush", "try what is owed now, whatever it waits for")
    flush.add_argument("--user", dest="user_id", metavar="USER_ID", help="only what this user is owed")
    mail = command("mail", "show the e-mails that a user is owed, and the user's dead letters")
    mail.add_argument("user_id", metavar="USER_ID")
    token = command("token", "print a user's token, signed with the first of USER_TOKEN_SECRETS, for trying the API")
    token.add_argument("user_id", metavar="USER_ID")
    token.add_argument(
        "--ttl", metavar="SECONDS", type=_up_to(31_536_000), default=3600, help="its lifetime (default 3600)"
    )
    send = command("send", "create a notification for the users of a list of any length")
    send.add_argument(
        "--users",
        metavar="FILE",
        required=True,
        help="a user's id in each line, or a JSON object with `user_id` or `_id`; - for standard input",
    )
    send.add_argument("--idempotency-key", metavar="KEY", help="default: made of the notification and the list")
    preview = command("preview", "show the e-mail that the templates make of a notification")
    preview.add_argument("--language", metavar="LANGUAGE", help="the user's language, such as de")
    preview.add_argument(
        "--count",
        metavar="N",
        type=_up_to(9999),
        help="how many notifications the e-mail is about, of a kind with email_batch",
    )
    for of_a_kind in (send, preview):
        of_a_kind.add_argument("key", metavar="KIND", help="one of the kinds of notification")
        of_a_kind.add_argument("--data", metavar="JSON", default="null", help="the `data` of POST /create")
        of_a_kind.add_argument("--target-id", metavar="ID", help="the `target_id` of POST /create")
    return parser.parse_args(arguments)


def describe_settings() -> str:
    """Describe every variable, group by group."""
    lines = []
    for heading, variables in grouped().items():
        lines.append(f"\n{heading}:")
        for name, variable in variables.items():
            default = f" (default {shown})" if (shown := default_of(variable)) else ""
            lines.append(f"  {name:<28} {variable.metadata['help']}{default}")
    lines.append(f"\nNAME_FILE names a file that has the value, for: {', '.join(SECRETS)}.")
    return "\n".join(lines)


def _up_to(limit: int) -> Callable[[str], int]:
    """Return a function that parses a number from 1 to this limit."""

    def number(text: str) -> int:
        if not (re.fullmatch("[0-9]{1,9}", text) and 1 <= int(text) <= limit):
            raise argparse.ArgumentTypeError(f"not 1 to {limit}")
        return int(text)

    return number


def _address(text: str) -> str:
    try:
        return envelope_address(text)
    except ValidationError as exc:
        raise argparse.ArgumentTypeError(f"{exc.messages[0]}") from None


def _run_command(options: argparse.Namespace, settings: Settings) -> int:
    """Run a command; return 0, 1 if it failed, or 2 if its arguments cannot be used.

    Raises `StoreError` or `NoDatabase`.
    """
    if getattr(options, "user_id", None) is not None:
        options.user_id = settings.id_type.parse(options.user_id)
        if options.user_id is None:
            return fail(f"USER_ID: {settings.id_type.fault}", 2)
    try:
        without_store: Mapping[str, Callable[[], int]] = {
            "health": lambda: check_health(settings.host, settings.port),
            "token": lambda: _print_token(options, settings),
            "preview": lambda: preview(notification(options, settings), options.language, options.count, settings),
        }
        if options.command in without_store:
            return without_store[options.command]()
        if options.command == "send":
            options.new = notification(options, settings)  # before MongoDB is waited for, and so is the list
            with closing(UserList(options.users, settings.id_type)) as options.users:
                return asyncio.run(_run_on_store(options, settings))
        return asyncio.run(_run_on_store(options, settings))
    except BadInput as exc:
        return fail(f"{exc}", 2)
    except OSError as exc:
        return fail_to_write(exc)


async def _run_on_store(options: argparse.Namespace, settings: Settings) -> int:
    """Run a command on the configured database, or on that of the local run in this folder.

    Raises `StoreError` or `NoDatabase`.
    """
    settings = with_database(settings)
    async with open_store(settings) as store:
        ids = None if getattr(options, "all", False) else getattr(options, "ids", None)
        commands: Mapping[str, Callable[[], Awaitable[int]]] = {
            "dead": lambda: list_dead(store, options.key, options.since, as_json=options.json),
            "discard": lambda: discard_owed(store) if options.owed else discard_dead(store, ids),
            "flush": lambda: flush(store, options.user_id),
            "mail": lambda: list_emails(store, options.user_id),
            "retry": lambda: retry_dead(store, ids),
            "send": lambda: send(store, options.users, options.new),
            "status": lambda: show_status(store, settings, as_json=options.json),
        }
        return await commands[options.command]()


def _print_token(options: argparse.Namespace, settings: Settings) -> int:
    if not settings.user_token_secrets:
        return fail("USER_TOKEN_SECRETS is not set.")
    say(sign_token(settings.user_token_secrets[0], options.user_id, options.ttl))
    return 0
