"""Full inboxes, where a create may rewrite the whole array; and many users in one request."""

from __future__ import annotations

import http.client
import json
import math
import random
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Final

from bench.bulk import SLACK, THREADS, bulk
from bench.figures import Sample, median, median_ratio, ratios
from bench.load import CREATE, DATA, TARGET, LoadError, Server, Workload, post
from bench.open_loop import open_loop
from bench.own import LIMIT
from bench.report import Row
from bench.run import COMPARED_AT, Bench
from bench.tree import CURRENT

WITH_SLACK: Final = f"service, slack {SLACK}"
OWN: Final = "in bulk, the service's writes"
OWN_WITH_SLACK: Final = f"{OWN}, slack {SLACK}"
AT_THE_HEAD: Final = "in bulk, at the head"
BULKS: Final = {OWN: "stored as the service does", OWN_WITH_SLACK: "stored with slack", AT_THE_HEAD: "stored"}
BATCH: Final = 64
"""Writes per command in bulk."""
IDS: Final = 1000
"""Users of a request."""
SINGLE_RATE: Final = 100
"""Single creates per second beside a fan-out."""
FULL_NOTE: Final = (
    f"Every user has {LIMIT} notifications, as many as are kept; with slack, the array may hold {SLACK} more. bare "
    "pushes at the head of the array, as does one of the bulks; the others make the service's own writes. Bulks have "
    f"{BATCH} writes per command."
)
MANY_NOTE: Final = (
    f"`user_ids` of {IDS} users, one request after another; the same writes straight from PyMongo, {THREADS} commands "
    f"at once; and {SINGLE_RATE} single creates per second, alone and beside them."
)


def inboxes(bench: Bench) -> None:
    """Measure creates of users whose inboxes are full."""
    size = bench.size
    samples, oplog = defaultdict[str, list[Sample]](list), defaultdict[str, list[float]](list)
    stored = Workload("stored", [post(key="new_post", data=DATA)], size.users)
    bench.fill(size.users, LIMIT)
    with ExitStack() as stack:
        servers = {tree.name: stack.enter_context(bench.service(tree)) for tree in bench.trees}
        servers[WITH_SLACK] = stack.enter_context(bench.service(NOTIFICATIONS_SLACK=SLACK))
        servers["bare"] = stack.enter_context(bench.ceiling("bare"))
        measures = {name: partial(bench.measure, server, stored) for name, server in servers.items()}
        measures |= {name: partial(_bulk, bench, workload) for name, workload in BULKS.items()}
        for _ in bench.rounds(size.rounds):
            for name, measure in measures.items():
                bench.restore(LIMIT)
                bench.progress(name)
                with _oplog_bytes(bench) as written:
                    samples[name].append(measure())
                oplog[name] += written
    _report_inboxes(bench, samples, oplog)


def _report_inboxes(
    bench: Bench, samples: Mapping[str, Sequence[Sample]], oplog: Mapping[str, Sequence[float]]
) -> None:
    rows: list[Row] = []
    for name, found in samples.items():
        sample = median(found)
        rows.append((name, sample.rps, sample.cpu, sample.db_cpu, statistics.median(oplog[name])))
    header = ("creates", "per second", "CPU µs", "MongoDB's CPU µs", "oplog bytes")
    bench.report.add("Full inboxes", FULL_NOTE, header, rows)
    target = bench.report.target
    for server, own, what in ((CURRENT.name, OWN, ""), (WITH_SLACK, OWN_WITH_SLACK, f", slack {SLACK}")):
        rates = ratios(samples[server], samples["bare"]).rps
        target(f"creates/s at {COMPARED_AT} connections, full inboxes{what} ÷ bare", rates)
        cpu = ratios(samples[own], samples[AT_THE_HEAD]).db_cpu
        target(f"MongoDB's CPU per create, full inboxes{what} ÷ a push at the head", cpu)
    target(f"oplog bytes per create, full inboxes, slack {SLACK}", statistics.median(oplog[WITH_SLACK]))


def _bulk(bench: Bench, workload: str) -> Sample:
    before = bench.mongod.cpu()
    done, seconds = bulk(bench.users(), Workload(workload, [], bench.size.users), BATCH, bench.size.seconds)
    cpu = (bench.mongod.cpu() - before) / done * 1e6
    return Sample(rps=done / seconds, p50=math.nan, p99=math.nan, cpu=math.nan, db_cpu=cpu)


