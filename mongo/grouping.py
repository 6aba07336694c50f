"""Notifications that belong together: windows, whose e-mails tell many at once, and kinds that collapse.

While its window is open, an e-mail waits, so that it tells only what is still unread. A create pushes an element into
`notifier.waiting`. Once the first of a group is due, the claim turns the group into one e-mail of the outbox, which has
their ids.

Of a kind that collapses, a new notification takes the place of the user's unread one of the same key and target.
"""

import logging
from typing import Final

from kinds import Kinds
from mongo.document import OURS, OUTBOX_LIMIT, RECENT_LIMIT, SIMPLE, WITHOUT_EMPTY, JSONObject
from mongo.expressions import DELETED, OUTBOX, WAITING, absent_or_array, any_of, concat, each, only, without
from mongo.lanes import Write
from mongo.owed import IS_FREE, IS_WAITING, SET_DUE, is_ours_to_send, left_to_others, merged
from mongo.users import Users

log = logging.getLogger("notifier.mongo")

IS_OVER: Final = {"$and": [IS_WAITING, {"$lte": ["$$this.due", "$$NOW"]}]}
ROOM: Final = {"$max": [0, {"$subtract": [OUTBOX_LIMIT, {"$size": OUTBOX}]}]}
HAS_WINDOW_OVER: Final = {  # whether a window has ended that the claim can turn into an e-mail
    "$and": [
        {"$gt": [ROOM, 0]},
        {"$in": [{"$type": "$notifier.outbox"}, ["missing", "array"]]},
        any_of(WAITING, IS_OVER),
    ]
}
IS_REPLACED: Final = {"$in": ["$$this.id", "$$replaced"]}


class Windows:
    """The windows of all users. Notifications of an unknown kind are not grouped."""

    def __init__(self, users: Users, kinds: Kinds) -> None:
        self._users = users
        self._kinds = list(kinds)
        self._by_kind = [name for name, kind in kinds.items() if kind.email_batch == "kind"]
        self._by_target = [name for name, kind in kinds.items() if kind.email_batch == "target"]
        self._lengths = {name: round(1000 * kind.window) for name, kind in kinds.items() if kind.window}
        # Elements that may wait. If there are more, some tell notifications that the inbox no longer shows.
        self.room = users.limit + RECENT_LIMIT
        self.has_room: JSONObject = {f"notifier.waiting.{self.room - 1}": {"$exists": False}}

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
        of_group = {"$let": {"vars": {"members": members}, "in": email}}
        emails = {"$map": {"input": groups, "as": "group", "in": of_group}}
        rest = without(WAITING, {"$and": [IS_WAITING, {"$in": [of_this, groups]}]})
        left = merged(rest, {"$and": [IS_OVER, {"$not": [is_ours]}]}, left_to_others("due"))
        return {
            "$set": {"notifier.outbox": {"$concatArrays": [outbox, emails]}, "notifier.waiting": _unless_empty(left)}
        }

    def set_back(self, seconds: float) -> tuple[JSONObject, list[JSONObject]]:
        """Return the condition of windows begun while MongoDB's clock was ahead, and what makes them end earlier."""
        branches = [
            {"case": {"$eq": ["$$this.key", {"$literal": name}]}, "then": {"$add": ["$$NOW", length]}}
            for name, length in self._lengths.items()
        ]
        latest = {"$switch": {"branches": branches, "default": "$$this.due"}} if branches else "$$this.due"
        is_later = {"$and": [IS_WAITING, {"$gt": ["$$this.due", "$$NOW"]}, {"$gt": ["$$this.due", latest]}]}
        due = {"$min": [latest, {"$subtract": ["$$this.due", round(1000 * seconds)]}]}
        return is_later, [{"$set": {"notifier.waiting": merged(WAITING, is_later, {"due": due})}}, SET_DUE]

    async def make_room(self, user_id: str) -> None:
        """Drop elements whose notification the inbox no longer shows. The rest of its group inherits the due time."""
        shown = each(self._users.inbox, "$$this.id")
        is_shown = {"$in": ["$$this.id", shown]}
        gone = only(WAITING, {"$and": [IS_WAITING, {"$not": [is_shown]}]})
        kept = only(WAITING, {"$and": [IS_WAITING, is_shown]})
        before = only(gone, {"$eq": [self._group("$$this"), self._group("$$kept")]})
        due = {"$min": ["$$kept.due", {"$min": each(before, "$$this.due")}]}
        inherited = {"$map": {"input": kept, "as": "kept", "in": {"$mergeObjects": ["$$kept", {"due": due}]}}}
        change: list[JSONObject] = [{"$set": {"notifier.waiting": _unless_empty(inherited)}}, SET_DUE]
        full = self._users.key(user_id) | OURS | {f"notifier.waiting.{self.room - 1}": {"$exists": True}}
        update = self._users.collection.update_one
        await self._users.persist_for(user_id, lambda _: update(full, change, collation=SIMPLE))
        log.info("notifications that wait for their e-mail were pushed out of an inbox")


