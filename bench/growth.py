"""Creates and lists as the data grows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final

from bench.figures import Sample, median, median_ratio
from bench.inboxes import send_to_all
from bench.load import DATA, LIST, USER, Server, Workload, post
from bench.own import OWN
from bench.report import Row
from bench.run import COMPARED_AT, Bench

NOTE: Final = (
    f"At {COMPARED_AT} connections. Every user's array is full from the start: it holds as many notifications as the "
    "limit in the table, 3 where users or e-mails grow, and 5 where `data` grows. Where users grow, the process has "
    "written to each of them before, unless the table says otherwise."
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
    """Users whose arrays are full. If `due` is given, each is owed an e-mail from then on.

    If `warm`, the service has written to each of them before. With `same_users`, they are those of the case before.
    """

    name: str
    users: int
    notifications: int
    data: dict[str, str] | None = field(default_factory=lambda: dict(DATA))
    due: datetime | None = None
    warm: bool = False
    same_users: bool = False


def growth(bench: Bench) -> None:
    """Measure creates and lists with growing arrays, users, e-mails owed and `data`."""
    size, now = bench.size, datetime.now(UTC)
    few = min(1000, size.users)
    rows: list[Row] = []
    _grow(bench, rows, "NOTIFICATIONS_LIMIT", [Case(f"{limit}", few, limit) for limit in size.limits])
    by_number = [Case(f"{users:,}", users, 3, warm=True) for users in size.user_counts]
    most = by_number[-1]
    cold = replace(most, name=f"{most.name}, each new to the process", warm=False, same_users=True)
    by_users = _grow(bench, rows, "users", [*by_number, cold])
    owed = [
        Case("none", size.owed, 3),
        Case(f"{size.owed:,}, due in 10 days", size.owed, 3, due=now + timedelta(days=10)),
        Case(f"{size.owed:,}, due, mail server down", size.owed, 3, due=now),
    ]
    none, later, due = _grow(bench, rows, "e-mails owed", owed)
    _grow(bench, rows, "data", [Case(f"{kib} KiB", few, 5, _data(kib)) for kib in size.data_kib])
    bench.report.add("Growth", NOTE, HEADER, rows)
    bench.report.target("creates/s with 1,000,000 users ÷ with 1,000", _ratio(by_users[-2], by_users[0]))
    worst = min(_ratio(later, none), _ratio(due, none))
    bench.report.target("creates/s with 100,000 e-mails owed ÷ with none", worst)


def _grow(bench: Bench, rows: list[Row], what: str, cases: Sequence[Case]) -> list[list[Sample]]:
    """Add a row for each case; return the creates of each case, round by round."""
    creates: list[list[Sample]] = [[] for _ in cases]
    lists: list[list[Sample]] = [[] for _ in cases]
    databases = [f"growth{n - case.same_users}" for n, case in enumerate(cases)]
    with ExitStack() as stack:
        services = [
            stack.enter_context(_prepared(bench, what, case, database))
            for case, database in zip(cases, databases, strict=True)
        ]
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


@contextmanager
def _prepared(bench: Bench, what: str, case: Case, database: str) -> Iterator[Server]:
    """Make the users of a case, and run a service for them."""
    if not case.same_users:
        bench.progress(f"{what}, {case.name}: making {case.users:,} users")
        owed = OWN.owing(USER, "new_login", case.due) if case.due else None
        bench.fill(case.users, case.notifications, database, data=case.data, owed=owed)
    with bench.service(database=database, NOTIFICATIONS_LIMIT=case.notifications) as service:
        if case.warm:
            bench.progress(f"{what}, {case.name}: notifying {case.users:,} users")
            send_to_all(service, case.users)
            bench.client.admin.command("fsync")
        yield service


def _data(kib: int) -> dict[str, str] | None:
    """Return `data` of this size as JSON, or none."""
    return {"text": "x" * (kib * 1024 - len('{"text":""}'))} if kib else None


def _ratio(ones: Sequence[Sample], others: Sequence[Sample]) -> float:
    return median_ratio((one.rps for one in ones), (other.rps for other in others))
