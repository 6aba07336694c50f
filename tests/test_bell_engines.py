"""The bell in Firefox and WebKit: what engines do in ways of their own."""

from __future__ import annotations

from typing import Any

from tests.browser import Server, Site
from tests.engines import Engine, Firefox, every_engine
from tests.waiting import eventually_async

ROOT = "document.querySelector('notifier-inbox').shadowRoot"
RECORD = """
    window.events = [];
    addEventListener("notification", ({ detail }) => events.push(detail.data.n));
"""
RESTYLE = """(() => {{
    const sheet = new CSSStyleSheet();
    sheet.replaceSync(`{}`);
    document.adoptedStyleSheets = [sheet];
}})()"""
BOXES = """(() => {
    const inbox = document.querySelector("notifier-inbox"), root = inbox.shadowRoot;
    return ["#bell", "#panel", "li", "li b"].map((selector) => {
        const { top, bottom, left, right } = root.querySelector(selector).getBoundingClientRect();
        return [top, bottom, left, right].map(Math.round);
    });
})()"""
BESIDE = f"""(() => {{
    const [bell, panel] = {BOXES};
    return Math.abs(panel[0] - bell[1]) <= 1 && Math.abs(panel[2] - bell[2]) <= 1;
}})()"""
"""Whether the panel begins where the bell ends."""


async def shows(engine: Engine, expression: str, expected: object) -> None:
    """Wait until this is so in the page."""

    async def check() -> None:
        assert await engine.ask(expression) == expected

    await eventually_async(check, 20)


async def open_panel(engine: Engine, count: int) -> None:
    await shows(engine, "document.querySelector('notifier-inbox').unread", count)
    await engine.ask("document.querySelector('notifier-inbox').open()")
    await shows(engine, f"{ROOT}.querySelectorAll('li').length", count)


def sizes(boxes: list[list[int]]) -> list[Any]:
    return [(bottom - top, right - left) for top, bottom, left, right in boxes]


@every_engine
async def test_an_arrival_is_shown_reported_and_marked(server: Server, site: Site, engine: Engine) -> None:
    site.embed(server.url)
    site.script = RECORD
    site.policy = "require-trusted-types-for 'script'; trusted-types 'none'"
    await engine.open(site.origin)
    await eventually_async(lambda: server.assert_streams_open(1), 20)
    await server.create(data={"n": 1})
    await open_panel(engine, 1)
    await shows(engine, f"{ROOT}.querySelector('#badge').textContent", "")  # it has been seen
    await engine.ask(f"{ROOT}.querySelector('.main').click()")
    await shows(engine, "document.querySelector('notifier-inbox').unread", 0)
    assert await engine.ask("events") == [1]


@every_engine
async def test_bells_of_a_page_share_a_stream(server: Server, site: Site, engine: Engine) -> None:
    site.embed(server.url, content="<notifier-inbox id=twin></notifier-inbox>")
    site.script = f"""
        {RECORD}
        twin.setAttribute("user-id", document.querySelector("notifier-inbox").getAttribute("user-id"));
    """
    await engine.open(site.origin)
    await eventually_async(lambda: server.assert_streams_open(1), 20)
    badges = "[...document.querySelectorAll('notifier-inbox')].map((bell) => bell.unread)"
    await server.create(data={"n": 1})
    await shows(engine, badges, [1, 1])
    await engine.ask("document.querySelector('notifier-inbox').remove()")
    await eventually_async(lambda: server.assert_streams_open(1), 20)
    await server.create(data={"n": 2})
    await shows(engine, badges, [2])
    assert await engine.ask("events") == [1, 2]


@every_engine
async def test_no_style_of_the_page_gets_in(server: Server, site: Site, engine: Engine) -> None:
    await server.create()
    site.embed(server.url)
    await engine.open(site.origin)
    await open_panel(engine, 1)
    plain = sizes(await engine.ask(BOXES))
    hostile = "letter-spacing: .3em; line-height: 3; text-transform: uppercase; font-size: 30px; white-space: pre"
    for style in ("html { font-size: 62.5% }", f"main {{ {hostile} }}", f"* {{ {hostile} }}"):
        await engine.ask(RESTYLE.format(style))
        assert sizes(await engine.ask(BOXES)) == plain, style


@every_engine
async def test_the_panel_stays_beside_the_bell(server: Server, site: Site, engine: Engine) -> None:
    await server.create()
    site.embed(server.url)
    site.style = "h1 { display: none } body { height: 3000px }"
    await engine.open(site.origin)
    for style in (
        "main { transform: translate(90px, 40px) scale(.8); backdrop-filter: blur(2px) }",
        "body { zoom: 1.5 }",
    ):
        await engine.ask(RESTYLE.format(style))
        await open_panel(engine, 1)
        for place in (0, 30, 0):
            await engine.ask(f"scrollTo(0, {place})")
            await shows(engine, BESIDE, expected=True)
        await engine.ask("document.querySelector('notifier-inbox').close()")


@every_engine
async def test_another_document_adopts_the_bell(server: Server, site: Site, engine: Engine) -> None:
    site.embed(server.url, content="<iframe title=frame></iframe>")
    await engine.open(site.origin)
    await eventually_async(lambda: server.assert_streams_open(1), 20)
    padding = """(() => {
        const inbox = document.querySelector("notifier-inbox"), page = document.querySelector("iframe").contentDocument;
        page.body.append(inbox);
        return page.defaultView.getComputedStyle(inbox.shadowRoot.querySelector("#bell")).paddingTop;
    })()"""
    assert await engine.ask(padding) == "10px"
    await server.create()
    await shows(engine, "document.querySelector('iframe').contentDocument.querySelector('notifier-inbox').unread", 1)


@every_engine
async def test_a_page_that_comes_back_is_up_to_date(server: Server, site: Site, engine: Engine) -> None:
    site.embed(server.url)
    site.script = f"""
        {RECORD}
        addEventListener("pageshow", ({{ persisted }}) => {{ window.kept = persisted; }});
    """
    await engine.open(site.origin)
    await eventually_async(lambda: server.assert_streams_open(1), 20)
    await engine.ask("setTimeout(() => { location = '/own.css'; }) && 0")
    await eventually_async(lambda: server.assert_streams_open(0), 20)
    await server.create(data={"n": 1})
    await shows(engine, "location.pathname", "/own.css")
    await engine.ask("setTimeout(() => history.back()) && 0")
    await shows(engine, "document.querySelector('notifier-inbox')?.unread", 1)
    await eventually_async(lambda: server.assert_streams_open(1), 20)
    kept = await engine.ask("window.kept")
    assert kept or isinstance(engine, Firefox)  # which loads a page anew that had an open stream
    assert await engine.ask("events") == ([1] if kept else [])
