"""What an operator asks about all users at once: what is owed, what died, and what kind of MongoDB this is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from config.address import is_address
from mongo.connection import Database
from mongo.dead_mail import DeadMail
from mongo.document import OURS, OUTBOX, WAITING, WITHOUT_EMPTY, JSONObject, value_at
from mongo.errors import persist
from mongo.owed import IS_EMAIL, IS_WAITING, NO_TOKEN
from mongo.users import REFUSING, Documents, Users, foreign_fields

DEADLINE: Final = 60.0
"""Seconds for a question about all users."""
SAMPLE: Final = 1000
"""Users that are looked at of all."""
DISCARDED_AT_ONCE: Final = 1000
WITHOUT_EMAILS: Final[list[JSONObject]] = [
    {"$unset": ["notifier.outbox", "notifier.waiting", "notifier.due"]},
    WITHOUT_EMPTY,
]
REASONS: Final = 10
"""Reasons that are told apart; the most frequent ones."""
CODE: Final = r"^[A-Za-z ]{1,20}: -?[0-9]{3}( [0-9]\.[0-9]{1,3}\.[0-9]{1,3})?"
"""The part of an error that many e-mails share: `RCPT: 550 5.1.1 user@host is unknown` without its words."""
REASON_LENGTH: Final = 100
"""Characters that are compared of an error without a code."""


@dataclass(frozen=True, slots=True)
class Owed:
    """The e-mails owed: how many, how many of these are due and how many leased, since when, and what is next.

    `waiting` is how many notifications wait for their e-mail.
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


async def owed(users: Documents) -> Owed:
    """Return what is owed to all users. Raises `Unavailable`."""
    due, leased = {"$lte": ["$$this.next_at", "$$NOW"]}, {"$ne": ["$$this.token", NO_TOKEN]}
    waiting = {"$not": [{"$or": [due, leased]}]}
    pipeline: list[JSONObject] = [
        {"$match": {"notifier.due": {"$exists": True}}},
        {"$project": {"ours": _filter(OUTBOX, IS_EMAIL), "windows": _filter(WAITING, IS_WAITING)}},
        {
            "$project": {
                "owed": {"$size": "$ours"},
                "due": {"$size": _filter("$ours", due)},
                "leased": {"$size": _filter("$ours", {"$and": [leased, {"$not": [due]}]})},
                "oldest": {"$min": "$ours.at"},
                "waiting": {"$size": "$windows"},
                "next": {"$min": {"$map": {"input": _filter("$ours", waiting), "in": "$$this.next_at"}}},
            }
        },
        {
            "$group": {
                "_id": None,
                **{name: {"$sum": f"${name}"} for name in ("owed", "due", "leased", "waiting")},
                **{name: {"$min": f"${name}"} for name in ("oldest", "next")},
            }
        },
        {"$set": {"age": {"$dateDiff": {"startDate": "$oldest", "endDate": "$$NOW", "unit": "second"}}}},
    ]
    found = await users.aggregate(pipeline, DEADLINE)
    if not found:
        return Owed()
    (row,) = found
    age = None if row["age"] is None else max(0, row["age"])
    return Owed(row["owed"], row["due"], row["leased"], age, row["next"], row["waiting"])


async def discard_all_owed(users: Documents) -> Owed:
    """Remove the e-mails that users are owed, those that are being sent or only wait, too; return what there was.

    Raises `Conflict` or `Unavailable`.
    """
    before, due = await owed(users), {"notifier.due": {"$exists": True}, **OURS}
    while found := await users.find(due, {"_id": 1}, limit=DISCARDED_AT_ONCE, deadline=DEADLINE):
        await users.update_many({"_id": {"$in": [user["_id"] for user in found]}, **OURS}, WITHOUT_EMAILS)
    return before


async def sample(users: Users) -> Sequence[tuple[str, bool, bool]]:
    """Look at some users. Raises `Unavailable`.

    Return for each the type of `_id`, whether there is an address, and whether another program uses a name of ours.
    """
    path = users.shape.email_field
    top = path.partition(".")[0]
    read = {"_id": {"$type": "$_id"}, "address": f"${top}", **REFUSING}
    rows = await users.aggregate([{"$sample": {"size": SAMPLE}}, {"$project": read}], DEADLINE)
    addresses = [value_at({top: row.get("address")}, path) for row in rows]
    return [(row["_id"], is_address(at), bool(foreign_fields(row))) for row, at in zip(rows, addresses, strict=True)]


async def errors_of_owed(users: Documents) -> Sequence[Reason]:
    """Return the last errors of the e-mails owed, the most frequent first. Raises `Unavailable`."""
    each: list[JSONObject] = [
        {"$match": {"notifier.due": {"$exists": True}}},
        {"$project": {"error": {"$map": {"input": _filter(OUTBOX, IS_EMAIL), "in": "$$this.error"}}}},
        {"$unwind": "$error"},
    ]
    return await _reasons(users, each)


async def held(users: Documents) -> Sequence[Reason]:
    """Return what has stopped so that e-mails wait, such as `kind invoice`. Raises `Unavailable`."""
    waiting = _filter(OUTBOX, {"$and": [IS_EMAIL, {"$gt": ["$$this.next_at", "$$NOW"]}]})
    each: list[JSONObject] = [
        {"$match": {"notifier.due": {"$exists": True}}},
        {"$project": {"error": {"$map": {"input": waiting, "in": "$$this.held"}}}},
        {"$unwind": "$error"},
        {"$match": {"error": {"$regex": "^(line|kind|domain)"}}},
    ]
    return await _reasons(users, each)


async def errors_of_dead(dead_mail: DeadMail) -> Sequence[Reason]:
    """Return why the dead letters died, the most frequent reason first. Raises `Unavailable`."""
    return await _reasons(dead_mail.letters, [{"$match": dead_mail.own}, {"$project": {"error": 1}}])


async def _reasons(documents: Documents, each: list[JSONObject]) -> Sequence[Reason]:
    code = {"$getField": {"field": "match", "input": {"$regexFind": {"input": "$error", "regex": CODE}}}}
    pipeline: list[JSONObject] = [
        *each,
        {"$match": {"error": {"$type": "string"}}},
        {"$group": {"_id": {"$ifNull": [code, {"$substrCP": ["$error", 0, REASON_LENGTH]}]}, "count": {"$sum": 1}}},
        {"$sort": {"count": -1, "_id": 1}},
        {"$limit": REASONS},
    ]
    return [Reason(row["_id"], row["count"]) for row in await documents.aggregate(pipeline, DEADLINE)]


def _filter(array: Any, condition: JSONObject) -> JSONObject:
    return {"$filter": {"input": array, "cond": condition}}


@dataclass(frozen=True, slots=True)
class Topology:
    """What kind of MongoDB this is, in words, and whether it has change streams."""

    words: str
    streams: bool


async def topology(database: Database) -> Topology:
    """Ask what kind of MongoDB this is. Raises `Unavailable`."""
    hello = await persist(lambda _: database.command("hello"), DEADLINE)
    if hello.get("msg") == "isdbgrid":
        return Topology("a sharded cluster", streams=True)
    if "setName" in hello:
        members = len(hello.get("hosts", [])) + len(hello.get("passives", []))
        return Topology(f"a replica set with {members} member{'s' if members != 1 else ''}", streams=True)
    return Topology("a standalone server", streams=False)
