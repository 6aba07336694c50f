"""The page to unsubscribe in Chromium, without JavaScript and behind a proxy that serves it under a path."""

from __future__ import annotations

import tomllib
from collections.abc import AsyncIterator
from dataclasses import replace

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from bson import ObjectId
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Page, expect

from settings import Settings
from tests.browser import assert_accessible
from tests.client import DB, PROTECTED, ROOT, USER, Client, ours
from tests.fixtures import Start
from tests.links import LINKED, link_path

PREFIX = "/team/notifications"
OFF = {"email": False}
LANGUAGES = tomllib.loads((ROOT / "web/unsubscribe.toml").read_text())


@pytest.fixture
async def client(start: Start, database: DB) -> Client:
    """Start the service. The user is known."""
    database.users.insert_one({"_id": ObjectId(USER)})
    return await start(**LINKED, **PROTECTED)


@pytest.fixture
async def url(client: Client, settings: Settings) -> AsyncIterator[str]:
    """Return a link that leads through a proxy, which takes a prefix off the path."""

    async def forward(request: web.Request) -> web.Response:
        target = client.make_url(request.path_qs.removeprefix(PREFIX))
        kept = {name: value for name, value in request.headers.items() if name.startswith("Accept")}
        async with aiohttp.request(request.method, target, headers=kept, allow_redirects=False) as response:
            own = ("Content-Type", "Content-Security-Policy", "Referrer-Policy", "X-Content-Type-Options")
            headers = {name: response.headers[name] for name in own if name in response.headers}
            return web.Response(status=response.status, body=await response.read(), headers=headers)

    app = web.Application()
    app.router.add_route("*", PREFIX + "/{rest:.*}", forward)
    async with TestServer(app) as proxy:
        yield f"{proxy.make_url(PREFIX)}{link_path(replace(settings, **LINKED))}"


@pytest.fixture
async def context(browser: Browser) -> AsyncIterator[BrowserContext]:
    """Open a browser profile without JavaScript."""
    async with await browser.new_context(java_script_enabled=False, locale="en-GB") as context:
        yield context


async def open_link(context: BrowserContext, url: str) -> tuple[Page, list[str]]:
    """Open a link; also return what the browser says of it, such as a violation of its policy."""
    page, said = await context.new_page(), []

    def note(message: ConsoleMessage) -> None:
        said.append(message.text)

    page.on("console", note)
    page.on("requestfailed", lambda request: said.append(request.url))
    await page.goto(url)
    return page, said


async def press(page: Page, name: str) -> None:
    await page.get_by_role("button", name=name, exact=True).click()


async def assert_heading(page: Page, text: str) -> None:
    await expect(page.get_by_role("heading")).to_have_text(text)
    await expect(page).to_have_title(text)


def wanted(database: DB) -> object:
    return ours(database).get("preferences")


async def test_a_user_unsubscribes_and_undoes_it_without_javascript(
    context: BrowserContext, url: str, database: DB
) -> None:
    page, said = await open_link(context, url)
    await assert_heading(page, "Unsubscribe from these e-mails?")
    await expect(page.locator(".kind")).to_have_text("Shipped orders")
    assert wanted(database) is None
    await press(page, "Unsubscribe")
    await assert_heading(page, "You are unsubscribed")
    assert wanted(database) == {"order_shipped": OFF}
    await page.goto(url)  # the link, once more
    await assert_heading(page, "You are unsubscribed")
    await press(page, "Subscribe again")
    await assert_heading(page, "You are subscribed again")
    assert wanted(database) is None
    await press(page, "Unsubscribe")
    await press(page, "Unsubscribe from all e-mails that are not required")
    await expect(page.locator("main p")).to_have_text("You only get e-mails that are required.")
    assert wanted(database) == {"order_shipped": OFF, "*": OFF}
    await page.reload()  # which posts again
    await press(page, "Subscribe again")
    await expect(page.get_by_text("You no longer get these e-mails.")).to_be_visible()
    assert wanted(database) == {"order_shipped": OFF}
    assert page.url == f"{url}?choice=undo-all"
    await expect(page.locator("main")).to_have_css("border-top-left-radius", "16px")  # its style has come
    assert said == []


async def test_every_language_fits_a_phone_in_its_own_direction(browser: Browser, url: str) -> None:
    async with await browser.new_context(viewport={"width": 320, "height": 640}) as context:
        page = await context.new_page()
        for language, text in LANGUAGES.items():
            await context.set_extra_http_headers({"Accept-Language": language})
            await page.goto(url)
            await assert_heading(page, text["ask"])
            assert await page.evaluate("document.documentElement.scrollWidth") <= 320
            side = "right" if language in {"ar", "fa", "he"} else "left"
            await expect(page.locator(".kind")).to_have_css(f"border-{side}-width", "3px")


async def test_axe_finds_no_fault_in_any_state_of_the_page(browser: Browser, url: str) -> None:
    async with await browser.new_context(locale="ar-EG", viewport={"width": 320, "height": 640}) as context:
        page = await context.new_page()
        await page.goto(url)
        await assert_accessible(page, ["light"])
        await page.get_by_role("button").last.click()
        await expect(page.get_by_role("button")).to_have_count(1)
        await assert_accessible(page)
        await page.goto(url + "x")
        await assert_accessible(page, ["dark"])


async def test_buttons_are_seen_in_forced_colours(browser: Browser, url: str) -> None:
    async with await browser.new_context(forced_colors="active") as context:
        page = await context.new_page()
        await page.goto(url)
        for button in await page.get_by_role("button").all():
            await expect(button).to_have_css("border-top-style", "solid")
            await expect(button).to_have_css("border-top-width", "1px")
        await assert_accessible(page, ["light"])
