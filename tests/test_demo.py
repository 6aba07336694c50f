"""The demo page: a newcomer tries the whole service on it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, BrowserContext, Page, expect
from pymongo import MongoClient

from api.auth import BadCredential
from api.problems import BY_EXCEPTION
from config.ids import IdType
from kinds import SPECIFIED
from tests.bell import bell, panel, rows, shows_unread
from tests.browser import Serve, assert_accessible, empty, events, local_run
from tests.client import KEY, ROOT, TARGET, USER, assert_length
from tests.demo import create_on, enter, local_url, open_demo, options, outlive_toasts, run_shell
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


async def test_the_demo_shows_a_newcomer_the_whole_service(context: BrowserContext, local: LocalRun) -> None:
    assert f"Open {local_url(local)} in a browser" in (local.folder / "output").read_text()
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
    server = await serve(demo=True, kinds_file=ROOT / "examples/kinds.toml", id_type=IdType.STRING)
    page = await open_demo(context, server.url)
    happened, user = page.get_by_label("What happened"), page.get_by_label("User", exact=True)
    assert await options(page) == {
        "registration": "e-mailed",
        "new_login": "kept, and e-mailed",
        "order_shipped": "kept, and e-mailed",
        "invoice_ready": "kept, and e-mailed",
        "back_in_stock": "kept",
        "question_answered": "kept, and e-mailed",
        "new_in_shop": "kept, and e-mailed",
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
    page = await open_demo(context, (await serve(demo=True, kinds_file=tmp_path / "kinds.toml")).url)
    assert await options(page) == {"a": "kept", "b": "e-mailed"}
    await expect(page.get_by_label("What happened")).to_have_value("a")
    await create_on(page)
    await shows_unread(page, 1)


async def test_the_demo_shows_each_error_beside_its_field(serve: Serve, context: BrowserContext) -> None:
    server = await serve(demo=True)
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
    await server.close()
    await create_on(page)
    await expect(page.get_by_text("The service cannot be reached.")).to_be_visible()


async def test_one_command_of_the_demo_shows_kinds_and_templates(
    context: BrowserContext, local: LocalRun, tmp_path: Path
) -> None:
    page = await open_demo(context, local_url(local))
    assert set(await options(page)) == set(SPECIFIED)
    await page.get_by_text("With kinds and templates of your own").click()
    *assignments, program, target = (await page.locator("#restart").inner_text()).split()
    assert (program, target) == ("make", "run")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    async with local_run(tmp_path, **dict(assignment.split("=") for assignment in assignments)) as restarted:
        page = await open_demo(context, local_url(restarted))
        await expect(page.locator("#examples")).to_be_hidden()
        for kind in await options(page):
            await page.get_by_label("What happened").select_option(kind)
            await create_on(page)
            await expect(page.get_by_text("Created.")).to_be_visible()
            await page.evaluate("document.getElementById('outcome').textContent = ''")
        await shows_unread(page, 6)
        await bell(page).click()
        labels = await page.locator("notifier-inbox li b").all_inner_texts()
        assert [label.replace("1,027", "1027") for label in labels] == [
            "New in the shop: some product",
            "Ann answered your question about some product",
            "some product is back in stock",
            "Invoice 1027 is ready",
            "Order 1027 is on its way",
            "New sign-in from Oslo",
        ]
        await expect(page.frame_locator("#mails li:last-child iframe").get_by_role("heading")).to_have_text("Welcome")


KINDS = """
[order]
label = "{data.order} {data.order.lastNumber} of {data.name|Somebody}: {data.order.lines.0.price}"
url = "/orders/{target_id}?since={data.paid_on_day}"
[order.labels]
de = "{data.country} {data.userName} {data.constructor}"
[only_german.labels]
de = "{data.city}, {data.__proto__.polluted}, {user_id}"
[plain]
"""


async def test_the_demo_suggests_data_for_the_fields_that_a_kind_names(
    serve: Serve, context: BrowserContext, tmp_path: Path
) -> None:
    (tmp_path / "kinds.toml").write_text(KINDS)
    page = await open_demo(context, (await serve(demo=True, kinds_file=tmp_path / "kinds.toml")).url)
    happened, data = page.get_by_label("What happened"), page.get_by_label("Data (a JSON object, optional)")
    about = page.get_by_label("About (target_id, optional)")
    order = json.loads(await data.input_value())
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", order.pop("paid_on_day"))
    assert order == {
        "order": {"lastNumber": 1027, "lines": {"0": {"price": 49.9}}},
        "name": "Ann",
        "country": "some country",
        "userName": "some user name",
        "constructor": "some constructor",
    }
    await expect(about).to_have_value(TARGET)
    await happened.select_option("only_german")
    assert json.loads(await data.input_value()) == {"city": "Oslo", "__proto__": {"polluted": "some polluted"}}
    await expect(about).to_have_value("")
    assert await page.evaluate("({}).polluted === undefined")
    await happened.select_option("plain")
    await expect(data).to_have_value("")
    await data.fill('{"mine": 1}')
    await happened.select_option("order")
    await expect(data).to_have_value('{"mine": 1}')
    await expect(about).to_have_value(TARGET)


async def test_axe_finds_no_fault_in_the_demo(browser: Browser, locked: LocalRun) -> None:
    async with await browser.new_context(bypass_csp=True) as context:
        page = await open_demo(context, local_url(locked), clock=True)
        await enter(page, "x")
        await expect(page.get_by_text(BY_EXCEPTION[BadCredential].detail)).to_be_visible()
        await assert_accessible(page)
        await enter(page, KEY)
        await expect(page.locator("#access")).to_be_hidden()
        await page.get_by_label("About (target_id, optional)").fill("y")
        await create_on(page)
        await assert_accessible(page)
        await page.get_by_label("About (target_id, optional)").fill("")
        await create_on(page)
        await shows_unread(page, 1)
        await expect(page.locator("#mails li")).to_have_count(1)
        await outlive_toasts(page)
        await assert_accessible(page)


async def test_the_demo_fits_desktop_and_phone(browser: Browser, tmp_path: Path) -> None:
    """Also take the pictures of the documentation. SCREENSHOTS=docs puts them there."""
    of_other_kinds = shutil.ignore_patterns("order_*", "invoice_*", "question_*", "new_in_*")
    templates = shutil.copytree(ROOT / "examples/templates", tmp_path / "templates", ignore=of_other_kinds)
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path)
    async with local_run(tmp_path, TEMPLATES_DIR=f"{templates}") as local:
        for name, look in PICTURES.items():
            await asyncio.to_thread(empty, local)
            await asyncio.to_thread(seed, local)
            async with await browser.new_context(**look) as context:  # type: ignore[arg-type]
                page = await open_demo(context, local_url(local), clock=True)
                await create_on(page)
                await expect(page.locator("#mails strong")).to_have_text("New sign-in from Oslo")
                await shows_unread(page, 4)
                await outlive_toasts(page)
                await bell(page).click()
                await expect(rows(page)).to_have_count(6)
                await assert_fits(page)
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
