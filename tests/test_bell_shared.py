"""The bells of one browser that show one inbox: one stream, and each event once."""

from __future__ import annotations

import pytest
from playwright.async_api import BrowserContext, Page, expect

from tests.bell import bell, shows_new
from tests.browser import Server, Site, events, open_page, set_visibility
from tests.client import DB, OTHER, USER
from tests.waiting import eventually_async


async def arrived(*pages: Page) -> list[object]:
    """Return the numbers of the notifications that these pages reported, in order of the pages."""
    return [number for page in pages for name, number in await events(page) if name == "notification"]


async def listed(server: Server, least: int, most: int) -> None:
    """Check how often the list was asked for."""
    assert least <= await server.count(200, "/list") + await server.count(304, "/list") <= most


async def test_eight_tabs_share_a_stream_and_report_once(server: Server, site: Site, context: BrowserContext) -> None:
    """A browser opens only six connections to a host by HTTP/1.1."""
    site.embed(server.url)
    pages = [await open_page(context, site.origin)]
    await eventually_async(lambda: server.assert_streams_open(1))
    pages += [await open_page(context, site.origin) for _ in range(7)]
    await eventually_async(lambda: listed(server, len(pages), 2 * len(pages)))
    await server.create(data={"n": 1})
    for page in pages:
        await shows_new(page, 1)
    # At the start, when it changed, and where a tab heard the stream begin before it had its list.
    await listed(server, 2 * len(pages), 3 * len(pages))
    first, *others = pages
    assert await arrived(*pages) == [1]
    assert await arrived(first) == [1]
    await first.close()
    await eventually_async(lambda: server.assert_streams_open(1))
    await server.create(data={"n": 2})
    for page in others:
        await shows_new(page, 2)
    assert await arrived(*others) == [2]


async def test_two_bells_on_a_page_share_a_stream_and_report_once(
    server: Server, site: Site, context: BrowserContext
) -> None:
    site.embed(server.url)
    page = await open_page(context, site.origin)
    await shows_new(page, 0)
    await page.evaluate(
        """(other) => {
        const inbox = document.querySelector("notifier-inbox");
        const [twin, stranger] = [inbox.cloneNode(), inbox.cloneNode()];
        stranger.setAttribute("user-id", other);
        inbox.after(twin, stranger);
    }""",
        OTHER,
    )
    await eventually_async(lambda: server.assert_streams_open(2))  # another user is another inbox
    await server.create(data={"n": 1})
    badges = page.locator("notifier-inbox #badge")
    await expect(badges).to_have_text(["1", "1", ""])
    assert await arrived(page) == [1]
    await page.evaluate("document.querySelector('notifier-inbox').remove()")
    await eventually_async(lambda: server.assert_streams_open(2))
    await server.create(data={"n": 2})
    await expect(badges).to_have_text(["2", ""])
    assert await arrived(page) == [1, 2]


@pytest.mark.parametrize(
    "script",
    [
        "delete Navigator.prototype.locks;",
        "delete globalThis.BroadcastChannel;",
        "globalThis.BroadcastChannel = class { constructor() { throw new DOMException('', 'SecurityError'); } };",
    ],
    ids=["no locks", "no channels", "cookies blocked in Firefox"],
)
async def test_without_locks_or_channels_each_tab_is_on_its_own(
    server: Server, site: Site, context: BrowserContext, script: str
) -> None:
    await context.add_init_script(script)
    site.embed(server.url)
    pages = [await open_page(context, site.origin) for _ in range(2)]
    for page in pages:
        await shows_new(page, 0)
    await eventually_async(lambda: server.assert_streams_open(2))
    await server.create(data={"n": 1})
    for page in pages:
        await shows_new(page, 1)
        assert await arrived(page) == [1]


