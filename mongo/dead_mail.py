"""Dead letters: the e-mails that could not be delivered, with the reason, in a collection of their own."""

import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Final

from bson import ObjectId

from mongo.creation import Creates, Creation, remember
from mongo.document import HAS_ROOM, IS_DATE, IS_FINDABLE, OPTIONAL_FIELDS, SIMPLE, JSONObject
from mongo.errors import PING_DEADLINE, Conflict, OutboxFull, TooLarge, UnknownError, UnknownUser
from mongo.lanes import Write
from mongo.outbox import Outbox
from mongo.owed import KEPT, OwedEmail, new_element, typed
from mongo.suppression import FIELD as SUPPRESSION
from mongo.users import Documents

OLDEST_FIRST: Final = ["died_at"]
UNKNOWN: Final = r"^(RCPT|DATA|DATA command): 5\d\d"  # the error of an e-mail that died at its first refusal
DISCARDED_AT_ONCE: Final = 1000
LONG_DEADLINE: Final = 60.0  # seconds for a query over all dead letters
ADDRESS_SHOWN: Final = 1000  # characters that a dead letter keeps of an address


class DeadMail:
    """The dead letters of all users. Beside them may be those of another service, of another collection of users."""

    def __init__(self, outbox: Outbox, creates: Creates, letters: Documents) -> None:
        self._outbox = outbox
        self._creates = creates
        self.letters = letters
        self._users = outbox.users.collection.name
        self.own: JSONObject = {"collection": {"$in": [self._users, None]}}  # older letters name none

    async def expire(self, days: float) -> None:
        is_old = {"$expr": {"$lt": ["$died_at", {"$subtract": ["$$NOW", round(days * 86_400_000)]}]}}
        await self.letters.delete({**self.own, "died_at": IS_DATE, **is_old})

    async def bury(self, email: OwedEmail, tries: int, error: str | None, bounce: str | None = None) -> bool:
        """Move an e-mail from the outbox to the dead letters; return whether its lease was still held.

        A crash may follow each of three steps: the e-mail is marked dead under its lease, its letter is written, and it
        is removed. Whoever claims an e-mail that is marked buries it again, to the same effect. A worker that freezes
        before it writes the letter may wake after its user was erased, and must leave none.
        """
        if not await self._outbox.mark_dead(email, tries, error, bounce):
            return False
        address = email.address[:ADDRESS_SHOWN] if isinstance(email.address, str) else None
        letter: JSONObject = {"collection": self._users, "user_id": email.user_id, "email": address, "key": email.key}
        letter |= {"at": email.at, "tries": tries, "error": error, **email.origin, **email.optional}
        letter |= {"ids": list(email.ids)} if email.ids else {}
        try:
            await self._write(email, letter)
        except (Conflict, TooLarge, UnknownError):  # what somebody else put into the outbox need not fit here
            await self._write(email, {name: letter[name] for name in letter.keys() - OPTIONAL_FIELDS.keys()})
        if await self._outbox.holds(email):  # asked after the letter was written: what is erased later takes it along
            await self._outbox.remove(email)
        else:  # unless another holder of the lease has written to the letter, before or since
            await self.letters.delete({"_id": email.id, "tokens": [email.token]})
        return True

    async def _write(self, email: OwedEmail, letter: JSONObject) -> None:
        """Write a letter, which keeps the tokens of all who did so."""
        tokens, now = {"tokens": email.token}, {"died_at": True}
        update = {"$setOnInsert": letter, "$addToSet": tokens, "$currentDate": now}
        write, by_id = self.letters.collection.update_one, {"_id": email.id}
        await self.letters.persist(lambda _: write(by_id, update, upsert=True, collation=SIMPLE))

    async def find(
        self, ids: Sequence[str] | None = None, *, since: datetime | None = None, **fields: str | None
    ) -> Sequence[JSONObject]:
        """Return the dead letters with these ids and fields that died since then, oldest first; by default, all."""
        condition = self._of(ids) | {name: value for name, value in fields.items() if value is not None}
        condition |= {"died_at": {"$gte": since}} if since else {}
        return await self.letters.find(condition, {"tokens": 0}, sort=OLDEST_FIRST, deadline=LONG_DEADLINE)

    async def revive(self, domain: str, since: datetime) -> int:
        """Owe again what died since then as its mailbox was unknown, or suppressed for that; `""` is any domain."""
        at_domain = {"email": {"$regex": f"@{re.escape(domain)}\\s*$", "$options": "i"}} if domain else {}
        unknown = {"error": {"$regex": UNKNOWN}, "died_at": {"$gte": since}, **at_domain}
        letters = await self.letters.find(unknown, {"tokens": 0}, sort=OLDEST_FIRST, deadline=LONG_DEADLINE)
        users = {"user_id": {"$in": [letter["user_id"] for letter in letters]}, "died_at": {"$gte": since}}
        letters += await self.letters.find({**users, "error": {"$regex": "^Suppressed: "}}, {"tokens": 0})
        revived = 0
        for letter in letters:
            with suppress(OutboxFull, Conflict):
                revived += await self.owe_again(letter)
        return revived

    async def discard(self, ids: Sequence[str] | None = None) -> Sequence[JSONObject]:
        """Delete these dead letters, or all; return their ids, which are read first, as a reply may be lost."""
        letters = await self.letters.find(self._of(ids), {"_id": 1}, deadline=LONG_DEADLINE)
        for start in range(0, len(letters), DISCARDED_AT_ONCE):
            some = [letter["_id"] for letter in letters[start : start + DISCARDED_AT_ONCE]]
            await self.letters.delete({"_id": {"$in": some}})
        return letters

    def _of(self, ids: Sequence[str] | None) -> JSONObject:
        return self.own | ({} if ids is None else {"_id": {"$in": ids}})

    async def discard_of_user(self, user_id: str) -> None:
        await self.letters.delete({"user_id": user_id, **self.own})

    async def count(self) -> int:
        count = self.letters.collection.count_documents
        return await self.letters.persist(lambda _: count(self.own, collation=SIMPLE), PING_DEADLINE)

    async def owe_again(self, letter: JSONObject) -> bool:
        """Owe the e-mail again, as a new one, and lift the suppression; return `False` if it or its user is gone."""
        users, id_, once = self._creates.users, letter["_id"], str(ObjectId())
        user_id = users.settings.id_type.parse(f"{letter['user_id']}")
        if user_id is None or not await self.letters.find_one({"_id": id_, **self.own}, {"_id": 1}):
            return False
        element = new_element(id_, letter["key"], letter["at"], typed(letter, KEPT))
        # The key in `recent` guards the write too: the e-mail may be gone before a write without a reply is repeated.
        absent = {"notifier.outbox.id": {"$ne": id_}, "notifier.recent.k": {"$ne": once}}
        update = {
            "$push": {"notifier.outbox": element, "notifier.recent": remember(once, "", id_)},
            "$min": {"notifier.due": element["next_at"]},
            "$unset": {SUPPRESSION: ""},
        }
        write = Write({**users.key(user_id), **absent, **HAS_ROOM, **IS_FINDABLE}, update)
        try:
            await self._creates.record(Creation(user_id, id_, once, "", write))
        except UnknownUser:
            return False
        await self.letters.delete({"_id": id_, "died_at": letter.get("died_at")})  # it may have died again meanwhile
        return True
