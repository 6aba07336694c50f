"""The process: how soon it answers, how much memory it takes, and what a second one adds."""

from __future__ import annotations

import itertools
import statistics
import time
import urllib.request
from collections import defaultdict
from dataclasses import astuple

from bench.figures import Sample, median
from bench.load import CREATE, LIST, READ, Workload, family
from bench.report import Row
from bench.run import COMPARED_AT, Bench


def process(bench: Bench) -> None:
    """Measure how soon the process answers, and its memory when idle and after many requests."""
    size, report = bench.size, bench.report
    bench.fill(size.users, size.notifications)
    bench.progress("start to first answer")
    start = statistics.median(_start(bench) for _ in range(2 * size.long_rounds - 1))
    rows: list[Row] = [("start to first answer (/readyz), s", start)]
    report.target("start to first answer", start)
    rows += _memory(bench)
    note = (
        f"One process, with MongoDB already running. The requests are creates and lists at {COMPARED_AT} connections."
    )
    report.add("The process", note, ("what", "measured"), rows)


def _start(bench: Bench) -> float:
    """Return the seconds from the start of the process to its first answer that needs MongoDB."""
    started = time.perf_counter()
    with bench.service() as service, urllib.request.urlopen(f"http://127.0.0.1:{service.port}/readyz"):
        return time.perf_counter() - started


def _memory(bench: Bench) -> list[Row]:
    """Measure memory when idle, and after so many requests as there is time for."""
    size, report = bench.size, bench.report
    workload = Workload("creates and lists", [CREATE, LIST], size.users)
    with bench.service() as service:
        time.sleep(2)
        idle = service.rss()
        rows: list[Row] = [("idle RSS, MB", idle)]
        report.target("idle RSS", idle)
        done, grown = 0.0, []
        deadline = time.monotonic() + 90 * size.request_seconds
        for requests in size.requests:
            while done < requests and time.monotonic() < deadline:
                bench.progress(f"memory after {done:,.0f} of {size.requests[-1]:,} requests")
                sample = bench.measure(service, workload, seconds=size.request_seconds)
                done += sample.rps * size.request_seconds
            grown.append(service.rss())
            rows.append((f"RSS after {done:,.0f} requests, MB", grown[-1]))
    if done >= size.requests[-1]:
        report.target("RSS after 1,000,000 requests ÷ after 100,000", grown[-1] / grown[0])
    return rows


def workers(bench: Bench) -> None:
    """Compare one process with two that share the port."""
    size = bench.size
    bench.fill(size.users, size.notifications)
    workloads = [
        Workload("create", [CREATE], size.users),
        Workload("list", [LIST], size.users),
        Workload("read", [READ], size.users, size.notifications),
    ]
    found: dict[tuple[str, int], list[Sample]] = defaultdict(list)
    with bench.service(WORKERS=1) as one, bench.service(WORKERS=2) as two:
        processes = len(family(one.process)), len(family(two.process))
        for _ in bench.rounds(size.rounds):
            for workload, (number, server) in itertools.product(workloads, ((1, one), (2, two))):
                bench.progress(f"{workload.name}, WORKERS={number}")
                found[workload.name, number].append(bench.measure(server, workload))
    rows: list[Row] = [(name, number, *astuple(median(samples))) for (name, number), samples in found.items()]
    note = (
        f"`WORKERS=1` and `WORKERS=2`, at {COMPARED_AT} connections. These are {processes[0]} and {processes[1]} "
        "processes: a supervisor watches over the two."
    )
    header = ("operation", "WORKERS", "requests/s", "p50 ms", "p99 ms", "CPU µs", "MongoDB's CPU µs")
    bench.report.add("Two processes behind SO_REUSEPORT", note, header, rows)
