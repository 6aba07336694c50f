"""What users decide in the bell: unread again, deleted with a way back, and which e-mails they want."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from playwright.async_api import BrowserContext, Page, Route, expect

from api.auth import sign_token
from tests.bell import bell, open_menu, panel, row_of, rows, shows_unread
from tests.browser import Serve, Server, Site, assert_accessible, events, open_page
from tests.client import DB, OTHER, PROTECTED, SECRET, USER, ours, user
from tests.waiting import eventually_async

UNDO_MS = 6000
"""How long a deletion can be undone."""


def kept(database: DB) -> list[int]:
    """Return the numbers of the notifications that are kept."""
    return [item["data"]["n"] for item in user(database)["notifications"]]


async def assert_kept(database: DB, *numbers: int) -> None:
    def check() -> None:
        assert kept(database) == list(numbers)

    await eventually_async(check)


async def open_inbox(server: Server, site: Site, context: BrowserContext, count: int = 3) -> Page:
    """Open a panel with this many notifications. They are numbered from 0, the oldest."""
    for n in range(count):
        await server.create(data={"n": n})
    site.embed(server.url, label__new_message="n: {data.n}")
    page = await open_page(context, site.origin, clock=True)
    await bell(page).click()
    await expect(rows(page)).to_have_count(count)
    return page


async def delete(page: Page, n: int) -> None:
    await open_menu(page, n)
    await page.get_by_role("menuitem", name="Delete").click()


async def leave_undo(page: Page) -> None:
    """Take the focus and the pointer off the button, and wait until it goes."""
    await page.mouse.move(1, 1)
    await page.keyboard.press("Shift+Tab")
    await page.clock.fast_forward(UNDO_MS)


async def test_a_notification_is_marked_as_unread_again(
    server: Server, site: Site, context: BrowserContext, database: DB
) -> None:
    page = await open_inbox(server, site, context)
    await row_of(page, 1).click()
    await shows_unread(page, 2)
    await open_menu(page, 1)
    await page.get_by_role("menuitem", name="Mark as unread").click()
    await shows_unread(page, 3)
    await expect(rows(page).nth(1)).to_contain_text("Unread")
    await eventually_async(lambda: assert_new(database, is_new=True))
    await open_menu(page, 1)
    await page.get_by_role("menuitem", name="Mark as read").click()
    await shows_unread(page, 2)
    await eventually_async(lambda: assert_new(database, is_new=False))


def assert_new(database: DB, *, is_new: bool) -> None:
    assert user(database)["notifications"][1]["is_new"] is is_new


async def test_a_deleted_notification_goes_for_good_after_a_while(
    server: Server, site: Site, context: BrowserContext, database: DB
) -> None:
    page = await open_inbox(server, site, context)
    await delete(page, 1)
    await expect(rows(page)).to_have_text([re.compile("n: 2"), re.compile("n: 0")])
    await shows_unread(page, 2)
    await expect(page.get_by_role("status")).to_have_text("Deleted.")
    await expect(page.get_by_role("button", name="Undo")).to_be_focused()
    await page.mouse.move(1, 1)
    await server.create(data={"n": 3})  # the list that follows still has it
    await expect(rows(page)).to_have_count(3)
    await expect(rows(page)).not_to_contain_text(["n: 1"])
    assert kept(database) == [0, 1, 2, 3]
    undo = page.get_by_role("button", name="Undo")
    await page.clock.fast_forward(3 * UNDO_MS)
    await expect(undo).to_be_focused()  # nobody takes it from under the finger
    await leave_undo(page)
    await assert_kept(database, 0, 2, 3)
    await expect(undo).to_be_hidden()
    await expect(rows(page)).to_have_count(3)
    await shows_unread(page, 3)


async def test_a_deletion_is_undone(server: Server, site: Site, context: BrowserContext, database: DB) -> None:
    page = await open_inbox(server, site, context)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    await delete(page, 1)
    await page.keyboard.press("Enter")  # the focus is on the button
    await expect(rows(page)).to_have_count(3)
    await shows_unread(page, 3)
    await expect(page.get_by_role("button", name="Undo")).to_be_hidden()
    await page.keyboard.press("Escape")
    await expect(panel(page)).to_be_hidden()
    assert not [url for url in requests if "/delete" in url]
    assert kept(database) == [0, 1, 2]


@pytest.mark.parametrize("end", ["another deletion", "closed", "removed", "left", "another user"])
async def test_a_deletion_is_sent_once_it_can_no_longer_be_undone(
    server: Server, site: Site, context: BrowserContext, database: DB, end: str
) -> None:
    page = await open_inbox(server, site, context)
    await page.clock.pause_at(4_000_000_000)  # its timers stand still from now on
    await delete(page, 1)
    await expect(rows(page)).to_have_count(2)
    inbox = page.locator("notifier-inbox")
    match end:
        case "another deletion":
            await delete(page, 0)
            await expect(rows(page)).to_have_count(1)
        case "closed":
            await page.keyboard.press("Escape")
        case "removed":
            await inbox.evaluate("(inbox) => inbox.remove()")
        case "left":
            await page.goto("about:blank")
        case "another user":
            await inbox.evaluate("(inbox, id) => inbox.setAttribute('user-id', id)", OTHER)
    await assert_kept(database, 0, 2)


async def test_a_refused_deletion_brings_the_row_back_and_says_so(
    server: Server, site: Site, context: BrowserContext, database: DB
) -> None:
    page = await open_inbox(server, site, context)
    await page.route("**/delete?*", lambda route: route.abort())
    await delete(page, 1)
    await delete(page, 0)
    await expect(panel(page).get_by_text("That did not work.")).to_be_visible()
    await expect(rows(page)).to_have_text([re.compile("n: 1"), re.compile("n: 0")])
    await page.unroute("**/delete?*")
    await leave_undo(page)
    await assert_kept(database, 0, 1)
    await expect(panel(page).get_by_text("That did not work.")).to_be_hidden()


async def test_a_deletion_in_another_tab_is_followed(
    server: Server, site: Site, context: BrowserContext, database: DB
) -> None:
    page = await open_inbox(server, site, context)
    await delete(page, 1)
    database.users.update_one({}, {"$pull": {"notifications": {"data.n": 1}}})
    async with page.expect_response("**/delete?*") as answer:
        await delete(page, 0)  # sends the first one
    assert (await answer.value).status == 404
    await leave_undo(page)
    await assert_kept(database, 0)
    await expect(rows(page)).to_have_count(1)
    await expect(page.get_by_text("That did not work.")).to_have_count(0)


async def test_the_menu_is_used_with_the_keyboard_alone(server: Server, site: Site, context: BrowserContext) -> None:
    page = await open_inbox(server, site, context)
    press = page.keyboard.press
    dots = rows(page).nth(1).get_by_role("button", name="Actions: n: 1")
    mark, remove = [page.get_by_role("menuitem", name=name) for name in ("Mark as read", "Delete")]
    await row_of(page, 1).focus()
    await press("Tab")
    await expect(dots).to_be_focused()
    await press("Enter")
    await expect(mark).to_be_focused()
    for key, item in (("ArrowDown", remove), ("ArrowDown", mark), ("ArrowUp", remove), ("Home", mark), ("End", remove)):
        await press(key)
        await expect(item).to_be_focused()
    await press("Escape")
    await expect(page.get_by_role("menu")).to_be_hidden()
    await expect(panel(page)).to_be_visible()
    await expect(dots).to_be_focused()
    await press("Enter")
    await press("Tab")
    await expect(page.get_by_role("menu")).to_be_hidden()
    await expect(dots).to_be_focused()
    await press("Enter")
    await press("End")
    await press("Enter")
    await expect(page.get_by_role("button", name="Undo")).to_be_focused()
    await expect(rows(page)).to_have_count(2)


async def test_another_rows_button_opens_its_menu_the_same_closes_it(
    server: Server, site: Site, context: BrowserContext
) -> None:
    page = await open_inbox(server, site, context)
    await row_of(page, 0).click()
    menu = await open_menu(page, 2)
    await expect(menu.get_by_role("menuitem", name="Mark as read")).to_be_visible()
    await open_menu(page, 0)
    await expect(menu.get_by_role("menuitem", name="Mark as unread")).to_be_visible()
    await open_menu(page, 0)
    await expect(menu).to_be_hidden()


# --- settings ---------------------------------------------------------------------------------------------

KINDS = """
[invoice_ready]
email = true
email_after = "10m"
email_batch = "kind"
label = "Invoice {data.number} of {data.name|somebody} is ready"
labels = { de = "Rechnung {data.number} liegt bereit" }
[new_login]
email = true
required = true
[weekly_report]
email = true
email_after = "2d"
name = "Your week"
names = { de = "Ihre Woche" }
icon = "📈"
[new_post]
"""


async def open_settings(serve: Serve, site: Site, context: BrowserContext, folder: Path) -> Page:
    (folder / "kinds.toml").write_text(KINDS)
    server = await serve(kinds_file=folder / "kinds.toml", **PROTECTED)
    await server.create("new_post")
    site.embed(server.url, settings="", token=sign_token(SECRET, USER, 3600))
    page = await open_page(context, site.origin)
    await bell(page).click()
    await expect(rows(page)).to_have_count(1)
    await page.get_by_role("button", name="Settings").click()
    await expect(page.get_by_role("switch")).to_have_count(3)
    return page


def preferences(database: DB) -> object:
    return ours(database).get("preferences")


async def test_a_user_chooses_which_e_mails_to_get(
    serve: Serve, site: Site, context: BrowserContext, database: DB, tmp_path: Path
) -> None:
    page = await open_settings(serve, site, context, tmp_path)
    invoice = page.get_by_role(
        "switch", name=re.compile("^Invoice … of somebody is ready By e-mail, if unread after 10 minutes · together")
    )
    login = page.get_by_role("switch", name=re.compile("New login.*Always on"))
    report = page.get_by_role("switch", name=re.compile("^Your week By e-mail, if unread after 2 days$"))
    await expect(rows(page)).to_be_hidden()
    await expect(login).to_be_disabled()
    for switch in (invoice, login, report):
        await expect(switch).to_be_checked()
    await invoice.click()
    await expect(invoice).not_to_be_checked()

    def stored() -> None:
        assert preferences(database) == {"invoice_ready": {"email": False}}

    await eventually_async(stored)
    await page.evaluate("document.documentElement.lang = 'de'")
    await expect(page.get_by_role("switch", name=re.compile("^Rechnung … liegt bereit"))).not_to_be_checked()
    in_german = "Ihre Woche Per E-Mail, wenn in 2 Tagen noch ungelesen"
    await expect(page.get_by_role("switch", name=in_german)).to_be_checked()
    await page.evaluate("document.documentElement.lang = 'en'")
    await page.get_by_role("button", name="Settings").click()
    await expect(page.get_by_role("switch")).to_have_count(0)
    await expect(rows(page)).to_be_visible()
    await page.reload()
    await bell(page).click()
    await page.get_by_role("button", name="Settings").click()
    await expect(invoice).not_to_be_checked()
    await expect(report).to_be_checked()
    assert [event for event in await events(page) if event[0] == "CSP"] == []


async def test_a_refused_change_is_undone_with_a_message(
    serve: Serve, site: Site, context: BrowserContext, tmp_path: Path
) -> None:
    page = await open_settings(serve, site, context, tmp_path)
    may_fail = asyncio.Event()

    async def refuse(route: Route) -> None:
        await may_fail.wait()
        await route.abort()

    await page.route("**/preferences?*", refuse)
    report = page.get_by_role("switch", name=re.compile("^Your week By e-mail, if unread after 2 days$"))
    await report.focus()
    await page.keyboard.press("Space")
    await expect(report).not_to_be_checked()
    may_fail.set()
    await expect(panel(page).get_by_text("That did not work.")).to_be_visible()
    await expect(report).to_be_checked()
    await expect(report).to_be_focused()


async def test_settings_that_cannot_be_loaded_say_so(
    serve: Serve, site: Site, context: BrowserContext, tmp_path: Path
) -> None:
    await open_settings(serve, site, context, tmp_path)
    page = await context.new_page()
    await page.route("**/preferences?*", lambda route: route.abort())
    await page.goto(site.origin)
    await bell(page).click()
    await page.get_by_role("button", name="Settings").click()
    await expect(panel(page).get_by_text("That did not work.")).to_be_visible()


async def test_settings_are_off_by_default(server: Server, site: Site, context: BrowserContext) -> None:
    page = await open_inbox(server, site, context, 1)
    await expect(page.get_by_role("button", name="Settings")).to_have_count(0)


async def test_axe_finds_no_fault_in_the_settings(
    serve: Serve, site: Site, context: BrowserContext, tmp_path: Path
) -> None:
    page = await open_settings(serve, site, context, tmp_path)
    await assert_accessible(page)
