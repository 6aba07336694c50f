"""The documentation in Swagger UI, in a real browser."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from playwright.async_api import BrowserContext, ConsoleMessage, Locator, Page, Request, ViewportSize, expect

from api.pages import ASSETS
from tests.client import KEY, PROTECTED, Client, create, token
from tests.description import DESCRIBED
from tests.fixtures import Start

PHONE: ViewportSize = {"width": 375, "height": 700}


@pytest.fixture
async def client(start: Start) -> Client:
    """Return a client of the service with a key and a secret set."""
    return await start(**PROTECTED)


@pytest.fixture
async def page(client: Client, context: BrowserContext) -> AsyncIterator[Page]:
    """Open the documentation. It may log nothing, violate no policy, and ask nobody but the service."""
    page = await context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(_text(message)))
    page.on("pageerror", lambda error: said.append(error.message))
    page.on("request", lambda request: said.extend(_foreign(request, client)))
    await page.goto(str(client.make_url("/docs")))
    await expect(page.locator(".opblock")).to_have_count(len(DESCRIBED))
    yield page
    assert said == []


def _text(message: ConsoleMessage) -> str:
    return f"{message.type}: {message.text}"  # a violation of the policy is an error


def _foreign(request: Request, client: Client) -> list[str]:
    own = request.url.startswith((str(client.make_url("/")), "data:"))
    return [] if own else [f"asked: {request.url}"]


async def authorize(page: Page, scheme: str, credential: str) -> None:
    await page.get_by_role("button", name="Authorize").first.click()
    form = page.locator(".auth-container", has=page.locator("h4 code", has_text=scheme))
    await form.locator("input").fill(credential)
    await form.get_by_role("button", name="Apply credentials").click()
    await page.get_by_role("button", name="Close").last.click()


async def execute(page: Page, operation: str) -> Locator:
    """Execute an operation with its example; return what was answered."""
    block = page.locator(f"[id^=operations-][id$=-{operation}]")
    await block.locator(".opblock-summary-control").click()
    await block.get_by_role("button", name="Try it out").click()
    await block.get_by_role("button", name="Execute").click()
    return block.locator(".live-responses-table .response")


@pytest.mark.parametrize("scheme", ["key", "token"])
async def test_a_list_is_fetched_with_a_key_or_a_token(client: Client, page: Page, scheme: str) -> None:
    client.session.headers["Authorization"] = f"Bearer {KEY}"
    await create(client, data={"text": "Are you coming?"})
    await authorize(page, scheme, KEY if scheme == "key" else token())
    answer = await execute(page, "list")
    await expect(answer.locator(".response-col_status")).to_have_text("200")
    await expect(answer.locator(".microlight").first).to_contain_text("Are you coming?")


async def test_a_notification_is_created(page: Page) -> None:
    await authorize(page, "key", KEY)
    answer = await execute(page, "create")
    await expect(answer.locator(".response-col_status")).to_contain_text("201")


async def test_a_stream_is_described_but_not_executed(page: Page) -> None:
    block = page.locator("#operations-Streams-stream")
    await block.locator(".opblock-summary-control").click()
    await expect(block).to_contain_text("event: inbox")
    await expect(block.get_by_role("button", name="Try it out")).to_have_count(0)


async def test_it_fits_a_phone_whatever_is_open(page: Page) -> None:
    await page.set_viewport_size(PHONE)
    tried = 0
    for block in await page.locator(".opblock").all():  # one at a time: each makes the page slower
        summary = block.locator(".opblock-summary-control")
        await summary.click()
        await expect(block.locator(".responses-wrapper").first).to_be_visible()
        if await block.get_by_role("button", name="Try it out").count():  # a stream has none
            await block.get_by_role("button", name="Try it out").click()
            await expect(block.get_by_role("button", name="Execute")).to_be_visible()
            tried += 1
        await assert_fits(page)
        await summary.click()
        await expect(summary).to_have_attribute("aria-expanded", "false")
    assert tried == len(DESCRIBED) - 1
    for schema in await page.locator(".models .json-schema-2020-12-expand-deep-button").all():
        await schema.click()
    await assert_fits(page)
    await authorize(page, "key", KEY)
    await assert_fits(page)


async def assert_fits(page: Page) -> None:
    """Check that the page does not scroll sideways."""
    assert await page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


# --- how it is served -------------------------------------------------------------------------------


async def test_the_page_and_its_assets_are_open_and_revalidated(client: Client) -> None:
    for path in ("/docs", *ASSETS):
        response = await client.get(path)
        assert response.status == 200
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        again = await client.get(path, headers={"If-None-Match": response.headers["ETag"]})
        assert (again.status, await again.read()) == (304, b"")


async def test_the_page_has_a_policy_without_inline_code(client: Client) -> None:
    response = await client.get("/docs")
    policy = response.headers["Content-Security-Policy"].split("; ")
    assert {"default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'"} <= set(policy)
    assert "unsafe" not in response.headers["Content-Security-Policy"]
    assert response.headers["Referrer-Policy"] == "no-referrer"
