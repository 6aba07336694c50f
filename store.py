"""What a request does in MongoDB: each is one atomic update, or one read, of the user's document.

Create, list and read stand here; what else a request may ask for has a room each under `mongo/`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from operator import attrgetter

from bson import ObjectId

from config.checks import DEAD_MAIL
from mongo.batcher import Batcher
from mongo.changes import Changes
from mongo.clock import Clock
from mongo.collapse import collapsing
from mongo.connection import MAJORITY, Connection, connected, within
from mongo.creation import EXPLAINING, Creation, Recorded
from mongo.dead_mail import DeadMail
from mongo.deletion import Deletions
from mongo.document import (
    HAS_ROOM,
    IS_FINDABLE,
    ONLY_OURS,
    RECENT_LIMIT,
    SIMPLE,
    JSONObject,
    Shape,
    append,
    has,
    optional_fields,
    remember,
)
from mongo.erasure import erase
from mongo.errors import (
    PATIENCE,
    PING_DEADLINE,
    Changed,
    Conflict,
    OutboxFull,
    Patience,
    StoreError,
    TooLarge,
    UnknownUser,
    persist,
)
from mongo.fan_out import FanOut
from mongo.lanes import keeps_numbers
from mongo.outbox import Outbox
from mongo.owed import first_due, new_element
from mongo.page import EMPTY, Page, is_shared, kind_of_list, page_of
from mongo.preferences import Preferences
from mongo.requests import Create, CreateMany, ListQuery, Selection
from mongo.requirements import must_suffice
from mongo.seen import Seen
from mongo.start import reach
from mongo.statement import Write
from mongo.suppression import Suppressions
from mongo.upkeep import Upkeep
from mongo.users import Documents, Users
from mongo.waiting import Windows
from mongo.writes import Writes
from settings import Settings, UnknownUsers


@dataclass(frozen=True, slots=True)
class Created:
    """What a create did, and the notification's id. A replay has the id of the request that it repeats."""

    id: str
    outcome: Recorded


@asynccontextmanager
async def open_store(
    settings: Settings, deadline: float | None = None, *, serves: bool = False, patience: Patience = PATIENCE
) -> AsyncIterator[Store]:
    """Connect within `deadline` seconds, and close at the end. Only the server needs more. Raises a `StoreError`."""
    async with connected(settings.db_uri, patience=patience) as connection:
        store = Store(connection, settings, patience)
        await reach(store.clock, connection, deadline)
        if serves:
            await must_suffice(store.users, connection)
        store.users.calls.numbered = await keeps_numbers(connection.shared, patience)
        async with store.clock.running(), store.upkeep.running() if serves else nullcontext():
            yield store


