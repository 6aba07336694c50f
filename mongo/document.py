"""The user's document: what the service keeps in it, and the expressions that read it.

```
{ _id: ObjectId, email: "...",
  notifications: [ {id, timestamp, is_new, user_id, key, target_id?, data?}, ... ]   newest first
  outbox: [ {id, key, at, next_at, tries, token, error, dead, request_id?, target_id?, data?} ]   e-mails owed
  mail_due: Date,                              min(outbox.next_at); absent when no e-mail is owed
  recent: [ {k, h} ] }                         the last idempotency keys, each with a hash of its request, newest last
```

MongoDB changes one document atomically, so a request leaves everything behind with one update of its user's
document. Fields not named here belong to other programs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

JSONObject = dict[str, Any]

RECENT_LIMIT: Final = 32
"""Idempotency keys remembered per user."""
OPTIONAL_FIELDS: Final = ("target_id", "data")
"""A notification, an e-mail owed and a dead letter have these only when the request had them."""

NOTIFICATIONS: Final = {"$cond": [{"$isArray": "$notifications"}, "$notifications", []]}
UNREAD: Final = {"$filter": {"input": NOTIFICATIONS, "cond": {"$eq": ["$$this.is_new", True]}}}
READ: Final = {"$filter": {"input": NOTIFICATIONS, "cond": {"$ne": ["$$this.is_new", True]}}}


def optional_fields(item: Mapping[str, Any]) -> JSONObject:
    """Return those of the `OPTIONAL_FIELDS` that have a value."""
    return {name: item[name] for name in OPTIONAL_FIELDS if item.get(name) is not None}


def remember(key: str, fingerprint: str) -> JSONObject:
    """Return the `$push` that remembers an idempotency key and forgets the oldest."""
    return {"$each": [{"k": key, "h": fingerprint}], "$slice": -RECENT_LIMIT}
