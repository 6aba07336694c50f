"""Changes of users' notifications: one MongoDB change stream, and the inboxes of the users it names.

Both read what a majority of MongoDB's members has (MongoDB manual, "Change Streams" and "Causal Consistency").
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from bson.timestamp import Timestamp
from pymongo.errors import CursorNotFound, OperationFailure, PyMongoError

from mongo.clock import Clock
from mongo.connection import CLOSE_TIMEOUT, MAJORITY
from mongo.document import JSONObject, any_of, each, marked
from mongo.errors import StoreError, Unavailable, means_unavailable, unavailable
from mongo.page import unseen
from mongo.users import Users

NOT_REPLICATED: Final = 40573  # "The $changeStream stage is only supported on replica sets"
CHANGE_WAIT_MS: Final = 500
"""Milliseconds for which a change stream waits for a change."""

UPDATED: Final = each({"$objectToArray": {"$ifNull": ["$updateDescription.updatedFields", {}]}}, "$$this.k")
"""The paths that an update set, for example `notifications.3.is_new` or `notifier.outbox`."""
REMOVED: Final = {"$ifNull": ["$updateDescription.removedFields", []]}
TRUNCATED: Final = {"$ifNull": ["$updateDescription.truncatedArrays.field", []]}


def _has(paths: JSONObject, regex: str) -> JSONObject:
    matches = {"$regexMatch": {"input": "$$this", "regex": regex}}
    return any_of(paths, matches)


CHANGES: Final[list[JSONObject]] = [
    {
        "$match": {
            "$expr": {
                "$or": [
                    {"$ne": ["$operationType", "update"]},
                    _has(
                        {"$concatArrays": [UPDATED, REMOVED, TRUNCATED]},
                        r"^(notifications(\.|$)|notifier\.seen_at$)",
                    ),
                    _has(REMOVED, "^notifier$"),
                    {"$ne": [{"$type": "$updateDescription.updatedFields.notifier.seen_at"}, "missing"]},
                ]
            }
        }
    },
    {"$project": {"documentKey": 1, "wallTime": 1}},  # the event of a push that trims holds the whole array
]
"""Keeps the changes that can change an inbox, and of these only the user and the time."""


class NotReplicated(StoreError):
    """MongoDB is a standalone server, which has no change streams."""


class HistoryLost(StoreError):
    """The change stream cannot be resumed where it ended, so changes may have been missed."""


@dataclass(frozen=True, slots=True)
class Inbox:
    """The counts of a user's notifications, as a `Page` has them, and the newest one."""

    elements: int = 0
    new: int = 0
    latest: JSONObject | None = None
    unseen: int | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """A change of a user's notifications. Without a user, it only says that no change was missed.

    `token` resumes the stream behind it. `at` is when it was written, by MongoDB's clock (from MongoDB 6.0 on).
    """

    token: Mapping[str, Any] | None
    user_id: str | None = None
    at: datetime | None = None


class Changes:
    def __init__(self, users: Users, clock: Clock) -> None:
        self.clock = clock
        self._users = users
        self._collection = users.shared.with_options(read_concern=MAJORITY)
        self._seen: Timestamp | None = None
        self._inbox = {
            "elements": {"$size": users.inbox},
            "new": {"$size": marked(users.inbox, is_new=True)},
            "latest": {"$last": users.inbox},
            "unseen": unseen(users.inbox),
        }

    async def follow(self, token: Mapping[str, Any] | None = None) -> AsyncGenerator[Change, None]:
        """Yield every change of a user's notifications, whoever made it, from behind `token` or from now on.

        The first item is a sign that the change stream is open: every change that `inboxes` does not show after it will
        be yielded. While nothing changes, a sign comes twice a second.

        Raises `NotReplicated`, or `HistoryLost`, after which only a stream without a token helps.
        """
        try:
            async with aclosing(self._watch(token)) as changes:
                async for change in changes:
                    yield change
        except TimeoutError as exc:
            raise unavailable(exc) from exc
        except PyMongoError as exc:
            raise _end_of_changes(exc) from exc

    async def _watch(self, token: Mapping[str, Any] | None) -> AsyncGenerator[Change, None]:
        """Yield the changes and the signs. PyMongo resumes the stream once by itself after an error that allows it.

        Raises `HistoryLost`, `TimeoutError`, or PyMongo's errors.
        """
        database, patience = self._collection.database, self._users.patience.attempt
        async with database.client.start_session() as session:
            if token and self._seen:  # a new primary may not yet know what the old one reported
                session.advance_operation_time(self._seen)
            async with asyncio.timeout(patience):
                stream = await self._collection.watch(
                    CHANGES, resume_after=token, max_await_time_ms=CHANGE_WAIT_MS, session=session
                )
            try:
                # The stream begins behind everything applied, whether or not a majority has it. Its reply carries the
                # time of what a majority has; the reply of a ping carries that of what is applied, and reads must
                # wait for the latter.
                async with asyncio.timeout(patience):
                    await database.command("ping", session=session)
                change: Mapping[str, Any] | None = None
                while True:
                    self._seen = session.operation_time
                    yield self._change(change, stream.resume_token)
                    async with asyncio.timeout(patience):
                        change = await stream.try_next()
                    if change and "documentKey" not in change:  # the collection was dropped or renamed
                        raise HistoryLost
            finally:
                with suppress(TimeoutError, PyMongoError):  # MongoDB may hang
                    async with asyncio.timeout(CLOSE_TIMEOUT):
                        await stream.close()

    def _change(self, change: Mapping[str, Any] | None, token: Mapping[str, Any] | None) -> Change:
        """Turn an event, or its absence, into a `Change`. A document of another program may have another `_id`."""
        user_id = self._users.shape.id_type.from_bson(change["documentKey"]["_id"]) if change else None
        return Change(token, user_id, change.get("wallTime") if change and user_id else None)

    async def inboxes(self, user_ids: Iterable[str]) -> Mapping[str, Inbox]:
        """Return the inboxes of those users who have a document, no older than any change yielded so far.

        Like changes, they are read from a majority: no change would correct what only a deposed primary had seen. A new
        primary may know less of the majority than the old one did, hence the causal session.
        """
        filter_ = {"_id": {"$in": [self._users.key(user_id)["_id"] for user_id in user_ids]}}

        async def attempt(_: int) -> list[dict[str, Any]]:
            client, patience = self._collection.database.client, self._users.patience.attempt
            async with client.start_session(causal_consistency=True) as session, asyncio.timeout(patience):
                if self._seen:
                    session.advance_operation_time(self._seen)
                return await self._collection.find(filter_, self._inbox, session=session).to_list()

        return {f"{user.pop('_id')}": Inbox(**user) for user in await self._users.persist(attempt)}


def _end_of_changes(exc: PyMongoError) -> StoreError:
    """Return the error to raise when a change stream ended and PyMongo could not resume it."""
    if isinstance(exc, OperationFailure) and exc.code == NOT_REPLICATED:
        return NotReplicated()
    if means_unavailable(exc) or isinstance(exc, CursorNotFound) or exc.has_error_label("ResumableChangeStreamError"):
        return Unavailable()
    return HistoryLost()
