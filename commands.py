"""The command line: what it takes, and the commands for people who look after the service."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from dataclasses import asdict, replace

from marshmallow import ValidationError

from auth import sign_token
from outbox import Outbox
from schemas import CreateSchema, ObjectIdField, parse_json
from settings import Settings, describe_settings
from store import NOBODY, OutboxFull, open_store
from templates import RenderError, Templates


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
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)  # workers.py starts itself so
    commands = parser.add_subparsers(dest="command", metavar="")
    dead = commands.add_parser("dead", help="list the e-mails that could not be delivered, and why")
    dead.add_argument("--json", action="store_true", help="one JSON object a line")
    retry = commands.add_parser("retry", help="owe dead letters again")
    which = retry.add_mutually_exclusive_group(required=True)
    which.add_argument("ids", metavar="ID", nargs="*", default=[], help="as `dead` lists them")
    which.add_argument("--all", action="store_true", help="every dead letter")
    mail = commands.add_parser("mail", help="show what e-mails a user is owed, and which died")
    mail.add_argument("user_id", metavar="USER_ID", type=object_id)
    token = commands.add_parser("token", help="print a token for trying; USER_TOKEN_SECRET signs it")
    token.add_argument("user_id", metavar="USER_ID", type=object_id)
    token.add_argument("--ttl", metavar="SECONDS", type=ttl, default=3600, help="how long it is valid (default 3600)")
    preview = commands.add_parser("preview", help="show the e-mail that the templates make of a notification")
    preview.add_argument("key", metavar="KEY")
    preview.add_argument("--data", metavar="JSON", default="null", help="what POST /create has in `data`")
    preview.add_argument("--target-id", metavar="ID", help="and in `target_id`")
    return parser.parse_args(arguments)


def ttl(text: str) -> int:
    """Take a time to live, in seconds, of at most a year."""
    if not (text.isdecimal() and len(text) < 10 and 0 < int(text) <= 31_536_000):
        raise argparse.ArgumentTypeError("not 1 to 31536000 seconds")
    return int(text)


def object_id(text: str) -> str:
    """Take a user's id from the command line."""
    try:
        return str(ObjectIdField().deserialize(text))
    except ValidationError as exc:
        raise argparse.ArgumentTypeError("not 24 hex digits") from exc


def run_command(options: argparse.Namespace, settings: Settings) -> int:
    """Run the command; return 0, or 1 when it could not be done. Raises `Unavailable`."""
    if options.command == "token":
        return print_token(options, settings)
    if options.command == "preview":
        return preview_mail(options, settings)
    return asyncio.run(run_on_store(options, settings))


async def run_on_store(options: argparse.Namespace, settings: Settings) -> int:
    """Run a command on the configured database, or on that of the local run that is running.

    Raises `Unavailable`.
    """
    if settings.local:
        try:
            from local import DB_URI_FILE  # noqa: PLC0415 - the container has it not
        except ModuleNotFoundError:
            return fail("Nothing is configured: set DB_URI, EMAIL and SMTP_HOST.")
        if not DB_URI_FILE.exists():
            return fail("There is no local run in this folder; set DB_URI, EMAIL and SMTP_HOST for any other.")
        settings = replace(settings, db_uri=DB_URI_FILE.read_text())
    async with open_store(settings) as store:
        outbox = Outbox(store)
        if options.command == "mail":
            return await list_mails(outbox, options.user_id)
        if options.command == "dead":
            return await list_dead(outbox, as_json=options.json)
        return await retry_dead(outbox, None if options.all else options.ids)


def preview_mail(options: argparse.Namespace, settings: Settings) -> int:
    """Print what an e-mail would say. It needs no MongoDB."""
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
        return fail(f"{exc}: {exc.__cause__}; the e-mail would be sent plainly.")
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


async def list_mails(outbox: Outbox, user_id: str) -> int:
    """Print what e-mails a user is owed, and which died."""
    owed, dead = await outbox.mails_of(user_id)
    for mail in owed:
        state = "leased until" if mail["token"] != NOBODY else "next attempt"
        row = f"{mail['id']}  {mail['key']:12}  {mail['tries']} tries, {state} {mail['next_at']:%Y-%m-%d %H:%M:%S} UTC"
        _say(f"{row}  request {mail.get('request_id', '-')}  {mail['error'] or ''}".rstrip())
    for letter in dead:
        row = (
            f"{letter['_id']}  {letter['key']:12}  {letter['tries']} tries, died {letter['died_at']:%Y-%m-%d %H:%M} UTC"
        )
        _say(f"{row}  request {letter.get('request_id') or '-'}  {letter['error']}")
    if not (owed or dead):
        _say("The user is owed no e-mail, and none died.")
    return 0


async def list_dead(outbox: Outbox, *, as_json: bool) -> int:
    """Print the dead letters, oldest first."""
    letters = await outbox.dead_letters()
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


async def retry_dead(outbox: Outbox, ids: list[str] | None) -> int:
    """Owe these dead letters again, or all."""
    letters = await outbox.dead_letters(ids)
    failures = dict.fromkeys(set(ids or ()) - {letter["_id"] for letter in letters}, "there is no such dead letter")
    for letter in letters:
        try:
            if not await outbox.owe_again(letter):
                failures[letter["_id"]] = "its user is gone"
        except OutboxFull:
            failures[letter["_id"]] = "its user is owed too many e-mails already; try again later"
    for id_, reason in sorted(failures.items()):
        fail(f"{id_}: {reason}.")
    _say(f"Owed again: {len(letters) - len(failures.keys() & {letter['_id'] for letter in letters})}.")
    return 1 if failures else 0


def _say(line: str) -> None:
    """Print a line; what a server said in it must not steer the terminal."""
    print("".join(c if c.isprintable() or c == "\n" else "?" for c in line))  # noqa: T201 - what the command is for


def fail(message: str, code: int = 1) -> int:
    """Say what went wrong to whoever started this, and return the exit code."""
    print(message, file=sys.stderr)  # noqa: T201 - for whoever starts it
    return code
