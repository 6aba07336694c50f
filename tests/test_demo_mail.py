"""The e-mails on the demo page: their HTML is shown as it is, and runs and loads nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.message import EmailMessage

import pytest
from playwright.async_api import BrowserContext, FrameLocator, Page, expect
from yarl import URL

from tests.browser import events, open_page
from tests.client import KEY
from tests.demo import Local, RunLocally
from tests.waiting import eventually_async

HOSTILE = """<html><head><title>x</title>
<meta http-equiv="refresh" content="0; url={trap}/refresh"><base href="{trap}/base/">
<link rel="stylesheet" href="{trap}/style"><link rel="prefetch" href="{trap}/prefetch">
<link rel="icon" href="{trap}/icon"><link rel="preconnect" href="{trap}"><link rel="dns-prefetch" href="{trap}">
<link rel="preload" as="image" href="{trap}/preload"><link rel="modulepreload" href="{trap}/modulepreload">
<style>@import "{trap}/import"; body {{ background: url({trap}/background) }}
@font-face {{ font-family: f; src: url({trap}/font) }} p {{ font-family: f; color: rgb(1, 2, 3) }}</style>
<script src="{trap}/script"></script>
<script>fetch("{trap}/fetch"); top.document.title = parent.owned = 1</script></head>
<body onload="location = '{trap}/onload'"><p>Shown</p>
<img src="{trap}/image" onerror="new Image().src = '{trap}/onerror'"><img id="inline" src="data:image/gif;base64,
R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"><img srcset="{trap}/srcset 1x" loading="eager">
<picture><source srcset="{trap}/source"><img src="relative"></picture>
<video poster="{trap}/poster" src="{trap}/video" autoplay></video>
<object data="{trap}/object"></object><embed src="{trap}/embed"><iframe src="{trap}/frame"></iframe><iframe srcdoc="<img
src={trap}/srcdoc>"></iframe><svg><image href="{trap}/svg"/><use href="{trap}/use#a"/></svg>
<form action="{trap}/form" method="post"><input name="a" value="1" autofocus><button>Send</button>
<button formaction="{trap}/formaction" formtarget="_top">Send to the top</button></form>
<a href="{trap}/link" ping="{trap}/ping">A link</a> <a href="{trap}/self" target="_self">Here</a>
<a href="{trap}/blank" target="_blank">In a window</a> <a href="{trap}/top" target="_top">In place of the page</a>
<a href="javascript:top.owned=1">A script</a></body></html>"""
NO_EMAILS = ["2.eml", "text.eml", "..%2F..%2Fx.eml", "%2e%2e", "%00", "%FF"]
LOADED = b"""/script /style /import /background /font /image /onerror /srcset /source /preload /modulepreload /prefetch
/video /poster /object /embed /frame /srcdoc /svg /fetch /onload""".split()
CLICKS = ["Send", "Send to the top", "A link", "In a window", "In place of the page", "A script", "Here"]


class Trap:
    """A server that counts connections."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.url = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Trap]:
        """Listen."""
        async with await asyncio.start_server(self._connected, "127.0.0.1", 0) as server:
            self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            yield self

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.requests.append((await reader.read(100)).partition(b"\r\n")[0])
        writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
        writer.close()


@pytest.fixture
async def trap() -> AsyncIterator[Trap]:
    """Run a server that nobody should call."""
    async with Trap().running() as running:
        yield running


def deliver(local: Local, html: str, name: str = "1.eml") -> None:
    """Put an e-mail with this HTML into the mailbox."""
    message = EmailMessage()
    message["To"], message["Subject"] = "a@b.example", "Hello <b>"
    message.set_content("The text.")
    message.add_alternative(html, subtype="html")
    (local.mailbox / name).write_bytes(message.as_bytes())


def frame(page: Page) -> FrameLocator:
    return page.frame_locator("#mails iframe")


