"""One `POST /create` as MongoDB gets it, and what it means when the condition of that write fails."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, cast

from mongo.document import HAS_ROOM, IS_FINDABLE, OUTBOX, OUTBOX_LIMIT, WAITING, JSONObject, elements
from mongo.errors import Changed, KeyReused, OutboxFull
from mongo.judged import Judged
from mongo.statement import Write
from mongo.users import REFUSING, judge

EXPLAINING: Final = {
    "ids": "$notifications.id",
    "owed": "$notifier.outbox.id",
    "deleted": "$notifier.deleted",
    "recent": "$notifier.recent",
    "waits": {"$size": WAITING},
    "is_full": {"$gte": [{"$size": OUTBOX}, OUTBOX_LIMIT]},
    **REFUSING,
}
"""The projection of what explains why the condition of a create failed."""


class Recorded(enum.Enum):
    """What a create has done."""

    CREATED = enum.auto()
    REPLAYED = enum.auto()
    """Nothing: an earlier request had the same key."""
    NOT_OWED = enum.auto()
    """The notification is kept, and the e-mail is not owed, as the outbox is full."""


@dataclass(slots=True)
class Creation:
    """One atomic write that records a notification, an e-mail owed, or both.

    `collapse` makes of `write`, which is classic, the pipeline that is sent in its place.

    Its repetition must not record it twice: `write` has a number, or the guard that neither `id` nor `key` is there.
    `not_owed` is whether its e-mail is left out, and `replayed_id` what an earlier request with its key has recorded.
    """

    user_id: str
    id: str
    key: str | None
    fingerprint: str
    write: Write
    collapse: Callable[[Write], Write] | None = None
    not_owed: bool = False
    replayed_id: str = ""

    @property
    def sent(self) -> Write:
        """The write as it is sent."""
        return self.collapse(self.write) if self.collapse else self.write

    @property
    def update(self) -> JSONObject:
        """The update of the write, which is no pipeline."""
        return cast("JSONObject", self.write.update)

    def mark_judged(self, judged: Judged) -> None:
        """Remember that the document has passed the condition on `notifications`, if the write had it."""
        if "notifications" in self.update["$push"]:
            judged.add(self.write.filter["_id"])

    def leave_out_email(self) -> bool:
        """Keep only the notification, with its id and key; return `False` if there is none.

        That is for good: once an attempt without the e-mail may have taken effect, no other may promise it.
        """
        pushes = {name: push for name, push in self.update["$push"].items() if name != "notifier.outbox"}
        if "notifications" not in pushes:
            return False
        conditions = {name: value for name, value in self.write.filter.items() if name not in HAS_ROOM | IS_FINDABLE}
        update = {"$setOnInsert": self.update["$setOnInsert"], "$push": pushes}
        self.write, self.not_owed = replace(self.write, filter=conditions, update=update), True
        return True

    def trim(self, limit: int) -> bool:
        """Let the write trim the inbox to its limit; return whether it would not have done so anyway."""
        push = self.update["$push"].get("notifications")
        if push is None or push["$slice"] == -limit:
            return False
        push["$slice"] = -limit
        return True

    def outcome(self, user: Mapping[str, Any]) -> Recorded | None:
        """Explain by the user's document why the condition failed: an earlier attempt, or an earlier request.

        Return `None` if it was neither. Raises `KeyReused`.
        """
        if any(isinstance(ids := user.get(name), list) and self.id in ids for name in ("ids", "owed", "deleted")):
            return Recorded.CREATED
        for item in elements(user, "recent"):
            if self.key and item.get("k") == self.key and isinstance(item.get("h"), str):
                if item["h"] != self.fingerprint:
                    raise KeyReused
                self.replayed_id = f"{item.get('id')}"
                return Recorded.CREATED if self.replayed_id == self.id else Recorded.REPLAYED
        return None

    def explain(self, user: Mapping[str, Any]) -> Recorded:
        """Return the outcome, or raise why the document refuses the write; `Changed` if it would not by now."""
        if outcome := self.outcome(user):
            return outcome
        fields = [*self.update["$push"], *self.update.get("$min", ())]
        judge(user, [*fields, "notifier"] if any("." in field for field in fields) else fields)
        if "notifier.outbox" in fields and user["is_full"]:
            raise OutboxFull
        raise Changed
