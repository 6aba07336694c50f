"""Lets e-mails fall due that wait: when a stop is over, an operator says so, or MongoDB's clock was set back."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from mongo.document import IS_DATE, OURS, OUTBOX, WAITING, JSONObject, any_of
from mongo.errors import TooLarge
from mongo.outbox import Outbox
from mongo.owed import FLUSHED, IS_EMAIL, NO_TOKEN, from_now, has_type, rewrite

PAGE: Final = 1000
"""Users whose e-mails are changed by one update."""
IS_LATER: Final = {"$and": [IS_EMAIL, {"$gt": ["$$this.next_at", "$$NOW"]}]}
IS_FREE: Final = {"$eq": ["$$this.token", NO_TOKEN]}


async def lift(outbox: Outbox, group: str) -> None:
    await _let_fall_due(outbox, {"$eq": ["$$this.held", {"$literal": group}]}, {})


async def lift_tried(outbox: Outbox, since: datetime, key: str | None) -> None:
    """Let the e-mails fall due that were tried since a stop began; of one kind, if `key` is given."""
    of_key = [{"$eq": ["$$this.key", {"$literal": key}]}] if key else []
    tried = {"$and": [has_type("tried", "date"), {"$gte": ["$$this.tried", since]}, *of_key]}
    await _let_fall_due(outbox, tried, {})


async def flush(outbox: Outbox, user_id: str | None = None) -> int:
    """Let all e-mails fall due that nobody leases, or a user's; return of how many users."""
    key = outbox.users.key(user_id) if user_id else {}
    return await _let_fall_due(outbox, {}, {"held": FLUSHED}, key)


async def set_back(outbox: Outbox, seconds: float, lease: float) -> None:
    """Correct due times that were written while MongoDB's clock was ahead.

    A lease is cut to its length, and a window ends when it should. Waiting e-mails fall due at once: an early attempt
    does no harm. With `seconds` 0, nobody saw the clock being set back, and only e-mails last tried in the future are
    known to be affected.
    """
    is_future = {"$and": [has_type("tried", "date"), {"$gt": ["$$this.tried", "$$NOW"]}]}
    await _let_fall_due(outbox, {} if seconds else is_future, {})
    too_long = {"$and": [IS_LATER, {"$gt": ["$$this.next_at", from_now(lease)]}, {"$not": [IS_FREE]}]}
    await _change(outbox, _owed(OUTBOX, too_long), rewrite(too_long, {"next_at": from_now(lease)}))
    condition, change = outbox.windows.set_back(seconds)
    await _change(outbox, _owed(WAITING, condition), change)


async def _let_fall_due(
    outbox: Outbox, condition: JSONObject, change: JSONObject, key: JSONObject | None = None
) -> int:
    """Let the e-mails fall due that meet a condition and that nobody leases; return of how many users."""
    waits = {"$and": [IS_LATER, IS_FREE, condition]}
    due = {"next_at": outbox.era}
    return await _change(outbox, _owed(OUTBOX, waits, key), rewrite(waits, due | change), rewrite(waits, due))


def _owed(array: JSONObject, condition: JSONObject, key: JSONObject | None = None) -> JSONObject:
    """Return the condition of documents in whose array there are such elements."""
    has = {"$expr": any_of(array, condition)}
    return {**(key or {"notifier.due": IS_DATE}), **OURS, **has}


async def _change(outbox: Outbox, condition: JSONObject, *changes: list[dict[str, Any]]) -> int:
    """Change these documents, a page at a time, until none is left; return how many there were.

    If one of a page has no room for the first change, the whole page gets the last one.
    """
    number, users = 0, outbox.users
    while page := await users.find(condition, {"_id": 1}, limit=PAGE):
        ids = {"_id": {"$in": [user["_id"] for user in page]}, **OURS}
        try:
            await users.update_many(ids, changes[0])
        except TooLarge:
            await users.update_many(ids, changes[-1])
        number += len(page)
    return number
