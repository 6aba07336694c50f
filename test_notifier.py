"""The specification as tests: its requests, examples and promises, word for word.

The service runs on a real MongoDB and sends to a real SMTP server with TLS. `tests/` tests everything else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from aiohttp.pytest_plugin import AiohttpClient
from bson import ObjectId

from notifier import create_app
from settings import Settings
from tests.client import DB, Client, settled
from tests.servers import MailServer

USER_ID = "638f394d4b7243fc0399ea67"
TARGET_ID = "0399ea67638f394d4b7243fc"
EMAIL = "test@example.com"
SUCCESS = {"success": True}
EXAMPLE = {
    "id": "some_notification_id",
    "timestamp": 1698138241,
    "is_new": False,
    "user_id": "638f394d4b7243fc0399ea67",
    "key": "new_message",
    "target_id": "0399ea67638f394d4b7243fc",
    "data": {"some_field": "some_value"},
}
"""A notification, as the specification shows it in the user's document and in the answer to `/list`."""


@pytest.fixture
async def service(aiohttp_client: AiohttpClient, settings: Settings) -> Client:
    """Run the service with a limit of ten notifications, and return its client."""
    return await aiohttp_client(create_app(replace(settings, email=EMAIL, notifications_limit=10)))


async def create(service: Client, **body: Any) -> None:
    response = await service.post("/create", json={"user_id": USER_ID, "key": "new_message", **body})
    assert (response.status, await response.json()) == (201, SUCCESS)


async def list_(service: Client, **query: int) -> Mapping[str, Any]:
    response = await service.get("/list", params={"user_id": USER_ID, **query})
    body = await response.json()
    assert (response.status, body.keys(), body["success"]) == (200, {"success", "data"}, True)
    data: Mapping[str, Any] = body["data"]
    assert data.keys() == {"elements", "new", "request", "list"}
    return data


async def read(service: Client, notification_id: str) -> int:
    response = await service.post("/read", params={"user_id": USER_ID, "notification_id": notification_id})
    if response.status == 200:
        assert await response.json() == SUCCESS
    return response.status


def document(database: DB) -> Mapping[str, Any]:
    """Return the only user's document."""
    (user,) = database.users.find()
    return user


# --- POST /create ---------------------------------------------------------------------------------


async def test_create_stores_the_example_in_the_users_document(service: Client, database: DB) -> None:
    database.users.insert_one({"_id": ObjectId(USER_ID), "email": "ann@example.com", "name": "Ann"})
    before = int(time.time())
    await create(service, target_id=TARGET_ID, data={"some_field": "some_value"})
    user = document(database)
    (notification,) = user["notifications"]
    assert list(notification) == list(EXAMPLE)
    assert notification == EXAMPLE | {name: notification[name] for name in ("id", "timestamp")} | {"is_new": True}
    assert {name: type(value) for name, value in notification.items()} == {n: type(v) for n, v in EXAMPLE.items()}
    assert before <= notification["timestamp"] <= time.time()
    assert (user["email"], user["name"]) == ("ann@example.com", "Ann")


async def test_target_id_and_data_are_optional(service: Client, database: DB) -> None:
    await create(service)
    assert document(database)["notifications"][0].keys() == EXAMPLE.keys() - {"target_id", "data"}


@pytest.mark.parametrize(
    ("key", "is_recorded", "is_emailed"),
    [
        ("registration", False, True),
        ("new_message", True, False),
        ("new_post", True, False),
        ("new_login", True, True),
    ],
)
async def test_each_key_is_stored_and_e_mailed_as_specified(
    service: Client, database: DB, mail: MailServer, key: str, is_recorded: bool, is_emailed: bool
) -> None:
    database.users.insert_one({"_id": ObjectId(USER_ID), "email": "ann@example.com"})
    await create(service, key=key)
    await settled(database)
    assert [item["key"] for item in document(database).get("notifications", [])] == [key] * is_recorded
    sent = [(to, message["Subject"], f"{message.get_payload()}".strip()) for to, message in mail.received]
    assert sent == [("ann@example.com", key, key)] * is_emailed


@pytest.mark.parametrize("key", ["registration", "new_message"])
async def test_a_missing_user_is_created_with_the_configured_email(
    service: Client, database: DB, mail: MailServer, key: str
) -> None:
    await create(service, key=key)
    await settled(database)
    assert (document(database)["_id"], document(database)["email"]) == (ObjectId(USER_ID), EMAIL)
    assert [to for to, _ in mail.received] == [EMAIL] * (key == "registration")


async def test_the_document_keeps_only_the_newest_notifications(service: Client, database: DB) -> None:
    for n in range(40):
        await create(service, data={"n": n})
        assert len(document(database)["notifications"]) == min(n + 1, 10)
    assert [item["data"]["n"] for item in document(database)["notifications"]] == list(range(30, 40))


async def test_concurrent_creates_lose_nothing(service: Client, database: DB) -> None:
    await asyncio.gather(*(create(service, data={"n": n}) for n in range(10)))
    assert sorted(item["data"]["n"] for item in document(database)["notifications"]) == list(range(10))


@pytest.mark.parametrize(
    "fault",
    [
        {"user_id": "short"},
        {"user_id": None},
        {"target_id": "short"},
        {"key": "hello"},
        {"key": None},
        {"data": "x"},
    ],
    ids=str,
)
async def test_invalid_fields_are_refused_and_nothing_is_written(
    service: Client, database: DB, fault: Mapping[str, Any]
) -> None:
    response = await service.post("/create", json={"user_id": USER_ID, "key": "new_message", **fault})
    body = await response.json()
    assert (response.status, body["success"], body["errors"].keys()) == (422, False, fault.keys())
    assert database.users.count_documents({}) == 0


# --- GET /list and POST /read ---------------------------------------------------------------------


async def test_list_answers_exactly_as_in_the_example(service: Client, database: DB) -> None:
    database.users.insert_one({"_id": ObjectId(USER_ID), "notifications": [EXAMPLE]})
    response = await service.get(f"/list?user_id={USER_ID}&skip=0&limit=10")
    assert response.status == 200
    assert await response.json() == {
        "success": True,
        "data": {
            "elements": 1,
            "new": 0,
            "request": {"user_id": "638f394d4b7243fc0399ea67", "skip": 0, "limit": 10},
            "list": [EXAMPLE],
        },
    }


async def test_list_pages_by_skip_and_limit_and_counts_everything(service: Client) -> None:
    for n in range(7):
        await create(service, data={"n": n})
    page = await list_(service, skip=2, limit=3)
    assert (page["elements"], page["new"], page["request"]) == (7, 7, {"user_id": USER_ID, "skip": 2, "limit": 3})
    assert [item["data"]["n"] for item in page["list"]] == [4, 3, 2]
    assert (await list_(service, skip=7, limit=3))["list"] == []


async def test_read_marks_one_notification_as_read(service: Client) -> None:
    for _ in range(3):
        await create(service)
    notification_id = (await list_(service))["list"][1]["id"]
    assert await read(service, notification_id) == await read(service, notification_id) == 200
    page = await list_(service)
    assert (page["elements"], page["new"]) == (3, 2)
    assert [item["is_new"] for item in page["list"]] == [True, False, True]


async def test_read_of_an_unknown_notification_is_404(service: Client) -> None:
    assert await read(service, "unknown") == 404
    await create(service)
    assert await read(service, "unknown") == 404
    assert (await list_(service))["new"] == 1
