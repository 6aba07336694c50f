"""Addresses that a mail server refused for good, so that nothing is sent to them: the users' `email_suppression`.

Each holds for one address. When the user's document has another one, e-mails go there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from mongo.connection import Collection
from mongo.document import SIMPLE, JSONObject, is_ours, must_be_ours, only_ours
from mongo.errors import PING_DEADLINE, Changed, UnknownUser, persist
from mongo.ids import IdType

FIELD: Final = "email_suppression"
EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001 - lower than any date of ours


@dataclass(frozen=True, slots=True)
class Suppression:
    """The address that is suppressed, the code of the refusal, and when that was."""

    address: str
    code: str
    at: datetime


def load_suppression(user: Mapping[str, Any]) -> Suppression | None:
    """Return the suppression of a document, if it has one and it is ours."""
    match user.get(FIELD):
        case {"address": str(address), "code": str(code), "at": datetime() as at}:
            return Suppression(address, code, at)
    return None


@dataclass(frozen=True, slots=True)
class Bounce:
    """A refusal for good: the address, and the code of the refusal, such as 5.1.1."""

    address: str
    code: str


def suppress(bounce: Bounce) -> JSONObject:
    """Return the stage of an update that suppresses an address, unless the field is not ours."""
    suppression = {"address": {"$literal": bounce.address}, "code": {"$literal": bounce.code}, "at": "$$NOW"}
    return {"$set": {FIELD: {"$cond": [is_ours(FIELD), suppression, f"${FIELD}"]}}}


class Suppressions:
    """The suppressions of all users."""

    def __init__(self, users: Collection, id_type: IdType) -> None:
        self._users = users
        self._id_type = id_type

    async def create_index(self) -> None:
        """Create the index that counts them. Raises a `StoreError`."""
        await persist(lambda: self._users.create_index(f"{FIELD}.at", sparse=True, collation=SIMPLE))

    async def count(self) -> int:
        """Return how many users have one. Raises `Unavailable`."""
        found = {f"{FIELD}.at": {"$gte": EPOCH}}
        return await persist(lambda: self._users.count_documents(found, collation=SIMPLE), PING_DEADLINE)

    async def of_user(self, user_id: str) -> Suppression | None:
        """Return a user's suppression, if there is one. Raises `Unavailable`."""
        user = {"_id": self._id_type.to_bson(user_id)}
        found = await persist(lambda: self._users.find_one(user, {FIELD: 1}, collation=SIMPLE))
        return load_suppression(found) if found else None

    async def suppress(self, user_id: str, bounce: Bounce) -> None:
        """Send nothing more to this address of a user. Raises `UnknownUser`, `Conflict`, `TooLarge`, `Unavailable`."""
        await self._write(user_id, [suppress(bounce)])

    async def lift(self, user_id: str) -> None:
        """Send to the user's address again. Raises the same."""
        await self._write(user_id, [{"$unset": FIELD}])

    async def _write(self, user_id: str, change: list[JSONObject]) -> None:
        user = {"_id": self._id_type.to_bson(user_id)}
        ours = {**user, "$and": list(only_ours(FIELD))}

        async def attempt() -> None:
            if (await self._users.update_one(ours, change, collation=SIMPLE)).matched_count:
                return
            await must_be_ours(self._users, user, [FIELD])
            if await self._users.find_one(user, {"_id": 1}, collation=SIMPLE) is None:
                raise UnknownUser
            raise Changed

        await persist(attempt)
