"""The bell and the demo page, in a real browser: what they show, what they survive, and whom they serve."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, Literal

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from aiohttp.typedefs import Handler
from axe_playwright_python.async_playwright import Axe
from bson import ObjectId
from playwright.async_api import Browser, BrowserContext, Locator, Page, Route, async_playwright, expect
from pymongo import MongoClient
from pymongo.database import Database

from api.auth import sign_token
from settings import Settings
from tests.client import KEY, ROOT, SECRET, USER, Client
from tests.fixtures import Start
from tests.processes import LocalRun, Service, running_service
from tests.servers import Mongod
from tests.waiting import eventually_async

DB = Database[dict[str, Any]]
PATIENCE = 20_000
"""Milliseconds that the browser is given for what should take a moment: the machine may be busy."""
expect.set_options(timeout=PATIENCE)


# --- the site, the service and the browser ------------------------------------------------------------


class Site:
    """A web site of another origin than the service, with a strict Content-Security-Policy, that embeds the bell."""

    def __init__(self) -> None:
        self.html = ""
        self.script = ""
        self.service = ""
        self.origin = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Site]:
        app = web.Application()
        app.router.add_get("/", self._page)
        app.router.add_get("/own.js", self._own)
        async with TestServer(app) as server:
            self.origin = str(server.make_url("")).rstrip("/")
            yield self

    async def _page(self, _: web.Request) -> web.Response:
        policy = f"default-src 'none'; script-src 'self' {self.service}; connect-src 'self' {self.service}"
        own = "<script type=module src=/own.js></script><script" if self.script else "<script"
        text = self.html.replace("<script", own, 1)
        return web.Response(text=text, content_type="text/html", headers={"Content-Security-Policy": policy})

    async def _own(self, _: web.Request) -> web.Response:
        return web.Response(text=self.script, content_type="text/javascript")

    def embed(self, service: str, content: str = "", lang: str = "en", **attributes: str) -> None:
        """Make its page one with the bell."""
        self.service = service
        given = {"user-id": USER} | {name.replace("__", "-"): value for name, value in attributes.items()}
        written = " ".join(f'{name}="{escape(value)}"' for name, value in given.items())
        self.html = (
            f'<!DOCTYPE html><html lang="{lang}"><meta charset="utf-8"><title>A site</title>'
            '<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">'
            f'<script type="module" src="{service}/inbox.js"></script>'
            f"<main><h1>A site</h1><notifier-inbox {written}></notifier-inbox>{content}</main>"
        )


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with Site().running() as running:
        yield running


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    path = shutil.which("chromium")
    if not path:
        pytest.fail("These tests need a Chromium: apt-get install chromium", pytrace=False)
    async with async_playwright() as playwright:
        sandbox = [] if os.geteuid() else ["--no-sandbox"]  # which root cannot have
        browser = await playwright.chromium.launch(executable_path=path, args=sandbox)
        yield browser
        await browser.close()


@pytest.fixture
async def context(browser: Browser) -> AsyncIterator[BrowserContext]:
    async with await browser.new_context() as context:
        yield context


class Server:
    """The service as a process, and what a backend does with it."""

    def __init__(self, process: Service, session: aiohttp.ClientSession) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{process.port}"
        self._session = session

    async def create(self, key: str = "new_message", **fields: Any) -> None:
        async with self._session.post(f"{self.url}/create", json={"user_id": USER, "key": key, **fields}) as response:
            assert response.status == 201, await response.text()

    async def metric(self, name: str) -> float:
        async with self._session.get(f"{self.url}/metrics") as response:
            found = re.search(rf"^{name} (.+)$", await response.text(), re.MULTILINE)
            return float(found[1]) if found else 0.0

    async def has_streams(self, count: int) -> None:
        assert await self.metric("notifier_streams_open") == count

    def asked(self, route: str, status: int) -> int:
        """Count the answers in the log."""
        return self.process.log().count(f" {route} {status} ")


Serve = Callable[..., Awaitable[Server]]


@pytest.fixture
async def serve(settings: Settings, site: Site, tmp_path: Path) -> AsyncIterator[Serve]:
    """Return what starts the service, so that pages of the site may call it."""
    started: list[Service] = []
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as session:

        async def start(db_uri: str = settings.db_uri, **variables: object) -> Server:
            changed = replace(settings, db_uri=db_uri)
            service = await running_service(changed, tmp_path, CORS_ORIGINS=site.origin, **variables)
            started.append(service)
            return Server(service, session)

        yield start
    for service in started:
        service.kill()


@pytest.fixture
async def server(serve: Serve) -> Server:
    return await serve()


def bell(page: Page) -> Locator:
    return page.get_by_role("button", name="Notifications")


def rows(page: Page) -> Locator:
    return page.locator("notifier-inbox li")


def panel(page: Page) -> Locator:
    return page.get_by_role("dialog", name="Notifications")


async def unread(page: Page, count: int) -> None:
    """Wait until the bell says so many, to those who see and to those who do not."""
    await expect(page.locator("notifier-inbox #badge")).to_have_text(str(count) if count else "")
    name = f"Notifications, {count} unread" if count else "Notifications"
    await expect(page.get_by_role("button", name=name, exact=True)).to_be_visible()


async def opened(context: BrowserContext, url: str) -> Page:
    """Open a page that keeps what the bell tells it, and fails the test when a script of it does."""
    page = await context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(error.message))
    await page.add_init_script("""
        window.told = [];
        for (const type of ["notification", "notifier-unauthorized", "notifier-select"])
            addEventListener(type, ({ detail }) => told.push([type, detail?.data?.n ?? detail?.key ?? null]));
        addEventListener("securitypolicyviolation", ({ violatedDirective }) => told.push(["CSP", violatedDirective]));
    """)
    await page.goto(url)
    assert faults == []
    return page


async def told(page: Page) -> list[list[Any]]:
    events: list[list[Any]] = await page.evaluate("told")
    return events


# --- live ---------------------------------------------------------------------------------------------


async def test_what_is_created_appears_in_all_tabs_and_what_is_read_in_one_is_read_in_the_other(
    server: Server, site: Site, context: BrowserContext
) -> None:
    await server.create(data={"n": 0})
    site.embed(server.url)
    one, two = [await opened(context, site.origin) for _ in range(2)]
    for page in (one, two):
        await unread(page, 1)
    await eventually_async(lambda: server.has_streams(2))
    for n in (1, 2):
        await server.create(data={"n": n})
    for page in (one, two):
        await unread(page, 3)
        await bell(page).click()
        await expect(rows(page)).to_have_count(3)
        await expect(rows(page).first).to_have_text(re.compile(r"Unread:\s*New messagen: 2now"))
    await rows(one).nth(1).click()
    for page in (one, two):
        await unread(page, 2)
        await expect(page.locator("notifier-inbox .new")).to_have_count(2)
        await expect(rows(page).nth(1)).not_to_contain_text("Unread")
    await two.get_by_role("button", name="Mark all as read").click()
    for page in (one, two):
        await unread(page, 0)
        await expect(page.locator("notifier-inbox .new")).to_have_count(0)
    assert await told(two) == [["notification", 1], ["notification", 2]]
    assert [event for event in await told(one) if event[0] != "notification"] == [["notifier-select", 1]]


async def test_load_more_shows_all_of_them_once_also_while_new_ones_arrive(
    server: Server, site: Site, context: BrowserContext
) -> None:
    for n in range(45):
        await server.create(data={"n": n})
    site.embed(server.url)
    page = await opened(context, site.origin)
    await bell(page).click()
    await expect(rows(page)).to_have_count(20)
    more = page.get_by_role("button", name="Load more")
    await asyncio.gather(more.click(), server.create(data={"n": 45}))
    await expect(rows(page)).to_have_count(40)
    await more.focus()
    await page.keyboard.press("Enter")
    await expect(rows(page)).to_have_count(46)
    await expect(more).to_be_hidden()
    await expect(panel(page)).to_be_focused()
    shown = [int(n) for text in await rows(page).all_inner_texts() for n in re.findall(r"n: (\d+)", text)]
    assert shown == list(range(45, -1, -1))
    await unread(page, 46)
    assert await told(page) == [["notification", 45]]


async def test_it_survives_a_killed_server_and_says_so(server: Server, site: Site, context: BrowserContext) -> None:
    await server.create()
    site.embed(server.url)
    page = await opened(context, site.origin)
    await bell(page).click()
    await expect(rows(page)).to_have_count(1)
    server.process.kill()
    await expect(page.get_by_text("No connection. Trying again")).to_have_count(2)  # to read, and to hear
    await expect(rows(page)).to_have_count(1)
    server.process.restart()
    await expect(page.get_by_text("No connection")).to_have_count(0)
    await server.create(data={"n": 1})
    await expect(rows(page)).to_have_count(2)
    assert await told(page) == [["notification", 1]]


async def test_an_expired_token_is_told_and_a_new_one_taken(serve: Serve, site: Site, context: BrowserContext) -> None:
    server = await serve(API_KEYS=KEY, USER_TOKEN_SECRET=SECRET)
    soon = -30 + 3  # the service allows clocks to differ by 30 s
    site.embed(server.url, token=sign_token(SECRET, USER, soon))
    page = await opened(context, site.origin)
    await bell(page).click()
    await expect(page.get_by_text("Nothing here yet.")).to_be_visible()
    await expect(panel(page).get_by_text("Please sign in again.")).to_be_visible()
    await eventually_async(lambda: server.has_streams(0))
    assert await told(page) == [["notifier-unauthorized", None]]
    await server.create(data={"n": 1})
    inbox = page.locator("notifier-inbox")
    await inbox.evaluate("(inbox, token) => inbox.setAttribute('token', token)", sign_token(SECRET, USER, 60))
    await expect(rows(page)).to_have_count(1)
    await expect(panel(page).get_by_text("Please sign in again.")).to_be_hidden()
    await eventually_async(lambda: server.has_streams(1))
    await server.create(data={"n": 2})
    await expect(rows(page)).to_have_count(2)
    assert await told(page) == [["notifier-unauthorized", None], ["notification", 1], ["notification", 2]]


async def test_what_fails_is_undone(server: Server, site: Site, context: BrowserContext) -> None:
    for n in range(2):
        await server.create(data={"n": n})
    site.embed(server.url)
    page = await opened(context, site.origin)
    refused = asyncio.Event()

    async def refuse(route: Route) -> None:
        await refused.wait()
        await route.abort()

    await page.route("**/read?*", refuse)
    await bell(page).click()
    await rows(page).first.click()
    await unread(page, 1)
    await page.get_by_role("button", name="Mark all as read").click()
    await unread(page, 0)
    await server.create(data={"n": 2})  # whose list knows nothing of the two clicks
    refused.set()
    await unread(page, 3)
    await expect(panel(page).get_by_text("That did not work.")).to_be_visible()
    await page.unroute("**/read?*")
    await page.get_by_role("button", name="Mark all as read").click()
    await unread(page, 0)
    await expect(panel(page).get_by_text("That did not work.")).to_be_hidden()


async def test_a_mark_is_undone_also_without_a_connection(server: Server, site: Site, context: BrowserContext) -> None:
    await server.create()
    site.embed(server.url)
    page = await opened(context, site.origin)
    await bell(page).click()
    await unread(page, 1)
    await context.set_offline(offline=True)
    await rows(page).first.click()
    await expect(panel(page).get_by_text("No connection.")).to_be_visible()
    await unread(page, 1)
    await context.set_offline(offline=False)
    await expect(panel(page).get_by_text("No connection.")).to_be_hidden()
    await rows(page).first.click()
    await unread(page, 0)


async def test_a_list_from_before_a_click_does_not_undo_it(server: Server, site: Site, context: BrowserContext) -> None:
    for n in range(2):
        await server.create(data={"n": n})
    site.embed(server.url)
    page = await opened(context, site.origin)
    await unread(page, 2)
    await page.evaluate("""
        window.counts = ["2"];
        const badge = document.querySelector("notifier-inbox").shadowRoot.querySelector("#badge");
        new MutationObserver(() => counts.at(-1) === badge.textContent || counts.push(badge.textContent))
            .observe(badge, { childList: true });
    """)
    held, released = asyncio.Event(), asyncio.Event()

    async def hold(route: Route) -> None:
        response = await route.fetch()
        held.set()
        await released.wait()
        await route.fulfill(response=response)

    await page.route("**/list?*", hold, times=1)
    await server.create(data={"n": 2})
    await held.wait()
    await bell(page).click()
    async with page.expect_response("**/read?*"):
        await rows(page).last.click()
    released.set()
    await expect(rows(page)).to_have_count(3)
    await unread(page, 2)
    assert await page.evaluate("counts.filter(Boolean)") == ["2", "1", "2"]


async def test_a_token_that_comes_in_the_middle_of_an_event_is_used_at_once(
    server: Server, site: Site, context: BrowserContext
) -> None:
    site.embed(server.url, token="old")  # noqa: S106 - the API is open
    page = await opened(context, site.origin)
    await eventually_async(lambda: server.has_streams(1))
    await unread(page, 0)
    held = asyncio.Event()

    async def hold(_: Route) -> None:
        held.set()

    await page.route("**/list?*", hold, times=1)
    await server.create()
    await held.wait()
    await page.locator("notifier-inbox").evaluate("(inbox) => inbox.setAttribute('token', 'new')")
    await unread(page, 1)


async def test_where_there_are_no_streams_it_polls_and_mostly_hears_that_nothing_changed(
    serve: Serve, site: Site, context: BrowserContext, tmp_path: Path
) -> None:
    mongod = Mongod(tmp_path / "standalone")
    await asyncio.to_thread(mongod.start)
    try:
        server = await serve(f"mongodb://{mongod.address}/test")
        site.embed(server.url, poll="0.2")
        page = await opened(context, site.origin)
        await unread(page, 0)
        await server.create(data={"n": 1})
        await unread(page, 1)
        await bell(page).click()
        await rows(page).first.click()
        await unread(page, 0)

        async def polled() -> None:
            assert server.asked("/list", 304) > 5

        await eventually_async(polled)
        assert server.asked("/stream", 501) <= 2  # at the start, and when the panel was opened
        assert await told(page) == [["notification", 1], ["notifier-select", 1]]
    finally:
        mongod.kill()


async def test_a_hidden_tab_and_a_bell_that_was_removed_hold_no_stream(
    server: Server, site: Site, context: BrowserContext
) -> None:
    site.embed(server.url)
    page = await opened(context, site.origin)
    await eventually_async(lambda: server.has_streams(1))
    await show(page, hidden=True)
    await eventually_async(lambda: server.has_streams(0))
    await server.create(data={"n": 1})
    await show(page, hidden=False)
    await unread(page, 1)
    await eventually_async(lambda: server.has_streams(1))
    await page.evaluate("window.inbox = document.querySelector('notifier-inbox'); inbox.remove()")
    await eventually_async(lambda: server.has_streams(0))
    await server.create(data={"n": 2})
    await page.evaluate("document.body.append(inbox)")
    await unread(page, 2)
    assert await told(page) == [["notification", 1], ["notification", 2]]


async def show(page: Page, *, hidden: bool) -> None:
    """Hide the page, or show it: a headless browser does neither."""
    await page.evaluate(
        """(hidden) => {
            Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )


