"""A create: one atomic write to the user's document, and the explanation if its condition fails."""

import enum
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from random import randrange
from typing import Any, Final

from bson import ObjectId

from kinds import Kind
from mongo.connection import MAJORITY
from mongo.document import HAS_ROOM, IS_FINDABLE, ONLY_OURS, OPTIONAL_FIELDS, OUTBOX_LIMIT, RECENT_LIMIT, JSONObject
from mongo.errors import Changed, Conflict, KeyReused, OutboxFull, StoreError, TooLarge, UnknownUser
from mongo.expressions import OUTBOX, WAITING
from mongo.grouping import Windows, collapsing
from mongo.lanes import Write
from mongo.owed import elements, first_due, new_element
from mongo.users import REFUSING, Users, judge

EXPLAINING: Final = {  # the projection that `Creation.explain` reads
    "ids": "$notifications.id",
    "owed": "$notifier.outbox.id",
    "deleted": "$notifier.deleted",
    "recent": "$notifier.recent",
    "waits": {"$size": WAITING},
    "is_full": {"$gte": [{"$size": OUTBOX}, OUTBOX_LIMIT]},
    **REFUSING,
}
SLACK_PART: Final = 4  # with slack, one push in `slack / SLACK_PART` trims the array to the inbox


@dataclass(frozen=True, slots=True)
class Create:
    """What to create for a user. `origin` is kept with an e-mail; `in_bulk` e-mails go later."""

    user_id: str
    kind: Kind
    target_id: str | None = None
    data: JSONObject | None = None
    idempotency_key: str | None = None
    origin: Mapping[str, str] = field(default_factory=dict)
    in_bulk: bool = False

    @property
    def optional(self) -> JSONObject:
        return {name: value for name in OPTIONAL_FIELDS if (value := getattr(self, name)) is not None}

    def fingerprint(self) -> str:
        """Return a hash of everything but the user. Bodies with the same meaning have the same one."""
        values = [getattr(self, name) for name in OPTIONAL_FIELDS]
        meaning = json.dumps([self.kind.name, *values], sort_keys=True)
        return hashlib.blake2b(meaning.encode(), digest_size=16).hexdigest()


class Recorded(enum.Enum):
    CREATED = enum.auto()
    REPLAYED = enum.auto()  # nothing: an earlier request had the same key
    NOT_OWED = enum.auto()  # the notification is kept, and the e-mail is not owed, as the outbox is full


@dataclass(slots=True)
class Creation:
    """One create. Its `write` uses classic operators; if it collapses, it is sent as a pipeline.

    A repetition must not record it twice: either `write` has a number, or its conditions require that `id` and `key`
    are not there yet. `replayed_id` is the id that an earlier request with the same key recorded.
    """

    user_id: str
    id: str
    key: str | None
    fingerprint: str
    write: Write
    collapses: bool = False
    not_owed: bool = False  # the e-mail was left out
    replayed_id: str = ""
    outcome: Recorded | StoreError | None = None  # what a fan-out knows so far

    def leave_out_email(self) -> bool:
        """Drop the e-mail from the write; return `False` if that leaves no notification.

        This is final: once an attempt without the e-mail may have taken effect, no other may promise it.
        """
        old = self.write.update
        pushes = {name: push for name, push in old["$push"].items() if name != "notifier.outbox"}
        if "notifications" not in pushes:
            return False
        conditions = {name: value for name, value in self.write.filter.items() if name not in HAS_ROOM | IS_FINDABLE}
        update = {"$setOnInsert": old["$setOnInsert"], "$push": pushes}
        self.write, self.not_owed = replace(self.write, filter=conditions, update=update), True
        return True

    def trim(self, limit: int) -> bool:
        """Let the write trim the inbox to its limit; return whether it would not have done so anyway."""
        push = self.write.update["$push"].get("notifications")
        if push is None or push["$slice"] == -limit:
            return False
        push["$slice"] = -limit
        return True

    def found_in(self, user: Mapping[str, Any]) -> Recorded | KeyReused | None:
        """Return what an earlier attempt, or an earlier request, did according to the document, or `None`."""
        if any(isinstance(ids := user.get(name), list) and self.id in ids for name in ("ids", "owed", "deleted")):
            return Recorded.CREATED
        for item in elements(user, "recent"):
            if self.key and item.get("k") == self.key and isinstance(item.get("h"), str):
                if item["h"] != self.fingerprint:
                    return KeyReused()
                self.replayed_id = f"{item.get('id')}"
                return Recorded.CREATED if self.replayed_id == self.id else Recorded.REPLAYED
        return None

    def explain(self, user: Mapping[str, Any]) -> Recorded:
        """Return the outcome, or raise why the document refuses the write; `Changed` if it would not by now."""
        outcome = self.found_in(user)
        if isinstance(outcome, Recorded):
            return outcome
        if outcome:
            raise outcome
        fields = [*self.write.update["$push"], *self.write.update.get("$min", ())]
        judge(user, [*fields, "notifier"] if any("." in field for field in fields) else fields)
        raise OutboxFull if "notifier.outbox" in fields and user["is_full"] else Changed


