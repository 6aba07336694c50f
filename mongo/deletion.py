"""`/delete` and `/erase`.

Deleting removes notifications and the e-mails that tell only them, and remembers their ids. Erasing removes everything
the service holds of a user; the profile stays, because it is the team's.
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
    """Delete the selected; return whether there are any, or were until lately.

    They are selected once, by id, so that a repetition deletes nothing newer. Their ids are remembered, because a
    create whose reply was lost may be repeated afterwards. Hidden notifications (NOTIFICATIONS_SLACK) go too, or they
    would move up into the inbox.

    An owed e-mail is taken back up to the look before it is sent. If it has no notification in the inbox, its own id
    selects it.
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
    """Remove everything the service keeps in the user's document, if there is one. Raises `EmailUnderWay`."""
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
