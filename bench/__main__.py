"""Measurements of the service, beside what bounds it: `make bench`.

A real MongoDB, wrk as the load, the service as a process of its own. What is compared takes turns, in rounds, so that
ratios hold on a noisy machine; figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import signal
import statistics
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import astuple, dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import trustme
from pymongo.errors import PyMongoError

from bench.ceilings import THREADS, bulk
from bench.hostile import hostile
from bench.load import (
    DATA,
    LIST,
    READ,
    Late,
    LoadError,
    Sample,
    Server,
    Workload,
    family,
    find_wrk,
    median,
    open_loop,
    post,
)
from bench.report import Report, Table
from bench.run import FULL, QUICK, Bench
from bench.streams import streams
from tests.servers import LOGIN, PASSWORD

MEMORY: Final = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - of names of our own
"""Where logs lie, as a container's leave it by a pipe: on MongoDB's disk each of its commits would wait for them."""
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
    target("create p50 at 1 connection ÷ bare", _ratio(samples, "stored", size.connections[0], "p50"))
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
        for server in (service, bare, null) if size is FULL else ():
            bench.measure(server, workloads[0], max(size.connections))  # its pool of connections grows
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
    medians = {key: median(found) for key, found in samples.items()}
    for (name, connections, which), sample in medians.items():
        if name == first and (connections == AT or which.startswith("mongod")):
            key = operation, which.split(",")[0]
            bench.report.rates[key] = max(sample.rps, bench.report.rates.get(key, 0.0))
    header = ("load", "connections", "server", "requests/s", "p50 ms", "p99 ms", "CPU µs", "MongoDB's CPU µs")
    rows = [(*key, *astuple(sample)) for key, sample in medians.items()]
    bench.report.tables.append(Table(operation, _NOTE.format(size=size), header, rows))
    return samples


_NOTE: Final = """\
Among {size.users:,} users with {size.items} notifications each, which every measurement of {size.seconds} s finds as
they were. Rounds: {size.rounds}. CPU is that of the server's process and of MongoDB's, for one request. Percentiles are
wrk's, which adds what a slow answer kept it from asking."""


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


# --- latency against offered load ------------------------------------------------------------------


def load(bench: Bench) -> None:
    """Measure how late the answers are when so many requests a second are due, whether or not others are answered."""
    size = bench.size
    bench.fill(size.users, size.items)
    rows: list[tuple[str | float, ...]] = []
    with bench.service() as service, bench.ceiling("bare") as bare:
        for operation, template in (("create", post(key="new_post", data=DATA)), ("list", LIST)):
            workload = Workload(operation, [template], size.users)
            most = bench.measure(service, workload, AT).rps
            found: dict[tuple[str, float], list[Late]] = defaultdict(list)
            for turn, part, server in itertools.product(range(size.long_rounds), size.loads, (service, bare)):
                rate = round(most * part, -1)
                if any(late.saturated for (name, _), lates in found.items() if name == server.name for late in lates):
                    continue
                bench.say(f"{operation}, {rate:.0f}/s, {server.name}", turn)
                found[server.name, rate].append(open_loop(server, workload, rate, size.open_seconds))
            for (name, rate), lates in sorted(found.items()):
                late = median(lates)
                bench.report.late.setdefault((operation, name), []).append(late)
                kept_up = "no" if late.saturated else "yes"
                rows.append((operation, name, rate, late.rps, late.p50, late.p99, kept_up))
    note = "Open loop: requests at random moments (a Poisson process), each one's time counted from when it was due."
    header = ("operation", "server", "offered/s", "answered/s", "p50 ms", "p99 ms", "kept up")
    bench.report.tables.append(Table("Latency against offered load", note, header, rows))


# --- growth ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Users whose arrays are full, with `items` notifications of `data`, and an e-mail owed each from `due` on."""

    name: str
    users: int
    items: int
    data: dict[str, str] | None = field(default_factory=lambda: dict(DATA))
    due: datetime | None = None


