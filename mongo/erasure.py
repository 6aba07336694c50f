"""Erasing a user: everything that the service holds goes, and the profile, which is the team's, stays."""

from __future__ import annotations

from typing import Final

from mongo.dead_mail import DeadMail
from mongo.document import SIMPLE, WRITTEN, must_be_ours, only_ours
from mongo.errors import Changed, EmailUnderWay, persist
from mongo.outbox import OUTBOX, Outbox
from mongo.owed import IS_EMAIL, NO_TOKEN

IS_LEASED: Final = {
    "$and": [IS_EMAIL, {"$ne": ["$$this.token", NO_TOKEN]}, {"$gt": ["$$this.next_at", "$$NOW"]}],
}
NONE_LEASED: Final = {"$not": [{"$anyElementTrue": {"$map": {"input": OUTBOX, "in": IS_LEASED}}}]}


async def erase(outbox: Outbox, dead_mail: DeadMail, user_id: str) -> None:
    """Remove what the service holds of a user, dead letters included. An unknown user has nothing but these.

    A crash between the two steps leaves dead letters, and no answer: the caller asks again.

    Raises `EmailUnderWay`, `Conflict` or `Unavailable`.
    """
    users, user = outbox.users, {"_id": outbox.shape.id_type.to_bson(user_id)}
    ours = [condition for field in WRITTEN for condition in only_ours(field)]
    erasable = {**user, "$and": [*ours, {"$expr": NONE_LEASED}]}

    async def attempt() -> None:
        result = await users.update_one(erasable, [{"$unset": list(WRITTEN)}], collation=SIMPLE)
        if result.matched_count or not await users.find_one(user, {"_id": 1}, collation=SIMPLE):
            return
        await must_be_ours(users, user, WRITTEN)
        if await users.find_one({**user, "$nor": [{"$expr": NONE_LEASED}]}, {"_id": 1}, collation=SIMPLE):
            raise EmailUnderWay
        raise Changed

    await persist(attempt)
    await dead_mail.discard_of_user(user_id)
