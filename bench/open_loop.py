"""An open loop: requests leave when they are due, whether or not earlier ones have been answered."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import selectors
import time
from collections import deque
from typing import Final

from bench.figures import Latency, percentile
from bench.load import LoadError, Server, Workload

CONNECTIONS: Final = 64
"""Connections of an open loop. A request waits while none is free, and its latency includes the wait."""
GRACE: Final = 5.0
"""Seconds to wait for answers after the last request. A request without an answer counts as this late."""


def open_loop(server: Server, workload: Workload, rate: float, seconds: float) -> Latency:
    """Offer `rate` requests per second at random moments, as many independent clients do (a Poisson process).

    The latency of a request counts from when it was due, not from when it could be sent. A server that stops for a
    second is charged for every request that was due in that second ("coordinated omission").

    Raises `LoadError` if a connection breaks or a status is not 2xx.
    """
    # select() waits to the microsecond and epoll to the millisecond, with which requests would leave in bursts.
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        return runner.run(_open_loop(server, workload, rate, seconds))


async def _open_loop(server: Server, workload: Workload, rate: float, seconds: float) -> Latency:
    generator = _Generator()
    await generator.connect(server.port)
    started = due = time.perf_counter()
    while (due := due + random.expovariate(rate)) < started + seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        generator.send(due, workload.draw())
    unanswered = await generator.finish()
    if generator.fault:
        raise LoadError(f"{workload.name} on {server.name}, {rate:.0f}/s: {generator.fault}.\n{server.log_tail()}")
    latencies = sorted(latency for _, latency in generator.answered) + [GRACE] * unanswered
    in_time = sum(at < started + seconds for at, _ in generator.answered)
    return Latency(
        offered=len(latencies) / seconds,
        answered=in_time / seconds,
        p50=percentile(latencies, 50) * 1e3,
        p99=percentile(latencies, 99) * 1e3,
    )


class _Generator:
    """The connections, and the requests that wait for one."""

    def __init__(self) -> None:
        self.answered: list[tuple[float, float]] = []
        """When each answer came, and its latency in seconds."""
        self.fault = ""
        self._connections: list[_Connection] = []
        self._free: list[_Connection] = []
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._all_answered = asyncio.Event()

    async def connect(self, port: int) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(CONNECTIONS):
            _, connection = await loop.create_connection(lambda: _Connection(self), "127.0.0.1", port)
            self._connections.append(connection)
        self._free = list(self._connections)

    def send(self, due: float, request: bytes) -> None:
        if self._free:
            self._free.pop().send(due, request)
        else:
            self._waiting.append((due, request))

    def receive(self, connection: _Connection, due: float, status: bytes) -> None:
        """Record an answer, and give its connection the next request."""
        now = time.perf_counter()
        self.answered.append((now, now - due))
        if not status.startswith(b"2"):
            self.fault = f"an answer had the status {status.decode(errors='replace')}"
        if self._waiting:
            connection.send(*self._waiting.popleft())
            return
        self._free.append(connection)
        if len(self._free) == len(self._connections):
            self._all_answered.set()

    async def finish(self) -> int:
        """Wait for the last answers, then close; return how many never came."""
        if len(self._free) < len(self._connections):
            self._all_answered.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_answered.wait(), GRACE)
        for connection in self._connections:
            connection.transport.abort()
        return len(self._waiting) + len(self._connections) - len(self._free)


class _Connection(asyncio.Protocol):
    """One connection, with no more HTTP than it needs, because it shares the machine with the server."""

    transport: asyncio.Transport

    def __init__(self, generator: _Generator) -> None:
        self._generator = generator
        self._due = 0.0
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def send(self, due: float, request: bytes) -> None:
        self._due = due
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        if found and len(body) >= int(length[1] if length else 0):
            self._received = b""
            self._generator.receive(self, self._due, head[9:12])

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.transport.is_closing() or exc:
            self._generator.fault = f"a connection broke: {exc}"
