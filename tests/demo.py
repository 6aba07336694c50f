"""The demo page as its users find it, and a local run in this process."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, nullcontext
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import BrowserContext, Locator, Page, expect

from cli.environment import LOCAL_DEFAULTS
from settings import Settings
from tests.browser import open_page
from tests.client import DB, KEY, Client
from tests.fixtures import serving
from tests.programs import needed_by
from tests.servers import Mongod


class Local:
    """A local run: the folder where it has its mailbox, and its address."""

    def __init__(self, folder: Path, client: Client) -> None:
        self.folder = folder
        self.client = client
        self.port = client.port or 0
        self.url = f"{client.make_url('/')}"

    @property
    def mailbox(self) -> Path:
        """The folder of its e-mails."""
        return self.folder / ".notifier/mail"


RunLocally = Callable[..., Awaitable[Local]]


@pytest.fixture
async def run_locally(
    mongod: Mongod, database: DB, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[RunLocally]:
    """Return a function that starts the service with only these settings, in this process and on the tests' MongoDB."""
    uri = f"mongodb://{mongod.address}/{database.name}?directConnection=true"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ops.local.running_mongod", lambda: nullcontext(uri))
    async with AsyncExitStack() as stack:

        async def run(**changes: Any) -> Local:
            settings = Settings(**{**LOCAL_DEFAULTS, "smtp_from": LOCAL_DEFAULTS["email"], **changes})
            return Local(tmp_path, await stack.enter_async_context(serving(settings)))

        yield run


async def open_demo(context: BrowserContext, url: str, *, clock: bool = False) -> Page:
    page = await open_page(context, url, clock=clock)
    await expect(page.get_by_role("heading", name="Create a notification")).to_be_visible()
    await expect(page.locator("option").first).to_be_attached()  # the kinds have come
    return page


async def field(page: Page, label: str) -> Locator:
    """Return a field of the form that is only shown on demand."""
    await page.locator("details", has=page.get_by_text("User and data")).evaluate("details => { details.open = true }")
    return page.get_by_label(label, exact=True)


USER_FIELD = "User"
ABOUT = "About (target_id, optional)"
DATA = "Data (a JSON object, optional)"


async def choose(page: Page, kind: str) -> None:
    await page.get_by_label("What happened").select_option(kind)


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