def growth(bench: Bench) -> None:
    """Measure creates and lists as what there is grows."""
    size, now = bench.size, datetime.now(UTC)
    few = min(1000, size.users)
    rows: list[tuple[str | float, ...]] = []
    _grow(bench, rows, "NOTIFICATIONS_LIMIT", [Case(f"{limit}", few, limit) for limit in size.limits])
    crowds = _grow(bench, rows, "users", [Case(f"{users:,}", users, 3) for users in size.crowds])
    owed = [
        Case("none", size.owed, 3),
        Case(f"{size.owed:,}, due in 10 days", size.owed, 3, due=now + timedelta(days=10)),
        Case(f"{size.owed:,}, due, mail server down", size.owed, 3, due=now),
    ]
    none, later, due = _grow(bench, rows, "e-mails owed", owed)
    _grow(bench, rows, "data", [Case(f"{kib} KiB", few, 5, _text(kib)) for kib in size.data])
    bench.report.target("creates/s at 1e6 users ÷ 1e3 users", _over(crowds[-1], crowds[0]))
    bench.report.target("creates/s while 1e5 e-mails are owed ÷ none owed", min(_over(later, none), _over(due, none)))
    note = (
        f"At {AT} connections; every array holds NOTIFICATIONS_LIMIT already: as many as the table says, "
        "3 where users and e-mails grow, 5 where data does."
    )
    header = ("what grows", "to", "creates/s", "p99 ms", "MongoDB's CPU µs", "lists/s", "p99 ms", "MongoDB's CPU µs")
    bench.report.tables.append(Table("Growth", note, header, rows))


def _grow(bench: Bench, rows: list[tuple[str | float, ...]], what: str, cases: Sequence[Case]) -> list[list[Sample]]:
    """Add a row for each case; return the samples of the creates of each, round by round."""
    databases = [f"growth{n}" for n in range(len(cases))]
    creates: list[list[Sample]] = [[] for _ in cases]
    lists: list[list[Sample]] = [[] for _ in cases]
    with ExitStack() as stack:
        services = []
        for case, database in zip(cases, databases, strict=True):
            bench.say(f"{what}: making {case.users:,} users for {case.name}")
            bench.fill(case.users, case.items, database, data=case.data, due=case.due)
            services.append(stack.enter_context(bench.service(database, NOTIFICATIONS_LIMIT=case.items)))
        for turn in range(bench.size.growth_rounds):
            for n, case in enumerate(cases):
                bench.say(f"{what}: {case.name}", turn)
                body = {"key": "new_post"} | ({"data": case.data} if case.data else {})
                creates[n].append(bench.measure(services[n], Workload("stored", [post(**body)], case.users), AT))
                lists[n].append(bench.measure(services[n], Workload("list", [LIST], case.users), AT))
    for n, case in enumerate(cases):
        create, list_ = median(creates[n]), median(lists[n])
        rows.append((what, case.name, create.rps, create.p99, create.db_cpu, list_.rps, list_.p99, list_.db_cpu))
        bench.client.drop_database(databases[n])
    return creates


def _text(kib: int) -> dict[str, str] | None:
    """Return `data` of so many KiB of JSON."""
    return {"text": "x" * (kib * 1024 - len('{"text":""}'))} if kib else None


def _over(ones: Sequence[Sample], others: Sequence[Sample]) -> float:
    """Return the median of the ratios of the rates, round by round."""
    return statistics.median(one.rps / other.rps for one, other in zip(ones, others, strict=True))


# --- e-mails ---------------------------------------------------------------------------------------


def mails(bench: Bench) -> None:
    """Measure how fast owed e-mails are claimed, sent over TLS and settled."""
    size, authority = bench.size, trustme.CA()
    certificate = bench.folder / "certificate.pem"
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate)
    authority.cert_pem.write_to_path(bench.folder / "authority.pem")
    rows: list[tuple[str | float, ...]] = []
    with bench.ceiling("sink", CERTIFICATE=certificate) as sink:
        settings: dict[str, Any] = {
            "SMTP_HOST": "127.0.0.1",
            "SMTP_PORT": sink.port,
            "SMTP_SECURITY": "tls",
            "SMTP_LOGIN": LOGIN,
            "SMTP_PASSWORD": PASSWORD,
            "SMTP_CA_FILE": bench.folder / "authority.pem",
        }
        service = partial(bench.service, **settings)
        ways: dict[str, tuple[Callable[[], AbstractContextManager[Server]], ...]] = {
            "service, 4 connections": (service,),
            "a connection a message, 4 at once": (partial(bench.ceiling, "letters", CONNECTIONS=4, **settings),),
            "a connection a message, one at a time": (partial(bench.ceiling, "letters", CONNECTIONS=1, **settings),),
        }
        found: dict[str, list[Drain]] = defaultdict(list)
        for turn, (way, senders) in itertools.product(range(size.long_rounds), ways.items()):
            bench.say(f"{size.mails:,} e-mails, {way}", turn)
            found[way].append(_drain(bench, sink, size.mails, senders))
        for senders in ((service,), (service, service)):
            way = f"service, processes: {len(senders)}"
            bench.say(f"{size.drained:,} e-mails, {way}")
            found[way] = [_drain(bench, sink, size.drained, senders)]
    for way, drains in found.items():
        rows.append((way, *(statistics.median(column) for column in zip(*map(astuple, drains), strict=True))))
    once, each, _ = list(found.values())[:3]
    ratio = statistics.median(one.rate / other.rate for one, other in zip(once, each, strict=True))
    bench.report.target("e-mails/s over TLS ÷ the same with a connection a message", ratio)
    note = (
        "From claim to settle, with a login. The mail server is a process of its own on the same machine that takes "
        "everything, and answers at once: over a network each connection costs some round trips besides."
    )
    header = ("sent by", "e-mails", "seconds", "e-mails/s", "CPU µs", "mail server's CPU µs", "MongoDB's CPU µs")
    bench.report.tables.append(Table("E-mails", note, header, rows))


