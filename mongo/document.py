"""The user's document: what the service keeps in it, and the expressions that read it.

```
{ _id, email: "...",                          of the team's type, and at the team's path (`Shape`)
  notifications: [ {id, timestamp, is_new, user_id, key, target_id?, data?}, ... ]   newest last
  outbox: [ {id, key, at, next_at, tries, token, error, dead, request_id?, target_id?, data?} ]   e-mails owed
  mail_due: Date,                              min(outbox.next_at); absent when no e-mail is owed
  recent: [ {k, h} ],                          the last idempotency keys, each with a hash of its request, newest last
  deleted_notifications: [ id ],               the last that the user deleted, newest last
  notification_preferences: { KIND or "*": {email} },    where the user wants something else than the default
  email_suppression: {address, code, at} }     the address to which nothing is sent, as mail to it was refused for good
```

The newest `NOTIFICATIONS_LIMIT` notifications are the inbox. Before them the array may hold half as many again, which
nobody sees any more (`append`).

MongoDB changes one document atomically, so a request leaves everything behind with one update of its user's
document. Fields not named here belong to other programs, and so may a field of the same name: the service writes to a
field only while everything in it has the shape above. An array may hold a `null`, where an operator unset an element.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from random import randrange
from typing import Any, Final

from mongo.connection import Collection
from mongo.errors import Conflict
from mongo.ids import IdType, named

JSONObject = dict[str, Any]

OUTBOX_LIMIT: Final = 20
"""E-mails owed to one user. The limit is part of the write's filter: what is owed is never dropped."""
RECENT_LIMIT: Final = 32
"""Idempotency keys remembered per user."""
DEAD_MAIL: Final = "dead_mail"
"""The collection of the dead letters."""
WRITTEN: Final = (
    *("notifications", "outbox", "mail_due", "recent"),
    *("deleted_notifications", "notification_preferences", "email_suppression"),
)
OWN_FIELDS: Final = frozenset({"_id", *WRITTEN})
"""Fields of the user's document that the service writes, without and with `_id`."""
OPTIONAL_FIELDS: Final = ("target_id", "data")
"""A notification, an e-mail owed and a dead letter have these only when the request had them."""

TRIMS: Final = 8
"""Trims in as many creates as an inbox holds, on average."""
SIMPLE: Final = {"locale": "simple"}
"""The collation of every comparison. A collection's default collation may ignore case (MongoDB manual, "Collation")."""
IS_DATE: Final = {"$type": "date", "$not": {"$type": "array"}}
"""Of a field: an array of dates has the type date, too."""
ELEMENTS: Final[Mapping[str, Mapping[str, str]]] = {
    "notifications": {"id": "string", "is_new": "bool"},
    "outbox": {"id": "string", "key": "string", "token": "string"},
    "recent": {"k": "string", "h": "string"},
}
"""Our arrays, and what tells their elements from those of other programs: fields and their types."""

EXPLAINING: Final = {"notifications.id": 1, "outbox": 1, "recent": 1, "deleted_notifications": 1}
"""The projection of what explains why the condition of a create failed."""
SCALARS: Final = [
    *("double", "string", "binData", "undefined", "objectId", "bool", "date", "regex", "dbPointer", "javascript"),
    *("symbol", "javascriptWithScope", "int", "timestamp", "long", "decimal", "minKey", "maxKey"),
]
"""The types of all values that are neither objects, arrays nor `null`."""


def _all(array: JSONObject | str, condition: JSONObject) -> JSONObject:
    return {"$allElementsTrue": [{"$map": {"input": array, "in": condition}}]}


OURS: Final[Mapping[str, tuple[str, JSONObject]]] = {
    "deleted_notifications": ("array", _all("$deleted_notifications", {"$eq": [{"$type": "$$this"}, "string"]})),
    "notification_preferences": (
        "object",
        _all({"$objectToArray": "$notification_preferences"}, {"$eq": [{"$type": "$$this.v.email"}, "bool"]}),
    ),
    "email_suppression": (
        "object",
        {
            "$and": [
                {"$eq": [{"$type": f"$email_suppression.{name}"}, kind]}
                for name, kind in {"address": "string", "code": "string", "at": "date"}.items()
            ]
        },
    ),
}
"""What is not written by every create: the type of the field, and the expression of what else must hold of ours."""


def is_ours(field: str) -> JSONObject:
    """Return the expression of whether one of `OURS` is absent, `null` or ours."""
    kind, holds = OURS[field]
    typed = {"$cond": [{"$eq": [{"$type": f"${field}"}, kind]}, holds, False]}
    return {"$cond": [{"$lte": [f"${field}", None]}, True, typed]}


