"""Creates, lists and reads: how many per second, and how late they are under a given load."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import astuple
from typing import Final

from bench.bulk import THREADS, bulk
from bench.figures import Latency, Sample, median, median_ratio, ratios
from bench.load import CREATE, DATA, LIST, READ, Server, Workload, post
from bench.open_loop import open_loop
from bench.report import Row
from bench.run import COMPARED_AT, Bench
from bench.size import FULL
from bench.tree import CURRENT

KEYS: Final = {
    "stored": ["new_post"],
    "mailed": ["registration"],
    "mixed": ["registration", "new_message", "new_post", "new_login"],
}
"""The keys from which each workload of creates draws."""
Samples = dict[tuple[str, int, str], list[Sample]]
"""What was measured, round by round, for each (workload, connections, server)."""
NOTE: Final = (
    "{size.users:,} users with {size.notifications} notifications each, restored before every measurement. "
    "A measurement takes {size.seconds} s; rounds: {size.rounds}. CPU is per request: that of the server's process, "
    "and that of MongoDB's. wrk corrects its percentiles for the requests that a slow answer kept it from sending."
)


def create(bench: Bench) -> None:
    """Measure creates."""
    size = bench.size
    workloads = [Workload(name, [post(key=key, data=DATA) for key in keys], size.users) for name, keys in KEYS.items()]

    samples = _compare(bench, "create", workloads, lambda: bench.restore(size.notifications))
    target = bench.report.target
    target("creates/s at 64 connections ÷ bare", _ratio(samples, "stored", COMPARED_AT, "rps"))
    target("creates/s at 64 connections, e-mailed ÷ bare", _ratio(samples, "mailed", COMPARED_AT, "rps"))
    target("creates/s at 64 connections ÷ null", _ratio(samples, "stored", COMPARED_AT, "rps", "null"))
    target("create p50 at 1 connection ÷ bare", _ratio(samples, "stored", size.connections[0], "p50"))
    target("create p99 at 64 connections ÷ bare", _ratio(samples, "stored", COMPARED_AT, "p99"))


def list_(bench: Bench) -> None:
    """Measure lists of the newest 10 notifications."""
    samples = _compare(bench, "list", [Workload("list", [LIST], bench.size.users)], lambda: None)
    bench.report.target("lists/s at 64 connections ÷ bare", _ratio(samples, "list", COMPARED_AT, "rps"))


def read(bench: Bench) -> None:
    """Measure marking one notification as read, which hardly any already are."""

    def restore() -> None:
        for tree in bench.trees:
            users = bench.users(tree.database)
            users.update_many({"notifications.is_new": False}, {"$set": {"notifications.$[].is_new": True}})

    workload = Workload("read", [READ], bench.size.users, bench.size.notifications)
    samples = _compare(bench, "read", [workload], restore)
    bench.report.target("reads/s at 64 connections ÷ bare", _ratio(samples, "read", COMPARED_AT, "rps"))


def _compare(bench: Bench, operation: str, workloads: Sequence[Workload], restore: Callable[[], None]) -> Samples:
    """Compare the service with what limits it. Only the first workload is compared with null and mongod."""
    size, first = bench.size, workloads[0]
    samples: Samples = defaultdict(list)
    bench.fill(size.users, size.notifications)
    with ExitStack() as stack:
        servers = [stack.enter_context(bench.service(tree)) for tree in bench.trees]
        servers += [stack.enter_context(bench.ceiling(role)) for role in ("bare", "null")]
        for server in servers if size is FULL else ():
            bench.measure(server, first, max(size.connections))  # so that its connection pool is full
        for _ in bench.rounds(size.rounds):
            for workload, connections in itertools.product(workloads, size.connections):
                for server in servers if workload is first else servers[:-1]:
                    bench.progress(f"{workload.name}, {connections} connections, {server.name}")
                    restore()
                    sample = bench.measure(server, workload, connections)
                    samples[workload.name, connections, server.name].append(sample)
            for batch in size.batches:
                name = f"mongod, {batch} per command"
                bench.progress(f"{first.name}, {name}")
                restore()
                samples[first.name, THREADS, name].append(_bulk(bench, first, batch))
    _report(bench, operation, first, samples)
    if bench.against:
        _report_against(bench, operation, bench.against.name, samples)
    return samples


def _bulk(bench: Bench, workload: Workload, batch: int) -> Sample:
    """Measure MongoDB's own rate."""
    before = bench.mongod.cpu()
    done, seconds = bulk(bench.users(), workload, batch, bench.size.seconds)
    cpu = (bench.mongod.cpu() - before) / done * 1e6
    return Sample(rps=done / seconds, p50=math.nan, p99=math.nan, cpu=math.nan, db_cpu=cpu)


