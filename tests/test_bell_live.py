"""The bell shows the inbox as it is, in every tab, whatever happens to the service or the connection."""

from __future__ import annotations

import asyncio
import re
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest
from playwright.async_api import BrowserContext, Page, Route, expect

from api.auth import LEEWAY, sign_token
from settings import Settings
from tests.bell import bell, panel, row_of, rows, shows_new, shows_unread
from tests.browser import Serve, Server, Site, events, hasten, open_page, server_process, set_visibility
from tests.client import PROTECTED, SECRET, USER
from tests.servers import Mongod
from tests.waiting import eventually_async


async def test_two_tabs_show_the_same_notifications_and_marks(
    server: Server, site: Site, context: BrowserContext
) -> None:
    await server.create(data={"n": 0})
    site.embed(server.url, label__new_message="New message {data.n}")
    one = await open_page(context, site.origin)
    await eventually_async(lambda: server.assert_streams_open(1))  # so it is the one that leads
    two = await open_page(context, site.origin)
    for page in (one, two):
        await shows_new(page, 1)
    await server.assert_streams_open(1)
    for n in (1, 2):
        await server.create(data={"n": n})
    for page in (one, two):
        await shows_new(page, 3)
    await bell(one).click()
    for page in (one, two):
        await shows_new(page, 0)
        await shows_unread(page, 3)
    await bell(two).click()
    for page in (one, two):
        await expect(rows(page)).to_have_count(3)
        await expect(rows(page).first).to_have_text(re.compile(r"Unread:\s*New message 2now"))
    await rows(one).nth(1).click()
    for page in (one, two):
        await shows_unread(page, 2)
        await expect(page.locator("notifier-inbox .new")).to_have_count(2)
        await expect(rows(page).nth(1)).not_to_contain_text("Unread")
    await two.get_by_role("button", name="Mark all as read").click()
    for page in (one, two):
        await shows_unread(page, 0)
        await expect(page.locator("notifier-inbox .new")).to_have_count(0)
    assert await events(one) == [["notification", 1], ["notification", 2], ["notifier-select", 1]]
    assert await events(two) == []


async def test_load_more_shows_each_notification_once_despite_arrivals(
    server: Server, site: Site, context: BrowserContext
) -> None:
    for n in range(45):
        await server.create(data={"n": n})
    site.embed(server.url, label__new_message="n: {data.n}")
    page = await open_page(context, site.origin)
    await bell(page).click()
    await expect(rows(page)).to_have_count(20)
    more, arrived = page.get_by_role("button", name="Load more"), panel(page).get_by_role("button", name="1 new")
    await more.scroll_into_view_if_needed()
    await asyncio.gather(more.click(), server.create(data={"n": 45}))
    await expect(arrived).to_be_visible()
    await expect(rows(page)).to_have_count(39)
    first = page.locator(
        "notifier-inbox .main:focus"
    )  # of those that came, whether the new one came before the click or after
    await expect(first).to_contain_text(re.compile("n: 2[45]"))
    await more.focus()
    await page.keyboard.press("Enter")
    await expect(rows(page)).to_have_count(45)
    await expect(more).to_be_hidden()
    await expect(row_of(page, 39)).to_be_focused()
    await expect(row_of(page, 39)).to_be_in_viewport()
    await arrived.click()
    await expect(rows(page)).to_have_count(46)
    shown = [int(n) for text in await rows(page).all_inner_texts() for n in re.findall(r"n: (\d+)", text)]
    assert shown == list(range(45, -1, -1))
    await shows_unread(page, 46)
    assert await events(page) == [["notification", 45]]


async def test_the_bell_says_that_the_service_is_down_and_recovers(
    settings: Settings, site: Site, context: BrowserContext, tmp_path: Path
) -> None:
    async with server_process(settings, site, tmp_path) as (process, server):
        await server.create()
        site.embed(server.url)
        page = await open_page(context, site.origin, clock=True)
        await bell(page).click()
        await expect(rows(page)).to_have_count(1)
        process.kill()
        said = page.get_by_text("No connection. Trying again")
        await hasten(page, lambda: expect(said).to_have_count(2, timeout=50))  # in the panel, and for screen readers
        await expect(rows(page)).to_have_count(1)
        process.restart()
        await hasten(page, lambda: expect(page.get_by_text("No connection")).to_have_count(0, timeout=50))
        await server.create(data={"n": 1})
        await expect(rows(page)).to_have_count(2)
        assert await events(page) == [["notification", 1]]


