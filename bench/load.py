"""The load on a server: wrk, which asks as soon as it is answered, and an open loop, which asks when it is time to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import selectors
import shutil
import statistics
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Final, TypeVar

import psutil

USER: Final = "U" * 24
ITEM: Final = "N" * 24
"""What stands in a request, or in a document, for the id of a user and the id of one of the user's notifications."""
TARGET: Final = "0399ea67638f394d4b7243fc"
DATA: Final = {"post": "638f394d4b7243fc0399ea67", "by": "Ann"}
CONNECTIONS: Final = 64
"""Of the open loop at most; a request that finds none free waits, and is late for the time that it waits."""
PATIENCE: Final = 5.0
"""Seconds after the end of an open loop in which answers still count."""

WRK_SCRIPT: Final = f"""
function request()
  local text = templates[math.random(#templates)]
  text = text:gsub("{USER}", string.format("%024x", math.random(0, users - 1)))
  return (text:gsub("{ITEM}", string.format("%024x", math.random(0, items - 1))))
end
function done(summary, latency)
  local e = summary.errors
  io.write(string.format('\\n{{"requests": %d, "us": %d, "p50": %d, "p99": %d, "failed": [%d, %d, %d, %d, %d]}}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect, e.read, e.write, e.timeout, e.status))
end
"""


class LoadError(Exception):
    """A server did not answer as it should: a figure of it would mean nothing."""


@dataclass(frozen=True)
class Workload:
    """Requests, as they go over the connection, among which one is drawn at random, for a random user and notification.

    `users` and `items` are how many there are of each.
    """

    name: str
    templates: Sequence[str]
    users: int
    items: int = 1

    def draw(self) -> bytes:
        """Return a request."""
        text = random.choice(self.templates).replace(USER, f"{random.randrange(self.users):024x}")
        return text.replace(ITEM, f"{random.randrange(self.items):024x}").encode()


def post(**body: object) -> str:
    """Return a `POST /create` for a random user."""
    text = json.dumps({"user_id": USER, "target_id": TARGET, **body})
    return f"POST /create HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(text)}\r\n\r\n{text}"


LIST: Final = f"GET /list?user_id={USER}&skip=0&limit=10 HTTP/1.1\r\nHost: bench\r\n\r\n"
READ: Final = f"POST /read?user_id={USER}&notification_id={ITEM} HTTP/1.1\r\nHost: bench\r\nContent-Length: 0\r\n\r\n"


@dataclass(frozen=True)
class Server:
    """A process under load; where it has children, they are part of it."""

    name: str
    port: int
    process: psutil.Process
    log: Path

    def cpu(self) -> float:
        """Return the seconds of CPU that it has used."""
        times = [process.cpu_times() for process in family(self.process)]
        return sum(float(t.user + t.system) for t in times)

    def rss(self) -> float:
        """Return its resident memory in MB."""
        return sum(float(process.memory_info().rss) for process in family(self.process)) / 1e6


def family(process: psutil.Process) -> list[psutil.Process]:
    """Return a process and its descendants."""
    return [process, *process.children(recursive=True)]


@dataclass(frozen=True)
class Sample:
    """What a load measured: answers a second; ms; µs of CPU a request, of the server and of MongoDB."""

    rps: float
    p50: float
    p99: float
    cpu: float
    db_cpu: float


def find_wrk() -> str:
    """Return the path of wrk; raises `LoadError` that says how to get it."""
    if path := shutil.which("wrk"):
        return path
    raise LoadError("wrk is missing, which makes the load: apt-get install wrk")


