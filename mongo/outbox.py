"""The outbox: the e-mails a user is owed, in the user's own document. Claim them, then settle each once.

An e-mail is leased by moving its `next_at` to the end of the lease and writing a token beside it. When a worker dies,
its e-mails simply fall due again. Leases and retries go by MongoDB's clock (`$$NOW`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from bson import ObjectId

from mongo.connection import Collection
from mongo.document import OPTIONAL_FIELDS, JSONObject, optional_fields
from mongo.errors import PING_DEADLINE, TooLarge, persist
from mongo.writes import Write, Writes

OUTBOX_LIMIT: Final = 20
"""E-mails owed to one user. The limit is part of the write's filter: what is owed is never dropped."""
NO_TOKEN: Final = "0" * 24
"""Token of an e-mail that nobody leases. It is as long as any other, as a document may have no room to grow."""
CLOCK_TOLERANCE: Final = timedelta(minutes=1)
"""A new e-mail has been due for this long, so that it is due at once even if our clock is ahead of MongoDB's."""
CLAIM_WINDOW: Final = 32
"""Due documents read to claim some of them. Workers that choose at random rarely choose the same."""

IS_DUE: Final = {"$lte": ["$$this.next_at", "$$NOW"]}
HAS_DUE_EMAIL: Final = {
    "mail_due": {"$exists": True},  # a missing field compares lower than any date
    "$expr": {"$lte": ["$mail_due", "$$NOW"]},
}
HAS_ROOM: Final = {f"outbox.{OUTBOX_LIMIT - 1}": {"$exists": False}}
"""Condition of a write that owes another e-mail."""


@dataclass(frozen=True, slots=True)
class OwedEmail:
    """An e-mail that is owed, leased by `token`. `address` is the user's as the document has it, of any type.

    `id` and `at` make its `Message-ID` and `Date`, the same at every attempt.
    """

    user_id: str
    id: str
    key: str
    at: datetime
    tries: int
    token: str
    error: str | None
    dead: bool
    request_id: str | None
    address: object
    target_id: str | None = None
    data: JSONObject | None = None

    def fields(self) -> JSONObject:
        """Return the fields of the notification that the e-mail is about."""
        named = {name: getattr(self, name) for name in ("id", "user_id", "key", *OPTIONAL_FIELDS)}
        return named | {"timestamp": int(self.at.timestamp())}


def new_element(id_: str, key: str, at: datetime, optional: JSONObject, request_id: str | None) -> JSONObject:
    """Make an element of the outbox that is due at once. `at` is when the e-mail was first owed."""
    element: JSONObject = {
        "id": id_,
        "key": key,
        "at": at,
        "next_at": datetime.now(UTC) - CLOCK_TOLERANCE,
        "tries": 0,
        "token": NO_TOKEN,
        "error": None,
        "dead": False,
        **optional,
    }
    return element | ({"request_id": request_id} if request_id else {})


