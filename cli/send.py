"""The commands about a new notification: `send` creates it for a list of users, `preview` shows its e-mail."""

import asyncio
import hashlib
import sys
import time
from argparse import Namespace
from collections import Counter
from contextlib import aclosing
from dataclasses import asdict, replace
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Final

from marshmallow import ValidationError
from tqdm import tqdm

from api.bodies import load_both, parse_json
from api.fields import USERS_LIMIT
from api.problems import problem_of
from cli.command import INTERRUPTED, Add, BadInput, fail, on_store, say
from mail.templates import Content, RenderError, RenderingEnded, Templates
from mail.unsubscribe import Links
from mongo.creation import Create, Recorded
from mongo.document import OUTBOX_LIMIT, JSONObject
from mongo.errors import OutboxFull, StoreError, Unavailable
from mongo.owed import batch
from ops.logs import printable
from schemas import Schemas
from settings import IdType, Settings
from store import Store

FAULTS_SHOWN: Final = 20


def add_commands(add: Add) -> None:
    sending = add("send", "create a notification for the users of a list of any length", send_list)
    lines = "a user's id in each line, or a JSON object with `user_id` or `_id`; - for standard input"
    sending.add_argument("--users", metavar="FILE", required=True, help=lines)
    sending.add_argument("--idempotency-key", metavar="KEY", help="default: made of the notification and the list")
    showing = add("preview", "show the e-mail that the templates make of a notification", preview)
    showing.add_argument("--language", metavar="LANGUAGE", help="the user's language, such as de")
    about = "how many notifications the e-mail is about, of a kind with email_batch"
    showing.add_argument("--count", metavar="N", type=int, default=1, help=about)
    for of_a_kind in (sending, showing):
        of_a_kind.add_argument("key", metavar="KIND", help="one of the kinds of notification")
        of_a_kind.add_argument("--data", metavar="JSON", default="null", help="the `data` of POST /create")
        of_a_kind.add_argument("--target-id", metavar="ID", help="the `target_id` of POST /create")


def notification(options: Namespace, settings: Settings) -> Create:
    """Return what the arguments say to create, for no user in particular. Raises `BadInput`."""
    schemas, key = Schemas(settings.id_type, settings.kinds), getattr(options, "idempotency_key", None)
    body = {"user_id": "0" * 24, "key": options.key, "target_id": options.target_id}
    headers = {} if key is None else {"Idempotency-Key": key}
    try:
        body["data"] = parse_json(options.data)
        fields, idempotency = load_both(schemas.create, body, schemas.create_headers, headers)
    except ValidationError as exc:
        faults = [f"{name}: {' '.join(texts)}" for name, texts in exc.messages_dict.items()]
        raise BadInput("; ".join(faults)) from None
    except ValueError as exc:
        raise BadInput(f"data: not JSON: {exc}.") from None
    return Create(**fields, **idempotency)


def read_users(path: str, id_type: IdType) -> bytes:
    """Return the users of a file, or of standard input for `-`, each with a newline. Raises `BadInput`."""
    ids, wrong = bytearray(), []
    try:
        with sys.stdin.buffer if path == "-" else Path(path).open("rb") as lines:
            for number, line in enumerate(lines, 1):
                text = line.removeprefix(b"\xef\xbb\xbf").strip()
                if text and (user_id := _user_of(text, id_type)):
                    ids += f"{user_id}\n".encode()
                elif text:
                    wrong.append(number)
    except OSError as exc:
        raise BadInput(f"{path}: {exc.strerror}.") from None
    faults = [f"{path}, line {number}: {id_type.fault}" for number in wrong[:FAULTS_SHOWN]]
    if len(wrong) > FAULTS_SHOWN:
        faults.append(f"{path}: {len(wrong) - FAULTS_SHOWN} more lines like these.")
    if faults or not ids:
        raise BadInput("\n".join(faults) or f"{path}: names no user.")
    return bytes(ids)


def _user_of(line: bytes, id_type: IdType) -> str | None:
    try:
        value = parse_json(line.decode()) if line[:1] in {b"{", b'"'} else line.decode()
    except ValueError:
        return None
    if isinstance(value, dict):
        value = value.get("user_id", value.get("_id"))
    if isinstance(value, dict):  # an ObjectId in MongoDB's Extended JSON
        value = value.get("$oid")
    return id_type.parse(value) if isinstance(value, str) else None


