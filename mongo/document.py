"""The user's document: what the service keeps in it, and the expressions that read it.

```
{ _id, email: "...",                          of the team's type (ID_TYPE), and at the team's path (EMAIL_FIELD)
  notifications: [ {id, timestamp, is_new, user_id, key, target_id?, data?, count?}, ... ]   newest last
  notifier: {                                 everything else; absent while there is nothing else
    outbox: [ {id, key, at, next_at, tries, token, error, dead,    e-mails owed
               copies?, crashes?, unknown_until?, request_id?, traceparent?, target_id?, data?, ids?} ],
    waiting: [ {id, key, target_id?, due} ],  notifications whose e-mail waits; the e-mail then has their `ids`
    due: Date,                                min(outbox.next_at, waiting.due); absent when nothing is owed or waits
    recent: [ {k, h, id} ],                   the last idempotency keys, each with a hash of its request, newest last
    deleted: [ id ],                          the last notifications that the user deleted, newest last
    preferences: { KIND or "*": {email} },    where the user wants something else than the default
    suppression: {address, code, at, confirmed},   the address to which nothing is sent, as it was refused for good
    seen_at: 1698138241 } }                   `timestamp` of the newest notification seen; absent before `/seen`
```

The newest `NOTIFICATIONS_LIMIT` notifications are the inbox. The array holds no more, unless `NOTIFICATIONS_SLACK` says
so. Arrays may hold a `null` where somebody has unset an element.

MongoDB changes one document atomically, so a request leaves everything behind with one update of its user's document.
Other fields belong to other programs and are never touched. If one of the two names is taken, MongoDB itself refuses
the classic update operators (codes 2 and 28). A pipeline would replace what it finds, so each has the condition `OURS`.
"""

from collections.abc import Mapping
from typing import Any, Final

JSONObject = dict[str, Any]

OUTBOX_LIMIT: Final = 100  # e-mails owed to one user; part of the write's filter, as what is owed is never dropped
RECENT_LIMIT: Final = 32  # idempotency keys remembered per user
TYPES: Final[Mapping[str, str]] = {  # the fields that the service writes, each with its BSON type
    "notifications": "array",
    "notifier": "object",
    "notifier.outbox": "array",
    "notifier.due": "date",
    "notifier.waiting": "array",
    "notifier.recent": "array",
    "notifier.deleted": "array",
    "notifier.preferences": "object",
    "notifier.suppression": "object",
    "notifier.seen_at": "long",
}
WRITTEN: Final = [name for name in TYPES if name != "notifier"]
WITHOUT_EMPTY: Final[JSONObject] = {  # the stage of a pipeline that takes away a `notifier` in which nothing is left
    "$set": {"notifier": {"$cond": [{"$eq": ["$notifier", {}]}, "$$REMOVE", "$notifier"]}}
}
OPTIONAL_FIELDS: Final[Mapping[str, type]] = {"target_id": str, "data": dict}
"""A notification, an e-mail owed and a dead letter have these, of these types, only when the request had them."""
ORIGIN_FIELDS: Final[Mapping[str, type]] = {"request_id": str, "traceparent": str}
"""An e-mail owed, its dead letter and its log lines have these."""
SIMPLE: Final = {"locale": "simple"}
"""The collation of every comparison. A collection's default collation may ignore case (MongoDB manual, "Collation")."""


def _absent_or(type_: int) -> JSONObject:
    """Return the condition that a field is absent or of this type, by its number in BSON, and no array of such."""
    return {"$not": {"$type": [number for number in (*range(1, 20), -1, 127) if number != type_]}}


OURS: Final = {"notifier": _absent_or(3)}  # an object; the condition of every pipeline that writes to `notifier`
IS_FINDABLE: Final = {"notifier.due": _absent_or(9)}
"""Condition of a write that owes an e-mail: if `due` were anything but a date, nobody would find the e-mail."""
HAS_ROOM: Final = {f"notifier.outbox.{OUTBOX_LIMIT - 1}": {"$exists": False}}  # for another e-mail
IS_DATE: Final = {"$type": "date", "$not": {"$type": "array"}}  # MongoDB counts an array of dates as a date, too
_OTHER: Final = {"$or": [{"id": {"$not": {"$type": "string"}}}, {"is_new": {"$not": {"$type": "bool"}}}]}
_SCALAR: Final = {"$not": {"$type": ["object", "null"]}}
ONLY_OURS: Final[JSONObject] = {"$nor": [{"notifications": {"$elemMatch": odd}} for odd in (_OTHER, _SCALAR)]}
"""Condition that every notification is the service's or `null`. `$push` itself checks that the field is an array."""
IS_OURS: Final = {  # the same as an expression, of one notification
    "$or": [
        {"$eq": [{"$type": "$$this"}, "null"]},
        {"$and": [{"$eq": [{"$type": "$$this.id"}, "string"]}, {"$eq": [{"$type": "$$this.is_new"}, "bool"]}]},
    ]
}
