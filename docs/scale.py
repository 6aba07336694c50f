"""What many creates and many users need: the measured costs, the formulas, and the tables of docs/scale.md."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import Final

# --- measured: the only figures of the page that are neither assumed nor computed -----------------

INBOXES: Final = ("short", "slack", "full")
"""Inboxes of 25 notifications; full ones of 100 with `NOTIFICATIONS_SLACK=50`; and full ones without."""

# CPU in µs at 64 connections, 30 November 2026 (docs/bench.md). Those of an e-mail are over 4 connections.
CREATE_CPU: Final = 200
LIST_CPU: Final = 148
READ_CPU: Final = 130
EMAIL_CPU: Final = 382
LIST_DB_CPU: Final = 33
READ_DB_CPU: Final = 118
EMAIL_DB_CPU: Final = 251
CREATE_DB_CPU: Final = {"short": 146, "slack": 292, "full": 322}
# CPU in µs per change, whoever made it (`python -m bench changes`, 30 November 2026, on a busy machine: four runs found
# 15 to 24, 10 to 11 and 45 to 168).
CHANGE_CPU: Final = 20
APPEND_DB_CPU: Final = 11
TRIM_DB_CPU: Final = 100
# Bytes, as MongoDB counts them.
OPLOG: Final = {"short": 407, "slack": 2_117, "full": 22_179}
READ_OPLOG: Final = 213
EMAIL_OPLOG: Final = 461
"""Claim and settlement."""
DOCUMENT: Final = {"short": 5_561, "full": 22_061}
INDEX: Final = 27
STREAM_MEMORY: Final = 15_700
WIRE: Final = {"create": 1_450, "list": 2_700, "read": 1_720, "email": 3_100}
"""Between the service and MongoDB."""

# --- assumed --------------------------------------------------------------------------------------

TRIMS: Final = 4 / 50
"""Part of the creates in full inboxes that trim, with `NOTIFICATIONS_SLACK=50`."""
CHANGE_DB_CPU: Final = {
    "short": APPEND_DB_CPU,
    "slack": APPEND_DB_CPU + TRIMS * (TRIM_DB_CPU - APPEND_DB_CPU),
    "full": TRIM_DB_CPU,
}
LISTS: Final = 2
READS: Final = 1
EMAILS: Final = 0.1
"""For each create."""
ONLINE: Final = 0.01
"""Part of the users who have a stream open."""
ACTIVE: Final = 0.1
"""Part of the users whose documents must be in MongoDB's cache."""
USED: Final = 0.5
"""Part of a core that is planned for. The rest is for peaks, and for a process or a server that fails."""
SHARD_CORES: Final = 16
SHARD_CACHE: Final = 64e9
SHARD_DISK: Final = 2e12
SHARD_OPLOG: Final = 50e6
"""Bytes per second that its members write, send and replay."""
MEMBERS: Final = 3
STREAMS: Final = 10_000
"""Most streams of a process."""
CONNECTIONS: Final = 45
"""Connections of a process to MongoDB at most: 32 requests alone, 8 shared calls, and what watches the servers."""
HTTP: Final = {"create": 700, "list": 3_000, "read": 500}
"""Bytes of a request and its answer, with the headers of both."""
STREAM_SHARE: Final = 0.2
"""Part of a core that a process with other work may spend on its change stream."""
POLL: Final = 15
"""Seconds between two polls of a bell without a stream."""
RATES: Final = (1_000, 10_000, 100_000)
USERS: Final = (1_000_000, 10_000_000, 100_000_000)


# --- formulas -------------------------------------------------------------------------------------


def service_cores(creates: float) -> float:
    """Return the cores that the service's processes use at so many creates per second, without streams."""
    return creates * (CREATE_CPU + LISTS * LIST_CPU + READS * READ_CPU + EMAILS * EMAIL_CPU) / 1e6


def mongodb_cores(creates: float, inbox: str) -> float:
    """Return the cores that MongoDB's primaries use."""
    cpu = CREATE_DB_CPU[inbox] + LISTS * LIST_DB_CPU + READS * READ_DB_CPU + EMAILS * EMAIL_DB_CPU
    return creates * cpu / 1e6


def changes(creates: float) -> float:
    """Return the changes per second of users' notifications."""
    return creates * (1 + READS)


