"""MongoDB: what a request does there, and the shape of a user's document.

```
{ _id: ObjectId, email: "...",
  notifications: [ {id, timestamp, is_new, user_id, key, target_id?, data?}, ... ]   newest first
  outbox: [ {id, key, at, next_at, tries, token, error, dead, request_id?, target_id?, data?} ]   owed
  mail_due: Date,                              min(outbox.next_at); absent when nothing is owed
  recent: [ {k, h} ] }                         the last idempotency keys, with a hash of what was asked, newest last
```

One document is what MongoDB changes atomically, so all that a request must leave behind is written by one
update of the user's own document. Fields that are not named here belong to other programs.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from operator import attrgetter
from typing import Any, Final, TypeVar

# Motor's threads, of which it makes as many as it needs, otherwise up to 5 a core; and one is held by each call that
# waits for a locked document. It reads this when it is imported.
os.environ.setdefault("MOTOR_MAX_WORKERS", "128")

import pymongo
from bson import ObjectId
from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorCollection
from pymongo import ReadPreference, WriteConcern, uri_parser
from pymongo.errors import (
    ConfigurationError,
    ConnectionFailure,
    DocumentTooLarge,
    DuplicateKeyError,
    ExecutionTimeout,
    OperationFailure,
    PyMongoError,
    WriteConcernError,
    WriteError,
)
from pymongo.read_concern import ReadConcern

from batcher import Batcher, QueueFull
from schemas import Create, JSONObject, ListQuery, ReadQuery
from settings import Settings

T = TypeVar("T")
Collection = AsyncIOMotorCollection[dict[str, Any]]

DEADLINE: Final = 10.0
"""Seconds within which an operation is repeated before `Unavailable` is raised."""
PING_DEADLINE: Final = 2.0
ATTEMPT_TIMEOUT_MS: Final = 4000
"""Of one attempt, so that a reply which never comes leaves time for another."""
CLOSE_TIMEOUT: Final = 0.5
OUTBOX_LIMIT: Final = 20
"""E-mails owed to one user. A bound in the filter of the write, never a slice: what is owed is not dropped."""
NOBODY: Final = "0" * 24
"""The token of an e-mail that is not leased, as long as any: a claim must not need room that a document has not."""
CLOCK_TOLERANCE: Final = timedelta(minutes=1)
"""A new e-mail has been due for so long, so that it is due at once by MongoDB's clock though ours be ahead."""
INT32_MAX: Final = 2**31 - 1
ABOUT: Final = ("target_id", "data")
"""What a notification, an owed e-mail and a dead letter hold only when the request had it."""
RECENT_LIMIT: Final = 32
"""Idempotency keys remembered of a user."""
FEW: Final = 32
"""Requests under way beside which others may go. Shared calls that were smaller would be more
work in sum; were they as large as may be, MongoDB and this process would wait for each other in turn."""
CALLS_AT_ONCE: Final = 8
"""Of those that are not late: some of light load go alone, each at once."""
SHARED_TIMEOUT: Final = 2.0
"""Of a shared call: who keeps the others waiting does so once, for so many seconds."""
BATCH_LIMIT: Final = 64
"""Requests that share a call. 16 KiB of JSON are 80 KiB of BSON at the most, twice where it is mailed as well: so many
stay below the 16 MiB of a command."""
QUEUE_LIMIT: Final = 4096
"""Requests that wait to share a call; more are turned away."""
SHARED_LIMITS: Final = (0, 10, 50)
"""Lists share a query with those of the same of these limits; who asks for more goes alone, and makes nobody wait."""
DUPLICATE_KEY: Final = 11000
ACCESS_CODES: Final = frozenset({13, 18})  # Unauthorized, AuthenticationFailed: mended at MongoDB, without a restart
RETRYABLE_CODES: Final = frozenset(
    {6, 7, 50, 89, 90, 91, 133, 134, 189, 262, 358, 365, 388, 402, 407, 453, 462}
    | {9001, 10107, 11600, 11602, 13435, 13436, 91331}
)
"""Those of the retryable writes specification, and what MongoDB's error_codes.yml calls retriable: of servers that step
down, which say so in write errors, too, or that have much to do."""

NOTIFICATIONS: Final = {"$cond": [{"$isArray": "$notifications"}, "$notifications", []]}
UNREAD: Final = {"$filter": {"input": NOTIFICATIONS, "cond": {"$eq": ["$$this.is_new", True]}}}


