"""The demo page: a newcomer tries the whole service on it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.async_api import Browser, BrowserContext, FloatRect, Locator, Page, Route, expect

from api.auth import BadCredential
from api.problems import BY_EXCEPTION
from cli.environment import LOCAL_DEFAULTS
from kinds import SPECIFIED, load_kinds
from settings import IdType
from tests.bell import bell, panel, row_of, rows, shows_unread
from tests.browser import Serve, assert_accessible, events
from tests.client import DB, KEY, ROOT, TARGET, USER, create, settled
from tests.demo import (
    ABOUT,
    DATA,
    USER_FIELD,
    Local,
    RunLocally,
    choose,
    create_on,
    enter,
    field,
    open_demo,
    outlive_toasts,
    run_shell,
)
from tests.windows import end_windows

SEEDED = [
    (90, "new_message", {"from": "Ann", "text": "Are you coming on Friday? There are two tickets left."}),
    (3 * 60, "new_post", {"author": "Ben", "title": "How we moved house"}),
    (26 * 3600, "new_message", {"from": "Cem", "text": "Thank you!"}),
    (3 * 86_400, "new_post", {"author": "Dee", "title": "Bread without kneading"}),
]
"""Notifications for the pictures, newest first: age in seconds, key and data."""
PICTURES = {
    "inbox": {"viewport": {"width": 1280, "height": 700}},
    "inbox-dark": {"viewport": {"width": 1280, "height": 700}, "color_scheme": "dark"},
    "inbox-phone": {"viewport": {"width": 390, "height": 700}},
}
OPTIONS = [
    "Registration",
    "New sign-in from Oslo",
    "Order 1027 is on its way",
    "Invoice 1027 is ready",
    "The blue teapot is back in stock",
    "Ann answered your question about the blue teapot",
    "New in the shop: A red teapot",
]
"""The labels of the kinds in the examples, each filled in from its example."""


async def test_the_demo_shows_a_newcomer_the_whole_service(context: BrowserContext, run_locally: RunLocally) -> None:
    page = await open_demo(context, (await run_locally()).url)
    await expect(page.get_by_text("None yet.")).to_be_visible()
    await expect(page.locator("option:checked")).to_have_text("New sign-in from Oslo")
    button, mails = page.get_by_role("button", name="Create", exact=True), page.locator("#mails li")
    place = await box_of(button)
    await expect(page.get_by_role("link", name="API")).to_have_attribute("href", "docs?demo")
    await create_on(page)
    await expect(page.locator(".toast")).to_have_text("New sign-in from Oslo")
    await expect(panel(page)).to_contain_text("New sign-in from Oslo")
    assert (await box_of(panel(page)))["x"] >= right_of(await box_of(page.locator("#mailbox")))
    await expect(button).to_be_focused()
    await expect(mails).to_have_count(1)
    await expect(mails).to_contain_text("to user@example.com")
    await choose(page, "registration")
    await expect(page.get_by_text("An e-mail only.")).to_be_visible()
    await create_on(page)
    await expect(mails).to_have_count(2)
    await expect(mails.first).to_contain_text("registration")
    await shows_unread(page, 1)
    assert await box_of(button) == place
    curl = await page.locator("#curl").inner_text()
    assert (await asyncio.to_thread(run_shell, curl)) == {"success": True}
    assert [event for event in await events(page) if event[0] == "CSP"] == []


async def box_of(locator: Locator) -> FloatRect:
    box = await locator.bounding_box()
    assert box
    return box


def right_of(box: FloatRect) -> float:
    return box["x"] + box["width"]


async def test_the_demo_says_that_a_read_notification_is_not_e_mailed(
    context: BrowserContext, run_locally: RunLocally, database: DB
) -> None:
    page = await open_demo(context, (await run_locally()).url, clock=True)
    await choose(page, "question_answered")
    await expect(page.get_by_text("only if it is still unread after 30 seconds. Read it")).to_be_visible()
    await create_on(page)
    waiting = page.locator("#waiting li")
    await expect(waiting).to_contain_text(re.compile("E-mail in (30|29) seconds, unless it is read first"))
    await row_of(page, 0).click()
    await expect(waiting).to_contain_text("It was read in time: no e-mail.")
    await shows_unread(page, 0)
    end_windows(database, "question_answered")
    await settled(database)
    await create_on(page)
    await expect(waiting).to_have_count(2)
    end_windows(database, "question_answered")
    await settled(database)
    await page.clock.fast_forward(31_000)
    await expect(waiting).to_have_count(1)
    await expect(page.locator("#mails strong")).to_have_text("question_answered")


def test_a_local_run_has_the_specified_kinds_and_one_more() -> None:
    kinds = load_kinds(LOCAL_DEFAULTS["kinds_file"])
    bare = {name: replace(kind, label=None, example=None) for name, kind in kinds.items()}
    assert {**bare, **SPECIFIED} == bare
    assert [kind.email_after for name, kind in kinds.items() if name not in SPECIFIED] == ["30s"]


async def test_the_demo_offers_the_services_kinds_and_accepts_its_ids(serve: Serve, context: BrowserContext) -> None:
    server = await serve(demo=True, kinds_file=ROOT / "examples/kinds.toml", id_type=IdType.STRING)
    page = await open_demo(context, server.url)
    assert await page.locator("option").all_inner_texts() == OPTIONS
    await expect(page.get_by_label("What happened")).to_have_value("new_login")
    await (await field(page, USER_FIELD)).fill("ann & bob/ü")
    await choose(page, "back_in_stock")
    await expect(page.locator("#curl")).to_contain_text('"key":"back_in_stock"')
    await create_on(page)
    await expect(page.get_by_text("Created.")).to_be_visible()
    await shows_unread(page, 1)
    assert (await asyncio.to_thread(run_shell, await page.locator("#curl").inner_text())) == {"success": True}
    await shows_unread(page, 2)
    assert [event for event in await events(page) if event[0] == "CSP"] == []


async def test_a_double_click_creates_one(serve: Serve, context: BrowserContext) -> None:
    page = await open_demo(context, (await serve(demo=True)).url)
    released, sent = asyncio.Event(), []

    async def hold(route: Route) -> None:
        sent.append(route.request.post_data)
        await released.wait()
        await route.continue_()

    await page.route("**/create", hold)
    button = page.get_by_role("button", name="Create", exact=True)
    await button.dblclick()
    released.set()
    await expect(page.get_by_text("Created.")).to_be_visible()
    await expect(button).to_be_focused()
    async with page.expect_response("**/create"):
        await button.click()
    assert len(sent) == 2  # the double click's and this one


KINDS = """
[order]
label = "{data.order.number} of {data.name|Somebody}"
url = "/orders/{target_id}"
example = {order = {number = 1}}
[plain]
[mail]
in_app = false
email = true
"""


async def test_the_demo_tries_each_kind_with_its_example(serve: Serve, context: BrowserContext, tmp_path: Path) -> None:
    (tmp_path / "kinds.toml").write_text(KINDS)
    page = await open_demo(context, (await serve(demo=True, kinds_file=tmp_path / "kinds.toml")).url)
    data, about = await field(page, DATA), await field(page, ABOUT)
    assert await page.locator("option").all_inner_texts() == ["1 of Somebody", "Plain", "Mail"]
    await expect(page.get_by_label("What happened")).to_have_value("order")  # the first, as none is both
    assert json.loads(await data.input_value()) == {"order": {"number": 1}}
    await expect(about).to_have_value(TARGET)
    await choose(page, "plain")
    await expect(data).to_have_value("")
    await expect(about).to_have_value("")
    await create_on(page)
    await shows_unread(page, 1)
    await expect(page.locator("#mailbox")).to_be_hidden()


async def test_the_demo_shows_each_error_beside_its_field(serve: Serve, context: BrowserContext) -> None:
    server = await serve(demo=True)
    page = await open_demo(context, server.url)
    user, about, data = [await field(page, label) for label in (USER_FIELD, ABOUT, DATA)]
    await user.fill("x")
    await about.fill("y")
    await page.get_by_text("User and data").click()  # the fields are hidden again
    await expect(user).to_be_hidden()
    await create_on(page)
    for wrong in (user, about):
        await expect(wrong).to_have_attribute("aria-invalid", "true")
        await expect(wrong).to_have_accessible_description("Not a valid ObjectId.")
    await expect(user).to_be_focused()
    await user.fill(USER)
    await about.fill("")
    await data.fill("{nonsense")
    await create_on(page)
    await expect(data).to_have_accessible_description(re.compile("Not JSON"))
    await expect(user).to_have_attribute("aria-invalid", "false")
    await data.fill('{"it\'s": "fine"}')
    await create_on(page)
    await shows_unread(page, 1)
    assert (await asyncio.to_thread(run_shell, await page.locator("#curl").inner_text())) == {"success": True}
    await server.close()
    await create_on(page)
    await expect(page.get_by_text("The service cannot be reached.")).to_be_visible()


@pytest.mark.ci
async def test_one_command_of_the_demo_shows_kinds_and_templates(
    context: BrowserContext, run_locally: RunLocally
) -> None:
    page = await open_demo(context, (await run_locally()).url)
    await page.get_by_text("With kinds and templates of your own").click()
    *assignments, program, target = (await page.locator("#restart").inner_text()).split()
    assert (program, target) == ("make", "run")
    given = dict(assignment.split("=") for assignment in assignments)
    page = await open_demo(context, (await run_locally(**{k.lower(): ROOT / v for k, v in given.items()})).url)
    await expect(page.locator("#examples")).to_be_hidden()
    for kind in load_kinds(ROOT / given["KINDS_FILE"]):
        await choose(page, kind)
        await create_on(page)
        await expect(page.get_by_text("Created.")).to_be_visible()
        await page.evaluate("document.getElementById('outcome').textContent = ''")
        if kind == "registration":
            await expect(page.frame_locator("#mails iframe").get_by_role("heading")).to_have_text("Welcome")
    await shows_unread(page, 6)
    assert await rows(page).locator("b").all_inner_texts() == OPTIONS[:0:-1]


async def test_axe_finds_no_fault_in_the_demo(browser: Browser, run_locally: RunLocally) -> None:
    local = await run_locally(api_keys=(KEY,))
    async with await browser.new_context(bypass_csp=True) as context:
        page = await open_demo(context, local.url, clock=True)
        await enter(page, "x")
        await expect(page.get_by_text(BY_EXCEPTION[BadCredential].detail)).to_be_visible()
        await assert_accessible(page)
        await enter(page, KEY)
        await expect(page.locator("#access")).to_be_hidden()
        await create_on(page)
        await expect(page.locator("#mails li")).to_have_count(1)
        await choose(page, "question_answered")
        await create_on(page)
        await shows_unread(page, 2)
        await (await field(page, ABOUT)).fill("y")
        await create_on(page)
        await expect(await field(page, ABOUT)).to_be_focused()
        await assert_accessible(page)
        await outlive_toasts(page)
        await page.set_viewport_size({"width": 390, "height": 700})
        await assert_accessible(page, ["light"])


@pytest.mark.ci
async def test_the_demo_fits_desktop_and_phone(
    browser: Browser, run_locally: RunLocally, database: DB, tmp_path: Path
) -> None:
    """Also take the pictures of the documentation. SCREENSHOTS=docs puts them there."""
    of_other_kinds = shutil.ignore_patterns("order_*", "invoice_*", "new_in_*")
    local = await run_locally(
        templates_dir=shutil.copytree(ROOT / "examples/templates", tmp_path / "templates", ignore=of_other_kinds)
    )
    folder = ROOT / (os.environ.get("SCREENSHOTS") or tmp_path)
    for name, look in PICTURES.items():
        await seed(local, database)
        async with await browser.new_context(**look) as context:  # type: ignore[arg-type]
            page = await open_demo(context, local.url, clock=True)
            await create_on(page)
            await expect(page.locator("#mails strong")).to_have_text("New sign-in from Oslo")
            await choose(page, "question_answered")
            await create_on(page)
            await shows_unread(page, 4)
            await outlive_toasts(page)
            if name == "inbox-phone":
                await assert_fits(page)
                await bell(page).click()
            await expect(rows(page)).to_have_count(6)
            await assert_fits(page)
            await page.screenshot(path=folder / f"{name}.png")


async def assert_fits(page: Page) -> None:
    """Check that the page does not scroll sideways, and that all of an open panel is in the window."""
    assert await page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    if await panel(page).is_visible():
        box, view = await box_of(panel(page)), page.viewport_size
        assert view
        assert box["x"] >= 0
        assert right_of(box) <= view["width"]
        assert box["y"] + box["height"] <= view["height"] + 1


async def seed(local: Local, database: DB) -> None:
    """Give the user notifications of different ages, the newest two unread, and an empty mailbox."""
    database.users.delete_many({})
    for _, key, data in reversed(SEEDED):
        await create(local.client, key=key, data=data)
    for n, (age, _, _) in enumerate(reversed(SEEDED)):
        database.users.update_one({}, {"$inc": {f"notifications.{n}.timestamp": -age}})
        database.users.update_one({}, {"$set": {f"notifications.{n}.is_new": n >= len(SEEDED) - 2}})
    await settled(database)
    shutil.rmtree(local.mailbox)
    local.mailbox.mkdir()
