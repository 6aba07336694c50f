"""What a user sees and decides: pages of the inbox, its counts, marks, `/seen`, `/delete`, `/erase`, preferences."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter
from typing import Final

from bson import Int64

from config.checks import value_at
from mongo.batcher import Batcher
from mongo.document import ONLY_OURS, OURS, RECENT_LIMIT, SIMPLE, WITHOUT_EMPTY, WRITTEN, JSONObject
from mongo.errors import Changed, EmailUnderWay, UnknownUser, within
from mongo.expressions import DELETED, OUTBOX, absent_or_array, any_of, concat, each, only, without
from mongo.lanes import Write
from mongo.owed import IS_EMAIL, NO_TOKEN, SET_DUE
from mongo.users import Users

SHARED_LIMIT: Final = 50  # a longer list is fetched alone, so that it delays no other
SEEN_AT: Final = "notifier.seen_at"
PREFERENCES: Final = "notifier.preferences"  # only differences from the default, which is that every e-mail is sent
EVERY_KIND: Final = "*"  # the entry of every kind without one of its own


@dataclass(frozen=True, slots=True)
class ListQuery:
    """A page of a user's notifications. `is_new` selects only the unread, or only the read, and `key` one kind."""

    user_id: str
    skip: int
    limit: int
    is_new: bool | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """The notifications of a user whose `field` has this value; without a field, all of them."""

    user_id: str
    field: str | None = None
    value: str | None = None

    def matching(self) -> JSONObject:
        own: JSONObject = {"id": {"$type": "string"}, "is_new": {"$type": "bool"}}
        return own | ({self.field: self.value} if self.field else {})

    def is_shown(self, users: Users) -> JSONObject:
        """Return the condition that the inbox shows the notification with the selected id: hidden ones do not exist."""
        if not (users.slack and self.field == "id" and self.value):
            return {}
        newest = {"$let": {"vars": {"newest": users.inbox}, "in": "$$newest.id"}}
        return {"$expr": {"$in": [{"$literal": self.value}, newest]}}


@dataclass(frozen=True, slots=True)
class Page:
    """Notifications, newest first, and the counts. `unseen` is `None` as long as the user has not called `/seen`."""

    elements: int
    new: int
    list: list[JSONObject]
    unseen: int | None = None


EMPTY: Final = Page(0, 0, [])


def page_of(query: ListQuery, users: Users) -> JSONObject:
    is_unread = {"$eq": ["$$this.is_new", True]}
    newest = listed = users.inbox
    unread = only(newest, is_unread)
    if query.is_new is not None:
        listed = unread if query.is_new else without(newest, is_unread)
    if query.key:
        listed = only(listed, {"$eq": ["$$this.key", query.key]})
    skip = min(query.skip, users.limit)
    end = {"$slice": [listed, -(skip + query.limit)]}  # newest last, like the array
    is_later = {"$and": [{"$isNumber": "$$this.timestamp"}, {"$gt": ["$$this.timestamp", f"${SEEN_AT}"]}]}
    unseen = {"$size": only(unread, is_later)}
    return {
        "elements": {"$size": newest},
        "new": {"$size": unread},
        "list": {"$slice": [{"$reverseArray": end}, skip, query.limit]} if query.limit else {"$literal": []},
        "unseen": {"$cond": [{"$eq": [{"$type": f"${SEEN_AT}"}, "long"]}, unseen, "$$REMOVE"]},
    }


