"""What a row of the bell says, and where it leads."""

from __future__ import annotations

import re
from itertools import zip_longest
from pathlib import Path
from typing import Any

from bson import ObjectId
from playwright.async_api import BrowserContext, Page, expect

from tests.bell import bell, panel, row_of, rows, shows_unread
from tests.browser import Serve, Server, Site, events, open_page
from tests.client import DB, TARGET, USER, user
from tests.waiting import eventually_async

KINDS = """
[order_shipped]
label = "Order {data.number} is on its way"
url = "/orders/{target_id}?from={data.from|bell}"
[invoice_ready]
label = "Invoice of {data.total, currency EUR} ({data.total, number}), due {data.due}"
url = "https://pay.example/{data.number}"
"""


async def open_rows(context: BrowserContext, site: Site, count: int) -> Page:
    page = await open_page(context, site.origin)
    await page.locator("#bell").click()
    await expect(rows(page)).to_have_count(count)
    return page


async def test_a_row_with_a_url_is_a_link(
    serve: Serve, site: Site, context: BrowserContext, tmp_path: Path, database: DB
) -> None:
    (tmp_path / "kinds.toml").write_text(KINDS)
    server = await serve(kinds_file=tmp_path / "kinds.toml")
    await server.create("order_shipped", target_id=TARGET, data={"number": 1027, "from": "a/b?"})
    await server.create("order_shipped", data={"number": 1028})  # without a target, it leads nowhere
    await server.create("invoice_ready", data={"number": "..", "total": 1234.5, "due": "2026-12-24"})
    await server.create("invoice_ready", data={"number": 7})
    site.embed(server.url)
    page = await open_rows(context, site, 4)
    paying, without, nowhere, order = [row_of(page, n) for n in range(4)]
    await expect(order).to_have_role("link")
    await expect(order).to_have_attribute("href", f"/orders/{TARGET}?from=a%2Fb%3F")
    await expect(paying).to_have_attribute("href", "https://pay.example/7")
    for row in (nowhere, without):
        await expect(row).to_have_role("button")
    await expect(without.locator("b")).to_have_text("Invoice of €1,234.50 (1,234.5), due Dec 24, 2026")
    await order.click()
    await page.wait_for_url(f"**/orders/{TARGET}?from=a%2Fb%3F")
    await eventually_async(lambda: assert_marked(database))


def assert_marked(database: DB) -> None:
    """Check that the oldest notification is read."""
    assert user(database)["notifications"][0]["is_new"] is False


async def test_a_click_with_a_modifier_opens_a_tab_and_keeps_the_panel(
    server: Server, site: Site, context: BrowserContext
) -> None:
    for _ in range(2):
        await server.create("new_post")
    site.embed(server.url, url__new_post="#post")
    page = await open_rows(context, site, 2)
    async with context.expect_page() as opened:
        await row_of(page, 0).click(modifiers=["Control"])
    await shows_unread(page, 1)
    async with context.expect_page():
        await row_of(page, 1).click(button="middle")
    await shows_unread(page, 0)
    await expect(panel(page)).to_be_visible()
    assert await events(page) == []
    assert (await opened.value).url.endswith("#post")


async def test_a_router_takes_over_a_link(server: Server, site: Site, context: BrowserContext) -> None:
    await server.create("new_message")
    await server.create("new_post", target_id=TARGET)
    site.embed(server.url, url__new_post="/posts/{target_id}")
    site.script = """addEventListener("notifier-select", (event) => {
        event.preventDefault();
        history.pushState({}, "", event.url ?? "/none");
    });"""
    page = await open_rows(context, site, 2)
    await row_of(page, 0).click()
    await page.wait_for_url(f"**/posts/{TARGET}")
    await expect(panel(page)).to_be_hidden()
    await shows_unread(page, 1)
    await bell(page).click()
    await row_of(page, 1).click()
    await page.wait_for_url("**/none")
    await expect(panel(page)).to_be_hidden()
    await shows_unread(page, 0)


async def test_a_link_is_followed_even_if_the_filter_removes_its_row(
    server: Server, site: Site, context: BrowserContext
) -> None:
    await server.create("new_post")
    site.embed(server.url, url__new_post="/post")
    page = await open_rows(context, site, 1)
    await page.get_by_role("button", name="Unread", exact=True).click()
    await row_of(page, 0).click()
    await page.wait_for_url("**/post")


