"""What `/read`, `/unread` and `/delete` do to the notifications that a request selects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mongo.connection import Collection
from mongo.document import RECENT_LIMIT, SIMPLE, JSONObject, foreign_field, has, inbox, only_ours
from mongo.errors import Conflict, persist
from mongo.ids import IdType, named
from mongo.writes import Write, Writes


@dataclass(frozen=True, slots=True)
class Selection:
    """Of a user's notifications those whose `field` has this value, or all without a field."""

    user_id: str
    field: str | None = None
    value: str | None = None

    def matching(self) -> JSONObject:
        """Return the condition that an element fulfils."""
        return {self.field: self.value} if self.field else {"id": {"$exists": True}}

    def matches(self) -> JSONObject:
        """Return the expression of whether `$$this` is selected."""
        is_one = {"$eq": [{"$type": "$$this.id"}, "string"]}  # and not a `null`
        return {"$eq": [f"$$this.{self.field}", {"$literal": self.value}]} if self.field else is_one


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
            self._filter(selection) | {"notifications": {"$elemMatch": matching}},
            {"$set": {"notifications.$[matching].is_new": is_new}},
            array_filters=[_array_filter("matching", matching)],
        )
        return await self._write(selection, mark, ["notifications"])

    async def delete(self, selection: Selection) -> bool:
        """Delete the selected; return whether there are, or lately were, any.

        Their ids are remembered, as many as an inbox holds: a create whose reply was lost may be repeated afterwards.
        What the inbox no longer showed goes too, as else it would move up into it.

        Raises `Conflict`, `TooLarge` or `Unavailable`.
        """
        newest, matches = inbox(self._limit), selection.matches()
        chosen = {"$map": {"input": {"$filter": {"input": newest, "cond": matches}}, "in": "$$this.id"}}
        remembered = {"$concatArrays": [{"$ifNull": ["$deleted_notifications", []]}, chosen]}
        kept = {"$filter": {"input": newest, "cond": {"$not": [matches]}}}
        deletion = Write(
            self._filter(selection, "deleted_notifications") | {"notifications": {"$elemMatch": selection.matching()}},
            [
                {
                    "$set": {
                        "deleted_notifications": {"$slice": [remembered, -max(self._limit, RECENT_LIMIT)]},
                        "notifications": kept,
                    }
                }
            ],
        )
        found = await self._write(selection, deletion, ["notifications", "deleted_notifications"])
        return found or await self._was_deleted(selection)

    async def _was_deleted(self, selection: Selection) -> bool:
        """Return whether the one selected is remembered: the reply to an earlier attempt may have been lost."""
        if selection.field != "id":
            return False
        deleted = {"_id": self._id_type.to_bson(selection.user_id), "deleted_notifications": selection.value}
        return await persist(lambda: self._users.find_one(deleted, {"_id": 1}, collation=SIMPLE)) is not None

    def _filter(self, selection: Selection, *fields: str) -> JSONObject:
        ours = [condition for field in ("notifications", *fields) for condition in only_ours(field)]
        if selection.field == "id" and selection.value:  # one that is no longer in the inbox does not exist
            ours.append({"$expr": has(self._limit, selection.value)})
        return {"_id": self._id_type.to_bson(selection.user_id), "$and": ours}

    async def _write(self, selection: Selection, write: Write, fields: list[str]) -> bool:
        user, attempt_write = {"_id": write.filter["_id"]}, self._writes.attempts()

        async def attempt() -> bool:
            found = await attempt_write(write)
            if not found and (foreign := await foreign_field(self._users, user, fields)):
                raise Conflict(f"the field `{foreign}` of {named(selection.user_id)}, which is not the service's")
            return found

        return await persist(attempt)


def _array_filter(identifier: str, condition: JSONObject) -> Mapping[str, Any]:
    return {f"{identifier}.{name}": value for name, value in condition.items()}
