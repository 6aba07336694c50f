"""What pages do with an open bell: move it, take it away, print it, and act on the keys that are pressed in it."""

from __future__ import annotations

from typing import Any

from playwright.async_api import BrowserContext, Page, Route, expect

from tests.bell import bell, panel, rows, shows_new
from tests.browser import Server, Site, hasten, open_page, set_visibility
from tests.waiting import eventually_async

SHORTCUTS = """
    window.pressed = [];
    for (const type of ["keydown", "keypress", "keyup"]) document.addEventListener(type, (event) => {
        pressed.push(event.key);
        if (!/^(BUTTON|INPUT)$/.test(event.target.tagName)) event.preventDefault();
    });
"""
"""A page that takes every key for a shortcut, unless its target is a field or a button."""
STATUS = "notifier-inbox #status"


async def opened(server: Server, site: Site, context: BrowserContext, *, content: str = "", count: int = 1) -> Page:
    """Create a notification, which makes so many; return a page with an open panel."""
    await server.create()
    site.embed(server.url, content=content)
    page = await open_page(context, site.origin)
    await shows_new(page, count)
    await bell(page).click()
    await expect(rows(page)).to_have_count(count)
    return page


async def assert_beside(page: Page) -> None:
    """Check that the panel begins where the bell ends."""
    inner, outer = await bell(page).bounding_box(), await panel(page).bounding_box()
    assert inner
    assert outer
    assert abs(inner["y"] + inner["height"] - outer["y"]) <= 1
    assert abs(inner["x"] - outer["x"]) <= 1


async def test_a_page_takes_no_key_of_the_bell_for_a_shortcut(
    server: Server, site: Site, context: BrowserContext
) -> None:
    """A page sees neither the buttons nor the panel, only <notifier-inbox>."""
    await server.create()
    site.embed(server.url)
    site.script = SHORTCUTS
    page = await open_page(context, site.origin)
    await shows_new(page, 1)
    for key in ("Space", "Enter"):
        await bell(page).press(key)
        await expect(rows(page)).to_have_count(1)
        await page.keyboard.press("ArrowDown")
        await page.keyboard.press("Escape")
        await expect(panel(page)).to_be_hidden()
    assert await page.evaluate("pressed") == []
    await page.keyboard.press("Escape")  # of a closed bell, a key is for the page
    await page.keyboard.press("Control+k")
    assert {"Escape", "k"} <= set(await page.evaluate("pressed"))


async def test_a_page_with_a_scroll_of_its_own_leaves_the_list(
    server: Server, site: Site, context: BrowserContext
) -> None:
    """Libraries for smooth scrolling replace what the wheel does in the whole page."""
    for n in range(19):
        await server.create(data={"n": n})
    site.script = "addEventListener('wheel', (event) => event.preventDefault(), { passive: false });"
    page = await opened(server, site, context, count=20)
    await rows(page).nth(1).hover()
    await page.mouse.wheel(0, 300)
    await eventually_async(lambda: assert_scrolled(page))


async def assert_scrolled(page: Page) -> None:
    assert await panel(page).evaluate("(panel) => panel.scrollTop") == 300


async def test_a_bell_that_leaves_its_page_is_closed(server: Server, site: Site, context: BrowserContext) -> None:
    page = await opened(server, site, context, content="<footer></footer>")
    await page.evaluate("document.querySelector('footer').append(document.querySelector('notifier-inbox'))")
    await expect(panel(page)).to_be_hidden()
    await expect(bell(page)).to_have_attribute("aria-expanded", "false")
    await expect(rows(page)).to_have_count(0)
    await bell(page).click()
    await expect(rows(page)).to_have_count(1)


async def test_the_panel_goes_wherever_the_bell_goes(server: Server, site: Site, context: BrowserContext) -> None:
    page = await opened(server, site, context, content="<footer></footer>")
    await page.evaluate("document.body.prepend('A banner that comes late')")
    await eventually_async(lambda: assert_beside(page))
    await page.evaluate("document.querySelector('footer').moveBefore(document.querySelector('notifier-inbox'), null)")
    await eventually_async(lambda: assert_beside(page))
    await expect(rows(page)).to_have_count(1)
    await server.create()
    await expect(rows(page)).to_have_count(2)


async def test_closing_the_panel_leaves_the_page_where_it_is(
    server: Server, site: Site, context: BrowserContext
) -> None:
    site.style = "body { height: 5000px }"
    page = await opened(server, site, context)
    await page.evaluate("scrollTo(0, 2000)")
    await page.keyboard.press("Escape")
    await expect(bell(page)).to_be_focused()
    assert await page.evaluate("scrollY") == 2000


async def test_nothing_of_the_bell_is_printed(server: Server, site: Site, context: BrowserContext) -> None:
    page = await opened(server, site, context)
    await page.emulate_media(media="print")
    await expect(panel(page)).to_be_hidden()
    await expect(bell(page)).to_be_hidden()
    await page.emulate_media(media="screen")
    await expect(rows(page)).to_be_visible()


async def test_a_bell_that_is_shown_announces_and_forgets(server: Server, site: Site, context: BrowserContext) -> None:
    """Many headers have a bell for phones and one for other screens. A screen reader hears nothing that is hidden."""
    site.embed(server.url)
    page = await open_page(context, site.origin, clock=True)
    await eventually_async(lambda: server.assert_streams_open(1))
    await page.evaluate("""() => {
        const first = document.querySelector("notifier-inbox"), second = first.cloneNode();
        first.style.display = "none";
        first.after(second);
    }""")
    await server.create()
    await expect(page.locator(STATUS)).to_have_text(["", "1 unread: New message"])

    async def assert_quiet() -> None:
        assert await page.locator(STATUS).all_text_contents() == ["", ""]

    await hasten(page, assert_quiet)


async def test_a_removed_bell_listens_to_nothing(server: Server, site: Site, context: BrowserContext) -> None:
    site.embed(server.url)
    page = await open_page(context, site.origin)
    await eventually_async(lambda: server.assert_streams_open(1))
    tools = await context.new_cdp_session(page)

    async def heard() -> list[str]:
        document = (await tools.send("Runtime.evaluate", {"expression": "document"}))["result"]["objectId"]
        found: dict[str, Any] = await tools.send("DOMDebugger.getEventListeners", {"objectId": document})
        return [listener["type"] for listener in found["listeners"]]

    assert await heard() == ["visibilitychange"]
    await page.evaluate("document.querySelector('notifier-inbox').remove()")
    assert await heard() == []
    await set_visibility(page, hidden=False)
    await eventually_async(lambda: server.assert_streams_open(0))


async def test_a_page_of_a_proxy_is_no_stream(server: Server, site: Site, context: BrowserContext) -> None:
    asked: list[str] = []

    async def answer(route: Route) -> None:
        asked.append(route.request.url)
        headers = {"Access-Control-Allow-Origin": "*"}
        await route.fulfill(body="<!DOCTYPE html>", content_type="text/html", headers=headers)

    await context.route("**/stream?*", answer)
    site.embed(server.url, poll="1")
    page = await open_page(context, site.origin, clock=True)

    async def assert_polled() -> None:
        assert await server.count(200, "/list") + await server.count(304, "/list") > 8

    await hasten(page, assert_polled)
    assert len(asked) == 1
