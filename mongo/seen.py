"""What `/seen` does: up to the newest notification, the user has seen the inbox, read or not."""

from __future__ import annotations

from typing import Final

from bson import Int64

from mongo.document import OURS, JSONObject, inbox
from mongo.statement import Write
from mongo.users import Users
from mongo.writes import Writes

FIELD: Final = "notifier.seen_at"


def unseen(limit: int) -> JSONObject:
    """Return the expression of how many unread notifications have come since, absent if the user has seen nothing."""
    is_later = {"$and": [{"$isNumber": "$$this.timestamp"}, {"$gt": ["$$this.timestamp", f"${FIELD}"]}]}
    later = {"$filter": {"input": inbox(limit), "cond": {"$and": [{"$eq": ["$$this.is_new", True]}, is_later]}}}
    return {"$cond": [{"$eq": [{"$type": f"${FIELD}"}, "long"]}, {"$size": later}, "$$REMOVE"]}


class Seen:
    """Remembers for each user the `timestamp` of the newest notification that was seen. No clock is asked."""

    def __init__(self, users: Users, writes: Writes, limit: int) -> None:
        self._users = users
        self._writes = writes
        number = {"$cond": [{"$isNumber": "$$this.timestamp"}, "$$this.timestamp", None]}
        newest = {"$max": {"$map": {"input": inbox(limit), "in": number}}}
        long = {"$convert": {"input": newest, "to": "long", "onError": None}}
        known = {"$convert": {"input": f"${FIELD}", "to": "long", "onError": Int64(0), "onNull": Int64(0)}}
        self._change = [{"$set": {FIELD: {"$ifNull": [long, known]}}}]

    async def mark(self, user_id: str) -> None:
        """Note that all there is now has been seen. An unknown user has nothing to see.

        Raises `Conflict`, `TooLarge` or `Unavailable`.
        """
        seen = Write(self._users.key(user_id) | OURS, self._change)
        if not await self._users.persist(lambda n: self._writes.update_one(seen, attempt=n)):
            await self._users.must_admit(user_id, ["notifier"])
