"""The keys of `API_KEYS`: each may do everything, or only what its scopes say."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Final

from marshmallow import ValidationError

from config import checks


class Scope(enum.Enum):
    """What a caller may do, for every user. A user's token has `INBOX`, for that user."""

    CREATE = "create"
    INBOX = "inbox"
    SUPPRESS = "suppress"
    ERASE = "erase"
    METRICS = "metrics"


Scopes = frozenset[Scope]
ALL: Final = frozenset(Scope)
NAMES: Final = ", ".join(scope.value for scope in Scope)


def parse_keys(items: Sequence[str]) -> Mapping[str, Scopes]:
    """Return the scopes of each key. An item is `KEY`, `SCOPE:KEY` or `SCOPE+SCOPE:KEY`.

    Raises `marshmallow.ValidationError`, without a word of any item: what stands before a colon may be part of a key.
    """
    found: dict[str, Scopes] = {}
    for number, item in enumerate(items, 1):
        names, colon, key = item.partition(":") if ":" in item else ("", "", item)
        try:
            scopes = frozenset(map(Scope, names.split("+"))) if colon else ALL
        except ValueError:
            raise ValidationError(f"Item {number} has no scope before its colon; the scopes are {NAMES}.") from None
        checks.long_secrets([key])
        if key in found:
            raise ValidationError(f"Item {number} repeats a key; a key with several scopes is SCOPE+SCOPE:KEY.")
        found[key] = scopes
    return found
