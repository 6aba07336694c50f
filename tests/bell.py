"""The bell as its users find it on a page: by role, name and text."""

from __future__ import annotations

from playwright.async_api import Locator, Page, expect

FRAMES = """{
    const { requestAnimationFrame: draw, setTimeout: wait } = window; // a page's clock does not stop these
    (function frame() { draw(() => wait(frame, 50)); })();
}"""
"""Has a page drawn again and again. The shell draws only where something changes, and calls no idle callback before."""


def bell(page: Page) -> Locator:
    return page.get_by_role("button", name="Notifications")


def panel(page: Page) -> Locator:
    return page.get_by_role("dialog", name="Notifications")


def rows(page: Page) -> Locator:
    return page.locator("notifier-inbox li")


async def shows_new(page: Page, count: int) -> None:
    """Wait until the bell shows that this many have come since the panel was opened, and a screen reader says so."""
    await expect(page.locator("notifier-inbox #badge")).to_have_text(str(count) if count else "")
    name = f"Notifications, {count} new" if count else "Notifications"
    await expect(page.get_by_role("button", name=name, exact=True)).to_be_visible()


async def shows_unread(page: Page, count: int) -> None:
    """Wait until this many are unread, whether or not the user has seen them."""
    await expect(page.locator("notifier-inbox")).to_have_js_property("unread", count)
    if await panel(page).is_visible():
        await expect(page.locator("notifier-inbox #filter-unread .count")).to_have_text(str(count) if count else "")


def row_of(page: Page, n: int) -> Locator:
    """Return the target of a click on a row: its link, or else its button."""
    return rows(page).nth(n).locator("> .main")


async def open_menu(page: Page, n: int) -> Locator:
    """Open the menu of a row, and return it."""
    await rows(page).nth(n).get_by_role("button", name="Actions").click()
    return page.get_by_role("menu")
