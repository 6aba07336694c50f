"""The command line: its arguments, and the commands for operators."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from dataclasses import asdict, replace

from marshmallow import ValidationError

from api.auth import sign_token
from api.body import parse_json
from mail.templates import RenderError, Templates
from mongo.errors import OutboxFull
from mongo.outbox import NO_TOKEN
from schemas import CreateSchema, ObjectIdField
from settings import Settings, describe_settings
from store import Store, open_store


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
    dead = commands.add_parser("dead", help="list the e-mails that could not be delivered, and why")
    dead.add_argument("--json", action="store_true", help="one JSON object a line")
    retry = commands.add_parser("retry", help="owe the e-mails of dead letters again")
    which = retry.add_mutually_exclusive_group(required=True)
    which.add_argument("ids", metavar="ID", nargs="*", default=[], help="as listed by `dead`")
    which.add_argument("--all", action="store_true", help="every dead letter")
    mail = commands.add_parser("mail", help="show the e-mails that a user is owed, and the user's dead letters")
    mail.add_argument("user_id", metavar="USER_ID", type=object_id)
    token = commands.add_parser("token", help="print a user's token, signed with USER_TOKEN_SECRET, for trying the API")
    token.add_argument("user_id", metavar="USER_ID", type=object_id)
    token.add_argument("--ttl", metavar="SECONDS", type=ttl, default=3600, help="its lifetime (default 3600)")
    preview = commands.add_parser("preview", help="show the e-mail that the templates make of a notification")
    preview.add_argument("key", metavar="KEY")
    preview.add_argument("--data", metavar="JSON", default="null", help="the `data` of POST /create")
    preview.add_argument("--target-id", metavar="ID", help="the `target_id` of POST /create")
    return parser.parse_args(arguments)


def ttl(text: str) -> int:
    """Parse a lifetime in seconds, of at most a year."""
    if not (text.isdecimal() and len(text) < 10 and 0 < int(text) <= 31_536_000):
        raise argparse.ArgumentTypeError("not 1 to 31536000 seconds")
    return int(text)


def object_id(text: str) -> str:
    """Parse a user's id."""
    try:
        return str(ObjectIdField().deserialize(text))
    except ValidationError as exc:
        raise argparse.ArgumentTypeError("not 24 hex digits") from exc


def run_command(options: argparse.Namespace, settings: Settings) -> int:
    """Run a command; return 0, or 1 if it failed. Raises `StoreError`."""
    try:
        match options.command:
            case "token":
                return print_token(options, settings)
            case "preview":
                return preview_email(options, settings)
        return asyncio.run(run_on_store(options, settings))
    except OSError as exc:
        return fail_to_write(exc)


def fail_to_write(exc: OSError) -> int:
    """Print why the output cannot be written, and return the exit code: 0 if its reader has seen enough."""
    return 0 if isinstance(exc, BrokenPipeError) else fail(f"The output cannot be written: {exc.strerror}.")


async def run_on_store(options: argparse.Namespace, settings: Settings) -> int:
    """Run a command on the configured database, or on that of the local run in this folder. Raises `StoreError`."""
    if settings.local:
        try:
            from ops.local import DB_URI_FILE  # noqa: PLC0415 - its packages are optional
        except ModuleNotFoundError:
            return fail("Nothing is configured: set DB_URI, EMAIL and SMTP_HOST.")
        if not DB_URI_FILE.exists():
            return fail("There is no local run in this folder. For any other, set DB_URI, EMAIL and SMTP_HOST.")
        settings = replace(settings, db_uri=DB_URI_FILE.read_text())
    async with open_store(settings) as store:
        match options.command:
            case "mail":
                return await list_emails(store, options.user_id)
            case "dead":
                return await list_dead(store, as_json=options.json)
        return await retry_dead(store, None if options.all else options.ids)


def preview_email(options: argparse.Namespace, settings: Settings) -> int:
    """Print what an e-mail would say. This needs no MongoDB."""
    given = {"key": options.key, "target_id": options.target_id}
    try:
        new = CreateSchema().load(given | {"user_id": "0" * 24, "data": parse_json(options.data)})
        fields = asdict(new) | {"key": new.key.value, "id": "0" * 24, "timestamp": int(time.time())}
        content = Templates(settings.templates_dir).render(fields)
    except ValidationError as exc:
        return fail("; ".join(f"{name}: {' '.join(found)}" for name, found in exc.messages_dict.items()))
    except ValueError as exc:
        return fail(f"data: not JSON: {exc}.")
    except RenderError as exc:
        return fail(f"{exc}: {exc.__cause__}; the e-mail would be sent without templates.")
    _say(f"Subject: {content.subject}\n\n{content.text}")
    if content.html:
        _say(f"\n--- as HTML ---\n\n{content.html}")
    return 0


def print_token(options: argparse.Namespace, settings: Settings) -> int:
    """Print a token for this user."""
    if not settings.user_token_secret:
        return fail("USER_TOKEN_SECRET is not set.")
    _say(sign_token(settings.user_token_secret, options.user_id, options.ttl))
    return 0


async def list_emails(store: Store, user_id: str) -> int:
    """Print the e-mails that a user is owed, and the user's dead letters."""
    owed, dead = await store.outbox.of_user(user_id), await store.dead_mail.of_user(user_id)
    for email in owed:
        state = "leased until" if email["token"] != NO_TOKEN else "next attempt"
        row = f"{email['id']}  {email['key']:12}  {email['tries']} tries, {state} {email['next_at']:%F %T} UTC"
        _say(f"{row}  request {email.get('request_id', '-')}  {email['error'] or ''}".rstrip())
    for letter in dead:
        row = f"{letter['_id']}  {letter['key']:12}  {letter['tries']} tries, died {letter['died_at']:%F %H:%M} UTC"
        _say(f"{row}  request {letter.get('request_id') or '-'}  {letter['error']}")
    if not (owed or dead):
        _say("The user is owed no e-mail and has no dead letter.")
    return 0


async def list_dead(store: Store, *, as_json: bool) -> int:
    """Print the dead letters, oldest first."""
    letters = await store.dead_mail.find()
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
    """Owe the e-mails of these dead letters again, or of all."""
    letters = await store.dead_mail.find(ids)
    known = {letter["_id"] for letter in letters}
    failures = dict.fromkeys(set(ids or ()) - known, "there is no such dead letter")
    for letter in letters:
        try:
            if not await store.dead_mail.owe_again(letter):
                failures[letter["_id"]] = "its user no longer exists"
        except OutboxFull:
            failures[letter["_id"]] = "its user is owed too many e-mails already; try again later"
    for id_, reason in sorted(failures.items()):
        fail(f"{id_}: {reason}.")
    _say(f"Owed again: {len(known - failures.keys())}.")
    return 1 if failures else 0


def _say(line: str) -> None:
    """Print a line. A server's words in it must not control the terminal."""
    print("".join(c if c.isprintable() or c == "\n" else "?" for c in line))  # noqa: T201 - the output of the command


def fail(message: str, code: int = 1) -> int:
    """Print what went wrong, and return the exit code."""
    print(message, file=sys.stderr)  # noqa: T201 - for the operator
    return code