async def test_another_user_never_sees_what_the_first_one_got(
    server: Server, site: Site, context: BrowserContext
) -> None:
    await server.create(data={"n": 1})
    site.embed(server.url)
    page = await opened(context, site.origin)
    await bell(page).click()
    await expect(rows(page)).to_have_count(1)
    left = await page.locator("notifier-inbox").evaluate(
        """(inbox) => {
            inbox.setAttribute("user-id", "f".repeat(24));
            return inbox.shadowRoot.querySelectorAll("li").length;
        }"""
    )
    assert left == 0
    await unread(page, 0)
    await expect(page.get_by_text("Nothing here yet.")).to_be_visible()


# --- what the stream may look like ----------------------------------------------------------------------


class Script:
    """A server in place of the service, whose stream comes in pieces of any size; after a "!" it awaits a list."""

    def __init__(self, site: Site, *pieces: bytes) -> None:
        self.lists = 0
        self.ends: list[float] = []
        self.starts: list[float] = []
        self._site = site
        self._pieces = pieces

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        app = web.Application(middlewares=[self._cors])
        app.router.add_get("/inbox.js", self._module)
        app.router.add_get("/list", self._list)
        app.router.add_get("/stream", self._stream)
        async with TestServer(app) as server:
            yield str(server.make_url("")).rstrip("/")

    @web.middleware
    async def _cors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path == "/stream":
            return await handler(request)
        response = await handler(request)
        response.headers["Access-Control-Allow-Origin"] = self._site.origin
        return response

    async def _module(self, _: web.Request) -> web.Response:
        return web.Response(body=(ROOT / "web/inbox.js").read_bytes(), content_type="text/javascript")

    async def _list(self, _: web.Request) -> web.Response:
        self.lists += 1
        return web.json_response({"data": {"elements": 0, "new": 0, "list": []}})

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        self.starts.append(time.monotonic())
        headers = {"Content-Type": "text/event-stream", "Access-Control-Allow-Origin": self._site.origin}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        for piece in self._pieces:
            expected = self.lists + piece.count(b"!")
            await response.write(piece.replace(b"!", b""))
            await asyncio.sleep(0.01)  # so that it travels alone
            await eventually_async(partial(self.has_listed, expected))
        self.ends.append(time.monotonic())
        return response

    async def has_listed(self, count: int) -> None:
        assert self.lists == count

    async def has_started(self, count: int) -> None:
        assert len(self.starts) >= count


