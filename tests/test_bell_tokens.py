"""The bell asks its page for tokens: before it needs one, and without noise."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from itertools import pairwise

import pytest
from playwright.async_api import BrowserContext, Page, Route, expect
from yarl import URL

from api.auth import LEEWAY, sign_token
from tests.bell import bell, panel, rows, shows_new, shows_unread
from tests.browser import Serve, Server, Site, events, hasten, open_page
from tests.client import OTHER, PROTECTED, SECRET, USER
from tests.waiting import eventually_async

SCRIPT = """
    window.asked = [];
    const inbox = document.querySelector("notifier-inbox");
    inbox.getToken = async () => {
        asked.push(Date.now());
        const reply = await fetch(`/token?user=${inbox.getAttribute("user-id")}&now=${asked.at(-1)}`);
        return (await reply.json()).token;
    };
"""


async def protected(serve: Serve) -> Server:
    return await serve(**PROTECTED)


async def hand_out(context: BrowserContext, lifetime: int) -> None:
    """Answer the page's requests for a token, which lives for this many seconds by the page's clock."""

    async def answer(route: Route) -> None:
        query = URL(route.request.url).query
        ahead = float(query["now"]) / 1000 - time.time()
        await route.fulfill(json={"token": sign_token(SECRET, query["user"], round(lifetime + ahead))})

    await context.route("**/token?*", answer)


async def asked(page: Page) -> list[int]:
    """Return when the page was asked for a token, in milliseconds."""
    times: list[int] = await page.evaluate("asked")
    return times


async def assert_asked(page: Page, at_least: int) -> None:
    assert len(await asked(page)) >= at_least


def complaints(page: Page) -> list[str]:
    """Return what the console will say."""
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    return messages


async def serve_late(route: Route) -> None:
    """Serve the page's script so late that a bell that does not wait for it has called the service."""
    await route.request.frame.evaluate("""async () => {
        await customElements.whenDefined("notifier-inbox");
        await new Promise((done) => setTimeout(done, 100)); // the bell's timer was set before, and to 0
        const { src } = document.querySelector("script[src$='/inbox.js']");
        await fetch(src, { cache: "no-store" }); // comes after what the bell asked for
    }""")
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
    await shows_new(page, 1)
    assert len(await asked(page)) == 1
    assert messages == []
    assert await server.count(401) == 0


async def test_a_page_that_sets_get_token_late_is_waited_for(serve: Serve, site: Site, context: BrowserContext) -> None:
    """Scripts that are `async`, as those of Next.js, run after the document is parsed."""
    server = await protected(serve)
    site.embed(server.url)
    site.html = site.html.replace("</main>", "</main><script async src=/own.js></script>")
    await hand_out(context, 3600)
    released = asyncio.Event()

    async def answer(route: Route) -> None:
        await released.wait()
        await route.fulfill(body=SCRIPT, content_type="text/javascript")

    await context.route("**/own.js", answer)
    page = await context.new_page()
    await page.goto(site.origin, wait_until="domcontentloaded")
    await page.evaluate("customElements.whenDefined('notifier-inbox').then(() => 0)")
    for _ in range(2):  # the bell's idle callback comes before the second one
        await page.evaluate("new Promise((done) => requestIdleCallback(() => done()))")
    released.set()
    await server.create()
    await shows_new(page, 1)
    assert await server.count(401) == 0


async def test_a_token_is_renewed_before_it_expires(serve: Serve, site: Site, context: BrowserContext) -> None:
    server = await protected(serve)
    lifetime = 20
    await hand_out(context, lifetime)
    site.embed(server.url)
    site.script = SCRIPT
    page = await context.new_page()
    messages = complaints(page)
    await page.clock.install()
    await page.goto(site.origin)
    await shows_new(page, 0)
    await hasten(page, partial(assert_asked, page, 3))
    for before, after in pairwise(await asked(page)):
        assert 1000 * lifetime / 2 < after - before < 1000 * lifetime
    await server.create()
    await shows_new(page, 1)
    assert messages == []
    assert await server.count(401) == 0


