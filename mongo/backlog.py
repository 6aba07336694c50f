"""The e-mails owed to all users together: how many, why they wait, or died; discarding them, and making them due."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from mongo.dead_mail import DeadMail
from mongo.document import IS_DATE, OURS, WITHOUT_EMPTY, JSONObject
from mongo.errors import TooLarge, Unavailable
from mongo.expressions import OUTBOX, WAITING, any_of, each, only, without
from mongo.outbox import Outbox
from mongo.owed import ERAS_END, FLUSHED, IS_EMAIL, IS_FREE, IS_WAITING, from_now, has_type, rewrite
from mongo.users import Documents

DEADLINE: Final = 60.0  # seconds for a query over all users
PAGE: Final = 1000  # users whose e-mails are changed by one update
REASONS: Final = 10  # most reasons that are reported: the most frequent ones
REASON_LENGTH: Final = 100  # characters by which errors without a code are grouped
CODE: Final = r"^[A-Za-z ]{1,20}: -?[0-9]{3}( [0-9]\.[0-9]{1,3}\.[0-9]{1,3})?"  # an error without its words
IS_OWED: Final = {"notifier.due": {"$exists": True}}
IS_LATER: Final = {"$and": [IS_EMAIL, {"$gt": ["$$this.next_at", "$$NOW"]}]}


@dataclass(frozen=True, slots=True)
class Owed:
    """Counts of e-mails owed, due and leased, the age of the oldest, and when the next is due."""

    owed: int = 0
    due: int = 0
    leased: int = 0
    oldest_seconds: int | None = None
    next_attempt: datetime | None = None
    waiting: int = 0  # notifications that wait for their e-mail


async def owed(outbox: Outbox, deadline: float = DEADLINE) -> Owed:
    """Count over all users. Raises `Unavailable` while the index is missing."""
    if outbox.due.is_missing:
        raise Unavailable
    due, later = (only("$emails", {operator: ["$$this.next_at", "$$NOW"]}) for operator in ("$lte", "$gt"))
    pipeline: list[JSONObject] = [
        {"$match": IS_OWED},
        {"$project": {"emails": only(OUTBOX, IS_EMAIL), "waiting": {"$size": only(WAITING, IS_WAITING)}}},
        {
            "$group": {
                "_id": None,
                "owed": {"$sum": {"$size": "$emails"}},
                "due": {"$sum": {"$size": due}},
                "leased": {"$sum": {"$size": without(later, IS_FREE)}},
                "oldest": {"$min": {"$min": "$emails.at"}},
                "next_attempt": {"$min": {"$min": each(only(later, IS_FREE), "$$this.next_at")}},
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
    before, users = await owed(outbox), outbox.users
    change = [{"$unset": ["notifier.outbox", "notifier.waiting", "notifier.due"]}, WITHOUT_EMPTY]
    while page := await users.find(IS_OWED | OURS, {"_id": 1}, limit=PAGE, deadline=DEADLINE):
        await users.update_many({"_id": {"$in": [user["_id"] for user in page]}, **OURS}, change)
    return before


async def reasons(users: Documents, dead_mail: DeadMail) -> Mapping[str, Sequence[JSONObject]]:
    """Return the last errors of e-mails owed, the stops they wait for, such as `kind invoice`, and why others died."""
    stopped: JSONObject = {"$match": {"error": {"$regex": "^(line|kind|domain)"}}}
    return {
        "errors": await _reasons(users, _of_owed(IS_EMAIL, "$$this.error")),
        "held": await _reasons(users, [*_of_owed(IS_LATER, "$$this.held"), stopped]),
        "dead": await _reasons(dead_mail.letters, [{"$match": dead_mail.own}, {"$project": {"error": 1}}]),
    }


def _of_owed(condition: JSONObject, field: str) -> list[JSONObject]:
    """Return the stages that yield a field, as `error`, of the e-mails owed that meet a condition."""
    errors = {"error": each(only(OUTBOX, condition), field)}
    return [{"$match": IS_OWED}, {"$project": errors}, {"$unwind": "$error"}]


async def _reasons(documents: Documents, stages: list[JSONObject]) -> Sequence[JSONObject]:
    """Return each `reason`, an error or its code, with the `count` of e-mails that have it."""
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


async def lift(outbox: Outbox, group: str, since: datetime | None = None, key: str | None = None) -> None:
    """Make the e-mails due that wait for a stop, and those tried since then, of one kind if `key` names it."""
    conditions: list[JSONObject] = [{"$eq": ["$$this.held", {"$literal": group}]}]
    if since:
        of_key = [{"$eq": ["$$this.key", {"$literal": key}]}] if key else []
        conditions.append({"$and": [has_type("tried", "date"), {"$gte": ["$$this.tried", since]}, *of_key]})
    await _make_due(outbox, {"$or": conditions})


async def flush(outbox: Outbox, user_id: str | None = None) -> int:
    """Make e-mails due, of one user or all, that are not leased; return how many users had any."""
    try:
        return await _make_due(outbox, {}, user_id, held=FLUSHED)
    except TooLarge:  # a document has no room for that
        return await _make_due(outbox, {}, user_id)


async def set_back(outbox: Outbox, seconds: float) -> None:
    """Correct due times that were written while MongoDB's clock was ahead by `seconds`.

    Waiting e-mails become due at once, as an early attempt does no harm. If `seconds` is 0, nobody saw the clock being
    set back, and only e-mails that were last tried in the future are known to be affected.
    """
    is_future = {"$and": [has_type("tried", "date"), {"$gt": ["$$this.tried", "$$NOW"]}]}
    await _make_due(outbox, {} if seconds else is_future)
    latest = from_now(outbox.users.settings.mail_lease_seconds)
    too_long = {"$and": [IS_LATER, {"$gt": ["$$this.next_at", latest]}, {"$not": [IS_FREE]}]}
    await _change(outbox, any_of(OUTBOX, too_long), rewrite(too_long, {"next_at": latest}))
    condition, change = outbox.windows.set_back(seconds)
    await _change(outbox, any_of(WAITING, condition), change)


async def _make_due(outbox: Outbox, condition: JSONObject, user_id: str | None = None, **changes: str) -> int:
    """Make the e-mails due that meet a condition and are not leased; return how many users have any."""
    waits = {"$and": [IS_LATER, IS_FREE, condition]}
    change = rewrite(waits, {"next_at": outbox.era, **changes})
    if user_id:
        has_any = {**outbox.users.key(user_id), **OURS, "$expr": any_of(OUTBOX, waits)}
        return await outbox.users.update_many(has_any, change)
    return await _change(outbox, any_of(OUTBOX, waits), change)


async def _change(outbox: Outbox, condition: JSONObject, change: list[JSONObject]) -> int:
    """Change the documents that meet the condition, a page at a time; return how many there are.

    Pages follow the index, and a changed document moves to an earlier page, so each is read once.
    """
    users, number = outbox.users, 0
    for bound in ({"$gte": ERAS_END}, {"$lt": ERAS_END}):  # what is due again comes first
        due: JSONObject = bound
        seen: list[object] = []
        while True:
            rest = {"notifier.due": IS_DATE | due, "_id": {"$nin": seen}}
            page = await users.find(rest, {"notifier.due": 1}, sort=["notifier.due"], limit=PAGE, hint=outbox.due.hint)
            if page:
                ids = {"_id": {"$in": [user["_id"] for user in page]}}
                number += await users.update_many({**ids, **OURS, "$expr": condition}, change)
            if len(page) < PAGE:
                break
            last = page[-1]["notifier"]["due"]
            seen = seen if due.get("$gte") == last else []
            seen += [user["_id"] for user in page if user["notifier"]["due"] == last]
            due = bound | {"$gte": last}
    return number
