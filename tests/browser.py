"""A real Chromium, a web site that embeds the bell, and the service that both it and the demo page call."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, BrowserContext, Page, async_playwright, expect

from settings import Settings
from tests.client import KEY, USER
from tests.processes import LocalRun, Service, running_service
from tests.programs import needed

EXPECT_TIMEOUT_MS = 20_000
"""Timeout of every expectation. What takes a moment on an idle machine takes longer on a busy one."""
SCHEMES = ["light", "dark"]

expect.set_options(timeout=EXPECT_TIMEOUT_MS)


@pytest.fixture(scope="session")
async def browser() -> AsyncIterator[Browser]:
    """Run Chromium, once for all tests of a process. Each test has a profile of its own."""
    path = needed("chromium")
    async with async_playwright() as playwright:
        arguments = [] if os.geteuid() else ["--no-sandbox"]  # the sandbox refuses to run as root
        browser = await playwright.chromium.launch(executable_path=path, args=arguments)
        yield browser
        await browser.close()


@pytest.fixture
async def context(browser: Browser) -> AsyncIterator[BrowserContext]:
    """Open a browser profile of its own."""
    async with await browser.new_context() as context:
        yield context


async def open_page(context: BrowserContext, url: str) -> Page:
    """Open a page that records the bell's events and violations of its Content-Security-Policy.

    Fails if a script of the page does while it loads.
    """
    page = await context.new_page()
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


async def assert_accessible(page: Page) -> None:
    """Check the page against all rules of axe-core."""
    found = (await Axe().run(page)).response
    assert [(rule["id"], rule["nodes"]) for rule in found["violations"]] == []


# --- a site that embeds the bell --------------------------------------------------------------------


class Site:
    """A web site of another origin than the service, with a strict Content-Security-Policy."""

    def __init__(self) -> None:
        self.html = ""
        self.script = ""
        self.service = ""
        self.origin = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Site]:
        """Serve the page and its own script."""
        app = web.Application()
        app.router.add_get("/", self._page)
        app.router.add_get("/own.js", self._own_script)
        async with TestServer(app) as server:
            self.origin = str(server.make_url("")).rstrip("/")
            yield self

    async def _page(self, _: web.Request) -> web.Response:
        policy = f"default-src 'none'; script-src 'self' {self.service}; connect-src 'self' {self.service}"
        own = "<script type=module src=/own.js></script><script" if self.script else "<script"
        text = self.html.replace("<script", own, 1)
        return web.Response(text=text, content_type="text/html", headers={"Content-Security-Policy": policy})

    async def _own_script(self, _: web.Request) -> web.Response:
        return web.Response(text=self.script, content_type="text/javascript")

    def embed(self, service: str, content: str = "", lang: str = "en", **attributes: str) -> None:
        """Put the bell of this service into the page. `text__title` is the attribute `text-title`."""
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
    """Run a site whose page is still empty."""
    async with Site().running() as running:
        yield running


# --- the service ------------------------------------------------------------------------------------


class Server:
    """The service as a process, and what a backend does with it."""

    def __init__(self, process: Service, session: aiohttp.ClientSession) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{process.port}"
        self._session = session

    async def create(self, key: str = "new_message", **fields: Any) -> None:
        """Create a notification for the user."""
        async with self._session.post(f"{self.url}/create", json={"user_id": USER, "key": key, **fields}) as response:
            assert response.status == 201, await response.text()

    async def assert_streams_open(self, count: int) -> None:
        """Check how many streams are open."""
        async with self._session.get(f"{self.url}/metrics") as response:
            found = re.search("^notifier_streams_open (.+)$", await response.text(), re.MULTILINE)
        assert (float(found[1]) if found else 0.0) == count

    def count_logged(self, route: str, status: int) -> int:
        """Count the requests in the log that had this answer."""
        return self.process.log().count(f" {route} {status} ")


Serve = Callable[..., Awaitable[Server]]


@pytest.fixture
async def serve(settings: Settings, site: Site, tmp_path: Path) -> AsyncIterator[Serve]:
    """Return what starts the service, with pages of the site allowed to call it."""
    started: list[Service] = []
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as session:

        async def start(db_uri: str = settings.db_uri, **variables: object) -> Server:
            changed = replace(settings, db_uri=db_uri)
            service = await running_service(changed, tmp_path, **{"CORS_ORIGINS": site.origin, **variables})
            started.append(service)
            return Server(service, session)

        yield start
    for service in started:
        service.kill()


@pytest.fixture
async def server(serve: Serve) -> Server:
    """Start the service as a process."""
    return await serve()


@asynccontextmanager
async def local_run(folder: Path, **variables: str) -> AsyncIterator[LocalRun]:
    """Run the service with nothing configured but these variables."""
    local = await asyncio.to_thread(LocalRun, folder, **variables)
    try:
        yield local
    finally:
        local.end(signal.SIGTERM)
