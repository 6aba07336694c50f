"""Erasing a user: everything that the service holds goes, and the profile, which is the team's, stays."""

from __future__ import annotations

from typing import Final

from mongo.document import ONLY_OURS, OURS, OUTBOX, SIMPLE, WITHOUT_EMPTY, WRITTEN, JSONObject
from mongo.errors import Changed, EmailUnderWay
from mongo.owed import IS_EMAIL, NO_TOKEN
from mongo.users import Users

IS_LEASED: Final = {
    "$and": [IS_EMAIL, {"$ne": ["$$this.token", NO_TOKEN]}, {"$gt": ["$$this.next_at", "$$NOW"]}],
}
NONE_LEASED: Final = {"$expr": {"$not": [{"$anyElementTrue": {"$map": {"input": OUTBOX, "in": IS_LEASED}}}]}}
IS_ARRAY: Final = {"$or": [{"notifications": {"$exists": False}}, {"notifications": {"$type": "array"}}]}
WITHOUT_OURS: Final[list[JSONObject]] = [{"$unset": WRITTEN}, WITHOUT_EMPTY]
"""Names in `notifier` that this version does not know stay."""


async def erase(users: Users, user_id: str) -> None:
    """Remove what the user's document holds. An unknown user has nothing.

    Raises `EmailUnderWay`, `Conflict` or `Unavailable`.
    """
    key = users.key(user_id)
    erasable = {**key, **OURS, **IS_ARRAY, **ONLY_OURS, **NONE_LEASED}

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
