"""The panel of the bell: where it opens, what it filters, how it looks in any theme, and its methods."""

from __future__ import annotations

import re
from typing import Any

import pytest
from bson import ObjectId
from playwright.async_api import Browser, BrowserContext, Page, expect

from tests.bell import bell, panel, row_of, rows, shows_new, shows_unread
from tests.browser import Server, Site, events, open_page
from tests.client import DB, USER
from tests.waiting import eventually_async


def seeded(database: DB, count: int, **fields: Any) -> None:
    """Give the user this many unread notifications."""
    items = [{"id": f"n{n}", "timestamp": n + 1, "is_new": True, "key": "new_post", **fields} for n in range(count)]
    database.users.insert_one({"_id": ObjectId(USER), "email": "a@b.example", "notifications": items})


async def style(page: Page, selector: str, name: str) -> str:
    found: str = await page.locator(f"notifier-inbox {selector}").evaluate(
        "(element, name) => getComputedStyle(element)[name]", name
    )
    return found


# --- filter -------------------------------------------------------------------------------------------


async def test_the_filter_shows_only_unread_and_lasts_for_the_session(
    server: Server, site: Site, context: BrowserContext
) -> None:
    for n in range(3):
        await server.create(data={"n": n})
    site.embed(server.url, label__new_message="n: {data.n}")
    page = await open_page(context, site.origin)
    await bell(page).click()
    await row_of(page, 1).click()
    await shows_unread(page, 2)
    every, unread = [page.get_by_role("button", name=name, exact=True) for name in ("All", "Unread")]
    await expect(every).to_have_attribute("aria-pressed", "true")
    async with page.expect_response(re.compile(r"/list\?.*is_new=true")):
        await unread.click()
    await expect(rows(page)).to_have_text([re.compile("n: 2"), re.compile("n: 0")])
    await expect(unread).to_have_attribute("aria-pressed", "true")
    await page.reload()
    await bell(page).click()
    await expect(rows(page)).to_have_count(2)
    await row_of(page, 0).focus()
    await page.keyboard.press("Enter")
    await expect(rows(page)).to_have_text([re.compile("n: 0")])
    await expect(row_of(page, 0)).to_be_focused()  # it took the place of the one that went
    await page.keyboard.press("Enter")
    await expect(page.get_by_text("Nothing unread.")).to_be_visible()
    await expect(panel(page)).to_be_focused()
    await server.create(data={"n": 3})
    await expect(rows(page)).to_have_text([re.compile("n: 3")])
    await every.click()
    await expect(rows(page)).to_have_count(4)
    assert [event for event in await events(page) if event[0] == "notification"] == [["notification", 3]]
    other = await context.new_page()
    await other.goto(site.origin)
    await bell(other).click()
    await expect(rows(other)).to_have_count(4)


async def test_the_filter_finds_older_unread_ones_and_announces_none(
    server: Server, site: Site, context: BrowserContext, database: DB
) -> None:
    seeded(database, 50)
    database.users.update_one({}, {"$set": {f"notifications.{n}.is_new": False for n in range(25, 50)}})
    site.embed(server.url)
    page = await open_page(context, site.origin)
    await bell(page).click()
    await expect(rows(page)).to_have_count(20)
    await page.get_by_role("button", name="Unread", exact=True).click()
    await expect(rows(page)).to_have_count(20)
    await expect(page.locator("notifier-inbox .new")).to_have_count(20)
    await page.get_by_role("button", name="Load more").click()
    await expect(rows(page)).to_have_count(25)
    await expect(page.get_by_role("button", name="Load more")).to_be_hidden()
    assert await events(page) == []
    assert await page.get_by_role("status").text_content() == ""