def oplog(creates: float, inbox: str) -> float:
    """Return the bytes per second of all shards' oplogs."""
    return creates * (OPLOG[inbox] + READS * READ_OPLOG + EMAILS * EMAIL_OPLOG)


def processes(cores: float) -> int:
    """Return how many processes use these cores, each a part of its own."""
    return math.ceil(cores / USED)


def shards(creates: float, inbox: str) -> int:
    """Return how many shards bear so many creates per second, by their primaries' cores and by their oplogs."""
    by_cores = mongodb_cores(creates, inbox) / (USED * SHARD_CORES)
    return math.ceil(max(by_cores, oplog(creates, inbox) / SHARD_OPLOG))


def shards_of(users: float, inbox: str) -> int:
    """Return how many shards hold so many users, by their disks and by their caches."""
    size = users * (DOCUMENT[inbox] + INDEX)
    return max(math.ceil(size / SHARD_DISK), math.ceil(ACTIVE * size / SHARD_CACHE))


def http(creates: float) -> float:
    """Return the bytes per second between clients and the service."""
    return creates * (HTTP["create"] + LISTS * HTTP["list"] + READS * HTTP["read"])


def wire(creates: float) -> float:
    """Return the bytes per second between the service and MongoDB."""
    return creates * (WIRE["create"] + LISTS * WIRE["list"] + READS * WIRE["read"] + EMAILS * WIRE["email"])


def changes_at(share: float) -> float:
    """Return the changes per second with which following them takes a process this part of a core."""
    return share / CHANGE_CPU * 1e6


def stream_processes(users: float) -> int:
    """Return how many processes hold the streams of the users who are online."""
    return math.ceil(users * ONLINE / STREAMS)


WIDTH: Final = 125
"""Characters of a line of prose."""

# --- tables ---------------------------------------------------------------------------------------


def rates() -> str:
    """Return what creates per second need."""
    rows = {
        "changes/s": lambda r: number(changes(r)),
        "CPU of the service, cores": lambda r: number(service_cores(r)),
        "**processes of the service**": lambda r: number(processes(service_cores(r))),
        "their connections to MongoDB, at most": lambda r: number(CONNECTIONS * processes(service_cores(r))),
        "CPU of MongoDB's primaries, cores": lambda r: _each(mongodb_cores(r, inbox) for inbox in INBOXES),
        "**shards**": lambda r: _each(shards(r, inbox) for inbox in INBOXES),
        "oplog, MB/s": lambda r: _each(oplog(r, inbox) / 1e6 for inbox in INBOXES),
        "oplog of a day, GB": lambda r: _each(oplog(r, inbox) * 86_400 / 1e9 for inbox in INBOXES),
        "network: clients, Mbit/s": lambda r: number(http(r) * 8 / 1e6),
        "network: service and MongoDB, Mbit/s": lambda r: number(wire(r) * 8 / 1e6),
        "network: MongoDB's members, Mbit/s": lambda r: _each(
            (MEMBERS - 1) * oplog(r, inbox) * 8 / 1e6 for inbox in INBOXES
        ),
    }
    return table(["creates/s", *map(number, RATES)], [[name, *map(row, RATES)] for name, row in rows.items()])


def users() -> str:
    """Return what users need."""
    rows = {
        "documents, GB": lambda u: _each(u * DOCUMENT[inbox] / 1e9 for inbox in DOCUMENT),
        "index, GB": lambda u: number(u * INDEX / 1e9),
        "in MongoDB's cache, GB": lambda u: _each(ACTIVE * u * DOCUMENT[inbox] / 1e9 for inbox in DOCUMENT),
        "**shards**": lambda u: _each(shards_of(u, inbox) for inbox in DOCUMENT),
        "streams open": lambda u: number(u * ONLINE),
        "**processes for the streams**": lambda u: number(stream_processes(u)),
        "their memory for streams, GB": lambda u: number(u * ONLINE * STREAM_MEMORY / 1e9),
        "lists/s, if bells poll instead": lambda u: number(u * ONLINE / POLL),
        "processes for these": lambda u: number(processes(u * ONLINE / POLL * LIST_CPU / 1e6)),
    }
    return table(["users", *map(number, USERS)], [[name, *map(row, USERS)] for name, row in rows.items()])


