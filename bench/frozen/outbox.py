"""The e-mails owed: claim some of them, and remove each when it is sent."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from bson import ObjectId
from motor.motor_asyncio import AsyncIOMotorCollection

from bench.frozen.schemas import JSON

Collection = AsyncIOMotorCollection[JSON]

CLAIM_WINDOW: Final = 32
LEASE_SECONDS: Final = 30.0
SIMPLE: Final = {"locale": "simple"}


@dataclass(frozen=True, slots=True)
class Email:
    """An e-mail that is owed, leased by `token`."""

    document_id: object
    id: str
    key: str
    at: datetime
    token: str
    address: str


def _has_type(name: str, *types: str) -> JSON:
    return {"$in": [{"$type": f"$$this.{name}"}, list(types)]}


IS_EMAIL: Final = {
    "$and": [
        _has_type("id", "string"),
        _has_type("key", "string"),
        _has_type("token", "string"),
        _has_type("at", "date"),
        _has_type("next_at", "date"),
        _has_type("tries", "int", "long", "double"),
        {"$gte": ["$$this.at", datetime(1970, 1, 1, tzinfo=UTC)]},
        {"$lt": ["$$this.at", datetime(9999, 1, 1, tzinfo=UTC)]},
    ]
}
IS_DUE: Final = {"$and": [IS_EMAIL, {"$lte": ["$$this.next_at", "$$NOW"]}]}
OUTBOX: Final = {"$cond": [{"$isArray": "$outbox"}, "$outbox", []]}
HAS_DUE_EMAIL: Final = {
    "mail_due": {"$type": "date", "$not": {"$type": "array"}},
    "$expr": {
        "$and": [
            {"$lte": ["$mail_due", "$$NOW"]},
            {"$anyElementTrue": {"$map": {"input": OUTBOX, "in": IS_DUE}}},
        ]
    },
}


async def claim(users: Collection, count: int) -> Sequence[Email]:
    """Lease the due e-mails of at most `count` users."""
    due = users.find(HAS_DUE_EMAIL, {"_id": 1}, collation=SIMPLE).sort("mail_due").limit(CLAIM_WINDOW)
    ids = [user["_id"] for user in await due.to_list(None)]
    if not ids:
        return []
    chosen, token = random.sample(ids, min(count, len(ids))), str(ObjectId())
    until = {"$add": ["$$NOW", round(LEASE_SECONDS * 1000)]}
    lease = _rewrite_outbox(IS_DUE, {"token": token, "next_at": until})
    await users.update_many({"_id": {"$in": chosen}, **HAS_DUE_EMAIL}, lease, collation=SIMPLE)
    read = {"email": 1, "outbox": 1}
    claimed = users.find({"_id": {"$in": chosen}, "outbox.token": token}, read, collation=SIMPLE)
    return [
        Email(user["_id"], item["id"], item["key"], item["at"], item["token"], user["email"])
        for user in await claimed.to_list(None)
        for item in user["outbox"]
        if item["token"] == token
    ]


async def remove(users: Collection, email: Email) -> None:
    """Owe the e-mail no longer."""
    chosen = {"$and": [{"$eq": ["$$this.id", email.id]}, {"$eq": ["$$this.token", email.token]}]}
    held = {"_id": email.document_id, "outbox": {"$elemMatch": {"id": email.id, "token": email.token}}}
    await users.update_one(held, _rewrite_outbox(chosen, None), collation=SIMPLE)


def _rewrite_outbox(chosen: JSON, change: JSON | None) -> list[dict[str, Any]]:
    merged = {"$cond": [chosen, {"$mergeObjects": ["$$this", change]}, "$$this"]}
    outbox = (
        {"$map": {"input": "$outbox", "in": merged}}
        if change is not None
        else {"$filter": {"input": "$outbox", "cond": {"$not": [chosen]}}}
    )
    ours = {"$filter": {"input": "$outbox", "cond": IS_EMAIL}}
    earliest = {"$min": {"$map": {"input": ours, "in": "$$this.next_at"}}}
    return [{"$set": {"outbox": outbox}}, {"$set": {"mail_due": {"$ifNull": [earliest, "$$REMOVE"]}}}]
