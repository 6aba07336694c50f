"""Kinds that this process does not know. What falls due of them is left to others for a while.

While replicas of two versions run, a new kind and its template are only the new one's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from mongo.document import JSONObject
from mongo.owed import from_now

LEFT_TO_OTHERS: Final = 300.0
"""Seconds for which others may take it."""
NEXT_LOOK: Final = 5.0
"""Seconds after which it is due again meanwhile."""


def is_ours_to_send(kinds: Iterable[str]) -> JSONObject:
    """Return whether an element is of one of these kinds, or nobody else has taken it, as an expression."""
    is_known = {"$in": ["$$this.key", {"$literal": list(kinds)}]}
    return {"$or": [is_known, {"$eq": ["$$this.dead", True]}, {"$lte": [_until(), "$$NOW"]}]}


def left_to_others(due: str) -> JSONObject:
    """Return the change of an element that is not ours to send. `due` is the field that says when it is due."""
    return {due: from_now(NEXT_LOOK), "unknown_until": _until()}


def _until() -> JSONObject:
    return {"$ifNull": ["$$this.unknown_until", from_now(LEFT_TO_OTHERS)]}
