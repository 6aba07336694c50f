"""`/seen`, `unseen`, and lists of one kind."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from bson import ObjectId

from tests.client import DB, OTHER, PROTECTED, USER, Client, create, list_, ours, problem, token, user
from tests.fixtures import Start
from tests.streams import listening

STORED = [{"id": f"{n}", "timestamp": n, "is_new": n != 2, "user_id": USER, "key": "new_post"} for n in range(1, 5)]


async def see(client: Client, user_id: str = USER, **options: Any) -> int:
    response = await client.post("/seen", params={"user_id": user_id}, **options)
    return response.status


async def test_arrivals_after_seen_are_unseen(client: Client, database: DB) -> None:
    database.users.insert_one({"_id": ObjectId(USER), "notifications": STORED[:3]})
    assert "unseen" not in await list_(client)
    assert [await see(client) for _ in range(2)] == [200, 200]
    assert (await list_(client))["unseen"] == 0
    assert ours(database) == {"seen_at": 3}
    database.users.update_one({}, {"$push": {"notifications": {"$each": [STORED[3], STORED[3] | {"id": "5"}]}}})
    page = await list_(client, limit=0)
    assert (page["elements"], page["new"], page["unseen"]) == (5, 4, 2)
    assert (await client.post("/read", params={"user_id": USER, "notification_id": "4"})).status == 200
    assert (await list_(client))["unseen"] == 1  # what was read was seen
    assert await see(client) == 200
    page = await list_(client)
    assert (page["new"], page["unseen"]) == (3, 0)


async def test_unseen_ignores_clocks_and_hidden_notifications(start: Start, database: DB) -> None:
    client = await start(notifications_limit=2)
    database.users.insert_one({"_id": ObjectId(USER), "notifications": STORED, "notifier": {"seen_at": 0}})
    database.users.update_one({}, [{"$set": {"notifier.seen_at": {"$toLong": 0}}}])
    assert (await list_(client))["unseen"] == 2
    database.users.update_one({}, {"$set": {"notifications.2.timestamp": 2**40}})  # by a clock that is far ahead
    assert await see(client) == 200
    assert (ours(database)["seen_at"], (await list_(client))["unseen"]) == (2**40, 0)


async def test_fractions_of_a_second_are_seen_too(client: Client, database: DB) -> None:
    database.users.insert_one({"_id": ObjectId(USER), "notifications": [STORED[0] | {"timestamp": 1.5}]})
    assert await see(client) == 200
    assert (await list_(client))["unseen"] == 0


@pytest.mark.parametrize("stored", [[], [{"id": "x", "is_new": True, "timestamp": "then"}, None]], ids=["empty", "odd"])
async def test_an_inbox_without_a_time_can_be_seen(client: Client, database: DB, stored: list[Any]) -> None:
    database.users.insert_one({"_id": ObjectId(USER), "notifications": stored})
    assert await see(client) == 200
    assert (ours(database), (await list_(client))["unseen"]) == ({"seen_at": 0}, 0)


async def test_seeing_creates_no_user_and_harms_no_other_document(client: Client, database: DB) -> None:
    assert await see(client) == 200
    assert database.users.count_documents({}) == 0
    odd = {"_id": ObjectId(USER), "notifier": "theirs"}
    database.users.insert_one(odd)
    assert await see(client) == 409
    assert user(database) == odd
    database.users.delete_many({})


async def test_a_user_sees_with_a_token_and_only_for_oneself(start: Start) -> None:
    client = await start(**PROTECTED)
    headers = {"Authorization": f"Bearer {token()}"}
    assert [await see(client, id_, headers=headers) for id_ in (USER, OTHER)] == [200, 403]
    assert await see(client) == 401


async def test_the_stream_tells_what_is_unseen_after_the_first_call(client: Client) -> None:
    await create(client)
    async with listening(client) as events:
        assert "unseen" not in await events.next()
        assert await see(client) == 200
        assert (await events.next())["unseen"] == 0


async def test_an_erasure_forgets_what_was_seen(client: Client, database: DB) -> None:
    await create(client)
    await see(client)
    assert (await client.post("/erase", params={"user_id": USER})).status == 200
    assert user(database).keys() == {"_id", "email"}


async def test_a_list_of_one_kind_has_the_counts_of_all(client: Client) -> None:
    for key in ("new_post", "new_message", "new_post", "new_login"):
        await create(client, key=key)
    newest = (await list_(client))["list"]
    assert (await client.post("/read", params={"user_id": USER, "notification_id": newest[1]["id"]})).status == 200
    page = await list_(client, key="new_post")
    assert (page["elements"], page["new"], page["request"]["key"]) == (4, 3, "new_post")
    assert [item["id"] for item in page["list"]] == [newest[1]["id"], newest[3]["id"]]
    page = await list_(client, key="new_post", is_new="true", skip=0, limit=1)
    assert [item["id"] for item in page["list"]] == [newest[3]["id"]]
    keys = ["new_post", "new_message"] * 40  # which share queries, but not with each other
    pages = await asyncio.gather(*(list_(client, user_id, key=key) for key in keys for user_id in (USER, OTHER)))
    told = [{item["key"] for item in page["list"]} for page in pages]
    assert told == [found for key in keys for found in ({key}, set())]
    response = await client.get("/list", params={"user_id": USER, "key": "unknown"})
    assert (response.status, (await problem(response))["errors"].keys()) == (422, {"key"})
