"""What a request does in MongoDB: create, list and mark, each one atomic operation on the user's own document."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any, Final

import pymongo
from bson import ObjectId
from pymongo.errors import DuplicateKeyError

from mongo.batcher import Batcher
from mongo.changes import Changes
from mongo.clock import Clock
from mongo.codes import EXPECTS_TLS
from mongo.connection import MAJORITY, Database, connected, expects_tls
from mongo.dead_mail import DeadMail
from mongo.document import (
    NOTIFICATIONS,
    OUTBOX_LIMIT,
    READ,
    RECENT_LIMIT,
    UNREAD,
    JSONObject,
    elements,
    foreign_field,
    only_ours,
    optional_fields,
    remember,
)
from mongo.errors import (
    PING_DEADLINE,
    Changed,
    Conflict,
    KeyReused,
    Misconfigured,
    OutboxFull,
    Unavailable,
    persist,
)
from mongo.outbox import HAS_ROOM, Outbox, new_element
from mongo.writes import BATCH_LIMIT, CALLS_AT_ONCE, FREE_REQUESTS, QUEUE_LIMIT, SHARED_TIMEOUT, Write, Writes
from schemas import Create, ListQuery, ReadQuery
from settings import Settings

USERS: Final = "users"
DEAD_MAIL: Final = "dead_mail"
INT32_MAX: Final = 2**31 - 1
SHARED_LIMITS: Final = (0, 10, 50)
"""Lists share a query with those that round up to the same of these limits. A longer list is fetched alone, so that it
delays no other."""


@dataclass(frozen=True, slots=True)
class Page:
    """Some of a user's notifications, newest first, and the counts of all and of the unread ones."""

    elements: int
    new: int
    list: list[JSONObject]

    def first(self, limit: int) -> Page:
        """Return the page cut to at most `limit` notifications."""
        return Page(self.elements, self.new, self.list[:limit])


EMPTY: Final = Page(0, 0, [])


@asynccontextmanager
async def open_store(settings: Settings) -> AsyncIterator[Store]:
    """Connect, create missing indexes, and close at the end. Raises a `StoreError`."""
    async with connected(settings.db_uri) as database:
        store = Store(database, settings)
        await _reach(store, database)
        await store.outbox.create_index()
        async with store.clock.running():
            yield store


async def _reach(store: Store, database: Database) -> None:
    """Connect. Raises `Unavailable`, which says why it cannot."""
    try:
        await store.clock.sync(deadline=None)
    except Misconfigured:
        raise
    except Unavailable as exc:
        if await expects_tls(database):
            raise Misconfigured(EXPECTS_TLS) from exc
        raise


