"""Users' ids: as callers write them, and as the `_id` of the user's document."""

import enum
import re
from collections.abc import Callable
from typing import Final

from bson import ObjectId

OBJECT_ID: Final = "[0-9a-fA-F]{24}"
STRING_LIMIT: Final = 128  # characters
STRING: Final = rf"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{{1,{STRING_LIMIT}}}"


def named(id_: str) -> str:
    """Return a name for the document in the log. An `_id` that may be an e-mail address is not shown."""
    return "a document whose _id is an address" if "@" in id_ else f"document {id_}"


class IdType(enum.Enum):
    """The type of the `_id`s, and of the ids of entities that notifications are about."""

    OBJECTID = "objectid"
    STRING = "string"

    def __init__(self, name: str) -> None:
        self.matches = re.compile(OBJECT_ID if name == "objectid" else STRING).fullmatch
        self.canonical: Callable[[str], str] = str.lower if name == "objectid" else str

    @property
    def fault(self) -> str:
        if self is IdType.OBJECTID:
            return "Not a valid ObjectId."
        return f"Not 1 to {STRING_LIMIT} characters without control characters."

    def parse(self, text: str) -> str | None:
        return self.canonical(text) if self.matches(text) else None

    def from_bson(self, value: object) -> str | None:
        """Return the id, or `None` if `_id` has another type: the document is then another program's."""
        kind = ObjectId if self is IdType.OBJECTID else str
        return str(value) if isinstance(value, kind) else None
