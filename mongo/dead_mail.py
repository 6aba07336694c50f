"""Dead letters: the e-mails that could not be delivered, with the reason, in a collection of their own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from bson import ObjectId
from pymongo.errors import OperationFailure

from mongo.connection import Collection
from mongo.document import (
    OPTIONAL_FIELDS,
    SIMPLE,
    JSONObject,
    elements,
    must_be_ours,
    only_ours,
    optional_fields,
    remember,
)
from mongo.errors import PING_DEADLINE, Changed, Conflict, OutboxFull, TooLarge, UnknownError, persist
from mongo.outbox import Outbox
from mongo.owed import HAS_ROOM, OwedEmail, new_element
from mongo.suppression import FIELD as SUPPRESSION
from mongo.suppression import Bounce

log = logging.getLogger("notifier.mongo")

OLDEST_FIRST: Final = "died_at"
BY_AGE: Final = "died_at_1"
"""The index by age."""
INDEX_CHANGED: Final = (27, 85, 86)
"""IndexNotFound, IndexOptionsConflict and IndexKeySpecsConflict: another process changes the index, too."""
DISCARDED_AT_ONCE: Final = 1000
LONG_DEADLINE: Final = 60.0
"""Seconds for an operator's question about all of them."""
ADDRESS_SHOWN: Final = 1000
"""Characters of an address that a dead letter keeps. A longer one is none."""


