"""The e-mails that users are owed, in their documents: claim, then settle each once; and the dead letters.

An e-mail is leased by moving its `next_at` to the end of the lease and putting a token beside it: a worker
that dies simply lets it fall due again. The clock of leases and retries is the server's (`$$NOW`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from bson import ObjectId

from batcher import Batcher
from schemas import JSONObject
from store import (
    ABOUT,
    BATCH_LIMIT,
    CALLS_AT_ONCE,
    NOBODY,
    OUTBOX_LIMIT,
    PING_DEADLINE,
    QUEUE_LIMIT,
    RECENT_LIMIT,
    OutboxFull,
    Store,
    TooLarge,
    Write,
    about_of,
    owed_mail,
    persist,
    traced,
)

CLAIM_WINDOW: Final = 32
"""Due documents looked at to claim some of them: workers that choose at random rarely choose the same."""
IS_DUE: Final = {"$lte": ["$$this.next_at", "$$NOW"]}
HAS_DUE_MAIL: Final = {  # without $exists an absent mail_due compares low, and is due
    "mail_due": {"$exists": True},
    "$expr": {"$lte": ["$mail_due", "$$NOW"]},
}


@dataclass(frozen=True, slots=True)
class Mail:
    """An e-mail that is owed, leased by `token`. `email` is as the user's document has it, if it has one."""

    user_id: str
    id: str
    key: str
    at: datetime
    tries: int
    token: str
    error: str | None
    dead: bool
    request_id: str | None
    email: object
    target_id: str | None = None
    data: JSONObject | None = None

    def fields(self) -> JSONObject:
        """Return the fields of the notification that it is about."""
        about = {name: getattr(self, name) for name in ("id", "user_id", "key", *ABOUT)}
        return about | {"timestamp": int(self.at.timestamp())}


