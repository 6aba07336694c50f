"""What requests ask of the store. Their values are valid, and ids are in their one form."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from kinds import Kind
from mongo.document import OPTIONAL_FIELDS, JSONObject


@dataclass(frozen=True, slots=True)
class Create:
    """What to create for a user. `origin` is kept with an e-mail. What is created `in_bulk` is e-mailed later."""

    user_id: str
    kind: Kind
    target_id: str | None = None
    data: JSONObject | None = None
    idempotency_key: str | None = None
    origin: Mapping[str, str] = field(default_factory=dict)
    in_bulk: bool = False

    @property
    def optional(self) -> JSONObject:
        """Those of the `OPTIONAL_FIELDS` that the request has."""
        return {name: value for name in OPTIONAL_FIELDS if (value := getattr(self, name)) is not None}

    def fingerprint(self) -> str:
        """Return a hash of everything but the user. Bodies with the same meaning have the same one."""
        values = [getattr(self, name) for name in OPTIONAL_FIELDS]
        meaning = json.dumps([self.kind.name, *values], sort_keys=True)
        return hashlib.blake2b(meaning.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True)
class CreateMany:
    """What to create for many users: `each`, with one of the ids in place of its own."""

    user_ids: Sequence[str]
    each: Create


@dataclass(frozen=True, slots=True)
class ListQuery:
    """A page of a user's notifications. `is_new` selects only the unread, or only the read, and `key` one kind."""

    user_id: str
    skip: int
    limit: int
    is_new: bool | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """Of a user's notifications those whose `field` has this value, or all without a field."""

    user_id: str
    field: str | None = None
    value: str | None = None

    def matching(self) -> JSONObject:
        """Return the conditions of an element that is selected and the service's."""
        own: JSONObject = {"id": {"$type": "string"}, "is_new": {"$type": "bool"}}
        return own | ({self.field: self.value} if self.field else {})
