"""The bell as a guest in other people's pages, whatever they do to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, BrowserContext, FloatRect, Locator, Page, Route, expect

from tests.bell import bell, panel, rows, shows_new
from tests.browser import Server, Site, events, launch, open_page
from tests.programs import needed
from tests.waiting import eventually_async

PLACE = "notifier-inbox { display: inline-block; min-width: 44px; min-height: 44px; vertical-align: middle; }"
"""The rule of docs/bell.md."""


async def box(locator: Locator) -> FloatRect:
    found = await locator.bounding_box()
    assert found
    return found


async def sized(locator: Locator) -> tuple[float, float]:
    found = await box(locator)
    return round(found["width"], 1), round(found["height"], 1)


# --- loading ------------------------------------------------------------------------------------------


async def test_a_slow_service_holds_up_nothing_and_nothing_moves(
    server: Server, site: Site, context: BrowserContext
) -> None:
    released = asyncio.Event()

    async def hold(route: Route) -> None:
        await released.wait()
        await route.continue_()

    await server.create()
    site.style = PLACE
    site.script = "window.ran = true;"
    site.embed(server.url, content=" before <b id=after>after</b><p id=below>below</p>")
    page = await context.new_page()
    await page.route("**/inbox.js", hold)
    await page.goto(site.origin, wait_until="domcontentloaded")
    assert await page.evaluate("window.ran")
    before = [await box(page.locator(selector)) for selector in ("#after", "#below")]
    released.set()
    await shows_new(page, 1)
    assert [await box(page.locator(selector)) for selector in ("#after", "#below")] == before


# --- styles of the page -----------------------------------------------------------------------------------

STYLES = {
    "font size": "html { font-size: 62.5% }",
    "header": """main { white-space: nowrap; text-align: right; text-transform: uppercase; letter-spacing: .3em;
        word-spacing: 1em; font: italic 700 30px/3 monospace; text-indent: 3em; text-shadow: 1px 1px red }""",
    "all": "* { letter-spacing: .3em; line-height: 3; text-transform: uppercase; font-size: 30px; white-space: pre }",
}


async def test_no_style_of_the_page_gets_into_the_bell(server: Server, site: Site, context: BrowserContext) -> None:
    await server.create("new_post", data={"text": "some text that is longer than a line of the panel can be, surely"})
    site.embed(server.url, show__data="")
    site.style = "html { font-family: sans-serif }"  # the page's font is the bell's
    page = await open_page(context, site.origin)
    await bell(page).click()
    await expect(rows(page)).to_have_count(1)
    parts = bell(page), panel(page), rows(page).first, rows(page).locator("b").first
    plain = [await sized(part) for part in parts]
    for name, style in STYLES.items():
        await page.evaluate(
            """(style) => {
                const sheet = new CSSStyleSheet();
                sheet.replaceSync(style + "* { font-family: sans-serif !important }");
                document.adoptedStyleSheets = [sheet];
            }""",
            style,
        )
        assert [await sized(part) for part in parts] == plain, name
        assert await rows(page).locator("b").first.inner_text() == "New post"


# --- place -------------------------------------------------------------------------------------------

PAGES = {
    "zoom": "body { zoom: 1.5 }",
    "backdrop-filter": "main { position: sticky; top: 0; height: 60px; overflow: hidden; backdrop-filter: blur(2px) }",
    "transform": "main { transform: translate(90px, 40px) scale(.8); contain: paint; height: 90px }",
}


@pytest.mark.parametrize("side", ["left", "right"])
async def test_the_panel_is_beside_the_bell(server: Server, site: Site, context: BrowserContext, side: str) -> None:
    await server.create()
    site.embed(server.url)
    site.style = f"h1 {{ display: none }} main {{ text-align: {side} }} body {{ height: 3000px }}"
    page = await open_page(context, site.origin)
    width = await page.evaluate("innerWidth")
    for name, style in PAGES.items():
        await page.evaluate(
            """(style) => {
                const sheet = new CSSStyleSheet();
                sheet.replaceSync(style);
                document.adoptedStyleSheets = [sheet];
            }""",
            style,
        )
        await bell(page).press("Enter")  # Playwright clicks beside what is zoomed
        await assert_beside(page, name, width)
        if name != "backdrop-filter":  # its header stays where it is
            await page.evaluate("scrollTo(0, 20)")
            await assert_beside(page, name, width)
            await page.evaluate("scrollTo(0, 0)")
        actions = rows(page).get_by_role("button", name="Actions")
        await actions.press("Enter")
        dots, menu = await box(actions), await box(page.get_by_role("menu"))
        assert abs(menu["y"] - dots["y"] - dots["height"]) < 2, name
        assert abs(menu["x"] + menu["width"] - dots["x"] - dots["width"]) < 2, name
        await page.keyboard.press("Escape")
        await page.keyboard.press("Escape")
        await expect(panel(page)).to_be_hidden()


async def assert_beside(page: Page, name: str, width: int) -> None:
    """Check that the panel begins where the bell ends, and is within the window."""
    await page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    own, opened = await box(bell(page)), await box(panel(page))
    assert abs(opened["y"] - own["y"] - own["height"]) < 2, name
    assert opened["x"] >= 0, name
    assert opened["x"] + opened["width"] <= width, name
    assert opened["x"] <= own["x"] + own["width"], name
    assert opened["x"] + opened["width"] >= own["x"], name


# --- policies, documents, browsers --------------------------------------------------------------------


async def test_a_page_may_require_trusted_types(server: Server, site: Site, context: BrowserContext) -> None:
    await server.create()
    site.policy = "require-trusted-types-for 'script'; trusted-types 'none'"
    site.embed(server.url, settings="")
    page = await open_page(context, site.origin)
    await bell(page).click()
    await expect(rows(page)).to_have_count(1)
    await page.get_by_role("button", name="Settings").click()
    assert [event for event in await events(page) if event[0] == "CSP"] == []


async def test_another_document_adopts_the_bell_with_its_styles(
    server: Server, site: Site, context: BrowserContext
) -> None:
    await server.create()
    site.embed(server.url, content="<iframe title=frame></iframe>")
    page = await open_page(context, site.origin)
    await shows_new(page, 1)
    there = await page.evaluate("""() => {
        const inbox = document.querySelector("notifier-inbox"), styles = [];
        for (const page of [document.querySelector("iframe").contentDocument, document]) {
            page.body.append(inbox);
            styles.push(page.defaultView.getComputedStyle(inbox.shadowRoot.querySelector("#bell")).padding);
        }
        return styles;
    }""")
    assert there == ["10px", "10px"]
    await server.create()
    await shows_new(page, 2)


@pytest.fixture
async def whole(browser: Browser) -> AsyncIterator[BrowserContext]:
    """Open a profile in the whole Chromium, which keeps pages for "back". Its shell without windows does not."""
    chromium = await launch(browser.browser_type, needed("chromium"))
    yield await chromium.new_context()
    await chromium.close()


async def test_a_page_that_comes_back_is_up_to_date(server: Server, site: Site, whole: BrowserContext) -> None:
    site.embed(server.url)
    page = await open_page(whole, site.origin)
    await page.evaluate("addEventListener('pageshow', ({ persisted }) => { window.kept = persisted; })")
    await eventually_async(lambda: server.assert_streams_open(1))
    await page.goto(f"{site.origin}/own.css")
    await eventually_async(lambda: server.assert_streams_open(0))
    await server.create(data={"n": 1})
    await page.go_back(wait_until="commit")
    await shows_new(page, 1)
    assert await page.evaluate("window.kept")
    await eventually_async(lambda: server.assert_streams_open(1))
    assert await events(page) == [["notification", 1]]


async def test_a_browser_without_abort_signal_any_will_do(server: Server, site: Site, context: BrowserContext) -> None:
    await context.add_init_script("delete AbortSignal.any;")
    site.embed(server.url)
    page = await open_page(context, site.origin)
    await server.create()
    await shows_new(page, 1)


async def test_a_browser_without_popovers_is_told_that_it_is_too_old(
    server: Server, site: Site, context: BrowserContext
) -> None:
    await context.add_init_script("delete HTMLElement.prototype.popover;")
    site.embed(server.url)
    page = await context.new_page()
    async with page.expect_console_message(lambda message: "too old" in message.text):
        await page.goto(site.origin)
    assert not await page.evaluate("customElements.get('notifier-inbox')")


# --- what it costs a page ---------------------------------------------------------------------------


async def test_a_closed_panel_draws_no_rows(server: Server, site: Site, context: BrowserContext) -> None:
    for n in range(2):
        await server.create(data={"n": n})
    site.embed(server.url)
    site.script = """
        window.drawn = 0;
        document.querySelector("notifier-inbox").format = () => { drawn++; return {}; };
    """
    await context.route("**/seen?*", lambda route: route.abort())  # or else a list comes in between
    page = await open_page(context, site.origin)
    await shows_new(page, 2)
    assert await page.evaluate("drawn") == 0
    await bell(page).click()
    await expect(rows(page)).to_have_count(2)
    turn = "new Promise((done) => setTimeout(done))"  # comes after observers
    assert (
        await page.evaluate(f"""async () => {{
        const inbox = document.querySelector("notifier-inbox");
        drawn = 0;
        for (const element of [inbox, document.documentElement]) {{
            for (const name of ["class", "style", "data-x"]) element.setAttribute(name, "x");
        }}
        await {turn};
        return drawn;
    }}""")
        == 0
    )
    await page.evaluate("document.documentElement.lang = 'de'")
    await expect(page.get_by_role("dialog", name="Mitteilungen")).to_be_visible()
    assert await page.evaluate("drawn") > 0
