"""The outbox: the e-mails a user is owed, in the user's own document. Claim them, then settle each once.

An e-mail is leased by moving its `next_at` to the end of the lease and writing a token beside it. When a worker dies,
its e-mails simply fall due again. Leases and retries go by MongoDB's clock (`$$NOW`).

Every document is claimed, read and settled for itself: one that is not ours, or damaged, is skipped and left as it is.
"""

from __future__ import annotations

import asyncio
import math
import random
from bisect import bisect
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import chain
from typing import Any, Final

from bson import ObjectId

from mongo.connection import Collection
from mongo.document import IS_DATE, SIMPLE, JSONObject, Shape, elements
from mongo.errors import PING_DEADLINE, Conflict, TooLarge, UnknownError, persist
from mongo.owed import ERAS, ERAS_END, IS_DUE, IS_EMAIL, NO_TOKEN, OwedEmail, load_emails
from mongo.preferences import FIELD as PREFERENCES
from mongo.preferences import wants_email
from mongo.refused import Refused
from mongo.suppression import FIELD as SUPPRESSION
from mongo.suppression import Bounce, suppress
from mongo.writes import Write, Writes, update_many

NARROWEST: Final = 2
WIDEST: Final = 16
"""Due documents read for each that is claimed. Workers that choose at random from many rarely choose the same."""
EDGES: Final = (ERAS["normal"], ERAS["low"], ERAS_END)
"""Where the bands of priorities end, and that of e-mails due again begins."""
SHARE: Final = 8
"""One in so many claimed is of each band, as far as there are any, so that none starves."""
FOREIGN_LIMIT: Final = 100
"""Documents that `foreign` names at once."""
OUTBOX: Final = {"$cond": [{"$isArray": "$outbox"}, "$outbox", []]}
DUE: Final = {"$lte": ["$mail_due", "$$NOW"]}
HAS_DUE_EMAIL: Final = {
    "mail_due": IS_DATE,  # a missing field compares lower than any date
    "$expr": {"$and": [DUE, {"$anyElementTrue": {"$map": {"input": OUTBOX, "in": IS_DUE}}}]},
}
IS_FOREIGN: Final = {
    "mail_due": {"$exists": True},
    "$expr": {
        "$or": [
            {"$ne": [{"$type": "$mail_due"}, "date"]},
            {"$not": [{"$isArray": "$outbox"}]},
            {"$anyElementTrue": {"$map": {"input": OUTBOX, "in": {"$not": [IS_EMAIL]}}}},
        ]
    },
}


