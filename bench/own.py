"""What the benchmark takes from the service: where it keeps e-mails, and what it writes. Nothing else imports it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from threading import get_ident
from typing import Any, Final

from bson import Int64, ObjectId
from motor.motor_asyncio import AsyncIOMotorClient
from pymongo import AsyncMongoClient, MongoClient
from pymongo.client_session import ClientSession
from pymongo.collection import Collection as PyMongoCollection

from bench.frozen.schemas import JSON
from bench.frozen.writes import EMAIL, SAFE
from bench.frozen.writes import new_element as element_before
from bench.load import DATA, TARGET
from kinds import SPECIFIED
from mongo.connection import Connection
from mongo.creation import Create
from mongo.owed import new_element
from settings import Settings
from store import Store

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
    element: Callable[[str, str, datetime, JSON, Any], JSON]

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
OWN: Final = Layout("notifier.outbox", "notifier.due", ("notifier",), new_element)


@cache
def _store(slack: int) -> Store:
    """Return a store that is connected to nothing, for the writes that it makes."""
    settings = Settings(email=EMAIL, db_uri="mongodb://localhost/bench", notifications_slack=slack)
    database = AsyncIOMotorClient[JSON](settings.db_uri, connect=False)["bench"]
    return Store(Connection(database, AsyncMongoClient[JSON](settings.db_uri, connect=False)["bench"]), settings)


@cache
def _lane(client: MongoClient[JSON], _thread: int) -> ClientSession:
    """Return the session of a thread. Ended, it would be given out again, with its numbers."""
    return client.start_session(causal_consistency=False)


def write_as_the_service(users: Collection, ids: Sequence[str], key: str | None, slack: int) -> None:
    """Make the service's own writes for these users with one command: numbered, and of judged documents."""
    store, now = _store(slack), datetime.now(UTC)
    new = Create("", SPECIFIED["new_post"], TARGET, DATA, idempotency_key=key)
    updates = []
    for id_ in set(ids):
        store.users.judged.add(ObjectId(id_))
        creation = store._creates.prepare(replace(new, user_id=id_), now, "hash")  # noqa: SLF001 - what a request makes
        updates.append(creation.write.statement(guarded=False))
    number: dict[str, Any] = {"session": _lane(users.database.client, get_ident()), "txnNumber": Int64(time.time_ns())}
    users.database.command("update", users.name, updates=updates, ordered=False, writeConcern=SAFE.document, **number)
