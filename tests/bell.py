"""The bell as its users find it on a page: by role, name and text."""

from __future__ import annotations

from playwright.async_api import Locator, Page, expect


def bell(page: Page) -> Locator:
    return page.get_by_role("button", name="Notifications")


def panel(page: Page) -> Locator:
    return page.get_by_role("dialog", name="Notifications")


def rows(page: Page) -> Locator:
    return page.locator("notifier-inbox li")


async def shows_unread(page: Page, count: int) -> None:
    """Wait until the bell shows this count, and a screen reader announces it."""
    await expect(page.locator("notifier-inbox #badge")).to_have_text(str(count) if count else "")
    name = f"Notifications, {count} unread" if count else "Notifications"
    await expect(page.get_by_role("button", name=name, exact=True)).to_be_visible()


def row_of(page: Page, n: int) -> Locator:
    """Return what a click on a row goes to: a link, or else a button."""
    return rows(page).nth(n).locator("> .main")


async def open_menu(page: Page, n: int) -> Locator:
    """Open the menu of a row, and return it."""
    await rows(page).nth(n).get_by_role("button", name="Actions").click()
    return page.get_by_role("menu")
