"""The ids of users: what a caller writes, and the `_id` of the user's document."""

from __future__ import annotations

import enum
import re
from typing import Final

from bson import ObjectId

OBJECT_ID: Final = "[0-9a-fA-F]{24}"
STRING_LIMIT: Final = 128
"""Characters of an id that is a string."""
STRING: Final = rf"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{{1,{STRING_LIMIT}}}"


def named(id_: str) -> str:
    """Return what a log calls the document with this `_id`. One that may be an e-mail address is not shown."""
    return "a document whose _id is an address" if "@" in id_ else f"document {id_}"


class IdType(enum.Enum):
    """The type of the `_id`s, and of the ids of entities that notifications are about."""

    OBJECTID = "objectid"
    STRING = "string"

    @property
    def pattern(self) -> str:
        """The regular expression of a whole id."""
        return OBJECT_ID if self is IdType.OBJECTID else STRING

    @property
    def fault(self) -> str:
        """What is wrong with an id that does not fit the pattern."""
        if self is IdType.OBJECTID:
            return "Not a valid ObjectId."
        return f"Not 1 to {STRING_LIMIT} characters without control characters."

    def parse(self, text: str) -> str | None:
        """Return the one form of an id, an ObjectId in lower case, or `None` if it is not one."""
        if not re.fullmatch(self.pattern, text):
            return None
        return text.lower() if self is IdType.OBJECTID else text

    def to_bson(self, id_: str) -> ObjectId | str:
        """Return the `_id` of a parsed id."""
        return ObjectId(id_) if self is IdType.OBJECTID else id_

    def from_bson(self, value: object) -> str | None:
        """Return the id of an `_id`, or `None` for one of another type, whose document is another program's."""
        kind = ObjectId if self is IdType.OBJECTID else str
        return str(value) if isinstance(value, kind) else None
