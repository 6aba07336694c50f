"""An operator's questions about all users: which e-mails are owed, which died and why, and on which MongoDB."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from config.address import is_address
from config.checks import value_at
from mongo.connection import Database
from mongo.dead_mail import DeadMail
from mongo.document import OURS, OUTBOX, WAITING, WITHOUT_EMPTY, JSONObject, each, only
from mongo.errors import Unavailable, persist
from mongo.outbox import Outbox
from mongo.owed import IS_EMAIL, IS_WAITING, NO_TOKEN
from mongo.users import REFUSING, Documents, Users, foreign_fields

DEADLINE: Final = 60.0
"""Deadline of a query over all users, in seconds."""
SAMPLE: Final = 1000
"""Users in a sample."""
DISCARDED_AT_ONCE: Final = 1000
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


@dataclass(frozen=True, slots=True)
class Reason:
    """An error, or the part of it that many share, and how many e-mails have it."""

    reason: str
    count: int


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
    while page := await users.find(due, {"_id": 1}, limit=DISCARDED_AT_ONCE, deadline=DEADLINE):
        await users.update_many({"_id": {"$in": [user["_id"] for user in page]}, **OURS}, WITHOUT_EMAILS)
    return before


async def sample(users: Users) -> Sequence[tuple[str, bool, bool]]:
    """Return for each user in a sample: the type of `_id`, whether there is an address, whether a field is foreign."""
    path = users.settings.email_field
    top = path.partition(".")[0]
    read = {"_id": {"$type": "$_id"}, "address": f"${top}", **REFUSING}
    rows = await users.aggregate([{"$sample": {"size": SAMPLE}}, {"$project": read}], DEADLINE)
    addresses = [value_at({top: row.get("address")}, path) for row in rows]
    return [(row["_id"], is_address(at), bool(foreign_fields(row))) for row, at in zip(rows, addresses, strict=True)]


async def errors_of_owed(users: Documents) -> Sequence[Reason]:
    return await _reasons(users, _of_owed(IS_EMAIL, "$$this.error"))


async def held(users: Documents) -> Sequence[Reason]:
    """Return the stops that e-mails wait for, such as `kind invoice`."""
    waits = {"$and": [IS_EMAIL, {"$gt": ["$$this.next_at", "$$NOW"]}]}
    stopped: JSONObject = {"$match": {"error": {"$regex": "^(line|kind|domain)"}}}
    return await _reasons(users, [*_of_owed(waits, "$$this.held"), stopped])


async def errors_of_dead(dead_mail: DeadMail) -> Sequence[Reason]:
    """Return why dead letters died, the most frequent reason first."""
    return await _reasons(dead_mail.letters, [{"$match": dead_mail.own}, {"$project": {"error": 1}}])


def _of_owed(condition: JSONObject, field: str) -> list[JSONObject]:
    """Return the stages that yield a field, as `error`, of the e-mails owed that meet a condition."""
    return [
        {"$match": {"notifier.due": {"$exists": True}}},
        {"$project": {"error": each(only(OUTBOX, condition), field)}},
        {"$unwind": "$error"},
    ]


async def _reasons(documents: Documents, stages: list[JSONObject]) -> Sequence[Reason]:
    code = {"$getField": {"field": "match", "input": {"$regexFind": {"input": "$error", "regex": CODE}}}}
    pipeline: list[JSONObject] = [
        *stages,
        {"$match": {"error": {"$type": "string"}}},
        {"$group": {"_id": {"$ifNull": [code, {"$substrCP": ["$error", 0, REASON_LENGTH]}]}, "count": {"$sum": 1}}},
        {"$sort": {"count": -1, "_id": 1}},
        {"$limit": REASONS},
    ]
    return [Reason(row["_id"], row["count"]) for row in await documents.aggregate(pipeline, DEADLINE)]


@dataclass(frozen=True, slots=True)
class Topology:
    """What kind of MongoDB this is, in words, and whether it has change streams."""

    words: str
    streams: bool


async def topology(database: Database) -> Topology:
    hello = await persist(lambda _: database.command("hello"), DEADLINE)
    if hello.get("msg") == "isdbgrid":
        return Topology("a sharded cluster", streams=True)
    if "setName" in hello:
        members = len(hello.get("hosts", [])) + len(hello.get("passives", []))
        return Topology(f"a replica set with {members} member{'s' if members != 1 else ''}", streams=True)
    return Topology("a standalone server", streams=False)
