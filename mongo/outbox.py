"""The outbox: the e-mails a user is owed, in the user's own document. Claim them, then settle each once.

An e-mail is leased by moving its `next_at` to the end of the lease and writing a token beside it. When a worker dies,
its e-mails simply fall due again. Leases and retries go by MongoDB's clock (`$$NOW`).

Every document is claimed, read and settled for itself: one that is not ours, or damaged, is skipped and left as it is.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

from bson import ObjectId

from mongo.document import IS_DATE, OURS, OUTBOX, JSONObject, elements
from mongo.errors import PING_DEADLINE, Conflict, TooLarge, UnknownError
from mongo.owed import IS_DUE, IS_EMAIL, NO_TOKEN, OwedEmail, load_emails
from mongo.preferences import wants_email
from mongo.refused import Refused
from mongo.statement import Write
from mongo.suppression import Bounce, suppress
from mongo.users import Users
from mongo.writes import Writes

CLAIM_WINDOW: Final = 32
"""Due documents read to claim some of them. Workers that choose at random rarely choose the same."""
DUE: Final = {"$lte": ["$notifier.due", "$$NOW"]}
HAS_DUE_EMAIL: Final = {
    "notifier.due": IS_DATE,  # a missing field compares lower than any date
    "$expr": {"$and": [DUE, {"$anyElementTrue": {"$map": {"input": OUTBOX, "in": IS_DUE}}}]},
}


class Outbox:
    """The outboxes of all users."""

    def __init__(self, users: Users) -> None:
        self.users = users
        # A queue of its own: settling must neither wait behind requests nor be refused with them.
        self._settlements = Writes(users, free_requests=1)
        self._refused = Refused()

    async def backlog(self) -> tuple[int, float]:
        """Return how many e-mails are owed, and the age of the oldest in seconds. Raises `Unavailable`."""
        ours = {"$filter": {"input": OUTBOX, "cond": IS_EMAIL}}
        age = {"$dateDiff": {"startDate": "$oldest", "endDate": "$$NOW", "unit": "second"}}
        owed: list[JSONObject] = [
            {"$match": {"notifier.due": {"$exists": True}}},
            {"$project": {"ours": ours}},
            {"$group": {"_id": None, "owed": {"$sum": {"$size": "$ours"}}, "oldest": {"$min": {"$min": "$ours.at"}}}},
            {"$project": {"owed": 1, "age": age}},
        ]
        found = await self.users.aggregate(owed, PING_DEADLINE)
        return (found[0]["owed"], max(0.0, found[0]["age"] or 0.0)) if found else (0, 0.0)

    async def of_user(self, user_id: str) -> Sequence[JSONObject]:
        """Return the e-mails that a user is owed. Raises `Unavailable`."""
        return elements((await self.users.of(user_id, "notifier.outbox")).get("notifier"), "outbox")

    async def claim(self, users: int, lease: float) -> Sequence[OwedEmail]:
        """Lease the due e-mails of at most `users` users for `lease` seconds.

        No other worker claims them until the lease ends. Raises `Unavailable`.
        """
        candidates = HAS_DUE_EMAIL | self._refused.condition()
        found = await self.users.find(candidates, {"_id": 1}, sort="notifier.due", limit=CLAIM_WINDOW)
        if not found:
            return []
        chosen = random.sample([user["_id"] for user in found], min(users, len(found)))
        token = str(ObjectId())
        try:
            await self._lease(chosen, token, lease)
        except (Conflict, TooLarge, UnknownError):  # because of one of them
            for id_ in chosen:
                try:
                    await self._lease([id_], token, lease)
                except (Conflict, TooLarge, UnknownError) as exc:
                    self._refused.add(id_, exc)
        read = {**self.users.shape.projection(), "notifier.outbox": 1, "notifier.suppression": 1}
        claimed = await self.users.find({"_id": {"$in": chosen}, "notifier.outbox.token": token}, read)
        return [email for user in claimed for email in load_emails(user, token, self.users.shape)]

    async def _lease(self, ids: Sequence[object], token: str, seconds: float) -> None:
        due = {"_id": {"$in": list(ids)}, **OURS, **HAS_DUE_EMAIL}
        await self.users.update_many(due, _rewrite(IS_DUE, {"token": token, "next_at": _from_now(seconds)}))

    async def extend(self, emails: Sequence[OwedEmail], lease: float) -> None:
        """Let the leases of these e-mails end `lease` seconds from now, unless they were lost. Raises `Unavailable`."""
        tokens = list({email.token for email in emails})
        ids = [email.document_id for email in emails]
        chosen = {"$and": [IS_EMAIL, {"$in": ["$$this.token", tokens]}]}
        held = {"_id": {"$in": ids}, **OURS, "notifier.outbox.token": {"$in": tokens}}
        await self.users.update_many(held, _rewrite(chosen, {"next_at": _from_now(lease)}))

    async def remove(self, email: OwedEmail) -> bool:
        """Owe the e-mail no longer; return whether the lease was still held. Raises `Unavailable`."""
        return await self._settle(email, None)

    async def retry(self, email: OwedEmail, delay: float, error: str | None, *, tries: int, copies: int) -> bool:
        """Give the lease back, so that the e-mail falls due in `delay` seconds. Otherwise as `remove`."""
        change = {"token": NO_TOKEN, "next_at": _from_now(delay), "tries": tries, "error": {"$literal": error}}
        return await self._settle(email, change | ({"copies": copies} if copies else {}))

    async def mark_dead(self, email: OwedEmail, tries: int, error: str | None, bounce: Bounce | None = None) -> bool:
        """Keep the lease, and let whoever claims the e-mail next make a dead letter of it. Otherwise as `remove`.

        After a bounce, nothing more is sent to its address.
        """
        change = {"dead": True, "tries": tries, "error": {"$literal": error}}
        return await self._settle(email, change, bounce)

    async def holds(self, email: OwedEmail) -> bool:
        """Return whether the e-mail is still owed, and nobody else has leased it. Raises `Unavailable`."""
        return await self.users.find_one(_held(email), {"_id": 1}) is not None

    async def is_wanted(self, email: OwedEmail) -> bool | None:
        """Return whether its user wants the e-mail as of now; `None` if the lease was lost. Raises `Unavailable`."""
        found = await self.users.find_one(_held(email), {"notifier.preferences": 1})
        return None if found is None else wants_email(found["notifier"].get("preferences"), email.key)

    async def _settle(self, email: OwedEmail, change: JSONObject | None, bounce: Bounce | None = None) -> bool:
        """Change or remove an e-mail whose lease is held. If the document is full, error and bounce are left out."""
        chosen = {"$and": [{"$eq": ["$$this.id", email.id]}, {"$eq": ["$$this.token", email.token]}]}
        settlement = Write(_held(email), [*_rewrite(chosen, change), *([suppress(bounce)] if bounce else ())])
        try:
            return await self.users.persist(lambda n: self._settlements.update_one(settlement, attempt=n))
        except TooLarge:
            if change is None or change["error"] is None:
                raise
            return await self._settle(email, {**change, "error": None})


def _held(email: OwedEmail) -> JSONObject:
    item = {"id": email.id, "token": email.token}
    return {"_id": email.document_id, **OURS, "notifier.outbox": {"$elemMatch": item}}


def _from_now(seconds: float) -> JSONObject:
    return {"$add": ["$$NOW", round(seconds * 1000)]}


def _rewrite(chosen: JSONObject, change: JSONObject | None) -> list[JSONObject]:
    """Merge `change` into the chosen elements, or remove them, and set `due` to that of the earliest e-mail left.

    Elements that are not e-mails of ours stay as they are, and in place.
    """
    merged = {"$cond": [chosen, {"$mergeObjects": ["$$this", change]}, "$$this"]}
    outbox = (
        {"$map": {"input": OUTBOX, "in": merged}}
        if change is not None
        else {"$filter": {"input": OUTBOX, "cond": {"$not": [chosen]}}}
    )
    ours = {"$filter": {"input": "$notifier.outbox", "cond": IS_EMAIL}}
    earliest = {"$min": {"$map": {"input": ours, "in": "$$this.next_at"}}}
    return [{"$set": {"notifier.outbox": outbox}}, {"$set": {"notifier.due": {"$ifNull": [earliest, "$$REMOVE"]}}}]
