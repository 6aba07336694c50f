"""The examples of docs/bell.md."""

from __future__ import annotations

import asyncio
import os
import re
import sys

import pytest
from playwright.async_api import BrowserContext, Route

from tests.bell import shows_new
from tests.browser import Serve, Site, events, open_page
from tests.client import PROTECTED, ROOT, SECRET
from tests.programs import needed


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
    commands = [sys.executable, "-c", example("python")], [needed("node"), "--input-type=module", "-e", example("js")]
    tokens = await asyncio.gather(*(run_example(*command) for command in commands))
    server = await serve(**PROTECTED)
    site.service = server.url
    html = example("html").replace("https://notifications.example.com", server.url)
    (script,) = re.findall('<script type="module">(.*?)</script>', html, re.DOTALL)
    site.html = f"<!DOCTYPE html><title>x</title>{html.replace(script, '')}"
    site.script = f"const toast = (text) => events.push(['toast', text]);{script}"

    async def hand_out_token(route: Route) -> None:
        await route.fulfill(body=tokens.pop())

    await context.route("**/notifier-token", hand_out_token)
    for count in range(len(tokens)):
        page = await open_page(context, site.origin)
        await shows_new(page, count)
        await server.create("new_post")
        await shows_new(page, count + 1)
        assert await events(page) == [["toast", "new_post"], ["notification", "new_post"]]
        await page.close()


SHOWN = [f"src/{name}" for name in ("session.ts", "Bell.tsx", "Vue.vue", "Svelte.svelte", "plain.ts")]
SHOWN += [f"package/src/PackageBell.{suffix}" for suffix in ("tsx", "vue")]


@pytest.mark.parametrize("name", SHOWN)
def test_the_page_shows_the_examples_as_they_are_tested(name: str) -> None:
    code = (ROOT / "examples/bell" / name).read_text()
    assert f"\n{code}```" in (ROOT / "docs/bell.md").read_text()


def test_the_page_names_every_text_and_attribute() -> None:
    page = (ROOT / "docs/bell.md").read_text()
    (table,) = re.findall(r"const ENGLISH = \{(.*?)\n\};", (ROOT / "web/inbox/words.js").read_text(), re.DOTALL)
    names = re.findall(r'(?:^|[\s,])"?([a-z-]+)"?: "', table)
    assert len(names) > 20
    (listed,) = re.findall(r"The names are (.*)\.\n", page)
    assert listed.split(", ") == [f"`{name.removesuffix('-other')}`" for name in names]
    for name in re.findall(
        r'^  "?([a-z-]+)"?\?: ', (ROOT / "web/inbox.d.ts").read_text().split("NotifierInboxAttributes")[1], re.MULTILINE
    ):
        assert f"`{name}`" in page
