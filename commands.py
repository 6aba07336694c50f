"""The command line: its arguments, and the commands for operators."""

from __future__ import annotations

import argparse
import asyncio
import time
from dataclasses import asdict

from marshmallow import ValidationError

from api.auth import sign_token
from api.body import parse_json
from cli.dead import discard_dead, list_dead, list_emails, retry_dead, since
from cli.output import fail, fail_to_write, say
from cli.status import show_status
from cli.target import NoDatabase, with_database
from mail.address import envelope_address
from mail.templates import RenderError, Templates
from schemas import CreateSchema
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
    preview = commands.add_parser("preview", help="show the e-mail that the templates make of a notification")
    preview.add_argument("key", metavar="KEY")
    preview.add_argument("--language", metavar="LANGUAGE", help="the user's language, such as de")
    preview.add_argument("--data", metavar="JSON", default="null", help="the `data` of POST /create")
    preview.add_argument("--target-id", metavar="ID", help="the `target_id` of POST /create")
    return parser.parse_args(arguments)


def ttl(text: str) -> int:
    """Parse a lifetime in seconds, of at most a year."""
    if not (text.isdecimal() and len(text) < 10 and 0 < int(text) <= 31_536_000):
        raise argparse.ArgumentTypeError("not 1 to 31536000 seconds")
    return int(text)


def address(text: str) -> str:
    """Parse an e-mail address."""
    try:
        return envelope_address(text)
    except ValidationError as exc:
        raise argparse.ArgumentTypeError(f"{exc.messages[0]}") from None


def run_command(options: argparse.Namespace, settings: Settings) -> int:
    """Run a command; return 0, or 1 if it failed. Raises `StoreError`."""
    if options.command in {"mail", "token"}:
        user_id = settings.id_type.parse(options.user_id)
        if user_id is None:
            return fail(f"USER_ID: {settings.id_type.fault}", 2)
        options.user_id = user_id
    try:
        match options.command:
            case "token":
                return print_token(options, settings)
            case "preview":
                return preview_email(options, settings)
        return asyncio.run(run_on_store(options, settings))
    except OSError as exc:
        return fail_to_write(exc)


async def run_on_store(options: argparse.Namespace, settings: Settings) -> int:
    """Run a command on the configured database, or on that of the local run in this folder. Raises `StoreError`."""
    try:
        settings = with_database(settings)
    except NoDatabase as exc:
        return fail(f"{exc}")
    async with open_store(settings) as store:
        match options.command:
            case "mail":
                return await list_emails(store, options.user_id)
            case "dead":
                return await list_dead(store, options.key, options.since, as_json=options.json)
            case "status":
                return await show_status(store, settings, as_json=options.json)
            case "discard":
                return await discard_dead(store, None if options.all else options.ids)
        return await retry_dead(store, None if options.all else options.ids)


def preview_email(options: argparse.Namespace, settings: Settings) -> int:
    """Print what an e-mail would say. This needs no MongoDB."""
    given = {"key": options.key, "target_id": options.target_id}
    try:
        new = CreateSchema(settings.id_type, settings.kinds).load(
            given | {"user_id": "0" * 24, "data": parse_json(options.data)}
        )
        fields = asdict(new) | {"key": new.kind.name, "id": "0" * 24, "timestamp": int(time.time())}
        content = Templates(settings.templates_dir, settings.kinds).render(fields, options.language)
    except ValidationError as exc:
        return fail("; ".join(f"{name}: {' '.join(found)}" for name, found in exc.messages_dict.items()))
    except ValueError as exc:
        return fail(f"data: not JSON: {exc}.")
    except RenderError as exc:
        return fail(f"{exc}: {exc.__cause__}; the e-mail would be sent without templates.")
    say(f"Subject: {content.subject}\n\n{content.text}")
    if content.html:
        say(f"\n--- as HTML ---\n\n{content.html}")
    return 0


def print_token(options: argparse.Namespace, settings: Settings) -> int:
    """Print a token for this user."""
    if not settings.user_token_secret:
        return fail("USER_TOKEN_SECRET is not set.")
    say(sign_token(settings.user_token_secret, options.user_id, options.ttl))
    return 0