def _report(bench: Bench, operation: str, first: Workload, samples: Samples) -> None:
    medians = {key: median(rounds) for key, rounds in samples.items()}
    rates = bench.report.rates
    for (workload, connections, name), sample in medians.items():
        server = name.split(",")[0]
        if workload == first.name and (connections == COMPARED_AT or server == "mongod"):
            rates[operation, server] = max(sample.rps, rates.get((operation, server), 0.0))
    header = ("load", "connections", "server", "requests/s", "p50 ms", "p99 ms", "CPU µs", "MongoDB's CPU µs")
    rows: list[Row] = [(*key, *astuple(sample)) for key, sample in medians.items()]
    bench.report.add(operation, NOTE.format(size=bench.size), header, rows)


def _report_against(bench: Bench, operation: str, commit: str, samples: Samples) -> None:
    rows: list[Row] = [
        (workload, connections, *astuple(ratios(found, samples[workload, connections, commit])))
        for (workload, connections, server), found in samples.items()
        if server == CURRENT.name
    ]
    header = ("load", "connections", "requests/s", "p50", "p99", "CPU", "MongoDB's CPU")
    bench.report.add(f"{operation} ÷ {commit}", f"The service's figures ÷ those of commit {commit}.", header, rows)


def _ratio(samples: Samples, workload: str, connections: int, figure: str, ceiling: str = "bare") -> float:
    """Return the service's figure over that of a ceiling."""
    service, other = (samples[workload, connections, server] for server in (CURRENT.name, ceiling))
    return median_ratio((getattr(sample, figure) for sample in service), (getattr(sample, figure) for sample in other))


# --- latency ---------------------------------------------------------------------------------------


def latency(bench: Bench) -> None:
    """Measure latency while requests are due at a given rate, whether or not earlier ones have been answered."""
    size = bench.size
    bench.fill(size.users, size.notifications)
    rows: list[Row] = []
    with bench.service() as service, bench.ceiling("bare") as bare:
        for workload in (Workload("create", [CREATE], size.users), Workload("list", [LIST], size.users)):
            highest = bench.measure(service, workload).rps
            rates = [round(highest * load, -1) for load in size.loads]
            for (name, rate), found in sorted(_offer(bench, workload, rates, (service, bare)).items()):
                result = median(found)
                bench.report.latencies.setdefault((workload.name, name), []).append(result)
                kept_up = "no" if result.saturated else "yes"
                rows.append((workload.name, name, rate, result.answered, result.p50, result.p99, kept_up))
    note = (
        "Open loop: requests are due at random moments (a Poisson process), and the latency of each counts from when "
        "it was due."
    )
    header = ("operation", "server", "offered/s", "answered/s", "p50 ms", "p99 ms", "kept up")
    bench.report.add("Latency against offered load", note, header, rows)


def _offer(
    bench: Bench, workload: Workload, rates: Sequence[float], servers: Sequence[Server]
) -> dict[tuple[str, float], list[Latency]]:
    """Offer each rate to each server, but no higher rate to a server that has fallen behind at a lower one."""
    found: dict[tuple[str, float], list[Latency]] = defaultdict(list)
    highest = {server.name: math.inf for server in servers}
    for _ in bench.rounds(bench.size.long_rounds):
        for rate, server in itertools.product(rates, servers):
            if rate > highest[server.name]:
                continue
            bench.progress(f"{workload.name}, {rate:,.0f}/s, {server.name}")
            result = open_loop(server, workload, rate, bench.size.open_seconds)
            found[server.name, rate].append(result)
            if result.saturated:
                highest[server.name] = rate
    return found
