"""The demo page of a service with keys, and the lines that put the bell into a page of one's own."""

from __future__ import annotations

import asyncio
import re

from aiohttp import web
from aiohttp.test_utils import TestServer
from playwright.async_api import BrowserContext, expect

from api import auth
from api.problems import BY_EXCEPTION
from tests.bell import shows_unread
from tests.browser import Serve, open_page
from tests.client import KEY, OLD_KEY, OTHER, PROTECTED, token
from tests.demo import USER_FIELD, create_on, enter, field, open_demo, run_shell


def said(exception: type[Exception]) -> str:
    """Return the service's message about it."""
    return BY_EXCEPTION[exception].detail


async def test_the_demo_asks_for_a_key_if_the_api_has_keys(serve: Serve, context: BrowserContext) -> None:
    server = await serve(demo=True, **PROTECTED)
    await server.create()
    page = await open_demo(context, server.url)
    await enter(page, KEY)
    await shows_unread(page, 1)
    await expect(page.locator("#access")).to_be_hidden()
    await create_on(page)
    await shows_unread(page, 2)
    assert await page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
    assert await server.count(401, "/list") == 0
    assert KEY not in await page.locator("body").inner_text()


async def test_the_curl_of_the_demo_works_with_a_key_from_the_start(serve: Serve, context: BrowserContext) -> None:
    server = await serve(demo=True, api_keys=(KEY,))
    page = await open_demo(context, server.url)
    curl = page.locator("#curl")
    await expect(curl).to_contain_text('-H "Authorization: Bearer $API_KEY"')
    await expect(page.get_by_text("There, API_KEY is one of the service's API_KEYS.")).to_be_visible()
    assert (await asyncio.to_thread(run_shell, await curl.inner_text())) == {"success": True}
    await enter(page, KEY)
    await shows_unread(page, 1)
    await expect(curl).to_contain_text('-H "Authorization: Bearer $API_KEY"')


async def test_a_refused_credential_gets_a_message_beside_its_field(serve: Serve, context: BrowserContext) -> None:
    server = await serve(demo=True, **PROTECTED)
    page = await open_demo(context, server.url)
    credential = page.get_by_label("One of API_KEYS, or a user's token")
    await create_on(page)
    await expect(credential).to_have_accessible_description("Enter a key or a token.")
    await expect(credential).to_be_focused()
    for wrong, message in (
        ("", "Enter a key or a token."),
        ("x" * 32, said(auth.BadCredential)),
        ("ключ", said(auth.BadCredential)),
        (token(exp=1), said(auth.TokenExpired)),
        (token(sub=OTHER), said(auth.OtherUser)),
    ):
        await enter(page, wrong)
        await expect(credential).to_have_accessible_description(message)
        await expect(credential).to_have_attribute("aria-invalid", "true")
        await expect(credential).to_be_focused()
    await enter(page, OLD_KEY)
    await expect(page.locator("#access")).to_be_hidden()
    await create_on(page)
    await shows_unread(page, 1)


async def test_a_token_that_is_refused_later_gets_a_message_too(serve: Serve, context: BrowserContext) -> None:
    server = await serve(demo=True, **PROTECTED)
    page = await open_demo(context, server.url)
    await enter(page, token())
    await expect(page.locator("#access")).to_be_hidden()
    await create_on(page)
    await expect(page.get_by_text(said(auth.OutOfScope))).to_be_visible()
    user = await field(page, USER_FIELD)
    await user.fill(OTHER)
    await user.blur()
    credential = page.get_by_label("One of API_KEYS, or a user's token")
    await expect(credential).to_have_accessible_description(re.compile("not valid for this user"))
    await enter(page, KEY)
    await create_on(page)
    await shows_unread(page, 1)


async def test_the_five_lines_embed_the_bell_in_a_page_elsewhere(serve: Serve, context: BrowserContext) -> None:
    pages = {"": ("", "text/html"), "notifier-token": (token(), "text/plain")}

    async def serve_page(request: web.Request) -> web.Response:
        text, media_type = pages[request.match_info["name"]]
        return web.Response(text=text, content_type=media_type)

    app = web.Application()
    app.router.add_get("/{name:.*}", serve_page)
    async with TestServer(app) as site:
        origin = str(site.make_url("")).rstrip("/")
        for access in ({}, PROTECTED):
            service = await serve(demo=True, cors_origins=(origin,), **access)
            await context.grant_permissions(["clipboard-read", "clipboard-write"])
            page = await open_demo(context, service.url)
            assert await asyncio.to_thread(run_shell, await page.locator("#curl").inner_text()) == {"success": True}
            await page.locator("#embed").get_by_role("button", name="Copy").click()
            await expect(page.locator("#embed").get_by_role("button", name="Copied")).to_be_visible()
            lines = await page.evaluate("navigator.clipboard.readText()")
            assert len(lines.splitlines()) == 5
            pages[""] = (f"<!DOCTYPE html><title>Mine</title>{lines}", "text/html")
            await shows_unread(await open_page(context, f"{origin}/"), 2 if access else 1)
            assert await service.count(401) == 0
