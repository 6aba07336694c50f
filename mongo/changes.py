"""Changes of users' notifications: one MongoDB change stream, and the inboxes of the users it names.

Both read what a majority of MongoDB's members has (MongoDB manual, "Change Streams" and "Causal Consistency").
"""

from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import aclosing, suppress
from datetime import datetime
from typing import Any, Final, NamedTuple

from bson.timestamp import Timestamp
from pymongo.errors import OperationFailure, PyMongoError

from mongo.connection import CLOSE_TIMEOUT, MAJORITY
from mongo.document import JSONObject
from mongo.errors import StoreError, Unavailable, unavailable, within
from mongo.expressions import any_of, concat, each
from mongo.inbox import EMPTY, ListQuery, Page, page_of
from mongo.users import Clock, Users

NOT_REPLICATED: Final = 40573  # "The $changeStream stage is only supported on replica sets"
CHANGE_WAIT_MS: Final = 500  # milliseconds that a change stream waits for a change

UPDATED: Final = each({"$objectToArray": {"$ifNull": ["$updateDescription.updatedFields", {}]}}, "$$this.k")
"""The paths that an update set, for example `notifications.3.is_new` or `notifier.outbox`."""
REMOVED: Final = {"$ifNull": ["$updateDescription.removedFields", []]}
TRUNCATED: Final = {"$ifNull": ["$updateDescription.truncatedArrays.field", []]}


def _has(paths: JSONObject, regex: str) -> JSONObject:
    return any_of(paths, {"$regexMatch": {"input": "$$this", "regex": regex}})


IS_OF_AN_INBOX: Final = {
    "$or": [
        {"$ne": ["$operationType", "update"]},
        _has(concat(UPDATED, REMOVED, TRUNCATED), r"^(notifications(\.|$)|notifier\.seen_at$)"),
        _has(REMOVED, "^notifier$"),
        {"$ne": [{"$type": "$updateDescription.updatedFields.notifier.seen_at"}, "missing"]},
    ]
}
CHANGES: Final[list[JSONObject]] = [
    {"$match": {"$expr": IS_OF_AN_INBOX}},
    {"$project": {"documentKey": 1, "wallTime": 1}},  # the event of a push that trims holds the whole array
]


class NotReplicated(StoreError):
    """MongoDB is a standalone server, which has no change streams."""


class Change(NamedTuple):
    """A user's notifications changed; `at` is when, by MongoDB's clock (from MongoDB 6.0 on)."""

    user_id: str
    at: datetime | None


class Changes:
    def __init__(self, users: Users, clock: Clock) -> None:
        self.clock = clock
        self._users = users
        self._collection = users.shared.with_options(read_concern=MAJORITY)
        self._seen: Timestamp | None = None

    async def follow(self) -> AsyncGenerator[Change | None, None]:
        """Yield every change of a user's notifications from now on, whoever made it.

        The first item is `None`: every change that `inboxes` does not show after it will be yielded. While nothing
        changes, `None` comes twice a second. Raises `NotReplicated`, or `Unavailable`, after which changes may have
        been missed.
        """
        try:
            async with aclosing(self._watch()) as changes:
                async for change in changes:
                    yield change
        except (PyMongoError, TimeoutError) as exc:
            if isinstance(exc, OperationFailure) and exc.code == NOT_REPLICATED:
                raise NotReplicated from exc
            raise unavailable(exc) from exc

    async def _watch(self) -> AsyncGenerator[Change | None, None]:
        database, patience = self._collection.database, self._users.patience.attempt
        async with database.client.start_session() as session:
            async with within(patience):
                stream = await self._collection.watch(CHANGES, max_await_time_ms=CHANGE_WAIT_MS, session=session)
            try:
                # The stream begins behind everything applied, but its reply carries the time of what a majority has.
                # The reply to a ping carries the time for which reads must wait.
                async with within(patience):
                    await database.command("ping", session=session)
                event: Mapping[str, Any] | None = None
                while True:
                    self._seen = session.operation_time
                    yield self._change(event) if event else None
                    async with within(patience):
                        event = await stream.try_next()
                    if event and "documentKey" not in event:
                        raise Unavailable("The users' collection was dropped or renamed.")
            finally:
                with suppress(TimeoutError, PyMongoError):  # MongoDB may hang
                    async with within(CLOSE_TIMEOUT):
                        await stream.close()

    def _change(self, event: Mapping[str, Any]) -> Change | None:
        user_id = self._users.settings.id_type.from_bson(event["documentKey"]["_id"])
        return Change(user_id, event.get("wallTime")) if user_id else None

    async def inboxes(self, user_ids: Collection[str]) -> Mapping[str, Page]:
        """Return the counts and the newest notification of each user, no older than any change yielded so far.

        They are read from a majority: no change would correct what only a deposed primary had seen. A new primary may
        know less of the majority than the old one did, hence the causal session.
        """
        ids = [self._users.key(user_id)["_id"] for user_id in user_ids]
        newest = page_of(ListQuery("", 0, 1), self._users)

        async def attempt(_: int) -> list[dict[str, Any]]:
            client, patience = self._collection.database.client, self._users.patience.attempt
            async with client.start_session(causal_consistency=True) as session, within(patience):
                if self._seen:
                    session.advance_operation_time(self._seen)
                return await self._collection.find({"_id": {"$in": ids}}, newest, session=session).to_list()

        pages = {f"{user.pop('_id')}": Page(**user) for user in await self._users.persist(attempt)}
        return dict.fromkeys(user_ids, EMPTY) | pages
