"""Lets e-mails fall due that wait: when a stop is over, an operator says so, or MongoDB's clock was set back."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from mongo.document import IS_DATE, OURS, OUTBOX, WAITING, JSONObject, any_of
from mongo.errors import TooLarge
from mongo.outbox import Outbox
from mongo.owed import ERAS_END, FLUSHED, IS_EMAIL, NO_TOKEN, from_now, has_type, rewrite

PAGE: Final = 1000
"""Users whose e-mails are changed by one update."""
IS_LATER: Final = {"$and": [IS_EMAIL, {"$gt": ["$$this.next_at", "$$NOW"]}]}
IS_FREE: Final = {"$eq": ["$$this.token", NO_TOKEN]}


async def lift(outbox: Outbox, group: str, since: datetime | None = None, key: str | None = None) -> None:
    """Let the e-mails fall due that wait for a stop, and those that were tried since then; of one kind, if `key`.

    Raises a `StoreError`.
    """
    chosen: list[JSONObject] = [{"$eq": ["$$this.held", {"$literal": group}]}]
    if since:
        of_key = [{"$eq": ["$$this.key", {"$literal": key}]}] if key else []
        chosen.append({"$and": [has_type("tried", "date"), {"$gte": ["$$this.tried", since]}, *of_key]})
    await _let_fall_due(outbox, {"$or": chosen}, {})


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


async def _let_fall_due(outbox: Outbox, chosen: JSONObject, change: JSONObject, key: JSONObject | None = None) -> int:
    """Let the chosen e-mails that nobody leases fall due; return of how many users."""
    waits = {"$and": [IS_LATER, IS_FREE, chosen]}
    due = {"next_at": outbox.era}
    changes = rewrite(waits, due | change), rewrite(waits, due)
    condition = _owed(OUTBOX, waits)
    return await (_update(outbox, key | condition, *changes) if key else _change(outbox, condition, *changes))


def _owed(array: JSONObject, condition: JSONObject) -> JSONObject:
    """Return the condition of documents in whose array there are such elements."""
    return {**OURS, "$expr": any_of(array, condition)}


async def _update(outbox: Outbox, condition: JSONObject, *changes: list[dict[str, Any]]) -> int:
    """Change these documents; return how many. Where one has no room for the first change, all get the last."""
    try:
        return await outbox.users.update_many(condition, changes[0])
    except TooLarge:
        return await outbox.users.update_many(condition, changes[-1])


async def _change(outbox: Outbox, condition: JSONObject, *changes: list[dict[str, Any]]) -> int:
    """Change the documents of the condition, a page at a time; return how many they were.

    Pages follow the index, and what is changed moves to an earlier one, so each document is looked at once. Those of
    which nothing is new come first.
    """
    users, number = outbox.users, 0
    for begin, end in ((ERAS_END, {}), (None, {"$lt": ERAS_END})):
        after: JSONObject = {"$gte": begin} if begin else {}
        seen: list[object] = []
        while True:
            rest = {"notifier.due": IS_DATE | after | end, "_id": {"$nin": seen}}
            page = await users.find(rest, {"notifier.due": 1}, sort="notifier.due", limit=PAGE, hint=outbox.due.hint)
            if page:
                number += await _update(outbox, condition | {"_id": {"$in": [user["_id"] for user in page]}}, *changes)
            if len(page) < PAGE:
                break
            last = page[-1]["notifier"]["due"]
            seen = [
                *(seen if after == {"$gte": last} else ()),
                *(u["_id"] for u in page if u["notifier"]["due"] == last),
            ]
            after = {"$gte": last}
    return number