class StoreError(Exception):
    """The base of what this module raises."""


class Unavailable(StoreError):
    """MongoDB could not be reached, or did not confirm in time. What was asked may still be done."""


class OutboxFull(Unavailable):
    """The user is owed `OUTBOX_LIMIT` e-mails already; nothing was written."""


class Busy(Unavailable):
    """More requests wait for MongoDB than may. What was asked may still be done, if this was not its first attempt."""


class KeyReused(StoreError):
    """The idempotency key came with something else before; nothing was written."""


class Conflict(StoreError):
    """What the users' collection holds, or a unique index of it, does not admit the write; nothing was written."""


class Fault(StoreError):
    """MongoDB refuses for a reason that is not known here: a fault of ours, or of its configuration."""


class TooLarge(StoreError):
    """The user's document would pass MongoDB's limit of 16 MiB; nothing was written."""


REFUSALS: Final[Mapping[int | None, Callable[[], StoreError]]] = {
    2: partial(Conflict, "a field of another type"),  # BadValue, such as a push to what is no array
    121: partial(Conflict, "a validator of the collection"),  # DocumentValidationFailure
    10334: TooLarge,  # BSONObjectTooLarge
    17419: TooLarge,  # an update that would make one
    17420: TooLarge,
}
"""What MongoDB refuses for good, by its error code."""


@dataclass(frozen=True, slots=True)
class Page:
    """Some of a user's notifications, newest first, and the counts of all and of the unread."""

    elements: int
    new: int
    list: list[JSONObject]

    def first(self, limit: int) -> Page:
        """Return the same with no more than so many of them."""
        return Page(self.elements, self.new, self.list[:limit])


EMPTY: Final = Page(0, 0, [])


@dataclass(frozen=True, slots=True)
class Write:
    """A write to one document that may share a call with others. Without upsert it must be safe to repeat."""

    filter: JSONObject
    update: JSONObject | list[JSONObject]
    upsert: bool = False
    array_filters: list[Mapping[str, Any]] | None = None

    def statement(self) -> JSONObject:
        """Return it as the command `update` takes it."""
        statement: JSONObject = {"q": self.filter, "u": self.update, "upsert": self.upsert}
        return statement | ({"arrayFilters": self.array_filters} if self.array_filters else {})


def uri_fault(uri: str) -> str | None:
    """Say what is wrong with a connection string, without repeating any of it; `None` when nothing is."""
    if uri.startswith("mongodb+srv://"):
        return None  # its hosts are in DNS, which is asked at the start, not here
    try:
        uri_parser.parse_uri(uri, warn=False)
    except OSError:
        return "A file that the MongoDB connection string names cannot be read."
    except (PyMongoError, ValueError):
        return "Not a valid MongoDB connection string (mongodb://[user:password@]host[:port]/database)."
    return None


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[Store]:
    """Connect, create what indexes are missing, and close at the end.

    Raises `Unavailable` when MongoDB does not answer.
    """
    try:
        client: AsyncIOMotorClient[dict[str, Any]] = AsyncIOMotorClient(
            settings.db_uri,
            appname="notifier",
            tz_aware=True,
            # What other programs store must not break the reading of it, nor of what is read in the same call.
            datetime_conversion="DATETIME_AUTO",
            unicode_decode_error_handler="replace",
            timeoutMS=ATTEMPT_TIMEOUT_MS,
            serverSelectionTimeoutMS=ATTEMPT_TIMEOUT_MS,
            # Ours, below, serve every server alike, and cost nothing while nothing fails: for the driver's, MongoDB
            # makes each write a transaction of its own. The newest of the driver's send its number to a standalone
            # server, too, which refuses it (PyMongo 4.20).
            retryWrites=False,
            max_adaptive_retries=0,
        )
    except ConfigurationError as exc:  # a mongodb+srv:// that DNS does not know
        raise Unavailable from exc
    try:
        database = client.get_default_database("notifier").with_options(
            # Whatever the URI leaves out or says: acknowledged means on disk on a majority, and a list
            # shows what was acknowledged before it.
            write_concern=WriteConcern(w="majority", j=True),
            read_preference=ReadPreference.PRIMARY,
        )
        store = Store(database["users"], database["dead_mail"], settings)
        await store.create_indexes()
        yield store
    finally:
        await asyncio.to_thread(_close, client)


