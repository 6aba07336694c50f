"""The bell on odd pages, with odd notifications and for nobody: it shows, skips or says."""

from __future__ import annotations

import re
from typing import Any

from bson import ObjectId
from playwright.async_api import BrowserContext, Route, expect

from tests.bell import bell, panel, rows, shows_unread
from tests.browser import Server, Site, open_page
from tests.client import DB, OTHER, USER


async def test_times_are_shown_whatever_the_page_calls_its_language(
    server: Server, site: Site, context: BrowserContext
) -> None:
    await server.create()
    site.embed(server.url, label__new_message="…")
    page = await open_page(context, site.origin)
    await page.locator("#bell").click()
    for odd in ("", "x", "undefined", "en--US", "de_DE.UTF-8"):
        for lang, now in (("de_DE", "jetzt|vor"), (odd, "now|ago"), ("zh_Hant_TW", "現在|前"), ("en_US", "now|ago")):
            await page.evaluate("(lang) => { document.documentElement.lang = lang; }", lang)
            await expect(rows(page).first.locator("time")).to_have_text(re.compile(now))


async def test_elements_that_are_not_notifications_are_skipped(
    server: Server, site: Site, context: BrowserContext
) -> None:
    async def put_it_in(route: Route) -> None:
        response = await route.fetch()
        body: dict[str, Any] = await response.json()
        body["data"]["list"] = [None, 7, "text", [], {}, {"id": None}, {"id": ""}, *body["data"]["list"]]
        await route.fulfill(response=response, json=body)

    await server.create()
    site.embed(server.url)
    page = await context.new_page()
    await page.route("**/list?*", put_it_in)
    await page.goto(site.origin)
    await bell(page).click()
    await expect(rows(page)).to_have_count(1)
    await server.create(data={"n": 1})
    await expect(rows(page)).to_have_count(2)
    await rows(page).nth(1).click()
    await expect(page.locator("notifier-inbox .new")).to_have_count(1)
    await expect(page.get_by_text("No connection")).to_have_count(0)
    await page.unroute_all(behavior="ignoreErrors")


async def test_an_inbox_without_a_user_says_so_and_asks_only_once(
    server: Server, site: Site, context: BrowserContext
) -> None:
    site.embed(server.url, user__id="undefined", text__invalid="Who are you?")
    page = await open_page(context, site.origin, clock=True)
    await bell(page).click()
    await expect(panel(page).get_by_text("Who are you?")).to_be_visible()
    await page.keyboard.press("Escape")
    await bell(page).click()
    await page.clock.run_for(60_000)
    await page.evaluate("(url) => fetch(url)", f"{server.url}/kinds")  # comes after any list that was asked for
    assert await server.count(422, "/list") == 1
    await expect(panel(page).get_by_text("Who are you?")).to_be_visible()
    await server.create()
    await page.locator("notifier-inbox").evaluate("(inbox, id) => inbox.setAttribute('user-id', id)", USER)
    await shows_unread(page, 1)
    await expect(page.get_by_text("Who are you?")).to_have_count(0)
    await page.locator("notifier-inbox").evaluate("(inbox, id) => inbox.setAttribute('user-id', id)", OTHER)
    await expect(panel(page).get_by_text("Nothing here yet.")).to_be_visible()


async def test_a_mark_that_the_service_refuses_leaves_the_inbox_alone(
    server: Server, site: Site, context: BrowserContext, database: DB
) -> None:
    odd = {"id": "x" * 200, "timestamp": 1, "is_new": True, "key": "new_post"}  # longer than an id may be
    database.users.insert_one({"_id": ObjectId(USER), "email": "a@b.example", "notifications": [odd]})
    site.embed(server.url)
    page = await open_page(context, site.origin)
    await bell(page).click()
    await rows(page).first.click()
    await expect(panel(page).get_by_text("That did not work.")).to_be_visible()
    await shows_unread(page, 1)
    await server.create(data={"n": 1})
    await shows_unread(page, 2)