async def test_html_is_shown_with_styles_but_runs_and_loads_nothing(
    context: BrowserContext, run_locally: RunLocally, trap: Trap
) -> None:
    local = await run_locally()
    deliver(local, HOSTILE.format(trap=trap.url))
    page = await open_page(context, local.url)
    await expect(page.locator("#mails strong")).to_have_text("Hello <b>")
    await page.get_by_text("As text").click()
    await expect(page.locator("#mails pre")).to_have_text("The text.")
    shown = frame(page).get_by_text("Shown")
    await expect(shown).to_be_visible()
    await expect(shown).to_have_css("color", "rgb(1, 2, 3)")
    await expect(page.locator("#mails iframe")).to_have_attribute("title", "HTML of “Hello <b>”")
    await expect(page.locator("#mails iframe")).to_have_attribute("sandbox", "")
    assert await frame(page).locator("#inline").evaluate("image => image.naturalWidth") == 1
    for name in CLICKS:
        await frame(page).get_by_text(name, exact=True).click()
        if name != CLICKS[-1]:
            await expect(shown).to_be_visible()  # even the frame stays
    assert (page.url, len(context.pages), await page.title()) == (local.url, 1, "notifier")
    await load_unprotected(context)  # so the frame has had the time to do the same
    assert trap.requests == []
    assert await page.evaluate("window.owned") is None
    assert [event for event in await events(page) if event[0] == "CSP"] in ([], [["CSP", "frame-src"]])  # "Here"


async def load_unprotected(context: BrowserContext) -> None:
    """Open the same HTML on a page without these protections, and wait until all that loads by itself has."""
    async with Trap().running() as trap:
        page = await context.new_page()
        await page.set_content(HOSTILE.format(trap=trap.url), wait_until="commit")

        def heard() -> None:
            assert {request.split()[1] for request in trap.requests if request} >= set(LOADED)

        await eventually_async(heard)


async def test_a_new_email_leaves_the_frames_of_the_others_alone(
    context: BrowserContext, run_locally: RunLocally
) -> None:
    local = await run_locally()
    deliver(local, "<p>First</p>")
    page = await open_page(context, local.url)
    await expect(frame(page).get_by_text("First")).to_be_visible()
    await page.evaluate("document.querySelector('iframe').old = true")
    deliver(local, "<p>Second</p>", "2.eml")
    await page.evaluate("dispatchEvent(new Event('focus'))")
    await expect(page.locator("#mails li")).to_have_count(2)
    await expect(frame(page).first.get_by_text("Second")).to_be_visible()
    assert await page.evaluate("document.querySelectorAll('iframe')[1].old")


async def test_the_path_of_an_email_is_secret_and_opens_nothing_else(run_locally: RunLocally) -> None:
    local = await run_locally(api_keys=(KEY,))
    deliver(local, "<p>First</p>")
    (local.folder / "x.eml").write_bytes(b"Content-Type: text/html\r\n\r\nx")
    (local.mailbox / "text.eml").write_bytes(b"Subject: a\r\n\r\nx")
    assert (await local.client.get("/demo/mails")).status == 401
    answer = await local.client.get("/demo/mails", headers={"Authorization": f"Bearer {KEY}"})
    of_text, path = [mail["html"] for mail in (await answer.json())["mails"]]
    assert of_text is None
    response = await local.client.get(f"/{path}")
    assert (response.status, response.content_type, response.charset) == (200, "text/html", "utf-8")
    assert "<p>First</p>" in await response.text()
    policy = response.headers["Content-Security-Policy"].split("; ")
    assert {"sandbox", "default-src 'none'", "frame-ancestors 'self'"} <= set(policy)
    assert response.headers["Cache-Control"] == "no-store"
    secret = path.split("/")[2]
    for other in (
        path.replace(secret, "x" * len(secret)),
        path.replace(secret, "%FF"),
        *(f"demo/mails/{secret}/{name}" for name in NO_EMAILS),
    ):
        assert (await local.client.get(URL(f"/{other}", encoded=True))).status == 404, other