def remember(key: str, fingerprint: str, id_: str) -> JSONObject:
    return {"$each": [{"k": key, "h": fingerprint, "id": id_}], "$slice": -RECENT_LIMIT}


class Creates:
    def __init__(self, users: Users, windows: Windows) -> None:
        self.users = users
        self._windows = windows

    def prepare(self, new: Create, now: datetime, fingerprint: str | None = None) -> Creation:
        """Return the creation for a request. `now` is MongoDB's time."""
        id_, kind, optional = str(ObjectId()), new.kind, new.optional
        # An e-mail alone leaves no trace once it is sent, and in a short array a notification leaves none once newer
        # ones push it out. So the id is remembered like a key.
        key = new.idempotency_key or (None if kind.in_app and self.users.limit >= RECENT_LIMIT else id_)
        fingerprint = fingerprint or (new.fingerprint() if new.idempotency_key else "")
        filter_, guard, pushes = self.users.key(new.user_id), JSONObject(), JSONObject()
        update: JSONObject = {"$setOnInsert": self.users.profile or {}, "$push": pushes}
        if kind.in_app:
            notification: JSONObject = {
                "id": id_,
                "timestamp": int(time.time()),
                "is_new": True,
                "user_id": new.user_id,
                "key": kind.name,
                **optional,
            }
            filter_ |= {} if filter_["_id"] in self.users.judged else ONLY_OURS
            guard = {"notifications.id": {"$ne": id_}, "notifier.deleted": {"$ne": id_}}
            pushes["notifications"] = self._append(notification)
        if kind.window is not None:
            due = now + timedelta(seconds=kind.window)
            filter_ |= self._windows.has_room | IS_FINDABLE
            target = {"target_id": new.target_id} if new.target_id else {}
            pushes["notifier.waiting"] = {"id": id_, "key": kind.name, **target, "due": due}
            update["$min"] = {"notifier.due": due}
        elif kind.email:
            due = first_due(kind.rank, in_bulk=new.in_bulk)
            filter_ |= HAS_ROOM | IS_FINDABLE
            pushes["notifier.outbox"] = new_element(id_, kind.name, now, {**optional, **new.origin}, due)
            update["$min"] = {"notifier.due": due}
        if key:
            filter_["notifier.recent.k"] = {"$ne": key}
            pushes["notifier.recent"] = remember(key, fingerprint, id_)
        write = Write(filter_, update, upsert=self.users.profile is not None, guard=guard, numbered=True)
        return Creation(new.user_id, id_, key, fingerprint, write, kind.collapse)

    def _append(self, notification: JSONObject) -> JSONObject:
        """Return the `$push` that adds a notification to an inbox.

        A push at the end costs MongoDB's oplog the new element; one that also trims costs it the whole array. So with
        slack, only some trim to the inbox, at random, and the others bound the array.
        """
        limit, slack = self.users.limit, self.users.slack
        trims = not slack or randrange(slack) < SLACK_PART
        return {"$each": [notification], "$slice": -limit if trims else -(limit + slack)}

    def sent(self, creation: Creation) -> Write:
        return collapsing(creation.write, self.users) if creation.collapses else creation.write

    async def record(self, creation: Creation, deadline: float | None = None, *, alone: bool = False) -> Recorded:
        """Write until the outcome is known; `alone` shares no call. Raises `OutboxFull`, `KeyReused`, `UnknownUser`."""

        async def attempt(n: int) -> Recorded:
            if await self.users.writes.make(self.sent(creation), attempt=n + alone):
                self.mark_judged(creation)
                return Recorded.CREATED
            return await self._explain(creation)

        try:
            outcome = await self.users.persist_for(creation.user_id, attempt, deadline)
        except (OutboxFull, TooLarge) as exc:
            # What nobody sees any more makes room in the document.
            may_fit = creation.leave_out_email() if isinstance(exc, OutboxFull) else creation.trim(self.users.limit)
            if not may_fit:
                raise
            # Alone, and so with its conditions: an attempt at the version before may still be on its way.
            return await self.record(creation, deadline, alone=True)
        return Recorded.NOT_OWED if creation.not_owed and outcome is Recorded.CREATED else outcome

    def mark_judged(self, creation: Creation) -> None:
        """Remember that the document has passed the condition on `notifications`, if the write had it."""
        if "notifications" in creation.write.update["$push"]:
            self.users.judged.add(creation.write.filter["_id"])

    async def _explain(self, creation: Creation) -> Recorded:
        """Explain a failed condition. Raises `Changed` when the condition would hold by now."""
        key = self.users.key(creation.user_id)
        if user := await self.users.find_one(key, EXPLAINING, majority=True):
            if user["waits"] >= self._windows.room:
                await self._windows.make_room(creation.user_id)
            return creation.explain(user)
        if not creation.write.upsert:
            raise UnknownUser
        if creation.collapses:
            await self.users.create(creation.user_id)
            raise Changed
        majority = self.users.collection.with_options(read_concern=MAJORITY)
        if await majority.find_one(key, {"_id": 1}):  # as the collection's default collation compares
            raise Conflict("the collation of the users' collection, to which two users' ids are the same")
        raise Changed
