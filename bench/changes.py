"""The change stream: how many changes per second a process bears, whoever made them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import astuple
from typing import Any, Final

from bson import ObjectId

from bench.figures import Changes, median
from bench.load import DATA, TARGET, Server
from bench.own import LIMIT
from bench.report import Row
from bench.run import Bench
from bench.streams import listening
from tests.waiting import eventually

NOTE: Final = (
    "One process with one stream open, and no other load. It is stopped while notifications are pushed to other users. "
    "Measured is the time from when it goes on until it shows a later notification of its own user."
)
HEADER: Final = ("inboxes", "changes", "seconds", "changes/s", "CPU µs", "MongoDB's CPU µs")
NOTIFICATION: Final = {"timestamp": 1698138241, "is_new": True, "key": "new_post", "target_id": TARGET, "data": DATA}


def changes(bench: Bench) -> None:
    """Measure short inboxes, to which a push only appends, and full ones, of which it rewrites the whole array."""
    size, found = bench.size, defaultdict[str, list[Changes]](list)
    for name, items in ((f"{size.notifications} items", size.notifications), (f"{LIMIT} items, trimmed", LIMIT)):
        bench.fill(size.users, items)
        with bench.service(LOG_LEVEL="WARNING") as service, listening(service, 1) as count_events:
            for _ in bench.rounds(size.rounds):
                bench.progress(name)
                found[name].append(_catch_up(bench, service, count_events))
    rows: list[Row] = [(name, *astuple(median(measured))) for name, measured in found.items()]
    bench.report.add("The change stream", NOTE, HEADER, rows)


def _catch_up(bench: Bench, service: Server, count_events: Callable[[], int]) -> Changes:
    users, listener = bench.users(), ObjectId(f"{0:024x}")
    push: dict[str, Any] = {"$push": {"notifications": {"$each": [NOTIFICATION], "$slice": -LIMIT}}}
    service.process.suspend()
    changed = users.update_many({"_id": {"$ne": listener}}, push).modified_count
    users.update_one({"_id": listener}, push)
    bench.client.admin.command("fsync")  # or its checkpoint would count as work for the change stream
    events, cpu, db_cpu, began = count_events(), service.cpu(), bench.mongod.cpu(), time.monotonic()

    def has_caught_up() -> None:
        assert count_events() > events

    service.process.resume()
    eventually(has_caught_up, 120)
    seconds = time.monotonic() - began
    cpu, db_cpu = ((now - then) / changed * 1e6 for now, then in ((service.cpu(), cpu), (bench.mongod.cpu(), db_cpu)))
    return Changes(changed, seconds, changed / seconds, cpu, db_cpu)
