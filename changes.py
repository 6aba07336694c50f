"""Changes of users' notifications, as they happen: one MongoDB change stream, and the inboxes that it tells of.

Both go by what a majority of MongoDB's members has (MongoDB manual, "Change Streams" and "Causal Consistency").
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import pymongo
from bson import ObjectId
from bson.timestamp import Timestamp
from pymongo.errors import CursorNotFound, OperationFailure, PyMongoError
from pymongo.read_concern import ReadConcern

from schemas import JSONObject
from store import NOTIFICATIONS, UNREAD, Store, StoreError, Unavailable, means_unavailable, persist

NOT_REPLICATED: Final = 40573  # the $changeStream stage is only supported on replica sets
CHANGE_WAIT_MS: Final = 500
"""How long a change stream without a change holds its thread, and so the most that the thread outlives its reader."""
CHANGES_AHEAD: Final = 1000
"""Changes that may wait for the event loop."""

INBOX: Final = {"elements": {"$size": NOTIFICATIONS}, "new": {"$size": UNREAD}, "latest": {"$first": NOTIFICATIONS}}
CHANGED_FIELDS: Final = {
    "$concatArrays": [
        {
            "$map": {
                "input": {"$objectToArray": {"$ifNull": ["$updateDescription.updatedFields", {}]}},
                "in": "$$this.k",
            }
        },
        {"$ifNull": ["$updateDescription.removedFields", []]},
        {"$ifNull": ["$updateDescription.truncatedArrays.field", []]},
    ]
}
"""The paths that an update changed, such as `notifications`, `notifications.3.is_new` or `outbox.0.token`."""
IN_NOTIFICATIONS: Final = {"$regexMatch": {"input": "$$this", "regex": r"^notifications(\.|$)"}}
CHANGES: Final[list[JSONObject]] = [
    {
        "$match": {
            "$expr": {
                "$or": [
                    {"$ne": ["$operationType", "update"]},
                    {"$anyElementTrue": {"$map": {"input": CHANGED_FIELDS, "in": IN_NOTIFICATIONS}}},
                ]
            }
        }
    },
    {"$project": {"documentKey": 1, "wallTime": 1}},  # a `$push` with `$slice` puts the whole array into its event
]
"""Of all changes of the users' documents those that can change an inbox; of these nothing but whose and when."""


class NotReplicated(StoreError):
    """MongoDB is a standalone server, which has no change streams."""


class HistoryLost(StoreError):
    """The change stream cannot go on where it ended: what happened since is not known."""


@dataclass(frozen=True, slots=True)
class Inbox:
    """The counts of a user's notifications and the newest of them."""

    elements: int = 0
    new: int = 0
    latest: JSONObject | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """A change of a user's notifications, or, without a user, a sign that none was missed. `token` resumes behind it.

    `at` is when it was written, by MongoDB's clock, which tells it from 6.0 on.
    """

    token: Mapping[str, Any] | None
    user_id: str | None = None
    at: datetime | None = None


class Changes:
    """What happens to users' notifications."""

    def __init__(self, store: Store) -> None:
        """Look at the users of `store`."""
        self._users = store.users
        self._seen: Timestamp | None = None

    async def follow(self, token: Mapping[str, Any] | None = None) -> AsyncGenerator[Change, None]:
        """Yield every change of a user's notifications, by whomever, from behind `token`, or from now on.

        The first thing yielded is a sign that the change stream is there: whatever `inboxes` does not show after it
        will be yielded. Signs come twice a second while nothing changes.

        Raises `NotReplicated`; `HistoryLost`, after which only a new one without a token helps; or `Unavailable`.
        """
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[Change | None] = asyncio.Queue()
        stopped, room = threading.Event(), threading.Semaphore(CHANGES_AHEAD)

        def tell(change: Change) -> None:
            while not room.acquire(timeout=CHANGE_WAIT_MS / 1000):
                if stopped.is_set():
                    return
            loop.call_soon_threadsafe(told.put_nowait, change)

        def ended(watching: asyncio.Future[None]) -> None:
            watching.exception()  # which is not for the log where nobody waits any more
            told.put_nowait(None)

        watching = loop.run_in_executor(None, self._watch, token, stopped, tell)
        watching.add_done_callback(ended)
        try:
            while change := await told.get():
                room.release()
                yield change
            await watching
        except PyMongoError as exc:
            raise _end_of_changes(exc) from exc
        finally:
            stopped.set()

    def _watch(self, token: Mapping[str, Any] | None, stopped: threading.Event, tell: Callable[[Change], None]) -> None:
        """Tell the changes, in a thread of its own, until stopped: Motor's would change threads for each of them.

        PyMongo resumes once by itself after an error that allows it. Raises `HistoryLost`, or PyMongo's errors.
        """
        users: pymongo.collection.Collection[dict[str, Any]] = self._users.delegate
        with users.database.client.start_session() as session:
            if token and self._seen:  # a new primary may not know yet what the old one has told us
                session.advance_operation_time(self._seen)
            with users.watch(CHANGES, resume_after=token, max_await_time_ms=CHANGE_WAIT_MS, session=session) as stream:
                # It begins behind all that is applied, whether a majority has it or not. Its own answer tells only what
                # a majority has; that of a ping tells what is applied, which reads must then wait for.
                users.database.command("ping", session=session)
                change: Mapping[str, Any] | None = None
                while not stopped.is_set():
                    self._seen = session.operation_time
                    tell(_change(change, stream.resume_token))
                    change = stream.try_next()
                    if change and "documentKey" not in change:  # the collection was dropped or renamed
                        raise HistoryLost

    async def inboxes(self, user_ids: Iterable[str]) -> Mapping[str, Inbox]:
        """Return the inboxes of those of these users who have a document, not older than any change yet yielded.

        They are read from what a majority has, as changes are: of what a deposed primary alone had seen, no change
        would ever tell that it is gone. A new primary may know less of the majority than the old one did, hence the
        causal session. Raises `Unavailable`.
        """
        users = self._users.with_options(read_concern=ReadConcern("majority"))
        filter_ = {"_id": {"$in": [ObjectId(user_id) for user_id in user_ids]}}

        async def attempt() -> list[dict[str, Any]]:
            async with await users.database.client.start_session(causal_consistency=True) as session:
                if self._seen:
                    session.advance_operation_time(self._seen)
                return await users.find(filter_, INBOX, session=session).to_list(None)

        return {str(user.pop("_id")): Inbox(**user) for user in await persist(attempt)}


def _change(change: Mapping[str, Any] | None, token: Mapping[str, Any] | None) -> Change:
    """Make a `Change` of an event, or a sign of none; other programs' documents may have an `_id` of another type."""
    if change and isinstance(id_ := change["documentKey"]["_id"], ObjectId):
        return Change(token, str(id_), change.get("wallTime"))
    return Change(token)


def _end_of_changes(exc: PyMongoError) -> StoreError:
    """Say what it means that a change stream broke, and could not be resumed at once."""
    if isinstance(exc, OperationFailure) and exc.code == NOT_REPLICATED:
        return NotReplicated()
    if means_unavailable(exc) or isinstance(exc, CursorNotFound) or exc.has_error_label("ResumableChangeStreamError"):
        return Unavailable()
    return HistoryLost()