def _close(client: AsyncIOMotorClient[dict[str, Any]]) -> None:
    """Close the client. It would block on telling the server that its sessions end, however long that takes."""
    with pymongo.timeout(CLOSE_TIMEOUT):
        client.close()


class Store:
    """The users' documents, and the letters that could not be delivered."""

    def __init__(self, users: Collection, dead_mail: Collection, settings: Settings) -> None:
        """Use these two collections."""
        self.users = users
        self.dead_mail = dead_mail
        self._limit = settings.notifications_limit
        self._email = settings.email
        batcher = partial(Batcher, flights=CALLS_AT_ONCE, most=BATCH_LIMIT, queue=QUEUE_LIMIT)
        self._writes: Batcher[Write, bool | None] = batcher(self.write_together, few=FEW)
        self._lists: Batcher[ListQuery, Page] = batcher(self._fetch, few=FEW, kind=_kind_of_page)

    async def create_indexes(self) -> None:
        """Create the index that finds due e-mails. Any number of replicas may do so at once."""
        await persist(lambda: self.users.create_index("mail_due", sparse=True))

    async def create(self, new: Create, idempotency_key: str | None = None, request_id: str | None = None) -> bool:
        """Record the notification and the owed e-mail, whichever `new.key` asks for, creating a missing user.

        One atomic upsert. When it returns, all of it is on disk on a majority. It returns whether that was so
        before: a key that is among the user's last `RECENT_LIMIT` has no second effect. `request_id` is kept with an
        e-mail, to trace it by.

        Raises `OutboxFull`, `KeyReused`, `TooLarge`, or `Unavailable`; only after the last it may have been written.
        """
        id_, now = str(ObjectId()), datetime.now(UTC)
        # A mail without a notification leaves no trace of its own once it is sent, nor does a notification that newer
        # ones push out of a short array: the id is remembered as a key.
        key = idempotency_key or (None if new.key.stored and self._limit >= RECENT_LIMIT else id_)
        update = self._creation(new, id_, now, key, request_id)
        # An attempt may be applied though its reply was lost, and even after the next one: a server without retryable
        # writes goes on with what it was sent by a connection that broke. So each of them has the condition.
        conditions: JSONObject = {"notifications.id": {"$ne": id_}, "recent.k": {"$ne": key or id_}}
        if new.key.mailed:
            conditions[f"outbox.{OUTBOX_LIMIT - 1}"] = {"$exists": False}
        write, creation = (
            self.sharing(self._writes),
            Write({"_id": ObjectId(new.user_id), **conditions}, update, upsert=True),
        )

        async def attempt() -> bool:
            return not await self._upsert(write, creation) and await self._explain(new, id_, key)

        return await persist(attempt)

    def _creation(self, new: Create, id_: str, now: datetime, key: str | None, request_id: str | None) -> JSONObject:
        about = about_of({"target_id": new.target_id, "data": new.data})
        pushes: JSONObject = {}
        update: JSONObject = {"$setOnInsert": {"email": self._email}, "$push": pushes}
        if new.key.stored:
            notification: JSONObject = {
                "id": id_,
                "timestamp": int(now.timestamp()),
                "is_new": True,
                "user_id": new.user_id,
                "key": new.key.value,
                **about,
            }
            pushes["notifications"] = {"$each": [notification], "$position": 0, "$slice": self._limit}
        if new.key.mailed:
            pushes["outbox"] = mail = owed_mail(id_, new.key.value, now, about | traced(request_id))
            update["$min"] = {"mail_due": mail["next_at"]}
        if key:
            pushes["recent"] = {"$each": [{"k": key, "h": new.fingerprint()}], "$slice": -RECENT_LIMIT}
        return update

    async def _upsert(self, write: Callable[[Write], Awaitable[bool]], creation: Write) -> bool:
        """Update the user's document, creating a missing one; say whether the conditions held."""
        try:
            await write(creation)
        except DuplicateKeyError as exc:
            if list((exc.details or {}).get("keyPattern", {"_id": 1})) != ["_id"]:
                # On the e-mail address, say: a second new user cannot have it.
                raise Conflict("a unique index") from None
            # A condition failed, so the server tried to insert; or another upsert inserted in between. Only a
            # filter of nothing but _id is repeated by the server itself. Without upsert there are no two meanings.
            return await self._write_alone(replace(creation, upsert=False))
        return True

    def sharing(self, batcher: Batcher[Write, bool | None]) -> Callable[[Write], Awaitable[bool]]:
        """Return what makes the attempts at a write: the first shares a call, the others do not.

        For a call that fails as a whole may do so for the sake of one of those who share it.
        """
        first = iter([batcher])

        async def attempt(write: Write) -> bool:
            shared = next(first, None)
            found = await shared(write) if shared else None
            return await self._write_alone(write) if found is None else found

        return attempt

    async def write_together(self, writes: Sequence[Write]) -> Sequence[bool | Exception | None]:
        """Make writes in one call, each atomic and for itself.

        Say of each whether it found its document, or how it failed; `None` when that is not known: then it did nothing,
        or may be repeated.
        """
        with pymongo.timeout(SHARED_TIMEOUT):
            if len(writes) == 1:  # it may keep others waiting, too
                return [await self._write_alone(writes[0])]
            # The driver's bulk_write would ask for the same, with several times the work for each write.
            reply = await self.users.database.command(
                "update",
                self.users.name,
                updates=[write.statement() for write in writes],
                ordered=False,
                writeConcern=self.users.write_concern.document,
                codec_options=self.users.codec_options,  # what a validator refused comes back as the team stored it
            )
        errors = reply.get("writeErrors", ())
        outcomes: list[bool | Exception | None] = [True] * len(writes)
        if concern := reply.get("writeConcernError"):
            outcomes = [WriteConcernError(concern["errmsg"], concern["code"])] * len(writes)
        for error in errors:
            outcomes[error["index"]] = _write_error(error)
        if reply["n"] + len(errors) < len(writes):
            # Some found nothing, and the reply does not say which: not an upsert, that finds or fails.
            for n, write in enumerate(writes):
                if outcomes[n] is True and not write.upsert:
                    outcomes[n] = None
        return outcomes

    async def _write_alone(self, write: Write) -> bool:
        if write.upsert:
            await self.users.find_one_and_update(write.filter, write.update, {"_id": 1}, upsert=True)
            return True
        result = await self.users.update_one(write.filter, write.update, array_filters=write.array_filters)
        return bool(result.matched_count)

    async def _explain(self, new: Create, id_: str, key: str | None) -> bool:
        """Say what a condition that failed means: `False`, an earlier attempt of `id_` was applied; `True`, a replay.

        Majority read concern: what a deposed primary alone has seen must not count as done.

        Raises `OutboxFull` or `KeyReused`; `_Changed` when no reason is left by now.
        """
        users = self.users.with_options(read_concern=ReadConcern("majority"))
        fields = {"notifications.id": 1, "outbox.id": 1, "recent": 1}
        user = await users.find_one({"_id": ObjectId(new.user_id)}, fields) or {}
        outbox = user.get("outbox", [])
        if any(item.get("id") == id_ for item in itertools.chain(user.get("notifications", []), outbox)):
            return False
        for item in user.get("recent", []):
            if item["k"] == key:
                if item["h"] != new.fingerprint():
                    raise KeyReused
                return key != id_
        if len(outbox) >= OUTBOX_LIMIT:
            raise OutboxFull
        raise _Changed

    async def list(self, query: ListQuery) -> Page:
        """Return a page and the counts, all three from one read; an unknown user's are empty.

        Raises `Unavailable`.
        """
        first = iter([] if query.skip or query.limit > SHARED_LIMITS[-1] else [self._lists])

        async def attempt() -> Page:
            shared = next(first, None)
            return await shared(query) if shared else (await self._fetch([query]))[0]

        return await persist(attempt)

    async def _fetch(self, queries: Sequence[ListQuery]) -> Sequence[Page]:
        """Return pages that differ in their users and limits alone, by one query."""
        users = {ObjectId(query.user_id) for query in queries}
        projection = _page(max(queries, key=attrgetter("limit")))
        if len(users) == 1:
            user = await self.users.find_one({"_id": users.pop()}, projection)
            found = [user] if user else []
        else:
            with pymongo.timeout(SHARED_TIMEOUT):
                found = await self.users.find({"_id": {"$in": list(users)}}, projection).to_list(None)
        pages = {str(user.pop("_id")): Page(**user) for user in found}
        return [pages.get(query.user_id, EMPTY).first(query.limit) for query in queries]

    async def mark_read(self, query: ReadQuery) -> bool:
        """Mark the notifications that are meant as read; say whether the user has any such.

        Raises `Unavailable`.
        """
        meant = {query.field: query.value} if query.field else {"id": {"$exists": True}}
        filter_ = {"_id": ObjectId(query.user_id), "notifications": {"$elemMatch": meant}}
        update = {"$set": {"notifications.$[meant].is_new": False}}
        filters: list[Mapping[str, Any]] = [{f"meant.{name}": value for name, value in meant.items()}]
        write, mark = self.sharing(self._writes), Write(filter_, update, array_filters=filters)
        return await persist(lambda: write(mark))

    async def ping(self) -> None:
        """Return if MongoDB answers. Raises `Unavailable`."""
        await persist(lambda: self.users.database.command("ping"), PING_DEADLINE)