def send_list(options: Namespace, settings: Settings) -> int | None:
    """Check everything before waiting for MongoDB, then send; return the exit code. Raises `BadInput`."""
    new, users = notification(options, settings), read_users(options.users, settings.id_type)
    return on_store(lambda store, _: send(store, users, new))(options, settings)


async def send(store: Store, users: bytes, new: Create) -> int:
    """Create the notification once for each of the `users`, one a line; return the exit code."""
    digest = hashlib.blake2b(users, digest_size=16).hexdigest()
    key = new.idempotency_key or hashlib.blake2b(f"{new.fingerprint()}{digest}".encode()).hexdigest()[:32]
    new, total, lines = replace(new, idempotency_key=key), users.count(b"\n"), BytesIO(users)
    recorded, failed = Counter[Recorded](), Counter[type[StoreError]]()
    again = f"To go on, run the command again with --idempotency-key {key}: nobody is notified twice."
    interval = 0.5 if sys.stderr.isatty() else 10
    try:
        with tqdm(total=total, unit=" users", mininterval=interval, file=sys.stderr) as progress:
            while chunk := [line[:-1].decode() for line in islice(lines, USERS_LIMIT)]:
                outcomes = await store.create_many(chunk, new, gently=True)
                for user_id, outcome in zip(chunk, outcomes, strict=True):
                    if isinstance(outcome, StoreError):
                        progress.write(printable(_failure(user_id, outcome)), file=sys.stderr)
                        failed[type(outcome)] += 1
                    else:
                        recorded[outcome] += 1
                progress.update(len(chunk))
                if all(isinstance(each, Unavailable) and not isinstance(each, OutboxFull) for each in outcomes):
                    break
    except asyncio.CancelledError:
        return fail(f"Interrupted. {again}", INTERRUPTED)
    except OSError:  # nobody reads the progress any more
        return 1
    before, not_owed = recorded[Recorded.REPLAYED], recorded[Recorded.NOT_OWED]
    say(f"Created: {recorded.total() - before}. Created before: {before}. Failed: {failed.total()}.")
    if not_owed:
        say(f"Created without the e-mail, as the user is owed {OUTBOX_LIMIT} already: {not_owed}.")
    if left := total - recorded.total() - failed.total():
        fail(f"Not tried, as MongoDB does not answer: {left}.")
    if left or any(issubclass(kind, Unavailable) for kind in failed):
        fail(again)
    return 1 if left or failed else 0


def _failure(user_id: str, failure: StoreError) -> str:
    return f"{user_id}: {problem_of(failure).detail}" + (f" ({failure})" if f"{failure}" else "")


def preview(options: Namespace, settings: Settings) -> int:
    """Print the e-mail, or why it cannot be rendered. Raises `BadInput`."""
    new = notification(options, settings)
    kind = new.kind
    if options.count > 1 and not kind.email_batch:
        raise BadInput(f"--count: [{kind.name}] has no email_batch, so each notification has an e-mail of its own.")
    fields = asdict(new) | {"key": kind.name, "id": "0" * 24, "timestamp": int(time.time())}
    if kind.window is not None:
        fields |= batch([{**fields, "is_new": True}] * max(1, options.count))
    link = Links(settings).url(new.user_id, kind.name)
    try:
        content = asyncio.run(_render(settings, fields, options.language, link))
    except RenderError as exc:
        return fail(f"{exc}: {exc.reason}; the e-mail would be sent without templates.")
    except RenderingEnded as exc:
        return fail(f"{exc}; the e-mail would become a dead letter.")
    header = f"Subject: {content.subject}\n" + (f"List-Unsubscribe: <{link}>\n" if link else "")
    html = f"\n\n--- as HTML ---\n\n{content.html}" if content.html else ""
    say(*f"{header}\n{content.text}{html}".split("\n"))
    return 0


async def _render(settings: Settings, fields: JSONObject, language: str | None, link: str | None) -> Content:
    async with aclosing(Templates(settings)) as templates:
        return await templates.render(fields, language, link)
