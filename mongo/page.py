"""A page of a user's inbox with its counts, and `/seen`: how far the user has looked, read or not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from bson import Int64

from mongo.document import OURS, JSONObject, each, marked, only
from mongo.lanes import Write
from mongo.requests import ListQuery
from mongo.users import Users

SEEN_AT: Final = "notifier.seen_at"

SHARED_LIMITS: Final = (0, 10, 50)
"""Lists share a query with those that round up to the same of these limits. A longer list is fetched alone, so that it
delays no other."""


@dataclass(frozen=True, slots=True)
class Page:
    """Some of a user's notifications, newest first, and the counts of all, of the unread and of the unseen ones.

    `unseen` is `None` as long as the user has not called `/seen`.
    """

    elements: int
    new: int
    list: list[JSONObject]
    unseen: int | None = None

    def first(self, limit: int) -> Page:
        return replace(self, list=self.list[:limit]) if len(self.list) > limit else self


EMPTY: Final = Page(0, 0, [])


def is_shared(query: ListQuery) -> bool:
    return not query.skip and query.limit <= SHARED_LIMITS[-1]


def kind_of_list(query: ListQuery) -> tuple[bool | None, str | None, int]:
    return query.is_new, query.key, min(limit for limit in SHARED_LIMITS if query.limit <= limit)


def page_of(query: ListQuery, users: Users) -> JSONObject:
    newest = users.inbox
    listed = newest if query.is_new is None else marked(newest, is_new=query.is_new)
    if query.key:
        listed = only(listed, {"$eq": ["$$this.key", query.key]})
    skip = min(query.skip, users.limit)
    end = {"$slice": [listed, -(skip + query.limit)]}  # newest last, like the array
    return {
        "elements": {"$size": newest},
        "new": {"$size": marked(newest, is_new=True)},
        "list": {"$slice": [{"$reverseArray": end}, skip, query.limit]} if query.limit else {"$literal": []},
        "unseen": unseen(newest),
    }


def unseen(newest: JSONObject) -> JSONObject:
    """Return the expression of how many unread notifications have come since, absent if the user has seen nothing."""
    is_later = {"$and": [{"$isNumber": "$$this.timestamp"}, {"$gt": ["$$this.timestamp", f"${SEEN_AT}"]}]}
    later = only(newest, {"$and": [{"$eq": ["$$this.is_new", True]}, is_later]})
    return {"$cond": [{"$eq": [{"$type": f"${SEEN_AT}"}, "long"]}, {"$size": later}, "$$REMOVE"]}


async def see(users: Users, user_id: str) -> None:
    """Note that all there is now has been seen: the `timestamp` of the newest notification. No clock is asked.

    An unknown user has nothing to see.
    """
    number = {"$cond": [{"$isNumber": "$$this.timestamp"}, "$$this.timestamp", None]}
    long = {"$convert": {"input": {"$max": each(users.inbox, number)}, "to": "long", "onError": None}}
    known = {"$convert": {"input": f"${SEEN_AT}", "to": "long", "onError": Int64(0), "onNull": Int64(0)}}
    seen = Write(users.key(user_id) | OURS, [{"$set": {SEEN_AT: {"$ifNull": [long, known]}}}])
    if not await users.persist(lambda n: users.writes.make(seen, attempt=n)):
        await users.must_admit(user_id, ["notifier"])
