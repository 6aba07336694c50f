"""A real Chromium, a web site that embeds the bell, and the service that both it and the demo page call."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from html import escape
from pathlib import Path
from typing import Any, Literal

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, BrowserContext, BrowserType, Page, async_playwright, expect

from settings import Settings
from tests.bell import FRAMES
from tests.client import KEY, USER, Client, create
from tests.fixtures import Start
from tests.processes import LocalRun, Service, running_service
from tests.programs import needed
from tests.streams import assert_streams_open, client_of
from tests.waiting import eventually_async

EXPECT_TIMEOUT_MS = 20_000
"""Timeout of every expectation. A busy machine may need much longer than an idle one."""

expect.set_options(timeout=EXPECT_TIMEOUT_MS)


async def launch(chromium: BrowserType, path: str) -> Browser:
    """Start a Chromium."""
    arguments = [] if os.geteuid() else ["--no-sandbox"]  # the sandbox refuses to run as root
    cacheless = ["--disable-back-forward-cache"]  # of Playwright's own: people's browsers have that cache
    return await chromium.launch(executable_path=path, args=arguments, ignore_default_args=cacheless)


@pytest.fixture(scope="session")
async def browser() -> AsyncIterator[Browser]:
    """Run Chromium, once for all tests of a process. Each test has a profile of its own.

    Its shell without windows takes less CPU; where that is missing, the whole browser does the same.
    """
    shell = "chromium-headless-shell"
    path = shutil.which(shell) or shutil.which("chromium") or needed(shell)
    async with async_playwright() as playwright:
        browser = await launch(playwright.chromium, path)
        new_context = browser.new_context

        async def drawing(**options: Any) -> BrowserContext:
            context = await new_context(**options)
            await context.add_init_script(FRAMES)
            return context

        browser.new_context = drawing  # type: ignore[method-assign]
        yield browser
        await browser.close()


@pytest.fixture
async def context(browser: Browser) -> AsyncIterator[BrowserContext]:
    """Open a browser profile of its own."""
    async with await browser.new_context() as context:
        yield context


async def open_page(context: BrowserContext, url: str, *, clock: bool = False) -> Page:
    """Open a page that records the bell's events and violations of its Content-Security-Policy.

    With `clock`, the test can put its clock forward. Fails if a script of the page does while it loads.
    """
    page = await context.new_page()
    if clock:
        await page.clock.install()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(error.message))
    await page.add_init_script("""
        window.events = [];
        for (const type of ["notification", "notifier-unauthorized", "notifier-select"])
            addEventListener(type, ({ detail }) => events.push([type, detail?.data?.n ?? detail?.key ?? null]));
        addEventListener("securitypolicyviolation", ({ violatedDirective }) => events.push(["CSP", violatedDirective]));
    """)
    await page.goto(url)
    assert errors == []
    return page


async def events(page: Page) -> list[list[Any]]:
    """Return what `open_page` recorded: for each event its type, and `data.n` or else the key of its notification."""
    recorded: list[list[Any]] = await page.evaluate("events")
    return recorded


async def hasten(page: Page, check: Callable[[], Awaitable[object]], step_ms: int = 1000) -> None:
    """Put the page's clock forward, step by step, until `check` passes."""

    async def check_later() -> None:
        await page.clock.fast_forward(step_ms)
        await check()

    await eventually_async(check_later, EXPECT_TIMEOUT_MS / 1000)