class Store:
    """The users' documents."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.users = database[USERS]
        self.outbox = Outbox(self.users)
        self.dead_mail = DeadMail(self.outbox, database[DEAD_MAIL])
        self.clock = Clock(database)
        self.changes = Changes(self.users, self.clock)
        self._database = database
        self._limit = settings.notifications_limit
        self._email = settings.email
        self._writes = Writes(self.users)
        self._lists: Batcher[ListQuery, Page] = Batcher(
            self._fetch,
            calls_at_once=CALLS_AT_ONCE,
            free_items=FREE_REQUESTS,
            batch_limit=BATCH_LIMIT,
            queue_limit=QUEUE_LIMIT,
            kind=_kind_of_list,
        )

    async def create(self, new: Create, idempotency_key: str | None = None, request_id: str | None = None) -> bool:
        """Record the notification and the e-mail owed, as `new.key` asks, creating a missing user.

        It is one atomic upsert, on disk on a majority when this returns. Return whether it was a replay: a request
        whose key is among the user's last `RECENT_LIMIT` has no further effect. `request_id` is kept with an e-mail.

        Raises `OutboxFull`, `KeyReused`, `TooLarge`, `Conflict`, or `Unavailable`; only after the last of these may
        the write have taken effect.
        """
        id_, now = str(ObjectId()), datetime.now(UTC)
        # An e-mail alone leaves no trace once it is sent, and in a short array a notification leaves none once newer
        # ones push it out. So the id is remembered like a key.
        key = idempotency_key or (None if new.key.stored and self._limit >= RECENT_LIMIT else id_)
        update = self._creation(new, id_, now, key, request_id)
        # An attempt may take effect although its reply was lost, and even after the next attempt: a server goes on
        # with what a broken connection sent. So every attempt has the condition that neither id nor key is there.
        fields = [*(("outbox", "mail_due") if new.key.mailed else ()), *(("recent",) if key else ())]
        ours = [condition for field in fields for condition in only_ours(field)]
        if new.key.stored:
            fields.append("notifications")
            ours += only_ours("notifications", without=id_)
        conditions = {"$and": ours} | ({"recent.k": {"$ne": key}} if key else {}) | (HAS_ROOM if new.key.mailed else {})
        creation = Write({"_id": ObjectId(new.user_id), **conditions}, update, upsert=True)
        write = self._writes.attempts()

        async def attempt() -> bool:
            return not await self._upsert(write, creation) and await self._is_replay(new, id_, key, fields)

        return await persist(attempt)

    def _creation(self, new: Create, id_: str, now: datetime, key: str | None, request_id: str | None) -> JSONObject:
        optional = optional_fields({"target_id": new.target_id, "data": new.data})
        pushes: JSONObject = {}
        update: JSONObject = {"$setOnInsert": {"email": self._email}, "$push": pushes}
        if new.key.stored:
            notification: JSONObject = {
                "id": id_,
                "timestamp": int(now.timestamp()),
                "is_new": True,
                "user_id": new.user_id,
                "key": new.key.value,
                **optional,
            }
            pushes["notifications"] = {"$each": [notification], "$position": 0, "$slice": self._limit}
        if new.key.mailed:
            pushes["outbox"] = email = new_element(id_, new.key.value, self.clock.now(), optional, request_id)
            update["$min"] = {"mail_due": email["next_at"]}
        if key:
            pushes["recent"] = remember(key, new.fingerprint())
        return update

    async def _upsert(self, write: Callable[[Write], Awaitable[bool]], creation: Write) -> bool:
        """Update the user's document, creating a missing one; return whether the conditions held."""
        try:
            await write(creation)
        except DuplicateKeyError as exc:
            if list((exc.details or {}).get("keyPattern", {"_id": 1})) != ["_id"]:
                raise Conflict("a unique index") from None  # on the address, say, which all new users share
            # Either a condition failed, so that the server tried to insert, or another upsert inserted in between.
            # Without upsert there is only one meaning left.
            return await self._writes.write_alone(replace(creation, upsert=False))
        return True

    async def _is_replay(self, new: Create, id_: str, key: str | None, fields: Sequence[str]) -> bool:
        """Explain a failed condition: `False` if an earlier attempt at `id_` took effect, `True` for a replay.

        The read concern is majority: what only a deposed primary has seen must not count as done.

        Raises `OutboxFull`, `KeyReused` or `Conflict`, or `Changed` when the condition would hold by now.
        """
        users, document = self.users.with_options(read_concern=MAJORITY), {"_id": ObjectId(new.user_id)}
        user = await users.find_one(document, {"notifications": 1, "outbox": 1, "recent": 1}) or {}
        if any(item.get("id") == id_ for name in ("notifications", "outbox") for item in elements(user, name)):
            return False
        for item in elements(user, "recent"):
            if key and item.get("k") == key and isinstance(item.get("h"), str):
                if item["h"] != new.fingerprint():
                    raise KeyReused
                return key != id_
        if foreign := await foreign_field(users, document, fields):
            raise Conflict(f"the field `{foreign}` of document {new.user_id}, which is not the service's")
        if new.key.mailed and len(user.get("outbox", ())) >= OUTBOX_LIMIT:
            raise OutboxFull
        raise Changed

    async def list(self, query: ListQuery) -> Page:
        """Return a page and the counts, all from one read. An unknown user's are empty. Raises `Unavailable`."""
        shared = not query.skip and query.limit <= SHARED_LIMITS[-1]

        async def attempt() -> Page:
            nonlocal shared
            if shared:
                shared = False
                return await self._lists(query)
            return (await self._fetch([query]))[0]

        return await persist(attempt)

    async def _fetch(self, queries: Sequence[ListQuery]) -> Sequence[Page]:
        """Fetch pages that differ only in their users and limits, with one query."""
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
        """Mark the matching notifications as read; return whether the user has any.

        Raises `Conflict` or `Unavailable`.
        """
        matching: JSONObject = {query.field: query.value} if query.field else {"id": {"$exists": True}}
        user, ours = {"_id": ObjectId(query.user_id)}, only_ours("notifications")
        mark = Write(
            {**user, "notifications": {"$elemMatch": matching}, "$and": ours},
            {"$set": {"notifications.$[matching].is_new": False}},
            array_filters=[_array_filter("matching", matching)],
        )
        write = self._writes.attempts()

        async def attempt() -> bool:
            found = await write(mark)
            if not found and await foreign_field(self.users, user, ["notifications"]):
                raise Conflict(f"the field `notifications` of document {query.user_id}, which is not the service's")
            return found

        return await persist(attempt)

    async def ping(self) -> None:
        """Return if MongoDB answers. Raises `Unavailable`."""
        await persist(lambda: self._database.command("ping"), PING_DEADLINE)


def _array_filter(identifier: str, condition: JSONObject) -> Mapping[str, Any]:
    return {f"{identifier}.{name}": value for name, value in condition.items()}


def _kind_of_list(query: ListQuery) -> tuple[bool | None, int]:
    return query.is_new, min(limit for limit in SHARED_LIMITS if query.limit <= limit)


def _page(query: ListQuery) -> JSONObject:
    """Return the projection that makes a `Page` of a user's document."""
    listed = {None: NOTIFICATIONS, True: UNREAD, False: READ}[query.is_new]
    skip = min(query.skip, INT32_MAX)  # $slice takes no more, and no document holds as many
    return {
        "elements": {"$size": NOTIFICATIONS},
        "new": {"$size": UNREAD},
        "list": {"$slice": [listed, skip, query.limit]} if query.limit else {"$literal": []},
    }
