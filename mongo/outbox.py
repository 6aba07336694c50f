"""The outbox: the e-mails a user is owed, in the user's own document. Claim them, then settle each once.

An e-mail is leased by moving its `next_at` to the end of the lease and writing a token beside it. When a worker dies,
its e-mails simply fall due again. Leases and retries go by MongoDB's clock (`$$NOW`).

Every document is claimed, read and settled for itself: one that is not ours, or damaged, is skipped and left as it is.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

from bson import ObjectId
from pymongo import UpdateMany

from mongo.bands import EDGES, SHARE, band_of, shares
from mongo.document import IS_DATE, OURS, OUTBOX, SIMPLE, WAITING, JSONObject, elements, value_at
from mongo.errors import PING_DEADLINE, Conflict, TooLarge, Unavailable, UnknownError, WrongType
from mongo.indexes import Index
from mongo.owed import (
    IS_DUE,
    IS_EMAIL,
    NO_TOKEN,
    SET_DUE,
    OwedEmail,
    due_as_before,
    from_now,
    load_emails,
    merged,
    rewrite,
)
from mongo.preferences import wants_email
from mongo.refused import Refused
from mongo.statement import Write
from mongo.suppression import FIELD as SUPPRESSION
from mongo.suppression import Bounce, suppress
from mongo.unknown import is_ours_to_send, left_to_others
from mongo.users import Users
from mongo.waiting import HAS_WINDOW_OVER, Windows
from mongo.writes import Writes

log = logging.getLogger("notifier.delivery")

NARROWEST: Final = 2
WIDEST: Final = 16
"""Due documents read for each that is claimed. Workers that choose at random from many rarely choose the same."""
OF_FIXED_SIZE: Final = frozenset({"token", "next_at", "tries", "dead"})
"""What can be changed of an e-mail although its document is full."""
DUE: Final = {"$lte": ["$notifier.due", "$$NOW"]}
HAS_DUE_EMAIL: Final = {
    "notifier.due": IS_DATE,  # a missing field compares lower than any date
    "$expr": {
        "$and": [DUE, {"$or": [{"$anyElementTrue": {"$map": {"input": OUTBOX, "in": IS_DUE}}}, HAS_WINDOW_OVER]}]
    },
}


@dataclass(frozen=True, slots=True)
class Look:
    """Whether a user wants an e-mail, and those of its notifications that are unread, oldest first, if it has `ids`."""

    wanted: bool
    told: Sequence[JSONObject] = ()


class Outbox:
    """The outboxes of all users. `ranks` are the priorities of the kinds that this process knows."""

    def __init__(self, users: Users, ranks: Mapping[str, str], windows: Windows) -> None:
        self.users = users
        self.due = Index(users.shared, "notifier.due", sparse=True, waiting="Until it is there, e-mails wait.")
        self.era = due_as_before(ranks)
        self._kinds = list(ranks)
        self._windows = windows
        self._unknown: set[str] = set()
        # A queue of its own: settling must neither wait behind requests nor be refused with them.
        self._settlements = Writes(users, free_requests=1)
        self._refused = Refused()
        self._spread: float = NARROWEST

    async def backlog(self) -> tuple[int, float, int]:
        """Return how many e-mails are owed, the age of the oldest in seconds, and how many notifications wait.

        Raises `Unavailable`.
        """
        ours = {"$filter": {"input": OUTBOX, "cond": IS_EMAIL}}
        age = {"$dateDiff": {"startDate": "$oldest", "endDate": "$$NOW", "unit": "second"}}
        owed: list[JSONObject] = [
            {"$match": {"notifier.due": {"$exists": True}}},
            {"$project": {"ours": ours, "waiting": {"$size": WAITING}}},
            {
                "$group": {
                    "_id": None,
                    "owed": {"$sum": {"$size": "$ours"}},
                    "oldest": {"$min": {"$min": "$ours.at"}},
                    "waiting": {"$sum": "$waiting"},
                }
            },
            {"$project": {"owed": 1, "age": age, "waiting": 1}},
        ]
        if self.due.is_missing:
            raise Unavailable
        found = await self.users.aggregate(owed, PING_DEADLINE, self.due.hint)
        if not found:
            return 0, 0.0, 0
        return found[0]["owed"], max(0.0, found[0]["age"] or 0.0), found[0]["waiting"]

    async def of_user(self, user_id: str) -> tuple[Sequence[JSONObject], Sequence[JSONObject]]:
        """Return the e-mails that a user is owed, and what waits for its e-mail. Raises `Unavailable`."""
        notifier = (await self.users.of(user_id, "notifier.outbox", "notifier.waiting")).get("notifier")
        return elements(notifier, "outbox"), elements(notifier, "waiting")

    async def claim(self, users: int, lease: float) -> Sequence[OwedEmail]:
        """Lease the due e-mails of at most `users` users for `lease` seconds.

        No other worker claims them until the lease ends. There are none while the index is missing: every user's
        document would be read. Raises `Unavailable`.
        """
        try:
            chosen = [] if self.due.is_missing else await self._choose(users)
        except WrongType:  # how MongoDB refuses the hint
            self.due.lose()
            return []
        if not chosen:
            return []
        token = str(ObjectId())
        try:
            await self.lease(chosen, token, lease)
        except (Conflict, TooLarge, UnknownError):  # because of one of them
            for id_ in chosen:
                try:
                    await self.lease([id_], token, lease)
                except (Conflict, TooLarge, UnknownError) as exc:
                    self._refused.add(id_, exc)
        read = {**self.users.shape.projection(), "notifier.outbox": 1, "notifier.suppression": 1}
        held = {"_id": {"$in": chosen}, "notifier.outbox.token": token}
        found = await self.users.find(held, read, batch=len(chosen) + 1)
        lost = len(found) < len(chosen)  # to other workers, which choose from the same
        self._spread = min(2 * self._spread, WIDEST) if lost else max(self._spread / 2, NARROWEST)
        emails = [email for user in found for email in load_emails(user, token, self.users.shape)]
        for kind in {email.key for email in emails if not email.dead} - self._unknown.union(self._kinds):
            self._unknown.add(kind)
            log.warning("this process does not know the kind %s, nor does another: it is sent without a template", kind)
        return emails

    async def _choose(self, users: int) -> list[object]:
        """Return the `_id`s of some users who are owed due e-mails: of all priorities, and of those due again."""
        limit = math.ceil(self._spread * users)
        found = await self._due(limit)
        if len(found) < limit:  # these are all
            return random.sample([id_ for id_, _ in found], min(users, len(found)))
        share = max(1, users // SHARE)
        # These leave out what is due after the last of them.
        later = [self._due(math.ceil(self._spread * share), n) for n in range(max(1, found[-1][1]), len(EDGES) + 1)]
        return shares([*found, *chain.from_iterable(await asyncio.gather(*later))], users, share)

    async def _due(self, limit: int, band: int | None = None) -> list[tuple[object, int]]:
        """Return the `_id`s of users whose e-mails are due, longest due first, and the band of each."""
        condition = HAS_DUE_EMAIL | self._refused.condition()
        if band:
            end = {"$lt": EDGES[band]} if band < len(EDGES) else {}
            condition |= {"notifier.due": IS_DATE | {"$gte": EDGES[band - 1]} | end}
        found = await self.users.find(
            condition,
            {"notifier.due": 1},
            sort="notifier.due",
            limit=limit,
            batch=limit + 1,
            hint=self.due.hint,
        )
        return [(user["_id"], band_of(user["notifier"]["due"])) for user in found]

    async def lease(self, ids: Sequence[object], token: str, seconds: float) -> None:
        """Lease the due e-mails of these documents. Raises a `StoreError`."""
        due = {"_id": {"$in": list(ids)}, **OURS, **HAS_DUE_EMAIL}
        leased = {"token": token, "next_at": from_now(seconds)}
        change = {"$cond": [is_ours_to_send(self._kinds), leased, left_to_others("next_at")]}
        claimed = self._windows.claim(merged(OUTBOX, IS_DUE, change), leased)
        await self.users.update_many(due, [claimed, SET_DUE])

    async def extend(self, emails: Sequence[OwedEmail], lease: float) -> None:
        """Let the leases of these e-mails end `lease` seconds from now, unless they were lost. Raises `Unavailable`."""
        tokens = list({email.token for email in emails})
        ids = [email.document_id for email in emails]
        chosen = {"$and": [IS_EMAIL, {"$in": ["$$this.token", tokens]}]}
        held = {"_id": {"$in": ids}, **OURS, "notifier.outbox.token": {"$in": tokens}}
        await self.users.update_many(held, rewrite(chosen, {"next_at": from_now(lease)}))

    async def remove(self, email: OwedEmail, *, lift: bool = False) -> bool:
        """Owe the e-mail no longer, and `lift` the suppression; return whether the lease was still held.

        Raises `Unavailable`.
        """
        return await self._settle(email, None, {"$unset": SUPPRESSION} if lift else None)

    async def retry(self, email: OwedEmail, delay: float, error: str | None, **changes: object) -> bool:
        """Give the lease back after an attempt. The e-mail falls due in `delay` seconds. Otherwise as `remove`.

        `changes` are of `tries`, `waited`, `copies`, `held` and `crashes`.
        """
        return await self._put_back(email, from_now(delay), error, tried="$$NOW", **changes)

    async def hold(self, email: OwedEmail, delay: float, error: str | None, **changes: object) -> bool:
        """Give the lease back without an attempt; otherwise as `retry`."""
        return await self._put_back(email, from_now(delay), error, **changes)

    async def put_back(self, email: OwedEmail, error: str | None) -> bool:
        """Give the lease back without an attempt. The e-mail is due at once, as before. Otherwise as `remove`."""
        return await self._put_back(email, self.era, error)

    async def _put_back(self, email: OwedEmail, when: JSONObject, error: str | None, **changes: object) -> bool:
        given = {name: value for name, value in changes.items() if value or getattr(email, name)}
        change = {"token": NO_TOKEN, "next_at": when, "tries": email.tries, "error": {"$literal": error}}
        return await self._settle(email, change | given)

    async def mark_dead(self, email: OwedEmail, tries: int, error: str | None, bounce: Bounce | None = None) -> bool:
        """Keep the lease, and let whoever claims the e-mail next make a dead letter of it. Otherwise as `remove`.

        After a bounce, nothing more is sent to its address.
        """
        change = {"dead": True, "tries": tries, "error": {"$literal": error}}
        return await self._settle(email, change, suppress(bounce) if bounce else None)

    async def holds(self, email: OwedEmail) -> bool:
        """Return whether the e-mail is still owed, and nobody else has leased it. Raises `Unavailable`."""
        return await self.users.find_one(_held(email), {"_id": 1}) is not None

    async def look(self, emails: Sequence[OwedEmail]) -> Sequence[Look | None]:
        """Return for each e-mail what is known of it as of now; `None` if the lease was lost. Raises `Unavailable`."""
        ids = {"_id": {"$in": [email.document_id for email in emails]}}
        fields: JSONObject = {"notifier.outbox.id": 1, "notifier.outbox.token": 1, "notifier.preferences": 1}
        if about := [id_ for email in emails for id_ in email.ids]:
            is_told = {"$and": [{"$eq": ["$$this.is_new", True]}, {"$in": ["$$this.id", {"$literal": about}]}]}
            fields["told"] = {"$filter": {"input": self._windows.inbox, "cond": is_told}}
        found = await self.users.find(ids, fields, batch=len(emails) + 1)
        users = {repr(user["_id"]): user for user in found}
        return [_look(users.get(repr(email.document_id), {}), email) for email in emails]

    async def remove_together(self, emails: Sequence[OwedEmail]) -> bool:
        """Owe these e-mails no longer; return whether each document still had some of them. Raises a `StoreError`."""
        return await self._settle_together(emails, None)

    async def release(self, emails: Sequence[OwedEmail]) -> None:
        """Give back the leases of untried e-mails. They are due at once, as before. Raises a `StoreError`."""
        await self._settle_together(emails, {"token": NO_TOKEN, "next_at": self.era})

    async def _settle_together(self, emails: Sequence[OwedEmail], change: JSONObject | None) -> bool:
        by_token: dict[str, list[OwedEmail]] = {}
        for email in emails:
            by_token.setdefault(email.token, []).append(email)
        updates = [_update(token, of_token, change) for token, of_token in by_token.items()]
        documents = len({(email.token, repr(email.document_id)) for email in emails})
        return await self.users.update_each(updates) == documents

    async def _settle(self, email: OwedEmail, change: JSONObject | None, stage: JSONObject | None = None) -> bool:
        """Change or remove an e-mail whose lease is held. If the document is full, only what must be is changed."""
        chosen = {"$and": [{"$eq": ["$$this.id", email.id]}, {"$eq": ["$$this.token", email.token]}]}
        settlement = Write(_held(email), [*rewrite(chosen, change), *([stage] if stage else ())])
        try:
            return await self.users.persist(lambda n: self._settlements.update_one(settlement, attempt=n))
        except TooLarge:
            least = {name: value for name, value in (change or {}).items() if name in OF_FIXED_SIZE} | {"error": None}
            if change is None or change == least:
                raise
            if change.get("crashes", 0) > email.crashes:  # a crash that cannot be counted would repeat for ever
                least["dead"] = True
            return await self._settle(email, least)


def _held(email: OwedEmail) -> JSONObject:
    item = {"id": email.id, "token": email.token}
    return {"_id": email.document_id, **OURS, "notifier.outbox": {"$elemMatch": item}}


def _look(user: Mapping[str, Any], email: OwedEmail) -> Look | None:
    notifier = user.get("notifier")
    items = elements(notifier, "outbox")
    if not any(item.get("id") == email.id and item.get("token") == email.token for item in items):
        return None
    told = [item for item in user.get("told", ()) if item["id"] in email.ids]
    return Look(wants_email(value_at(notifier, "preferences"), email.key), told)


def _update(token: str, emails: Sequence[OwedEmail], change: JSONObject | None) -> UpdateMany:
    """Return the update of e-mails with the same token. Of two users' e-mails with the same id it knows which."""
    pairs = [[email.document_id, email.id] for email in emails]
    chosen = {"$and": [{"$eq": ["$$this.token", token]}, {"$in": [["$_id", "$$this.id"], {"$literal": pairs}]}]}
    documents = list({repr(email.document_id): email.document_id for email in emails}.values())
    held = {"_id": {"$in": documents}, **OURS, "notifier.outbox.token": token}
    return UpdateMany(held, rewrite(chosen, change), collation=SIMPLE)
