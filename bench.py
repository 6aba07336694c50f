"""Measurements of the service, beside what bounds it: `make bench`.

A real MongoDB, wrk as the load, the service as a process of its own. What is compared takes turns, in rounds, so that
ratios hold on a noisy machine; figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Final

from bench_ceilings import THREADS, bulk
from bench_hostile import hostile
from bench_load import DATA, LIST, READ, LoadError, Sample, Workload, find_wrk, post
from bench_report import Table
from bench_run import FULL, QUICK, Bench

AT: Final = 64
"""Connections at which what is compared is compared."""
KEYS: Final = {
    "stored": ["new_post"],
    "mailed": ["registration"],
    "mixed": ["registration", "new_message", "new_post", "new_login"],
}
Samples = dict[tuple[str, int, str], list[Sample]]
"""What was measured of (workload, connections, server), round by round."""

# --- create, list, read ----------------------------------------------------------------------------


def create(bench: Bench) -> None:
    """Measure creates: of what is stored, of what is e-mailed, and of all keys in turn."""
    size = bench.size
    workloads = [Workload(name, [post(key=key, data=DATA) for key in keys], size.users) for name, keys in KEYS.items()]

    def reset() -> None:
        grown = {"$or": [{f"notifications.{size.items}": {"$exists": True}}, {"outbox": {"$exists": True}}]}
        shorten = {"notifications": {"$each": [], "$slice": size.items}}
        gone = dict.fromkeys(("outbox", "mail_due", "recent"), 1)
        bench.users().update_many(grown, {"$push": shorten, "$unset": gone})

    samples = _compare(bench, "create", workloads, reset)
    target = bench.report.target
    target("creates/s at 64 connections ÷ bare", _ratio(samples, "stored", AT, "rps"))
    target("create p50 at 1 connection ÷ bare", _ratio(samples, "stored", 1, "p50"))
    target("create p99 at 64 connections ÷ bare", _ratio(samples, "stored", AT, "p99"))
    rates = bench.report.rates
    target(
        "creates/s at 64 connections ÷ mongod's own bulk rate", rates["create", "service"] / rates["create", "mongod"]
    )


def list_(bench: Bench) -> None:
    """Measure lists of 10 notifications out of all that a user has."""
    samples = _compare(bench, "list", [Workload("list", [LIST], bench.size.users)], lambda: None)
    bench.report.target("lists/s at 64 connections ÷ bare", _ratio(samples, "list", AT, "rps"))


def read(bench: Bench) -> None:
    """Measure marks of one notification as read, hardly any of them a second time."""

    def reset() -> None:
        bench.users().update_many({"notifications.is_new": False}, {"$set": {"notifications.$[].is_new": True}})

    workload = Workload("read", [READ], bench.size.users, bench.size.items)
    samples = _compare(bench, "read", [workload], reset)
    bench.report.target("reads/s at 64 connections ÷ bare", _ratio(samples, "read", AT, "rps"))


def _compare(bench: Bench, operation: str, workloads: Sequence[Workload], reset: Callable[[], None]) -> Samples:
    """Compare the service with what bounds it; `reset` makes the users as they were, before each measurement."""
    size, first = bench.size, workloads[0].name
    samples: Samples = defaultdict(list)
    bench.fill(size.users, size.items)
    with bench.service() as service, bench.ceiling("bare") as bare, bench.ceiling("null") as null:
        for server in (service, bare, null):
            bench.measure(server, workloads[0], max(size.connections), 1)  # its pool of connections grows
        for turn in range(size.rounds):
            for workload, connections in itertools.product(workloads, size.connections):
                for server in (service, bare, null) if workload is workloads[0] else (service, bare):
                    bench.say(f"{workload.name}, {connections} connections, {server.name}", turn)
                    reset()
                    sample = bench.measure(server, workload, connections)
                    samples[workload.name, connections, server.name].append(sample)
            for batch in size.batches:
                bench.say(f"mongod, {batch} in a command", turn)
                reset()
                samples[first, THREADS, f"mongod, {batch} in a command"].append(_bulk(bench, workloads[0], batch))
    medians = {key: Sample.median(found) for key, found in samples.items()}
    for (name, connections, which), median in medians.items():
        if name == first and (connections == AT or which.startswith("mongod")):
            key = operation, which.split(",")[0]
            bench.report.rates[key] = max(median.rps, bench.report.rates.get(key, 0.0))
    header = ("load", "connections", "server", "requests/s", "p50 ms", "p99 ms", "CPU µs", "MongoDB's CPU µs")
    rows = [(*key, *astuple(medians[key])) for key in sorted(medians, key=lambda key: (key[0] != first, key))]
    bench.report.tables.append(Table(operation, _NOTE.format(size=size), header, rows))
    return samples


_NOTE: Final = """\
Among {size.users:,} users with {size.items} notifications each, which every measurement of {size.seconds} s finds as
they were; {size.rounds} rounds. CPU is that of the server's process and of MongoDB's, for one request."""


def _bulk(bench: Bench, workload: Workload, batch: int) -> Sample:
    """Measure MongoDB's own rate."""
    before = bench.mongod.cpu()
    done, seconds = bulk(bench.users(), workload, batch, bench.size.seconds)
    cpu = (bench.mongod.cpu() - before) / done * 1e6
    return Sample(rps=done / seconds, p50=math.nan, p99=math.nan, cpu=math.nan, db_cpu=cpu)


