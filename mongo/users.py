"""The users' collection, and the base of any other: every operation is repeated until MongoDB confirms it."""

import asyncio
import mmap
import random
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar

import pymongo
from bson import ObjectId
from pymongo import ReturnDocument
from pymongo.errors import DocumentTooLarge, OperationFailure, PyMongoError, ServerSelectionTimeoutError

from mongo import errors
from mongo.batcher import Writes
from mongo.connection import MAJORITY, Connection, Database
from mongo.connection import Collection as MotorCollection
from mongo.document import IS_OURS, OURS, SIMPLE, TYPES, JSONObject
from mongo.errors import PATIENCE, PING_DEADLINE, RETRY_PAUSE, Changed, Conflict, Patience, UnknownUser, within
from mongo.expressions import NOTIFICATIONS, each
from mongo.lanes import Calls
from settings import IdType, Settings, UnknownUsers, named

T = TypeVar("T")

FINGERPRINT: Final = (1 << 64) - 1
JUDGED: Final = 1 << 20  # entries in the table of `Judged`
REFUSING: Final = {  # the projection that `judge` reads
    "types": [{"$type": f"${name}"} for name in TYPES],
    "ours": {"$allElementsTrue": [each(NOTIFICATIONS, IS_OURS)]},
}


async def persist(
    attempt: Callable[[int], Awaitable[T]], deadline: float | None = None, patience: Patience = PATIENCE
) -> T:
    """Repeat an operation that MongoDB could not do or confirm, until the deadline in seconds.

    `attempt` is given its number, from 0 on. It must be safe to repeat after it took effect and its reply was lost.
    """
    cause: Exception | None = None
    limit = patience.operation if deadline is None else deadline
    loop = asyncio.get_running_loop()
    n, ends = -1, loop.time() + limit
    try:
        while True:
            n += 1
            # Without a deadline of its own, the first attempt is bounded by the driver, or by the queue that it joins:
            # a timer for each request would cost as much as its log line.
            async with nullcontext() if n == 0 and deadline is None else within(ends - loop.time()):
                try:
                    # The driver knows why it fails, so it must give up first; it may do so half a second late. Without
                    # a deadline, its own timeout is short enough.
                    with nullcontext() if deadline is None else pymongo.timeout(max(limit - 0.8, limit / 2)):
                        return await attempt(n)
                except (Changed, TimeoutError) as exc:
                    cause = exc
                except PyMongoError as exc:
                    if not errors.means_unavailable(exc):
                        raise
                    # After a refusal, the driver takes the server for unknown for a while.
                    if not (isinstance(cause, OperationFailure) and isinstance(exc, ServerSelectionTimeoutError)):
                        cause = exc
                await asyncio.sleep(random.uniform(*RETRY_PAUSE))
    except TimeoutError as exc:
        raise errors.unavailable(cause or exc) from (cause or exc)
    except DocumentTooLarge as exc:
        raise errors.TooLarge from exc
    except OperationFailure as exc:
        # Without the server's own sentence: it may hold an address, and would end in the log.
        raise errors.refusal(exc) from None


class Clock:
    """MongoDB's clock: its last reading, and the monotonic time since. It is behind by the time that a reply takes."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._read_at = time.monotonic()
        self._time = datetime.now(UTC)

    def now(self) -> datetime:
        return self._time + timedelta(seconds=time.monotonic() - self._read_at)

    def seconds_since(self, moment: datetime) -> float:
        """Return the seconds since a moment that MongoDB's clock told; never negative."""
        return max(0.0, (self.now() - moment).total_seconds())

    async def sync(self, deadline: float | None = PING_DEADLINE) -> float:
        """Read the clock (`localTime` in the reply to `hello`); return by how many seconds it was set back."""
        expected, database = self.now(), self._database
        hello = await persist(lambda _: database.command("hello", codec_options=database.codec_options), deadline)
        self._time, self._read_at = hello["localTime"], time.monotonic()
        return max(0.0, (expected - self._time).total_seconds())


class Judged:
    """The documents whose `notifications` are known to be the service's, so that writes need not ask again.

    It is a table of 64-bit fingerprints of `_id`s, in which a later entry may replace an earlier one. The kernel
    provides the memory only as the table fills, 8 MB at most.
    """

    def __init__(self) -> None:
        self._table = memoryview(mmap.mmap(-1, 8 * JUDGED)).cast("Q")

    def __contains__(self, id_: object) -> bool:
        fingerprint = hash(id_) & FINGERPRINT
        return self._table[fingerprint % JUDGED] == fingerprint

    def add(self, id_: object) -> None:
        fingerprint = hash(id_) & FINGERPRINT
        self._table[fingerprint % JUDGED] = fingerprint


