"""The command line: its arguments, and the commands for operators."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing
from dataclasses import asdict, replace
from typing import cast

from marshmallow import ValidationError

from api.auth import sign_token
from api.body import load_all, parse_json
from cli.dead import discard_dead, list_dead, list_emails, retry_dead, since
from cli.output import BadInput, fail, fail_to_write, say
from cli.send import UserList, send
from cli.status import show_status
from cli.target import NoDatabase, with_database
from config.address import envelope_address
from config.ids import IdType
from mail.templates import RenderError, Templates
from mail.unsubscribe import Links
from mongo.owed import batch
from mongo.requests import Create
from schemas import CreateHeaders, CreateSchema
from settings import Settings, describe_settings
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
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)  # for ops/workers.py
    commands = parser.add_subparsers(dest="command", metavar="")
    check = commands.add_parser("check", help="check the configuration, MongoDB and the mail server, step by step")
    check.add_argument("--to", metavar="ADDRESS", type=address, help="send one test e-mail to this address")
    check.add_argument("--json", action="store_true", help="one JSON object")
    status = commands.add_parser("status", help="show what is owed, what died, and how the mail server is")
    status.add_argument("--json", action="store_true", help="one JSON object")
    dead = commands.add_parser("dead", help="list the e-mails that could not be delivered, and why")
    dead.add_argument("--json", action="store_true", help="one JSON object a line")
    dead.add_argument("--key", metavar="KIND", help="only those of this kind")
    dead.add_argument(
        "--since", metavar="TIME", type=since, help="only those that died since: 2026-11-25T10:00 (UTC), 30m, 2h or 3d"
    )
    for name, text in (
        ("retry", "owe the e-mails of dead letters again"),
        ("discard", "delete dead letters; nothing brings them back"),
    ):
        which = commands.add_parser(name, help=text).add_mutually_exclusive_group(required=True)
        which.add_argument("ids", metavar="ID", nargs="*", default=[], help="as listed by `dead`")
        which.add_argument("--all", action="store_true", help="every dead letter")
    mail = commands.add_parser("mail", help="show the e-mails that a user is owed, and the user's dead letters")
    mail.add_argument("user_id", metavar="USER_ID")
    token = commands.add_parser("token", help="print a user's token, signed with USER_TOKEN_SECRET, for trying the API")
    token.add_argument("user_id", metavar="USER_ID")
    token.add_argument("--ttl", metavar="SECONDS", type=ttl, default=3600, help="its lifetime (default 3600)")
    send = commands.add_parser("send", help="create a notification for the users of a list of any length")
    send.add_argument("key", metavar="KIND", help="one of the kinds of notification")
    send.add_argument(
        "--users",
        metavar="FILE",
        required=True,
        help="a user's id in each line, or a JSON object with `user_id` or `_id`; - for standard input",
    )
    send.add_argument("--idempotency-key", metavar="KEY", help="default: made of the notification and the list")
    preview = commands.add_parser("preview", help="show the e-mail that the templates make of a notification")
    preview.add_argument("key", metavar="KEY")
    preview.add_argument("--language", metavar="LANGUAGE", help="the user's language, such as de")
    preview.add_argument(
        "--count",
        metavar="N",
        type=number,
        help="how many notifications the e-mail is about, of a kind with email_batch",
    )
    for command in (send, preview):
        command.add_argument("--data", metavar="JSON", default="null", help="the `data` of POST /create")
        command.add_argument("--target-id", metavar="ID", help="the `target_id` of POST /create")
    return parser.parse_args(arguments)


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
    """Run a command; return 0, 1 if it failed, or 2 if its arguments cannot be used. Raises `StoreError`."""
    try:
        if options.command in {"mail", "token"}:
            options.user_id = one_user(options.user_id, settings.id_type)
        match options.command:
            case "token":
                return print_token(options, settings)
            case "preview":
                return preview_email(options, settings)
            case "send":
                options.new = notification(options, settings)  # before MongoDB is waited for, and so is the list
                with closing(UserList(options.users, settings.id_type)) as options.users:
                    return asyncio.run(run_on_store(options, settings))
        return asyncio.run(run_on_store(options, settings))
    except BadInput as exc:
        return fail(f"{exc}", 2)
    except OSError as exc:
        return fail_to_write(exc)


async def run_on_store(options: argparse.Namespace, settings: Settings) -> int:
    """Run a command on the configured database, or on that of the local run in this folder. Raises `StoreError`."""
    try:
        settings = with_database(settings)
    except NoDatabase as exc:
        return fail(f"{exc}")
    async with open_store(settings) as store:
        chosen = None if getattr(options, "all", False) else getattr(options, "ids", None)
        commands: Mapping[str, Callable[[], Awaitable[int]]] = {
            "dead": lambda: list_dead(store, options.key, options.since, as_json=options.json),
            "discard": lambda: discard_dead(store, chosen),
            "mail": lambda: list_emails(store, options.user_id),
            "retry": lambda: retry_dead(store, chosen),
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
    body = (CreateSchema(settings.id_type, settings.kinds), given | {"data": data})
    try:
        new, found = load_all(body, (CreateHeaders(), {} if key is None else {"Idempotency-Key": key}))
    except ValidationError as exc:
        faults = "; ".join(f"{name}: {' '.join(found)}" for name, found in exc.messages_dict.items())
        raise BadInput(faults) from None
    return replace(cast("Create", new), **found)


def preview_email(options: argparse.Namespace, settings: Settings) -> int:
    """Print what an e-mail would say. This needs no MongoDB."""
    new = notification(options, settings)
    fields = asdict(new) | {"key": new.kind.name, "id": "0" * 24, "timestamp": int(time.time())}
    if options.count and not new.kind.email_batch:
        raise BadInput(f"--count: [{new.kind.name}] has no email_batch, so each notification has an e-mail of its own.")
    if new.kind.window is not None:
        fields |= batch([{**fields, "is_new": True}] * (options.count or 1))
    try:
        link = Links(settings).url(new.user_id, new.kind.name)
        content = Templates(settings.templates_dir, settings.kinds).render(fields, options.language, link)
    except RenderError as exc:
        return fail(f"{exc}: {exc.__cause__}; the e-mail would be sent without templates.")
    listed = f"List-Unsubscribe: <{link}>\n" if link else ""
    say(f"Subject: {content.subject}\n{listed}\n{content.text}")
    if content.html:
        say(f"\n--- as HTML ---\n\n{content.html}")
    return 0


def print_token(options: argparse.Namespace, settings: Settings) -> int:
    """Print a token for this user."""
    if not settings.user_token_secret:
        return fail("USER_TOKEN_SECRET is not set.")
    say(sign_token(settings.user_token_secret, options.user_id, options.ttl))
    return 0
