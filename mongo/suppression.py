"""Addresses that a mail server refused for good, so that nothing is sent to them: the users' `notifier.suppression`.

Each holds for one address. When the user's document has another one, e-mails go there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from marshmallow import ValidationError

from config.address import envelope_address
from mongo.document import SIMPLE, JSONObject, value_at
from mongo.errors import PING_DEADLINE, UnknownUser
from mongo.users import Users

FIELD: Final = "notifier.suppression"
PROVISIONAL: Final = timedelta(hours=48)
"""An e-mail owed later than this after a refusal is tried. If it is refused as well, the suppression is confirmed."""
EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001 - lower than any date of ours


@dataclass(frozen=True, slots=True)
class Suppression:
    """The address that is suppressed, the code of the refusal, when that was, and whether it was confirmed."""

    address: str
    code: str
    at: datetime
    confirmed: bool = False

    def covers(self, address: str, owed_at: datetime) -> bool:
        """Return whether an e-mail that was owed then is not sent to an address."""
        return self.address == address and (self.confirmed or owed_at < self.at + PROVISIONAL)


def load_suppression(user: Mapping[str, Any]) -> Suppression | None:
    """Return the suppression of a document, if it has one and it is ours."""
    match value_at(user, FIELD):
        case {"address": str(address), "code": str(code), "at": datetime() as at, **others}:
            return Suppression(address, code, at, confirmed=others.get("confirmed") is True)
    return None


@dataclass(frozen=True, slots=True)
class Bounce:
    """A refusal for good: the address, and the code of the refusal, such as 5.1.1.

    Servers say 5.1.x of mailboxes that exist, by mistake. Any other code, such as a complaint, is reported on purpose.
    """

    address: str
    code: str

    @property
    def provisional(self) -> bool:
        """Whether a second refusal must confirm it."""
        return self.code.startswith("5.1.")


def suppress(bounce: Bounce) -> JSONObject:
    """Return the stage of an update that suppresses an address, or confirms that."""
    at, age = f"${FIELD}.at", round(PROVISIONAL.total_seconds() * 1000)
    again = {"$and": [{"$eq": [f"${FIELD}.address", {"$literal": bounce.address}]}, {"$eq": [{"$type": at}, "date"]}]}
    late = {"$or": [{"$eq": [f"${FIELD}.confirmed", True]}, {"$lte": [at, {"$subtract": ["$$NOW", age]}]}]}
    suppression = {
        "address": {"$literal": bounce.address},
        "code": {"$literal": bounce.code},
        "at": {"$cond": [again, at, "$$NOW"]},
        "confirmed": {"$and": [again, late]} if bounce.provisional else True,
    }
    return {"$set": {FIELD: {"$mergeObjects": [suppression]}}}  # a plain object would go into each element of an array


class Suppressions:
    """The suppressions of all users."""

    def __init__(self, users: Users) -> None:
        self._users = users

    async def count(self) -> int:
        """Return how many users have one. Raises `Unavailable`."""
        found = {f"{FIELD}.at": {"$gte": EPOCH}}
        count = self._users.collection.count_documents
        return await self._users.persist(lambda _: count(found, collation=SIMPLE), PING_DEADLINE)

    async def of_user(self, user_id: str) -> Suppression | None:
        """Return a user's suppression, if there is one. Raises `Unavailable`."""
        return load_suppression(await self._users.of(user_id, FIELD))

    async def suppress(self, user_id: str, address: str | None, code: str) -> bool:
        """Suppress the user's address, unless it is another than `address`; return whether it is suppressed then.

        Raises `UnknownUser`, `Conflict`, `TooLarge` or `Unavailable`.
        """
        user = await self._users.of(user_id, *self._users.shape.projection(), FIELD)
        if not user:
            raise UnknownUser
        try:
            current = envelope_address(value_at(user, self._users.shape.email_field))
        except ValidationError:
            return False
        if address not in {None, current}:
            known = load_suppression(user)
            return known is not None and known.address == current
        await self._users.change(user_id, [suppress(Bounce(current, code))])
        return True

    async def lift(self, user_id: str) -> None:
        """Send to the user's address again. Raises the same."""
        await self._users.change(user_id, [{"$unset": FIELD}])