async def test_the_stream_is_understood_in_pieces_of_any_size(site: Site, context: BrowserContext) -> None:
    script = Script(
        site,
        *(b"ret", b"ry: 10", b"0\r", b"\n\r\n", b": keep-alive\r\n\r\n", b": data\n\n"),
        *(b"event: inbox\r\nda", b"ta: {}\r\n\r\n!", b": keep-alive\n\n", b"\n"),
        b"event: inbox\ndata: {}\n\nevent: inbox\ndata: {}\n\n!",
        *(bytes([byte]) for byte in 'event: inbox\ndata: {"": "ö"}'.encode()),
        b"\n\n!",
    )
    async with script.running() as service:
        site.embed(service)
        await opened(context, site.origin)
        await eventually_async(lambda: script.has_started(5))
        await eventually_async(partial(script.has_listed, 4 * 5))


async def test_a_stream_of_which_nothing_is_heard_is_given_up(site: Site, context: BrowserContext) -> None:
    script = Script(site, b": hello\n\n", b"!!")
    async with script.running() as service:
        site.embed(service)
        page = await context.new_page()
        await page.clock.install()
        await page.goto(site.origin)
        await eventually_async(lambda: script.has_started(1))
        await page.clock.run_for(44_000)
        assert len(script.starts) == 1
        await page.clock.run_for(2_000)
        await eventually_async(lambda: script.has_started(2))


