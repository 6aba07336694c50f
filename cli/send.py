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
from cli.output import INTERRUPTED, BadInput, fail, fail_to_write, say
from config.ids import IdType
from mongo.creation import Recorded
from mongo.document import OUTBOX_LIMIT
from mongo.errors import OutboxFull, StoreError, Unavailable
from mongo.requests import Create, CreateMany
from ops.logs import printable
from store import Store

FAULTS_SHOWN: Final = 20
AGAIN: Final = "To go on, run the command again with --idempotency-key %s: nobody is notified twice."


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
            self.close()
            raise BadInput("\n".join(shown))
        self.digest = digest.hexdigest()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def chunks(self) -> Iterator[list[str]]:
        """Yield the users again, as many at a time as one request may have."""
        users = islice((user_id for _, user_id in self._lines() if user_id is not None), self.count)
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
        file = sys.stdin.buffer if path == "-" else Path(path).open("rb")  # noqa: SIM115
        if path != "-" and file.seekable():
            return file
        copy = tempfile.TemporaryFile()  # noqa: SIM115
        shutil.copyfileobj(file, copy)
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
    created = before = failed = not_owed = 0
    again, interval = AGAIN % key, 0.5 if sys.stderr.isatty() else 10
    may_succeed = False
    try:
        with tqdm(total=users.count, unit=" users", mininterval=interval, file=sys.stderr) as progress:
            for chunk in users.chunks():
                outcomes = await store.create_many(CreateMany(chunk, new), gently=True)
                failures = [outcome for outcome in outcomes if isinstance(outcome, StoreError)]
                for user_id, outcome in zip(chunk, outcomes, strict=True):
                    if isinstance(outcome, StoreError):
                        progress.write(printable(_failure(user_id, outcome)), file=sys.stderr)
                replayed = outcomes.count(Recorded.REPLAYED)
                created, before = created + len(chunk) - len(failures) - replayed, before + replayed
                not_owed += outcomes.count(Recorded.NOT_OWED)
                failed += len(failures)
                may_succeed |= any(isinstance(failure, Unavailable) for failure in failures)
                progress.update(len(chunk))
                if len(failures) == len(chunk) and all(map(_means_no_answer, failures)):
                    break
    except asyncio.CancelledError:
        return fail(f"Interrupted. {again}", INTERRUPTED)
    except OSError as exc:  # nobody reads the progress any more
        return fail_to_write(exc) or 1
    say(f"Created: {created}. Created before: {before}. Failed: {failed}.")
    if not_owed:
        say(f"Created without the e-mail, as the user is owed {OUTBOX_LIMIT} already: {not_owed}.")
    if left := users.count - created - before - failed:
        fail(f"Not tried, as MongoDB does not answer: {left}.")
    if left or may_succeed:
        fail(again)
    return 1 if left or failed else 0


def _failure(user_id: str, failure: StoreError) -> str:
    return f"{user_id}: {problem_of(failure).detail}" + (f" ({failure})" if f"{failure}" else "")


def _means_no_answer(failure: StoreError) -> bool:
    return isinstance(failure, Unavailable) and not isinstance(failure, OutboxFull)
