"""What `POST /create` writes to a user's document, and what it means when the condition of that write fails."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol, cast

from bson import ObjectId

from mongo.document import (
    OUTBOX_LIMIT,
    RECENT_LIMIT,
    JSONObject,
    append,
    elements,
    only_ours,
    only_ours_without,
    optional_fields,
    remember,
)
from mongo.errors import KeyReused, OutboxFull
from mongo.ids import IdType
from mongo.owed import HAS_ROOM, first_due, new_element
from mongo.writes import Write


class Channels(Protocol):
    """What a kind of notification is to MongoDB: its name, its channels, and which of `ERAS` its e-mails have."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def in_app(self) -> bool: ...  # noqa: D102
    @property
    def email(self) -> bool: ...  # noqa: D102
    @property
    def rank(self) -> str: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Create:
    """What to create for a user. Ids are in their one form. `request_id` is kept with an e-mail."""

    user_id: str
    kind: Channels
    target_id: str | None = None
    data: JSONObject | None = None
    idempotency_key: str | None = None
    request_id: str | None = None

    def fingerprint(self) -> str:
        """Return a hash of everything but the user. Bodies with the same meaning have the same one."""
        meaning = json.dumps([self.kind.name, self.target_id, self.data], sort_keys=True)
        return hashlib.blake2b(meaning.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class CreateMany:
    """What to create for many users: `each`, with one of the ids in place of its own."""

    user_ids: Sequence[str]
    each: Create


@dataclass(frozen=True, slots=True)
class Creation:
    """One atomic write that records a notification, an e-mail owed, or both.

    An attempt may take effect although its reply was lost, and even after the next attempt: a server goes on with what
    a broken connection sent. So every attempt has the condition that neither `id` nor `key` is there. `fields` are
    the fields that it writes.
    """

    user_id: str
    id: str
    key: str | None
    fingerprint: str
    fields: Sequence[str]
    write: Write

    @property
    def document_id(self) -> Any:
        """The `_id` of the user's document."""
        return self.write.filter["_id"]

    def trim(self, limit: int) -> bool:
        """Let the write trim the inbox to its limit; return whether it would not have done so anyway."""
        push = cast("JSONObject", self.write.update)["$push"].get("notifications")
        if push is None or push["$slice"] == -limit:
            return False
        push["$slice"] = -limit
        return True

    def is_replay_of(self, user: Mapping[str, Any]) -> bool | None:
        """Explain by the user's document why the condition failed.

        Return `False` if an earlier attempt took effect, `True` if an earlier request had the key, and else `None`.
        Raises `KeyReused`.
        """
        deleted = user.get("deleted_notifications")
        if any(item.get("id") == self.id for name in ("notifications", "outbox") for item in elements(user, name)) or (
            isinstance(deleted, list) and self.id in deleted
        ):
            return False
        for item in elements(user, "recent"):
            if self.key and item.get("k") == self.key and isinstance(item.get("h"), str):
                if item["h"] != self.fingerprint:
                    raise KeyReused
                return self.key != self.id
        return None

    def must_have_room_in(self, user: Mapping[str, Any]) -> None:
        """Raise `OutboxFull` if the user is owed as many e-mails as the outbox holds."""
        if "outbox" in self.fields and len(user.get("outbox", ())) >= OUTBOX_LIMIT:
            raise OutboxFull


@dataclass(frozen=True, slots=True, kw_only=True)
class Creator:
    """Makes creations. `limit` is that of an inbox; `profile` is what a user has whom the service creates."""

    id_type: IdType
    limit: int
    profile: Mapping[str, str]
    creates_users: bool

    def make(self, new: Create, now: datetime, fingerprint: str | None = None, *, in_bulk: bool = False) -> Creation:
        """Return the write that does what a request asks for, alone or `in_bulk`.

        `now` is by MongoDB's clock. `fingerprint` is that of the request, if it is known already.
        """
        id_ = str(ObjectId())
        # An e-mail alone leaves no trace once it is sent, and in a short array a notification leaves none once newer
        # ones push it out. So the id is remembered like a key.
        key = new.idempotency_key or (None if new.kind.in_app and self.limit >= RECENT_LIMIT else id_)
        fingerprint = fingerprint or (new.fingerprint() if key else "")
        optional = optional_fields({"target_id": new.target_id, "data": new.data})
        pushes: JSONObject = {}
        update: JSONObject = {"$setOnInsert": self.profile, "$push": pushes}
        fields: list[str] = []
        conditions: JSONObject = {}
        if new.kind.email:
            fields += ["outbox", "mail_due"]
            conditions |= HAS_ROOM
            due = first_due(new.kind.rank, time.time(), in_bulk=in_bulk)
            email = new_element(id_, new.kind.name, now, optional, new.request_id, next_at=due)
            pushes["outbox"] = email
            update["$min"] = {"mail_due": email["next_at"]}
        if key:
            fields.append("recent")
            conditions["recent.k"] = {"$ne": key}
            pushes["recent"] = remember(key, fingerprint)
        ours = [condition for field in fields for condition in only_ours(field)]
        if new.kind.in_app:
            fields.append("notifications")
            conditions["deleted_notifications"] = {"$ne": id_}
            ours += only_ours_without(id_)
            notification: JSONObject = {
                "id": id_,
                "timestamp": int(datetime.now(UTC).timestamp()),
                "is_new": True,
                "user_id": new.user_id,
                "key": new.kind.name,
                **optional,
            }
            pushes["notifications"] = append(notification, self.limit)
        filter_ = {"_id": self.id_type.to_bson(new.user_id), "$and": ours, **conditions}
        write = Write(filter_, update, upsert=self.creates_users)
        return Creation(new.user_id, id_, key, fingerprint, fields, write)
