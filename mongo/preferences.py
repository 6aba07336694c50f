"""Which e-mails a user wants: `notifier.preferences` in the user's document.

By default every e-mail is sent, and only differences from that are stored: `{"invoice_ready": {"email": false}}`. The
entry `*` applies to every kind without an entry of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from config.checks import value_at
from mongo.document import JSONObject, only
from mongo.errors import UnknownUser
from mongo.users import Users

FIELD: Final = "notifier.preferences"
EVERY_KIND: Final = "*"


def wants_email(preferences: object, kind: str) -> bool:
    """Return whether a user wants e-mails of a kind. Values of other programs are ignored."""
    for name in (kind, EVERY_KIND):
        entry = preferences.get(name) if isinstance(preferences, dict) else None
        if isinstance(entry, dict) and isinstance(wanted := entry.get("email"), bool):
            return wanted
    return True


class Preferences:
    def __init__(self, users: Users) -> None:
        self._users = users

    async def of_user(self, user_id: str) -> object:
        return value_at(await self._users.of(user_id, FIELD), FIELD)

    async def with_address(self, user_id: str) -> tuple[object, object]:
        """Return a user's address and preferences as they stand in the document. Raises `Unavailable`.

        An unknown user has no address, and gets nothing.
        """
        user = await self._users.of(user_id, *self._users.team_fields, FIELD)
        address = value_at(user, self._users.settings.email_field)
        return address, value_at(user, FIELD) if user else {EVERY_KIND: {"email": False}}

    async def change(self, user_id: str, changes: Mapping[str, bool | None]) -> object:
        """Set whether e-mails of these kinds are wanted, `None` for the default; return the new preferences.

        Raises `UnknownUser`.
        """
        try:
            return await self._write(user_id, _changed(changes))
        except UnknownUser:
            if self._users.profile is None:
                raise
            await self._users.create(user_id)
            return await self._write(user_id, _changed(changes))

    async def unsubscribe(self, user_id: str, kind: str | None) -> None:
        """Stop e-mails of this kind, or of all kinds that are not required. An unknown user is ignored."""
        with suppress(UnknownUser):
            await self._write(user_id, _changed({kind or EVERY_KIND: False}, keep_wanted=kind is not None))

    async def resubscribe(self, user_id: str, kind: str | None) -> None:
        with suppress(UnknownUser):
            await self._write(user_id, _changed({kind or EVERY_KIND: True}))

    async def _write(self, user_id: str, change: list[JSONObject]) -> object:
        return value_at(await self._users.change(user_id, change, FIELD), FIELD)


def _changed(changes: Mapping[str, bool | None], *, keep_wanted: bool = True) -> list[JSONObject]:
    """Return the update that merges the changes, and drops entries that do not differ from the default.

    A kind that is wanted differs only while `*` is not; without `keep_wanted`, it is dropped even then.
    """
    entries = {name: {"email": value} for name, value in changes.items()}  # `None` differs from nothing
    every = {"$getField": {"field": {"$literal": EVERY_KIND}, "input": f"${FIELD}"}}
    is_exception = [{"$eq": ["$$this.v.email", True]}, {"$eq": ["$$every.email", False]}]
    differs = {"$or": [{"$eq": ["$$this.v.email", False]}, *([{"$and": is_exception}] if keep_wanted else ())]}
    pairs = only({"$objectToArray": f"${FIELD}"}, differs)
    return [
        {"$set": {FIELD: {"$mergeObjects": [f"${FIELD}", {"$literal": entries}]}}},
        {"$set": {FIELD: {"$arrayToObject": {"$let": {"vars": {"every": every}, "in": pairs}}}}},
        {"$set": {FIELD: {"$cond": [{"$eq": [f"${FIELD}", {}]}, "$$REMOVE", f"${FIELD}"]}}},
    ]
