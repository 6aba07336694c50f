"""The command line: its arguments, and the commands for operators."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing

from marshmallow import ValidationError

from api.auth import sign_token
from api.body import load_both, parse_json
from api.openapi import VERSION
from cli.dead import discard_dead, discard_owed, flush, list_dead, list_emails, retry_dead, since
from cli.health import check_health
from cli.output import BadInput, fail, fail_to_write, say
from cli.preview import preview
from cli.send import UserList, send
from cli.status import show_status
from cli.target import with_database
from config.address import envelope_address
from config.ids import IdType
from mongo.requests import Create
from schemas import Schemas
from settings import SECRETS, Settings, default_of, grouped
from store import open_store


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="notifier.py",
        description="In-app notifications and e-mail for users in MongoDB, over HTTP. Without a command, it serves.",
        epilog="Environment variables, or lines of a file .env:\n"
        f"{describe_settings()}\n\n"
        "With neither DB_URI nor SMTP_HOST it runs on an embedded MongoDB and mailbox, under .notifier/.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"notifier {VERSION}")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)  # for ops/workers.py
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")

    def command(name: str, does: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}.")

    check = command("check", "check the configuration, MongoDB, the users and the mail server, step by step")
    check.add_argument("--to", metavar="ADDRESS", type=address, help="send one test e-mail to this address")
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
    for name, text in (
        ("retry", "owe the e-mails of dead letters again"),
        ("discard", "delete dead letters, or the e-mails that are owed; nothing brings them back"),
    ):
        which = command(name, text).add_mutually_exclusive_group(required=True)
        which.add_argument("ids", metavar="ID", nargs="*", default=[], help="as listed by `dead`")
        which.add_argument("--all", action="store_true", help="every dead letter")
    which.add_argument("--owed", action="store_true", help="all e-mails that are owed: on a copy of production, say")
    flush = command("flush", "try what is owed now, whatever it waits for")
    flush.add_argument("--user", dest="user_id", metavar="USER_ID", help="only what this user is owed")
    mail = command("mail", "show the e-mails that a user is owed, and the user's dead letters")
    mail.add_argument("user_id", metavar="USER_ID")
    token = command("token", "print a user's token, signed with the first of USER_TOKEN_SECRETS, for trying the API")
    token.add_argument("user_id", metavar="USER_ID")
    token.add_argument("--ttl", metavar="SECONDS", type=ttl, default=3600, help="its lifetime (default 3600)")
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
        type=number,
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


def ttl(text: str) -> int:
    """Parse a lifetime in seconds, of at most a year."""
    if not (text.isdecimal() and len(text) < 10 and 0 < int(text) <= 31_536_000):
        raise argparse.ArgumentTypeError("not 1 to 31536000 seconds")
    return int(text)


def number(text: str) -> int:
    """Parse how many notifications an e-mail is about."""
    if not (text.isdecimal() and len(text) < 5 and int(text)):
        raise argparse.ArgumentTypeError("not 1 to 9999")
    return int(text)


def address(text: str) -> str:
    """Parse an e-mail address."""
    try:
        return envelope_address(text)
    except ValidationError as exc:
        raise argparse.ArgumentTypeError(f"{exc.messages[0]}") from None


def one_user(text: str, id_type: IdType) -> str:
    """Parse a user's id. Raises `BadInput`."""
    user_id = id_type.parse(text)
    if user_id is None:
        raise BadInput(f"USER_ID: {id_type.fault}")
    return user_id


def run_command(options: argparse.Namespace, settings: Settings) -> int:
    """Run a command; return 0, 1 if it failed, or 2 if its arguments cannot be used.

    Raises `StoreError` or `NoDatabase`.
    """
    try:
        if getattr(options, "user_id", None) is not None:
            options.user_id = one_user(options.user_id, settings.id_type)
        alone: Mapping[str, Callable[[], int]] = {
            "health": lambda: check_health(settings.host, settings.port),
            "token": lambda: print_token(options, settings),
            "preview": lambda: preview(notification(options, settings), options.language, options.count, settings),
        }
        if options.command in alone:
            return alone[options.command]()
        if options.command == "send":
            options.new = notification(options, settings)  # before MongoDB is waited for, and so is the list
            with closing(UserList(options.users, settings.id_type)) as options.users:
                return asyncio.run(run_on_store(options, settings))
        return asyncio.run(run_on_store(options, settings))
    except BadInput as exc:
        return fail(f"{exc}", 2)
    except OSError as exc:
        return fail_to_write(exc)


async def run_on_store(options: argparse.Namespace, settings: Settings) -> int:
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


def notification(options: argparse.Namespace, settings: Settings) -> Create:
    """Return what the arguments say to create, for no user in particular. Raises `BadInput`."""
    given = {"user_id": "0" * 24, "key": options.key, "target_id": options.target_id}
    try:
        data = parse_json(options.data)
    except ValueError as exc:
        raise BadInput(f"data: not JSON: {exc}.") from None
    key = getattr(options, "idempotency_key", None)
    headers = {} if key is None else {"Idempotency-Key": key}
    schemas = Schemas(settings.id_type, settings.kinds)
    try:
        fields, idempotency = load_both(schemas.create, given | {"data": data}, schemas.create_headers, headers)
    except ValidationError as exc:
        faults = "; ".join(f"{name}: {' '.join(found)}" for name, found in exc.messages_dict.items())
        raise BadInput(faults) from None
    return Create(**fields, **idempotency)


def print_token(options: argparse.Namespace, settings: Settings) -> int:
    """Print a token for this user."""
    if not settings.user_token_secrets:
        return fail("USER_TOKEN_SECRETS is not set.")
    say(sign_token(settings.user_token_secrets[0], options.user_id, options.ttl))
    return 0
