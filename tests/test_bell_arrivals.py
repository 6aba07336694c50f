"""What arrives while somebody reads: nothing moves under the pointer, all is reported, one click reads one."""

from __future__ import annotations

from bson import ObjectId
from playwright.async_api import BrowserContext, Page, expect

from tests.bell import bell, panel, row_of, rows, shows_unread
from tests.browser import Server, Site, events, open_page
from tests.client import DB, USER
from tests.waiting import eventually_async


async def open_inbox(server: Server, site: Site, context: BrowserContext, count: int) -> Page:
    """Open a panel with this many notifications. They are numbered from 0, the oldest."""
    for n in range(count):
        await server.create(data={"n": n})
    site.embed(server.url, label__new_message="n: {data.n}")
    page = await open_page(context, site.origin)
    await bell(page).click()
    await expect(rows(page)).to_have_count(min(count, 20))
    return page


async def shown(page: Page, *numbers: int) -> None:
    """Wait until the first rows are those of these notifications."""
    for n, number in enumerate(numbers):
        await expect(row_of(page, n).locator("b")).to_have_text(f"n: {number}")


async def test_no_row_slips_under_the_pointer(server: Server, site: Site, context: BrowserContext) -> None:
    page = await open_inbox(server, site, context, 3)
    await row_of(page, 1).hover()
    for n in (3, 4):
        await server.create(data={"n": n})
    await expect(panel(page).get_by_role("button", name="2 new")).to_be_visible()
    await shows_unread(page, 5)
    await shown(page, 2, 1, 0)
    await page.mouse.move(1, 1)  # off the list
    await shown(page, 4, 3, 2, 1, 0)
    await expect(panel(page).get_by_role("button", name="new")).to_be_hidden()
    await row_of(page, 1).hover()
    await server.create(data={"n": 5})
    await expect(panel(page).get_by_role("button", name="1 new")).to_be_visible()
    await page.mouse.down()
    await page.mouse.up()
    await shows_unread(page, 5)
    assert (await events(page))[-1] == ["notifier-select", 3]


async def test_removed_rows_stay_until_the_pointer_leaves(
    server: Server, site: Site, context: BrowserContext, database: DB
) -> None:
    page = await open_inbox(server, site, context, 4)
    await row_of(page, 2).hover()
    database.users.update_one({}, {"$pull": {"notifications": {"data.n": {"$in": [2, 3]}}}})  # as another program does
    for n in (0, 1):
        await expect(rows(page).nth(n)).to_have_js_property("inert", value=True)
    await shown(page, 3, 2, 1, 0)
    await page.mouse.down()
    await page.mouse.up()
    await shows_unread(page, 1)
    assert (await events(page))[-1] == ["notifier-select", 1]
    await page.mouse.move(1, 1)
    await expect(rows(page)).to_have_count(2)
    await shown(page, 1, 0)
    await expect(rows(page).nth(0)).to_have_js_property("inert", value=False)


async def test_arrivals_above_a_scrolled_list_wait_for_a_click(
    server: Server, site: Site, context: BrowserContext
) -> None:
    page = await open_inbox(server, site, context, 15)
    await row_of(page, 14).scroll_into_view_if_needed()
    await page.mouse.move(1, 1)
    await server.create(data={"n": 15})
    arrived = panel(page).get_by_role("button", name="1 new")
    await expect(arrived).to_be_visible()
    await shown(page, 14, 13)
    await arrived.press("Enter")
    await shown(page, 15, 14)
    await expect(row_of(page, 0)).to_be_focused()
    await expect(row_of(page, 0)).to_be_in_viewport(ratio=1)
    await row_of(page, 15).scroll_into_view_if_needed()
    await server.create(data={"n": 16})
    await expect(arrived).to_be_visible()
    await row_of(page, 0).scroll_into_view_if_needed()
    await page.locator("notifier-inbox #panel").evaluate("(panel) => { panel.scrollTop = 0; }")
    await shown(page, 16, 15)


async def test_a_double_click_reads_one(server: Server, site: Site, context: BrowserContext, database: DB) -> None:
    page = await open_inbox(server, site, context, 3)
    await page.get_by_role("button", name="Unread", exact=True).click()
    await row_of(page, 0).dblclick()  # the first click takes the row away
    await shows_unread(page, 2)
    await shown(page, 1, 0)

    def stored() -> None:
        (found,) = database.users.find({})
        assert [item["is_new"] for item in found["notifications"]] == [True, True, False]

    await eventually_async(stored)
    assert await events(page) == [["notifier-select", 2]]


async def test_arrivals_while_the_page_was_hidden_are_reported(
    server: Server, site: Site, context: BrowserContext, database: DB
) -> None:
    page = await open_inbox(server, site, context, 1)
    await context.set_offline(offline=True)
    items = [
        {"id": f"n{n}", "timestamp": 4e9 + n, "is_new": True, "key": "new_message", "data": {"n": n}}
        for n in range(1, 31)
    ]
    database.users.update_one({"_id": ObjectId(USER)}, {"$push": {"notifications": {"$each": items}}})
    await context.set_offline(offline=False)
    await page.locator("notifier-inbox").evaluate("(inbox) => inbox.refresh()")
    await shows_unread(page, 31)
    await expect(page.get_by_role("status")).to_have_text("31 unread: n: 30")
    assert await events(page) == [["notification", n] for n in range(1, 31)]
    await expect(rows(page)).to_have_count(20)