def _unless_empty(array: JSONObject) -> JSONObject:
    """Return the expression of an array, removed if it is empty. A field that is no array stays as it is."""
    left = {"$cond": [{"$eq": [array, []]}, "$$REMOVE", array]}
    return {"$cond": [{"$isArray": "$notifier.waiting"}, left, "$notifier.waiting"]}


def collapsing(write: Write, users: Users) -> Write:
    """Return the write of a create as a pipeline that replaces the unread notifications of the same key and target.

    Their ids count as deleted, and their `count`s add up. A pipeline would overwrite values that classic operators
    refuse, so its filter refuses them. It creates no user, because it cannot recognise a new document.
    """
    pushes: JSONObject = write.update["$push"]
    (new,) = pushes["notifications"]["$each"]
    newest, limit, target = users.inbox, users.limit, {"$ifNull": ["$$this.target_id", None]}
    same = [("$$this.is_new", True), ("$$this.key", new["key"]), (target, new.get("target_id"))]
    replaced = only(newest, {"$and": [{"$eq": [field, {"$literal": value}]} for field, value in same]})
    counts = each(replaced, {"$cond": [{"$isNumber": "$$this.count"}, "$$this.count", 1]})
    merged = {"$mergeObjects": [{"$literal": new}, {"count": {"$add": [1, {"$sum": counts}]}}]}
    gone = {"$slice": [concat(DELETED, "$$replaced"), -max(limit, RECENT_LIMIT)]}
    change: JSONObject = {
        "notifications": {"$slice": [concat(without(newest, IS_REPLACED), [merged]), -limit]},
        "notifier.deleted": {"$cond": [{"$eq": ["$$replaced", []]}, "$notifier.deleted", gone]},
        **{name: _pushed(name, push) for name, push in pushes.items() if name != "notifications"},
    }
    if "$min" in write.update:
        change["notifier.due"] = {"$min": ["$notifier.due", {"$literal": write.update["$min"]["notifier.due"]}]}
    if "notifier.waiting" in pushes:
        change |= _passed_on(new["id"], pushes["notifier.waiting"], change["notifier.due"])
    ids = each(replaced, "$$this.id")
    fields = {name: {"$let": {"vars": {"replaced": ids}, "in": value}} for name, value in change.items()}
    arrays = [absent_or_array(name) for name in (*pushes, "notifier.outbox")]
    filter_ = write.filter | OURS | {"$and": arrays}
    return Write(filter_, [{"$set": fields}, WITHOUT_EMPTY], guard=write.guard, numbered=write.numbered)


def _pushed(name: str, push: JSONObject) -> JSONObject:
    array = {"$ifNull": [f"${name}", []]}
    if "$each" in push:
        return {"$slice": [concat(array, {"$literal": push["$each"]}), push["$slice"]]}
    return concat(array, [{"$literal": push}])


def _passed_on(id_: str, element: JSONObject, due: JSONObject) -> JSONObject:
    """Return the changes by which a waiting e-mail tells the new notification in place of the replaced ones.

    While it waits, it keeps its due time. Once it is due and not leased, it tells the new one. If it may be in its
    conversation, the new notification gets an e-mail of its own.
    """
    passing = only(WAITING, IS_REPLACED)
    passed = {"$mergeObjects": [{"$first": passing}, {"id": id_, "due": {"$min": each(passing, "$$this.due")}}]}
    told = {"$cond": [{"$isArray": "$$this.ids"}, {"$setIntersection": ["$$this.ids", "$$replaced"]}, []]}
    is_free = {"$and": [IS_FREE, {"$ne": [told, []]}]}
    renamed = {"$mergeObjects": ["$$this", {"ids": concat({"$setDifference": ["$$this.ids", "$$replaced"]}, [id_])}]}
    waits, is_owed = {"$ne": [passing, []]}, any_of(OUTBOX, is_free)

    def choose(if_waiting: object, if_owed: object, otherwise: object) -> JSONObject:
        return {"$cond": [waits, if_waiting, {"$cond": [is_owed, if_owed, otherwise]}]}

    own = concat(WAITING, [{"$literal": element}])
    speaking = each(OUTBOX, {"$cond": [is_free, renamed, "$$this"]})
    return {
        "notifier.waiting": choose(concat(without(WAITING, IS_REPLACED), [passed]), "$notifier.waiting", own),
        "notifier.outbox": choose("$notifier.outbox", speaking, "$notifier.outbox"),
        "notifier.due": choose("$notifier.due", "$notifier.due", due),
    }