# --- who uses it ------------------------------------------------------------------------------------------

HOSTILE = "<img src=x onerror=\"told.push(['HACKED'])\"><script>told.push(['HACKED'])</script>"


async def test_keys_and_data_are_text_and_nothing_else(
    server: Server, site: Site, context: BrowserContext, database: DB
) -> None:
    odd = [
        {"id": "a", "is_new": True, "key": HOSTILE, "data": {HOSTILE: HOSTILE, "list": [HOSTILE]}, "timestamp": 1},
        {"id": "b", "is_new": True, "key": "new_login", "data": {"city": HOSTILE}, "timestamp": "yesterday"},
        {"id": HOSTILE, "key": None, "data": "none", "timestamp": 1e300},
        {"id": "d", "is_new": False, "key": {"a": 1}, "data": None},
        {"id": "e", "is_new": False, "key": "$&", "data": {"x": None, "y": "z" * 10_000}, "timestamp": -1},
    ]
    database.users.insert_one({"_id": ObjectId(USER), "email": "a@b.example", "notifications": odd})
    site.embed(server.url, label__new_login="Sign-in from {city}, {nothing}", text__unread="<b>{}</b>")
    page = await opened(context, site.origin)
    await page.locator("notifier-inbox #bell").click()
    await expect(rows(page)).to_have_count(5)
    await expect(rows(page).nth(0)).to_contain_text(f"{HOSTILE}: {HOSTILE} · list: [")
    await expect(rows(page).nth(1)).to_contain_text(f"Sign-in from {HOSTILE}, ")
    assert len(await rows(page).nth(4).inner_text()) < 300
    await expect(page.locator("notifier-inbox").locator("img, script")).to_have_count(0)
    await expect(page.locator("notifier-inbox #bell")).to_have_accessible_name("Notifications, <b>2</b>")
    assert await told(page) == []


