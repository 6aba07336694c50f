"""The bell in use: keyboard, screen reader, language, and notifications that try to be markup."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

from bson import ObjectId
from playwright.async_api import Browser, BrowserContext, expect

from tests.bell import bell, panel, row_of, rows, shows_new, shows_unread
from tests.browser import Serve, Server, Site, assert_accessible, events, open_page
from tests.client import DB, USER
from tests.waiting import eventually_async

HOSTILE = "<img src=x onerror=\"events.push(['HACKED'])\"><script>events.push(['HACKED'])</script>"


async def test_keys_and_data_are_shown_as_text_only(
    server: Server, site: Site, context: BrowserContext, database: DB
) -> None:
    notifications = [
        {"id": "a", "is_new": True, "key": HOSTILE, "data": {HOSTILE: HOSTILE, "list": [HOSTILE]}, "timestamp": 1},
        {"id": "b", "is_new": True, "key": "new_login", "data": {"city": HOSTILE}, "timestamp": "yesterday"},
        {"id": HOSTILE, "key": None, "data": "none", "timestamp": 1e300},
        {"id": "d", "is_new": False, "key": {"a": 1}, "data": None},
        {"id": "e", "is_new": False, "key": "$&", "data": {"x": None, "y": "z" * 10_000}, "timestamp": -1},
    ]
    database.users.insert_one({"_id": ObjectId(USER), "email": "a@b.example", "notifications": notifications[::-1]})
    label = "Sign-in from {data.city}, {data.nothing}"
    site.embed(server.url, show__data="", label__new_login=label, text__arrived="<b>{}</b>")
    page = await open_page(context, site.origin)
    await expect(page.locator("notifier-inbox #bell")).to_have_accessible_name("Notifications, <b>2</b>")
    await page.locator("notifier-inbox #bell").click()
    await expect(rows(page)).to_have_count(5)
    await expect(rows(page).nth(0)).to_contain_text(f"{HOSTILE}: {HOSTILE} · list: [")
    await expect(rows(page).nth(1)).to_contain_text(f"Sign-in from {HOSTILE}, ")
    assert len(await rows(page).nth(4).inner_text()) < 300
    await expect(page.locator("notifier-inbox").locator("img[src], script")).to_have_count(0)
    assert await events(page) == []


async def test_everything_works_with_the_keyboard_alone(server: Server, site: Site, context: BrowserContext) -> None:
    for n in range(25):
        await server.create(data={"n": n})
    site.embed(server.url, content="<button>After</button>")
    page = await open_page(context, site.origin)
    await shows_new(page, 25)
    press = page.keyboard.press
    await press("Tab")
    await expect(bell(page)).to_be_focused()
    await expect(bell(page)).to_have_attribute("aria-expanded", "false")
    await press("Enter")
    await expect(bell(page)).to_have_attribute("aria-expanded", "true")
    await expect(panel(page)).to_be_focused()
    await expect(panel(page)).to_have_css("outline-offset", "0px")  # the header would cover a ring inside
    await expect(rows(page)).to_have_count(20)  # what is in the panel comes when somebody opens it
    await press("Tab")
    for name in ("All", "Unread", "Mark all as read"):
        await expect(page.get_by_role("button", name=name, exact=True)).to_be_focused()
        await press("Tab")
    for _ in range(2):
        await press("Tab")
    await expect(row_of(page, 1)).to_be_focused()
    await server.create(data={"n": 25})
    await expect(row_of(page, 2)).to_be_focused()  # the focus stays on the notification
    await press("Space")
    await shows_unread(page, 25)
    await expect(rows(page).nth(2)).not_to_contain_text("Unread")
    await press("Escape")
    await expect(panel(page)).to_be_hidden()
    await expect(bell(page)).to_be_focused()
    await expect(bell(page)).to_have_attribute("aria-expanded", "false")
    await press("Space")
    await expect(panel(page)).to_be_focused()
    await press("Shift+Tab")
    await expect(bell(page)).to_be_focused()
    await press("Enter")
    await expect(panel(page)).to_be_hidden()
    await press("Tab")
    await expect(page.get_by_role("button", name="After")).to_be_focused()


async def test_a_click_outside_closes_the_panel_and_reaches_its_target(
    server: Server, site: Site, context: BrowserContext
) -> None:
    site.embed(server.url, content='<p align="right"><button>After</button></p>')
    page = await open_page(context, site.origin)
    await bell(page).click()
    await expect(panel(page)).to_be_visible()
    await page.mouse.click(5, 500)
    await expect(panel(page)).to_be_hidden()
    await bell(page).click()
    await page.get_by_role("button", name="After").click()
    await expect(panel(page)).to_be_hidden()
    await expect(page.get_by_role("button", name="After")).to_be_focused()


async def test_a_screen_reader_announces_new_notifications(server: Server, site: Site, context: BrowserContext) -> None:
    site.embed(server.url, label__new_login="Sign-in from {data.city}")
    page = await open_page(context, site.origin)
    await eventually_async(lambda: server.assert_streams_open(1))
    status = page.get_by_role("status")
    await expect(status).to_have_text("")
    await server.create("new_login", data={"city": "Oslo"})
    await expect(status).to_have_text("1 unread: Sign-in from Oslo")
    await bell(page).click()
    await expect(row_of(page, 0)).to_have_accessible_name("Unread: Sign-in from Oslo now")


async def test_axe_finds_no_fault_in_the_bell(server: Server, site: Site, browser: Browser) -> None:
    for n in range(21):
        await server.create(data={"n": n, "text": "some text that is longer than a line of the panel can be"})
    await server.create("new_post")
    site.embed(server.url, show__data="", url__new_post="/post")
    in_its_header = r"<header>\2</header><main>\1"  # which is the only banner of the page
    site.html = re.sub(r"<main>(.*)(<notifier-inbox.*</notifier-inbox>)", in_its_header, site.html)
    async with await browser.new_context(bypass_csp=True) as context:
        page = await open_page(context, site.origin)
        await shows_new(page, 22)
        await assert_accessible(page)
        await bell(page).click()
        await rows(page).nth(1).click()
        await shows_unread(page, 21)
        await assert_accessible(page)
        await rows(page).nth(1).get_by_role("button", name="Actions").click()
        await assert_accessible(page)
        await page.get_by_role("menuitem", name="Delete").click()
        await rows(page).nth(1).hover()
        await server.create()
        await expect(panel(page).get_by_role("button", name="1 new")).to_be_visible()
        await assert_accessible(page)
        await page.mouse.move(1, 1)
        await expect(panel(page).get_by_role("button", name="1 new")).to_be_hidden()
        await page.get_by_role("button", name="Mark all as read").click()
        await shows_unread(page, 0)
        await assert_accessible(page)
        await context.set_offline(offline=True)
        await page.locator("notifier-inbox").evaluate("(inbox) => inbox.refresh()")
        await expect(panel(page).get_by_text("No connection.")).to_be_visible()
        await assert_accessible(page)


async def test_a_page_sets_texts_language_and_icon(server: Server, site: Site, context: BrowserContext) -> None:
    await server.create("new_post", data={"author": "Ann"})
    given = {
        "text__title": "Mitteilungen",
        "text__arrived": "{} neue",
        "text__all": "Alle gelesen",
        "text__new": "Neu:",
    }
    site.embed(server.url, lang="de", label__new_post="Beitrag von {data.author}", **given)
    site.html = site.html.replace("></notifier-inbox>", "><i id=own>!</i></notifier-inbox>")
    page = await open_page(context, site.origin)
    await page.clock.install()
    await page.get_by_role("button", name="Mitteilungen, 1 neue").click()
    await expect(page.locator("#own")).to_be_visible()
    await expect(page.get_by_role("button", name="Alle gelesen")).to_be_visible()
    await expect(rows(page).first).to_have_text(re.compile("Neu: Beitrag von Annjetzt"))
    await page.clock.set_system_time(datetime.now(UTC) + timedelta(days=1))
    await server.create("new_post", data={"author": "Ben"})
    await expect(rows(page)).to_have_text([re.compile("^gestern"), re.compile("^Neu")])


async def test_reduced_motion_and_high_contrast_are_respected(server: Server, site: Site, browser: Browser) -> None:
    await server.create()
    site.embed(server.url)
    async with await browser.new_context(forced_colors="active", reduced_motion="reduce") as context:
        page = await open_page(context, site.origin)
        await bell(page).click()
        await expect(rows(page).first).to_contain_text("Unread")
        assert await page.evaluate("document.getAnimations({ subtree: true }).length") == 0
        mark = await row_of(page, 0).evaluate("(row) => getComputedStyle(row, '::before').content")
        assert mark.startswith('"●')


LABELS = """
[order_shipped]
label = "Order {data.number} of {data.by.name|somebody} is on its way"
labels = { de = "Bestellung {data.number} ist unterwegs", pt-BR = "O pedido {data.number} {data.constructor.name}" }
[answer_given]
label = "There is an answer"
[just_a_name]
"""


LABELLED = {
    "en": "Order 7 of Ann is on its way",
    "de-AT": "Bestellung 7 ist unterwegs",
    "": "Order 7 of Ann is on its way",
    "pt_br": "O pedido 7 …",
    "pt": "Order 7 of Ann is on its way",
}


async def test_a_row_shows_its_kinds_label_in_the_pages_language(
    serve: Serve, site: Site, context: BrowserContext, tmp_path: Path
) -> None:
    (tmp_path / "kinds.toml").write_text(LABELS)
    server = await serve(kinds_file=tmp_path / "kinds.toml")
    await server.create("just_a_name", data={"n": 1})
    await server.create("answer_given", data={"n": 1})
    await server.create("order_shipped", data={"number": 7, "by": {"name": "Ann"}})
    site.embed(server.url, label__answer_given="{data.name|Somebody} answered, {data.nothing}")
    page = await open_page(context, site.origin)
    await page.locator("#bell").click()
    for lang, shipped in LABELLED.items():
        await page.evaluate("(lang) => { document.documentElement.lang = lang; }", lang)
        await expect(rows(page).nth(0).locator("b")).to_have_text(shipped, use_inner_text=True)
        await expect(rows(page).nth(0)).not_to_contain_text("number")
        await expect(rows(page).nth(1).locator("b")).to_have_text("Somebody answered, …")
        await expect(rows(page).nth(2).locator("b")).to_have_text("Just a name")
    assert await events(page) == []


async def test_without_the_kinds_a_row_says_the_name_of_its_kind(
    server: Server, site: Site, context: BrowserContext
) -> None:
    await context.route("**/kinds", lambda route: route.abort())
    await server.create("new_post")
    site.embed(server.url)
    page = await open_page(context, site.origin)
    await bell(page).click()
    await expect(rows(page).locator("b")).to_have_text("New post")
    await server.create("new_message")
    await expect(rows(page).nth(0).locator("b")).to_have_text("New message")
