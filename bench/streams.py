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

from playwright.sync_api import Page, sync_playwright

from bench.load import DATA, LoadError, Server, Workload, post
from bench.report import Table
from bench.run import Bench
from tests.waiting import eventually

WATCHED: Final = "638f394d4b7243fc0399ea67"
"""The user of the demo page."""
SEEN: Final = """
window.seen = new Map();
document.querySelector("notifier-inbox").addEventListener("notification", ({ detail }) =>
  requestAnimationFrame(() => seen.set(detail.data.n, Date.now())));
"""


def streams(bench: Bench) -> None:
    """Measure what streams take from the process and from creates, and what they give."""
    size = bench.size
    bench.fill(size.users, size.items)
    most = max(size.streams)
    creates = Workload("create", [post(key="new_post", data=DATA)], size.users)
    listened = Workload("create", [post(key="new_post", data=DATA)], most)
    found: dict[str, list[float]] = {name: [] for name in ("alone", "beside", "events", "memory")}
    with bench.service(DEMO=1, LOG_LEVEL="WARNING") as service:
        bench.measure(service, creates, 64)  # its pool of connections grows
        for turn in range(size.rounds):
            bench.say("creates/s without streams", turn)
            found["alone"].append(bench.measure(service, creates, 64).rps)
            time.sleep(1)
            before = service.rss()
            bench.say(f"creates/s beside {most:,} streams", turn)
            with listening(service, most) as events:
                found["memory"].append((service.rss() - before) * 1e3 / most)
                found["beside"].append(bench.measure(service, creates, 64).rps)
                counted = events()
                bench.measure(service, listened, 64)
                found["events"].append((events() - counted) / size.seconds)
        rows: list[tuple[str | float, ...]] = [
            ("creates/s without streams", statistics.median(found["alone"])),
            (f"creates/s beside {most:,} streams of as many users", statistics.median(found["beside"])),
            (
                f"events/s on {most:,} streams, all of whose users get what is created",
                statistics.median(found["events"]),
            ),
            ("memory of a stream that is idle, KB (the first time)", found["memory"][0]),
        ]
        ratios = [beside / alone for beside, alone in zip(found["beside"], found["alone"], strict=True)]
        bench.report.target("creates/s beside 1,000 streams ÷ none", statistics.median(ratios))
        with screen(service) as page:
            for number in size.streams:
                bench.say(f"from write to screen beside {number:,} streams")
                with listening(service, number):
                    late = sorted(_until_seen(service, page, number * size.looks + n) for n in range(size.looks))
                rows.append((f"write to screen beside {number:,} streams, p50 ms", late[len(late) // 2]))
                rows.append((f"write to screen beside {number:,} streams, p99 ms", late[int(len(late) * 0.99)]))
    note = (
        "One process. Who listens is a process on the same machine, and takes its part of it. To the screen: from "
        f"before the request to the frame in which Chromium's page shows it, {size.looks} times, one after another."
    )
    bench.report.tables.append(Table("Streams", note, ("what", "measured"), rows))


# --- who listens -----------------------------------------------------------------------------------


@contextmanager
def listening(server: Server, number: int) -> Iterator[Callable[[], int]]:
    """Hold a stream for each of so many users, in a process of its own; give what returns how many events came.

    Raises `LoadError` when they do not all have their first event within half a minute.
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
        raise LoadError(f"of {number} streams only {events.value} began:\n{server.log.read_text()[-2000:]}") from None
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
        self._events.value += data.count(b"event: inbox")  # only this thread writes it


# --- who sees --------------------------------------------------------------------------------------


@contextmanager
def screen(server: Server) -> Iterator[Page]:
    """Open the demo page in Chromium."""
    if not (path := shutil.which("chromium")):
        raise LoadError("chromium is missing, which shows the page: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            page = browser.new_page(bypass_csp=True)  # to look into it
            page.goto(f"http://127.0.0.1:{server.port}/")
            page.wait_for_function(
                "document.querySelector('notifier-inbox').shadowRoot?.querySelector('#note').textContent"
            )
            page.evaluate(SEEN)
            yield page
        finally:
            browser.close()


def _until_seen(server: Server, page: Page, n: int) -> float:
    """Return the milliseconds from before a create to the frame that shows it."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    body = json.dumps({"user_id": WATCHED, "key": "new_post", "data": {"n": n}})
    written = time.time() * 1e3
    connection.request("POST", "/create", body)
    status = connection.getresponse().status
    connection.close()
    if status != 201:
        raise LoadError(f"a create was answered with {status}")
    page.wait_for_function("n => seen.has(n)", arg=n)
    shown: Any = page.evaluate("n => seen.get(n)", n)
    return float(shown) - written
