"""Kinds whose e-mails wait, collapse or are about many, and the end of their windows without waiting for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from settings import Settings
from tests.client import DB, USER, Client

KINDS = """
[comment]
email = true
email_after = "10m"
[answer]
email = true
email_after = "10m"
email_batch = "target"
[digest]
email = true
email_after = "1d"
email_batch = "kind"
[alert]
collapse = true
[build]
collapse = true
email = true
[price]
collapse = true
email = true
email_after = "10m"
email_batch = "target"
[message]
[receipt]
in_app = false
email = true
required = true
"""


def kinds(folder: Path) -> dict[str, Any]:
    """Return the setting of a file with these kinds."""
    (folder / "kinds.toml").write_text(KINDS)
    return {"kinds_file": folder / "kinds.toml"}


def with_kinds(settings: Settings, folder: Path, **changes: Any) -> Settings:
    """Return settings with these kinds."""
    return replace(settings, **kinds(folder), **changes)


async def told(client: Client, key: str, user_id: str = USER, **fields: Any) -> str:
    """Create a notification; return its id."""
    response = await client.post("/create", json={"user_id": user_id, "key": key, **fields})
    assert (response.status, "X-Email" in response.headers) == (201, False)
    return response.headers["X-Notification-ID"]


def end_windows(database: DB, key: str | None = None) -> None:
    """Let the windows of a kind, or of all, have ended a day or two ago, each after the same time as before."""
    two_days = 2 * 86_400_000
    over = {"$mergeObjects": ["$$this", {"due": {"$subtract": ["$$this.due", two_days]}}]}
    moved = {
        "$map": {
            "input": "$notifier.waiting",
            "in": {"$cond": [{"$in": ["$$this.key", [key, *_all(key)]]}, over, "$$this"]},
        }
    }
    first = {"$min": [{"$min": "$notifier.outbox.next_at"}, {"$min": "$notifier.waiting.due"}]}
    has_some = {"notifier.waiting": {"$exists": True}}
    database.users.update_many(has_some, [{"$set": {"notifier.waiting": moved}}, {"$set": {"notifier.due": first}}])


def _all(key: str | None) -> list[str]:
    return [] if key else [line[1:-1] for line in KINDS.splitlines() if line.startswith("[")]
