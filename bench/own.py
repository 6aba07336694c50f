"""What the benchmark takes from the service: where it keeps e-mails, and what it writes. Nothing else imports it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from pymongo.collection import Collection as PyMongoCollection

from bench.frozen.schemas import JSON
from bench.frozen.writes import EMAIL, SAFE
from bench.frozen.writes import new_element as element_before
from bench.load import DATA, TARGET
from mongo.creation import Create, Creator
from mongo.ids import IdType
from mongo.owed import new_element
from ops.kinds import SPECIFIED

Collection = PyMongoCollection[JSON]

LIMIT: Final = 100
"""The default of `NOTIFICATIONS_LIMIT`."""


@dataclass(frozen=True)
class Layout:
    """Where a version of the service keeps the e-mails owed to a user."""

    outbox: str
    due: str
    """When the first of them is due."""
    own: Sequence[str]
    """The fields that hold these, and whatever else the service adds to the user's document beside notifications."""
    element: Callable[[str, str, datetime, JSON, str | None], JSON]

    def owing(self, id_: str, key: str, due: datetime) -> JSON:
        """Return the fields of a document whose user is owed an e-mail from then on."""
        email = self.element(id_, key, datetime.now(UTC), {}, None) | {"next_at": due}
        document: JSON = {}
        for path, value in ((self.outbox, [email]), (self.due, due)):
            *parents, name = path.split(".")
            place = document
            for parent in parents:
                place = place.setdefault(parent, {})
            place[name] = value
        return document

    def fall_due(self, at: datetime) -> JSON:
        """Return the update after which the e-mail of such a document is due at another time."""
        return {"$set": {self.due: at, f"{self.outbox}.0.next_at": at}}


BEFORE: Final = Layout("outbox", "mail_due", ("outbox", "mail_due", "recent"), element_before)
"""That of commit dd32f38, and of the ceilings."""
OWN: Final = Layout("outbox", "mail_due", ("outbox", "mail_due", "recent"), new_element)


def write_as_the_service(users: Collection, ids: Sequence[str], key: str | None, slack: int) -> None:
    """Make the service's own writes for these users with one command."""
    creator = Creator(id_type=IdType.OBJECTID, limit=LIMIT, profile={"email": EMAIL}, creates_users=True)
    new, now = Create("", SPECIFIED["new_post"], TARGET, DATA, idempotency_key=key), datetime.now(UTC)
    creations = [creator.make(replace(new, user_id=id_), now, "hash") for id_ in set(ids)]
    for creation in creations if not slack else ():
        creation.trim(LIMIT)
    writes = [creation.write.statement() for creation in creations]
    users.database.command("update", users.name, updates=writes, ordered=False, writeConcern=SAFE.document)