async def test_the_bell_reports_an_expired_token_and_takes_a_new_one(
    serve: Serve, site: Site, context: BrowserContext
) -> None:
    server = await serve(**PROTECTED)
    lifetime = 3 - LEEWAY
    site.embed(server.url, token=sign_token(SECRET, USER, lifetime))
    page = await open_page(context, site.origin, clock=True)
    await bell(page).click()
    await expect(page.get_by_text("Nothing here yet.")).to_be_visible()
    await eventually_async(lambda: assert_listened(server))
    await eventually_async(lambda: server.assert_streams_open(0))
    please = panel(page).get_by_text("Please sign in again.")
    await hasten(page, lambda: expect(please).to_be_visible(timeout=50))
    assert await events(page) == [["notifier-unauthorized", None]]
    await server.create(data={"n": 1})
    inbox = page.locator("notifier-inbox")
    await inbox.evaluate("(inbox, token) => inbox.setAttribute('token', token)", sign_token(SECRET, USER, 60))
    await expect(rows(page)).to_have_count(1)
    await expect(panel(page).get_by_text("Please sign in again.")).to_be_hidden()
    await eventually_async(lambda: server.assert_streams_open(1))
    await server.create(data={"n": 2})
    await expect(rows(page)).to_have_count(2)
    assert await events(page) == [["notifier-unauthorized", None], ["notification", 1], ["notification", 2]]


async def assert_listened(server: Server) -> None:
    """Check that a stream has begun. It may have ended."""
    assert await server.count(200, "/stream") >= 1


async def test_a_refused_mark_is_undone(server: Server, site: Site, context: BrowserContext) -> None:
    for n in range(2):
        await server.create(data={"n": n})
    site.embed(server.url)
    page = await open_page(context, site.origin)
    may_fail = asyncio.Event()

    async def refuse(route: Route) -> None:
        await may_fail.wait()
        await route.abort()

    await page.route("**/read?*", refuse)
    await bell(page).click()
    await rows(page).first.click()
    await shows_unread(page, 1)
    await page.get_by_role("button", name="Mark all as read").click()
    await shows_unread(page, 0)
    await server.create(data={"n": 2})  # the list that follows knows nothing of the two clicks
    may_fail.set()
    await shows_unread(page, 3)
    await expect(panel(page).get_by_text("That did not work.")).to_be_visible()
    await page.unroute("**/read?*")
    await page.get_by_role("button", name="Mark all as read").click()
    await shows_unread(page, 0)
    await expect(panel(page).get_by_text("That did not work.")).to_be_hidden()


async def test_a_mark_made_offline_is_undone(server: Server, site: Site, context: BrowserContext) -> None:
    await server.create()
    site.embed(server.url)
    page = await open_page(context, site.origin)
    await bell(page).click()
    await shows_unread(page, 1)
    await context.set_offline(offline=True)
    await rows(page).first.click()
    await expect(panel(page).get_by_text("No connection.")).to_be_visible()
    await shows_unread(page, 1)
    await context.set_offline(offline=False)
    await expect(panel(page).get_by_text("No connection.")).to_be_hidden()
    await rows(page).first.click()
    await shows_unread(page, 0)


async def hold_the_next_list(server: Server, page: Page) -> asyncio.Event:
    """Create a notification, and return a function that releases the list that the page then requests."""
    held, released = asyncio.Event(), asyncio.Event()

    async def hold(route: Route) -> None:
        response = await route.fetch()
        held.set()
        await released.wait()
        await route.fulfill(response=response)

    await page.route("**/list?*", hold, times=1)
    await server.create(data={"n": 2})
    await held.wait()
    return released


async def test_a_list_requested_before_a_click_does_not_undo_it(
    server: Server, site: Site, context: BrowserContext
) -> None:
    for n in range(2):
        await server.create(data={"n": n})
    site.embed(server.url)
    page = await open_page(context, site.origin)
    await shows_new(page, 2)
    await eventually_async(lambda: assert_listed(server, 1))  # the stream's first event says nothing new
    await page.evaluate("""
        window.counts = [2];
        addEventListener("notifier-count", ({ detail: { unread } }) => counts.at(-1) === unread || counts.push(unread));
    """)
    released = await hold_the_next_list(server, page)
    await bell(page).click()
    async with page.expect_response("**/read?*"):
        await rows(page).last.click()
    released.set()
    await expect(panel(page).get_by_role("button", name="1 new")).to_be_visible()
    await shows_unread(page, 2)
    assert await page.evaluate("counts") == [2, 1, 2]