class Inbox:
    def __init__(self, users: Users) -> None:
        self._users = users
        self._lists: Batcher[ListQuery, Page] = Batcher(
            self._fetch, patience=users.patience.operation, kind=attrgetter("skip", "limit", "is_new", "key")
        )

    async def list(self, query: ListQuery) -> Page:
        """Return a page and the counts, all from one read. An unknown user's are empty."""

        async def attempt(n: int) -> Page:
            return (await self._fetch([query]))[0] if n or query.limit > SHARED_LIMIT else await self._lists(query)

        return await self._users.persist(attempt)

    async def _fetch(self, queries: Sequence[ListQuery]) -> Sequence[Page]:
        """Fetch pages that differ only in their users with one query."""
        ids = {self._users.key(query.user_id)["_id"] for query in queries}
        projection = page_of(queries[0], self._users)
        if len(ids) == 1:
            user = await self._users.collection.find_one({"_id": ids.pop()}, projection, collation=SIMPLE)
            documents = [user] if user else []
        else:
            cursor = self._users.shared.find({"_id": {"$in": [*ids]}}, projection, collation=SIMPLE)
            async with within(self._users.patience.shared_call):
                documents = await cursor.to_list()
        pages = {str(user.pop("_id")): Page(**user) for user in documents}
        return [pages.get(query.user_id, EMPTY) for query in queries]

    async def mark(self, selection: Selection, *, is_new: bool) -> bool:
        """Mark the selected notifications as unread, or as read; return whether there are any."""
        users, matching = self._users, selection.matching()
        has_some = {"notifications": {"$elemMatch": matching}, **selection.is_shown(users)}
        selected = [{f"selected.{name}": value for name, value in matching.items()}]
        change = {"$set": {"notifications.$[selected].is_new": is_new}}
        mark = Write(users.key(selection.user_id) | has_some, change, array_filters=selected)
        if await users.persist_for(selection.user_id, lambda n: users.writes.make(mark, attempt=n)):
            return True
        await users.must_admit(selection.user_id, ["notifications"])
        return False

    async def see(self, user_id: str) -> None:
        """Note that the inbox has been seen, by the `timestamp` of the newest notification. No clock is read."""
        users = self._users
        number = {"$cond": [{"$isNumber": "$$this.timestamp"}, "$$this.timestamp", None]}
        newest = {"$ceil": {"$max": each(users.inbox, number)}}
        long = {"$convert": {"input": newest, "to": "long", "onError": None}}
        known = {"$convert": {"input": f"${SEEN_AT}", "to": "long", "onError": Int64(0), "onNull": Int64(0)}}
        seen = Write(users.key(user_id) | OURS, [{"$set": {SEEN_AT: {"$ifNull": [long, known]}}}])
        if not await users.persist(lambda n: users.writes.make(seen, attempt=n)):
            await users.must_admit(user_id, ["notifier"])

    async def delete(self, selection: Selection) -> bool:
        """Delete the selected, and the e-mails that tell only them; return whether there are any, or were until lately.

        They are selected once, by id, so that a repetition deletes nothing newer. Their ids are remembered, because a
        create whose reply was lost may be repeated afterwards. Hidden notifications (NOTIFICATIONS_SLACK) go too, or
        they would move up into the inbox. An e-mail without a notification is selected by its own id.
        """
        users, ids = self._users, await self._ids(selection)
        newest, is_selected = users.inbox, {"$in": ["$$this.id", {"$literal": ids}]}
        is_owed = {"$and": [IS_EMAIL, is_selected, {"$eq": [{"$type": "$$this.ids"}, "missing"]}]}
        gone = {"$setUnion": [each(only(newest, is_selected), "$$this.id"), each(only(OUTBOX, is_owed), "$$this.id")]}
        change = {
            "notifier.deleted": {"$slice": [concat(DELETED, gone), -max(users.limit, RECENT_LIMIT)]},
            "notifier.outbox": _without(is_owed, OUTBOX, "$notifier.outbox"),
            "notifications": _without(is_selected, newest, "$notifications"),
        }
        is_kept = {"notifications": {"$elemMatch": {"id": {"$in": ids}}}, **selection.is_shown(users)}
        has_email = {"notifier.outbox": {"$elemMatch": {"id": {"$in": ids}, "ids": {"$exists": False}}}}
        filter_ = {**users.key(selection.user_id), **OURS, **ONLY_OURS, "$or": [is_kept, has_email]}
        deletion = Write(filter_, [{"$set": change}, SET_DUE])
        is_deleted: bool = bool(ids) and await users.persist(lambda n: users.writes.make(deletion, attempt=n))
        if is_deleted:
            return True
        await users.must_admit(selection.user_id, ["notifications", "notifier"])
        if selection.field != "id":
            return False
        # The reply to an earlier attempt may have been lost.
        deleted = users.key(selection.user_id) | {"notifier.deleted": selection.value}
        return await users.find_one(deleted, {"_id": 1}) is not None

    async def _ids(self, selection: Selection) -> Sequence[str]:
        """Return the one id, or those of the selected that are in the inbox."""
        users, field, value = self._users, selection.field, selection.value
        if field == "id" and value:
            return [value]
        is_string = {"$eq": [{"$type": "$$this.id"}, "string"]}
        matches = {"$and": [is_string, *([{"$eq": [f"$$this.{field}", {"$literal": value}]}] if field else ())]}
        user = await users.find_one(users.key(selection.user_id), {"selected": only(users.inbox, matches)})
        return [item["id"] for item in user["selected"]] if user else []

    async def erase(self, user_id: str) -> None:
        """Remove all that this version of the service keeps in the user's document. Raises `EmailUnderWay`."""
        users, key = self._users, self._users.key(user_id)
        is_leased = {"$and": [IS_EMAIL, {"$ne": ["$$this.token", NO_TOKEN]}, {"$gt": ["$$this.next_at", "$$NOW"]}]}
        any_leased = any_of(OUTBOX, is_leased)
        erasable = {**key, **OURS, **absent_or_array("notifications"), **ONLY_OURS, "$expr": {"$not": [any_leased]}}
        change = [{"$unset": WRITTEN}, WITHOUT_EMPTY]

        async def attempt(_: int) -> None:
            if (await users.collection.update_one(erasable, change, collation=SIMPLE)).matched_count:
                return
            await users.must_admit(user_id, ["notifications", "notifier"])
            if await users.find_one({**key, "$expr": any_leased}, {"_id": 1}):
                raise EmailUnderWay
            if await users.find_one(key, {"_id": 1}):
                raise Changed

        await users.persist(attempt)


