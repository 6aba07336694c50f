"""What a request does in MongoDB: one atomic update, or one read, of the user's document."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import replace
from itertools import islice
from typing import Final

from pymongo.errors import PyMongoError

from config.checks import DEAD_MAIL
from mongo.batcher import BATCH_LIMIT
from mongo.changes import Changes
from mongo.connection import Connection, connected
from mongo.creation import EXPLAINING, Create, Creates, Creation, Recorded
from mongo.dead_mail import DeadMail
from mongo.document import JSONObject
from mongo.errors import NO_ANSWER, PATIENCE, PING_DEADLINE, Patience, StoreError, Unavailable
from mongo.grouping import Windows
from mongo.inbox import Inbox, Preferences
from mongo.lanes import keeps_numbers
from mongo.outbox import Outbox
from mongo.serving import ATTEMPT, Upkeep, must_suffice
from mongo.suppression import Suppressions
from mongo.users import Clock, Documents, Users
from settings import Settings

Outcome = Recorded | StoreError

BATCHES_AT_ONCE: Final = 3  # batches of a process while there are no single creates; more would wait for MongoDB
GENTLE_LIMIT: Final = 8  # creations in a batch beside single creates, which wait for it
CALM: Final = 1.0  # after this many seconds without a single create, batches are large


@asynccontextmanager
async def open_store(
    settings: Settings, *, serves: bool = False, patience: Patience = PATIENCE
) -> AsyncIterator[Store]:
    """Connect, and close at the end. If it `serves`, also judge MongoDB, and keep the indexes and the clock."""
    async with connected(settings.db_uri, patience=patience) as connection:
        store = Store(connection, settings)
        await store.clock.sync(ATTEMPT if serves else None)
        if serves:
            await must_suffice(store.users, connection)
        store.users.calls.numbered = await keeps_numbers(connection)
        async with store.upkeep.running() if serves else nullcontext():
            yield store


class Store:
    def __init__(self, connection: Connection, settings: Settings) -> None:
        self.database, patience = connection.database, connection.patience
        self.users = users = Users(connection, settings)
        self.clock = Clock(self.database)
        windows = Windows(users, settings.kinds)
        self.outbox = Outbox(users, {name: kind.rank for name, kind in settings.kinds.items()}, windows)
        self._creates = Creates(users, windows)
        self.dead_mail = DeadMail(self.outbox, self._creates, Documents(self.database[DEAD_MAIL], patience))
        self.upkeep = Upkeep(self.clock, self.outbox, self.dead_mail)
        self.inbox = Inbox(users)
        self.preferences = Preferences(users)
        self.suppressions = Suppressions(users)
        self.changes = Changes(users, self.clock)
        self._fan_out = FanOut(self._creates)

    async def create(self, new: Create) -> tuple[str, Recorded]:
        """Record the notification and the e-mail owed, as `new.kind` asks, creating a missing user.

        Return the notification's id, that of the first request if replayed, and the outcome. It is one atomic upsert,
        on disk on a majority when this returns. If the outbox is full, a notification is kept all the same, by a second
        write under the same id and key. Raises `OutboxFull`, `KeyReused` or `UnknownUser`.
        """
        creation = self._creates.prepare(new, self.clock.now())
        outcome = await self._creates.record(creation)
        return creation.replayed_id if outcome is Recorded.REPLAYED else creation.id, outcome

    async def create_many(self, user_ids: Sequence[str], new: Create, *, gently: bool = False) -> Sequence[Outcome]:
        """Do the same for each of these users; return for each what was done, or its error."""
        fingerprint, now, prepare = new.fingerprint(), self.clock.now(), self._creates.prepare
        each = (replace(new, user_id=user_id, in_bulk=True) for user_id in user_ids)
        creations = (prepare(create, now, fingerprint) for create in each)
        return await self._fan_out(creations, gently=gently)

    async def erase(self, user_id: str) -> None:
        """Remove everything that the service holds of a user. Raises `EmailUnderWay`."""
        await self.inbox.erase(user_id)
        await self.dead_mail.discard_of_user(user_id)

    async def ping(self) -> None:
        await self.users.persist(lambda _: self.database.command("ping"), PING_DEADLINE)


class FanOut:
    """Creates for many users. Single creates come first: beside them, one small batch is under way at a time."""

    def __init__(self, creates: Creates) -> None:
        self._creates = creates
        self._users = creates.users
        self._few = asyncio.Semaphore(BATCHES_AT_ONCE)
        self._one = asyncio.Lock()

    async def __call__(self, creations: Iterable[Creation], *, gently: bool = False) -> list[Outcome]:
        """Return what each creation did, or its error. With `gently`, other processes may have single creates."""
        loop = asyncio.get_running_loop()
        deadline, waiting = loop.time() + self._users.patience.operation, iter(creations)
        begun: list[Creation] = []

        async def work() -> None:
            while True:
                async with self._turn(gently=gently) as limit:
                    if not (batch := list(islice(waiting, limit))):
                        return
                    begun.extend(batch)
                    await self._together(batch, deadline)

        await asyncio.gather(*(work() for _ in range(BATCHES_AT_ONCE)))
        while loop.time() < deadline:
            unsettled = [each for each in begun if not each.outcome or type(each.outcome) is Unavailable]
            if not unsettled:
                break
            for start in range(0, len(unsettled), GENTLE_LIMIT):
                few = unsettled[start : start + GENTLE_LIMIT]
                async with self._turn(gently=gently):
                    await asyncio.gather(*(self._finish(creation, deadline) for creation in few))
        return [creation.outcome or Unavailable(NO_ANSWER) for creation in begun]

    @asynccontextmanager
    async def _turn(self, *, gently: bool) -> AsyncIterator[int]:
        """Wait until a batch may be under way; give how many creations it may have."""
        async with self._few:
            calm = not gently and asyncio.get_running_loop().time() - self._users.writes.used_at > CALM
            async with nullcontext() if calm else self._one:
                yield BATCH_LIMIT if calm else GENTLE_LIMIT

    async def _together(self, batch: Sequence[Creation], deadline: float) -> None:
        """Write a batch with one call, and set the outcomes that are known, replays included."""
        if asyncio.get_running_loop().time() >= deadline:
            return
        # Whatever stays unclear has the condition on its key, so it is safe to do it alone.
        with suppress(PyMongoError, TimeoutError, Unavailable):
            async with asyncio.timeout_at(deadline):
                written = await self._users.writes.together([self._creates.sent(creation) for creation in batch])
            for creation, is_written in zip(batch, written, strict=True):
                if is_written is True:
                    creation.outcome = Recorded.CREATED
                    self._creates.mark_judged(creation)
            unclear = [creation for creation in batch if not creation.outcome]
            users = await self._find(unclear) if unclear else {}
            for creation in unclear:
                creation.outcome = creation.found_in(users.get(creation.write.filter["_id"], {}))

    async def _finish(self, creation: Creation, deadline: float) -> None:
        """Make a creation in a brief call of its own: another program may have locked its document."""
        if (left := deadline - asyncio.get_running_loop().time()) > 0:
            try:
                brief = min(left, self._users.patience.shared_call)
                creation.outcome = await self._creates.record(creation, brief, alone=True)
            except StoreError as exc:
                creation.outcome = exc

    async def _find(self, creations: Sequence[Creation]) -> Mapping[object, JSONObject]:
        condition = {"_id": {"$in": [creation.write.filter["_id"] for creation in creations]}}
        users = await self._users.find(condition, EXPLAINING, majority=True, deadline=self._users.patience.shared_call)
        return {user["_id"]: user for user in users}