class DeadMail:
    """The dead letters of all users."""

    def __init__(self, outbox: Outbox, letters: Collection) -> None:
        self._outbox = outbox
        self.letters = letters

    async def create_indexes(self, days: float | None) -> None:
        """Create the indexes of its queries. One lets MongoDB delete a letter after so many days, unless `None`.

        Replicas may do so at the same time. Raises a `StoreError`.
        """
        seconds = None if days is None else round(days * 86_400)
        options: JSONObject = {} if seconds is None else {"expireAfterSeconds": seconds}

        async def attempt() -> None:
            indexes = await self.letters.index_information()
            found = {name: index for name, index in indexes.items() if index["key"] == [(OLDEST_FIRST, 1)]}
            try:
                for name, index in found.items():
                    if index.get("expireAfterSeconds") != seconds or name != BY_AGE:
                        log.warning("dead letters: the index %s is replaced, as DEAD_MAIL_DAYS was changed", name)
                        await self.letters.drop_index(name)
                await self.letters.create_index(OLDEST_FIRST, name=BY_AGE, collation=SIMPLE, **options)
            except OperationFailure as exc:
                if exc.code in INDEX_CHANGED:
                    raise Changed from exc
                raise

        await persist(attempt)
        await persist(lambda: self.letters.create_index("user_id", collation=SIMPLE))

    async def bury(self, email: OwedEmail, tries: int, error: str | None, bounce: Bounce | None = None) -> bool:
        """Move an e-mail from the outbox to the dead letters; return whether its lease was still held.

        After a bounce, nothing more is sent to its address.

        There are three steps, and a crash may follow each: the e-mail is marked dead under its lease, its letter is
        written, the e-mail is removed. Whoever claims an e-mail that is marked buries it again, to the same effect.

        A worker that freezes between the first two may wake after its user was erased, and must leave no letter.

        Raises `Unavailable`.
        """
        if not await self._outbox.mark_dead(email, tries, error, bounce):
            return False
        letter = {
            "user_id": email.user_id,
            "email": _shown(email.address),
            "key": email.key,
            "at": email.at,
            "tries": tries,
            "error": error,
            "request_id": email.request_id,
            **optional_fields(email.fields()),
        }
        try:
            is_new = await self._write(email, letter)
        except (Conflict, TooLarge, UnknownError):  # what somebody else put into the outbox need not fit here
            is_new = await self._write(email, {name: letter[name] for name in letter.keys() - OPTIONAL_FIELDS})
        if await self._outbox.holds(email):  # asked after the letter was written: what is erased later takes it along
            await self._outbox.remove(email)
        elif is_new:  # if the next holder of the lease has written to the letter, it has another token
            await persist(lambda: self.letters.delete_one({"_id": email.id, "token": email.token}, collation=SIMPLE))
        return True

    async def _write(self, email: OwedEmail, letter: JSONObject) -> bool:
        """Write a letter; return whether it is new."""
        update = {"$setOnInsert": letter, "$set": {"token": email.token}, "$currentDate": {"died_at": True}}

        async def attempt() -> bool:
            before: JSONObject | None = await self.letters.find_one_and_update(
                {"_id": email.id}, update, {"token": 1}, upsert=True, collation=SIMPLE
            )
            return before is None or before.get("token") == email.token  # or the reply to an attempt was lost

        return await persist(attempt)

    async def find(
        self, ids: Sequence[str] | None = None, *, key: str | None = None, since: datetime | None = None
    ) -> Sequence[JSONObject]:
        """Return these dead letters, or all, oldest first; of one kind only, or since a time. Raises `Unavailable`."""
        condition: JSONObject = {} if ids is None else {"_id": {"$in": ids}}
        condition |= ({"key": key} if key else {}) | ({"died_at": {"$gte": since}} if since else {})
        found = self.letters.find(condition, {"token": 0}, collation=SIMPLE, allow_disk_use=True).sort(OLDEST_FIRST)
        return await persist(lambda: found.clone().to_list(None), LONG_DEADLINE)

    async def discard(self, ids: Sequence[str] | None = None) -> int:
        """Delete these dead letters, or all; return how many. Raises `Unavailable`."""
        condition: JSONObject = {} if ids is None else {"_id": {"$in": ids}}
        # Those of now, so that an attempt whose reply was lost and the next one together delete and count the same.
        found = self.letters.find(condition, {"_id": 1}, collation=SIMPLE)
        letters = [letter["_id"] for letter in await persist(lambda: found.clone().to_list(None), LONG_DEADLINE)]
        for start in range(0, len(letters), DISCARDED_AT_ONCE):
            chosen = {"_id": {"$in": letters[start : start + DISCARDED_AT_ONCE]}}
            await persist(lambda chosen=chosen: self.letters.delete_many(chosen, collation=SIMPLE))  # type: ignore[misc]
        return len(letters)

    async def discard_of_user(self, user_id: str) -> None:
        """Delete a user's dead letters. Raises `Unavailable`."""
        await persist(lambda: self.letters.delete_many({"user_id": user_id}, collation=SIMPLE))

    async def count(self) -> int:
        """Return about how many there are, without counting them. Raises `Unavailable`."""
        return await persist(self.letters.estimated_document_count, PING_DEADLINE)

    async def of_user(self, user_id: str) -> Sequence[JSONObject]:
        """Return a user's dead letters, oldest first. Raises `Unavailable`."""
        found = self.letters.find({"user_id": user_id}, collation=SIMPLE).sort(OLDEST_FIRST)
        return await persist(lambda: found.clone().to_list(None))

    async def owe_again(self, letter: JSONObject) -> bool:
        """Owe the e-mail of a dead letter again, from its first attempt on; return `False` if the user is gone.

        So is one whose id is not of the type that ids have now, and one who was erased meanwhile. The user's address
        is no longer suppressed.

        Raises `OutboxFull`, `Conflict` or `Unavailable`.
        """
        users = self._outbox.users
        user_id = self._outbox.shape.id_type.parse(f"{letter['user_id']}")
        if user_id is None:
            return False
        id_, user, once = letter["_id"], {"_id": self._outbox.shape.id_type.to_bson(user_id)}, str(ObjectId())
        if not await persist(lambda: self.letters.find_one({"_id": id_}, {"_id": 1}, collation=SIMPLE)):
            return False
        # The key in `recent` guards the write too: the e-mail may be sent, and no longer be owed, before a write
        # whose reply was lost is repeated.
        absent = {"outbox.id": {"$ne": id_}, "recent.k": {"$ne": once}}
        fields = ("outbox", "mail_due", "recent", SUPPRESSION)
        ours = {"$and": [condition for field in fields for condition in only_ours(field)]}
        element = new_element(id_, letter["key"], letter["at"], optional_fields(letter), letter.get("request_id"))
        update = {
            "$push": {"outbox": element, "recent": remember(once, "")},
            "$min": {"mail_due": element["next_at"]},
            "$unset": {SUPPRESSION: ""},
        }
        result = await persist(
            lambda: users.update_one({**user, **absent, **HAS_ROOM, **ours}, update, collation=SIMPLE)
        )
        if not result.matched_count:
            found = await persist(lambda: users.find_one(user, {"outbox": 1, "recent": 1}, collation=SIMPLE))
            if found is None:
                return False
            owed = [item.get("id") for item in elements(found, "outbox")]
            if id_ not in owed and once not in [item.get("k") for item in elements(found, "recent")]:
                await persist(lambda: must_be_ours(users, user, fields))
                raise OutboxFull
        await persist(lambda: self.letters.delete_one({"_id": id_}))
        return True


def _shown(address: object) -> str | None:
    """Return an address as a dead letter keeps it. What is in the user's document may be of any type and size."""
    return address[:ADDRESS_SHOWN] if isinstance(address, str) else None