class Documents:
    """The documents of a collection, compared by the simple collation. Operations raise a `StoreError`."""

    def __init__(self, collection: MotorCollection, patience: Patience) -> None:
        self.collection = collection
        self.patience = patience

    async def persist(self, attempt: Callable[[int], Awaitable[T]], deadline: float | None = None) -> T:
        return await persist(attempt, deadline, self.patience)

    async def find(
        self,
        filter_: Mapping[str, Any],
        projection: Mapping[str, Any] | None = None,
        *,
        majority: bool = False,
        deadline: float | None = None,
        **options: Any,
    ) -> list[JSONObject]:
        """Return the documents that match; with `majority`, as a majority has them. `options` are the driver's."""
        find = (self.collection.with_options(read_concern=MAJORITY) if majority else self.collection).find
        options |= {"collation": SIMPLE, "allow_disk_use": True if "sort" in options else None}
        return await self.persist(lambda _: find(filter_, projection, **options).to_list(None), deadline)

    async def find_one(
        self, filter_: Mapping[str, Any], projection: Mapping[str, Any] | None = None, **options: Any
    ) -> JSONObject | None:
        documents = await self.find(filter_, projection, limit=-1, **options)
        return documents[0] if documents else None

    async def aggregate(
        self, pipeline: Sequence[JSONObject], deadline: float | None = None, hint: str | None = None
    ) -> list[JSONObject]:
        hinted, aggregate = {"hint": hint} if hint else {}, self.collection.aggregate
        return await self.persist(lambda _: aggregate(pipeline, collation=SIMPLE, **hinted).to_list(None), deadline)

    async def update_many(self, filter_: JSONObject, change: Sequence[JSONObject]) -> int:
        """Return how many documents matched at the last attempt."""
        result = await self.persist(lambda _: self.collection.update_many(filter_, change, collation=SIMPLE))
        return int(result.matched_count)

    async def delete(self, filter_: JSONObject) -> None:
        await self.persist(lambda _: self.collection.delete_many(filter_, collation=SIMPLE))


class Users(Documents):
    """The users' documents. If `profile`, the content of a new one, is `None`, the service creates none."""

    def __init__(self, connection: Connection, settings: Settings) -> None:
        super().__init__(connection.database[settings.users_collection], connection.patience)
        self.settings = settings
        self.shared = connection.shared[settings.users_collection]
        self.calls = Calls(self.shared, self.patience)
        self.writes = Writes(self.collection, self.calls)
        self.judged = Judged()
        creates = settings.unknown_users is UnknownUsers.CREATE
        self.profile = {settings.email_field: settings.email} if creates else None
        self.limit, self.slack = settings.notifications_limit, settings.notifications_slack
        self.inbox = {"$slice": [NOTIFICATIONS, -self.limit]}  # the expression of a user's inbox, newest last
        paths = (settings.email_field, settings.language_field, *settings.template_fields)
        self.team_fields = {path.partition(".")[0]: 1 for path in paths if path}  # those that an e-mail needs
        self._id: Callable[[str], ObjectId | str] = ObjectId if settings.id_type is IdType.OBJECTID else str

    def key(self, user_id: str) -> JSONObject:
        return {"_id": self._id(user_id)}

    async def of(self, user_id: str, *paths: str) -> JSONObject:
        """Return these fields of a user's document, or `{}` if there is none."""
        return await self.find_one(self.key(user_id), dict.fromkeys(paths, 1)) or {}

    async def change(self, user_id: str, pipeline: Sequence[JSONObject], *paths: str) -> JSONObject:
        """Change a user's `notifier` by a pipeline; return these fields after the change. Raises `UnknownUser`."""
        update, key, read = self.collection.find_one_and_update, self.key(user_id), dict.fromkeys(paths or ("_id",), 1)
        user: JSONObject | None = await self.persist_for(
            user_id,
            lambda _: update(key | OURS, pipeline, read, return_document=ReturnDocument.AFTER, collation=SIMPLE),
        )
        if user is None:
            await self.must_admit(user_id)
            raise UnknownUser
        return user

    async def create(self, user_id: str) -> None:
        key, insert, update = self.key(user_id), {"$setOnInsert": self.profile}, self.collection.update_one
        await self.persist(lambda _: update(key, insert, upsert=True, collation=SIMPLE))

    async def persist_for(
        self, user_id: str, attempt: Callable[[int], Awaitable[T]], deadline: float | None = None
    ) -> T:
        """Repeat a write to a user's document. If MongoDB refuses a field's type, raise a `Conflict` that names it."""
        try:
            return await self.persist(attempt, deadline)
        except errors.WrongType as exc:
            await self.must_admit(user_id)
            raise errors.UnknownError(f"MongoDB refused a type, and every field has its own: {exc}") from exc

    async def must_admit(self, user_id: str, fields: Collection[str] = TYPES) -> None:
        """Raise `Conflict` if one of these fields is not as the service keeps it."""
        if user := await self.find_one(self.key(user_id), REFUSING):
            judge(user, fields)


def foreign_fields(user: Mapping[str, Any]) -> Sequence[str]:
    """Return the fields of a document, read as `REFUSING`, that are not as the service keeps them."""
    odd = [name for name, type_ in zip(TYPES, user["types"], strict=True) if type_ not in {"missing", TYPES[name]}]
    return odd if user["ours"] else [*odd, "notifications"]


def judge(user: Mapping[str, Any], fields: Collection[str] = TYPES) -> None:
    """Raise `Conflict` if one of these fields of a document, read as `REFUSING`, is not as the service keeps it."""
    for field in foreign_fields(user):
        if field in fields:
            raise Conflict(f"the field `{field}` of {named(str(user['_id']))}, which is not the service's")
