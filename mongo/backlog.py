"""The e-mails owed to all users together: how many, why they wait, or died; discarding them, and making them due."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from mongo.dead_mail import DeadMail
from mongo.document import IS_DATE, OURS, OUTBOX, WAITING, WITHOUT_EMPTY, JSONObject, any_of, each, only
from mongo.errors import TooLarge, Unavailable
from mongo.outbox import Outbox
from mongo.owed import ERAS_END, FLUSHED, IS_EMAIL, IS_WAITING, NO_TOKEN, from_now, has_type, rewrite
from mongo.users import Documents

DEADLINE: Final = 60.0
"""Deadline of a query over all users, in seconds."""
WITHOUT_EMAILS: Final[list[JSONObject]] = [
    {"$unset": ["notifier.outbox", "notifier.waiting", "notifier.due"]},
    WITHOUT_EMPTY,
]
REASONS: Final = 10
"""How many reasons are told, the most frequent ones."""
CODE: Final = r"^[A-Za-z ]{1,20}: -?[0-9]{3}( [0-9]\.[0-9]{1,3}\.[0-9]{1,3})?"
"""The part of an error that many e-mails share: `RCPT: 550 5.1.1 user@host is unknown` without its words."""
REASON_LENGTH: Final = 100
"""Characters that are compared of an error without a code."""
PAGE: Final = 1000
"""Users whose e-mails are changed by one update."""
IS_LATER: Final = {"$and": [IS_EMAIL, {"$gt": ["$$this.next_at", "$$NOW"]}]}
IS_FREE: Final = {"$eq": ["$$this.token", NO_TOKEN]}


@dataclass(frozen=True, slots=True)
class Owed:
    """Counts of e-mails owed, due and leased, the age of the oldest, and when the next is due.

    `waiting` counts notifications that wait for their e-mail.
    """

    owed: int = 0
    due: int = 0
    leased: int = 0
    oldest_seconds: int | None = None
    next_attempt: datetime | None = None
    waiting: int = 0


async def owed(outbox: Outbox, deadline: float = DEADLINE) -> Owed:
    """Count over all users. Raises `Unavailable` while the index is missing."""
    if outbox.due.is_missing:
        raise Unavailable
    due, leased = {"$lte": ["$$this.next_at", "$$NOW"]}, {"$ne": ["$$this.token", NO_TOKEN]}
    later = only("$emails", {"$not": [{"$or": [due, leased]}]})
    pipeline: list[JSONObject] = [
        {"$match": {"notifier.due": {"$exists": True}}},
        {"$project": {"emails": only(OUTBOX, IS_EMAIL), "waiting": {"$size": only(WAITING, IS_WAITING)}}},
        {
            "$group": {
                "_id": None,
                "owed": {"$sum": {"$size": "$emails"}},
                "due": {"$sum": {"$size": only("$emails", due)}},
                "leased": {"$sum": {"$size": only("$emails", {"$and": [leased, {"$not": [due]}]})}},
                "oldest": {"$min": {"$min": "$emails.at"}},
                "next_attempt": {"$min": {"$min": each(later, "$$this.next_at")}},
                "waiting": {"$sum": "$waiting"},
            }
        },
        {"$set": {"oldest_seconds": {"$dateDiff": {"startDate": "$oldest", "endDate": "$$NOW", "unit": "second"}}}},
        {"$unset": ["_id", "oldest"]},
    ]
    totals = await outbox.users.aggregate(pipeline, deadline, outbox.due.hint)
    return Owed(**totals[0]) if totals else Owed()


async def discard_all_owed(outbox: Outbox) -> Owed:
    """Remove all e-mails owed, also those being sent and those that only wait; return the counts before."""
    before, users, due = await owed(outbox), outbox.users, {"notifier.due": {"$exists": True}, **OURS}
    while page := await users.find(due, {"_id": 1}, limit=PAGE, deadline=DEADLINE):
        await users.update_many({"_id": {"$in": [user["_id"] for user in page]}, **OURS}, WITHOUT_EMAILS)
    return before


async def errors_of_owed(users: Documents) -> Sequence[JSONObject]:
    return await _reasons(users, _of_owed(IS_EMAIL, "$$this.error"))


async def held(users: Documents) -> Sequence[JSONObject]:
    """Return the stops that e-mails wait for, such as `kind invoice`."""
    waits = {"$and": [IS_EMAIL, {"$gt": ["$$this.next_at", "$$NOW"]}]}
    stopped: JSONObject = {"$match": {"error": {"$regex": "^(line|kind|domain)"}}}
    return await _reasons(users, [*_of_owed(waits, "$$this.held"), stopped])


async def errors_of_dead(dead_mail: DeadMail) -> Sequence[JSONObject]:
    """Return why dead letters died, the most frequent reason first."""
    return await _reasons(dead_mail.letters, [{"$match": dead_mail.own}, {"$project": {"error": 1}}])


def _of_owed(condition: JSONObject, field: str) -> list[JSONObject]:
    """Return the stages that yield a field, as `error`, of the e-mails owed that meet a condition."""
    return [
        {"$match": {"notifier.due": {"$exists": True}}},
        {"$project": {"error": each(only(OUTBOX, condition), field)}},
        {"$unwind": "$error"},
    ]


async def _reasons(documents: Documents, stages: list[JSONObject]) -> Sequence[JSONObject]:
    """Return each `reason`, an error or the part of it that many share, with the `count` of e-mails that have it."""
    code = {"$getField": {"field": "match", "input": {"$regexFind": {"input": "$error", "regex": CODE}}}}
    pipeline: list[JSONObject] = [
        *stages,
        {"$match": {"error": {"$type": "string"}}},
        {"$group": {"_id": {"$ifNull": [code, {"$substrCP": ["$error", 0, REASON_LENGTH]}]}, "count": {"$sum": 1}}},
        {"$sort": {"count": -1, "_id": 1}},
        {"$limit": REASONS},
        {"$replaceWith": {"reason": "$_id", "count": "$count"}},
    ]
    return await documents.aggregate(pipeline, DEADLINE)


# --- due again --------------------------------------------------------------------------------------


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
    await _change(outbox, _having(OUTBOX, too_long), rewrite(too_long, {"next_at": from_now(lease)}))
    condition, change = outbox.windows.set_back(seconds)
    await _change(outbox, _having(WAITING, condition), change)


async def _make_due(outbox: Outbox, condition: JSONObject, change: JSONObject, key: JSONObject | None = None) -> int:
    """Make the e-mails due that meet a condition and are not leased; return how many users have any."""
    waits, due = {"$and": [IS_LATER, IS_FREE, condition]}, {"next_at": outbox.era}
    owed, changes = _having(OUTBOX, waits), (rewrite(waits, due | change), rewrite(waits, due))
    return await (_update(outbox, key | owed, *changes) if key else _change(outbox, owed, *changes))


def _having(array: JSONObject, condition: JSONObject) -> JSONObject:
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
            page = await users.find(rest, {"notifier.due": 1}, sort=["notifier.due"], limit=PAGE, hint=outbox.due.hint)
            if page:
                number += await _update(outbox, condition | {"_id": {"$in": [user["_id"] for user in page]}}, *changes)
            if len(page) < PAGE:
                break
            last = page[-1]["notifier"]["due"]
            seen = seen if after == {"$gte": last} else []
            seen += [user["_id"] for user in page if user["notifier"]["due"] == last]
            after = {"$gte": last}
    return number
