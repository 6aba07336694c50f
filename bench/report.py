"""The report of a run: the targets, the tables and the picture."""

from __future__ import annotations

import math
import operator
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import HashableList

from bench.figures import Latency

AT_LEAST: Final = (operator.ge, "≥")
AT_MOST: Final = (operator.le, "≤")
BASELINE: Final = "dd32f38"
"""The commit that some targets are ratios to. They are measured with `--against`."""
TARGETS: Final[dict[str, tuple[tuple[Callable[[float, float], bool], str], float, str]]] = {
    # what is measured: how it compares with the target, the target, its unit
    "creates/s at 64 connections ÷ bare": (AT_LEAST, 3.8, ""),
    "creates/s at 64 connections, full inboxes ÷ bare": (AT_LEAST, 2.8, ""),
    "creates/s at 64 connections, full inboxes, slack 50 ÷ bare": (AT_LEAST, 3.0, ""),
    "creates/s at 64 connections, e-mailed ÷ bare": (AT_LEAST, 3.3, ""),
    "creates/s at 64 connections ÷ null": (AT_LEAST, 0.55, ""),
    "create p50 at 1 connection ÷ bare": (AT_MOST, 1.1, ""),
    "create p99 at 64 connections ÷ bare": (AT_MOST, 0.6, ""),
    "reads/s at 64 connections ÷ bare": (AT_LEAST, 2.5, ""),
    "lists/s at 64 connections ÷ bare": (AT_LEAST, 3.5, ""),
    "MongoDB's CPU per create, full inboxes ÷ a push at the head": (AT_MOST, 0.85, ""),
    "MongoDB's CPU per create, full inboxes, slack 50 ÷ a push at the head": (AT_MOST, 0.75, ""),
    "oplog bytes per create, full inboxes, slack 50": (AT_MOST, 2400, ""),
    "notifications/s by user_ids ÷ MongoDB's own bulk rate": (AT_LEAST, 0.8, ""),
    "p99 of single creates beside an endless fan-out ÷ alone": (AT_MOST, 2.0, ""),
    "creates/s with 1,000,000 users ÷ with 1,000": (AT_LEAST, 0.8, ""),
    "creates/s with 100,000 e-mails owed ÷ with none": (AT_LEAST, 0.9, ""),
    "e-mails/s ÷ with a new connection per message": (AT_LEAST, 5.0, ""),
    "e-mails/s ÷ a sender without MongoDB": (AT_LEAST, 0.8, ""),
    f"CPU per e-mail ÷ {BASELINE}": (AT_MOST, 0.4, ""),
    f"MongoDB's CPU per e-mail ÷ {BASELINE}": (AT_MOST, 0.5, ""),
    "MongoDB commands per e-mail": (AT_MOST, 0.5, ""),
    "e-mails/s at 20 connections, round trips of 50 ms ÷ one per connection and round trip": (AT_LEAST, 0.8, ""),
    "e-mails/s with round trips of 50 ms ÷ one command at a time": (AT_LEAST, 2.0, ""),
    f"time to send 10,000 e-mails ÷ {BASELINE}": (AT_MOST, 0.35, ""),
    "e-mails/s of two processes ÷ one": (AT_LEAST, 1.2, ""),
    "idle RSS": (AT_MOST, 80.0, " MB"),
    "RSS after 1,000,000 requests ÷ after 100,000": (AT_MOST, 1.1, ""),
    "start to first answer": (AT_MOST, 1.0, " s"),
    "creates/s with 1,000 streams open ÷ with none": (AT_LEAST, 0.9, ""),
}
SERVERS: Final = {
    # server: its name and its colour in the picture
    "service": ("notifier", "#2a6fbb"),
    "bare": ("one driver call a request", "#d1862a"),
    "mongod": ("ceiling: MongoDB in bulk", "#9a9a9a"),
    "null": ("ceiling: no database", "#c8c8c8"),
}
OPERATIONS: Final = {"create": "POST /create", "list": "GET /list", "read": "POST /read"}

Row = tuple[str | float, ...]


@dataclass(frozen=True)
class Table:
    """A table with a heading, and a note that explains it."""

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Row]

    def markdown(self) -> str:
        """Return it as Markdown. Columns of numbers are aligned to the right."""
        numeric = [all(isinstance(row[i], float | int) for row in self.rows) for i in range(len(self.header))]
        lines = [self.header, [("---:" if right else "---") for right in numeric]]
        lines += [[cell if isinstance(cell, str) else number(cell) for cell in row] for row in self.rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"## {self.title}\n\n{self.note}\n\n{table}\n"


def number(value: float) -> str:
    """Format a figure with three significant digits, but never round an integer part. NaN, not measured, is empty."""
    if math.isnan(value):
        return ""
    if abs(value) >= 100 or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.3g}"


