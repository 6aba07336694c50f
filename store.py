"""What a request does in MongoDB: create and list here, the rest in a room each; one atomic operation on a document."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Final

import pymongo
from marshmallow import ValidationError
from pymongo.errors import DuplicateKeyError

from mail.address import envelope_address
from mongo.batcher import Batcher
from mongo.changes import Changes
from mongo.clock import Clock
from mongo.connection import MAJORITY, Database, connected, expects_tls
from mongo.creation import Create, CreateMany, Creation, Creator
from mongo.dead_mail import DeadMail
from mongo.document import (
    DEAD_MAIL,
    EXPLAINING,
    SIMPLE,
    JSONObject,
    Shape,
    inbox,
    marked,
    must_be_ours,
    value_at,
)
from mongo.erasure import erase
from mongo.errors import (
    PING_DEADLINE,
    Changed,
    Conflict,
    Misconfigured,
    StoreError,
    TooLarge,
    Unavailable,
    UnknownUser,
    persist,
)
from mongo.fan_out import FanOut
from mongo.marks import Marks
from mongo.outbox import Outbox
from mongo.preferences import Preferences
from mongo.suppression import FIELD as SUPPRESSION
from mongo.suppression import Bounce, Suppressions, load_suppression
from mongo.writes import BATCH_LIMIT, CALLS_AT_ONCE, FREE_REQUESTS, QUEUE_LIMIT, SHARED_TIMEOUT, Write, Writes
from schemas import ListQuery
from settings import Settings, UnknownUsers

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


@dataclass(frozen=True, slots=True)
class Created:
    """What a create did. It has the notification's id if one was stored; a replay stored none."""

    id: str | None
    is_replay: bool


@asynccontextmanager
async def open_store(
    settings: Settings, deadline: float | None = None, *, serves: bool = False
) -> AsyncIterator[Store]:
    """Connect within `deadline` seconds, create missing indexes, and close at the end. Raises a `StoreError`.

    Only who serves sets when dead letters expire: a command may run with other settings.
    """
    async with connected(settings.db_uri) as database:
        store = Store(database, settings)
        await store.reach(deadline)
        await store.outbox.create_index()
        await store.suppressions.create_index()
        if serves:
            await store.dead_mail.create_indexes(settings.dead_mail_days)
        async with store.clock.running():
            yield store