class Store:
    """The users' documents."""

    def __init__(self, connection: Connection, settings: Settings, patience: Patience = PATIENCE) -> None:
        self.database = database = connection.database
        self._profile = {settings.email_field: settings.email}
        self._creates_users = settings.unknown_users is UnknownUsers.CREATE
        self._limit, self._slack = settings.notifications_limit, settings.notifications_slack
        self.users = Users(
            connection,
            settings.users_collection,
            Shape(settings.id_type, settings.email_field, settings.language_field, settings.template_fields),
            self._profile if self._creates_users else None,
            patience,
        )
        self.clock = Clock(connection)
        self._windows = Windows(self.users, settings.kinds, self._limit)
        self.outbox = Outbox(self.users, {name: kind.rank for name, kind in settings.kinds.items()}, self._windows)
        self.dead_mail = DeadMail(self.outbox, Documents(database[DEAD_MAIL], patience))
        self.upkeep = Upkeep(self.outbox.due, self.dead_mail, settings.dead_mail_days)
        self.preferences = Preferences(self.users)
        self.suppressions = Suppressions(self.users)
        self.changes = Changes(self.users, self.clock, self._limit)
        self._writes = Writes(self.users)
        self.deletions = Deletions(self.users, self._writes, self._limit, self._slack)
        self.seen = Seen(self.users, self._writes, self._limit)
        self._fan_out = FanOut(self.users, self._writes, self._record)
        self._lists: Batcher[ListQuery, Page] = Batcher(
            self._fetch,
            patience=patience.operation,
            kind=kind_of_list,
        )

    async def create(self, new: Create) -> Created:
        """Record the notification and the e-mail owed, as `new.kind` asks, creating a missing user.

        It is one atomic upsert, on disk on a majority when this returns. A request whose key is among the user's last
        `RECENT_LIMIT` is a replay and has no further effect. If the outbox is full, a notification is kept all the
        same, by a second write under the same id and key.

        Raises `OutboxFull`, `KeyReused`, `UnknownUser`, `TooLarge`, `Conflict` or `Unavailable`. Only after the last
        of these may the write have taken effect.
        """
        creation = self._creation(new, self.clock.now())
        outcome = await self._record(creation)
        return Created(creation.replayed_id if outcome is Recorded.REPLAYED else creation.id, outcome)

    async def create_many(self, many: CreateMany, *, gently: bool = False) -> Sequence[Recorded | StoreError]:
        """Do for each of these users what `create` does for one; return for each what it did, or its error."""
        fingerprint, now = many.each.fingerprint(), self.clock.now()
        each = replace(many.each, in_bulk=True)
        creations = (self._creation(replace(each, user_id=user_id), now, fingerprint) for user_id in many.user_ids)
        return await self._fan_out(creations, gently=gently)

    def _creation(self, new: Create, now: datetime, fingerprint: str | None = None) -> Creation:
        """Return the write that does what a request asks for. `now` is by MongoDB's clock."""
        id_ = str(ObjectId())
        # An e-mail alone leaves no trace once it is sent, and in a short array a notification leaves none once newer
        # ones push it out. So the id is remembered like a key.
        key = new.idempotency_key or (None if new.kind.in_app and self._limit >= RECENT_LIMIT else id_)
        fingerprint = fingerprint or (new.fingerprint() if key else "")
        optional = optional_fields({"target_id": new.target_id, "data": new.data})
        filter_, guard, pushes = self.users.key(new.user_id), JSONObject(), JSONObject()
        update: JSONObject = {"$setOnInsert": self._profile, "$push": pushes}
        if new.kind.in_app:
            notification: JSONObject = {
                "id": id_,
                "timestamp": int(datetime.now(UTC).timestamp()),
                "is_new": True,
                "user_id": new.user_id,
                "key": new.kind.name,
                **optional,
            }
            filter_ |= {} if filter_["_id"] in self.users.judged else ONLY_OURS
            guard = {"notifications.id": {"$ne": id_}, "notifier.deleted": {"$ne": id_}}
            pushes["notifications"] = append(notification, self._limit, self._slack)
        if new.kind.window is not None:
            filter_ |= self._windows.has_room() | IS_FINDABLE
            due = now + timedelta(seconds=new.kind.window)
            target: JSONObject = {"target_id": new.target_id} if new.target_id else {}
            pushes["notifier.waiting"] = {"id": id_, "key": new.kind.name, **target, "due": due}
            update["$min"] = {"notifier.due": due}
        elif new.kind.email:
            filter_ |= HAS_ROOM | IS_FINDABLE
            due = first_due(new.kind.rank, in_bulk=new.in_bulk)
            pushes["notifier.outbox"] = new_element(id_, new.kind.name, now, optional, new.origin, due)
            update["$min"] = {"notifier.due": due}
        if key:
            filter_["notifier.recent.k"] = {"$ne": key}
            pushes["notifier.recent"] = remember(key, fingerprint, id_)
        write = Write(filter_, update, upsert=self._creates_users, guard=guard, numbered=True)
        collapse = partial(collapsing, limit=self._limit) if new.kind.collapse else None
        return Creation(new.user_id, id_, key, fingerprint, write, collapse)

    async def _record(self, creation: Creation, deadline: float | None = None, *, alone: bool = False) -> Recorded:
        """Write until the outcome is known, in calls of its own if `alone`. Raises as `create`."""
        try:
            outcome = await self._upsert(creation, deadline, alone=alone)
        except OutboxFull:
            if not creation.leave_out_email():
                raise
            # Alone, and so with its conditions: an attempt at the version before may still be on its way.
            outcome = await self._upsert(creation, deadline, alone=True)
        return Recorded.NOT_OWED if creation.not_owed and outcome is Recorded.CREATED else outcome

    async def _upsert(self, creation: Creation, deadline: float | None, *, alone: bool) -> Recorded:
        async def attempt(n: int) -> Recorded:
            if await self._writes.find_one_and_update(creation.sent, attempt=n + alone):
                creation.mark_judged(self.users.judged)
                return Recorded.CREATED
            return await self._explain(creation)

        try:
            return await self.users.persist_for(creation.user_id, attempt, deadline)
        except TooLarge:
            if not creation.trim(self._limit):  # what nobody sees any more makes room
                raise
            return await self._upsert(creation, deadline, alone=True)

    async def _explain(self, creation: Creation) -> Recorded:
        """Explain a failed condition. Raises as `create`, and `Changed` when the condition would hold by now."""
        key = self.users.key(creation.user_id)
        if user := await self.users.find_one(key, EXPLAINING, majority=True):
            if user["waits"] >= self._windows.room:
                await self._windows.make_room(creation.user_id)
            return creation.explain(user)
        if not creation.write.upsert:
            raise UnknownUser
        if creation.collapse:
            await self.users.create(creation.user_id)
            raise Changed
        majority = self.users.collection.with_options(read_concern=MAJORITY)
        if await majority.find_one(key, {"_id": 1}):  # as the collection's default collation compares
            raise Conflict("the collation of the users' collection, to which two users' ids are the same")
        raise Changed

    async def list(self, query: ListQuery) -> Page:
        """Return a page and the counts, all from one read. An unknown user's are empty. Raises `Unavailable`."""
        is_short = is_shared(query)

        async def attempt(n: int) -> Page:
            return await self._lists(query) if is_short and not n else (await self._fetch([query]))[0]

        return await self.users.persist(attempt)

    async def _fetch(self, queries: Sequence[ListQuery]) -> Sequence[Page]:
        """Fetch pages that differ only in their users and limits, with one query."""
        ids = {self.users.key(query.user_id)["_id"] for query in queries}
        projection = page_of(max(queries, key=attrgetter("limit")), self._limit)
        if len(ids) == 1:
            user = await self.users.collection.find_one({"_id": ids.pop()}, projection, collation=SIMPLE)
            found = [user] if user else []
        else:
            async with within(self.users.patience.shared_call):
                found = await self.users.shared.find({"_id": {"$in": [*ids]}}, projection, collation=SIMPLE).to_list()
        pages = {str(user.pop("_id")): Page(**user) for user in found}
        return [pages.get(query.user_id, EMPTY).first(query.limit) for query in queries]

    async def mark(self, selection: Selection, *, is_new: bool) -> bool:
        """Mark the selected notifications as unread, or as read; return whether there are any.

        Raises `Conflict` or `Unavailable`.
        """
        matching = selection.matching()
        filter_ = self.users.key(selection.user_id) | {"notifications": {"$elemMatch": matching}}
        if self._slack and selection.field == "id" and selection.value:  # what the inbox does not show does not exist
            filter_["$expr"] = has(self._limit, selection.value)

        chosen = [{f"chosen.{name}": value for name, value in matching.items()}]
        mark = Write(filter_, {"$set": {"notifications.$[chosen].is_new": is_new}}, array_filters=chosen)
        if await self.users.persist_for(selection.user_id, lambda n: self._writes.update_one(mark, attempt=n)):
            return True
        await self.users.must_admit(selection.user_id, ["notifications"])
        return False

    async def erase(self, user_id: str) -> None:
        """Remove what the service holds of a user. Raises `EmailUnderWay`, `Conflict` or `Unavailable`."""
        await erase(self.users, user_id)
        await self.dead_mail.discard_of_user(user_id)

    async def ping(self) -> None:
        """Return if MongoDB answers. Raises `Unavailable`."""
        await persist(lambda _: self.database.command("ping"), PING_DEADLINE)