@dataclass
class Report:
    """What a run has found so far."""

    judged: bool = True
    """Whether to compare with the targets. A quick run measures less than their names say."""
    machine: list[tuple[str, str]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    found: dict[str, float] = field(default_factory=dict)
    """Figures to compare with the targets."""
    rates: dict[tuple[str, str], float] = field(default_factory=dict)
    """Requests per second at 64 connections of each (operation, server)."""
    latencies: dict[tuple[str, str], list[Latency]] = field(default_factory=dict)
    """Open loops of each (operation, server), from the lowest rate to the highest."""

    def target(self, name: str, value: float) -> None:
        """Record a figure to compare with its target."""
        if name not in TARGETS:
            raise KeyError(name)
        self.found[name] = value

    def add(self, title: str, note: str, header: Sequence[str], rows: Sequence[Row]) -> None:
        """Add a table."""
        self.tables.append(Table(title, note, header, rows))

    def markdown(self, picture: str | None) -> str:
        """Return the whole report."""
        machine = "\n".join(f"- {name}: {value}" for name, value in self.machine)
        image = f"![Rates and latencies]({picture})\n\n" if picture else ""
        targets = [self._targets()] if self.judged and self.found else []
        tables = "\n".join(table.markdown() for table in (*targets, *self.tables))
        return f"# Measurements\n\n{machine}\n\n{image}{tables}"

    def _targets(self) -> Table:
        rows: list[Row] = []
        for name, ((compare, sign), target, unit) in TARGETS.items():
            value = self.found.get(name)
            measured = "" if value is None else f"{value:.2f}{unit}"
            met = "not measured" if value is None else "yes" if compare(value, target) else "**no**"
            rows.append((name, measured, f"{sign} {target:g}{unit}", met))
        note = "Medians over the rounds of one run. A ratio is the median of the rounds' ratios."
        return Table("Targets", note, ("what", "measured", "target", "met"), rows)

    def draw(self, path: Path) -> bool:
        """Draw the picture, unless figures for it are missing; return whether it was drawn."""
        drawn = {(operation, server) for operation in OPERATIONS for server in SERVERS}
        if not drawn <= self.rates.keys() or ("create", "bare") not in self.latencies:
            return False
        with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "notifier", "font.size": 9}):
            figure = Figure(figsize=(10, 4.2), layout="constrained")
            layout: list[HashableList[str]] = [[operation, "latency"] for operation in OPERATIONS]
            panels = figure.subplot_mosaic(layout, width_ratios=[5, 4])
            figure.set_facecolor("white")  # on a dark page too
            for operation in OPERATIONS:
                self._draw_rates(panels[operation], operation)
            self._draw_latency(panels["latency"])
            figure.savefig(path, metadata={"Date": None})
        return True

    def _draw_rates(self, axes: Axes, operation: str) -> None:
        axes.set_title(f"{OPERATIONS[operation]}: requests a second at 64 connections", loc="left", fontsize=9)
        values = [self.rates[operation, server] for server in SERVERS]
        bars = axes.barh([label for label, _ in SERVERS.values()], values, color=[c for _, c in SERVERS.values()])
        axes.bar_label(bars, [f"{value:,.0f}" for value in values], padding=3)
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.xaxis.set_visible(False)
        axes.spines[["top", "right", "bottom"]].set_visible(False)

    def _draw_latency(self, axes: Axes) -> None:
        for server in ("service", "bare"):
            label, colour = SERVERS[server]
            points = self.latencies["create", server]
            offered = [point.offered for point in points]
            for name, line in (("p99", ":"), ("p50", "-")):
                latencies = [getattr(point, name) for point in points]
                axes.plot(offered, latencies, line, marker="o", markersize=3, color=colour, label=f"{label}, {name}")
        axes.set_title("POST /create: ms since the request was due", loc="left", fontsize=9)
        axes.set_xlabel("requests offered a second, at random moments")
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlim(left=0)
        axes.legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.4, -0.15))
        axes.spines[["top", "right"]].set_visible(False)


def machine(mongodb: str, folder: Path, command: str) -> list[tuple[str, str]]:
    """Describe what the run was made on."""
    return [
        ("machine", f"{_processor()}, {os.cpu_count()} cores, shared by the load, the servers and MongoDB"),
        ("disk", f"{_fsync_ms(folder):.2f} ms to write 4 KiB and fsync (median)"),
        ("system", f"{platform.system()} {platform.release()}"),
        ("versions", f"Python {platform.python_version()}, MongoDB {mongodb} as a replica set of one"),
        ("command", f"`{command}`, {time.strftime('%Y-%m-%d', time.gmtime())}"),
    ]


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _fsync_ms(folder: Path) -> float:
    seconds = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(100):
            started = time.perf_counter()
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds) * 1e3
