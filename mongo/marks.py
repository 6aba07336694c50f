"""What `/read`, `/unread` and `/delete` do to the notifications that a request selects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from mongo.connection import Collection
from mongo.document import RECENT_LIMIT, SIMPLE, JSONObject, has, inbox, must_be_ours, only_ours
from mongo.errors import persist
from mongo.ids import IdType
from mongo.writes import Write, Writes

FIELDS: Final = ("notifications", "deleted_notifications")
"""What a deletion writes."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Of a user's notifications those whose `field` has this value, or all without a field."""

    user_id: str
    field: str | None = None
    value: str | None = None

    def matching(self) -> JSONObject:
        """Return the condition that an element fulfils."""
        return {self.field: self.value} if self.field else {"id": {"$exists": True}}


class Marks:
    """Marks notifications and deletes them. An attempt may be repeated after it took effect."""

    def __init__(self, users: Collection, writes: Writes, id_type: IdType, limit: int) -> None:
        self._users = users
        self._writes = writes
        self._id_type = id_type
        self._limit = limit

    async def mark(self, selection: Selection, *, is_new: bool) -> bool:
        """Mark the selected as unread, or as read; return whether there are any.

        Raises `Conflict` or `Unavailable`.
        """
        matching = selection.matching()
        mark = Write(
            self._filter(selection, "notifications") | {"notifications": {"$elemMatch": matching}},
            {"$set": {"notifications.$[matching].is_new": is_new}},
            array_filters=[_array_filter("matching", matching)],
        )
        return await self._write(mark, ["notifications"])

    async def delete(self, selection: Selection) -> bool:
        """Delete the selected; return whether there are, or lately were, any.

        They are chosen once, by their ids, so that a repetition deletes nothing that came meanwhile. The ids are
        remembered, as many as an inbox holds: a create whose reply was lost may be repeated afterwards. What the inbox
        no longer showed goes too, as else it would move up into it.

        Raises `Conflict`, `TooLarge` or `Unavailable`.
        """
        ids = [selection.value] if selection.field == "id" else await self._ids(selection)
        if not ids:
            return False
        newest, is_chosen = inbox(self._limit), {"$in": ["$$this.id", {"$literal": ids}]}
        chosen = {"$map": {"input": {"$filter": {"input": newest, "cond": is_chosen}}, "in": "$$this.id"}}
        remembered = {"$concatArrays": [{"$ifNull": ["$deleted_notifications", []]}, chosen]}
        deletion = Write(
            self._filter(selection, *FIELDS) | {"notifications": {"$elemMatch": {"id": {"$in": ids}}}},
            [
                {
                    "$set": {
                        "deleted_notifications": {"$slice": [remembered, -max(self._limit, RECENT_LIMIT)]},
                        "notifications": {"$filter": {"input": newest, "cond": {"$not": [is_chosen]}}},
                    }
                }
            ],
        )
        return await self._write(deletion, FIELDS) or await self._was_deleted(selection)

    async def _ids(self, selection: Selection) -> list[str]:
        """Return the ids of the selected, as far as they are in the inbox and strings."""
        user = {"_id": self._id_type.to_bson(selection.user_id), "$and": list(only_ours("notifications"))}
        field, value = selection.field, {"$literal": selection.value}
        is_string = {"$eq": [{"$type": "$$this.id"}, "string"]}
        matches = {"$and": [is_string, *([{"$eq": [f"$$this.{field}", value]}] if field else ())]}
        chosen = {"$filter": {"input": inbox(self._limit), "cond": matches}}

        async def attempt() -> list[str]:
            found = await self._users.find_one(user, {"chosen": chosen}, collation=SIMPLE)
            if found is None:
                await must_be_ours(self._users, {"_id": user["_id"]}, ["notifications"])
            return [item["id"] for item in found["chosen"]] if found else []

        return await persist(attempt)

    async def _was_deleted(self, selection: Selection) -> bool:
        """Return whether the one selected is remembered: the reply to an earlier attempt may have been lost."""
        if selection.field != "id":
            return False
        deleted = {"_id": self._id_type.to_bson(selection.user_id), "deleted_notifications": selection.value}
        return await persist(lambda: self._users.find_one(deleted, {"_id": 1}, collation=SIMPLE)) is not None

    def _filter(self, selection: Selection, *fields: str) -> JSONObject:
        ours = [condition for field in fields for condition in only_ours(field)]
        if selection.field == "id" and selection.value:  # one that is no longer in the inbox does not exist
            ours.append({"$expr": has(self._limit, selection.value)})
        return {"_id": self._id_type.to_bson(selection.user_id), "$and": ours}

    async def _write(self, write: Write, fields: Sequence[str]) -> bool:
        attempt_write = self._writes.attempts()

        async def attempt() -> bool:
            found = await attempt_write(write)
            if not found:
                await must_be_ours(self._users, {"_id": write.filter["_id"]}, fields)
            return found

        return await persist(attempt)


def _array_filter(identifier: str, condition: JSONObject) -> Mapping[str, Any]:
    return {f"{identifier}.{name}": value for name, value in condition.items()}
