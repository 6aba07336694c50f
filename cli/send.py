"""The command `send`: one notification for the users of a list of any length."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final

from tqdm import tqdm

from api.body import parse_json
from api.fields import USERS_LIMIT
from api.problems import problem_of
from cli.output import INTERRUPTED, BadInput, fail, say
from mongo.creation import Create, CreateMany
from mongo.errors import StoreError, Unavailable
from mongo.ids import IdType
from store import Store

FAULTS_SHOWN: Final = 20
AGAIN: Final = "Run the same command again to go on: nobody is notified twice."


class UserList:
    """A file with a user in each line: the id, or a JSON object with `user_id` or `_id`, as `mongoexport` writes it.

    It is read twice, so that everything is checked before anything is sent, and is not held in memory. `-` is
    standard input.
    """

    def __init__(self, path: str, id_type: IdType) -> None:
        """Check every line. Raises `BadInput`, which names those that are no users."""
        self._id_type = id_type
        self._file = _open(path)
        self.count, digest, faults = 0, hashlib.blake2b(digest_size=16), 0
        shown: list[str] = []
        for number, user_id in self._lines():
            if user_id is None:
                faults += 1
                shown += [f"{path}, line {number}: {id_type.fault}"] if len(shown) < FAULTS_SHOWN else []
            else:
                self.count += 1
                digest.update(f"{user_id}\n".encode())
        if faults > len(shown):
            shown.append(f"{path}: {faults - len(shown)} more lines like these.")
        if not shown and not self.count:
            shown.append(f"{path}: names no user.")
        if shown:
            raise BadInput("\n".join(shown))
        self.digest = digest.hexdigest()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def chunks(self) -> Iterator[list[str]]:
        """Yield the users again, as many at a time as one request may have."""
        users = (user_id for _, user_id in self._lines() if user_id is not None)
        while chunk := list(islice(users, USERS_LIMIT)):
            yield chunk

    def _lines(self) -> Iterator[tuple[int, str | None]]:
        """Yield each line that is not empty: its number, and the id, or `None` if it is none."""
        self._file.seek(0)
        for number, line in enumerate(self._file, 1):
            text = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if text.strip():
                yield number, _user_of(text.strip(), self._id_type)


def _open(path: str) -> BinaryIO:
    """Open a file that can be read twice."""
    try:
        if path != "-":
            return Path(path).open("rb")
        copy = tempfile.TemporaryFile()  # noqa: SIM115
        shutil.copyfileobj(sys.stdin.buffer, copy)
    except OSError as exc:
        raise BadInput(f"{path}: {exc.strerror}.") from None
    return copy


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
    counts = {"created": 0, "before": 0, "failed": 0}
    interval = 0.5 if sys.stderr.isatty() else 10
    try:
        with tqdm(total=users.count, unit=" users", mininterval=interval, file=sys.stderr) as progress:
            for chunk in users.chunks():
                outcomes = await store.create_many(CreateMany(chunk, new))
                for user_id, outcome in zip(chunk, outcomes, strict=True):
                    if isinstance(outcome, StoreError):
                        progress.write(f"{user_id}: {problem_of(outcome).detail}", file=sys.stderr)
                counts["created"] += outcomes.count(False)
                counts["before"] += outcomes.count(True)
                counts["failed"] += sum(isinstance(outcome, StoreError) for outcome in outcomes)
                progress.update(len(chunk))
                if all(isinstance(outcome, Unavailable) for outcome in outcomes):
                    break
    except asyncio.CancelledError:
        return fail(f"Interrupted. {AGAIN}", INTERRUPTED)
    say(f"Created: {counts['created']}. Created before: {counts['before']}. Failed: {counts['failed']}.")
    left = users.count - sum(counts.values())
    if left:
        fail(f"Not tried, as MongoDB does not answer: {left}.")
    return fail(AGAIN) if left or counts["failed"] else 0
