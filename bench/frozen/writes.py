"""Each operation of a request as one call to MongoDB: its filter and its update, or its projection."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from bson import ObjectId
from pymongo import WriteConcern

from bench.frozen.schemas import JSON, Create, ListQuery, Selection

SAFE: Final = WriteConcern(w="majority", j=True)
EMAIL: Final = "bench@example.com"
"""The address of every user."""
OUTBOX_LIMIT: Final = 20
NO_TOKEN: Final = "0" * 24
HAS_ROOM: Final = {f"outbox.{OUTBOX_LIMIT - 1}": {"$exists": False}}
"""Condition of a write that owes another e-mail."""


def creation(new: Create, limit: int) -> tuple[JSON, JSON]:
    """Return the filter and the update of the upsert that records a notification, an e-mail owed, or both."""
    now, id_ = datetime.now(UTC), str(ObjectId())
    filter_: JSON = {"_id": ObjectId(new.user_id)}
    push: JSON = {}
    update: JSON = {"$setOnInsert": {"email": EMAIL}, "$push": push}
    optional = _optional_fields({"target_id": new.target_id, "data": new.data})
    if new.kind.in_app:
        notification = {"id": id_, "timestamp": int(now.timestamp()), "is_new": True, "user_id": new.user_id}
        notification |= {"key": new.kind.name, **optional}
        push["notifications"] = {"$each": [notification], "$position": 0, "$slice": limit}
    if new.kind.email:
        filter_ |= HAS_ROOM
        push["outbox"] = email = new_element(id_, new.kind.name, now, optional, None)
        update["$min"] = {"mail_due": email["next_at"]}
    return filter_, update


def projection(query: ListQuery) -> JSON:
    """Return the projection that turns a user's document into a page."""
    unread = {"$filter": {"input": "$notifications", "cond": "$$this.is_new"}}
    page = {"$slice": ["$notifications", query.skip, query.limit]}
    return {"_id": 0, "elements": {"$size": "$notifications"}, "new": {"$size": unread}, "list": page}


def marking(query: Selection) -> tuple[JSON, JSON]:
    """Return the filter and the update that mark one notification as read."""
    filter_ = {"_id": ObjectId(query.user_id), "notifications.id": query.value}
    return filter_, {"$set": {"notifications.$.is_new": False}}


def new_element(id_: str, key: str, at: datetime, optional: JSON, request_id: str | None) -> JSON:
    """Make an element of the outbox that is due at once."""
    element: JSON = {
        "id": id_,
        "key": key,
        "at": at,
        "next_at": datetime.fromtimestamp(time.time() / 1000, UTC),
        "tries": 0,
        "token": NO_TOKEN,
        "error": None,
        "dead": False,
        **optional,
    }
    return element | ({"request_id": request_id} if request_id else {})


def _optional_fields(item: Mapping[str, Any]) -> JSON:
    return {name: item[name] for name in ("target_id", "data") if item.get(name) is not None}
