"""The documentation in Swagger UI, in a real browser."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Locator, Page, Request, ViewportSize, expect

from api.pages import ASSETS
from tests.client import KEY, PROTECTED, USER, Client, token
from tests.description import DESCRIBED
from tests.fixtures import Start

pytestmark = pytest.mark.ci

PHONE: ViewportSize = {"width": 375, "height": 700}


@pytest.fixture
async def client(share: Start) -> Client:
    """Return a client of a service with a key and a secret set."""
    return await share(**PROTECTED, demo=True)


@pytest.fixture(scope="module")
async def opened(shared_service: Start, browser: Browser) -> AsyncIterator[tuple[Page, list[str]]]:
    """Open the documentation, once because it takes seconds. Also return its faults."""
    client, said = await shared_service(**PROTECTED, demo=True), list[str]()
    async with await browser.new_context() as context:
        page = await context.new_page()
        page.on("console", lambda message: said.append(_text(message)))
        page.on("pageerror", lambda error: said.append(error.message))
        page.on("request", lambda request: said.extend(_foreign(request, client)))
        await page.goto(str(client.make_url("/docs?demo")))
        await expect(page.locator(".opblock")).to_have_count(len(DESCRIBED))
        yield page, said


@pytest.fixture
async def page(opened: tuple[Page, list[str]]) -> AsyncIterator[Page]:
    """Return the documentation. It may log nothing, violate no policy, and ask nobody but the service."""
    page, said = opened
    yield page
    assert said == []


def _text(message: ConsoleMessage) -> str:
    return f"{message.type}: {message.text}"  # a violation of the policy is an error


def _foreign(request: Request, client: Client) -> list[str]:
    own = request.url.startswith((str(client.make_url("/")), "data:"))
    return [] if own else [f"asked: {request.url}"]


@asynccontextmanager
async def access(page: Page, scheme: str) -> AsyncIterator[Locator]:
    """Open the dialog of credentials, and yield the part of this scheme."""
    await page.get_by_role("button", name="Authorize").first.click()
    yield page.locator(".auth-container", has=page.locator("h4 code", has_text=scheme))
    await page.get_by_role("button", name="Close").last.click()


async def authorize(page: Page, scheme: str, credential: str) -> None:
    async with access(page, scheme) as form:
        await form.locator("input").fill(credential)
        await form.get_by_role("button", name="Apply credentials").click()


async def log_out(page: Page, scheme: str) -> None:
    async with access(page, scheme) as form:
        await form.get_by_role("button", name="Remove authorization").click()


def block_of(page: Page, operation: str) -> Locator:
    return page.locator(f"[id^=operations-][id$=-{operation}]")


async def open_block(block: Locator) -> None:
    await block.locator(".opblock-summary-control").click()
    await expect(block.locator(".responses-wrapper").first).to_be_visible()


async def close_block(block: Locator) -> None:
    """Close a block, as each that is open makes the page slower."""
    summary = block.locator(".opblock-summary-control")
    await summary.click()
    await expect(summary).to_have_attribute("aria-expanded", "false")


async def assert_answers(block: Locator, credential: str, status: int, text: str = "") -> None:
    """Execute the operation of a block with its example, and check what is sent and what is shown."""
    async with block.page.expect_request(lambda request: request.resource_type == "fetch") as sent:
        await block.get_by_role("button", name="Execute").click()
    assert (await sent.value).headers["authorization"] == f"Bearer {credential}"
    answer = block.locator(".live-responses-table .response")
    await expect(answer.locator(".response-col_status")).to_contain_text(f"{status}")
    await expect(answer.locator(".microlight").first).to_contain_text(text)


async def test_operations_can_be_tried_with_a_key_or_token_not_streams(client: Client, page: Page) -> None:
    given = {"user_id": USER, "key": "new_message", "data": {"text": "Are you coming?"}}
    assert (await client.post("/create", json=given, headers={"Authorization": f"Bearer {KEY}"})).status == 201
    stream, creation, list_ = [block_of(page, operation) for operation in ("stream", "create", "list")]
    await open_block(stream)
    await expect(stream).to_contain_text("event: inbox")
    await expect(stream.get_by_role("button", name="Try it out")).to_have_count(0)
    await close_block(stream)
    await authorize(page, "key", KEY)
    await open_block(creation)
    await creation.get_by_role("button", name="Try it out").click()
    await assert_answers(creation, KEY, 201)
    await close_block(creation)
    await open_block(list_)
    await list_.get_by_role("button", name="Try it out").click()
    await assert_answers(list_, KEY, 200, "Are you coming?")
    await log_out(page, "key")
    await authorize(page, "token", of_user := token())
    await list_.get_by_role("button", name="Clear").click()
    await assert_answers(list_, of_user, 200, "Are you coming?")
    await log_out(page, "token")
    await close_block(list_)


async def test_it_follows_the_colours_of_the_browser_and_leads_back(client: Client, page: Page) -> None:
    for scheme, background, count in (("dark", "rgb(28, 32, 34)", 1), ("light", "rgb(250, 250, 250)", 0)):
        await page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        await expect(page.locator("body")).to_have_css("background-color", background)
        await expect(page.locator("html.dark-mode")).to_have_count(count)
    back = page.get_by_role("link", name="Back to the demo")
    assert await back.evaluate("link => link.href") == f"{client.make_url('/')}"


async def test_without_the_demo_there_is_no_way_back(client: Client, context: BrowserContext) -> None:
    page = await context.new_page()
    await page.route("**/swagger-ui-bundle.js", lambda route: route.fulfill(body="window.SwaggerUIBundle = () => 0"))
    for query, count in (("?demo", 1), ("", 0)):
        await page.goto(str(client.make_url(f"/docs{query}")))
        await expect(page.get_by_role("link", name="Back to the demo")).to_have_count(count)


ALL = ".opblock"
ONE_A_TAG = ".opblock-tag-section span:first-child > .opblock"


@pytest.mark.parametrize("blocks", [ONE_A_TAG, pytest.param(ALL, marks=pytest.mark.ci)], ids=["one a tag", "all"])
async def test_it_fits_a_phone_whatever_is_open(page: Page, blocks: str) -> None:
    await page.set_viewport_size(PHONE)
    found = await page.locator(blocks).all()
    assert len(found) == (len(DESCRIBED) if blocks == ALL else await page.locator(".opblock-tag-section").count())
    untried = 0
    for block in found:
        await open_block(block)
        attempt, execute = [block.get_by_role("button", name=name) for name in ("Try it out", "Execute")]
        if await attempt.count():
            await attempt.click()
            await expect(execute).to_be_visible()
        untried += not await execute.count()
        await assert_fits(page)
        await close_block(block)
    assert untried == 1  # the stream
    for schema in await page.locator(".models .json-schema-2020-12-expand-deep-button").all():
        await schema.click()
    await assert_fits(page)
    await authorize(page, "key", KEY)
    await assert_fits(page)
    await log_out(page, "key")


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
