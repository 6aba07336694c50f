"""Streams of inboxes: what they cost, and how soon a page shows what was written."""

from __future__ import annotations

import asyncio
import http.client
import json
import multiprocessing
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.sharedctypes import Synchronized
from typing import Any, Final

from playwright.sync_api import Error as PlaywrightError
from playwright.sync_api import Page, sync_playwright

from bench.figures import median_ratio, percentile
from bench.load import CREATE, LoadError, Server, Workload
from bench.report import Row
from bench.run import Bench
from tests.bell import FRAMES
from tests.waiting import eventually

WATCHED: Final = "638f394d4b7243fc0399ea67"
"""The user whose inbox the demo page shows."""
RECORD_SHOWN: Final = """
window.shown = new Map();
document.querySelector("notifier-inbox").addEventListener("notification", ({ detail }) =>
  requestAnimationFrame(() => shown.set(detail.data.n, Date.now())));
"""
NOTE: Final = (
    "One process. Another process on the same machine holds all streams, and takes its share of the CPU. Write to "
    "screen is the time from just before a create to the frame in which Chromium shows it, measured {shown} times, one "
    "after another."
)


def streams(bench: Bench) -> None:
    """Measure what streams cost the process and the creates, and how soon a page shows a create."""
    bench.fill(bench.size.users, bench.size.notifications)
    with bench.service(DEMO=1, LOG_LEVEL="WARNING") as service:
        rows = _costs(bench, service) + _times_to_screen(bench, service)
    bench.report.add("Streams", NOTE.format(shown=bench.size.shown), ("what", "measured"), rows)


def _costs(bench: Bench, service: Server) -> list[Row]:
    size, most = bench.size, max(bench.size.streams)
    of_anyone = Workload("create", [CREATE], size.users)
    of_listeners = Workload("create", [CREATE], most)
    without: list[float] = []
    with_streams: list[float] = []
    events: list[float] = []
    memory: list[float] = []
    bench.measure(service, of_anyone)  # so that its connection pool is full
    for _ in bench.rounds(size.rounds):
        bench.progress("creates/s without streams")
        without.append(bench.measure(service, of_anyone).rps)
        time.sleep(1)
        rss = service.rss()
        bench.progress(f"creates/s with {most:,} streams open")
        with listening(service, most) as count_events:
            memory.append((service.rss() - rss) * 1e3 / most)
            with_streams.append(bench.measure(service, of_anyone).rps)
            counted = count_events()
            bench.measure(service, of_listeners)
            events.append((count_events() - counted) / size.seconds)
    bench.report.target("creates/s with 1,000 streams open ÷ with none", median_ratio(with_streams, without))
    return [
        ("creates/s without streams", statistics.median(without)),
        (f"creates/s with {most:,} streams open, each of another user", statistics.median(with_streams)),
        (f"events/s on {most:,} streams, when every create is for one of their users", statistics.median(events)),
        ("memory of an idle stream, KB (in the first round)", memory[0]),
    ]


def _times_to_screen(bench: Bench, service: Server) -> list[Row]:
    size, rows = bench.size, list[Row]()
    with screen(service) as page:
        for number in size.streams:
            bench.progress(f"write to screen with {number:,} streams open")
            with listening(service, number):
                times = sorted(_time_to_screen(service, page, number * size.shown + n) for n in range(size.shown))
            for percent in (50, 99):
                name = f"write to screen with {number:,} streams open, p{percent} ms"
                rows.append((name, percentile(times, percent)))
    return rows


# --- listeners -------------------------------------------------------------------------------------


@contextmanager
def listening(server: Server, number: int) -> Iterator[Callable[[], int]]:
    """Hold a stream for each of the first users, in a process of its own; yield a function that counts their events.

    Raises `LoadError` if they do not all have their first event within 30 seconds.
    """
    context = multiprocessing.get_context("spawn")
    events = context.Value("Q", 0, lock=True)
    process = context.Process(target=_listen, args=(server.port, number, events), daemon=True)
    process.start()

    def all_listen() -> None:
        assert events.value >= number

    try:
        eventually(all_listen, 30)
        yield lambda: int(events.value)
    except AssertionError:
        raise LoadError(f"Only {events.value} of {number} streams began.\n{server.log_tail()}") from None
    finally:
        process.kill()
        process.join()


def _listen(port: int, number: int, events: Synchronized[int]) -> None:
    async def listen() -> None:
        loop = asyncio.get_running_loop()
        for n in range(number):
            await loop.create_connection(lambda n=n: _Listener(n, events), "127.0.0.1", port)  # type: ignore[misc]
        await asyncio.Event().wait()

    asyncio.run(listen())


class _Listener(asyncio.Protocol):
    def __init__(self, n: int, events: Synchronized[int]) -> None:
        self._n = n
        self._events = events

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(f"GET /stream?user_id={self._n:024x} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())

    def data_received(self, data: bytes) -> None:
        self._events.value += data.count(b"event: inbox")  # no other thread writes it


# --- the screen ------------------------------------------------------------------------------------


@contextmanager
def screen(server: Server) -> Iterator[Page]:
    """Open the demo page in Chromium."""
    if not (path := shutil.which("chromium") or shutil.which("chromium-headless-shell")):
        raise LoadError("Chromium, which shows the page, is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            page = browser.new_page(bypass_csp=True)  # so that RECORD_SHOWN may run
            page.add_init_script(FRAMES)
            with page.expect_response(lambda response: "/stream" in response.url):  # then the bell is up to date
                page.goto(f"http://127.0.0.1:{server.port}/")
            page.evaluate(RECORD_SHOWN)
            yield page
        except PlaywrightError as exc:
            raise LoadError(f"Chromium does not show the page: {exc}") from exc
        finally:
            browser.close()


def _time_to_screen(server: Server, page: Page, n: int) -> float:
    """Return the milliseconds from just before a create to the frame that shows it."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    body = json.dumps({"user_id": WATCHED, "key": "new_post", "data": {"n": n}})
    written = time.time() * 1e3
    connection.request("POST", "/create", body)
    status = connection.getresponse().status
    connection.close()
    if status != 201:
        raise LoadError(f"A create was answered with {status}.\n{server.log_tail()}")
    page.wait_for_function("n => shown.has(n)", arg=n)
    shown: Any = page.evaluate("n => shown.get(n)", n)
    return float(shown) - written
