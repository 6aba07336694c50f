"""A write to one document, as a call that it shares with others takes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mongo.document import SIMPLE, JSONObject

Outcome = bool | Exception | None
"""What became of a write: whether its conditions held, its error, or `None` if the reply does not say."""


@dataclass(frozen=True, slots=True)
class Write:
    """A write to one document.

    `filter` are the conditions that it always has. A write that is `numbered` may be given a number, which makes it
    safe to repeat; without one, `guard` are the conditions that do. Other writes are safe by themselves.
    """

    filter: JSONObject
    update: JSONObject | Sequence[JSONObject]
    upsert: bool = False
    guard: JSONObject = field(default_factory=dict)
    numbered: bool = False
    array_filters: Sequence[JSONObject] | None = None

    def conditions(self, *, guarded: bool) -> JSONObject:
        """Return all its conditions, with or without the guard."""
        return self.filter | self.guard if guarded else self.filter

    def statement(self, *, guarded: bool) -> JSONObject:
        """Return it as the `update` command takes it."""
        q = self.conditions(guarded=guarded)
        statement: JSONObject = {"q": q, "u": self.update, "upsert": self.upsert, "collation": SIMPLE}
        return statement | ({"arrayFilters": self.array_filters} if self.array_filters else {})
