"""The examples of docs/bell.md."""

from __future__ import annotations

import asyncio
import os
import re
import sys

from playwright.async_api import BrowserContext, Route

from tests.bell import shows_unread
from tests.browser import Serve, Site, events, open_page
from tests.client import KEY, ROOT, SECRET


def example(language: str) -> str:
    """Return the page's only example in this language."""
    (code,) = re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs/bell.md").read_text(), re.DOTALL)
    assert isinstance(code, str)
    return code


async def run_example(*command: str) -> str:
    """Run a program that prints a token."""
    process = await asyncio.create_subprocess_exec(
        *command, env={"PATH": os.environ["PATH"], "USER_TOKEN_SECRET": SECRET}, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode().strip()


async def test_the_examples_embed_the_bell(serve: Serve, site: Site, context: BrowserContext) -> None:
    tokens = [
        await run_example(sys.executable, "-c", example("python")),
        await run_example("node", "--input-type=module", "-e", example("js")),
    ]
    server = await serve(API_KEYS=KEY, USER_TOKEN_SECRET=SECRET)
    await server.create()
    site.service = server.url

    async def hand_out_token(route: Route) -> None:
        await route.fulfill(body=tokens.pop())

    await context.route("**/notifier-token", hand_out_token)
    html = example("html").replace("https://notifications.example.com", server.url)
    (script,) = re.findall('<script type="module">(.*?)</script>', html, re.DOTALL)
    site.html = f"<!DOCTYPE html><title>x</title>{html.replace(script, '')}"
    site.script = f"const toast = (text) => events.push(['toast', text]);{script}"
    page = await open_page(context, site.origin)
    await shows_unread(page, 1)  # with a token, which the page fetched because it had none
    await server.create("new_post")
    await shows_unread(page, 2)
    assert ["toast", "new_post"] in await events(page)
    await page.locator("notifier-inbox").evaluate("(inbox) => inbox.setAttribute('token', 'expired')")
    await server.create()
    await shows_unread(page, 3)
    assert not tokens