async def test_everything_can_be_done_with_the_keyboard_alone(
    server: Server, site: Site, context: BrowserContext
) -> None:
    for n in range(25):
        await server.create(data={"n": n})
    site.embed(server.url, content="<button>After</button>")
    page = await opened(context, site.origin)
    await unread(page, 25)
    press = page.keyboard.press
    await press("Tab")
    await expect(bell(page)).to_be_focused()
    await expect(bell(page)).to_have_attribute("aria-expanded", "false")
    await press("Enter")
    await expect(bell(page)).to_have_attribute("aria-expanded", "true")
    await expect(panel(page)).to_be_focused()
    await press("Tab")
    await expect(page.get_by_role("button", name="Mark all as read")).to_be_focused()
    await press("Tab")
    await press("Tab")
    second = rows(page).nth(1).get_by_role("button")
    await expect(second).to_be_focused()
    await server.create(data={"n": 25})
    await expect(rows(page).nth(2).get_by_role("button")).to_be_focused()  # where one was, one stays
    await press("Space")
    await unread(page, 25)
    await expect(rows(page).nth(2)).not_to_contain_text("Unread")
    await press("Escape")
    await expect(panel(page)).to_be_hidden()
    await expect(bell(page)).to_be_focused()
    await expect(bell(page)).to_have_attribute("aria-expanded", "false")
    await press("Space")
    await expect(panel(page)).to_be_focused()
    await press("Shift+Tab")
    await expect(bell(page)).to_be_focused()
    await press("Enter")
    await expect(panel(page)).to_be_hidden()
    await press("Tab")
    await expect(page.get_by_role("button", name="After")).to_be_focused()


async def test_a_click_elsewhere_closes_the_panel_and_goes_where_it_went(
    server: Server, site: Site, context: BrowserContext
) -> None:
    site.embed(server.url, content='<p align="right"><button>After</button></p>')
    page = await opened(context, site.origin)
    await bell(page).click()
    await expect(panel(page)).to_be_visible()
    await page.mouse.click(5, 500)
    await expect(panel(page)).to_be_hidden()
    await bell(page).click()
    await page.get_by_role("button", name="After").click()
    await expect(panel(page)).to_be_hidden()
    await expect(page.get_by_role("button", name="After")).to_be_focused()


async def test_a_screen_reader_is_told_of_what_is_new(server: Server, site: Site, context: BrowserContext) -> None:
    site.embed(server.url, label__new_login="Sign-in from {city}")
    page = await opened(context, site.origin)
    await unread(page, 0)
    status = page.get_by_role("status")
    await expect(status).to_have_text("")
    await server.create("new_login", data={"city": "Oslo"})
    await expect(status).to_have_text("1 unread: Sign-in from Oslo")
    await bell(page).click()
    await expect(rows(page).first.get_by_role("button")).to_have_accessible_name("Unread: Sign-in from Oslo now")


SCHEMES = ["light", "dark"]


async def accessible(page: Page) -> None:
    """Have axe-core look at the page, with the whole of its rules."""
    found = (await Axe().run(page)).response
    assert [(rule["id"], rule["nodes"]) for rule in found["violations"]] == []


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_axe_finds_nothing_in_the_bell(
    server: Server, site: Site, browser: Browser, scheme: Literal["light", "dark"]
) -> None:
    for n in range(21):
        await server.create(data={"n": n, "text": "some text that is longer than a line of the panel can be"})
    site.embed(server.url)
    async with await browser.new_context(color_scheme=scheme, bypass_csp=True) as context:
        page = await opened(context, site.origin)
        await unread(page, 21)
        await accessible(page)
        await bell(page).click()
        await rows(page).first.click()
        await unread(page, 20)
        await accessible(page)
        await page.get_by_role("button", name="Mark all as read").click()
        await unread(page, 0)
        await accessible(page)