def _kind_of_page(query: ListQuery) -> tuple[bool | None, int]:
    return query.is_new, min(limit for limit in SHARED_LIMITS if query.limit <= limit)


def _page(query: ListQuery) -> JSONObject:
    """Return the projection that makes a `Page` of a user's document."""
    read = {"$filter": {"input": NOTIFICATIONS, "cond": {"$ne": ["$$this.is_new", True]}}}
    listed = {None: NOTIFICATIONS, True: UNREAD, False: read}[query.is_new]
    skip = min(query.skip, INT32_MAX)  # $slice takes no more, and no document holds as many
    return {
        "elements": {"$size": NOTIFICATIONS},
        "new": {"$size": UNREAD},
        "list": {"$slice": [listed, skip, query.limit]} if query.limit else {"$literal": []},
    }


def _write_error(error: JSONObject) -> PyMongoError:
    """Make of a write's error in a batch what the driver would have raised had it been alone."""
    kind = DuplicateKeyError if error["code"] == DUPLICATE_KEY else WriteError
    return kind(error["errmsg"], error["code"], error)


def traced(request_id: str | None) -> JSONObject:
    """Return the field that an owed e-mail is traced by, if there is a request id."""
    return {"request_id": request_id} if request_id else {}


def owed_mail(id_: str, key: str, at: datetime, about: JSONObject) -> JSONObject:
    """Make an element of the outbox that is due at once; `at` is when it was first owed."""
    next_at = datetime.now(UTC) - CLOCK_TOLERANCE
    return {
        "id": id_,
        "key": key,
        "at": at,
        "next_at": next_at,
        "tries": 0,
        "token": NOBODY,
        "error": None,
        "dead": False,
        **about,
    }


