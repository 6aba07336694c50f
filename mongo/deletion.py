"""What `/delete` and `/erase` do.

Deleting removes the selected notifications and the e-mails about them, and remembers their ids. Erasing removes all
that the service holds of a user; the profile, which is the team's, stays.
"""

from __future__ import annotations

from typing import Final

from mongo.document import (
    DELETED,
    ONLY_OURS,
    OURS,
    OUTBOX,
    RECENT_LIMIT,
    SIMPLE,
    WITHOUT_EMPTY,
    WRITTEN,
    JSONObject,
    absent_or_array,
    any_of,
    each,
    only,
    without,
)
from mongo.errors import Changed, EmailUnderWay
from mongo.lanes import Write
from mongo.owed import IS_EMAIL, NO_TOKEN, SET_DUE
from mongo.requests import Selection
from mongo.users import Users

IS_LEASED: Final = {
    "$and": [IS_EMAIL, {"$ne": ["$$this.token", NO_TOKEN]}, {"$gt": ["$$this.next_at", "$$NOW"]}],
}
NONE_LEASED: Final = {"$expr": {"$not": [any_of(OUTBOX, IS_LEASED)]}}
WITHOUT_OURS: Final[list[JSONObject]] = [{"$unset": WRITTEN}, WITHOUT_EMPTY]
"""Names in `notifier` that this version does not know stay."""


async def delete(users: Users, selection: Selection) -> bool:
    """Delete the selected; return whether there are, or lately were, any.

    They are chosen once, by their ids, so that a repetition deletes nothing that came meanwhile. The ids are
    remembered, as many as an inbox holds: a create whose reply was lost may be repeated afterwards. What the inbox no
    longer showed goes too, as else it would move up into it.

    An e-mail is taken back until the look before it is sent, which finds it gone. One that is owed alone, or that the
    inbox no longer shows, can be selected by its id.
    """
    ids = await _ids(users, selection)
    newest, is_selected = users.inbox, {"$in": ["$$this.id", {"$literal": ids}]}
    selected = each(only(newest, is_selected), "$$this.id")
    is_owed = {"$and": [IS_EMAIL, is_selected, {"$eq": [{"$type": "$$this.ids"}, "missing"]}]}
    owed = each(only(OUTBOX, is_owed), "$$this.id")
    gone = {"$concatArrays": [DELETED, selected, {"$setDifference": [owed, selected]}]}
    change = {
        "notifier.deleted": {"$slice": [gone, -max(users.limit, RECENT_LIMIT)]},
        "notifier.outbox": _without(is_owed, OUTBOX, "$notifier.outbox"),
        "notifications": _without(is_selected, newest, "$notifications"),
    }
    is_shown = {"notifications": {"$elemMatch": {"id": {"$in": ids}}}, **users.shown(selection)}
    filter_ = users.key(selection.user_id) | OURS | ONLY_OURS
    filter_["$or"] = [
        is_shown,
        {"notifier.outbox": {"$elemMatch": {"id": {"$in": ids}, "ids": {"$exists": False}}}},
    ]
    deletion = Write(filter_, [{"$set": change}, SET_DUE])

    is_deleted: bool = await users.persist(lambda n: users.writes.make(deletion, attempt=n)) if ids else False
    if is_deleted:
        return True
    await users.must_admit(selection.user_id, ["notifications", "notifier"])
    if selection.field != "id":
        return False
    deleted = users.key(selection.user_id) | {"notifier.deleted": selection.value}
    return await users.find_one(deleted, {"_id": 1}) is not None  # the reply to an earlier attempt may have been lost


async def _ids(users: Users, selection: Selection) -> list[str]:
    """Return the one id, or those of the selected that are in the inbox."""
    field, value = selection.field, {"$literal": selection.value}
    if field == "id" and selection.value:
        return [selection.value]
    is_string = {"$eq": [{"$type": "$$this.id"}, "string"]}
    matches = {"$and": [is_string, *([{"$eq": [f"$$this.{field}", value]}] if field else ())]}
    selected = only(users.inbox, matches)
    user = await users.find_one(users.key(selection.user_id), {"selected": selected})
    return [item["id"] for item in user["selected"]] if user else []


def _without(condition: JSONObject, array: JSONObject, stored: str) -> JSONObject:
    """Return the expression of an array without such elements. Where there is no array, nothing changes."""
    return {"$cond": [{"$isArray": stored}, without(array, condition), stored]}


async def erase(users: Users, user_id: str) -> None:
    """Remove what the user's document holds. An unknown user has nothing.

    Raises `EmailUnderWay`.
    """
    key = users.key(user_id)
    erasable = {**key, **OURS, **absent_or_array("notifications"), **ONLY_OURS, **NONE_LEASED}

    async def attempt(_: int) -> None:
        if (await users.collection.update_one(erasable, WITHOUT_OURS, collation=SIMPLE)).matched_count:
            return
        if not await users.collection.find_one(key, {"_id": 1}, collation=SIMPLE):
            return
        await users.must_admit(user_id, ["notifications", "notifier"])
        if not await users.collection.find_one({**key, **NONE_LEASED}, {"_id": 1}, collation=SIMPLE):
            raise EmailUnderWay
        raise Changed

    await users.persist(attempt)
