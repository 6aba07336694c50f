"""The outbox: the e-mails a user is owed, in the user's own document. Claim them, then settle each once.

An e-mail is leased by moving its `next_at` to the end of the lease and writing a token beside it. When a worker dies,
its e-mails simply fall due again. Leases and retries go by MongoDB's clock (`$$NOW`). A document that is not ours, or
damaged, is skipped and left as it is.
"""

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import chain
from typing import Any, Final, NamedTuple, TypeVar

import pymongo
from bson import ObjectId
from pymongo import UpdateMany

from config.checks import envelope_address, value_at
from mongo import owed, suppression
from mongo.batcher import Writes
from mongo.document import IS_DATE, OURS, SIMPLE, JSONObject
from mongo.errors import Conflict, TooLarge, UnknownError, WrongType
from mongo.expressions import OUTBOX, any_of, only
from mongo.grouping import HAS_WINDOW_OVER, Windows
from mongo.inbox import wants_email
from mongo.indexes import Index
from mongo.lanes import Write
from mongo.owed import OwedEmail
from mongo.users import Users
from settings import named

log = logging.getLogger("notifier.delivery")

T = TypeVar("T")

NARROWEST: Final = 2
WIDEST: Final = 16  # due documents read for each one claimed: workers that choose from many rarely choose the same
SHARE: Final = 8  # one in eight of those claimed is from each band, so that none starves
REFUSED_FOR: Final = 60.0  # seconds for which a document is left alone that MongoDB does not let us change
OF_FIXED_SIZE: Final = frozenset({"token", "next_at", "tries", "dead"})  # what a full document lets us change
HAS_DUE_EMAIL: Final = {
    "notifier.due": IS_DATE,  # a missing field compares lower than any date
    "$expr": {"$and": [{"$lte": ["$notifier.due", "$$NOW"]}, {"$or": [any_of(OUTBOX, owed.IS_DUE), HAS_WINDOW_OVER]}]},
}


class Look(NamedTuple):
    """Whether a user wants an e-mail, and, if it has `ids`, its unread notifications, oldest first."""

    wanted: bool
    told: Sequence[JSONObject] = ()