async def test_a_hidden_tab_does_not_repeat_what_another_reported(
    server: Server, site: Site, context: BrowserContext
) -> None:
    site.embed(server.url)
    shown, hidden = [await open_page(context, site.origin) for _ in range(2)]
    await eventually_async(lambda: listed(server, 2, 4))
    await set_visibility(hidden, hidden=True)
    await server.create(data={"n": 1})
    await shows_new(shown, 1)
    await set_visibility(shown, hidden=True)
    await eventually_async(lambda: server.assert_streams_open(0))
    await set_visibility(hidden, hidden=False)
    await shows_new(hidden, 1)
    await server.create(data={"n": 2})
    await shows_new(hidden, 2)
    assert await arrived(shown, hidden) == [1, 2]


# --- the counts, and inboxes without a bell -----------------------------------------------------------


async def test_a_page_hears_of_the_counts(server: Server, site: Site, context: BrowserContext, database: DB) -> None:
    await server.create(data={"n": 1})
    database.users.update_one({}, {"$inc": {"notifications.0.timestamp": -60}})  # what comes next is of a later second
    site.script = """
        window.counts = [];
        document.querySelector("notifier-inbox")["onnotifier-count"] = ({ detail }) => {
            counts.push([detail.unread, detail.unseen]);
        };
    """
    site.embed(server.url)
    page = await open_page(context, site.origin)

    async def counted(*expected: list[int]) -> None:
        assert await page.evaluate("counts") == list(expected)

    await eventually_async(lambda: counted([1, 1]))
    await bell(page).click()
    await eventually_async(lambda: counted([1, 1], [1, 0]))
    await page.keyboard.press("Escape")
    await eventually_async(lambda: server.assert_streams_open(1))
    await server.read_all()
    # By then, the bell has told that all was seen that was there when it was closed.
    await eventually_async(lambda: counted([1, 1], [1, 0], [0, 0]))
    await server.create(data={"n": 2})
    await eventually_async(lambda: counted([1, 1], [1, 0], [0, 0], [1, 1]))


async def test_a_page_draws_an_inbox_of_its_own(server: Server, site: Site, context: BrowserContext) -> None:
    for n in range(25):
        await server.create(data={"n": n})
    site.embed(server.url)
    site.html = site.html.replace("<notifier-inbox", "<ul></ul><div hidden").replace("</notifier-inbox>", "</div>")
    site.html = site.html.replace(f"{server.url}/inbox.js", f"{server.url}/inbox/client.js")
    site.script = f"""
        import {{ createInbox }} from "{server.url}/inbox/client.js";
        const inbox = (window.inbox = createInbox({{ userId: "{USER}" }}));
        window.heard = [];
        inbox.addEventListener("change", () => {{
            const rows = inbox.state.items.map(({{ data, is_new }}) => `${{data.n}}${{is_new ? "!" : ""}}`);
            document.querySelector("ul").replaceChildren(...rows.map((row) => {{
                const li = document.createElement("li");
                li.textContent = row;
                return li;
            }}));
        }});
        for (const type of ["notification", "count"]) inbox.addEventListener(type, () => heard.push(type));
        inbox.start();
    """
    page = await open_page(context, site.origin)
    shown = page.locator("li")
    await expect(shown).to_have_count(20)
    await page.evaluate("inbox.more()")
    await expect(shown).to_have_count(25)
    await page.evaluate("inbox.mark(inbox.state.items[0], false)")
    await expect(shown.first).to_have_text("24")
    await page.evaluate("inbox.delete(inbox.state.items[0])")
    await expect(shown.first).to_have_text("23!")
    await eventually_async(lambda: server.assert_streams_open(1))
    await server.create(data={"n": 25})
    await expect(shown.first).to_have_text("25!")
    await page.evaluate("inbox.markAll()")
    await expect(shown.first).to_have_text("25")
    assert await page.evaluate("inbox.state.unread") == 0
    assert (await page.evaluate("heard"))[:1] == ["count"]
    assert (await page.evaluate("heard")).count("notification") == 1
    await page.evaluate("inbox.stop()")
    await eventually_async(lambda: server.assert_streams_open(0))