def streams() -> str:
    """Return what following the changes takes."""
    rows = {
        "changes/s": lambda r: number(changes(r)),
        "each process with a listener, cores": lambda r: number(changes(r) * CHANGE_CPU / 1e6),
        "MongoDB for each such process, cores": lambda r: _each(changes(r) * CHANGE_DB_CPU[i] / 1e6 for i in INBOXES),
    }
    return table(["creates/s", *map(number, RATES)], [[name, *map(row, RATES)] for name, row in rows.items()])


def bounds() -> str:
    """Return from where on streams need processes of their own, and where one change stream ends."""
    own, most, core = (number(changes_at(share)) for share in (STREAM_SHARE, USED, 1.0))
    cursor = number(1e6 / CHANGE_DB_CPU["full"])
    alone = (
        f"**Up to {own} changes/s**, following them takes at most {STREAM_SHARE:.0%} of a core. Any process may do it."
    )
    apart = (
        f"**From {own} changes/s on**, give streams processes of their own: let the balancer send `/stream` to some "
        "processes, and everything else to the others, which then have no listeners and follow nothing."
    )
    ended = (
        f"**From {most} changes/s on**, a process that follows them has no reserve, and at {core} it falls behind. "
        "More processes do not help. Let the balancer answer `/stream` with 501: the bells then poll."
    )
    trimmed = (
        f"**At {cursor} changes/s**, if each of them trims a full inbox, MongoDB itself falls behind: it reads a "
        "change stream in one thread. With `NOTIFICATIONS_SLACK`, few creates trim."
    )
    items = (alone, apart, ended, trimmed)
    return "\n".join(_wrapped(f"- {item}", "  ") for item in items)


def assumptions() -> str:
    """Return what the tables assume."""
    return _wrapped(
        f"For each create there are {LISTS} lists, {READS} mark and {EMAILS:g} e-mails. {ONLINE:.0%} of the users have "
        f"a stream open, and {ACTIVE:.0%} of the documents are in use. The plan uses {USED:.0%} of each core; "
        f"the rest is for peaks and failures. A shard is a replica set of {MEMBERS} servers, each with {SHARD_CORES} "
        f"cores, {SHARD_CACHE / 1e9:.0f} GB of cache and {SHARD_DISK / 1e12:.0f} TB of disk, and able to write "
        f"{SHARD_OPLOG / 1e6:.0f} MB of oplog a second. Three figures in a cell are for short inboxes of 25 "
        "notifications, for full ones of 100 with `NOTIFICATIONS_SLACK=50`, and for full ones without it; two figures "
        "are for short and for full inboxes."
    )


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def costs() -> str:
    """Return the measured costs."""
    rows: dict[str, tuple[Iterable[float], ...]] = {
        "create": ([CREATE_CPU], CREATE_DB_CPU.values(), OPLOG.values()),
        "list": ([LIST_CPU], [LIST_DB_CPU], []),
        "mark as read": ([READ_CPU], [READ_DB_CPU], [READ_OPLOG]),
        "e-mail": ([EMAIL_CPU], [EMAIL_DB_CPU], [EMAIL_OPLOG]),
        "change, for each process that follows it": (
            [CHANGE_CPU],
            [APPEND_DB_CPU, CHANGE_DB_CPU["slack"], TRIM_DB_CPU],
            [],
        ),
    }
    cells = [
        [name, *(" · ".join(f"{value:,.3g}" if value < 1000 else f"{value:,}" for value in values) for values in row)]
        for name, row in rows.items()
    ]
    return table(["each", "the service's CPU µs", "MongoDB's CPU µs", "oplog bytes"], cells)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table whose columns of figures are aligned to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def number(value: float) -> str:
    """Format a figure with two significant digits, but never round an integer part below 1,000."""
    if value >= 1000:
        digits = 10 ** (int(math.log10(value)) - 1)
        return f"{round(value / digits) * digits:,.0f}"
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"


def _each(values: Iterable[float]) -> str:
    return " · ".join(map(number, values))


BLOCKS: Final = (assumptions, costs, rates, users, streams, bounds)
"""What `docs/generate.py` writes into the page."""