async def test_texts_times_and_icon_are_the_pages_own(server: Server, site: Site, context: BrowserContext) -> None:
    await server.create("new_post", data={"author": "Ann"})
    given = {"text__title": "Mitteilungen", "text__unread": "{} neue", "text__all": "Alle gelesen", "text__new": "Neu:"}
    site.embed(server.url, lang="de", label__new_post="Beitrag von {author}", **given)
    site.html = site.html.replace("></notifier-inbox>", "><i id=own>!</i></notifier-inbox>")
    page = await opened(context, site.origin)
    await page.clock.install()
    await page.get_by_role("button", name="Mitteilungen, 1 neue").click()
    await expect(page.locator("#own")).to_be_visible()
    await expect(page.get_by_role("button", name="Alle gelesen")).to_be_visible()
    await expect(rows(page).first).to_have_text(re.compile("Neu: Beitrag von Annjetzt"))
    await page.clock.set_system_time(datetime.now(UTC) + timedelta(days=2))
    await server.create("new_post", data={"author": "Ben"})
    await expect(rows(page).nth(1)).to_contain_text("vorgestern")


async def test_nothing_moves_and_high_contrast_shows_what_is_unread(
    server: Server, site: Site, browser: Browser
) -> None:
    await server.create()
    site.embed(server.url)
    async with await browser.new_context(forced_colors="active", reduced_motion="reduce") as context:
        page = await opened(context, site.origin)
        await bell(page).click()
        await expect(rows(page).first).to_contain_text("Unread")
        assert await page.evaluate("document.getAnimations({ subtree: true }).length") == 0
        mark = await rows(page).locator("b").evaluate("(b) => getComputedStyle(b, '::before').content")
        assert mark.startswith('"●')


# --- the demo page ----------------------------------------------------------------------------------------


async def demo(context: BrowserContext, url: str) -> Page:
    page = await opened(context, url)
    await expect(page.get_by_role("heading", name="Create a notification")).to_be_visible()
    return page


async def test_a_newcomer_sees_the_whole_service_work(browser: Browser, tmp_path: Path) -> None:
    local = await asyncio.to_thread(LocalRun, tmp_path)
    try:
        url = f"http://127.0.0.1:{local.port}/"
        assert f"Open {url} in a browser" in (tmp_path / "output").read_text()
        async with await browser.new_context() as context:
            page = await demo(context, url)
            await expect(page.get_by_text("None yet.")).to_be_visible()
            await page.get_by_role("button", name="Create", exact=True).click()
            await expect(page.get_by_text("Created.")).to_be_visible()
            await unread(page, 1)
            mails = page.locator("#mails li")
            await expect(mails).to_have_count(1)
            await expect(mails).to_contain_text("to user@example.com")
            await page.get_by_label("What happened").select_option("registration")
            await page.get_by_role("button", name="Create", exact=True).click()
            await expect(mails).to_have_count(2)
            await expect(mails.first).to_contain_text("registration")
            await unread(page, 1)
            curl = await page.locator("#curl").inner_text()
            assert (await asyncio.to_thread(run_shell, curl)) == {"success": True}
            assert [event for event in await told(page) if event[0] == "CSP"] == []
    finally:
        local.end(signal.SIGTERM)


def run_shell(line: str) -> object:
    return json.loads(subprocess.run(["sh", "-c", line], capture_output=True, check=True, timeout=30).stdout)  # noqa: S607


async def test_the_demo_shows_each_fault_at_its_field(serve: Serve, context: BrowserContext) -> None:
    server = await serve(DEMO="1")
    page = await demo(context, server.url)
    user, about = page.get_by_label("User", exact=True), page.get_by_label("About (target_id, optional)")
    await user.fill("x")
    await about.fill("y")
    await page.get_by_role("button", name="Create", exact=True).click()
    for field in (user, about):
        await expect(field).to_have_attribute("aria-invalid", "true")
        await expect(field).to_have_accessible_description("Not a valid ObjectId.")
    await expect(user).to_be_focused()
    await user.fill(USER)
    await about.fill("")
    data = page.get_by_label("Data (a JSON object, optional)")
    await data.fill("{nonsense")
    await page.get_by_role("button", name="Create", exact=True).click()
    await expect(data).to_have_accessible_description(re.compile("Not JSON"))
    await expect(user).to_have_attribute("aria-invalid", "false")
    await data.fill('{"it\'s": "fine"}')
    await page.get_by_role("button", name="Create", exact=True).click()
    await unread(page, 1)
    await expect(page.locator("#mailbox")).to_be_hidden()
    assert (await asyncio.to_thread(run_shell, await page.locator("#curl").inner_text())) == {"success": True}
    server.process.kill()
    await page.get_by_role("button", name="Create", exact=True).click()
    await expect(page.get_by_text("The service cannot be reached.")).to_be_visible()


