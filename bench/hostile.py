"""Bad clients: how much they slow down the good ones."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import multiprocessing
import resource
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from typing import Any, Final

import aiohttp

from bench.figures import percentile
from bench.load import LoadError
from bench.report import Row
from bench.run import Bench

USER: Final = "638f394d4b7243fc0399ea67"
RATE: Final = 100
"""Lists per second of the good client. It is an open loop: a late answer delays no other request."""
WARM_UP: Final = 1.0
"""Seconds that are not measured."""
CONNECT_TIMEOUT: Final = 60.0
"""Seconds in which a bad client must have made its connections."""
BOMB: Final = gzip.compress(b" " * 60_000_000)
"""A body of 60 KB."""
NOBODY: Final = "nobody"
HEADER: Final = ("beside", "p50 ms", "p99 ms", "p99 ÷ undisturbed")


def hostile(bench: Bench) -> None:
    """Measure the good client alone, and beside each bad one."""
    names = [NOBODY, *BAD_CLIENTS]
    p50s, p99s = defaultdict[str, list[float]](list), defaultdict[str, list[float]](list)
    with bench.service(LOG_LEVEL="WARNING") as service:
        for _ in bench.rounds(bench.size.long_rounds):
            for name in names:
                bench.progress(f"beside {name}")
                with bad_client(name, service.port):
                    latencies = asyncio.run(measure_lists(service.port, bench.size.hostile_seconds))
                p50s[name].append(percentile(latencies, 50) * 1e3)
                p99s[name].append(percentile(latencies, 99) * 1e3)
    undisturbed = statistics.median(p99s[NOBODY])
    rows: list[Row] = []
    for name in names:
        p50, p99 = statistics.median(p50s[name]), statistics.median(p99s[name])
        rows.append((name, p50, p99, p99 / undisturbed))
    bench.report.add("Bad clients", f"A good client asks for {RATE} lists per second.", HEADER, rows)


async def measure_lists(port: int, seconds: float) -> list[float]:
    """Return the seconds from when each list was due to its answer, the fastest first.

    Raises `LoadError` if one is not answered with 200.
    """
    found: list[tuple[float, float]] = []
    url = f"http://127.0.0.1:{port}/list?user_id={USER}"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=16)) as session:

        async def ask(due: float) -> None:
            async with session.get(url) as response:
                await response.read()
                response.raise_for_status()
            found.append((due, time.perf_counter() - due))

        started = time.perf_counter()
        try:
            async with asyncio.TaskGroup() as group:
                for n in range(int((WARM_UP + seconds) * RATE)):
                    due = started + n / RATE
                    await asyncio.sleep(max(0.0, due - time.perf_counter()))
                    group.create_task(ask(due))
        except* (aiohttp.ClientError, TimeoutError) as group_of_faults:
            raise LoadError(f"A list was not answered: {group_of_faults.exceptions[0]!r}") from None
    return sorted(latency for due, latency in found if due >= started + WARM_UP)


# --- bad clients -----------------------------------------------------------------------------------


@contextmanager
def bad_client(name: str, port: int) -> Iterator[None]:
    """Run a bad client, once it has its connections, in a process of its own; or nobody."""
    if name == NOBODY:
        yield
        return
    context = multiprocessing.get_context("spawn")
    connected = context.Event()
    process = context.Process(target=_run_bad_client, args=(name, port, connected), daemon=True)
    process.start()
    try:
        if not connected.wait(CONNECT_TIMEOUT):
            raise LoadError(f"The bad client could not make its connections: {name}.")
        yield
    finally:
        process.kill()
        process.join()


def _run_bad_client(name: str, port: int, connected: Event) -> None:
    wanted, act = BAD_CLIENTS[name]
    file_descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    possible = min(wanted, file_descriptors - 100)

    async def run() -> None:
        connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(possible)]
        connected.set()
        await asyncio.gather(*(act(reader, writer) for reader, writer in connections))

    asyncio.run(run())


async def idle(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    """Send nothing."""
    await asyncio.Event().wait()


async def send_slow_headers(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send headers, one byte per second."""
    writer.write(b"GET /list HTTP/1.1\r\n")
    while True:
        writer.write(b"x")
        await asyncio.sleep(1)


async def send_slow_body(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send a body of 64 KiB byte by byte, 100 bytes per second."""
    writer.write(b"POST /create HTTP/1.1\r\nHost: x\r\nContent-Length: 65536\r\n\r\n")
    while True:
        writer.write(b" ")
        await asyncio.sleep(0.01)


async def pipeline(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send 1000 requests at once, and again when they are answered."""
    while True:
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
        for _ in range(1000):
            await reader.readuntil(b'{"success": true}')


async def send_bombs(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send bodies of 60 KB that would inflate to 60 MB, one after another."""
    head = f"POST /create HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: {len(BOMB)}\r\n\r\n"
    while True:
        writer.write(head.encode() + BOMB)
        await writer.drain()
        await reader.readuntil(b"}")


async def send_without_end(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send a chunked body that does not end, as fast as it is read."""
    chunk = b"1000\r\n" + b" " * 4096 + b"\r\n"
    writer.write(b"POST /create HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(chunk)
        await writer.drain()


Act = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


def reconnecting(act: Act) -> Act:
    """Do the same again on a new connection whenever the service closes one."""

    async def act_again(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        host, port = writer.get_extra_info("peername")
        while True:
            with contextlib.suppress(OSError, EOFError):
                await act(reader, writer)
            writer.close()
            reader, writer = await asyncio.open_connection(host, port)

    return act_again


BAD_CLIENTS: Final[dict[str, tuple[int, Act]]] = {
    # name: how many connections, and what it does on each of them
    "10,000 idle connections": (10_000, idle),
    "slow headers": (500, send_slow_headers),
    "slow bodies": (50, send_slow_body),
    "pipelining": (1, pipeline),
    "gzip bombs": (4, reconnecting(send_bombs)),
    "chunked bodies without end": (20, reconnecting(send_without_end)),
}
