"""The commands about a new notification: `send` creates it for a list of users, `preview` shows its e-mail."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Final

from marshmallow import ValidationError
from tqdm import tqdm

from api.bodies import load_both, parse_json
from api.fields import USERS_LIMIT
from api.problems import problem_of
from cli.output import INTERRUPTED, BadInput, fail, fail_to_write, say
from config.ids import IdType
from mail.templates import Content, RenderError, RenderingEnded, Templates
from mail.unsubscribe import Links
from mongo.creation import Create, Recorded
from mongo.document import OUTBOX_LIMIT, JSONObject
from mongo.errors import OutboxFull, StoreError, Unavailable
from mongo.owed import batch
from ops.logs import printable
from schemas import Schemas
from settings import Settings
from store import Store

FAULTS_SHOWN: Final = 20


def notification(options: argparse.Namespace, settings: Settings) -> Create:
    """Return what the arguments say to create, for no user in particular. Raises `BadInput`."""
    try:
        body = {"user_id": "0" * 24, "key": options.key, "target_id": options.target_id}
        body["data"] = parse_json(options.data)
    except ValueError as exc:
        raise BadInput(f"data: not JSON: {exc}.") from None
    key = getattr(options, "idempotency_key", None)
    headers = {} if key is None else {"Idempotency-Key": key}
    schemas = Schemas(settings.id_type, settings.kinds)
    try:
        fields, idempotency = load_both(schemas.create, body, schemas.create_headers, headers)
    except ValidationError as exc:
        faults = [f"{name}: {' '.join(texts)}" for name, texts in exc.messages_dict.items()]
        raise BadInput("; ".join(faults)) from None
    return Create(**fields, **idempotency)


class UserList:
    """A list with a user in each line: the id, or a JSON object with `user_id` or `_id`, as `mongoexport` writes it.

    Everything is checked before anything is sent. The ids wait in a temporary file, not in memory.
    """

    def __init__(self, path: str, id_type: IdType) -> None:
        """Read a file, or standard input for `-`. Raises `BadInput`, which names the lines that are not users."""
        self._ids = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self.count, digest, faults, wrong = 0, hashlib.blake2b(digest_size=16), list[str](), 0
        try:
            with sys.stdin.buffer if path == "-" else Path(path).open("rb") as lines:
                for number, line in enumerate(lines, 1):
                    text = line.removeprefix(b"\xef\xbb\xbf").strip()
                    if text and (user_id := _user_of(text, id_type)):
                        self.count += 1
                        digest.update(f"{user_id}\n".encode())
                        self._ids.write(f"{user_id}\n".encode())
                    elif text:
                        wrong += 1
                        faults += [f"{path}, line {number}: {id_type.fault}"] if wrong <= FAULTS_SHOWN else []
        except OSError as exc:
            faults = [f"{path}: {exc.strerror}."]
        if wrong > FAULTS_SHOWN:
            faults.append(f"{path}: {wrong - FAULTS_SHOWN} more lines like these.")
        if faults or not self.count:
            self.close()
            raise BadInput("\n".join(faults) or f"{path}: names no user.")
        self.digest = digest.hexdigest()

    def close(self) -> None:
        """Delete the ids."""
        self._ids.close()

    def chunks(self) -> Iterator[list[str]]:
        """Yield the users in lists of at most `USERS_LIMIT`."""
        self._ids.seek(0)
        users = (line[:-1].decode() for line in self._ids)
        while chunk := list(islice(users, USERS_LIMIT)):
            yield chunk


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


async def send(store: Store, users: UserList, new: Create) -> int:
    """Create the notification for every user of the list, once; return the exit code.

    Without an idempotency key, one is made of the notification and the list, so that the same command goes on where
    it was interrupted.
    """
    key = new.idempotency_key or hashlib.blake2b(f"{new.fingerprint()}{users.digest}".encode()).hexdigest()[:32]
    new = replace(new, idempotency_key=key)
    recorded, failed, may_succeed = Counter[Recorded](), 0, False
    again = f"To go on, run the command again with --idempotency-key {key}: nobody is notified twice."
    interval = 0.5 if sys.stderr.isatty() else 10
    try:
        with tqdm(total=users.count, unit=" users", mininterval=interval, file=sys.stderr) as progress:
            for chunk in users.chunks():
                outcomes = await store.create_many(chunk, new, gently=True)
                recorded.update(outcome for outcome in outcomes if isinstance(outcome, Recorded))
                failures = [outcome for outcome in outcomes if isinstance(outcome, StoreError)]
                failed += len(failures)
                may_succeed |= any(isinstance(failure, Unavailable) for failure in failures)
                for user_id, outcome in zip(chunk, outcomes, strict=True):
                    if isinstance(outcome, StoreError):
                        progress.write(printable(_failure(user_id, outcome)), file=sys.stderr)
                progress.update(len(chunk))
                if len(failures) == len(chunk) and all(map(_means_no_answer, failures)):
                    break
    except asyncio.CancelledError:
        return fail(f"Interrupted. {again}", INTERRUPTED)
    except OSError as exc:  # nobody reads the progress any more
        return fail_to_write(exc) or 1
    before, not_owed = recorded[Recorded.REPLAYED], recorded[Recorded.NOT_OWED]
    say(f"Created: {recorded.total() - before}. Created before: {before}. Failed: {failed}.")
    if not_owed:
        say(f"Created without the e-mail, as the user is owed {OUTBOX_LIMIT} already: {not_owed}.")
    if left := users.count - recorded.total() - failed:
        fail(f"Not tried, as MongoDB does not answer: {left}.")
    if left or may_succeed:
        fail(again)
    return 1 if left or failed else 0


def _failure(user_id: str, failure: StoreError) -> str:
    return f"{user_id}: {problem_of(failure).detail}" + (f" ({failure})" if f"{failure}" else "")


def _means_no_answer(failure: StoreError) -> bool:
    return isinstance(failure, Unavailable) and not isinstance(failure, OutboxFull)


def preview(new: Create, language: str | None, count: int | None, settings: Settings) -> int:
    """Print the e-mail, which needs neither MongoDB nor a mail server. Return 1 if it cannot be rendered.

    Raises `BadInput`.
    """
    kind = new.kind
    if count and not kind.email_batch:
        raise BadInput(f"--count: [{kind.name}] has no email_batch, so each notification has an e-mail of its own.")
    fields = asdict(new) | {"key": kind.name, "id": "0" * 24, "timestamp": int(time.time())}
    if kind.window is not None:
        fields |= batch([{**fields, "is_new": True}] * (count or 1))
    link = Links(settings).url(new.user_id, kind.name)
    try:
        content = asyncio.run(_render(settings, fields, language, link))
    except RenderError as exc:
        return fail(f"{exc}: {exc.reason}; the e-mail would be sent without templates.")
    except RenderingEnded as exc:
        return fail(f"{exc}; the e-mail would become a dead letter.")
    header = f"Subject: {content.subject}\n" + (f"List-Unsubscribe: <{link}>\n" if link else "")
    html = f"\n\n--- as HTML ---\n\n{content.html}" if content.html else ""
    for line in f"{header}\n{content.text}{html}".split("\n"):
        say(line)
    return 0


async def _render(settings: Settings, fields: JSONObject, language: str | None, link: str | None) -> Content:
    async with aclosing(Templates(settings)) as templates:
        return await templates.render(fields, language, link)
