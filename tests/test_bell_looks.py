"""How the bell looks: rows with icons under their days, states, tabs, switches, and what one touches."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path
from typing import Any

from bson import ObjectId
from playwright.async_api import Browser, BrowserContext, Page, Route, expect

from api.auth import sign_token
from tests.bell import bell, open_menu, panel, row_of, rows
from tests.browser import Serve, Server, Site, assert_accessible, open_page
from tests.client import DB, PROTECTED, ROOT, SECRET, USER

KINDS = """
[order]
email = true
label = "Order {data.number} is on its way"
name = "Orders"
icon = "🚚"
url = "/orders"
[order.names]
de = "Bestellungen"
[answer]
name = "Answers"
icon = "/missing.png"
[build_failed]
collapse = true
[login]
email = true
required = true
"""
HOUR, DAY = 3600, 86_400
ROWS: list[tuple[str, int, dict[str, Any], dict[str, Any]]] = [
    ("order", 0, {"number": 7}, {}),
    ("answer", 0, {}, {}),
    ("build_failed", 0, {}, {"count": 3}),
    ("order", DAY, {"number": "Z" + "\u0335\u0321\u0340" * 60}, {"is_new": False}),
    ("order", 40 * DAY, {"number": 5}, {"is_new": False}),
]
"""Newest first: the kind, seconds from now, data, and further fields."""


def seed(database: DB, seeded: list[tuple[str, int, dict[str, Any], dict[str, Any]]]) -> None:
    items = [
        {"id": f"n{n}", "timestamp": time.time() - age, "is_new": True, "key": key, "data": data, **more}
        for n, (key, age, data, more) in enumerate(seeded)
    ]
    database.users.insert_one({"_id": ObjectId(USER), "email": "a@b.example", "notifications": items[::-1]})


async def shop(serve: Serve, folder: Path) -> Server:
    (folder / "kinds.toml").write_text(KINDS)
    return await serve(kinds_file=folder / "kinds.toml", **PROTECTED)


TOKEN = sign_token(SECRET, USER, 3600)


async def test_rows_have_names_icons_and_days(
    serve: Serve, site: Site, context: BrowserContext, database: DB, tmp_path: Path
) -> None:
    seed(database, ROWS)
    server = await shop(serve, tmp_path)
    site.embed(server.url, token=TOKEN)
    page = await open_page(context, site.origin)
    await bell(page).click()
    await expect(rows(page)).to_have_count(5)
    await expect(rows(page).locator("b")).to_have_text(
        ["Order 7 is on its way", "Answers", "Build failed", re.compile("^Order Z"), "Order 5 is on its way"]
    )
    await expect(rows(page).locator(".name")).to_have_text(["Orders", "", "", "Orders", "Orders"])
    await expect(rows(page).nth(0).locator(".icon")).to_have_text("🚚")
    for n in (1, 2):  # a picture that cannot be shown, and a kind without one
        await expect(rows(page).nth(n).locator(".icon svg")).to_be_visible()
    await expect(rows(page).nth(2).locator("small")).to_have_text(re.compile("now3\u00d7"))
    days = [await heading.inner_text() for heading in await page.get_by_role("heading", level=3).all()]
    assert days[:2] == ["Today", "Yesterday"]
    assert re.match(r"\w+day, \w+ \d+", days[2])
    await expect(rows(page).nth(4).locator("time")).to_have_text(re.compile(r"^\d+:\d\d\s[AP]M$"))
    # marks above a letter cover no other row
    assert await row_of(page, 3).evaluate("(row) => getComputedStyle(row).contain") == "paint"
    parts = "({ shadowRoot }) => [...shadowRoot.querySelectorAll('[part]')].map(({ part }) => part.value)"
    documented = (ROOT / "docs/bell.md").read_text().partition("`::part()` styles")[2].partition(".\n")[0]
    assert set(await page.locator("notifier-inbox").evaluate(parts)) == set(re.findall("`([a-z-]+)`", documented))
    await page.evaluate("document.documentElement.lang = 'de'")
    await expect(rows(page).nth(0).locator(".name")).to_have_text("Bestellungen")
    await expect(page.get_by_role("heading", level=3).nth(0)).to_have_text("heute")


# --- states -------------------------------------------------------------------------------------------


async def is_centred(page: Page, text: str) -> None:
    words = panel(page).get_by_text(text)
    await expect(words).to_be_visible()
    inner, outer = await words.bounding_box(), await panel(page).bounding_box()
    assert inner
    assert outer
    assert abs(inner["x"] + inner["width"] / 2 - outer["x"] - outer["width"] / 2) < 2


async def test_loading_empty_and_error_are_centred(server: Server, site: Site, browser: Browser) -> None:
    site.embed(server.url)
    async with await browser.new_context(bypass_csp=True) as context:
        released = asyncio.Event()

        async def hold(route: Route) -> None:
            await released.wait()
            await route.continue_()

        await context.route("**/list?*", hold)
        page = await open_page(context, site.origin)
        await bell(page).click()
        await is_centred(page, "Loading…")
        await assert_accessible(page)
        released.set()
        await is_centred(page, "Nothing here yet.")
        await assert_accessible(page)
        await context.unroute_all(behavior="wait")
        await context.set_offline(offline=True)
        await page.locator("notifier-inbox").evaluate("(inbox) => inbox.refresh()")
        await is_centred(page, "No connection.")
        await assert_accessible(page)


async def test_a_panel_that_cannot_be_loaded_says_so_and_tries_again(
    server: Server, site: Site, context: BrowserContext
) -> None:
    await context.route("**/inbox/list.js", lambda route: route.abort(), times=1)
    await server.create()
    site.embed(server.url)
    page = await open_page(context, site.origin)
    await page.get_by_role("button", name="Notifications, 1 new").focus()
    await page.keyboard.press("Enter")
    await expect(rows(page)).to_have_count(1)


# --- sizes --------------------------------------------------------------------------------------------

TOO_SMALL = """(panel) => [panel.getRootNode().querySelector("#bell"), ...panel.querySelectorAll("button, a, label")]
    .map((one) => ({ name: one.id || one.className, box: one.getBoundingClientRect() }))
    .filter(({ box }) => box.width && (box.width < 44 || box.height < 44)).map(({ name }) => name)"""
OUTSIDE = """(panel) => {
    const outer = panel.getBoundingClientRect();
    return [...panel.querySelectorAll("#header button, #header span")].filter((one) => !one.closest("#all"))
        .map((one) => one.getBoundingClientRect())
        .filter(({ left, right, width }) => width && (left < outer.left || right > outer.right)).length;
}"""


async def test_tabs_with_counts_fit_and_touch_targets_are_large(
    serve: Serve, site: Site, context: BrowserContext, database: DB, tmp_path: Path
) -> None:
    seed(database, ROWS * 24)
    server = await shop(serve, tmp_path)
    site.embed(server.url, token=TOKEN, settings="")
    page = await open_page(context, site.origin)
    await bell(page).click()
    await expect(rows(page)).to_have_count(20)
    inside = page.locator("notifier-inbox #panel")
    for lang, unread in (
        ("de", "Ungelesen"),
        ("ru", "Непрочитанные"),
        ("fa", "\u062e\u0648\u0627\u0646\u062f\u0647\u200c\u0646\u0634\u062f\u0647"),
        ("en", "Unread"),
    ):
        await page.evaluate("(lang) => { document.documentElement.lang = lang; }", lang)
        tab = page.get_by_role("button", name=unread, exact=True)
        await expect(tab).to_be_visible()
        assert (
            await tab.evaluate("(tab) => tab.scrollWidth <= tab.clientWidth && tab.getBoundingClientRect().height")
            == 44
        )
        assert await inside.evaluate(OUTSIDE) == 0
        assert await inside.evaluate("(panel) => panel.scrollWidth <= panel.clientWidth")
    await expect(page.locator("notifier-inbox .count")).to_have_text(["100", "60"])
    await open_menu(page, 1)
    assert await inside.evaluate(TOO_SMALL) == []
    await page.get_by_role("menuitem", name="Delete").click()
    await expect(page.get_by_role("button", name="Undo")).to_be_visible()
    assert await inside.evaluate(TOO_SMALL) == []
    # the ring of what has the focus is whole: neither the header nor the bar below covers it
    await row_of(page, 12).focus()
    await page.keyboard.press("Shift+Tab")
    for _ in range(12):
        await page.keyboard.press("Shift+Tab")
        assert await inside.evaluate("""(panel) => {
            const { top, bottom } = panel.getRootNode().activeElement.getBoundingClientRect();
            return top >= panel.querySelector("#header").getBoundingClientRect().bottom - 1
                && bottom <= panel.querySelector("#removed").getBoundingClientRect().top + 1;
        }""")
    await page.get_by_role("button", name="Settings").click()
    switch = page.get_by_role("switch", name="Orders")
    await expect(switch).to_be_checked()
    await expect(page.locator("label .icon").first).to_have_text("🚚")
    assert await inside.evaluate(TOO_SMALL) == []
    box = await switch.bounding_box()
    assert box
    assert box["width"] > 1.5 * box["height"]
    assert await switch.evaluate("(one) => getComputedStyle(one).appearance") == "none"


async def test_on_a_phone_a_touch_beside_the_sheet_closes_it(server: Server, site: Site, browser: Browser) -> None:
    await server.create()
    site.embed(server.url, content="<button id=under style='position:fixed;top:9em;left:9em'>Under</button>")
    site.script = "document.querySelector('#under').onclick = () => { events.push(['reached', null]); };"
    look: dict[str, Any] = {"viewport": {"width": 390, "height": 700}, "has_touch": True, "bypass_csp": True}
    async with await browser.new_context(**look) as context:
        page = await open_page(context, site.origin)
        await bell(page).tap()
        await expect(rows(page)).to_have_count(1)
        box, under = await panel(page).bounding_box(), await page.locator("#under").bounding_box()
        assert box
        assert under
        assert (box["x"], box["width"], box["y"] + box["height"]) == (0, 390, 700)
        await assert_accessible(page)
        await page.touchscreen.tap(under["x"] + 5, under["y"] + 5)
        await expect(panel(page)).to_be_hidden()
        assert await page.evaluate("events") == []
        await page.touchscreen.tap(under["x"] + 5, under["y"] + 5)
        await page.wait_for_function("events.length")
