"""What a request does in MongoDB: one atomic update, or one read, of the user's document."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from operator import attrgetter
from typing import Final, NamedTuple

from config.checks import DEAD_MAIL
from mongo.batcher import Batcher
from mongo.changes import Changes
from mongo.connection import Connection, connected
from mongo.creation import Create, Creates, Recorded
from mongo.dead_mail import DeadMail
from mongo.document import SIMPLE
from mongo.errors import PATIENCE, PING_DEADLINE, Patience, StoreError, within
from mongo.fan_out import FanOut
from mongo.grouping import Windows
from mongo.inbox import EMPTY, ListQuery, Page, Preferences, Selection, delete, erase, page_of, see
from mongo.lanes import Write, keeps_numbers
from mongo.outbox import Outbox
from mongo.serving import ATTEMPT, Upkeep, must_suffice
from mongo.suppression import Suppressions
from mongo.users import Clock, Documents, Users
from settings import Settings

SHARED_LIMIT: Final = 50  # a longer list is fetched alone, so that it delays no other


class Created(NamedTuple):
    """What a create did, and the notification's id. A replay has the id of the request that it repeats."""

    id: str
    outcome: Recorded


@asynccontextmanager
async def open_store(
    settings: Settings, *, serves: bool = False, patience: Patience = PATIENCE
) -> AsyncIterator[Store]:
    """Connect, and close at the end. Only the server needs more."""
    async with connected(settings.db_uri, patience=patience) as connection:
        store = Store(connection, settings, patience)
        await store.clock.sync(ATTEMPT if serves else None)
        if serves:
            await must_suffice(store.users, connection)
        store.users.calls.numbered = await keeps_numbers(connection.shared, patience)
        async with store.upkeep.running() if serves else nullcontext():
            yield store


class Store:
    def __init__(self, connection: Connection, settings: Settings, patience: Patience = PATIENCE) -> None:
        self.database = database = connection.database
        self.users = users = Users(connection, settings, patience)
        self.clock = Clock(database)
        windows = Windows(users, settings.kinds)
        self.outbox = Outbox(users, {name: kind.rank for name, kind in settings.kinds.items()}, windows)
        self._creates = Creates(users, windows)
        self.dead_mail = DeadMail(self.outbox, self._creates, Documents(database[DEAD_MAIL], patience))
        self.upkeep = Upkeep(self.clock, self.outbox, self.dead_mail)
        self.preferences = Preferences(users)
        self.suppressions = Suppressions(users)
        self.changes = Changes(users, self.clock)
        self._fan_out = FanOut(self._creates)
        self._lists: Batcher[ListQuery, Page] = Batcher(
            self._fetch, patience=patience.operation, kind=attrgetter("skip", "limit", "is_new", "key")
        )

    async def create(self, new: Create) -> Created:
        """Record the notification and the e-mail owed, as `new.kind` asks, creating a missing user.

        It is one atomic upsert, on disk on a majority when this returns. If the outbox is full, a notification is kept
        all the same, by a second write under the same id and key. Raises `OutboxFull`, `KeyReused` or `UnknownUser`.
        """
        creation = self._creates.prepare(new, self.clock.now())
        outcome = await self._creates.record(creation)
        return Created(creation.replayed_id if outcome is Recorded.REPLAYED else creation.id, outcome)

    async def create_many(
        self, user_ids: Sequence[str], new: Create, *, gently: bool = False
    ) -> Sequence[Recorded | StoreError]:
        fingerprint, now, prepare = new.fingerprint(), self.clock.now(), self._creates.prepare
        each = (replace(new, user_id=user_id, in_bulk=True) for user_id in user_ids)
        creations = (prepare(create, now, fingerprint) for create in each)
        return await self._fan_out(creations, gently=gently)

    async def list(self, query: ListQuery) -> Page:
        """Return a page and the counts, all from one read. An unknown user's are empty."""

        async def attempt(n: int) -> Page:
            return (await self._fetch([query]))[0] if n or query.limit > SHARED_LIMIT else await self._lists(query)

        return await self.users.persist(attempt)

    async def _fetch(self, queries: Sequence[ListQuery]) -> Sequence[Page]:
        """Fetch pages that differ only in their users with one query."""
        ids = {self.users.key(query.user_id)["_id"] for query in queries}
        projection = page_of(queries[0], self.users)
        if len(ids) == 1:
            user = await self.users.collection.find_one({"_id": ids.pop()}, projection, collation=SIMPLE)
            documents = [user] if user else []
        else:
            cursor = self.users.shared.find({"_id": {"$in": [*ids]}}, projection, collation=SIMPLE)
            async with within(self.users.patience.shared_call):
                documents = await cursor.to_list()
        pages = {str(user.pop("_id")): Page(**user) for user in documents}
        return [pages.get(query.user_id, EMPTY) for query in queries]

    async def mark(self, selection: Selection, *, is_new: bool) -> bool:
        """Mark the selected notifications as unread, or as read; return whether there are any."""
        users, matching = self.users, selection.matching()
        has_some = {"notifications": {"$elemMatch": matching}, **selection.is_shown(users)}
        selected = [{f"selected.{name}": value for name, value in matching.items()}]
        change = {"$set": {"notifications.$[selected].is_new": is_new}}
        mark = Write(users.key(selection.user_id) | has_some, change, array_filters=selected)
        if await users.persist_for(selection.user_id, lambda n: users.writes.make(mark, attempt=n)):
            return True
        await users.must_admit(selection.user_id, ["notifications"])
        return False

    async def delete(self, selection: Selection) -> bool:
        return await delete(self.users, selection)

    async def see(self, user_id: str) -> None:
        await see(self.users, user_id)

    async def erase(self, user_id: str) -> None:
        await erase(self.users, user_id)
        await self.dead_mail.discard_of_user(user_id)

    async def ping(self) -> None:
        await self.users.persist(lambda _: self.database.command("ping"), PING_DEADLINE)
