"""The keys of `API_KEYS`: each opens everything, or only what its scopes name."""

from __future__ import annotations

import enum
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


def parse_key(item: str) -> tuple[str, Scopes]:
    """Return a key and its scopes. An item is `KEY`, `SCOPE:KEY` or `SCOPE+SCOPE:KEY`.

    Raises `marshmallow.ValidationError`, which quotes nothing: what stands before a colon may be part of a key.
    """
    names, colon, key = item.partition(":") if ":" in item else ("", "", item)
    try:
        scopes = frozenset(map(Scope, names.split("+"))) if colon else ALL
    except ValueError:
        raise ValidationError(f"Has no scope before its colon; the scopes are {NAMES}.") from None
    checks.long_secret(key)
    return key, scopes