class Outbox:
    """The outboxes of all users."""

    def __init__(self, users: Collection) -> None:
        self.users = users
        # A queue of its own: settling must neither wait behind requests nor be refused with them.
        self._settlements = Writes(users, free_requests=1)

    async def create_index(self) -> None:
        """Create the index that finds due e-mails. Replicas may do so at the same time. Raises a `StoreError`."""
        await persist(lambda: self.users.create_index("mail_due", sparse=True))

    async def backlog(self) -> tuple[int, float]:
        """Return how many e-mails are owed, and the age of the oldest in seconds. Raises `Unavailable`."""
        counted = {
            "_id": None,
            "owed": {"$sum": {"$size": {"$ifNull": ["$outbox", []]}}},
            "oldest": {"$min": {"$min": "$outbox.at"}},
        }
        age = {"$dateDiff": {"startDate": "$oldest", "endDate": "$$NOW", "unit": "second"}}
        owing = {"mail_due": {"$exists": True}}
        pipeline: list[JSONObject] = [{"$match": owing}, {"$group": counted}, {"$project": {"owed": 1, "age": age}}]
        found = await persist(lambda: self.users.aggregate(pipeline).to_list(None), PING_DEADLINE)
        return (found[0]["owed"], max(0.0, found[0]["age"] or 0.0)) if found else (0, 0.0)

    async def of_user(self, user_id: str) -> Sequence[JSONObject]:
        """Return the elements of a user's outbox. Raises `Unavailable`."""
        user = await persist(lambda: self.users.find_one({"_id": ObjectId(user_id)}, {"outbox": 1})) or {}
        outbox: Sequence[JSONObject] = user.get("outbox", [])
        return outbox

    async def claim(self, users: int, lease: float) -> Sequence[OwedEmail]:
        """Lease the due e-mails of at most `users` users for `lease` seconds.

        No other worker claims them until the lease ends. Raises `Unavailable`.
        """
        due = self.users.find(HAS_DUE_EMAIL, {"_id": 1}).sort("mail_due").limit(CLAIM_WINDOW)
        ids = [user["_id"] for user in await persist(lambda: due.clone().to_list(None))]
        if not ids:
            return []
        chosen = {"$in": random.sample(ids, min(users, len(ids)))}
        token = str(ObjectId())
        claim = _rewrite_outbox(IS_DUE, {"token": token, "next_at": _from_now(lease)})
        await persist(lambda: self.users.update_many({"_id": chosen, **HAS_DUE_EMAIL}, claim))
        claimed = self.users.find({"_id": chosen, "outbox.token": token}, {"email": 1, "outbox": 1})
        return [
            OwedEmail(
                user_id=str(user["_id"]),
                address=user.get("email"),
                **{name: item[name] for name in ("id", "key", "at", "tries", "token", "error", "dead")},
                request_id=item.get("request_id"),
                **optional_fields(item),
            )
            for user in await persist(lambda: claimed.clone().to_list(None))
            for item in user["outbox"]
            if item["token"] == token
        ]

    async def extend(self, emails: Sequence[OwedEmail], lease: float) -> None:
        """Let the leases of these e-mails end `lease` seconds from now, unless they were lost. Raises `Unavailable`."""
        tokens = list({email.token for email in emails})
        user_ids = list({ObjectId(email.user_id) for email in emails})
        extension = _rewrite_outbox({"$in": ["$$this.token", tokens]}, {"next_at": _from_now(lease)})
        held = {"_id": {"$in": user_ids}, "outbox.token": {"$in": tokens}}
        await persist(lambda: self.users.update_many(held, extension))

    async def remove(self, email: OwedEmail) -> bool:
        """Owe the e-mail no longer; return whether the lease was still held. Raises `Unavailable`."""
        return await self._settle(email, None)

    async def retry(self, email: OwedEmail, delay: float, tries: int, error: str | None) -> bool:
        """Give the lease back, so that the e-mail falls due in `delay` seconds. Otherwise as `remove`."""
        change = {"token": NO_TOKEN, "next_at": _from_now(delay), "tries": tries, "error": {"$literal": error}}
        return await self._settle(email, change)

    async def mark_dead(self, email: OwedEmail, tries: int, error: str | None) -> bool:
        """Keep the lease, and let whoever claims the e-mail next make a dead letter of it. Otherwise as `remove`."""
        return await self._settle(email, {"dead": True, "tries": tries, "error": {"$literal": error}})

    async def _settle(self, email: OwedEmail, change: JSONObject | None) -> bool:
        """Change or remove an e-mail whose lease is held. A document without room does without the error."""
        held = {
            "_id": ObjectId(email.user_id),
            "outbox": {"$elemMatch": {"id": email.id, "token": email.token}},
        }
        write = Write(held, _rewrite_outbox({"$eq": ["$$this.id", email.id]}, change))
        attempt = self._settlements.attempts()
        try:
            return await persist(lambda: attempt(write))
        except TooLarge:
            if change is None or change["error"] is None:
                raise
            return await self._settle(email, {**change, "error": None})


def _from_now(seconds: float) -> JSONObject:
    return {"$add": ["$$NOW", round(seconds * 1000)]}


def _rewrite_outbox(chosen: JSONObject, change: JSONObject | None) -> list[JSONObject]:
    """Merge `change` into the chosen elements, or remove them, and set `mail_due` to the earliest of what is left."""
    merged = {"$cond": [chosen, {"$mergeObjects": ["$$this", change]}, "$$this"]}
    outbox = (
        {"$map": {"input": "$outbox", "in": merged}}
        if change is not None
        else {"$filter": {"input": "$outbox", "cond": {"$not": [chosen]}}}
    )
    return [
        {"$set": {"outbox": outbox}},
        {"$set": {"mail_due": {"$ifNull": [{"$min": "$outbox.next_at"}, "$$REMOVE"]}}},
    ]