class Outbox:
    """The outboxes of all users."""

    def __init__(self, users: Collection, shape: Shape) -> None:
        self.users = users
        self.shape = shape
        # A queue of its own: settling must neither wait behind requests nor be refused with them.
        self._settlements = Writes(users, free_requests=1)
        self._refused = Refused()
        self._spread: float = NARROWEST

    async def create_index(self) -> None:
        """Create the index that finds due e-mails. Replicas may do so at the same time. Raises a `StoreError`."""
        await persist(lambda: self.users.create_index("mail_due", sparse=True, collation=SIMPLE))

    async def backlog(self) -> tuple[int, float]:
        """Return how many e-mails are owed, and the age of the oldest in seconds. Raises `Unavailable`."""
        ours = {"$filter": {"input": OUTBOX, "cond": IS_EMAIL}}
        age = {"$dateDiff": {"startDate": "$oldest", "endDate": "$$NOW", "unit": "second"}}
        owed: list[JSONObject] = [
            {"$match": {"mail_due": {"$exists": True}}},
            {"$project": {"ours": ours}},
            {"$group": {"_id": None, "owed": {"$sum": {"$size": "$ours"}}, "oldest": {"$min": {"$min": "$ours.at"}}}},
            {"$project": {"owed": 1, "age": age}},
        ]
        found = await persist(lambda: self.users.aggregate(owed, collation=SIMPLE).to_list(None), PING_DEADLINE)
        return (found[0]["owed"], max(0.0, found[0]["age"] or 0.0)) if found else (0, 0.0)

    async def foreign(self) -> Mapping[str, str]:
        """Return the documents from which no e-mail can be sent, each with the reason. Raises `Unavailable`."""
        kind = {"$type": "$mail_due"}
        found = self.users.find(IS_FOREIGN, {"kind": kind}, collation=SIMPLE).limit(FOREIGN_LIMIT)
        users = await persist(lambda: found.clone().to_list(None), PING_DEADLINE)
        fields = {repr(user["_id"]): "outbox" if user["kind"] == "date" else "mail_due" for user in users}
        reasons = {id_: f"the field `{field}` is not the service's, or is damaged" for id_, field in fields.items()}
        return self._refused.reasons() | reasons

    async def of_user(self, user_id: str) -> Sequence[JSONObject]:
        """Return the e-mails that a user is owed. Raises `Unavailable`."""
        owner = {"_id": self.shape.id_type.to_bson(user_id)}
        user = await persist(lambda: self.users.find_one(owner, {"outbox": 1})) or {}
        return elements(user, "outbox")

    async def claim(self, users: int, lease: float) -> Sequence[OwedEmail]:
        """Lease the due e-mails of at most `users` users for `lease` seconds.

        No other worker claims them until the lease ends. Raises `Unavailable`.
        """
        chosen = await self._choose(users)
        if not chosen:
            return []
        token = str(ObjectId())
        try:
            await self._lease(chosen, token, lease)
        except (Conflict, TooLarge, UnknownError):  # because of one of them
            for id_ in chosen:
                try:
                    await self._lease([id_], token, lease)
                except (Conflict, TooLarge, UnknownError) as exc:
                    self._refused.add(id_, f"MongoDB does not let its `outbox` be changed: {exc}")
        read = {**self.shape.projection(), "outbox": 1, SUPPRESSION: 1}
        held, size = {"_id": {"$in": chosen}, "outbox.token": token}, len(chosen) + 1
        found = await persist(lambda: self.users.find(held, read, collation=SIMPLE, batch_size=size).to_list(None))
        lost = len(found) < len(chosen)  # to other workers, which choose from the same
        self._spread = min(2 * self._spread, WIDEST) if lost else max(self._spread / 2, NARROWEST)
        return [email for user in found for email in load_emails(user, token, self.shape)]

    async def _choose(self, users: int) -> list[object]:
        """Return the `_id`s of some users who are owed due e-mails: of all priorities, and of those due again."""
        limit = math.ceil(self._spread * users)
        found = await self._due(limit)
        if len(found) < limit:  # these are all
            return random.sample([id_ for id_, _ in found], min(users, len(found)))
        share = max(1, users // SHARE)
        # These leave out what is due after the last of them.
        later = [self._due(math.ceil(self._spread * share), n) for n in range(max(1, found[-1][1]), len(EDGES) + 1)]
        return _shares([*found, *chain.from_iterable(await asyncio.gather(*later))], users, share)

    async def _due(self, limit: int, band: int | None = None) -> list[tuple[object, int]]:
        """Return the `_id`s of users whose e-mails are due, longest due first, and the band of each."""
        condition = HAS_DUE_EMAIL | self._refused.condition()
        if band:
            end = {"$lt": EDGES[band]} if band < len(EDGES) else {}
            condition = {"$and": [condition, {"mail_due": {"$gte": EDGES[band - 1], **end}}]}
        found = await persist(
            lambda: (
                self.users.find(condition, {"mail_due": 1}, collation=SIMPLE, batch_size=limit + 1)
                .sort("mail_due")
                .limit(limit)
                .to_list(None)
            )
        )
        return [(user["_id"], _band(user["mail_due"])) for user in found]

    async def _lease(self, ids: Sequence[object], token: str, seconds: float) -> None:
        due = {"_id": {"$in": list(ids)}, **HAS_DUE_EMAIL}
        claim = _rewrite_outbox(IS_DUE, {"token": token, "next_at": _from_now(seconds)})
        await persist(lambda: self.users.update_many(due, claim, collation=SIMPLE))

    async def extend(self, emails: Sequence[OwedEmail], lease: float) -> None:
        """Let the leases of these e-mails end `lease` seconds from now, unless they were lost. Raises `Unavailable`."""
        tokens = list({email.token for email in emails})
        ids = [email.document_id for email in emails]
        chosen = {"$and": [IS_EMAIL, {"$in": ["$$this.token", tokens]}]}
        extension = _rewrite_outbox(chosen, {"next_at": _from_now(lease)})
        held = {"_id": {"$in": ids}, "outbox": {"$type": "array"}, "outbox.token": {"$in": tokens}}
        await persist(lambda: self.users.update_many(held, extension, collation=SIMPLE))

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
        return await persist(lambda: self.users.find_one(_held(email), {"_id": 1}, collation=SIMPLE)) is not None

    async def look(self, emails: Sequence[OwedEmail]) -> Sequence[bool | None]:
        """Return for each e-mail whether its user wants it as of now; `None` if the lease was lost.

        Raises `Unavailable`.
        """
        ids = {"_id": {"$in": [email.document_id for email in emails]}}
        fields = {"outbox.id": 1, "outbox.token": 1, PREFERENCES: 1}
        size = len(emails)
        found = await persist(lambda: self.users.find(ids, fields, collation=SIMPLE, batch_size=size).to_list(None))
        users = {repr(user["_id"]): user for user in found}
        return [_is_wanted(users.get(repr(email.document_id), {}), email) for email in emails]

    async def remove_together(self, emails: Sequence[OwedEmail]) -> bool:
        """Owe these e-mails no longer; return whether each document still had some of them. Raises a `StoreError`."""
        return await self._settle_together(emails, None)

    async def release(self, emails: Sequence[OwedEmail], rank: str) -> None:
        """Give back the leases of e-mails of one priority that nobody has tried. They are due at once, as before.

        Raises a `StoreError`.
        """
        seconds = {"$toLong": {"$divide": [{"$toLong": "$$this.at"}, 1000]}}
        due = {"$cond": [{"$eq": ["$$this.tries", 0]}, {"$add": [ERAS[rank], seconds]}, "$$NOW"]}
        await self._settle_together(emails, {"token": NO_TOKEN, "next_at": due})

    async def _settle_together(self, emails: Sequence[OwedEmail], change: JSONObject | None) -> bool:
        by_token: dict[str, list[OwedEmail]] = {}
        for email in emails:
            by_token.setdefault(email.token, []).append(email)
        statements = [_statement(token, of_token, change) for token, of_token in by_token.items()]
        expected = sum(len(statement["q"]["_id"]["$in"]) for statement in statements)
        return await persist(lambda: update_many(self.users, statements)) == expected

    async def _settle(self, email: OwedEmail, change: JSONObject | None, bounce: Bounce | None = None) -> bool:
        """Change or remove an e-mail whose lease is held. A document without room does without error and bounce."""
        chosen = {"$and": [{"$eq": ["$$this.id", email.id]}, {"$eq": ["$$this.token", email.token]}]}
        write = Write(_held(email), [*_rewrite_outbox(chosen, change), *([suppress(bounce)] if bounce else ())])
        attempt = self._settlements.attempts()
        try:
            return await persist(lambda: attempt(write))
        except TooLarge:
            if change is None or change["error"] is None:
                raise
            return await self._settle(email, {**change, "error": None})


def _band(due: object) -> int:
    return bisect(EDGES, due) if isinstance(due, datetime) else 0  # Python has no date for one so long past


def _shares(found: Iterable[tuple[object, int]], users: int, share: int) -> list[object]:
    """Choose at random: a share of each band, and the others from the first bands."""
    bands: list[dict[str, object]] = [{} for _ in range(len(EDGES) + 1)]
    for id_, band in found:
        bands[band][repr(id_)] = id_
    shuffled = [random.sample(list(band.values()), len(band)) for band in bands]
    shares = [id_ for ids in shuffled for id_ in ids[:share]]
    return [*shares, *(id_ for ids in shuffled for id_ in ids[share:])][:users]


def _held(email: OwedEmail) -> JSONObject:
    return {"_id": email.document_id, "outbox": {"$elemMatch": {"id": email.id, "token": email.token}}}


def _is_wanted(user: Mapping[str, Any], email: OwedEmail) -> bool | None:
    held = any(item.get("id") == email.id and item.get("token") == email.token for item in elements(user, "outbox"))
    return wants_email(user.get(PREFERENCES), email.key) if held else None


def _statement(token: str, emails: Sequence[OwedEmail], change: JSONObject | None) -> JSONObject:
    """Return the update of e-mails with the same token. Of two users' e-mails with the same id it knows which."""
    pairs = [[email.document_id, email.id] for email in emails]
    chosen = {"$and": [{"$eq": ["$$this.token", token]}, {"$in": [["$_id", "$$this.id"], {"$literal": pairs}]}]}
    documents = list({repr(email.document_id): email.document_id for email in emails}.values())
    held = {"_id": {"$in": documents}, "outbox": {"$type": "array"}, "outbox.token": token}
    return {"q": held, "u": _rewrite_outbox(chosen, change), "multi": True, "collation": SIMPLE}


def _from_now(seconds: float) -> JSONObject:
    return {"$add": ["$$NOW", round(seconds * 1000)]}


def _rewrite_outbox(chosen: JSONObject, change: JSONObject | None) -> list[JSONObject]:
    """Merge `change` into the chosen elements, or remove them, and set `mail_due` to the earliest e-mail of the rest.

    Elements that are not e-mails of ours stay as they are, and in place.
    """
    merged = {"$cond": [chosen, {"$mergeObjects": ["$$this", change]}, "$$this"]}
    outbox = (
        {"$map": {"input": "$outbox", "in": merged}}
        if change is not None
        else {"$filter": {"input": "$outbox", "cond": {"$not": [chosen]}}}
    )
    ours = {"$filter": {"input": "$outbox", "cond": IS_EMAIL}}
    earliest = {"$min": {"$map": {"input": ours, "in": "$$this.next_at"}}}
    return [{"$set": {"outbox": outbox}}, {"$set": {"mail_due": {"$ifNull": [earliest, "$$REMOVE"]}}}]
