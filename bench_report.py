"""What a run of the bench found: targets, tables and a picture."""

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

from bench_load import Late

AT_LEAST: Final = (operator.ge, "≥")
AT_MOST: Final = (operator.le, "≤")
TARGETS: Final[dict[str, tuple[tuple[Callable[[float, float], bool], str], float, str]]] = {
    # what, the comparison, the target, its unit
    "creates/s at 64 connections ÷ bare": (AT_LEAST, 2.5, ""),
    "creates/s at 64 connections ÷ mongod's own bulk rate": (AT_LEAST, 0.6, ""),
    "create p50 at 1 connection ÷ bare": (AT_MOST, 1.15, ""),
    "create p99 at 64 connections ÷ bare": (AT_MOST, 0.6, ""),
    "lists/s at 64 connections ÷ bare": (AT_LEAST, 2.5, ""),
    "reads/s at 64 connections ÷ bare": (AT_LEAST, 2.0, ""),
    "e-mails/s over TLS ÷ the same with a connection a message": (AT_LEAST, 3.0, ""),
    "creates/s while 1e5 e-mails are owed ÷ none owed": (AT_LEAST, 0.9, ""),
    "creates/s at 1e6 users ÷ 1e3 users": (AT_LEAST, 0.8, ""),
    "idle RSS": (AT_MOST, 80.0, " MB"),
    "RSS after 1e6 requests ÷ after 1e5": (AT_MOST, 1.1, ""),
    "start to first answer": (AT_MOST, 1.0, " s"),
}
SERVERS: Final = {"service": "#2a6fbb", "bare": "#d1862a", "mongod": "#4a8f5c", "null": "#a8a8a8"}
"""The colours of what is compared."""
LABELS: Final = {
    "service": "notifier",
    "bare": "one driver call a request",
    "mongod": "ceiling: MongoDB in bulk",
    "null": "ceiling: no database",
}


@dataclass(frozen=True)
class Table:
    """A table with a heading, and what must be known to read it."""

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | float]]

    def markdown(self) -> str:
        """Return it as Markdown: texts to the left, numbers to the right."""
        numeric = [all(isinstance(row[i], float | int) for row in self.rows) for i in range(len(self.header))]
        lines = [self.header, [("---:" if right else "---") for right in numeric]]
        lines += [[cell if isinstance(cell, str) else number(cell) for cell in row] for row in self.rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        return f"## {self.title}\n\n{self.note}\n\n{table}\n"


def number(value: float) -> str:
    """Format a figure with three significant digits, or all before the point; nothing for what was not measured."""
    if math.isnan(value):
        return ""
    if abs(value) >= 100 or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.3g}"


@dataclass
class Report:
    """What was found so far."""

    machine: Sequence[tuple[str, str]]
    tables: list[Table] = field(default_factory=list)
    found: dict[str, float] = field(default_factory=dict)
    """Of the targets."""
    rates: dict[tuple[str, str], float] = field(default_factory=dict)
    """Requests a second at 64 connections of an operation and a server: (operation, server)."""
    late: dict[tuple[str, str], list[Late]] = field(default_factory=dict)
    """Open loops of an operation and a server, from the lowest rate to the highest."""

    def target(self, name: str, value: float) -> None:
        """Note what was found of a target."""
        if name not in TARGETS:
            raise KeyError(name)
        self.found[name] = value

    def markdown(self, picture: str | None) -> str:
        """Return the whole of it."""
        machine = "\n".join(f"- {name}: {value}" for name, value in self.machine)
        image = f"![Rates and latencies]({picture})\n\n" if picture else ""
        tables = "\n".join(table.markdown() for table in (self._targets(), *self.tables))
        return f"# Measurements\n\n{machine}\n\n{image}{tables}"

    def _targets(self) -> Table:
        rows = []
        for name, ((compare, sign), bound, unit) in TARGETS.items():
            value = self.found.get(name)
            met = "not measured" if value is None else "yes" if compare(value, bound) else "**no**"
            rows.append((name, "" if value is None else f"{value:.2f}{unit}", f"{sign} {bound:g}{unit}", met))
        note = "Medians over the rounds of one run; ratios are the median of the rounds' ratios."
        return Table("Targets", note, ("what", "measured", "target", "met"), rows)

    def draw(self, path: Path) -> bool:
        """Draw the picture if there is what it shows; say whether there was."""
        if not self.rates or not self.late:
            return False
        with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "notifier", "font.size": 9}):
            figure = Figure(figsize=(10, 3.6), layout="constrained")
            rates, latency = figure.subplots(1, 2)
            self._draw_rates(rates)
            self._draw_latency(latency)
            figure.savefig(path, metadata={"Date": None})
        return True

    def _draw_rates(self, axes: Axes) -> None:
        operations = list(dict.fromkeys(operation for operation, _ in self.rates))
        for i, (server, colour) in enumerate(SERVERS.items()):
            values = [self.rates.get((operation, server), 0.0) for operation in operations]
            bars = axes.bar([x + (i - 1.5) * 0.2 for x in range(len(operations))], values, 0.2, color=colour)
            bars.set_label(LABELS[server])
            axes.bar_label(bars, [number(round(value, -1)) for value in values], fontsize=7, padding=1)
        axes.set_xticks(range(len(operations)), [f"POST /{o}" if o != "list" else "GET /list" for o in operations])
        axes.set_title("requests a second, 64 connections", loc="left")
        axes.margins(y=0.25)
        axes.legend(frameon=False, ncols=2, fontsize=8, loc="upper left")
        axes.spines[["top", "right"]].set_visible(False)

    def _draw_latency(self, axes: Axes) -> None:
        for (operation, server), points in self.late.items():
            if operation != "create":
                continue
            x = [point.offered for point in points]
            for percentile, line in (("p50", "-"), ("p99", ":")):
                y = [getattr(point, percentile) for point in points]
                axes.plot(x, y, line, marker="o", markersize=3, color=SERVERS[server])
                axes.annotate(f"{LABELS[server]}, {percentile}", (x[-1], y[-1]), (4, 0), textcoords="offset points")
        axes.set_yscale("log")
        axes.set_ylabel("ms since the request was due")
        axes.set_xlabel("creates offered a second")
        axes.set_title("latency against offered load", loc="left")
        axes.spines[["top", "right"]].set_visible(False)


def machine(mongodb: str, folder: Path, command: str) -> list[tuple[str, str]]:
    """Describe what it ran on."""
    return [
        ("machine", f"{_processor()}, {os.cpu_count()} cores, which the load, the servers and MongoDB share"),
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
    found = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(100):
            started = time.perf_counter()
            file.write(b"\0" * 4096)
            file.flush()
            os.fsync(file.fileno())
            found.append(time.perf_counter() - started)
    return statistics.median(found) * 1e3
