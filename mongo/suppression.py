"""Addresses to which nothing is sent because a mail server refused them for good: `notifier.suppression` of a user.

A suppression holds for one address. Once the user's document has another one, e-mails go there.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, NamedTuple

from marshmallow import ValidationError

from config.checks import parse_address, value_at
from mongo.document import SIMPLE, JSONObject
from mongo.errors import PING_DEADLINE, UnknownUser
from mongo.users import Users

FIELD: Final = "notifier.suppression"
SHARED_LIMIT: Final = 100  # users with the same address that one request may change
NO_INDEX: Final = "Missing. An address alone is enough only if the field of EMAIL_FIELD has an index."
PROVISIONAL: Final = timedelta(hours=48)  # after which an e-mail is tried; a second refusal confirms the suppression
EPOCH: Final = datetime(1970, 1, 1)  # noqa: DTZ001 - earlier than any date that the service writes


class Suppression(NamedTuple):
    address: str
    code: str
    at: datetime
    confirmed: bool = False

    def covers(self, address: str, owed_at: datetime) -> bool:
        return self.address == address and (self.confirmed or owed_at < self.at + PROVISIONAL)


def load_suppression(user: Mapping[str, Any]) -> Suppression | None:
    match value_at(user, FIELD):
        case {"address": str(address), "code": str(code), "at": datetime() as at, **others}:
            return Suppression(address, code, at, confirmed=others.get("confirmed") is True)
    return None


def suppress(address: str, code: str) -> JSONObject:
    """Return the stage of an update that suppresses an address, or confirms its suppression.

    Servers sometimes answer 5.1.x for a mailbox that exists. Any other code, such as a complaint's, is reported on
    purpose, and needs no second refusal.
    """
    at, age = f"${FIELD}.at", round(PROVISIONAL.total_seconds() * 1000)
    again = {"$and": [{"$eq": [f"${FIELD}.address", {"$literal": address}]}, {"$eq": [{"$type": at}, "date"]}]}
    late = {"$or": [{"$eq": [f"${FIELD}.confirmed", True]}, {"$lte": [at, {"$subtract": ["$$NOW", age]}]}]}
    suppression = {
        "address": {"$literal": address},
        "code": {"$literal": code},
        "at": {"$cond": [again, at, "$$NOW"]},
        "confirmed": {"$and": [again, late]} if code.startswith("5.1.") else True,
    }
    return {"$set": {FIELD: {"$mergeObjects": [suppression]}}}  # a plain object would go into each element of an array


class Suppressions:
    def __init__(self, users: Users) -> None:
        self._users = users

    async def count(self) -> int:
        suppressed = {f"{FIELD}.at": {"$gte": EPOCH}}
        count = self._users.collection.count_documents
        return await self._users.persist(lambda _: count(suppressed, collation=SIMPLE), PING_DEADLINE)

    async def of_user(self, user_id: str) -> Suppression | None:
        return load_suppression(await self._users.of(user_id, FIELD))

    async def users_with(self, address: str) -> Sequence[str]:
        """Return the users who have this address. Raises `ValidationError` if there is no index, or too many."""
        if not (index := await address_index(self._users)):
            raise ValidationError({"user_id": [NO_INDEX]})
        name, path, collation = index
        asked = {path: {"$in": [address, address.lower()]}}
        find = partial(self._users.collection.find, asked, {"_id": 1}, collation=collation, hint=name)
        users = await self._users.persist(lambda _: find().to_list(SHARED_LIMIT + 1), PING_DEADLINE)
        if len(users) > SHARED_LIMIT:
            raise ValidationError({"address": [f"More than {SHARED_LIMIT} users have it: give user_id."]})
        return [id_ for user in users if (id_ := self._users.settings.id_type.from_bson(user["_id"]))]

    async def change(self, user_id: str, address: str | None, code: str, *, suppressed: bool) -> bool:
        """Suppress the user's address, or lift its suppression; return whether it is suppressed afterwards."""
        if not suppressed:
            await self._users.change(user_id, [{"$unset": FIELD}])
            return False
        user = await self._users.of(user_id, *self._users.team_fields, FIELD)
        if not user:
            raise UnknownUser
        current = parse_address(value_at(user, self._users.settings.email_field))
        if current is None:
            return False
        if address and address.lower() != current.lower():
            known = load_suppression(user)
            return known is not None and known.address == current
        await self._users.change(user_id, [suppress(current, code)])
        return True


async def address_index(users: Users) -> tuple[str, str, Mapping[str, Any]] | None:
    """Return the name, path and collation of an index that finds users by their address, if there is one."""
    field = users.settings.email_field
    paths = {field, re.sub(r"\.\d+(?=\.|$)", "", field)}  # an index on an array covers every element
    indexes = await users.persist(lambda _: users.collection.index_information(), PING_DEADLINE)
    for name, index in indexes.items():
        path, kind = index["key"][0]
        if path in paths and kind in {1, -1} and not index.keys() & {"partialFilterExpression", "hidden"}:
            return name, path, index.get("collation", SIMPLE)
    return None