async def test_a_page_that_has_no_token_for_a_moment_keeps_the_old_one(
    serve: Serve, site: Site, context: BrowserContext
) -> None:
    server = await protected(serve)
    await hand_out(context, 60)
    site.embed(server.url)
    site.script = SCRIPT
    page = await open_page(context, site.origin, clock=True)
    await shows_new(page, 0)
    await context.route("**/token?*", lambda route: route.abort())
    await hasten(page, partial(assert_asked, page, 2), step_ms=4000)
    await server.create()
    await shows_new(page, 1)
    assert await server.count(401) == 0


async def test_a_refused_token_is_replaced_once(serve: Serve, site: Site, context: BrowserContext) -> None:
    server = await protected(serve)
    await server.create()
    site.embed(server.url)
    await hand_out(context, 3600)
    site.script = SCRIPT.replace("asked.push(Date.now());", "if (asked.push(Date.now()) == 1) return 'old';")
    page = await open_page(context, site.origin)
    await shows_new(page, 1)
    assert len(await asked(page)) == 2
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


async def test_a_page_in_place_of_a_token_is_not_sent(serve: Serve, site: Site, context: BrowserContext) -> None:
    """A request for a token may be redirected to the page where users sign in."""
    server = await protected(serve)
    site.embed(server.url)
    site.script = "document.querySelector('notifier-inbox').getToken = async () => '<!DOCTYPE html>\\n<p>Sign in';"
    page = await open_page(context, site.origin)
    await bell(page).click()
    await expect(panel(page).get_by_text("Please sign in again.")).to_be_visible()
    assert ["notifier-unauthorized", None] in await events(page)
    assert await server.count(401) == 0


async def test_another_user_gets_a_token_of_their_own(serve: Serve, site: Site, context: BrowserContext) -> None:
    server = await protected(serve)
    await server.create()
    await hand_out(context, 3600)
    site.embed(server.url, user__id=OTHER)
    site.script = SCRIPT
    page = await open_page(context, site.origin)
    await shows_new(page, 0)
    await page.locator("notifier-inbox").evaluate("(inbox, id) => inbox.setAttribute('user-id', id)", USER)
    await shows_new(page, 1)
    assert await events(page) == []


async def assert_unauthorized(page: Page) -> None:
    assert await events(page) == [["notifier-unauthorized", None]]


async def test_after_the_event_a_page_has_5_s_to_provide_a_token(
    serve: Serve, site: Site, context: BrowserContext
) -> None:
    server = await protected(serve)
    await server.create()
    site.embed(server.url, token=sign_token(SECRET, USER, -LEEWAY - 5))
    await context.clock.install()
    await context.clock.pause_at(4_000_000_000)  # time stands still unless the test lets it run
    page = await open_page(context, site.origin)
    await page.clock.run_for(10)
    await bell(page).click()
    await page.clock.run_for(10)
    await eventually_async(partial(assert_unauthorized, page))
    await page.clock.run_for(4989)
    await expect(panel(page).get_by_text("Please sign in again.")).to_have_count(0)
    await page.clock.run_for(11)
    await expect(panel(page).get_by_text("Please sign in again.")).to_be_visible()
    token = sign_token(SECRET, USER, 3600)
    await page.locator("notifier-inbox").evaluate("(inbox, token) => inbox.setAttribute('token', token)", token)
    await page.clock.resume()
    await expect(rows(page)).to_have_count(1)
    await expect(page.get_by_text("Please sign in again.")).to_have_count(0)


async def test_a_token_that_comes_in_time_saves_the_message(serve: Serve, site: Site, context: BrowserContext) -> None:
    server = await protected(serve)
    await server.create()
    site.embed(server.url)
    token = sign_token(SECRET, USER, 3600)
    site.script = f"""
        addEventListener("notifier-unauthorized", ({{ target }}) =>
            setTimeout(() => target.setAttribute("token", "{token}"), 1000));
        customElements.whenDefined("notifier-inbox").then(() => {{
            const status = document.querySelector("notifier-inbox").shadowRoot.querySelector("#status");
            const note = () => {{ window.said ||= status.textContent; }};
            new MutationObserver(note).observe(status, {{ childList: true, subtree: true }});
        }});
    """
    page = await context.new_page()
    await page.clock.install()
    await page.goto(site.origin)
    await page.clock.run_for(1500)
    await shows_new(page, 1)
    await page.clock.run_for(10_000)
    assert not await page.evaluate("window.said")
