"""The demo page as its users find it."""

from __future__ import annotations

import json
import os
import subprocess

from playwright.async_api import BrowserContext, Page, expect

from tests.browser import open_page
from tests.client import KEY
from tests.processes import LocalRun
from tests.programs import needed_by


async def open_demo(context: BrowserContext, url: str, *, clock: bool = False) -> Page:
    page = await open_page(context, url, clock=clock)
    await expect(page.get_by_role("heading", name="Create a notification")).to_be_visible()
    await expect(page.locator("option").first).to_be_attached()  # the kinds have come
    return page


def local_url(local: LocalRun) -> str:
    return f"http://127.0.0.1:{local.port}/"


async def options(page: Page) -> dict[str, str]:
    """Return the kinds that the page offers, and what it says that each does."""
    texts = await page.locator("option").all_inner_texts()
    return dict(text.split(" \N{EN DASH} ") for text in texts)


async def create_on(page: Page) -> None:
    await page.get_by_role("button", name="Create", exact=True).click()


def run_shell(line: str) -> object:
    environment = {**os.environ, "API_KEY": KEY}
    done = subprocess.run(["sh", "-c", needed_by(line)], capture_output=True, check=True, timeout=30, env=environment)  # noqa: S607
    return json.loads(done.stdout)


async def outlive_toasts(page: Page) -> None:
    """Put the page's clock forward until its toasts are gone."""
    await page.clock.fast_forward(4000)
    await expect(page.locator(".toast")).to_have_count(0)


async def enter(page: Page, credential: str) -> None:
    await page.get_by_label("One of API_KEYS, or a user's token").fill(credential)
    await page.get_by_role("button", name="Use it").click()
