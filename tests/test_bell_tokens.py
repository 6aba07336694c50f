"""The bell asks its page for tokens: before it needs one, and without noise."""

from __future__ import annotations

import asyncio

import pytest
from playwright.async_api import BrowserContext, Page, Route, expect

from api.auth import LEEWAY, sign_token
from tests.bell import bell, panel, rows, shows_unread
from tests.browser import Serve, Server, Site, events, open_page
from tests.client import KEY, OTHER, SECRET, USER
from tests.waiting import eventually_async

SCRIPT = """
    window.asked = 0;
    const inbox = document.querySelector("notifier-inbox");
    inbox.getToken = async () => {
        asked += 1;
        const { token } = await (await fetch(`/token?user=${inbox.getAttribute("user-id")}`)).json();
        return token;
    };
"""


async def protected(serve: Serve) -> Server:
    return await serve(API_KEYS=KEY, USER_TOKEN_SECRET=SECRET)


async def hand_out(context: BrowserContext, lifetime: int) -> None:
    """Answer the page's requests for a token."""
    await context.unroute("**/token?*")

    async def answer(route: Route) -> None:
        user = route.request.url.partition("user=")[2]
        await route.fulfill(json={"token": sign_token(SECRET, user, lifetime)})

    await context.route("**/token?*", answer)


async def asked(page: Page) -> int:
    count: int = await page.evaluate("asked")
    return count


def complaints(page: Page) -> list[str]:
    """Return what the console will say."""
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    return messages


async def serve_late(route: Route) -> None:
    """Serve the page's script so late that a bell that does not wait for it has called the service."""
    await asyncio.sleep(1)
    await route.fulfill(body=SCRIPT, headers={"Content-Type": "text/javascript"})


@pytest.mark.parametrize("late", [False, True], ids=["before the bell", "after the bell"])
async def test_a_token_is_asked_for_before_the_first_call(
    serve: Serve, site: Site, context: BrowserContext, late: bool
) -> None:
    server = await protected(serve)
    await server.create()
    await hand_out(context, 3600)
    site.embed(server.url)
    if late:
        site.html += "<script type=module src=/late.js></script>"
        await context.route("**/late.js", serve_late)
    else:
        site.script = SCRIPT
    page = await context.new_page()
    messages = complaints(page)
    await page.goto(site.origin)
    await shows_unread(page, 1)
    assert await asked(page) == 1
    assert messages == []
    assert server.count_logged("/list", 401) == 0


async def test_a_token_is_renewed_before_it_expires(serve: Serve, site: Site, context: BrowserContext) -> None:
    server = await protected(serve)
    await hand_out(context, 4)
    site.embed(server.url)
    site.script = SCRIPT
    page = await context.new_page()
    messages = complaints(page)
    await page.goto(site.origin)

    async def renewed() -> None:
        assert await asked(page) >= 3

    await eventually_async(renewed, 40)
    await server.create()
    await shows_unread(page, 1)
    assert messages == []
    assert server.count_logged("/list", 401) == server.count_logged("/stream", 401) == 0


async def test_a_page_that_has_no_token_for_a_moment_keeps_the_old_one(
    serve: Serve, site: Site, context: BrowserContext
) -> None:
    server = await protected(serve)
    await hand_out(context, 20)
    site.embed(server.url)
    site.script = SCRIPT
    page = await open_page(context, site.origin)
    await shows_unread(page, 0)
    await context.route("**/token?*", lambda route: route.abort())

    async def renewed() -> None:
        assert await asked(page) >= 2

    await eventually_async(renewed, 40)
    await server.create()
    await shows_unread(page, 1)
    assert server.count_logged("/list", 401) == 0


async def test_a_refused_token_is_replaced_once(serve: Serve, site: Site, context: BrowserContext) -> None:
    server = await protected(serve)
    await server.create()
    site.embed(server.url)
    await hand_out(context, 3600)
    site.script = SCRIPT.replace("asked += 1;", "if (!asked++) return 'old';")
    page = await open_page(context, site.origin)
    await shows_unread(page, 1)
    assert await asked(page) == 2
    assert await events(page) == []


async def test_a_user_without_a_token_is_asked_to_sign_in(serve: Serve, site: Site, context: BrowserContext) -> None:
    server = await protected(serve)
    await server.create()
    site.embed(server.url)
    site.script = "document.querySelector('notifier-inbox').getToken = async () => window.token;"
    page = await context.new_page()
    messages = complaints(page)
    await page.add_init_script("""window.events = [];
        addEventListener("notifier-unauthorized", () => events.push("unauthorized"));""")
    await page.goto(site.origin)
    await bell(page).click()
    await expect(panel(page).get_by_text("Please sign in again.")).to_be_visible()
    assert "unauthorized" in await page.evaluate("events")
    assert messages == []  # nothing was sent that could be refused
    await page.evaluate("(token) => { window.token = token; }", sign_token(SECRET, USER, 3600))
    await page.locator("notifier-inbox").evaluate("(inbox) => inbox.refresh()")
    await shows_unread(page, 1)
    await expect(page.get_by_text("Please sign in again.")).to_have_count(0)


async def test_another_user_gets_a_token_of_their_own(serve: Serve, site: Site, context: BrowserContext) -> None:
    server = await protected(serve)
    await server.create()
    await hand_out(context, 3600)
    site.embed(server.url, user__id=OTHER)
    site.script = SCRIPT
    page = await open_page(context, site.origin)
    await shows_unread(page, 0)
    await page.locator("notifier-inbox").evaluate("(inbox, id) => inbox.setAttribute('user-id', id)", USER)
    await shows_unread(page, 1)
    assert await events(page) == []


TIMES = """
    window.times = {};
    addEventListener("notifier-unauthorized", () => { times.event ??= performance.now(); });
    customElements.whenDefined("notifier-inbox").then(() => {
        const status = document.querySelector("notifier-inbox").shadowRoot.querySelector("#status");
        const note = () => { if (status.textContent) times.said ??= performance.now(); };
        new MutationObserver(note).observe(status, { childList: true, subtree: true });
    });
"""


async def test_with_the_event_a_page_has_five_seconds_to_bring_a_token(
    serve: Serve, site: Site, context: BrowserContext
) -> None:
    server = await protected(serve)
    await server.create()
    site.embed(server.url, token=sign_token(SECRET, USER, -LEEWAY - 5))
    site.script = TIMES
    page = await open_page(context, site.origin)
    await bell(page).click()
    await expect(panel(page).get_by_text("Please sign in again.")).to_be_visible()
    assert await page.evaluate("times.said - times.event") >= 4990  # ms
    token = sign_token(SECRET, USER, 3600)
    await page.locator("notifier-inbox").evaluate("(inbox, token) => inbox.setAttribute('token', token)", token)
    await expect(rows(page)).to_have_count(1)
    await expect(page.get_by_text("Please sign in again.")).to_have_count(0)


async def test_a_token_that_comes_in_time_saves_the_message(serve: Serve, site: Site, context: BrowserContext) -> None:
    server = await protected(serve)
    await server.create()
    site.embed(server.url)
    token = sign_token(SECRET, USER, 3600)
    site.script = (
        TIMES
        + f"""addEventListener("notifier-unauthorized", ({{ target }}) =>
        setTimeout(() => target.setAttribute("token", "{token}"), 1000));"""
    )
    page = await context.new_page()
    await page.clock.install()
    await page.goto(site.origin)
    await page.clock.run_for(1500)
    await shows_unread(page, 1)
    await page.clock.run_for(10_000)
    assert await page.evaluate("times.said") is None