UNSAFE = [
    "javascript:events.push(['HACKED'])",
    "//evil.example",
    "/\\evil.example",
    "/\t/evil.example",
    " /a",
    "data:,x",
    "blob:http://a/b",
    "http://[",
]


async def test_an_address_of_the_data_that_is_not_safe_makes_no_link(
    server: Server, site: Site, context: BrowserContext
) -> None:
    urls: list[object] = [*UNSAFE, "", 7, {}, None]
    for url in urls:
        await server.create("new_post", data={"url": url})
    site.embed(server.url)
    site.script = """document.querySelector("notifier-inbox").format =
        ({ data }) => ({ url: data.url, icon: data.url });"""
    page = await open_rows(context, site, len(urls))
    for n in range(len(urls)):
        await expect(row_of(page, n)).to_have_role("button")
        await expect(row_of(page, n).locator("img")).to_have_count(0)


SAFE = ["https://a.example/b?c#d", "http://a.example", "/a", "a/b", "?a", "#a", "../a"]


async def test_only_an_address_that_is_safe_makes_a_link(server: Server, site: Site, context: BrowserContext) -> None:
    await server.create("new_post")
    site.embed(server.url)
    page = await open_rows(context, site, 1)
    for unsafe, safe in zip_longest(UNSAFE, SAFE, fillvalue="/"):
        for url in (safe, unsafe):
            await page.locator("notifier-inbox").evaluate(
                "(inbox, url) => inbox.setAttribute('url-new_post', url)", url
            )
            if url in SAFE:
                await expect(row_of(page, 0)).to_have_attribute("href", url)
            elif url in UNSAFE:
                await expect(row_of(page, 0)).to_have_role("button")


async def test_a_function_of_the_page_says_what_a_row_shows(
    server: Server, site: Site, context: BrowserContext
) -> None:
    notifications: list[dict[str, Any]] = [{"n": n} for n in range(5)]
    for data in notifications:
        await server.create("new_post", data=data)
    site.embed(server.url, label__new_post="Post {data.n}", url__new_post="/posts/{data.n}")
    site.script = """document.querySelector("notifier-inbox").format = ({ data: { n } }) => [
        { title: "<b>Title</b>", body: "Body", url: "/own", icon: "/icon.png" },
        {},
        undefined,
        { title: null, url: null },
        { get title() { throw new Error("odd"); } },
    ][n];"""
    page = await open_rows(context, site, 5)
    await expect(rows(page).nth(4).locator("b")).to_have_text("<b>Title</b>")
    await expect(rows(page).nth(4).locator(".body")).to_have_text("Body")
    await expect(rows(page).nth(4).locator("img")).to_have_attribute("src", "/icon.png")
    await expect(row_of(page, 4)).to_have_attribute("href", "/own")
    for n in (1, 2, 4):
        await expect(row_of(page, 4 - n).locator("b")).to_have_text(f"Post {n}")
        await expect(row_of(page, 4 - n)).to_have_attribute("href", f"/posts/{n}")
    await expect(rows(page).nth(1).locator("b")).to_have_text("")
    await expect(row_of(page, 1)).to_have_role("button")
    await page.locator("notifier-inbox").evaluate("(inbox) => { inbox.format = () => ({ title: 'Other' }); }")
    await expect(rows(page).nth(1).locator("b")).to_have_text("Other")


FILLED = [
    ("en", "{data.nested.deeper.name} of {data.nothing|Somebody}", "Ann of Somebody"),
    ("en", "{data.nothing} came, {data.empty|nobody} left", "… came, nobody left"),
    ("en", "{data.count} {data.count, number}", "1234567.5 1,234,567.5"),
    ("de", "{data.count} {data.count, number}", "1234567,5 1.234.567,5"),
    ("de", "{data.digits, number}", "12.345"),
    ("en", "{data.day} / {data.day, date}", "Mar 9, 2026 / Mar 9, 2026"),
    ("en", "{data.at}", "Mar 9, 2026, 11:30 PM"),
    ("en", "{data.at, date} at {data.at, time}", "Mar 9, 2026 at 11:30 PM"),
    ("de", "{data.seconds, date} um {data.seconds, time}", "09.03.2026 um 23:30"),
    ("en", "{data.yes} {data.list} {data.zero}", 'true ["a","b"] 0'),
    ("en", "{data.text, date} {data.text, number} {data.odd_day}", "Tuesday Tuesday 2026-99-99"),
    ("en", "{data.no_day} {data.no_moment}", "2026-02-30 2026-02-30T10:00:00Z"),
    ("en", "{data.constructor.name} {data.__proto__} {data}", "… … {"),
]


