"""Lets e-mails fall due that wait: when a stop is over, or when an operator says so."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from mongo.document import IS_DATE, OURS, OUTBOX, JSONObject
from mongo.errors import TooLarge
from mongo.outbox import Outbox
from mongo.owed import FLUSHED, IS_EMAIL, NO_TOKEN, has_type, rewrite

PAGE: Final = 1000
"""Users whose e-mails are changed by one update."""
WAITS: Final = {
    "$and": [IS_EMAIL, {"$eq": ["$$this.token", NO_TOKEN]}, {"$gt": ["$$this.next_at", "$$NOW"]}],
}


async def lift(outbox: Outbox, group: str) -> None:
    """Let the e-mails fall due that wait for a stop. Raises a `StoreError`."""
    await _let_fall_due(outbox, {"$eq": ["$$this.held", {"$literal": group}]}, {})


async def lift_tried(outbox: Outbox, since: datetime, key: str | None) -> None:
    """Let the e-mails fall due that were tried since a stop began; of one kind, if `key` is given.

    Raises a `StoreError`.
    """
    of_key = [{"$eq": ["$$this.key", {"$literal": key}]}] if key else []
    tried = {"$and": [has_type("tried", "date"), {"$gte": ["$$this.tried", since]}, *of_key]}
    await _let_fall_due(outbox, tried, {})


async def flush(outbox: Outbox, user_id: str | None = None) -> int:
    """Let all e-mails fall due that nobody leases, or a user's; return of how many users. Raises a `StoreError`."""
    key = outbox.users.key(user_id) if user_id else {}
    return await _let_fall_due(outbox, {}, {"held": FLUSHED}, key)


async def _let_fall_due(outbox: Outbox, chosen: JSONObject, change: JSONObject, key: JSONObject | None = None) -> int:
    """Let the chosen e-mails fall due, a page at a time."""
    number, users = 0, outbox.users
    condition = {"$and": [WAITS, chosen]}
    begin = key or {"notifier.due": IS_DATE}
    is_there = {"$expr": {"$anyElementTrue": {"$map": {"input": OUTBOX, "in": condition}}}}
    while page := await users.find({**begin, **OURS, **is_there}, {"_id": 1}, limit=PAGE):
        found = {"_id": {"$in": [user["_id"] for user in page]}, **OURS}
        try:
            await users.update_many(found, rewrite(condition, {"next_at": outbox.era, **change}))
        except TooLarge:  # because of one of them, in which nothing can be added
            await users.update_many(found, rewrite(condition, {"next_at": outbox.era}))
        number += len(page)
    return number