def _ratio(samples: Samples, workload: str, connections: int, figure: str) -> float:
    """Return the service's figure over that of bare: the median of the rounds' ratios."""
    pairs = zip(samples[workload, connections, "service"], samples[workload, connections, "bare"], strict=True)
    ratios: list[float] = [getattr(service, figure) / getattr(bare, figure) for service, bare in pairs]
    return statistics.median(ratios)


# --- what is measured ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """What measures it, and about how many seconds that takes: in full, and quickly."""

    measure: Callable[[Bench], None]
    seconds: float
    quick: float


PARTS: Final = {
    "create": Part(create, 270, 20),
    "list": Part(list_, 110, 9),
    "read": Part(read, 110, 9),
}


def run(names: Sequence[str], output: Path, *, quick: bool) -> None:
    """Measure these parts, print the report, and write it with its picture into the folder `output`."""
    find_wrk()
    command = " ".join(["bench.py", *(["--quick"] if quick else []), *([] if names == list(PARTS) else names)])
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        estimates = [PARTS[name].quick if quick else PARTS[name].seconds for name in names]
        bench = Bench(QUICK if quick else FULL, Path(folder), estimates, command)
        try:
            for name in names:
                bench.begin(name)
                PARTS[name].measure(bench)
        finally:
            bench.close()
    output.mkdir(parents=True, exist_ok=True)
    text = bench.report.markdown("bench.svg" if bench.report.draw(output / "bench.svg") else None)
    (output / "bench.md").write_text(text)
    print(text)
    print(f"Written to {output}.", file=sys.stderr)


def main() -> int:
    """Measure what is asked for; returns 1 when a server did not answer as it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", help=f"all (default), {', '.join(PARTS)}, or hostile: bad clients")
    parser.add_argument("--quick", action="store_true", help="tiny: to see that it works, not how fast")
    parser.add_argument("--output", type=Path, help="folder for bench.md and bench.svg; docs/ after a full run of all")
    options = parser.parse_args()
    if options.part == ["hostile"]:
        return hostile()
    if unknown := set(options.part) - {"all", *PARTS}:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    names = [name for name in PARTS if name in options.part or "all" in options.part or not options.part]
    whole = names == list(PARTS) and not options.quick
    docs = Path(__file__).with_name("docs")
    output = options.output or (docs if whole else Path(tempfile.mkdtemp(prefix="bench-")))
    try:
        run(names, output, quick=options.quick)
    except LoadError as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