async def test_a_list_requested_before_it_was_opened_brings_no_badge(
    server: Server, site: Site, context: BrowserContext
) -> None:
    await server.create(data={"n": 1})
    site.embed(server.url)
    page = await open_page(context, site.origin)
    await shows_new(page, 1)
    await eventually_async(lambda: assert_listed(server, 1))
    await page.evaluate("""
        window.counts = [];
        addEventListener("notifier-count", ({ detail: { unread, unseen } }) => counts.push([unread, unseen]));
    """)
    released = await hold_the_next_list(server, page)
    await bell(page).click()
    await expect(rows(page)).to_have_count(1)
    released.set()
    await expect(rows(page)).to_have_count(2)
    await shows_new(page, 0)
    await shows_unread(page, 2)
    assert await page.evaluate("counts") == [[2, 2], [2, 0]]


async def test_what_arrives_as_the_panel_closes_is_not_seen(
    server: Server, site: Site, context: BrowserContext
) -> None:
    site.embed(server.url)
    page = await open_page(context, site.origin)
    await eventually_async(lambda: server.assert_streams_open(1))
    await bell(page).click()
    await expect(page.get_by_text("Nothing here yet.")).to_be_visible()
    released = await hold_the_next_list(server, page)
    await page.keyboard.press("Escape")
    await expect(panel(page)).to_be_hidden()
    released.set()
    await shows_new(page, 1)
    async with page.expect_response("**/list?*"):
        await page.locator("notifier-inbox").evaluate("(inbox) => inbox.refresh()")
    assert await server.count(200, "/seen") == 0  # it would have come before that list
    await shows_new(page, 1)


async def assert_listed(server: Server, times: int) -> None:
    assert await server.count(200, "/list") + await server.count(304, "/list") == times


async def test_a_new_token_is_used_at_once_even_while_a_list_loads(
    server: Server, site: Site, context: BrowserContext
) -> None:
    site.embed(server.url, token="old")  # noqa: S106 - the API is open, and ignores it
    page = await open_page(context, site.origin)
    await eventually_async(lambda: server.assert_streams_open(1))
    await shows_new(page, 0)
    held = asyncio.Event()

    async def hold(_: Route) -> None:
        held.set()

    await page.route("**/list?*", hold, times=1)
    await server.create()
    await held.wait()
    await page.locator("notifier-inbox").evaluate("(inbox) => inbox.setAttribute('token', 'new')")
    await shows_new(page, 1)


@pytest.mark.ci
async def test_without_streams_the_bell_polls_and_mostly_gets_304(
    serve: Serve, site: Site, context: BrowserContext, standalone: Mongod
) -> None:
    server = await serve(db_uri=f"mongodb://{standalone.address}/polled_{uuid4().hex}")
    site.embed(server.url, poll="0.05")
    page = await open_page(context, site.origin)

    async def polled(times: int) -> None:
        assert await server.count(304, "/list") >= times

    await eventually_async(partial(polled, 1))  # so the page knows what there was before
    await server.create(data={"n": 1})
    await shows_new(page, 1)
    await bell(page).click()
    await rows(page).first.click()
    await shows_unread(page, 0)
    await eventually_async(partial(polled, 6))
    assert await server.count(501, "/stream") <= 2  # asked for at the start, and when the panel was opened
    assert await events(page) == [["notification", 1], ["notifier-select", 1]]


async def test_a_hidden_tab_and_a_removed_bell_hold_no_stream(
    server: Server, site: Site, context: BrowserContext
) -> None:
    site.embed(server.url)
    page = await open_page(context, site.origin)
    await eventually_async(lambda: server.assert_streams_open(1))
    await set_visibility(page, hidden=True)
    await eventually_async(lambda: server.assert_streams_open(0))
    await server.create(data={"n": 1})
    await set_visibility(page, hidden=False)
    await shows_new(page, 1)
    await eventually_async(lambda: server.assert_streams_open(1))
    await page.evaluate("window.inbox = document.querySelector('notifier-inbox'); inbox.remove()")
    await eventually_async(lambda: server.assert_streams_open(0))
    await server.create(data={"n": 2})
    await page.evaluate("document.body.append(inbox)")
    await shows_new(page, 2)
    assert await events(page) == [["notification", 1], ["notification", 2]]


async def test_the_next_user_never_sees_the_last_ones_notifications(
    server: Server, site: Site, context: BrowserContext
) -> None:
    await server.create(data={"n": 1})
    site.embed(server.url)
    page = await open_page(context, site.origin)
    await bell(page).click()
    await expect(rows(page)).to_have_count(1)
    rows_left = await page.locator("notifier-inbox").evaluate(
        """(inbox) => {
            inbox.setAttribute("user-id", "f".repeat(24));
            return inbox.shadowRoot.querySelectorAll("li").length;
        }"""
    )
    assert rows_left == 0
    await shows_unread(page, 0)
    await expect(page.get_by_text("Nothing here yet.")).to_be_visible()