class Outbox:
    """The outboxes of all users. `ranks` are the priorities of the kinds that this process knows.

    A call whose reply is lost is repeated, which is harmless: what a claim has leased is no longer due, and is found by
    its token; what was settled no longer has that token; and an extension only sets a time.
    """

    def __init__(self, users: Users, ranks: Mapping[str, str], windows: Windows) -> None:
        self.users = users
        self.due = Index(users.shared, "notifier.due", sparse=True, waiting="Until it is there, e-mails wait.")
        self.era = owed.due_as_before(ranks)
        self.windows = windows
        self._kinds = list(ranks)
        self._unknown: set[str] = set()
        # A queue of its own: settling must neither wait behind requests nor be refused with them.
        self._settlements = Writes(users.collection, users.calls, free_requests=1)
        self._refused: list[tuple[object, float]] = []  # `_id`s of documents that are left alone, and until when
        self._spread: float = NARROWEST

    async def of_user(self, user_id: str) -> tuple[Sequence[JSONObject], Sequence[JSONObject]]:
        notifier = (await self.users.of(user_id, "notifier.outbox", "notifier.waiting")).get("notifier")
        return owed.elements(notifier, "outbox"), owed.elements(notifier, "waiting")

    async def claim(self, users: int, lease: float) -> Sequence[OwedEmail]:
        """Lease the due e-mails of at most `users` users for `lease` seconds."""
        try:  # without the index, every user's document would be read
            ids = [] if self.due.is_missing else await self._choose(users)
        except WrongType:  # how MongoDB refuses the hint
            self.due.lose()
            return []
        if not ids:
            return []
        token = str(ObjectId())
        await self._lease_all(ids, token, lease)
        read = {**self.users.team_fields, "notifier.outbox": 1, "notifier.suppression": 1}
        held = {"_id": {"$in": ids}, "notifier.outbox.token": token}
        documents = await self._find(held, read, len(ids))
        lost = len(documents) < len(ids)  # to other workers, which choose from the same
        self._spread = min(2 * self._spread, WIDEST) if lost else max(self._spread / 2, NARROWEST)
        emails = [email for user in documents for email in owed.load_emails(user, token, self.users.settings)]
        for kind in {email.key for email in emails if not email.dead} - self._unknown.union(self._kinds):
            self._unknown.add(kind)
            log.warning("this process does not know the kind %s, nor does another: it is sent without a template", kind)
        return emails

    async def _lease_all(self, ids: Sequence[object], token: str, seconds: float) -> None:
        """Lease what is due in these documents, but in those that MongoDB does not let us change."""
        try:
            await self.lease(ids, token, seconds)
        except (Conflict, TooLarge, UnknownError) as exc:
            if len(ids) > 1:  # because of one of them
                for id_ in ids:
                    await self._lease_all([id_], token, seconds)
                return
            log.error("%s: MongoDB does not let its outbox be changed: %s", named(repr(ids[0])), exc)  # noqa: TRY400
            self._refused.append((ids[0], time.monotonic() + REFUSED_FOR))

    async def _choose(self, users: int) -> list[object]:
        """Return the `_id`s of some users who are owed due e-mails, a share of each band."""
        limit = math.ceil(self._spread * users)
        due = await self._due(limit)
        if len(due) < limit:  # these are all
            return random.sample([id_ for id_, _ in due], min(users, len(due)))
        share = max(1, users // SHARE)
        # These leave out what is due after the last of them.
        later = [self._due(math.ceil(self._spread * share), n) for n in range(max(1, due[-1][1]), len(owed.EDGES) + 1)]
        return owed.shares([*due, *chain.from_iterable(await asyncio.gather(*later))], users, share)

    async def _due(self, limit: int, band: int | None = None) -> list[tuple[object, int]]:
        self._refused = [(id_, until) for id_, until in self._refused if until > time.monotonic()]
        condition = HAS_DUE_EMAIL | ({"_id": {"$nin": [id_ for id_, _ in self._refused]}} if self._refused else {})
        if band:
            end = {"$lt": owed.EDGES[band]} if band < len(owed.EDGES) else {}
            condition |= {"notifier.due": IS_DATE | {"$gte": owed.EDGES[band - 1]} | end}
        order = {"sort": {"notifier.due": 1}, "limit": limit, "hint": self.due.hint, "allow_disk_use": True}
        documents = await self._find(condition, {"notifier.due": 1}, limit, **order)
        return [(user["_id"], owed.band_of(user["notifier"]["due"])) for user in documents]

    async def lease(self, ids: Sequence[object], token: str, seconds: float) -> None:
        due = {"_id": {"$in": list(ids)}, **OURS, **HAS_DUE_EMAIL}
        leased = {"token": token, "next_at": owed.from_now(seconds)}
        change = {"$cond": [owed.is_ours_to_send(self._kinds), leased, owed.left_to_others("next_at")]}
        claimed = self.windows.claim(owed.merged(OUTBOX, owed.IS_DUE, change), leased)
        await self._repeat(lambda: self.users.shared.update_many(due, [claimed, owed.SET_DUE], collation=SIMPLE))

    async def extend(self, emails: Sequence[OwedEmail], lease: float) -> None:
        tokens = list({email.token for email in emails})
        ids = [email.document_id for email in emails]
        is_leased = {"$and": [owed.IS_EMAIL, {"$in": ["$$this.token", tokens]}]}
        held = {"_id": {"$in": ids}, **OURS, "notifier.outbox.token": {"$in": tokens}}
        change = owed.rewrite(is_leased, {"next_at": owed.from_now(lease)})
        await self._repeat(lambda: self.users.shared.update_many(held, change, collation=SIMPLE))

    async def remove(self, email: OwedEmail, *, lift: bool = False) -> bool:
        """Owe the e-mail no longer, and `lift` the suppression; return whether the lease was still held."""
        return await self._settle(email, None, {"$unset": suppression.FIELD} if lift else None)

    async def retry(self, email: OwedEmail, delay: float, error: str | None, **changes: object) -> bool:
        return await self.hold(email, delay, error, tried="$$NOW", **changes)

    async def hold(self, email: OwedEmail, delay: float | None, error: str | None, **changes: object) -> bool:
        """Give the lease back without an attempt. Without a `delay`, it is due as before. Returns as `remove`."""
        changes = {"copies": email.copies, **changes}
        kept = {name: value for name, value in changes.items() if value or getattr(email, name)}
        when = self.era if delay is None else owed.from_now(delay)
        change = {"token": owed.NO_TOKEN, "next_at": when, "tries": email.tries, "error": {"$literal": error}}
        return await self._settle(email, change | kept)

    async def mark_dead(self, email: OwedEmail, tries: int, error: str | None, bounce: str | None = None) -> bool:
        """Let the next claimer bury the e-mail; `bounce` is a code that suppresses its address. Returns as `remove`."""
        change = {"dead": True, "tries": tries, "error": {"$literal": error}}
        suppress = suppression.suppress(envelope_address(email.address), bounce) if bounce else None
        return await self._settle(email, change, suppress)

    async def holds(self, email: OwedEmail) -> bool:
        return await self.users.find_one(_held(email), {"_id": 1}) is not None

    async def look(self, emails: Sequence[OwedEmail]) -> Sequence[Look | None]:
        """Return a look for each e-mail, or `None` if its lease was lost."""
        ids = {"_id": {"$in": [email.document_id for email in emails]}}
        fields: JSONObject = {"notifier.outbox.id": 1, "notifier.outbox.token": 1, "notifier.preferences": 1}
        if about := [id_ for email in emails for id_ in email.ids]:
            is_told = {"$and": [{"$eq": ["$$this.is_new", True]}, {"$in": ["$$this.id", {"$literal": about}]}]}
            fields["told"] = only(self.users.inbox, is_told)
        users = {repr(user["_id"]): user for user in await self._find(ids, fields, len(emails))}
        return [_look(users.get(repr(email.document_id), {}), email) for email in emails]

    async def remove_together(self, emails: Sequence[OwedEmail]) -> bool:
        """Owe these e-mails no longer; return whether each document still had some of them."""
        return await self._settle_together(emails, None)

    async def release(self, emails: Sequence[OwedEmail]) -> None:
        """Give back the leases of untried e-mails, which are due at once, as before."""
        await self._settle_together(emails, {"token": owed.NO_TOKEN, "next_at": self.era})

    async def _settle_together(self, emails: Sequence[OwedEmail], change: JSONObject | None) -> bool:
        updates = []
        for token in dict.fromkeys(email.token for email in emails):
            of_token = [[email.document_id, email.id] for email in emails if email.token == token]
            is_one = {"$in": [["$_id", "$$this.id"], {"$literal": of_token}]}  # two users' e-mails may have the same id
            held = {"_id": {"$in": [id_ for id_, _ in of_token]}, **OURS, "notifier.outbox.token": token}
            settle = owed.rewrite({"$and": [{"$eq": ["$$this.token", token]}, is_one]}, change)
            updates.append(UpdateMany(held, settle, collation=SIMPLE))
        documents = len({(email.token, repr(email.document_id)) for email in emails})
        found = await self._repeat(lambda: self.users.shared.bulk_write(updates, ordered=False))
        return found.matched_count == documents

    async def _find(self, filter_: JSONObject, fields: JSONObject, most: int, **options: Any) -> list[JSONObject]:
        """Return the documents that match, at most `most`, with one reply."""
        options |= {"collation": SIMPLE, "batch_size": most + 1}
        return await self._repeat(lambda: self.users.shared.find(filter_, fields, **options).to_list())

    async def _repeat(self, call: Callable[[], Awaitable[T]]) -> T:
        async def attempt(_: int) -> T:
            with pymongo.timeout(self.users.patience.attempt):  # MongoDB ends the call then, too
                return await call()

        return await self.users.persist(attempt)

    async def _settle(self, email: OwedEmail, change: JSONObject | None, stage: JSONObject | None = None) -> bool:
        """Change or remove a leased e-mail. If the document is full, change only what must change."""
        is_this = {"$and": [{"$eq": ["$$this.id", email.id]}, {"$eq": ["$$this.token", email.token]}]}
        settlement = Write(_held(email), [*owed.rewrite(is_this, change), *([stage] if stage else ())])
        try:
            return await self.users.persist(lambda n: self._settlements.make(settlement, attempt=n))
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
    items = owed.elements(notifier, "outbox")
    if not any(item.get("id") == email.id and item.get("token") == email.token for item in items):
        return None
    told = [item for item in user.get("told", ()) if item["id"] in email.ids]
    return Look(wants_email(value_at(notifier, "preferences"), email.key), told)
