"""What bad clients do to the good ones: `python bench.py hostile`."""

from __future__ import annotations

import asyncio
import multiprocessing
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import aiohttp

from tests.processes import Service
from tests.servers import Mongod, free_port, initiate
from tests.waiting import eventually

USER: Final = "638f394d4b7243fc0399ea67"
RATE: Final = 100
"""Requests a second of the good client: an open loop, so that one which waits keeps no other from being late."""
ROUNDS: Final = 3
SECONDS: Final = 6.0
WARM_UP: Final = 1.0


# --- bad clients -----------------------------------------------------------------------------------


async def _connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port)


async def idle(port: int) -> None:
    """Hold 10,000 connections, or what the limit of file descriptors leaves, and say nothing."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = [await _connect(port) for _ in range(min(10_000, soft - 100))]
    await asyncio.Event().wait()
    del held


async def slowloris(port: int) -> None:
    """Send the headers of 500 requests, a byte a second each."""

    async def one() -> None:
        _, writer = await _connect(port)
        writer.write(b"GET /list HTTP/1.1\r\n")
        while True:
            writer.write(b"x")
            await asyncio.sleep(1)

    await asyncio.gather(*(one() for _ in range(500)))


async def slow_body(port: int) -> None:
    """Send 50 bodies of 64 KiB, byte by byte, 100 bytes a second each."""

    async def one() -> None:
        _, writer = await _connect(port)
        writer.write(b"POST /create HTTP/1.1\r\nHost: x\r\nContent-Length: 65536\r\n\r\n")
        while True:
            writer.write(b" ")
            await asyncio.sleep(0.01)

    await asyncio.gather(*(one() for _ in range(50)))


async def pipelining(port: int) -> None:
    """Send 1000 requests at once over one connection, and again as soon as they are answered."""
    reader, writer = await _connect(port)
    while True:
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
        for _ in range(1000):
            await reader.readuntil(b'{"success": true}')


BAD_CLIENTS: Final[dict[str, Callable[[int], Awaitable[None]]]] = {
    "10,000 idle connections": idle,
    "slow headers": slowloris,
    "slow bodies": slow_body,
    "pipelining": pipelining,
}


def _run_bad_client(name: str, port: int) -> None:
    asyncio.run(BAD_CLIENTS[name](port))  # type: ignore[arg-type]


@contextmanager
def bad_client(name: str | None, port: int) -> Iterator[None]:
    """Run a bad client as a process of its own, or none."""
    if name is None:
        yield
        return
    process = multiprocessing.get_context("spawn").Process(target=_run_bad_client, args=(name, port), daemon=True)
    process.start()
    time.sleep(3)  # until it has all of its connections
    try:
        yield
    finally:
        process.kill()
        process.join()


# --- the good client -------------------------------------------------------------------------------


async def latencies(port: int) -> list[float]:
    """Return the seconds from when each request was due to its answer."""
    found: list[float] = []
    url = f"http://127.0.0.1:{port}/list?user_id={USER}"
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=16)) as session:

        async def one(due: float) -> None:
            async with session.get(url) as response:
                await response.read()
                response.raise_for_status()
            found.append(time.perf_counter() - due)

        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for n in range(int((WARM_UP + SECONDS) * RATE)):
                due = started + n / RATE
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                group.create_task(one(due))
    return sorted(found[int(WARM_UP * RATE) :])


def hostile() -> int:
    """Measure the good client alone and beside each bad one, in turn, and print the medians of the rounds."""
    names: list[str | None] = [None, *BAD_CLIENTS]
    p50s: dict[str | None, list[float]] = {name: [] for name in names}
    p99s: dict[str | None, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, _service(Path(folder)) as service:
        for n in range(ROUNDS):
            for name in names:
                print(f"round {n + 1} of {ROUNDS}: {name or 'undisturbed'}", file=sys.stderr, flush=True)
                with bad_client(name, service.port):
                    found = asyncio.run(latencies(service.port))
                p50s[name].append(statistics.median(found))
                p99s[name].append(found[int(len(found) * 0.99)])
    base = statistics.median(p99s[None])
    print(f"{platform.processor() or platform.machine()}, {multiprocessing.cpu_count()} cores; {RATE} lists/s\n")
    print(f"| {'beside':<24} | p50 ms | p99 ms | p99 ÷ undisturbed |")
    print(f"| {'-' * 24} | -----: | -----: | ----------------: |")
    for name in names:
        p50, p99 = statistics.median(p50s[name]), statistics.median(p99s[name])
        print(f"| {name or 'nobody':<24} | {p50 * 1e3:6.1f} | {p99 * 1e3:6.1f} | {p99 / base:17.2f} |")
    return 0


@contextmanager
def _service(folder: Path) -> Iterator[Service]:
    """Run the service on a MongoDB of its own."""
    mongod = Mongod(folder / "db", "bench")
    mongod.start()
    initiate([mongod], "bench")
    service = Service(
        folder,
        DB_URI=f"mongodb://{mongod.address}/bench",
        EMAIL="bench@example.com",
        SMTP_HOST="127.0.0.1",
        SMTP_PORT=free_port(),
        LOG_LEVEL="WARNING",
    )
    try:
        eventually(service.answers, 30)
        yield service
    finally:
        service.kill()
        mongod.kill()