@cache
def only_ours(field: str) -> Sequence[JSONObject]:
    """Return conditions of a write to a field: it is absent or ours, and in an array everything is ours or `null`."""
    if field in OURS:
        return ({"$expr": is_ours(field)},)
    if field == "mail_due":
        due: JSONObject = {"mail_due": IS_DATE, "outbox": {"$type": "array"}}
        return ({"$or": [{"mail_due": {"$exists": False}}, due]},)
    faults: list[JSONObject] = []
    for name, kind in ELEMENTS[field].items():
        faults.append({name: {"$not": {"$type": kind}}})
        if field != "notifications":  # `$type` looks into arrays, too; where it matters, they are excluded
            faults.append({name: {"$type": "array"}})
    if field == "outbox":  # the condition that there is room would take this field for the last place
        faults.append({f"{OUTBOX_LIMIT - 1}": {"$exists": True}})
    an_element, none = {field: {"$elemMatch": {"$exists": True}}}, {field: {"$size": 0}}
    return (
        {"$or": [{field: {"$exists": False}}, an_element, none]},
        {field: {"$not": {"$type": SCALARS}}},
        {field: {"$not": {"$elemMatch": {"$or": faults}}}},
    )


def only_ours_without(id_: str) -> Sequence[JSONObject]:
    """Return the same for `notifications`, none of which may have this id.

    That is tested in the same pass, as MongoDB takes a fifth of the time of a write for each pass over a full inbox.
    """
    *others, elements = only_ours("notifications")
    faults = elements["notifications"]["$not"]["$elemMatch"]["$or"]
    return (*others, {"notifications": {"$not": {"$elemMatch": {"$or": [{"id": id_}, *faults]}}}})


async def must_be_ours(users: Collection, user: JSONObject, fields: Iterable[str]) -> None:
    """Raise `Conflict` if one of these fields is not ours in a user's document, as MongoDB judges it."""
    for field in fields:
        if await users.find_one({**user, "$nor": [{"$and": only_ours(field)}]}, {"_id": 1}, collation=SIMPLE):
            raise Conflict(f"the field `{field}` of {named(str(user['_id']))}, which is not the service's")


def elements(user: Mapping[str, Any], field: str) -> list[JSONObject]:
    """Return the elements of an array of ours, without what is not ours."""
    array = user.get(field)
    return [item for item in array if isinstance(item, dict)] if isinstance(array, list) else []


def inbox(limit: int) -> JSONObject:
    """Return the expression of a user's inbox: the newest `limit` notifications, newest last."""
    return {"$slice": [{"$cond": [{"$isArray": "$notifications"}, "$notifications", []]}, -limit]}


def marked(notifications: JSONObject, *, is_new: bool) -> JSONObject:
    """Return the expression of those of the notifications that are unread, or else of those that are read."""
    is_unread = {"$eq": ["$$this.is_new", True]}
    return {"$filter": {"input": notifications, "cond": is_unread if is_new else {"$not": is_unread}}}


def has(limit: int, id_: str) -> JSONObject:
    """Return the expression of whether the inbox has a notification with this id."""
    return {"$in": [{"$literal": id_}, {"$let": {"vars": {"newest": inbox(limit)}, "in": "$$newest.id"}}]}


def append(notification: JSONObject, limit: int) -> JSONObject:
    """Return the `$push` that adds a notification to an inbox of `limit`.

    A push at the end costs MongoDB's oplog the new element; one that also trims costs it the whole array. So only one
    in `limit / TRIMS` trims, at random, and the others trim at one and a half times the limit.
    """
    trims = randrange(limit) < TRIMS
    return {"$each": [notification], "$slice": -limit if trims else -(limit + limit // 2)}


def value_at(document: object, path: str) -> object:
    """Return what a document has at a path through documents and arrays, such as `emails.0.address`, or `None`."""
    for name in path.split("."):
        if isinstance(document, dict):
            document = document.get(name)
        elif isinstance(document, list) and name.isdecimal() and int(name) < len(document):
            document = document[int(name)]
        else:
            return None
    return document


@dataclass(frozen=True, slots=True)
class Shape:
    """What the team's own documents are like: the type of `_id`, and where the address and the language are."""

    id_type: IdType = IdType.OBJECTID
    email_field: str = "email"
    language_field: str | None = None

    def projection(self) -> JSONObject:
        """Return the projection that reads the address and the language."""
        paths = [self.email_field, *([self.language_field] if self.language_field else ())]
        return {path.partition(".")[0]: 1 for path in paths}


def optional_fields(item: Mapping[str, Any]) -> JSONObject:
    """Return those of the `OPTIONAL_FIELDS` that have a value."""
    return {name: item[name] for name in OPTIONAL_FIELDS if item.get(name) is not None}


def remember(key: str, fingerprint: str) -> JSONObject:
    """Return the `$push` that remembers an idempotency key and forgets the oldest."""
    return {"$each": [{"k": key, "h": fingerprint}], "$slice": -RECENT_LIMIT}
