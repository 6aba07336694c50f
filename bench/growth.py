"""Creates and lists as the data grows."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from bench.figures import Sample, median, median_ratio
from bench.load import DATA, LIST, Workload, post
from bench.report import Row
from bench.run import COMPARED_AT, Bench

NOTE: Final = (
    f"At {COMPARED_AT} connections. Every user's array is full from the start: it holds as many notifications as the "
    "limit in the table, 3 where users or e-mails grow, and 5 where `data` grows."
)
HEADER: Final = (
    "what grows",
    "to",
    "creates/s",
    "p99 ms",
    "MongoDB's CPU µs",
    "lists/s",
    "p99 ms",
    "MongoDB's CPU µs",
)


@dataclass(frozen=True)
class Case:
    """Users whose arrays are full. If `due` is given, each is owed an e-mail from then on."""

    name: str
    users: int
    notifications: int
    data: dict[str, str] | None = field(default_factory=lambda: dict(DATA))
    due: datetime | None = None


def growth(bench: Bench) -> None:
    """Measure creates and lists with growing arrays, users, e-mails owed and `data`."""
    size, now = bench.size, datetime.now(UTC)
    few = min(1000, size.users)
    rows: list[Row] = []
    _grow(bench, rows, "NOTIFICATIONS_LIMIT", [Case(f"{limit}", few, limit) for limit in size.limits])
    by_users = _grow(bench, rows, "users", [Case(f"{users:,}", users, 3) for users in size.user_counts])
    owed = [
        Case("none", size.owed, 3),
        Case(f"{size.owed:,}, due in 10 days", size.owed, 3, due=now + timedelta(days=10)),
        Case(f"{size.owed:,}, due, mail server down", size.owed, 3, due=now),
    ]
    none, later, due = _grow(bench, rows, "e-mails owed", owed)
    _grow(bench, rows, "data", [Case(f"{kib} KiB", few, 5, _data(kib)) for kib in size.data_kib])
    bench.report.add("Growth", NOTE, HEADER, rows)
    bench.report.target("creates/s with 1,000,000 users ÷ with 1,000", _ratio(by_users[-1], by_users[0]))
    worst = min(_ratio(later, none), _ratio(due, none))
    bench.report.target("creates/s with 100,000 e-mails owed ÷ with none", worst)


def _grow(bench: Bench, rows: list[Row], what: str, cases: Sequence[Case]) -> list[list[Sample]]:
    """Add a row for each case; return the creates of each case, round by round."""
    creates: list[list[Sample]] = [[] for _ in cases]
    lists: list[list[Sample]] = [[] for _ in cases]
    databases = [f"growth{n}" for n in range(len(cases))]
    with ExitStack() as stack:
        services = []
        for case, database in zip(cases, databases, strict=True):
            bench.progress(f"{what}, {case.name}: making {case.users:,} users")
            bench.fill(case.users, case.notifications, database, data=case.data, due=case.due)
            services.append(stack.enter_context(bench.service(database, NOTIFICATIONS_LIMIT=case.notifications)))
        for _ in bench.rounds(bench.size.growth_rounds):
            for n, case in enumerate(cases):
                bench.progress(f"{what}, {case.name}")
                body = {"key": "new_post"} | ({"data": case.data} if case.data else {})
                creates[n].append(bench.measure(services[n], Workload("create", [post(**body)], case.users)))
                lists[n].append(bench.measure(services[n], Workload("list", [LIST], case.users)))
    for n, case in enumerate(cases):
        create, list_ = median(creates[n]), median(lists[n])
        rows.append((what, case.name, create.rps, create.p99, create.db_cpu, list_.rps, list_.p99, list_.db_cpu))
        bench.client.drop_database(databases[n])
    return creates


def _data(kib: int) -> dict[str, str] | None:
    """Return `data` of this size as JSON, or none."""
    return {"text": "x" * (kib * 1024 - len('{"text":""}'))} if kib else None


def _ratio(ones: Sequence[Sample], others: Sequence[Sample]) -> float:
    return median_ratio((one.rps for one in ones), (other.rps for other in others))