@dataclass(frozen=True)
class Drain:
    """What it took to send e-mails: seconds, e-mails a second, and µs of CPU for each."""

    mails: int
    seconds: float
    rate: float
    cpu: float
    sink_cpu: float
    db_cpu: float


def _drain(
    bench: Bench, sink: Server, mails: int, senders: Sequence[Callable[[], AbstractContextManager[Server]]]
) -> Drain:
    """Let e-mails fall due, and measure from when some are seen to be settled to when all are.

    Raises `LoadError` when they are not within a minute and 20 a second.
    """
    users, owing = bench.users(), {"mail_due": {"$exists": True}}
    bench.fill(mails, 1, due=datetime.now(UTC) + timedelta(days=1))

    def wait(below: int) -> int:
        while (left := users.count_documents(owing)) >= below:
            if time.monotonic() > deadline:
                raise LoadError(f"{left} of {mails} e-mails were not sent:\n{measured[0].log.read_text()[-2000:]}")
            time.sleep(min(0.2, mails / 1e4))
        return left

    with ExitStack() as stack:
        measured = [*(stack.enter_context(sender()) for sender in senders), sink, bench.mongod]
        now, deadline = datetime.now(UTC), time.monotonic() + 60 + mails / 20
        users.update_many(owing, {"$set": {"mail_due": now, "outbox.0.next_at": now}})
        counted = wait(mails)
        began, before = time.monotonic(), [server.cpu() for server in measured]
        wait(1)
        seconds = time.monotonic() - began
        used = [server.cpu() - cpu for server, cpu in zip(measured, before, strict=True)]
    if not counted:
        raise LoadError(f"{mails} e-mails are too few to measure with.")
    *own, of_sink, of_mongod = (cpu / counted * 1e6 for cpu in used)
    return Drain(counted, seconds, counted / seconds, sum(own), of_sink, of_mongod)


# --- the process -----------------------------------------------------------------------------------


def process(bench: Bench) -> None:
    """Measure how soon the process answers, and what memory it takes, idle and after many requests."""
    size, report = bench.size, bench.report
    bench.fill(size.users, size.items)
    bench.say("start to first answer")
    starts = [_start(bench) for _ in range(2 * size.long_rounds - 1)]
    report.target("start to first answer", statistics.median(starts))
    rows: list[tuple[str | float, ...]] = [("start to first answer (/readyz), s", statistics.median(starts))]
    templates = [post(key="new_post", data=DATA), LIST]
    workload = Workload("creates and lists", templates, size.users)
    with bench.service() as service:
        time.sleep(2)
        idle = service.rss()
        rows.append(("idle RSS, MB", idle))
        report.target("idle RSS", idle)
        done, grown, seconds = 0.0, [], 10 if size is FULL else 1
        deadline = time.monotonic() + 90 * seconds
        for requests in size.requests:
            while done < requests and time.monotonic() < deadline:
                bench.say(f"memory after {done:,.0f} requests of {size.requests[-1]:,}")
                done += bench.measure(service, workload, AT, seconds).rps * seconds
            grown.append(service.rss())
            rows.append((f"RSS after {done:,.0f} requests, MB", grown[-1]))
        if done >= size.requests[-1]:
            report.target("RSS after 1e6 requests ÷ after 1e5", grown[-1] / grown[0])
    note = f"Of one process, with MongoDB up; the requests are creates and lists at {AT} connections."
    report.tables.append(Table("The process", note, ("what", "measured"), rows))