async def test_placeholders_are_filled_in_the_language_of_the_page(
    server: Server, site: Site, context: BrowserContext
) -> None:
    data = {
        "nested": {"deeper": {"name": "Ann"}},
        "empty": "",
        "count": 1234567.5,
        "digits": "12345",
        "zero": 0,
        "day": "2026-03-09",
        "at": "2026-03-09T23:30:00Z",
        "seconds": 1773099000,
        "yes": True,
        "list": ["a", "b"],
        "text": "Tuesday",
        "odd_day": "2026-99-99",
        "no_day": "2026-02-30",
        "no_moment": "2026-02-30T10:00:00Z",
    }
    await server.create("new_post", data=data)
    site.embed(server.url)
    page = await open_rows(context, site, 1)
    for lang, label, shown in FILLED:
        await page.evaluate("(lang) => { document.documentElement.lang = lang; }", lang)
        await page.locator("notifier-inbox").evaluate(
            "(inbox, label) => inbox.setAttribute('label-new_post', label)", label
        )
        await expect(rows(page).locator("b")).to_have_text(re.compile(f"^{re.escape(shown)}".replace("\\ ", r"\s")))


async def test_a_long_value_is_cut_where_a_character_ends(
    server: Server, site: Site, context: BrowserContext, database: DB
) -> None:
    texts = "x" * 150 + "👩🏽‍🚀" * 150, "x" * 199 + "é", "e" + "\u0301" * 9000
    items = [{"id": f"n{n}", "key": "new_post", "data": {"text": text}} for n, text in enumerate(texts)]
    database.users.insert_one({"_id": ObjectId(USER), "email": "a@b.example", "notifications": items})
    site.embed(server.url, label__new_post="{data.text}")
    page = await open_rows(context, site, 3)
    await expect(rows(page).nth(2).locator("b")).to_have_text("x" * 150 + "👩🏽‍🚀" * 49 + "…")
    await expect(rows(page).nth(1).locator("b")).to_have_text("x" * 199 + "é")
    await expect(rows(page).nth(0).locator("b")).to_have_text("…")


async def test_raw_data_is_shown_only_if_asked_for(server: Server, site: Site, context: BrowserContext) -> None:
    await server.create("new_post", data={"ip": "2001:db8::1", "at": {"city": "Oslo"}})
    site.embed(server.url)
    page = await open_rows(context, site, 1)
    await expect(rows(page)).not_to_contain_text("2001")
    await page.locator("notifier-inbox").evaluate("(inbox) => inbox.setAttribute('show-data', '')")
    await expect(rows(page).locator(".body")).to_have_text('ip: 2001:db8::1 · at: {"city":"Oslo"}')


async def test_the_time_of_a_row_is_for_machines_and_on_hover_too(
    server: Server, site: Site, context: BrowserContext, database: DB
) -> None:
    items = [
        {"id": "a", "key": "new_post", "timestamp": 1773099000},
        {"id": "b", "key": "new_post", "timestamp": "yesterday"},
        {"id": "c", "key": "new_post"},
    ]
    database.users.insert_one({"_id": ObjectId(USER), "email": "a@b.example", "notifications": items[::-1]})
    site.embed(server.url)
    page = await open_rows(context, site, 3)
    time = rows(page).nth(0).locator("time")
    await expect(time).to_have_attribute("datetime", "2026-03-09T23:30:00.000Z")
    assert (await time.get_attribute("title") or "").replace("\u202f", " ") == "Mar 9, 2026, 11:30 PM"
    for n in (1, 2):
        await expect(rows(page).nth(n).locator("time")).to_be_empty()
        assert await rows(page).nth(n).locator("time").get_attribute("datetime") is None