def about_of(item: Mapping[str, Any]) -> JSONObject:
    """Return the `ABOUT` fields that are there."""
    return {name: item[name] for name in ABOUT if item.get(name) is not None}


class _Changed(StoreError):
    """The document changed between two looks at it; look again."""


async def persist(attempt: Callable[[], Awaitable[T]], deadline: float | None = None) -> T:
    """Repeat an operation that MongoDB could not do or confirm, until the deadline.

    An operation given to this must be safe to repeat after it was applied and its reply lost.

    Raises `Unavailable`, `TooLarge`, or what means a fault of ours.
    """
    cause: Exception | None = None
    try:
        async with asyncio.timeout(deadline or DEADLINE):
            while True:
                try:
                    return await attempt()
                except _Changed as exc:
                    cause = exc
                except PyMongoError as exc:
                    if not means_unavailable(exc):
                        raise
                    cause = exc
                await asyncio.sleep(random.uniform(0.05, 0.25))
    except TimeoutError as exc:
        raise Unavailable from (cause or exc)
    except QueueFull as exc:
        raise Busy from exc
    except DocumentTooLarge as exc:
        raise TooLarge from exc
    except OperationFailure as exc:
        # Not with what the server says of it, which may hold an address, and would come into the log.
        name = (exc.details or {}).get("codeName", "")
        refusal = REFUSALS.get(exc.code, partial(Fault, f"MongoDB's error {exc.code} {name}"))
        raise refusal() from None


def means_unavailable(exc: PyMongoError) -> bool:
    """Say whether MongoDB could not do what was asked, or not confirm it, and may later."""
    return (
        isinstance(exc, ConnectionFailure | ConfigurationError | ExecutionTimeout | WriteConcernError)
        or exc.has_error_label("RetryableError")
        or exc.has_error_label("SystemOverloadedError")
        or (isinstance(exc, OperationFailure) and exc.code in ACCESS_CODES | RETRYABLE_CODES)
    )