def _without(condition: JSONObject, array: JSONObject, stored: str) -> JSONObject:
    """Return the expression of an array without such elements. Where there is no array, nothing changes."""
    return {"$cond": [{"$isArray": stored}, without(array, condition), stored]}


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
        return value_at(await self._users.of(user_id, PREFERENCES), PREFERENCES)

    async def with_address(self, user_id: str) -> tuple[object, object]:
        """Return a user's address and preferences as the document has them. An unknown user gets nothing."""
        user = await self._users.of(user_id, *self._users.team_fields, PREFERENCES)
        address = value_at(user, self._users.settings.email_field)
        return address, value_at(user, PREFERENCES) if user else {EVERY_KIND: {"email": False}}

    async def change(self, user_id: str, changes: Mapping[str, bool | None]) -> object:
        """Set these preferences, `None` for the default; return all of the user's. Raises `UnknownUser`."""
        update = _changed(changes)
        try:
            user = await self._users.change(user_id, update, PREFERENCES)
        except UnknownUser:
            if self._users.profile is None:
                raise
            await self._users.create(user_id)
            user = await self._users.change(user_id, update, PREFERENCES)
        return value_at(user, PREFERENCES)

    async def choose(self, user_id: str, kind: str | None, *, wanted: bool) -> None:
        """Stop e-mails of this kind, or of all kinds that are not required, or undo that. Ignores an unknown user."""
        keeps_wanted = wanted or kind is not None
        with suppress(UnknownUser):
            await self._users.change(user_id, _changed({kind or EVERY_KIND: wanted}, keep_wanted=keeps_wanted))


def _changed(changes: Mapping[str, bool | None], *, keep_wanted: bool = True) -> list[JSONObject]:
    """Return the update that merges the changes, and drops entries that do not differ from the default.

    A kind that is wanted differs only while `*` is not; without `keep_wanted`, it is dropped even then.
    """
    stored = f"${PREFERENCES}"
    entries = {name: {"email": value} for name, value in changes.items()}  # `None` differs from nothing
    every = {"$getField": {"field": {"$literal": EVERY_KIND}, "input": stored}}
    is_exception = [{"$eq": ["$$this.v.email", True]}, {"$eq": ["$$every.email", False]}]
    differs = {"$or": [{"$eq": ["$$this.v.email", False]}, *([{"$and": is_exception}] if keep_wanted else ())]}
    pairs = only({"$objectToArray": stored}, differs)
    return [
        {"$set": {PREFERENCES: {"$mergeObjects": [stored, {"$literal": entries}]}}},
        {"$set": {PREFERENCES: {"$arrayToObject": {"$let": {"vars": {"every": every}, "in": pairs}}}}},
        {"$set": {PREFERENCES: {"$cond": [{"$eq": [stored, {}]}, "$$REMOVE", stored]}}},
    ]
