"""What `/delete` does: the selected notifications and the e-mails about them go, and their ids are remembered."""

from __future__ import annotations

from mongo.document import DELETED, ONLY_OURS, OURS, OUTBOX, RECENT_LIMIT, JSONObject, has, inbox, without
from mongo.owed import IS_EMAIL, SET_DUE
from mongo.requests import Selection
from mongo.statement import Write
from mongo.users import Users
from mongo.writes import Writes


class Deletions:
    """Deletes notifications."""

    def __init__(self, users: Users, writes: Writes, limit: int, slack: int) -> None:
        self._users = users
        self._writes = writes
        self._limit = limit
        self._slack = slack

    async def delete(self, selection: Selection) -> bool:
        """Delete the selected; return whether there are, or lately were, any.

        They are chosen once, by their ids, so that a repetition deletes nothing that came meanwhile. The ids are
        remembered, as many as an inbox holds: a create whose reply was lost may be repeated afterwards. What the inbox
        no longer showed goes too, as else it would move up into it.

        An e-mail is taken back until the look before it is sent, which finds it gone. One that is owed alone, or that
        the inbox no longer shows, can be selected by its id.

        Raises `Conflict`, `TooLarge` or `Unavailable`.
        """
        ids = await self._ids(selection)
        newest, is_chosen = inbox(self._limit), {"$in": ["$$this.id", {"$literal": ids}]}
        chosen = {"$map": {"input": {"$filter": {"input": newest, "cond": is_chosen}}, "in": "$$this.id"}}
        is_owed = {"$and": [IS_EMAIL, is_chosen, {"$eq": [{"$type": "$$this.ids"}, "missing"]}]}
        owed = {"$map": {"input": {"$filter": {"input": OUTBOX, "cond": is_owed}}, "in": "$$this.id"}}
        gone = {"$concatArrays": [DELETED, chosen, {"$setDifference": [owed, chosen]}]}
        change = {
            "notifier.deleted": {"$slice": [gone, -max(self._limit, RECENT_LIMIT)]},
            "notifier.outbox": _without(is_owed, OUTBOX, "$notifier.outbox"),
            "notifications": _without(is_chosen, newest, "$notifications"),
        }
        is_shown: JSONObject = {"notifications": {"$elemMatch": {"id": {"$in": ids}}}}
        if self._slack and selection.field == "id" and selection.value:  # what the inbox does not show does not exist
            is_shown["$expr"] = has(self._limit, selection.value)
        filter_ = self._users.key(selection.user_id) | OURS | ONLY_OURS
        filter_["$or"] = [
            is_shown,
            {"notifier.outbox": {"$elemMatch": {"id": {"$in": ids}, "ids": {"$exists": False}}}},
        ]
        deletion = Write(filter_, [{"$set": change}, SET_DUE])

        async def attempt(n: int) -> bool:
            return await self._writes.update_one(deletion, attempt=n)

        is_deleted: bool = await self._users.persist(attempt) if ids else False
        if is_deleted:
            return True
        await self._users.must_admit(selection.user_id, ["notifications", "notifier"])
        return await self._was_deleted(selection)

    async def _ids(self, selection: Selection) -> list[str]:
        """Return the one id, or those of the selected that are in the inbox."""
        field, value = selection.field, {"$literal": selection.value}
        if field == "id" and selection.value:
            return [selection.value]
        is_string = {"$eq": [{"$type": "$$this.id"}, "string"]}
        matches = {"$and": [is_string, *([{"$eq": [f"$$this.{field}", value]}] if field else ())]}
        chosen = {"$filter": {"input": inbox(self._limit), "cond": matches}}
        user = await self._users.find_one(self._users.key(selection.user_id), {"chosen": chosen})
        return [item["id"] for item in user["chosen"]] if user else []

    async def _was_deleted(self, selection: Selection) -> bool:
        """Return whether the one selected is remembered: the reply to an earlier attempt may have been lost."""
        if selection.field != "id":
            return False
        deleted = self._users.key(selection.user_id) | {"notifier.deleted": selection.value}
        return await self._users.find_one(deleted, {"_id": 1}) is not None


def _without(chosen: JSONObject, array: JSONObject, stored: str) -> JSONObject:
    """Return the expression of an array without the chosen elements. Where there is no array, nothing changes."""
    return {"$cond": [{"$isArray": stored}, without(array, chosen), stored]}
