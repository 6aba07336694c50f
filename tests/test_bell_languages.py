"""The bell in the language and the direction of its page."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from playwright.async_api import Browser, BrowserContext, Page, Route, expect

from tests.bell import rows
from tests.browser import Serve, Server, Site, assert_accessible, events, open_page
from tests.client import DB, ROOT

LANGUAGES = sorted(path.stem for path in (ROOT / "web/inbox/languages").glob("*.js"))


def texts(module: str) -> dict[str, str]:
    """Return the texts in a module, by name."""
    return dict(re.findall(r'^\t"?([\w-]+)"?: (".*"),$', module, re.MULTILINE))


def english() -> set[str]:
    module = (ROOT / "web/inbox/words.js").read_text()
    (table,) = re.findall(r"const ENGLISH = \{(.*?)\n\};", module, re.DOTALL)
    return set(re.findall(r'(?:^|[\s,])"?([a-z-]+)"?: "', table))


def test_every_language_has_every_text() -> None:
    assert {"ar", "de", "es", "fa", "fr", "he", "ja", "pt", "ru", "tr", "zh", "zh-Hant"} == set(LANGUAGES)
    for language in LANGUAGES:
        table = texts((ROOT / f"web/inbox/languages/{language}.js").read_text())
        assert {name for name in table if not re.fullmatch("unread-(one|two|few|many)", name)} == english()
        assert all(json.loads(text).strip() for text in table.values())


SPOKEN = [
    ("en", "Notifications, {} new", ["1 unread", "2 unread"]),
    ("de-AT", "Mitteilungen, {} neu", ["1 ungelesen", "2 ungelesen"]),
    ("fr", "Notifications, Nouvelles : {}", ["1 non lue", "2 non lues"]),
    ("es_MX", "Notificaciones, Nuevas: {}", ["1 sin leer", "2 sin leer"]),
    ("zh-CN", "通知, {} 条新通知", ["1 条未读", "2 条未读"]),
    ("zh-Hant-TW", "通知, {} 則新通知", ["1 則未讀", "2 則未讀"]),
    ("zh_HK", "通知, {} 則新通知", ["1 則未讀", "2 則未讀"]),
    ("pt-BR", "Notificações, Novas: {}", ["1 não lida", "2 não lidas"]),
    ("ja", "通知, 新着 {} 件", ["未読 1 件", "未読 2 件"]),
    ("tr", "Bildirimler, {} yeni", ["1 okunmam\u0131ş", "2 okunmam\u0131ş"]),
    ("fa", "اعلان‌ها, {} اعلان جدید", ["۱ خوانده‌نشده", "۲ خوانده‌نشده"]),  # noqa: RUF001
    ("he", "התראות, חדשות: {}", ["אחת שלא נקראה", "2 שלא נקראו"]),
    ("ru", "Уведомления, Новых: {}", ["1 непрочитанное", "2 непрочитанных"]),
    ("ar", "الإشعارات, الجديدة: {}", ["إشعار واحد غير مقروء", "إشعاران غير مقروءين"]),
    ("pl", "Notifications, {} new", ["1 unread", "2 unread"]),
]
"""For each language of a page, the bell's name, and the texts for one and for two unread notifications."""
WORDS = (
    'performance.getEntriesByType("resource").map(({ name }) => name).find((name) => name.includes("/inbox/words.js"))'
)
"""The address of the module with its version, as the bell has loaded it."""
UNREAD = """async ([module, count]) =>
    (await import(module)).textsOf(document.querySelector("notifier-inbox"))("unread", count)"""


async def test_the_bell_speaks_the_language_of_the_page(server: Server, site: Site, context: BrowserContext) -> None:
    site.embed(server.url)
    page = await open_page(context, site.origin)
    for count in range(2):
        await server.create()
        for lang, name, unread in SPOKEN:
            await page.evaluate("(lang) => { document.documentElement.lang = lang; }", lang)
            number = "۱۲"[count] if lang == "fa" else f"{count + 1}"
            await expect(page.get_by_role("button", name=name.format(number), exact=True)).to_be_visible()
            assert await page.evaluate(UNREAD, [await page.evaluate(WORDS), count + 1]) == unread[count]


async def test_a_page_gives_its_own_plural_forms(server: Server, site: Site, context: BrowserContext) -> None:
    forms = {"one": "{} новость", "few": "{} новости", "many": "{} новостей"}
    site.embed(server.url, lang="ru", **{f"text__unread__{form}": text for form, text in forms.items()})
    page = await open_page(context, site.origin)
    for count, text in ((1, "1 новость"), (3, "3 новости"), (5, "5 новостей"), (21, "21 новость")):
        while int(await page.locator("#badge").text_content() or 0) < count:
            before = await page.locator("#badge").text_content()
            await server.create()
            await expect(page.locator("#badge")).not_to_have_text(before or "")
        await expect(page.get_by_role("status")).to_have_text(f"{text}: New message")


