"""Requests to the service, a look into its database, and the constants that tests share."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sized
from pathlib import Path
from typing import Any

import jwt
from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient
from bson import ObjectId
from pymongo.database import Database

from tests.waiting import eventually_async

Client = TestClient[web.Request, web.Application]
DB = Database[dict[str, Any]]

ROOT = Path(__file__).parent.parent
USER = "638f394d4b7243fc0399ea67"
OTHER = "638f394d4b7243fc0399ea68"
TARGET = "0399ea67638f394d4b7243fc"
KEY = "k" * 32
OLD_KEY = "ö" * 16
SECRET = "s" * 32
OLD_SECRET = "o" * 32
METRICS_KEY, SUPPRESS_KEY = "m" * 32, "p" * 32
PROTECTED = {
    "api_keys": (KEY, OLD_KEY, f"metrics:{METRICS_KEY}", f"suppress:{SUPPRESS_KEY}"),
    "user_token_secrets": (SECRET, OLD_SECRET),
}
"""Settings of a service that asks its callers for a key or a token."""


async def create(client: Client, user_id: str = USER, key: str = "new_message", **fields: Any) -> None:
    response = await client.post("/create", json={"user_id": user_id, "key": key, **fields})
    assert (response.status, await response.json()) == (201, {"success": True})


async def list_(client: Client, user_id: str = USER, **query: Any) -> dict[str, Any]:
    """Return the `data` of the answer."""
    response = await client.get("/list", params={"user_id": user_id, **query})
    body = await response.json()
    assert (response.status, body["success"]) == (200, True)
    data: dict[str, Any] = body["data"]
    return data


async def read(client: Client, notification_id: str, user_id: str = USER) -> int:
    """Return the status of the answer."""
    response = await client.post("/read", params={"user_id": user_id, "notification_id": notification_id})
    if response.status == 200:
        assert await response.json() == {"success": True}
    return response.status


async def problem(response: ClientResponse) -> dict[str, Any]:
    """Return the body of a failure, after checking that it has the one shape."""
    assert response.content_type == "application/problem+json"
    body: dict[str, Any] = await response.json()
    assert body.keys() - {"errors"} == {"success", "type", "title", "status", "detail"}
    assert (body["success"], body["type"], body["status"]) == (False, "about:blank", response.status)
    return body


async def metric(client: Client, line: str) -> float:
    """Return the value of a metric, named with its labels; 0 if there is none yet."""
    text = await (await client.get("/metrics")).text()
    found = re.search(rf"^{re.escape(line)} (.+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


async def counted(client: Client, line: str, value: float) -> None:
    """Wait until a metric has this value. An e-mail is counted only after MongoDB has said that it is settled."""

    async def is_counted() -> None:
        assert await metric(client, line) == value

    await eventually_async(is_counted)


def token(secret: str = SECRET, algorithm: str = "HS256", **claims: Any) -> str:
    """Return a token for `USER`, valid for an hour. `claims` replace its claims; a claim that is `None` is left out."""
    claims = {"sub": USER, "exp": int(time.time()) + 3600, **claims}
    return jwt.encode({name: value for name, value in claims.items() if value is not None}, secret, algorithm)


async def owe(client: Client, count: int) -> None:
    """Owe an e-mail to each of this many users."""
    await asyncio.gather(*(create(client, f"{n:024x}", "registration") for n in range(count)))


def user(database: DB, user_id: str = USER) -> dict[str, Any]:
    """Return the user's document."""
    ids = [user_id, ObjectId(user_id)] if ObjectId.is_valid(user_id) else [user_id]
    found = database.users.find_one({"_id": {"$in": ids}})
    assert found is not None
    return found


def ours(database: DB, user_id: str = USER) -> dict[str, Any]:
    """Return the `notifier` of the user's document."""
    found: dict[str, Any] = user(database, user_id).get("notifier", {})
    return found


def owing(*emails: dict[str, Any]) -> dict[str, Any]:
    """Return the `notifier` of a document whose user is owed these e-mails."""
    return {"notifier": {"outbox": list(emails), "due": min(item["next_at"] for item in emails)}}


def owed(database: DB) -> list[dict[str, Any]]:
    """Return the e-mails owed to all users."""
    return [item for user in database.users.find() for item in user.get("notifier", {}).get("outbox", [])]


def assert_nothing_owed(database: DB) -> None:
    assert database.users.count_documents({"notifier.due": {"$exists": True}}) == 0


async def settled(database: DB, within: float = 30.0) -> None:
    """Wait until no e-mail is owed, for at most this many seconds."""
    await eventually_async(lambda: assert_nothing_owed(database), within)


def assert_length(items: Sized, length: int) -> None:
    assert len(items) == length
