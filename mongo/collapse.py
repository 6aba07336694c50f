"""Kinds that collapse: a new notification takes the place of the user's unread one of the same key and target."""

from __future__ import annotations

from typing import Any, Final, cast

from mongo.document import (
    DELETED,
    OURS,
    OUTBOX,
    RECENT_LIMIT,
    WAITING,
    WITHOUT_EMPTY,
    JSONObject,
    Write,
    absent_or_array,
    any_of,
    concat,
    each,
    inbox,
    only,
    without,
)
from mongo.owed import NO_TOKEN

IS_REPLACED: Final = {"$in": ["$$this.id", "$$replaced"]}


def collapsing(write: Write, limit: int) -> Write:
    """Return the write of a create as a pipeline that replaces the unread notifications of the same key and target.

    The ids of these count as deleted, and their `count`s add up. A pipeline would overwrite values that classic
    operators refuse, so its filter refuses them. It creates no user, because it cannot recognise a new document.
    """
    update = cast("JSONObject", write.update)
    pushes: dict[str, Any] = update["$push"]
    (new,) = pushes["notifications"]["$each"]
    newest = inbox(limit)
    replaced = only(newest, _is_same(new))
    counts = each(replaced, {"$cond": [{"$isNumber": "$$this.count"}, "$$this.count", 1]})
    merged = {"$mergeObjects": [{"$literal": new}, {"count": {"$add": [1, {"$sum": counts}]}}]}
    gone = {"$slice": [concat(DELETED, "$$replaced"), -max(limit, RECENT_LIMIT)]}
    change: JSONObject = {
        "notifications": {"$slice": [concat(without(newest, IS_REPLACED), [merged]), -limit]},
        "notifier.deleted": {"$cond": [{"$eq": ["$$replaced", []]}, "$notifier.deleted", gone]},
        **{name: _pushed(name, push) for name, push in pushes.items() if name != "notifications"},
    }
    if "$min" in update:
        change["notifier.due"] = {"$min": ["$notifier.due", {"$literal": update["$min"]["notifier.due"]}]}
    if "notifier.waiting" in pushes:
        change |= _passed_on(new["id"], pushes["notifier.waiting"], change["notifier.due"])
    ids = each(replaced, "$$this.id")
    fields = {name: {"$let": {"vars": {"replaced": ids}, "in": value}} for name, value in change.items()}
    arrays = [absent_or_array(name) for name in (*pushes, "notifier.outbox")]
    filter_ = write.filter | OURS | {"$and": arrays}
    return Write(filter_, [{"$set": fields}, WITHOUT_EMPTY], guard=write.guard, numbered=write.numbered)


def _is_same(new: JSONObject) -> JSONObject:
    target = {"$ifNull": ["$$this.target_id", None]}
    same = [["$$this.is_new", True], ["$$this.key", {"$literal": new["key"]}]]
    return {"$and": [*({"$eq": pair} for pair in same), {"$eq": [target, {"$literal": new.get("target_id")}]}]}


def _pushed(name: str, push: JSONObject) -> JSONObject:
    """Return the expression that does what `$push` does."""
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
    passed = {
        "$mergeObjects": [
            {"$first": passing},
            {"id": id_, "due": {"$min": each(passing, "$$this.due")}},
        ]
    }
    told = {"$cond": [{"$isArray": "$$this.ids"}, {"$setIntersection": ["$$this.ids", "$$replaced"]}, []]}
    is_free = {"$and": [{"$eq": ["$$this.token", NO_TOKEN]}, {"$ne": [told, []]}]}
    renamed = {"$mergeObjects": ["$$this", {"ids": concat({"$setDifference": ["$$this.ids", "$$replaced"]}, [id_])}]}
    waits, is_owed = {"$ne": [passing, []]}, any_of(OUTBOX, is_free)

    def choose(if_waiting: object, if_owed: object, otherwise: object) -> JSONObject:
        return {
            "$switch": {
                "branches": [{"case": waits, "then": if_waiting}, {"case": is_owed, "then": if_owed}],
                "default": otherwise,
            }
        }

    speaking = each(OUTBOX, {"$cond": [is_free, renamed, "$$this"]})
    return {
        "notifier.waiting": choose(
            concat(without(WAITING, IS_REPLACED), [passed]),
            "$notifier.waiting",
            concat(WAITING, [{"$literal": element}]),
        ),
        "notifier.outbox": choose("$notifier.outbox", speaking, "$notifier.outbox"),
        "notifier.due": choose("$notifier.due", "$notifier.due", due),
    }
