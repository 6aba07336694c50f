"""Kinds with `collapse`: a new notification takes the place of the unread one about the same."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId

from settings import UnknownUsers
from tests.client import DB, OTHER, TARGET, USER, Client, create, list_, ours, owed, read, user
from tests.faults import far_from_due, impatient
from tests.fixtures import Start
from tests.proxy import Proxy
from tests.servers import Mongod, free_port
from tests.windows import kinds, told


@pytest.fixture
async def client(start: Start, tmp_path: Path) -> Client:
    return await start(smtp_port=free_port(), **kinds(tmp_path))


async def rows(client: Client, user_id: str = USER) -> list[tuple[str, str | None, int | None]]:
    """Return the key, target and count of the inbox, newest first."""
    page = await list_(client, user_id)
    return [(item["key"], item.get("target_id"), item.get("count")) for item in page["list"]]


async def test_a_new_one_replaces_the_unread_one_and_is_on_top(client: Client, database: DB) -> None:
    first = await told(client, "alert", target_id=TARGET, data={"n": 1})
    await told(client, "message", target_id=TARGET)
    await told(client, "alert", target_id=OTHER)
    await told(client, "alert")
    last = await told(client, "alert", target_id=TARGET, data={"n": 2})
    assert await rows(client) == [
        ("alert", TARGET, 2),
        ("alert", None, 1),
        ("alert", OTHER, 1),
        ("message", TARGET, None),
    ]
    newest = (await list_(client))["list"][0]
    assert (newest["id"], newest["data"], first != last) == (last, {"n": 2}, True)
    assert ours(database) == {"deleted": [first]}
    await told(client, "alert")
    await told(client, "alert", target_id=TARGET)
    assert [count for _, _, count in await rows(client)] == [3, 2, 1, None]


async def test_the_old_id_counts_as_deleted(client: Client) -> None:
    first, _ = [await told(client, "alert") for _ in range(2)]
    assert await read(client, first) == 404
    assert (await client.post("/delete", params={"user_id": USER, "notification_id": first})).status == 200
    assert await rows(client) == [("alert", None, 2)]


async def test_a_read_row_stays_and_a_new_one_begins(client: Client) -> None:
    await read(client, await told(client, "alert"))
    await told(client, "alert")
    await told(client, "alert")
    assert await rows(client) == [("alert", None, 2), ("alert", None, 1)]


async def test_several_unread_ones_become_one(client: Client) -> None:
    for _ in range(2):
        await told(client, "alert")
        await client.post("/read", params={"user_id": USER, "all": "true"})
    await client.post("/unread", params={"user_id": USER, "all": "true"})
    await told(client, "alert")
    assert await rows(client) == [("alert", None, 3)]


async def test_collapsing_leaves_other_rows_and_keeps_the_limit(start: Start, tmp_path: Path, database: DB) -> None:
    client = await start(notifications_limit=3, notifications_slack=4, **kinds(tmp_path))
    for n in range(9):
        await told(client, "message", data={"n": n})
    await told(client, "alert")
    await told(client, "alert")
    assert [key for key, _, _ in await rows(client)] == ["alert", "message", "message"]
    assert len(user(database)["notifications"]) == 3


@pytest.mark.parametrize("value", ["$notifications", "$$NOW", {"a.b": "$$ROOT"}, ["$_id"]], ids=str)
async def test_client_data_is_never_an_expression(client: Client, value: Any) -> None:
    await told(client, "alert")
    await told(client, "alert", data={"x": value})
    assert (await list_(client))["list"][0]["data"] == {"x": value}


async def test_a_missing_user_is_created_as_for_any_create(client: Client, database: DB) -> None:
    await told(client, "alert")
    assert user(database).keys() == {"_id", "email", "notifications"}
    assert list(user(database)["notifications"][0]) == ["id", "timestamp", "is_new", "user_id", "key", "count"]


async def test_an_unknown_user_may_be_refused(start: Start, tmp_path: Path, database: DB) -> None:
    client = await start(unknown_users=UnknownUsers.REFUSE, **kinds(tmp_path))
    assert (await client.post("/create", json={"user_id": USER, "key": "alert"})).status == 404
    assert database.users.count_documents({}) == 0


@pytest.mark.parametrize(
    "odd",
    [
        {"notifications": "theirs"},
        {"notifications": [{"id": 5}]},
        {"notifier": "theirs"},
        {"notifier": [{}]},
        {"notifier": {"recent": "theirs"}},
        {"notifier": {"outbox": {}}},
    ],
    ids=str,
)
async def test_another_programs_field_is_refused_and_left_alone(
    client: Client, database: DB, odd: dict[str, Any]
) -> None:
    database.users.insert_one({"_id": ObjectId(USER), **odd})
    headers = {"Idempotency-Key": "k"}
    response = await client.post("/create", json={"user_id": USER, "key": "build"}, headers=headers)
    assert response.status == 409
    assert user(database) == {"_id": ObjectId(USER), **odd}
    database.users.delete_many({})


async def test_concurrent_ones_add_up(client: Client) -> None:
    await asyncio.gather(*(told(client, "alert") for _ in range(20)))
    assert await rows(client) == [("alert", None, 20)]


async def test_a_replay_changes_nothing(client: Client, database: DB) -> None:
    body, headers = {"user_id": USER, "key": "build"}, {"Idempotency-Key": "k"}
    first = await client.post("/create", json=body, headers=headers)
    await told(client, "build")
    again = await client.post("/create", json=body, headers=headers)
    assert again.headers["Idempotent-Replayed"] == "true"
    assert again.headers["X-Notification-ID"] == first.headers["X-Notification-ID"]
    assert (await rows(client), len(owed(database))) == ([("build", None, 2)], 2)


@pytest.mark.parametrize("is_known", [True, False], ids=["known", "new"])
@pytest.mark.parametrize("fault", ["before", "after", "swallow"])
@impatient
async def test_a_lost_reply_counts_once(
    start: Start, any_mongod: Mongod, tmp_path: Path, fault: str, is_known: bool
) -> None:
    name, proxy = f"lost_{ObjectId()}", Proxy(any_mongod.port)
    async with proxy.running():
        uri = f"mongodb://127.0.0.1:{proxy.port}/{name}?directConnection=true"
        client = await start(db_uri=uri, **kinds(tmp_path))
        if is_known:
            await told(client, "alert")
        proxy.break_next("update", fault)
        await told(client, "alert")
        assert (proxy.faults, await rows(client)) == (1, [("alert", None, 1 + is_known)])
        with any_mongod.client() as direct:
            direct.drop_database(name)
        await client.close()


async def test_many_users_at_once(client: Client, database: DB) -> None:
    users = [f"{n:024x}" for n in range(80)]
    for user_id in users[:3]:
        await told(client, "alert", user_id)
    body = {"user_ids": users, "key": "alert"}
    for expected in ({"created": 80, "replayed": 0}, {"created": 0, "replayed": 80}):
        response = await client.post("/create", json=body, headers={"Idempotency-Key": "k"})
        assert (response.status, await response.json()) == (201, {"success": True, **expected})
    counts = [item["count"] for document in database.users.find() for item in document["notifications"]]
    assert sorted(counts) == [1] * 77 + [2] * 3


async def test_a_notification_is_kept_even_without_room_for_its_email(client: Client, database: DB) -> None:
    await told(client, "build")
    full = [far_from_due(n) for n in range(100)]
    database.users.update_one({}, {"$set": {"notifier.outbox": full, "notifier.due": full[0]["next_at"]}})
    response = await client.post("/create", json={"user_id": USER, "key": "build"})
    assert (response.status, response.headers["X-Email"], await rows(client)) == (201, "not-owed", [("build", None, 2)])
    assert [email["id"] for email in ours(database)["outbox"]] == [email["id"] for email in full]


async def test_without_a_window_each_of_those_collapsed_is_emailed(client: Client, database: DB) -> None:
    first, second = await told(client, "build", data={"n": 1}), await told(client, "build", data={"n": 2})
    assert [(email["id"], email["data"]) for email in owed(database)] == [(first, {"n": 1}), (second, {"n": 2})]


async def test_kinds_without_it_have_no_count(client: Client, database: DB) -> None:
    await create(client, key="message")
    await create(client, key="message")
    assert [list(item) for item in user(database)["notifications"]] == [
        ["id", "timestamp", "is_new", "user_id", "key"]
    ] * 2
