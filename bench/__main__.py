"""Measure the service and what limits it side by side, and write a report.

MongoDB and the service are real processes, and wrk makes the load. What is compared takes turns, round by round, so
that the ratios hold on a machine whose speed varies. Figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil
from pymongo.errors import PyMongoError

from bench.changes import changes
from bench.emails import emails
from bench.growth import growth
from bench.hostile import hostile
from bench.inboxes import inboxes, many
from bench.load import LoadError, find_wrk
from bench.process import process, workers
from bench.rates import create, latency, list_, read
from bench.report import Report
from bench.run import Bench, running_bench
from bench.size import FULL, QUICK
from bench.streams import streams
from tests.client import ROOT


@dataclass(frozen=True)
class Part:
    """A part of the run. It takes about so many seconds, in full and quickly."""

    measure: Callable[[Bench], None]
    seconds: float
    quick_seconds: float
    what: str
    by_default: bool = True


PARTS: Final = {
    "create": Part(create, 220, 30, "creates per second, against what limits them"),
    "list": Part(list_, 110, 9, "lists per second, likewise"),
    "read": Part(read, 110, 9, "notifications marked as read per second, likewise"),
    "inboxes": Part(inboxes, 310, 20, "creates of users whose inboxes are full"),
    "many": Part(many, 120, 12, "notifications to many users at once, and single creates beside them"),
    "latency": Part(latency, 240, 7, "latency of creates and lists at a given rate"),
    "growth": Part(growth, 560, 30, "creates and lists as arrays, users, e-mails owed and data grow"),
    "emails": Part(emails, 480, 75, "e-mails per second"),
    "process": Part(process, 660, 6, "time to start, and memory after a million requests"),
    "workers": Part(workers, 45, 9, "one process against two on the same port"),
    "streams": Part(streams, 90, 15, "what streams cost, and the time from a write to the screen"),
    "changes": Part(changes, 60, 12, "changes per second that a process's change stream bears"),
    "hostile": Part(hostile, 160, 25, "how much bad clients slow down good ones", by_default=False),
}
DEFAULT: Final = [name for name, part in PARTS.items() if part.by_default]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write the report. Return 1 if a part failed, and 130 after Ctrl-C."""
    options = parse_arguments(arguments)
    names = [name for name in PARTS if name in (options.parts or DEFAULT)]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the processes are ended then too
    try:
        find_wrk()
        report, failures = run(names, quick=options.quick, against=options.against)
    except LoadError as exc:
        print(exc, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    complete = names == DEFAULT and not options.quick and not failures
    write(report, options.output or (ROOT / "docs" if complete else Path(tempfile.mkdtemp("-bench"))))
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failures else 0


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    lines = [f"  {name:<9} {part.what} ({_minutes(part.seconds)})" for name, part in PARTS.items()]
    total = _minutes(sum(PARTS[name].seconds for name in DEFAULT))
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(["parts, and how long each takes:", *lines, f"  all but hostile: {total}"]),
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="what to measure; default: all parts but hostile")
    parser.add_argument("--quick", action="store_true", help="measure very little, only to check that everything works")
    parser.add_argument(
        "--against",
        metavar="COMMIT",
        help="measure this commit of the service beside the current tree (in create, list, read, inboxes and emails)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="where to write bench.md and bench.svg; default: docs/ for a full run of all parts without a failure, "
        "otherwise a new temporary folder",
    )
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.parts if name not in PARTS]:
        parser.error(f"unknown part: {', '.join(unknown)} (choose from {', '.join(PARTS)})")
    return options


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min"


def run(names: Sequence[str], *, quick: bool, against: str | None) -> tuple[Report, list[str]]:
    """Measure these parts; return the report, and a sentence for each part that failed."""
    estimates = {name: PARTS[name].quick_seconds if quick else PARTS[name].seconds for name in names}
    options = [*(["--quick"] if quick else []), *(["--against", against] if against else [])]
    command = " ".join(["python -m bench", *options, *([] if names == DEFAULT else names)])
    failures = []
    with running_bench(QUICK if quick else FULL, estimates, command, against) as bench:
        if quick:
            bench.report.machine.append(("quick", "these figures show that everything works, not how fast it is"))
        for name in names:
            bench.begin(name)
            try:
                PARTS[name].measure(bench)
            except (LoadError, OSError, PyMongoError, psutil.Error) as exc:
                failures.append(f"{name}: {exc}")
                bench.progress(f"failed: {exc}")
    return bench.report, failures


def write(report: Report, folder: Path) -> None:
    """Write the report and its picture, and print the report."""
    folder.mkdir(parents=True, exist_ok=True)
    text = report.markdown("bench.svg" if report.draw(folder / "bench.svg") else None)
    (folder / "bench.md").write_text(text)
    print(text)
    print(f"Written to {folder}.", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
