"""What a test asks of the service, and what it finds in the database afterwards."""

from __future__ import annotations

import asyncio
import re
import time
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
USER = "638f394d4b7243fc0399ea67"
OTHER = "638f394d4b7243fc0399ea68"
TARGET = "0399ea67638f394d4b7243fc"
ROOT = Path(__file__).parent.parent
KEY = "k" * 32
OLD_KEY = "ö" * 16
SECRET = "s" * 32
PROTECTED = {"api_keys": (KEY, OLD_KEY), "user_token_secret": SECRET}


async def create(client: Client, user_id: str = USER, key: str = "new_message", **fields: Any) -> None:
    response = await client.post("/create", json={"user_id": user_id, "key": key, **fields})
    assert (response.status, await response.json()) == (201, {"success": True})


async def list_(client: Client, user_id: str = USER, **query: Any) -> dict[str, Any]:
    response = await client.get("/list", params={"user_id": user_id, **query})
    body = await response.json()
    assert (response.status, body["success"]) == (200, True)
    data: dict[str, Any] = body["data"]
    return data


async def read(client: Client, notification_id: str, user_id: str = USER) -> int:
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


def user(database: DB, user_id: str = USER) -> dict[str, Any]:
    found = database.users.find_one(ObjectId(user_id))
    assert found is not None
    return found


def nothing_owed(database: DB) -> None:
    assert database.users.count_documents({"mail_due": {"$exists": True}}) == 0


async def settled(database: DB) -> None:
    """Wait until no e-mail is owed."""

    async def check() -> None:
        nothing_owed(database)

    await eventually_async(check)


def one(items: list[str]) -> None:
    assert len(items) == 1


async def count(items: list[Any], expected: int) -> None:
    assert len(items) == expected


async def owe(client: Client, count: int) -> None:
    """Owe e-mails to as many users."""
    await asyncio.gather(*(create(client, f"{n:024x}", "registration") for n in range(count)))


def owed(database: DB) -> list[dict[str, Any]]:
    return [item for user in database.users.find() for item in user.get("outbox", [])]


def token(secret: str = SECRET, algorithm: str = "HS256", **claims: Any) -> str:
    claims = {"sub": USER, "exp": int(time.time()) + 60, **claims}
    return jwt.encode({name: value for name, value in claims.items() if value is not None}, secret, algorithm)


async def metric(client: Client, line: str) -> float:
    text = await (await client.get("/metrics")).text()
    found = re.search(rf"^{re.escape(line)} (.+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0