async def set_visibility(page: Page, *, hidden: bool) -> None:
    """Hide or show the page. A headless browser does neither by itself."""
    await page.evaluate(
        """(hidden) => {
            Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
            document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )


async def assert_accessible(page: Page, schemes: Sequence[Literal["light", "dark"]] = ("light", "dark")) -> None:
    """Check the page against all rules of axe-core in these colour schemes."""
    for scheme in schemes:
        await page.emulate_media(color_scheme=scheme)
        found = (await Axe().run(page)).response
        assert [(rule["id"], rule["nodes"]) for rule in found["violations"]] == [], scheme


# --- a site that embeds the bell --------------------------------------------------------------------


class Site:
    """A web site of another origin than the service, with a strict Content-Security-Policy."""

    def __init__(self) -> None:
        self.html = ""
        self.script = ""
        self.style = ""
        self.policy = ""
        """Directives beside those of every page."""
        self.service = ""
        self.origin = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Site]:
        """Serve the page and its own script."""
        app = web.Application()
        app.router.add_get("/", self._page)
        app.router.add_get("/own.js", self._own_script)
        app.router.add_get("/own.css", self._own_style)
        async with TestServer(app) as server:
            self.origin = str(server.make_url("")).rstrip("/")
            yield self

    async def _page(self, _: web.Request) -> web.Response:
        policy = (
            f"default-src 'none'; script-src 'self' {self.service}; connect-src 'self' {self.service}; "
            f"style-src 'self'; {self.policy}"
        )
        own = "<script type=module src=/own.js></script><script" if self.script else "<script"
        text = self.html.replace("<script", own, 1)
        return web.Response(text=text, content_type="text/html", headers={"Content-Security-Policy": policy})

    async def _own_script(self, _: web.Request) -> web.Response:
        return web.Response(text=self.script, content_type="text/javascript")

    async def _own_style(self, _: web.Request) -> web.Response:
        return web.Response(text=self.style, content_type="text/css")

    def embed(self, service: str, content: str = "", lang: str = "en", **attributes: str) -> None:
        """Put the bell of this service into the page. `text__title` is the attribute `text-title`."""
        self.service = service
        given = {"user-id": USER} | {name.replace("__", "-"): value for name, value in attributes.items()}
        written = " ".join(f'{name}="{escape(value)}"' for name, value in given.items())
        self.html = (
            f'<!DOCTYPE html><html lang="{lang}"><meta charset="utf-8"><title>A site</title>'
            '<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">'
            f"{'<link rel=stylesheet href=/own.css>' if self.style else ''}"
            f'<script type="module" async crossorigin src="{service}/inbox.js"></script>'
            f"<main><h1>A site</h1><notifier-inbox {written}></notifier-inbox>{content}</main>"
        )


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """Run a site whose page is still empty."""
    async with Site().running() as running:
        yield running


# --- the service ------------------------------------------------------------------------------------


class Server:
    """The service, with the requests of a backend."""

    def __init__(self, url: str, client: Client) -> None:
        self.url = url
        self._client = client

    async def create(self, key: str = "new_message", **fields: Any) -> None:
        """Create a notification for the user."""
        await create(self._client, key=key, **fields)

    async def read_all(self) -> None:
        """Mark all notifications of the user as read."""
        async with self._client.post(f"/read?user_id={USER}&all=true") as response:
            assert response.status == 200

    async def assert_streams_open(self, count: int) -> None:
        """Check how many streams are open."""
        await assert_streams_open(self._client, count)

    async def count(self, status: int, route: str = ".*") -> int:
        """Count the requests that got this answer, on one route or on all."""
        text = await (await self._client.get("/metrics")).text()
        labels = f'method=".*",route="{route}",status="{status}"'
        found = re.findall(f"^notifier_http_request_duration_seconds_count{{{labels}}} (.+)$", text, re.MULTILINE)
        return round(sum(map(float, found)))

    async def close(self) -> None:
        """Stop the service, as SIGTERM does."""
        await self._client.close()


Serve = Callable[..., Awaitable[Server]]


@pytest.fixture
def serve(start: Start, site: Site) -> Serve:
    """Return a function that starts the service in this process, and lets pages of the site call it."""

    async def serve(**changes: Any) -> Server:
        client = await start(**{"cors_origins": (site.origin,), **changes})
        client.session.headers["Authorization"] = f"Bearer {KEY}"
        return Server(f"{client.make_url('')}".rstrip("/"), client)

    return serve


@pytest.fixture
async def server(serve: Serve) -> Server:
    """Start the service."""
    return await serve()


@asynccontextmanager
async def server_process(settings: Settings, site: Site, folder: Path) -> AsyncIterator[tuple[Service, Server]]:
    """Run the service in a process of its own, for a test that kills it."""
    service = await running_service(settings, folder, CORS_ORIGINS=site.origin)
    try:
        async with client_of(service) as client:
            yield service, Server(f"http://127.0.0.1:{service.port}", client)
    finally:
        service.kill()


@asynccontextmanager
async def local_run(folder: Path, **variables: str) -> AsyncIterator[LocalRun]:
    """Run the service with nothing configured but these variables."""
    local = await asyncio.to_thread(LocalRun, folder, **variables)
    try:
        yield local
    finally:
        local.end(signal.SIGTERM)