async def test_the_demo_asks_for_a_key_where_there_are_keys(serve: Serve, context: BrowserContext) -> None:
    server = await serve(DEMO="1", API_KEYS=KEY, USER_TOKEN_SECRET=SECRET)
    await server.create()
    page = await demo(context, server.url)
    await page.get_by_label("One of API_KEYS, or a user's token").fill(KEY)
    await page.get_by_role("button", name="Use it").click()
    await unread(page, 1)
    await expect(page.locator("#access")).to_be_hidden()
    await page.get_by_role("button", name="Create", exact=True).click()
    await unread(page, 2)
    assert await page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_axe_finds_nothing_in_the_demo(
    browser: Browser, scheme: Literal["light", "dark"], tmp_path: Path
) -> None:
    local = await asyncio.to_thread(LocalRun, tmp_path)
    try:
        async with await browser.new_context(color_scheme=scheme, bypass_csp=True) as context:
            page = await demo(context, f"http://127.0.0.1:{local.port}/")
            await page.get_by_label("About (target_id, optional)").fill("y")
            await page.get_by_role("button", name="Create", exact=True).click()
            await accessible(page)
            await page.get_by_label("About (target_id, optional)").fill("")
            await page.get_by_role("button", name="Create", exact=True).click()
            await unread(page, 1)
            await expect(page.locator("#mails li")).to_have_count(1)
            await expect(page.locator(".toast")).to_have_count(0)
            await accessible(page)
    finally:
        local.end(signal.SIGTERM)


# --- pictures ---------------------------------------------------------------------------------------------

PICTURES = {
    "inbox": {"viewport": {"width": 1280, "height": 700}},
    "inbox-dark": {"viewport": {"width": 1280, "height": 700}, "color_scheme": "dark"},
    "inbox-phone": {"viewport": {"width": 390, "height": 700}},
}
AGES = (90, 3 * 60, 50 * 60, 26 * 3600, 3 * 86_400)


@pytest.mark.parametrize("name", PICTURES)
async def test_it_fits_desktop_and_phone(browser: Browser, tmp_path: Path, name: str) -> None:
    """Look at the demo page; with SCREENSHOTS=docs in the environment the pictures of the README are made anew."""
    local = await asyncio.to_thread(LocalRun, tmp_path, TEMPLATES_DIR=str(ROOT / "examples/templates"))
    try:
        async with await browser.new_context(**PICTURES[name]) as context:  # type: ignore[arg-type]
            await seed(local, tmp_path)
            page = await demo(context, f"http://127.0.0.1:{local.port}/")
            await page.get_by_role("button", name="Create", exact=True).click()
            await expect(page.locator("#mails strong")).to_have_text("New sign-in from Oslo")
            await expect(page.locator(".toast")).to_have_count(0)
            await unread(page, 4)
            await bell(page).click()
            await expect(rows(page)).to_have_count(6)
            width = await page.evaluate("document.documentElement.scrollWidth - innerWidth")
            box = await panel(page).bounding_box()
            view = page.viewport_size
            assert box
            assert view
            assert width <= 0
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= view["width"]
            assert box["y"] + box["height"] <= view["height"] + 1
            folder = Path(os.environ.get("SCREENSHOTS") or tmp_path)
            await page.screenshot(path=folder / f"{name}.png")
    finally:
        local.end(signal.SIGTERM)


async def seed(local: LocalRun, folder: Path) -> None:
    """Give the user notifications of some age."""
    said = [
        ("new_message", {"from": "Ann", "text": "Are you coming on Friday? There are two tickets left."}),
        ("new_post", {"author": "Ben", "title": "How we moved house"}),
        ("new_login", {"city": "Bergen"}),
        ("new_message", {"from": "Cem", "text": "Thank you!"}),
        ("new_post", {"author": "Dee", "title": "Bread without kneading"}),
    ]
    for key, data in reversed(said):
        await asyncio.to_thread(local.get, "/create", json.dumps({"user_id": USER, "key": key, "data": data}).encode())
    with MongoClient[dict[str, Any]]((folder / ".notifier/db_uri").read_text()) as client:
        users = client.get_default_database()["users"]
        for n, age in enumerate(AGES):
            users.update_one({}, {"$inc": {f"notifications.{n}.timestamp": -age}})
            users.update_one({}, {"$set": {f"notifications.{n}.is_new": n < 3}})
    for mail in (folder / ".notifier/mail").glob("*.eml"):
        mail.unlink()


# --- how it is served ---------------------------------------------------------------------------------------


def test_the_module_is_under_10_kb_without_dependencies_and_sets_markup_but_once() -> None:
    text = (ROOT / "web/inbox.js").read_text()
    assert len(text.encode()) < 10_000
    assert not re.search(r"^import\b|import\(|require\(|eval|insertAdjacent|outerHTML|https?:", text, re.MULTILINE)
    assert len(re.findall("innerHTML", text)) == 1
    assert not re.search(r"innerHTML = `[^`]*\$\{", text)


async def test_the_module_is_public_and_revalidated_and_the_demo_is_not_there(client: Client) -> None:
    response = await client.get("/inbox.js", headers={"Origin": "https://anything.example"})
    assert (response.status, response.content_type, response.charset) == (200, "text/javascript", "utf-8")
    assert await response.read() == (ROOT / "web/inbox.js").read_bytes()
    assert response.headers["Access-Control-Allow-Origin"] == "*"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cache-Control"].startswith("public, max-age=")
    etag = response.headers["ETag"]
    assert re.fullmatch('"[0-9a-f]{24}"', etag)
    for known in (etag, f'W/{etag}, "x"', "*"):
        again = await client.get("/inbox.js", headers={"If-None-Match": known})
        assert (again.status, await again.read(), again.headers["ETag"]) == (304, b"", etag)
        assert again.headers["Cache-Control"] == response.headers["Cache-Control"]
    assert (await client.get("/inbox.js", headers={"If-None-Match": '"x"'})).status == 200
    assert (await client.head("/inbox.js")).status == 200
    assert (await client.post("/inbox.js")).status == 405
    for path in ("/", "/demo.js", "/demo.css", "/demo.svg", "/demo/mails", "/web/inbox.js"):
        assert (await client.get(path)).status == 404


