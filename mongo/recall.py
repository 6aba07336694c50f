"""Makes waiting e-mails due: when a stop is over, an operator asks for it, or MongoDB's clock was set back."""

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
    """Make the e-mails due that wait for a stop, and with `since` those that were tried since then.

    The latter are of one kind, if `key` names it. Raises a `StoreError`.
    """
    conditions: list[JSONObject] = [{"$eq": ["$$this.held", {"$literal": group}]}]
    if since:
        of_key = [{"$eq": ["$$this.key", {"$literal": key}]}] if key else []
        conditions.append({"$and": [has_type("tried", "date"), {"$gte": ["$$this.tried", since]}, *of_key]})
    await _make_due(outbox, {"$or": conditions}, {})


async def flush(outbox: Outbox, user_id: str | None = None) -> int:
    """Make all e-mails due that are not leased, or those of one user; return how many users have any."""
    key = outbox.users.key(user_id) if user_id else {}
    return await _make_due(outbox, {}, {"held": FLUSHED}, key)


async def set_back(outbox: Outbox, seconds: float, lease: float) -> None:
    """Correct due times that were written while MongoDB's clock was ahead.

    A lease is cut to its length, and a window ends when it should. Waiting e-mails become due at once, as an early
    attempt does no harm. If `seconds` is 0, nobody saw the clock being set back, and only e-mails that were last tried
    in the future are known to be affected.
    """
    is_future = {"$and": [has_type("tried", "date"), {"$gt": ["$$this.tried", "$$NOW"]}]}
    await _make_due(outbox, {} if seconds else is_future, {})
    too_long = {"$and": [IS_LATER, {"$gt": ["$$this.next_at", from_now(lease)]}, {"$not": [IS_FREE]}]}
    await _change(outbox, _owed(OUTBOX, too_long), rewrite(too_long, {"next_at": from_now(lease)}))
    condition, change = outbox.windows.set_back(seconds)
    await _change(outbox, _owed(WAITING, condition), change)


async def _make_due(outbox: Outbox, condition: JSONObject, change: JSONObject, key: JSONObject | None = None) -> int:
    """Make the e-mails due that meet a condition and are not leased; return how many users have any."""
    waits, due = {"$and": [IS_LATER, IS_FREE, condition]}, {"next_at": outbox.era}
    owed, changes = _owed(OUTBOX, waits), (rewrite(waits, due | change), rewrite(waits, due))
    return await (_update(outbox, key | owed, *changes) if key else _change(outbox, owed, *changes))


def _owed(array: JSONObject, condition: JSONObject) -> JSONObject:
    """Return the condition of documents whose array has such elements."""
    return {**OURS, "$expr": any_of(array, condition)}


async def _update(outbox: Outbox, condition: JSONObject, *changes: list[dict[str, Any]]) -> int:
    """Change these documents; return how many there are. If one has no room for the first change, all get the last."""
    try:
        return await outbox.users.update_many(condition, changes[0])
    except TooLarge:
        return await outbox.users.update_many(condition, changes[-1])


async def _change(outbox: Outbox, condition: JSONObject, *changes: list[dict[str, Any]]) -> int:
    """Change the documents that meet a condition, a page at a time; return how many there are.

    Pages follow the index, and a changed document moves to an earlier page, so each is read once. Documents to which
    nothing new is owed come first.
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
            seen = seen if after == {"$gte": last} else []
            seen += [user["_id"] for user in page if user["notifier"]["due"] == last]
            after = {"$gte": last}
    return number
