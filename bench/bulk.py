"""MongoDB itself as a ceiling: the operations of requests straight from PyMongo, many per command."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from bson import ObjectId
from pymongo import UpdateOne

from bench.frozen.schemas import SPECIFIED, Create, ListQuery, Selection
from bench.frozen.writes import SAFE, creation, marking, projection
from bench.load import DATA, TARGET, Workload
from bench.own import LIMIT, Collection, write_as_the_service

THREADS: Final = 4
"""Commands in flight."""
SLACK: Final = 50
"""The `NOTIFICATIONS_SLACK` that is measured beside none."""


def bulk(users: Collection, workload: Workload, batch: int, seconds: float) -> tuple[int, float]:
    """Run a workload of `OPERATIONS` straight on MongoDB, `batch` operations per command.

    Return how many operations it did, and in how many seconds.
    """
    users = users.with_options(write_concern=SAFE)
    started = time.perf_counter()

    def work() -> int:
        done = 0
        while time.perf_counter() < started + seconds:
            ids = [f"{random.randrange(workload.users):024x}" for _ in range(batch)]
            OPERATIONS[workload.name](users, ids, workload.notifications)
            done += batch
        return done

    with ThreadPoolExecutor(THREADS) as pool:
        done = sum(task.result() for task in [pool.submit(work) for _ in range(THREADS)])
    return done, time.perf_counter() - started


def _store(users: Collection, ids: Sequence[str], _: int) -> None:
    creates = [Create(id_, SPECIFIED["new_post"], TARGET, DATA) for id_ in ids]
    users.bulk_write([UpdateOne(*creation(new, LIMIT), upsert=True) for new in creates], ordered=False)


def _store_as_the_service(users: Collection, ids: Sequence[str], _: int) -> None:
    write_as_the_service(users, ids, None, slack=0)


def _store_with_slack(users: Collection, ids: Sequence[str], _: int) -> None:
    write_as_the_service(users, ids, None, slack=SLACK)


def _store_for_many(users: Collection, ids: Sequence[str], _: int) -> None:
    write_as_the_service(users, ids, f"{random.random()}", slack=0)


def _list(users: Collection, ids: Sequence[str], _: int) -> None:
    list(users.find({"_id": {"$in": [ObjectId(id_) for id_ in ids]}}, projection(ListQuery("", 0, 10))))


def _read(users: Collection, ids: Sequence[str], notifications: int) -> None:
    queries = [Selection(id_, "id", f"{random.randrange(notifications):024x}") for id_ in ids]
    users.bulk_write([UpdateOne(*marking(query)) for query in queries], ordered=False)


OPERATIONS: Final = {
    "stored": _store,
    "stored as the service does": _store_as_the_service,
    "stored with slack": _store_with_slack,
    "stored for many": _store_for_many,
    "list": _list,
    "read": _read,
}
