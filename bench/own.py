"""What the benchmark takes from the service: how its documents look, and what it writes. Nothing else imports it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from pymongo.collection import Collection as PyMongoCollection

from bench.frozen.writes import EMAIL, SAFE
from bench.load import DATA, TARGET
from mongo.creation import Create, Creator
from mongo.ids import IdType
from ops.kinds import SPECIFIED

Collection = PyMongoCollection[dict[str, Any]]


def write_as_the_service(users: Collection, ids: Sequence[str], key: str | None) -> None:
    """Make the service's own writes for these users with one command."""
    creator = Creator(id_type=IdType.OBJECTID, limit=100, profile={"email": EMAIL}, creates_users=True)
    new, now = Create("", SPECIFIED["new_post"], TARGET, DATA, idempotency_key=key), datetime.now(UTC)
    writes = [creator.make(replace(new, user_id=id_), now, "hash").write.statement() for id_ in set(ids)]
    users.database.command("update", users.name, updates=writes, ordered=False, writeConcern=SAFE.document)