@contextmanager
def _oplog_bytes(bench: Bench) -> Iterator[list[float]]:
    """Give a list that gets the mean size of what each write to the users has left in the oplog meanwhile."""
    found: list[float] = []
    oplog = bench.client["local"]["oplog.rs"]
    (last,) = oplog.find().sort("$natural", -1).limit(1)
    yield found
    own = {"$match": {"ts": {"$gt": last["ts"]}, "ns": {"$regex": r"\.users$"}}}
    mean = {"$group": {"_id": None, "bytes": {"$avg": {"$bsonSize": "$$ROOT"}}}}
    found += [group["bytes"] for group in oplog.aggregate([own, mean])]


# --- many users at once ----------------------------------------------------------------------------


def many(bench: Bench) -> None:
    """Measure notifications to many users at once, and single creates beside them."""
    size, found = bench.size, defaultdict[str, list[float]](list)
    single = Workload("create", [CREATE], size.users)

    def singles() -> float:
        return open_loop(service, single, SINGLE_RATE, size.open_seconds).p99

    def beside() -> float:
        with endless_fan_out(service, size.users):
            time.sleep(1)
            return singles()

    bench.fill(size.users, size.notifications)
    with bench.service() as service:
        measures: dict[str, Callable[[], float]] = {
            "notifications/s by `user_ids`": lambda: _rate(service, size.users, size.open_seconds),
            "notifications/s in bulk": lambda: _bulk_rate(bench),
            "p99 ms of single creates alone": singles,
            "p99 ms of single creates beside an endless fan-out": beside,
        }
        for _ in bench.rounds(size.long_rounds):
            for name, measure in measures.items():
                bench.restore(size.notifications)
                bench.progress(name)
                found[name].append(measure())
    rows: list[Row] = [(name, statistics.median(values)) for name, values in found.items()]
    bench.report.add("Many users at once", MANY_NOTE, ("what", "figure"), rows)
    rate, in_bulk, alone, disturbed = found.values()
    bench.report.target("notifications/s by user_ids ÷ MongoDB's own bulk rate", median_ratio(rate, in_bulk))
    bench.report.target("p99 of single creates beside an endless fan-out ÷ alone", median_ratio(disturbed, alone))


def _bulk_rate(bench: Bench) -> float:
    """Return the best rate over the batch sizes."""
    workload, rates = Workload("stored for many", [], bench.size.users), []
    for batch in bench.size.batches:
        done, seconds = bulk(bench.users(), workload, batch, bench.size.seconds)
        rates.append(done / seconds)
    return max(rates)


def _rate(server: Server, users: int, seconds: float) -> float:
    began, sent = time.monotonic(), 0
    while time.monotonic() < began + seconds:
        sent += send_to_many(server, users)
    return sent / (time.monotonic() - began)


def send_to_many(server: Server, users: int) -> int:
    """Notify as many random users as one request may, and return how many. Raises `LoadError` if not all were."""
    return _send(server, random.sample(range(users), min(IDS, users)))


def send_to_all(server: Server, users: int) -> None:
    """Notify each user once. Raises `LoadError` if not all were."""
    for start in range(0, users, IDS):
        _send(server, range(start, min(start + IDS, users)))


def _send(server: Server, users: Sequence[int]) -> int:
    body: dict[str, Any] = {"user_ids": [f"{n:024x}" for n in users], "key": "new_post"}
    body |= {"target_id": TARGET, "data": DATA}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("POST", "/create", json.dumps(body), {"Idempotency-Key": f"{random.getrandbits(64):x}"})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    if answer.get("created") != len(users):
        raise LoadError(f"Not all users were notified: {answer}.\n{server.log_tail()}")
    return len(users)


@contextmanager
def endless_fan_out(server: Server, users: int) -> Iterator[None]:
    """Send to many users, one request after another."""
    ended, faults = threading.Event(), list[Exception]()

    def work() -> None:
        try:
            while not ended.is_set():
                send_to_many(server, users)
        except (LoadError, OSError, ValueError, http.client.HTTPException) as exc:
            faults.append(exc)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    if faults:
        raise LoadError(f"The fan-out failed: {faults[0]!r}")
