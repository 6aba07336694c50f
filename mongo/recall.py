"""Lets e-mails fall due that wait: when a stop is over, or when an operator says so."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from mongo.document import IS_DATE, OURS, OUTBOX, JSONObject
from mongo.errors import TooLarge
from mongo.outbox import Outbox
from mongo.owed import ERAS_END, FLUSHED, IS_EMAIL, NO_TOKEN, has_type, rewrite

PAGE: Final = 1000
"""Users whose e-mails are changed by one update."""
WAITS: Final = {
    "$and": [IS_EMAIL, {"$eq": ["$$this.token", NO_TOKEN]}, {"$gt": ["$$this.next_at", "$$NOW"]}],
}


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
    """Let all e-mails fall due that nobody leases, or a user's; return of how many users. Raises a `StoreError`."""
    key = outbox.users.key(user_id) if user_id else {}
    return await _let_fall_due(outbox, {}, {"held": FLUSHED}, key)


async def _let_fall_due(outbox: Outbox, chosen: JSONObject, change: JSONObject, key: JSONObject | None = None) -> int:
    """Let the chosen e-mails fall due; return of how many users."""
    condition = {"$and": [WAITS, chosen]}
    is_there = {"$expr": {"$anyElementTrue": {"$map": {"input": OUTBOX, "in": condition}}}}
    due = {"next_at": outbox.era}
    changes = rewrite(condition, due | change), rewrite(condition, due)
    if key:
        return await outbox.users.update_many({**key, **OURS, **is_there}, changes[0])
    return await _change(outbox, OURS | is_there, *changes)


async def _change(outbox: Outbox, condition: JSONObject, *changes: list[dict[str, Any]]) -> int:
    """Change the documents of the condition, a page at a time; return how many they were.

    Pages follow the index, and what is changed moves to an earlier one, so each document is looked at once. Those of
    which nothing is new come first. Where one of a page has no room for the first change, the page has the last one.
    """
    users, number = outbox.users, 0
    for begin, end in ((ERAS_END, {}), (None, {"$lt": ERAS_END})):
        after: JSONObject = {"$gte": begin} if begin else {}
        seen: list[object] = []
        while True:
            rest = {"notifier.due": IS_DATE | after | end, "_id": {"$nin": seen}}
            page = await users.find(rest, {"notifier.due": 1}, sort="notifier.due", limit=PAGE, hint=outbox.due.hint)
            chosen = condition | {"_id": {"$in": [user["_id"] for user in page]}}
            try:
                number += await users.update_many(chosen, changes[0])
            except TooLarge:
                number += await users.update_many(chosen, changes[-1])
            if len(page) < PAGE:
                break
            last = page[-1]["notifier"]["due"]
            seen = [
                *(seen if after == {"$gte": last} else ()),
                *(u["_id"] for u in page if u["notifier"]["due"] == last),
            ]
            after = {"$gte": last}
    return number
