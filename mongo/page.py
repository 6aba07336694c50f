"""A page of a user's inbox with its counts: the projection that makes one of a document."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from mongo.document import JSONObject, inbox, marked
from mongo.requests import ListQuery
from mongo.seen import unseen

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
        """Return the page cut to at most `limit` notifications."""
        return replace(self, list=self.list[:limit])


EMPTY: Final = Page(0, 0, [])


def is_shared(query: ListQuery) -> bool:
    """Return whether the list may share a query with others."""
    return not query.skip and query.limit <= SHARED_LIMITS[-1]


def kind_of_list(query: ListQuery) -> tuple[bool | None, str | None, int]:
    """Return what lists have in common that share a query."""
    return query.is_new, query.key, min(limit for limit in SHARED_LIMITS if query.limit <= limit)


def page_of(query: ListQuery, inbox_limit: int) -> JSONObject:
    """Return the projection that makes a `Page` of a user's document."""
    newest = inbox(inbox_limit)
    listed = newest if query.is_new is None else marked(newest, is_new=query.is_new)
    if query.key:
        listed = {"$filter": {"input": listed, "cond": {"$eq": ["$$this.key", query.key]}}}
    skip = min(query.skip, inbox_limit)
    end = {"$slice": [listed, -(skip + query.limit)]}  # newest last, like the array
    return {
        "elements": {"$size": newest},
        "new": {"$size": marked(newest, is_new=True)},
        "list": {"$slice": [{"$reverseArray": end}, skip, query.limit]} if query.limit else {"$literal": []},
        "unseen": unseen(inbox_limit),
    }