async def test_a_page_without_storage_has_a_filter(server: Server, site: Site, context: BrowserContext) -> None:
    await server.create()
    site.embed(server.url)
    page = await context.new_page()
    await page.add_init_script("""Object.defineProperty(window, "sessionStorage", {
        get() { throw new DOMException("denied", "SecurityError"); } });""")
    await page.goto(site.origin)
    await bell(page).click()
    await row_of(page, 0).click()
    await page.get_by_role("button", name="Unread", exact=True).click()
    await expect(rows(page)).to_have_count(0)


# --- place --------------------------------------------------------------------------------------------

PLACES = ["top:0;left:0", "top:0;right:0", "bottom:0;left:0", "bottom:0;right:0", "top:45%;left:45%"]


@pytest.mark.parametrize("size", [(1280, 720), (700, 420)], ids=["large", "small"])
async def test_the_panel_is_in_the_window_and_leaves_the_bell_free(
    server: Server, site: Site, browser: Browser, database: DB, size: tuple[int, int]
) -> None:
    seeded(database, 20)
    site.embed(server.url)
    width, height = size
    async with await browser.new_context(viewport={"width": width, "height": height}) as context:
        page = await open_page(context, site.origin)
        for place in PLACES:
            style = f"position:fixed;{place}"
            await page.locator("notifier-inbox").evaluate("(inbox, style) => { inbox.style = style; }", style)
            await bell(page).click()
            await expect(rows(page)).to_have_count(20)
            box, own = await panel(page).bounding_box(), await bell(page).bounding_box()
            assert box
            assert own
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
            assert box["y"] >= 0
            assert box["y"] + box["height"] <= height
            assert box["y"] >= own["y"] + own["height"] - 1 or box["y"] + box["height"] <= own["y"] + 1
            await bell(page).click()
            await expect(panel(page)).to_be_hidden()


async def test_on_a_phone_the_panel_has_a_button_that_closes_it(server: Server, site: Site, browser: Browser) -> None:
    site.embed(server.url)
    async with await browser.new_context(viewport={"width": 390, "height": 700}, has_touch=True) as context:
        page = await open_page(context, site.origin)
        await bell(page).tap()
        await expect(panel(page)).to_be_visible()
        await page.get_by_role("button", name="Close").tap()
        await expect(panel(page)).to_be_hidden()


async def test_the_wheel_at_the_lists_end_does_not_scroll_the_page(
    server: Server, site: Site, context: BrowserContext, database: DB
) -> None:
    seeded(database, 20)
    site.embed(server.url)
    page = await open_page(context, site.origin)
    await page.evaluate("document.body.style.height = '5000px'")
    await bell(page).click()
    await expect(rows(page)).to_have_count(20)
    box = await panel(page).bounding_box()
    assert box
    await page.mouse.move(box["x"] + 50, box["y"] + 200)
    for _ in range(10):
        await page.mouse.wheel(0, 2000)
    left = "(panel) => panel.scrollHeight - panel.clientHeight - panel.scrollTop"

    async def at_end() -> None:
        assert await panel(page).evaluate(left) < 2

    await eventually_async(at_end)
    for _ in range(10):
        await page.mouse.wheel(0, 2000)
    await page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert await page.evaluate("scrollY") == 0
    await page.keyboard.press("Escape")
    await page.mouse.wheel(0, 100)

    async def scrolled() -> None:
        assert await page.evaluate("scrollY") > 0

    await eventually_async(scrolled)  # without the panel, the wheel does


# --- themes -------------------------------------------------------------------------------------------


async def test_the_panel_has_the_colour_scheme_of_its_page(server: Server, site: Site, browser: Browser) -> None:
    site.embed(server.url)
    site.html = site.html.replace('<meta name="color-scheme" content="light dark">', "")
    async with await browser.new_context(color_scheme="dark") as context:
        page = await open_page(context, site.origin)  # a light page on a dark system
        await bell(page).click()
        assert await style(page, "#panel", "backgroundColor") == "rgb(255, 255, 255)"
        await page.evaluate("document.documentElement.style.colorScheme = 'light dark'")
        assert await style(page, "#panel", "backgroundColor") == "rgb(18, 18, 18)"
        await page.locator("notifier-inbox").evaluate("(inbox) => { inbox.style.colorScheme = 'light'; }")
        assert await style(page, "#panel", "backgroundColor") == "rgb(255, 255, 255)"


