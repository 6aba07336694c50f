"""Windows: notifications whose e-mail waits, so that it tells only what is still unread, and many at once.

A create pushes an element into `notifier.waiting`. Once the first of a group is due, the claim turns the group into one
e-mail of the outbox, which has their ids.
"""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Any, Final

from kinds import Kinds
from mongo.document import (
    OURS,
    OUTBOX,
    OUTBOX_LIMIT,
    RECENT_LIMIT,
    WAITING,
    JSONObject,
    any_of,
    each,
    only,
    without,
)
from mongo.owed import IS_WAITING, SET_DUE, is_ours_to_send, left_to_others, merged
from mongo.users import Users

log = logging.getLogger("notifier.mongo")

IS_OVER: Final = {"$and": [IS_WAITING, {"$lte": ["$$this.due", "$$NOW"]}]}
ROOM: Final = {"$max": [0, {"$subtract": [OUTBOX_LIMIT, {"$size": OUTBOX}]}]}
HAS_WINDOW_OVER: Final = {
    "$and": [
        {"$gt": [ROOM, 0]},
        {"$in": [{"$type": "$notifier.outbox"}, ["missing", "array"]]},
        any_of(WAITING, IS_OVER),
    ]
}
"""Whether a window has ended that the claim can turn into an e-mail."""


class Windows:
    """The windows of all users. Notifications of an unknown kind are not grouped."""

    def __init__(self, users: Users, kinds: Kinds) -> None:
        self._users = users
        self._kinds = list(kinds)
        self._by_kind = [name for name, kind in kinds.items() if kind.email_batch == "kind"]
        self._by_target = [name for name, kind in kinds.items() if kind.email_batch == "target"]
        self._lengths = {name: round(1000 * kind.window) for name, kind in kinds.items() if kind.window}
        self.room = users.limit + RECENT_LIMIT
        """Elements that may wait. Beyond it, some tell notifications that the inbox no longer shows."""

    def has_room(self) -> JSONObject:
        return {f"notifier.waiting.{self.room - 1}": {"$exists": False}}

    def new_element(self, id_: str, key: str, due: datetime, target_id: str | None) -> JSONObject:
        return {"id": id_, "key": key, **({"target_id": target_id} if target_id else {}), "due": due}

    def _group(self, element: str) -> JSONObject:
        """Return the expression that is equal for elements that share an e-mail."""
        key, target = f"{element}.key", {"$ifNull": [f"{element}.target_id", None]}
        branches = [
            {"case": {"$in": [key, {"$literal": self._by_kind}]}, "then": [key]},
            {"case": {"$in": [key, {"$literal": self._by_target}]}, "then": [key, target]},
        ]
        return {"$switch": {"branches": branches, "default": ["", f"{element}.id"]}}

    def claim(self, outbox: JSONObject, leased: JSONObject) -> JSONObject:
        """Return the stage that makes e-mails of windows that have ended, and adds them, `leased`, to this outbox."""
        of_this, is_ours = self._group("$$this"), is_ours_to_send(self._kinds)
        is_taken = {"$and": [IS_OVER, is_ours]}
        over = each(only(WAITING, is_taken), of_this)
        groups = {"$slice": [{"$setUnion": [over]}, ROOM]}
        members = only(WAITING, {"$and": [IS_WAITING, {"$eq": [of_this, "$$group"]}]})
        email = {
            "id": {"$first": "$$members.id"},
            "key": {"$first": "$$members.key"},
            "at": {"$min": "$$members.due"},
            "tries": 0,
            "error": None,
            "dead": False,
            "ids": "$$members.id",
            "unknown_until": {"$ifNull": [{"$max": "$$members.unknown_until"}, "$$REMOVE"]},
            **leased,
        }
        made = {"$let": {"vars": {"members": members}, "in": email}}
        emails = {"$map": {"input": groups, "as": "group", "in": made}}
        rest = without(WAITING, {"$and": [IS_WAITING, {"$in": [of_this, groups]}]})
        left = merged(rest, {"$and": [IS_OVER, {"$not": [is_ours]}]}, left_to_others("due"))
        return {
            "$set": {"notifier.outbox": {"$concatArrays": [outbox, emails]}, "notifier.waiting": _unless_empty(left)}
        }

    def set_back(self, seconds: float) -> tuple[JSONObject, list[JSONObject]]:
        """Return the condition of windows that began while MongoDB's clock was ahead, and their correction.

        They end `seconds` earlier, and no later than if they began now.
        """
        branches = [
            {"case": {"$eq": ["$$this.key", {"$literal": name}]}, "then": {"$add": ["$$NOW", length]}}
            for name, length in self._lengths.items()
        ]
        latest = {"$switch": {"branches": branches, "default": "$$this.due"}} if branches else "$$this.due"
        is_later = {"$and": [IS_WAITING, {"$gt": ["$$this.due", "$$NOW"]}, {"$gt": ["$$this.due", latest]}]}
        due = {"$min": [latest, {"$subtract": ["$$this.due", round(1000 * seconds)]}]}
        return is_later, [{"$set": {"notifier.waiting": merged(WAITING, is_later, {"due": due})}}, SET_DUE]

    async def make_room(self, user_id: str) -> None:
        """Let go those whose notification the inbox no longer shows. Others of a group inherit when it ends."""
        shown = each(self._users.inbox, "$$this.id")
        is_shown = {"$in": ["$$this.id", shown]}
        gone = only(WAITING, {"$and": [IS_WAITING, {"$not": [is_shown]}]})
        kept = only(WAITING, {"$and": [IS_WAITING, is_shown]})
        before = only(gone, {"$eq": [self._group("$$this"), self._group("$$kept")]})
        due = {"$min": ["$$kept.due", {"$min": each(before, "$$this.due")}]}
        inherited = {"$map": {"input": kept, "as": "kept", "in": {"$mergeObjects": ["$$kept", {"due": due}]}}}
        change: list[dict[str, Any]] = [{"$set": {"notifier.waiting": _unless_empty(inherited)}}, SET_DUE]
        full = self._users.key(user_id) | OURS | {f"notifier.waiting.{self.room - 1}": {"$exists": True}}
        update = self._users.collection.update_one
        await self._users.persist_for(user_id, lambda _: update(full, change, collation={"locale": "simple"}))
        log.info("notifications that wait for their e-mail were pushed out of an inbox")


def _unless_empty(array: JSONObject) -> JSONObject:
    """Return the expression of an array, removed if it is empty. A field that is no array stays as it is."""
    left = {"$cond": [{"$eq": [array, []]}, "$$REMOVE", array]}
    return {"$cond": [{"$isArray": "$notifier.waiting"}, left, "$notifier.waiting"]}