async def test_the_demo_is_served_with_strict_headers_and_no_mailbox(start: Start) -> None:
    client = await start(demo=True, api_keys=(KEY,))
    for path, media_type in (("/", "text/html"), ("/demo.js", "text/javascript"), ("/demo.css", "text/css")):
        response = await client.get(path)
        assert (response.status, response.content_type) == (200, media_type)
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Cache-Control"] == "no-cache"
    headers = (await client.get("/")).headers
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert {"default-src 'none'", "frame-ancestors 'none'"} <= set(headers["Content-Security-Policy"].split("; "))
    assert headers["Referrer-Policy"] == "no-referrer"
    assert (await client.get("/demo/mails")).status == 404


async def test_the_mailbox_of_a_local_run_is_for_backends_and_survives_odd_files(tmp_path: Path) -> None:
    local = await asyncio.to_thread(LocalRun, tmp_path, API_KEYS=KEY)
    try:
        mailbox = tmp_path / ".notifier/mail"
        (mailbox / "1.eml").write_bytes(
            b"Subject: =?utf-8?q?=F0?=\r\nContent-Type: text/plain; charset=nonsense\r\n\r\n\xff"
        )
        (mailbox / "2.eml").write_bytes(b"")
        (mailbox / "3.eml").mkdir()
        (mailbox / "4.eml").write_bytes(b"Subject: a\r\nTo: b@c.example\r\nContent-Type: text/html\r\n\r\n<b>c</b>")
        async with aiohttp.ClientSession(f"http://127.0.0.1:{local.port}") as session:
            assert (await session.get("/demo/mails")).status == 401
            response = await session.get("/demo/mails", headers={"Authorization": f"Bearer {KEY}"})
            assert response.status == 200
            mails = (await response.json())["mails"]
        html = {"file": ".notifier/mail/4.eml", "to": "b@c.example", "subject": "a", "text": "", "html": True}
        assert mails[0] == html
    finally:
        local.end(signal.SIGTERM)


async def test_the_container_has_all_that_the_service_needs(tmp_path: Path) -> None:
    """Run the service of nothing but what the Dockerfile copies, as far as .dockerignore lets it."""
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    image = tmp_path / "image"
    image.mkdir()
    for line in re.findall(r"^COPY (.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE):
        *sources, target = line.split()
        for source in sources:
            name = source.rstrip("/")
            assert f"!{name}" in ignored
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, image / target)
            else:
                shutil.copy(ROOT / name, image)
    assert {path.name for path in (ROOT / "web").iterdir()} == {path.name for path in (image / "web").iterdir()}
    code = "import notifier, settings; print(len(notifier.create_app(settings.Settings(demo=True)).router.routes()))"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, cwd=image)
    assert await process.wait() == 0


# --- the examples of the README -----------------------------------------------------------------------------


def example(language: str) -> str:
    section = (ROOT / "README.md").read_text().split("## A bell in your own page")[1].split("\n## ")[0]
    found = re.search(rf"```{language}\n(.*?)```", section, re.DOTALL)
    assert found
    return found[1]


async def run_example(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, env={"PATH": os.environ["PATH"], "USER_TOKEN_SECRET": SECRET}, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode().strip()


async def test_the_lines_of_the_readme_embed_the_bell(serve: Serve, site: Site, context: BrowserContext) -> None:
    tokens = [
        await run_example(sys.executable, "-c", example("python")),
        await run_example("node", "--input-type=module", "-e", example("js")),
    ]
    server = await serve(API_KEYS=KEY, USER_TOKEN_SECRET=SECRET)
    await server.create()
    site.service = server.url
    handed_out = iter(tokens)

    async def hand_out(route: Route) -> None:
        await route.fulfill(body=next(handed_out))

    await context.route("**/notifier-token", hand_out)
    html = example("html").replace("https://notifications.example.com", server.url)
    script = re.findall('<script type="module">(.*?)</script>', html, re.DOTALL)
    assert len(script) == 1
    site.html = f"<!DOCTYPE html><title>x</title>{html.replace(script[0], '')}"
    site.script = f"const toast = (text) => told.push(['toast', text]);{script[0]}"
    page = await opened(context, site.origin)
    await unread(page, 1)  # by the first token, which the page fetched as its own was none
    await server.create("new_post")
    await unread(page, 2)
    assert ["toast", "new_post"] in await told(page)
    await page.locator("notifier-inbox").evaluate("(inbox) => inbox.setAttribute('token', 'expired')")
    await server.create()
    await unread(page, 3)
    assert next(handed_out, None) is None