class Outbox:
    """What is owed to the users of a store."""

    def __init__(self, store: Store) -> None:
        """Look at the users of `store`."""
        self._store = store
        self._users = store.users
        self._dead_mail = store.dead_mail
        # In batches of their own: what is owed must not wait behind what is asked, nor be turned away with it.
        self._settlements = Batcher(
            store.write_together, flights=CALLS_AT_ONCE, few=1, most=BATCH_LIMIT, queue=QUEUE_LIMIT
        )

    async def backlog(self) -> tuple[int, float]:
        """Return how many e-mails are owed, and the age in seconds of the oldest. Raises `Unavailable`."""
        counted = {
            "_id": None,
            "owed": {"$sum": {"$size": {"$ifNull": ["$outbox", []]}}},
            "oldest": {"$min": {"$min": "$outbox.at"}},
        }
        age = {"$dateDiff": {"startDate": "$oldest", "endDate": "$$NOW", "unit": "second"}}
        owing = {"mail_due": {"$exists": True}}
        pipeline: list[JSONObject] = [{"$match": owing}, {"$group": counted}, {"$project": {"owed": 1, "age": age}}]
        found = await persist(lambda: self._users.aggregate(pipeline).to_list(None), PING_DEADLINE)
        return (found[0]["owed"], max(0.0, found[0]["age"] or 0.0)) if found else (0, 0.0)

    async def claim(self, users: int, lease: float) -> Sequence[Mail]:
        """Lease the due e-mails of at most `users` users for `lease` seconds.

        No other worker claims them until the lease ends. Raises `Unavailable`.
        """
        due = self._users.find(HAS_DUE_MAIL, {"_id": 1}).sort("mail_due").limit(CLAIM_WINDOW)
        ids = [user["_id"] for user in await persist(lambda: due.clone().to_list(None))]
        if not ids:
            return []
        chosen = {"$in": random.sample(ids, min(users, len(ids)))}
        token = str(ObjectId())
        claim = _rewrite_outbox(IS_DUE, {"token": token, "next_at": _later(lease)})
        await persist(lambda: self._users.update_many({"_id": chosen, **HAS_DUE_MAIL}, claim))
        claimed = self._users.find({"_id": chosen, "outbox.token": token}, {"email": 1, "outbox": 1})
        return [
            Mail(
                user_id=str(user["_id"]),
                email=user.get("email"),
                **{name: item[name] for name in ("id", "key", "at", "tries", "token", "error", "dead")},
                request_id=item.get("request_id"),
                **about_of(item),
            )
            for user in await persist(lambda: claimed.clone().to_list(None))
            for item in user["outbox"]
            if item["token"] == token
        ]

    async def extend(self, mails: Sequence[Mail], lease: float) -> None:
        """Let the leases end `lease` seconds from now. Those that were lost stay lost. Raises `Unavailable`."""
        tokens = list({mail.token for mail in mails})
        held = {"$in": ["$$this.token", tokens]}
        filter_ = {"_id": {"$in": list({ObjectId(mail.user_id) for mail in mails})}, "outbox.token": {"$in": tokens}}
        extension = _rewrite_outbox(held, {"next_at": _later(lease)})
        await persist(lambda: self._users.update_many(filter_, extension))

    async def settle_sent(self, mail: Mail) -> bool:
        """Owe the e-mail no longer; say whether the lease was still held. Raises `Unavailable`."""
        return await self._settle(mail, None)

    async def settle_retry(self, mail: Mail, delay: float, tries: int, error: str | None) -> bool:
        """Give the lease back: the e-mail falls due in `delay` seconds. Raises `Unavailable`."""
        return await self._settle(
            mail, {"token": NOBODY, "next_at": _later(delay), "tries": tries, "error": {"$literal": error}}
        )

    async def settle_dead(self, mail: Mail, tries: int, error: str) -> bool:
        """Move the e-mail to the dead letters, with the reason; say whether the lease was still held.

        In three steps, each of which may be the last one before a crash: it is marked dead under its
        lease; its letter is written; it is owed no longer. Whoever finds one marked finishes with `bury`.

        Raises `Unavailable`.
        """
        if not await self._settle(mail, {"dead": True, "tries": tries, "error": {"$literal": error}}):
            return False
        await self.bury(mail, tries, error)
        return True

    async def bury(self, mail: Mail, tries: int, error: str | None) -> None:
        """Write the dead letter of an e-mail that is marked dead, once, and owe it no longer. Raises `Unavailable`."""
        letter = {
            "user_id": mail.user_id,
            "email": mail.email,
            "key": mail.key,
            "at": mail.at,
            "tries": tries,
            "error": error,
            "request_id": mail.request_id,
            **about_of(mail.fields()),
        }
        update = {"$setOnInsert": letter, "$currentDate": {"died_at": True}}
        await persist(lambda: self._dead_mail.update_one({"_id": mail.id}, update, upsert=True))
        await self._settle(mail, None)

    async def mails_of(self, user_id: str) -> tuple[Sequence[JSONObject], Sequence[JSONObject]]:
        """Return the e-mails that a user is owed, and the user's dead letters, oldest first. Raises `Unavailable`."""
        user = await persist(lambda: self._users.find_one({"_id": ObjectId(user_id)}, {"outbox": 1})) or {}
        letters = self._dead_mail.find({"user_id": user_id}).sort("died_at")
        return user.get("outbox", []), await persist(lambda: letters.clone().to_list(None))

    # --- dead letters, for people ---------------------------------------------------------------------

    async def dead_letters(self, ids: Sequence[str] | None = None) -> Sequence[JSONObject]:
        """Return these dead letters, or all, oldest first. Raises `Unavailable`."""
        letters = self._dead_mail.find({} if ids is None else {"_id": {"$in": ids}}).sort("died_at")
        return await persist(lambda: letters.clone().to_list(None))

    async def owe_again(self, letter: JSONObject) -> bool:
        """Owe a dead letter again, from its first attempt on; say `False` when its user is gone.

        Raises `OutboxFull`, or `Unavailable`.
        """
        id_, user, once = letter["_id"], {"_id": ObjectId(letter["user_id"])}, str(ObjectId())
        # Among `recent`, too: it may be sent, and owed no more, before a write whose reply was lost is repeated.
        room = {"outbox.id": {"$ne": id_}, "recent.k": {"$ne": once}, f"outbox.{OUTBOX_LIMIT - 1}": {"$exists": False}}
        mail = owed_mail(id_, letter["key"], letter["at"], about_of(letter) | traced(letter.get("request_id")))
        pushes = {"outbox": mail, "recent": {"$each": [{"k": once, "h": ""}], "$slice": -RECENT_LIMIT}}
        update = {"$push": pushes, "$min": {"mail_due": mail["next_at"]}}
        result = await persist(lambda: self._users.update_one({**user, **room}, update))
        if not result.matched_count:
            found = await persist(lambda: self._users.find_one(user, {"outbox.id": 1, "recent.k": 1}))
            if found is None:
                return False
            done = [item["id"] for item in found.get("outbox", [])] + [item["k"] for item in found.get("recent", [])]
            if not {id_, once} & set(done):
                raise OutboxFull
        await persist(lambda: self._dead_mail.delete_one({"_id": id_}))
        return True

    async def _settle(self, mail: Mail, change: JSONObject | None) -> bool:
        """Change or remove an e-mail whose lease is held. Where the document has no room, the error is left out."""
        ours = {"$eq": ["$$this.id", mail.id]}
        filter_ = {
            "_id": ObjectId(mail.user_id),
            "outbox": {"$elemMatch": {"id": mail.id, "token": mail.token}},
        }
        try:
            write, settlement = self._store.sharing(self._settlements), Write(filter_, _rewrite_outbox(ours, change))
            return await persist(lambda: write(settlement))
        except TooLarge:
            if change is None or change["error"] is None:
                raise
            return await self._settle(mail, {**change, "error": None})


def _later(seconds: float) -> JSONObject:
    return {"$add": ["$$NOW", round(seconds * 1000)]}


def _rewrite_outbox(chosen: JSONObject, change: JSONObject | None) -> list[JSONObject]:
    """Merge `change` into the chosen elements, or remove them, and keep `mail_due` true to what is left."""
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