async def test_a_switch_of_the_language_or_of_a_text_shows_at_once(
    server: Server, site: Site, context: BrowserContext
) -> None:
    await server.create("new_post", data={"n": 1234.5})
    site.embed(server.url, label__new_post="Nr. {data.n}")
    page = await open_page(context, site.origin)
    inbox, first = page.locator("notifier-inbox"), rows(page).first
    await page.locator("#bell").click()
    await expect(first.locator("b")).to_have_text("Nr. 1234.5")
    shown = """new Promise((done) => setTimeout(() =>
        done(document.querySelector("notifier-inbox").shadowRoot.querySelector("b").textContent)))"""
    assert await page.evaluate(f"document.documentElement.lang = 'de'; {shown}") == "Nr. 1234,5"
    await expect(page.get_by_role("dialog", name="Mitteilungen")).to_be_visible()
    await expect(first.locator("time")).to_have_text("jetzt")
    for name, value in (("text-title", "Neues"), ("label-new_post", "Post"), ("url-new_post", "/post")):
        await inbox.evaluate("(inbox, [name, value]) => inbox.setAttribute(name, value)", [name, value])
    assert await page.evaluate(shown) == "Post"
    await expect(page.get_by_role("dialog", name="Neues")).to_be_visible()
    await expect(first.get_by_role("link")).to_have_attribute("href", "/post")
    await inbox.evaluate("(inbox) => inbox.removeAttribute('text-title')")
    await page.evaluate("document.documentElement.lang = 'ru'")
    await expect(page.get_by_role("dialog", name="Уведомления")).to_be_visible()
    assert [event for event in await events(page) if event[0] == "CSP"] == []


async def test_without_the_texts_of_a_language_the_bell_is_english(
    server: Server, site: Site, context: BrowserContext
) -> None:
    await context.route("**/languages/de.js?*", lambda route: route.abort())
    site.embed(server.url, lang="de")
    page = await open_page(context, site.origin)
    await page.get_by_role("button", name="Notifications").click()
    await expect(page.get_by_text("Nothing here yet.")).to_be_visible()


async def right_to_left(server: Server, site: Site, context: BrowserContext) -> Page:
    """Open the bell on a page from right to left. Its notification has data in Latin script."""
    await server.create("new_login", data={"city": "Oslo (Norway)!"})
    site.embed(server.url, lang="ar", label__new_login="تسجيل دخول جديد من {data.city}", url__new_login="/security")
    site.html = site.html.replace('lang="ar"', 'lang="ar" dir="rtl"')
    page = await open_page(context, site.origin)
    await page.locator("#bell").click()
    await expect(page.get_by_role("dialog", name="الإشعارات")).to_be_visible()
    return page


async def test_a_page_from_right_to_left_has_such_a_panel(server: Server, site: Site, context: BrowserContext) -> None:
    page = await right_to_left(server, site, context)
    main, dots = rows(page).locator("> .main"), rows(page).locator("> .menu")
    assert await rows(page).locator("b").evaluate("(b) => getComputedStyle(b).direction") == "rtl"
    await expect(rows(page).locator("b bdi")).to_have_text("Oslo (Norway)!")
    text, time = await bounds(page, "b"), await bounds(page, "time")
    outer, menu = await main.bounding_box(), await dots.bounding_box()
    assert outer
    assert menu
    assert menu["x"] < outer["x"]
    assert text["right"] == pytest.approx(outer["x"] + outer["width"] - 24, abs=1.5)  # beside the mark of an unread one
    assert time["right"] == pytest.approx(text["right"], abs=1.5)
    title, mark_all = await bounds(page, "#title"), await bounds(page, "#all")
    assert mark_all["left"] < title["left"]
    await dots.click()
    await expect(page.get_by_role("menuitem", name="حذف")).to_be_in_viewport(ratio=1)
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("menu")).to_be_hidden()


async def bounds(page: Page, selector: str) -> dict[str, float]:
    """Return the left and right edge of the text in an element of the panel."""
    found: dict[str, float] = await page.locator(f"notifier-inbox {selector}").first.evaluate(
        """(element) => {
            const range = document.createRange();
            range.selectNodeContents(element);
            const { left, right } = range.getBoundingClientRect();
            return { left, right };
        }"""
    )
    return found