class Store:
    """The users' documents."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.users = database[settings.users_collection]
        self.outbox = Outbox(self.users, Shape(settings.id_type, settings.email_field, settings.language_field))
        self.suppressions = Suppressions(self.users, settings.id_type)
        self.dead_mail = DeadMail(self.outbox, database[DEAD_MAIL])
        self.clock = Clock(database)
        self.changes = Changes(self.users, self.clock, settings.id_type, settings.notifications_limit)
        self.database = database
        profile, creates = {settings.email_field: settings.email}, settings.unknown_users is UnknownUsers.CREATE
        self._creator = Creator(
            id_type=settings.id_type, limit=settings.notifications_limit, profile=profile, creates_users=creates
        )
        self.preferences = Preferences(self.users, settings.id_type, profile if creates else None)
        self._limit = settings.notifications_limit
        self._id_type = settings.id_type
        self._writes = Writes(self.users)
        self.marks = Marks(self.users, self._writes, settings.id_type, settings.notifications_limit)
        self._fan_out = FanOut(self.users, self._writes, self._create_alone)
        self._lists: Batcher[ListQuery, Page] = Batcher(
            self._fetch,
            calls_at_once=CALLS_AT_ONCE,
            free_items=FREE_REQUESTS,
            batch_limit=BATCH_LIMIT,
            queue_limit=QUEUE_LIMIT,
            kind=_kind_of_list,
        )

    async def create(self, new: Create) -> Created:
        """Record the notification and the e-mail owed, as `new.kind` asks, creating a missing user.

        It is one atomic upsert, on disk on a majority when this returns. A request whose key is among the user's last
        `RECENT_LIMIT` is a replay and has no further effect.

        Raises `OutboxFull`, `KeyReused`, `UnknownUser`, `TooLarge`, `Conflict` or `Unavailable`. Only after the last
        of these may the write have taken effect.
        """
        creation = self._creator.make(new, self.clock.now())
        replayed = await self._do(creation, self._writes.attempts())
        return Created(creation.id if new.kind.in_app and not replayed else None, is_replay=replayed)

    async def create_many(self, many: CreateMany, *, gently: bool = False) -> Sequence[bool | StoreError]:
        """Do for each of these users what `create` does for one; return for each whether it replayed, or its error."""
        fingerprint, now = many.each.fingerprint(), self.clock.now()
        creations = (
            self._creator.make(replace(many.each, user_id=user_id), now, fingerprint, in_bulk=True)
            for user_id in many.user_ids
        )
        return await self._fan_out(creations, gently=gently)

    async def _create_alone(self, creation: Creation, deadline: float) -> bool:
        """Write without sharing a call; return whether it was a replay. Raises as `create`."""
        return await self._do(creation, self._writes.write_alone, deadline)

    async def _do(
        self, creation: Creation, write: Callable[[Write], Awaitable[bool]], deadline: float | None = None
    ) -> bool:
        """Write until the outcome is known; return whether it was a replay. Raises as `create`."""

        async def attempt() -> bool:
            return not await self._upsert(write, creation.write) and await self._is_replay(creation)

        try:
            return await persist(attempt, deadline)
        except TooLarge:
            if not creation.trim(self._limit):  # what nobody sees any more makes room
                raise
            return await persist(attempt, deadline)

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

    async def _is_replay(self, creation: Creation) -> bool:
        """Explain a failed condition: `False` if an earlier attempt took effect, `True` for a replay.

        The read concern is majority: what only a deposed primary has seen must not count as done.

        Raises `OutboxFull`, `KeyReused`, `UnknownUser` or `Conflict`; `Changed` when the condition would hold by now.
        """
        users = self.users.with_options(read_concern=MAJORITY)
        document = {"_id": creation.document_id}
        user = await users.find_one(document, EXPLAINING, collation=SIMPLE)
        if user is None:
            if not creation.write.upsert:
                raise UnknownUser
            other = await users.find_one(document, {"_id": 1})  # as the collection's default collation compares
            if other and other != document:
                raise Conflict("the collation of the users' collection, to which two users' ids are the same")
            raise Changed
        if (replayed := creation.is_replay_of(user)) is not None:
            return replayed
        await must_be_ours(users, document, creation.fields)
        creation.must_have_room_in(user)
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
        projection = _page(max(queries, key=attrgetter("limit")), self._limit)
        if len(users) == 1:
            user = await self.users.find_one({"_id": users.pop()}, projection)
            found = [user] if user else []
        else:
            with pymongo.timeout(SHARED_TIMEOUT):
                found = await self.users.find({"_id": {"$in": list(users)}}, projection).to_list(None)
        pages = {str(user.pop("_id")): Page(**user) for user in found}
        return [pages.get(query.user_id, EMPTY).first(query.limit) for query in queries]

    async def erase(self, user_id: str) -> None:
        """Remove what the service holds of a user. Raises `EmailUnderWay`, `Conflict` or `Unavailable`."""
        await erase(self.outbox, self.dead_mail, user_id)

    async def suppress(self, user_id: str, address: str | None, code: str) -> bool:
        """Suppress the user's address, unless it is another than `address`; return whether it is suppressed then.

        Raises `UnknownUser`, `Conflict`, `TooLarge` or `Unavailable`.
        """
        shape, id_ = self.outbox.shape, {"_id": self._id_type.to_bson(user_id)}
        read = shape.projection() | {SUPPRESSION: 1}
        user = await persist(lambda: self.users.find_one(id_, read, collation=SIMPLE))
        if user is None:
            raise UnknownUser
        try:
            current = envelope_address(value_at(user, shape.email_field))
        except ValidationError:
            return False
        if address not in {None, current}:
            known = load_suppression(user)
            return known is not None and known.address == current
        await self.suppressions.suppress(user_id, Bounce(current, code))
        return True

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


def _kind_of_list(query: ListQuery) -> tuple[bool | None, int]:
    return query.is_new, min(limit for limit in SHARED_LIMITS if query.limit <= limit)


def _page(query: ListQuery, inbox_limit: int) -> JSONObject:
    """Return the projection that makes a `Page` of a user's document."""
    newest = inbox(inbox_limit)
    listed = newest if query.is_new is None else marked(newest, is_new=query.is_new)
    skip = min(query.skip, inbox_limit)
    end = {"$slice": [listed, -(skip + query.limit)]}  # newest last, like the array
    return {
        "elements": {"$size": newest},
        "new": {"$size": marked(newest, is_new=True)},
        "list": {"$slice": [{"$reverseArray": end}, skip, query.limit]} if query.limit else {"$literal": []},
    }