def _start(bench: Bench) -> float:
    """Return the seconds from the start of the process to its first answer that takes MongoDB."""
    started = time.perf_counter()
    with bench.service() as service, urllib.request.urlopen(f"http://127.0.0.1:{service.port}/readyz"):
        return time.perf_counter() - started


def workers(bench: Bench) -> None:
    """Compare one process with two that share the port."""
    size = bench.size
    bench.fill(size.users, size.items)
    workloads = [
        Workload("create", [post(key="new_post", data=DATA)], size.users),
        Workload("list", [LIST], size.users),
        Workload("read", [READ], size.users, size.items),
    ]
    found: dict[tuple[str, int], list[Sample]] = defaultdict(list)
    note = f"`WORKERS=1` and `WORKERS=2`, at {AT} connections."
    try:
        with bench.service(WORKERS=1) as one, bench.service(WORKERS=2) as two:
            note += f" Processes: {len(family(one.process))} and {len(family(two.process))}."
            for turn, workload in itertools.product(range(size.rounds), workloads):
                for number, server in ((1, one), (2, two)):
                    bench.say(f"{workload.name}, WORKERS={number}", turn)
                    found[workload.name, number].append(bench.measure(server, workload, AT))
    except LoadError as exc:
        note += f" Not available: {str(exc).splitlines()[0]}"
    rows = [(name, number, *astuple(median(samples))) for (name, number), samples in found.items()]
    header = ("operation", "WORKERS", "requests/s", "p50 ms", "p99 ms", "CPU µs", "MongoDB's CPU µs")
    bench.report.tables.append(Table("Two processes behind SO_REUSEPORT", note, header, rows))


# --- what is measured ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """What measures it, and about how many seconds that takes: in full, and quickly."""

    measure: Callable[[Bench], None]
    seconds: float
    quick: float


PARTS: Final = {
    "create": Part(create, 220, 20),
    "list": Part(list_, 110, 9),
    "read": Part(read, 110, 9),
    "load": Part(load, 200, 7),
    "growth": Part(growth, 300, 22),
    "mails": Part(mails, 200, 16),
    "process": Part(process, 660, 6),
    "workers": Part(workers, 45, 9),
    "streams": Part(streams, 90, 15),
}


def run(names: Sequence[str], *, quick: bool) -> tuple[Report, list[str]]:
    """Measure these parts; return what was found, and what went wrong with those that failed."""
    command = " ".join(["bench.py", *(["--quick"] if quick else []), *([] if names == list(PARTS) else names)])
    estimates = [PARTS[name].quick if quick else PARTS[name].seconds for name in names]
    failures = []
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True, dir=MEMORY) as logs,
    ):
        bench = Bench(QUICK if quick else FULL, Path(folder), Path(logs), estimates, command)
        try:
            bench.start()
            if quick:
                bench.report.machine.append(("quick", "tiny counts: these figures say that it works, not how fast"))
            for name in names:
                bench.begin(name)
                try:
                    PARTS[name].measure(bench)
                except (LoadError, OSError, PyMongoError) as exc:
                    failures.append(f"{name}: {exc}")
                    bench.say(f"failed: {exc}")
        finally:
            bench.close()
    return bench.report, failures


def write(report: Report, folder: Path) -> None:
    """Print the report, and write it and its picture."""
    folder.mkdir(parents=True, exist_ok=True)
    text = report.markdown("bench.svg" if report.draw(folder / "bench.svg") else None)
    (folder / "bench.md").write_text(text)
    print(text)
    print(f"Written to {folder}.", file=sys.stderr)


def main() -> int:
    """Measure what is asked for; returns 1 when a server did not answer as it should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="*", help=f"all (default), {', '.join(PARTS)}, or hostile: bad clients")
    parser.add_argument("--quick", action="store_true", help="tiny: to see that it works, not how fast")
    parser.add_argument("--output", type=Path, help="folder of bench.md and bench.svg; docs/ after a full run of all")
    options = parser.parse_args()
    if options.part == ["hostile"]:
        return hostile()
    if unknown := set(options.part) - {"all", *PARTS}:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    names = [name for name in PARTS if name in options.part or "all" in options.part or not options.part]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was started is ended then, too
    try:
        find_wrk()
        report, failures = run(names, quick=options.quick)
    except LoadError as exc:
        print(exc, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    whole = names == list(PARTS) and not options.quick and not failures
    write(report, options.output or (Path(__file__).with_name("docs") if whole else Path(tempfile.mkdtemp("-bench"))))
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
