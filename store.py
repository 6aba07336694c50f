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
from mongo.connection import MAJORITY, Database, connected, expects_tls
from mongo.dead_mail import DeadMail
from mongo.document import (
    DEAD_MAIL,
    NOTIFICATIONS,
    OUTBOX_LIMIT,
    READ,
    RECENT_LIMIT,
    SIMPLE,
    UNREAD,
    JSONObject,
    Shape,
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
    UnknownUser,
    persist,
)
from mongo.ids import named
from mongo.outbox import HAS_ROOM, Outbox, new_element
from mongo.writes import BATCH_LIMIT, CALLS_AT_ONCE, FREE_REQUESTS, QUEUE_LIMIT, SHARED_TIMEOUT, Write, Writes
from schemas import Create, ListQuery, ReadQuery
from settings import Settings, UnknownUsers

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
async def open_store(settings: Settings, deadline: float | None = None) -> AsyncIterator[Store]:
    """Connect within `deadline` seconds, create missing indexes, and close at the end. Raises a `StoreError`."""
    async with connected(settings.db_uri) as database:
        store = Store(database, settings)
        await store.reach(deadline)
        await store.outbox.create_index()
        async with store.clock.running():
            yield store


class Store:
    """The users' documents."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.users = database[settings.users_collection]
        self.outbox = Outbox(self.users, Shape(settings.id_type, settings.email_field, settings.language_field))
        self.dead_mail = DeadMail(self.outbox, database[DEAD_MAIL])
        self.clock = Clock(database)
        self.changes = Changes(self.users, self.clock, settings.id_type)
        self.database = database
        self._limit = settings.notifications_limit
        self._profile = {settings.email_field: settings.email}
        self._id_type = settings.id_type
        self._creates_users = settings.unknown_users is UnknownUsers.CREATE
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
        """Record the notification and the e-mail owed, as `new.kind` asks, creating a missing user.

        It is one atomic upsert, on disk on a majority when this returns. Return whether it was a replay: a request
        whose key is among the user's last `RECENT_LIMIT` has no further effect. `request_id` is kept with an e-mail.

        Raises `OutboxFull`, `KeyReused`, `UnknownUser`, `TooLarge`, `Conflict` or `Unavailable`. Only after the last
        of these may the write have taken effect.
        """
        id_, now = str(ObjectId()), datetime.now(UTC)
        # An e-mail alone leaves no trace once it is sent, and in a short array a notification leaves none once newer
        # ones push it out. So the id is remembered like a key.
        key = idempotency_key or (None if new.kind.in_app and self._limit >= RECENT_LIMIT else id_)
        update = self._creation(new, id_, now, key, request_id)
        # An attempt may take effect although its reply was lost, and even after the next attempt: a server goes on
        # with what a broken connection sent. So every attempt has the condition that neither id nor key is there.
        fields = [*(("outbox", "mail_due") if new.kind.email else ()), *(("recent",) if key else ())]
        ours = [condition for field in fields for condition in only_ours(field)]
        if new.kind.in_app:
            fields.append("notifications")
            ours += only_ours("notifications", without=id_)
        conditions = {"$and": ours} | ({"recent.k": {"$ne": key}} if key else {}) | (HAS_ROOM if new.kind.email else {})
        creation = Write({"_id": self._id_type.to_bson(new.user_id), **conditions}, update, upsert=self._creates_users)
        write = self._writes.attempts()

        async def attempt() -> bool:
            return not await self._upsert(write, creation) and await self._is_replay(new, id_, key, fields)

        return await persist(attempt)

    def _creation(self, new: Create, id_: str, now: datetime, key: str | None, request_id: str | None) -> JSONObject:
        optional = optional_fields({"target_id": new.target_id, "data": new.data})
        pushes: JSONObject = {}
        update: JSONObject = {"$setOnInsert": self._profile, "$push": pushes}
        if new.kind.in_app:
            notification: JSONObject = {
                "id": id_,
                "timestamp": int(now.timestamp()),
                "is_new": True,
                "user_id": new.user_id,
                "key": new.kind.name,
                **optional,
            }
            pushes["notifications"] = {"$each": [notification], "$position": 0, "$slice": self._limit}
        if new.kind.email:
            pushes["outbox"] = email = new_element(id_, new.kind.name, self.clock.now(), optional, request_id)
            update["$min"] = {"mail_due": email["next_at"]}
        if key:
            pushes["recent"] = remember(key, new.fingerprint())
        return update

    async def _upsert(self, write: Callable[[Write], Awaitable[bool]], creation: Write) -> bool:
        """Update the user's document, creating a missing one if so set; return whether the conditions held."""
        try:
            found = await write(creation)
        except DuplicateKeyError as exc:
            if list((exc.details or {}).get("keyPattern", {"_id": 1})) != ["_id"]:
                raise Conflict("a unique index") from None  # on the address, say, which all new users share
            # Either a condition failed, so that the server tried to insert, or another upsert inserted in between.
            # Without upsert there is only one meaning left.
            return await self._writes.write_alone(replace(creation, upsert=False))
        return found

    async def _is_replay(self, new: Create, id_: str, key: str | None, fields: Sequence[str]) -> bool:
        """Explain a failed condition: `False` if an earlier attempt at `id_` took effect, `True` for a replay.

        The read concern is majority: what only a deposed primary has seen must not count as done.

        Raises `OutboxFull`, `KeyReused`, `UnknownUser` or `Conflict`; `Changed` when the condition would hold by now.
        """
        users = self.users.with_options(read_concern=MAJORITY)
        document = {"_id": self._id_type.to_bson(new.user_id)}
        user = await users.find_one(document, {"notifications": 1, "outbox": 1, "recent": 1}, collation=SIMPLE)
        if user is None:
            if not self._creates_users:
                raise UnknownUser
            other = await users.find_one(document, {"_id": 1})  # as the collection's default collation compares
            if other and other != document:
                raise Conflict("the collation of the users' collection, to which two users' ids are the same")
            raise Changed
        if any(item.get("id") == id_ for name in ("notifications", "outbox") for item in elements(user, name)):
            return False
        for item in elements(user, "recent"):
            if key and item.get("k") == key and isinstance(item.get("h"), str):
                if item["h"] != new.fingerprint():
                    raise KeyReused
                return key != id_
        if foreign := await foreign_field(users, document, fields):
            raise Conflict(f"the field `{foreign}` of {named(new.user_id)}, which is not the service's")
        if new.kind.email and len(user.get("outbox", ())) >= OUTBOX_LIMIT:
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
        users = {self._id_type.to_bson(query.user_id) for query in queries}
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
        user, ours = {"_id": self._id_type.to_bson(query.user_id)}, only_ours("notifications")
        mark = Write(
            {**user, "notifications": {"$elemMatch": matching}, "$and": ours},
            {"$set": {"notifications.$[matching].is_new": False}},
            array_filters=[_array_filter("matching", matching)],
        )
        write = self._writes.attempts()

        async def attempt() -> bool:
            found = await write(mark)
            if not found and await foreign_field(self.users, user, ["notifications"]):
                raise Conflict(f"the field `notifications` of {named(query.user_id)}, which is not the service's")
            return found

        return await persist(attempt)

    async def reach(self, deadline: float | None = None) -> None:
        """Connect. Raises `Unavailable`, which says why it cannot."""
        try:
            await self.clock.sync(deadline)
        except Misconfigured:
            raise
        except Unavailable as exc:
            if await expects_tls(self.database):
                raise Misconfigured("MongoDB expects TLS, which DB_URI does not ask for.") from exc
            raise

    async def ping(self) -> None:
        """Return if MongoDB answers. Raises `Unavailable`."""
        await persist(lambda: self.database.command("ping"), PING_DEADLINE)


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