async def test_counts_can_be_seen_in_forced_colours(server: Server, site: Site, browser: Browser) -> None:
    await server.create()
    site.embed(server.url)
    async with await browser.new_context(forced_colors="active") as context:
        page = await open_page(context, site.origin)
        await shows_new(page, 1)
        behind = await page.evaluate("getComputedStyle(document.body).backgroundColor")
        await bell(page).click()
        await expect(rows(page)).to_have_count(1)
        for element in ("#badge", "#filter-all .count", ".arrived"):
            colours = {await style(page, element, name) for name in ("color", "backgroundColor")}
            assert len(colours) == 2
            assert await style(page, element, "backgroundColor") not in {behind, "rgba(0, 0, 0, 0)"}
        await expect(page.locator("notifier-inbox #filter-all")).to_have_css("border-bottom-width", "2px")


async def test_the_badge_of_many_leaves_the_bell_to_be_seen(
    serve: Any, site: Site, context: BrowserContext, database: DB
) -> None:
    seeded(database, 1234)
    server = await serve(notifications_limit=2000)
    site.embed(server.url)
    page = await open_page(context, site.origin)
    await expect(page.get_by_role("button", name="Notifications, 1,234 new")).to_be_visible()
    badge, own = page.locator("notifier-inbox #badge"), await page.locator("notifier-inbox svg").bounding_box()
    await expect(badge).to_have_text("99+")
    box = await badge.bounding_box()
    assert own
    assert box
    covered = min(own["x"] + own["width"], box["x"] + box["width"]) - max(own["x"], box["x"])
    assert covered <= own["width"] * 0.6
    assert box["y"] + box["height"] <= own["y"] + own["height"] * 0.6


# --- methods and recovery --------------------------------------------------------------------------------


async def test_a_page_opens_closes_and_refreshes_the_bell(server: Server, site: Site, context: BrowserContext) -> None:
    site.embed(server.url)
    page = await open_page(context, site.origin)
    inbox = page.locator("notifier-inbox")
    await shows_new(page, 0)
    await inbox.evaluate("(inbox) => { inbox.open(); inbox.open(); }")
    await expect(panel(page)).to_be_visible()
    await expect(bell(page)).to_have_attribute("aria-expanded", "true")
    await inbox.evaluate("(inbox) => { inbox.close(); inbox.close(); }")
    await expect(panel(page)).to_be_hidden()
    await context.route("**/stream?*", lambda route: route.abort())
    await context.set_offline(offline=True)
    await context.set_offline(offline=False)
    await server.create()
    await inbox.evaluate("(inbox) => inbox.refresh()")
    await shows_unread(page, 1)
    assert await inbox.evaluate("(inbox) => inbox.unread") == 1
    await page.evaluate("""{
        const inbox = document.querySelector("notifier-inbox");
        inbox.remove();
        inbox.open();
    }""")  # an error would fail this


async def test_the_bell_recovers_once_the_browser_is_online_again(
    server: Server, site: Site, context: BrowserContext
) -> None:
    site.embed(server.url)
    page = await context.new_page()
    await page.clock.install()
    await page.goto(site.origin)
    await page.clock.run_for(100)
    await shows_new(page, 0)
    await bell(page).click()
    await context.set_offline(offline=True)
    for _ in range(8):  # until it pauses for many seconds
        async with page.expect_event("requestfailed"):
            await page.clock.run_for(60_000)
    await expect(panel(page).get_by_text("No connection.")).to_be_visible()
    await server.create()
    await context.set_offline(offline=False)
    await page.clock.run_for(50)
    await shows_unread(page, 1)
    await expect(page.get_by_text("No connection.")).to_have_count(0)