def closed_loop(server: Server, mongod: Server, workload: Workload, connections: int, seconds: int) -> Sample:
    """Load a server with wrk for so many seconds, each connection with a request after the other.

    Raises `LoadError` when an answer is missing, or is no 2xx.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_script(workload))
        script.flush()
        command = [find_wrk(), "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", script.name]
        url = f"http://127.0.0.1:{server.port}"
        before, db_before = server.cpu(), mongod.cpu()
        try:
            result = subprocess.run(  # noqa: S603 - our own words
                [*command, url], capture_output=True, text=True, timeout=seconds + 30, check=False
            )
        except subprocess.TimeoutExpired as exc:
            raise LoadError(f"wrk hangs at {server.name}.{_tail(server)}") from exc
    cpu, db_cpu = server.cpu() - before, mongod.cpu() - db_before
    if result.returncode:
        raise LoadError(f"wrk failed at {server.name}: {result.stdout}{result.stderr}{_tail(server)}")
    found = json.loads(result.stdout.splitlines()[-1])
    if any(found["failed"]) or not found["requests"]:
        raise LoadError(
            f"{server.name}, {workload.name}, {connections} connections: of {found['requests']} requests failed "
            f"(to connect, read, write, in time, with another status than 2xx) {found['failed']}.{_tail(server)}"
        )
    requests = found["requests"]
    return Sample(
        rps=requests / found["us"] * 1e6,
        p50=found["p50"] / 1e3,
        p99=found["p99"] / 1e3,
        cpu=cpu / requests * 1e6,
        db_cpu=db_cpu / requests * 1e6,
    )


def _script(workload: Workload) -> str:
    templates = ", ".join(map(json.dumps, workload.templates))  # of ASCII with \r and \n: in Lua the same string
    values = f"{{{templates}}}, {workload.users}, {workload.items}"
    seed = random.randrange(2**31)
    return f"local templates, users, items = {values}\nmath.randomseed({seed})\n{WRK_SCRIPT}"


def _tail(server: Server) -> str:
    return f"\nThe end of its log:\n{server.log.read_text(errors='replace')[-2000:]}"


# --- open loop -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Late:
    """Of an open loop: requests a second that were due and that were answered; ms from when they were due."""

    offered: float
    rps: float
    p50: float
    p99: float

    @property
    def saturated(self) -> bool:
        """Whether the server could not keep up: what waits grows for as long as the load lasts."""
        return self.rps < 0.95 * self.offered or self.p99 > 1000


Figures = TypeVar("Figures", Sample, Late)


def median(found: Sequence[Figures]) -> Figures:
    """Return the median of each figure."""
    return type(found[0])(*map(statistics.median, zip(*map(astuple, found), strict=True)))


def open_loop(server: Server, workload: Workload, rate: float, seconds: float) -> Late:
    """Offer `rate` requests a second, at random moments as many independent clients do (a Poisson process).

    The time of a request is counted from when it was due, not from when it could be sent: a server that stops for a
    second is charged for all that were due in this second ("coordinated omission").
    """
    # select() takes microseconds, epoll milliseconds: requests would leave in bursts
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        return runner.run(_open_loop(server, workload, rate, seconds))


async def _open_loop(server: Server, workload: Workload, rate: float, seconds: float) -> Late:
    generator = _Generator()
    await generator.connect(server.port)
    started = due = time.perf_counter()
    while (due := due + random.expovariate(rate)) < started + seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        generator.send(due, workload.draw())
    unanswered = await generator.finish(PATIENCE)
    found = sorted(seconds for _, seconds in generator.answered)
    found += [PATIENCE] * unanswered
    if generator.failed:
        raise LoadError(f"{server.name}, {workload.name}, {rate:.0f} a second: {generator.failed}{_tail(server)}")
    in_time = sum(at < started + seconds for at, _ in generator.answered)
    p50, p99 = found[len(found) // 2] * 1e3, found[int(len(found) * 0.99)] * 1e3
    return Late(len(found) / seconds, in_time / seconds, p50, p99)


class _Generator:
    """Connections, the requests that wait for one, and when what was answered how late: (time, seconds)."""

    def __init__(self) -> None:
        self.answered: list[tuple[float, float]] = []
        self.failed = ""
        self._free: list[_Connection] = []
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._all: list[_Connection] = []
        self._all_answered = asyncio.Event()

    async def connect(self, port: int) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(CONNECTIONS):
            _, connection = await loop.create_connection(lambda: _Connection(self), "127.0.0.1", port)
            self._all.append(connection)
        self._free = list(self._all)

    def send(self, due: float, request: bytes) -> None:
        if self._free:
            self._free.pop().ask(due, request)
        else:
            self._waiting.append((due, request))

    def next(self, connection: _Connection, due: float, status: bytes) -> None:
        """Note the answer that a connection got, and give it the next request."""
        now = time.perf_counter()
        self.answered.append((now, now - due))
        if not status.startswith(b"2"):
            self.failed = f"an answer was {status.decode(errors='replace')}"
        if self._waiting:
            connection.ask(*self._waiting.popleft())
        else:
            self._free.append(connection)
            if len(self._free) == len(self._all):
                self._all_answered.set()

    async def finish(self, patience: float) -> int:
        """Wait until all is answered, for so many seconds at most; return how many requests are not by then."""
        if len(self._free) < len(self._all):
            self._all_answered.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_answered.wait(), patience)
        for connection in self._all:
            connection.transport.abort()
        return len(self._waiting) + len(self._all) - len(self._free)


class _Connection(asyncio.Protocol):
    """One connection of the open loop: as little of HTTP as will do, since it shares the machine with the server."""

    transport: asyncio.Transport

    def __init__(self, generator: _Generator) -> None:
        self._generator = generator
        self._due = 0.0
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def ask(self, due: float, request: bytes) -> None:
        self._due = due
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        if found and len(body) >= int(length[1] if length else 0):
            self._received = b""
            self._generator.next(self, self._due, head[9:12])

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.transport.is_closing() or exc:
            self._generator.failed = f"a connection broke: {exc}"
