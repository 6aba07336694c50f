"""The demo page: a newcomer tries the whole service on it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.async_api import Browser, BrowserContext, Page, expect
from pymongo import MongoClient

from tests.bell import bell, panel, rows, shows_unread
from tests.browser import SCHEMES, Serve, assert_accessible, events, local_run, open_page
from tests.client import KEY, ROOT, SECRET, USER, assert_length
from tests.processes import LocalRun
from tests.waiting import eventually

SEEDED = [
    (90, "new_message", {"from": "Ann", "text": "Are you coming on Friday? There are two tickets left."}),
    (3 * 60, "new_post", {"author": "Ben", "title": "How we moved house"}),
    (50 * 60, "new_login", {"city": "Bergen"}),
    (26 * 3600, "new_message", {"from": "Cem", "text": "Thank you!"}),
    (3 * 86_400, "new_post", {"author": "Dee", "title": "Bread without kneading"}),
]
"""Notifications for the pictures, newest first: age in seconds, key and data."""
PICTURES = {
    "inbox": {"viewport": {"width": 1280, "height": 700}},
    "inbox-dark": {"viewport": {"width": 1280, "height": 700}, "color_scheme": "dark"},
    "inbox-phone": {"viewport": {"width": 390, "height": 700}},
}


async def open_demo(context: BrowserContext, url: str) -> Page:
    page = await open_page(context, url)
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
    return json.loads(subprocess.run(["sh", "-c", line], capture_output=True, check=True, timeout=30).stdout)  # noqa: S607


async def test_the_demo_shows_a_newcomer_the_whole_service(context: BrowserContext, tmp_path: Path) -> None:
    async with local_run(tmp_path) as local:
        assert f"Open {local_url(local)} in a browser" in (tmp_path / "output").read_text()
        page = await open_demo(context, local_url(local))
        await expect(page.get_by_text("None yet.")).to_be_visible()
        await create_on(page)
        await expect(page.get_by_text("Created.")).to_be_visible()
        await shows_unread(page, 1)
        mails = page.locator("#mails li")
        await expect(mails).to_have_count(1)
        await expect(mails).to_contain_text("to user@example.com")
        await page.get_by_label("What happened").select_option("registration")
        await create_on(page)
        await expect(mails).to_have_count(2)
        await expect(mails.first).to_contain_text("registration")
        await shows_unread(page, 1)
        curl = await page.locator("#curl").inner_text()
        assert (await asyncio.to_thread(run_shell, curl)) == {"success": True}
        assert [event for event in await events(page) if event[0] == "CSP"] == []


async def test_the_demo_offers_the_kinds_of_the_service_and_takes_its_ids(
    serve: Serve, context: BrowserContext
) -> None:
    server = await serve(DEMO="1", KINDS_FILE=ROOT / "examples/kinds.toml", ID_TYPE="string")
    page = await open_demo(context, server.url)
    happened, user = page.get_by_label("What happened"), page.get_by_label("User", exact=True)
    assert await options(page) == {
        "registration": "e-mailed",
        "new_login": "kept, and e-mailed",
        "order_shipped": "kept, and e-mailed",
        "invoice_ready": "kept, and e-mailed",
        "back_in_stock": "kept",
        "question_answered": "kept",
    }
    await expect(happened).to_have_value("new_login")
    await user.fill("ann & bob/ü")
    await happened.select_option("back_in_stock")
    await expect(page.locator("#curl")).to_contain_text('"key":"back_in_stock"')
    await create_on(page)
    await expect(page.get_by_text("Created.")).to_be_visible()
    await shows_unread(page, 1)
    assert (await asyncio.to_thread(run_shell, await page.locator("#curl").inner_text())) == {"success": True}
    await shows_unread(page, 2)
    assert [event for event in await events(page) if event[0] == "CSP"] == []


async def test_the_demo_without_a_kind_that_is_both_chooses_the_first(
    serve: Serve, context: BrowserContext, tmp_path: Path
) -> None:
    (tmp_path / "kinds.toml").write_text("[a]\n[b]\nin_app = false\nemail = true\n")
    page = await open_demo(context, (await serve(DEMO="1", KINDS_FILE=tmp_path / "kinds.toml")).url)
    assert await options(page) == {"a": "kept", "b": "e-mailed"}
    await expect(page.get_by_label("What happened")).to_have_value("a")
    await create_on(page)
    await shows_unread(page, 1)


async def test_the_demo_shows_each_error_beside_its_field(serve: Serve, context: BrowserContext) -> None:
    server = await serve(DEMO="1")
    page = await open_demo(context, server.url)
    user, about = page.get_by_label("User", exact=True), page.get_by_label("About (target_id, optional)")
    await user.fill("x")
    await about.fill("y")
    await create_on(page)
    for field in (user, about):
        await expect(field).to_have_attribute("aria-invalid", "true")
        await expect(field).to_have_accessible_description("Not a valid ObjectId.")
    await expect(user).to_be_focused()
    await user.fill(USER)
    await about.fill("")
    data = page.get_by_label("Data (a JSON object, optional)")
    await data.fill("{nonsense")
    await create_on(page)
    await expect(data).to_have_accessible_description(re.compile("Not JSON"))
    await expect(user).to_have_attribute("aria-invalid", "false")
    await data.fill('{"it\'s": "fine"}')
    await create_on(page)
    await shows_unread(page, 1)
    await expect(page.locator("#mailbox")).to_be_hidden()
    assert (await asyncio.to_thread(run_shell, await page.locator("#curl").inner_text())) == {"success": True}
    server.process.kill()
    await create_on(page)
    await expect(page.get_by_text("The service cannot be reached.")).to_be_visible()


async def test_the_demo_asks_for_a_key_if_the_api_has_keys(serve: Serve, context: BrowserContext) -> None:
    server = await serve(DEMO="1", API_KEYS=KEY, USER_TOKEN_SECRET=SECRET)
    await server.create()
    page = await open_demo(context, server.url)
    await page.get_by_label("One of API_KEYS, or a user's token").fill(KEY)
    await page.get_by_role("button", name="Use it").click()
    await shows_unread(page, 1)
    await expect(page.locator("#access")).to_be_hidden()
    await create_on(page)
    await shows_unread(page, 2)
    assert await page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_axe_finds_no_fault_in_the_demo(
    browser: Browser, scheme: Literal["light", "dark"], tmp_path: Path
) -> None:
    async with local_run(tmp_path) as local, await browser.new_context(color_scheme=scheme, bypass_csp=True) as context:
        page = await open_demo(context, local_url(local))
        await page.get_by_label("About (target_id, optional)").fill("y")
        await create_on(page)
        await assert_accessible(page)
        await page.get_by_label("About (target_id, optional)").fill("")
        await create_on(page)
        await shows_unread(page, 1)
        await expect(page.locator("#mails li")).to_have_count(1)
        await expect(page.locator(".toast")).to_have_count(0)
        await assert_accessible(page)


@pytest.mark.parametrize("name", PICTURES)
async def test_the_demo_fits_desktop_and_phone(browser: Browser, tmp_path: Path, name: str) -> None:
    """Also take the pictures of the documentation. SCREENSHOTS=docs puts them there."""
    of_other_kinds = shutil.ignore_patterns("order_*", "invoice_*")
    templates = shutil.copytree(ROOT / "examples/templates", tmp_path / "templates", ignore=of_other_kinds)
    async with (
        local_run(tmp_path, TEMPLATES_DIR=f"{templates}") as local,
        await browser.new_context(**PICTURES[name]) as context,  # type: ignore[arg-type]
    ):
        await asyncio.to_thread(seed, local)
        page = await open_demo(context, local_url(local))
        await create_on(page)
        await expect(page.locator("#mails strong")).to_have_text("New sign-in from Oslo")
        await expect(page.locator(".toast")).to_have_count(0)
        await shows_unread(page, 4)
        await bell(page).click()
        await expect(rows(page)).to_have_count(6)
        await assert_fits(page)
        folder = Path(os.environ.get("SCREENSHOTS") or tmp_path)
        await page.screenshot(path=folder / f"{name}.png")


async def assert_fits(page: Page) -> None:
    """Check that the page does not scroll sideways, and that all of the panel is in the window."""
    overflow = await page.evaluate("document.documentElement.scrollWidth - innerWidth")
    box, view = await panel(page).bounding_box(), page.viewport_size
    assert box
    assert view
    assert overflow <= 0
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= view["width"]
    assert box["y"] + box["height"] <= view["height"] + 1


def seed(local: LocalRun) -> None:
    """Give the user notifications of different ages, the newest three unread, and an empty mailbox."""
    for _, key, data in reversed(SEEDED):
        local.get("/create", json.dumps({"user_id": USER, "key": key, "data": data}).encode())
    with MongoClient[dict[str, Any]]((local.folder / ".notifier/db_uri").read_text()) as client:
        users = client.get_default_database()["users"]
        for n, (age, _, _) in enumerate(reversed(SEEDED)):
            users.update_one({}, {"$inc": {f"notifications.{n}.timestamp": -age}})
            users.update_one({}, {"$set": {f"notifications.{n}.is_new": n >= len(SEEDED) - 3}})
    eventually(lambda: assert_length(local.mails(), 1))
    for mail in (local.folder / ".notifier/mail").glob("*.eml"):
        mail.unlink()