async def test_the_panel_fits_an_arabic_page(
    serve: Serve, site: Site, browser: Browser, database: DB, tmp_path: Path
) -> None:
    """Also take the picture of the documentation. SCREENSHOTS=docs puts it there."""
    (tmp_path / "kinds.toml").write_text(ARABIC)
    server = await serve(kinds_file=tmp_path / "kinds.toml")
    for key, data in (
        ("back_in_stock", {"product": "Teapot «Oslo», 0.8 l"}),
        ("invoice_ready", {"number": "INV-2031", "total": 1249.5}),
        ("order_shipped", {"number": 1027}),
        ("new_login", {"city": "Bergen (Norway)"}),
    ):
        await server.create(key, data=data)
    for n, age in enumerate((90_000, 7200, 1800, 60)):  # seconds
        database.users.update_one({}, {"$inc": {f"notifications.{n}.timestamp": -age}})
        database.users.update_one({}, {"$set": {f"notifications.{n}.is_new": n > 1}})
    site.embed(server.url, lang="ar", settings="")
    site.html = site.html.replace('lang="ar"', 'lang="ar" dir="rtl"').replace(">A site<", "><")
    async with await browser.new_context(viewport={"width": 560, "height": 610}, bypass_csp=True) as context:
        await context.route("**/icons/*", draw_icon)
        page = await open_page(context, site.origin)
        await page.evaluate("document.querySelector('h1').textContent = 'متجر الشاي'")
        await page.locator("#bell").click()
        await expect(rows(page)).to_have_count(4)
        await expect(page.get_by_role("button", name="الإعدادات")).to_be_visible()
        box = await page.locator("#panel").bounding_box()
        assert box
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 560
        await page.screenshot(path=Path(os.environ.get("SCREENSHOTS") or tmp_path) / "inbox-rtl.png")


ARABIC = """
[new_login]
label = "تسجيل دخول جديد من {data.city}"
name = "أمان الحساب"
icon = "/icons/b3541e-M8,11V8a4,4,0,0,1,8,0v3M6,11h12v8H6z"
url = "/security"
[order_shipped]
label = "طلبك رقم {data.number} في الطريق إليك"
name = "الطلبات"
icon = "/icons/1a7f5a-M3,7h10v9H3zM13,10h4l4,3v3h-8M7,18v1M17,18v1"
url = "/orders/{data.number}"
[invoice_ready]
label = "الفاتورة {data.number} بقيمة {data.total, number} يورو جاهزة"
name = "الفواتير"
icon = "/icons/0b57d0-M7,4h10v16l-5-3-5,3zM10,8h4M10,12h4"
[back_in_stock]
label = "{data.product} متوفر من جديد"
name = "المتجر"
icon = "/icons/7a3fb0-M5,9h14l-1,10H6zM9,9V7a3,3,0,0,1,6,0v2"
"""


async def draw_icon(route: Route) -> None:
    """Answer with the icon whose colour and path are in the address."""
    colour, path = unquote(route.request.url).rsplit("/", 1)[1].split("-", 1)
    stroke = 'fill="none" stroke="#fff" stroke-width="1.6" stroke-linejoin="round"'
    svg = f'<rect x="-9" y="-9" width="42" height="42" fill="#{colour}"/><path {stroke} d="{path}"/>'
    body = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-6 -6 36 36">{svg}</svg>'
    await route.fulfill(body=body, content_type="image/svg+xml")


async def test_axe_finds_no_fault_from_right_to_left(server: Server, site: Site, context: BrowserContext) -> None:
    page = await right_to_left(server, site, context)
    await page.evaluate("document.querySelector('h1').textContent = 'موقع'")
    await assert_accessible(page)


async def test_a_row_is_in_one_language(serve: Serve, site: Site, context: BrowserContext, tmp_path: Path) -> None:
    (tmp_path / "kinds.toml").write_text(
        '[order]\nlabel = "{data.total, number} paid!"\nlabels = { pl = "Za {data.total, number}" }'
    )
    server = await serve(kinds_file=tmp_path / "kinds.toml")
    await server.create("order", data={"total": 1234567.5})
    site.embed(server.url, text__empty="")
    page = await open_page(context, site.origin)
    await page.locator("#bell").click()
    title, moment = rows(page).locator("b"), rows(page).locator("time")
    said = {
        "ar": ("1,234,567.5 paid!", "now", "ltr", "أخرى|الكل"),
        "th": ("1,234,567.5 paid!", "now", "ltr", "All"),
        "pl": ("Za 1\u00a0234\u00a0567,5", "teraz", "ltr", "All"),
        "de": ("1.234.567,5 paid!", "jetzt", "ltr", "Alle"),
    }
    for lang, (words, now, direction, every) in said.items():
        await page.evaluate("(lang) => { document.documentElement.lang = lang; }", lang)
        await page.evaluate("(dir) => { document.documentElement.dir = dir; }", "rtl" if lang == "ar" else "ltr")
        await expect(page.locator("#filter-all span").first).to_have_text(re.compile(every))
        await expect(title).to_have_text(words)
        await expect(moment).to_have_text(now)
        assert await title.evaluate("(b) => getComputedStyle(b).direction") == direction
        align = "right" if lang == "ar" else "left"  # with the rows beside it
        assert await title.evaluate("(b) => getComputedStyle(b).textAlign") == align
    await page.evaluate("document.documentElement.lang = 'bn'")  # which has digits of its own
    await expect(page.locator("#filter-unread .count")).to_have_text("1")
