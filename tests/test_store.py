"""Documents and collections that the service shares with other programs, and the indexes."""

from __future__ import annotations

import asyncio
import math
from itertools import pairwise
from typing import Any

import pytest
from bson import DatetimeMS, ObjectId

from settings import Settings
from store import open_store
from tests.client import DB, OTHER, TARGET, USER, Client, create, list_, problem, read, user
from tests.fixtures import Start
from tests.streams import listening


async def test_a_create_without_room_in_the_document_is_413_and_changes_nothing(client: Client, database: DB) -> None:
    database.users.insert_one({"_id": ObjectId(USER), "blob": b"x" * (16 * 1024 * 1024 - 1000)})
    response = await client.post("/create", json={"user_id": USER, "key": "new_post", "data": {"a": "x" * 2000}})
    assert response.status == 413
    await problem(response)
    assert "notifications" not in user(database)


async def test_a_create_that_the_collection_does_not_admit_is_409(
    client: Client, database: DB, caplog: pytest.LogCaptureFixture
) -> None:
    database.users.create_index("email", unique=True)
    await create(client, USER)
    response = await client.post("/create", json={"user_id": OTHER, "key": "new_message"})
    assert response.status == 409
    await problem(response)
    assert "@" not in caplog.text
    refused = [record for record in caplog.records if record.message == "requests fail: a unique index"]
    assert [getattr(record, "request_id", "") for record in refused] == [response.headers["X-Request-ID"]]
    database.users.insert_one({"_id": ObjectId("0" * 24), "email": "x", "notifications": "not ours"})
    response = await client.post("/create", json={"user_id": "0" * 24, "key": "new_message"})
    assert response.status == 409
    assert (await list_(client, "0" * 24))["list"] == []


async def test_values_of_other_programs_in_the_array_do_not_break_the_list(client: Client, database: DB) -> None:
    foreign = {"id": "old", "is_new": True, "target_id": ObjectId(TARGET), "x": math.nan, "y": DatetimeMS(2**62)}
    database.users.insert_one({"_id": ObjectId(USER), "notifications": [foreign]})
    await create(client, OTHER)
    pages = await asyncio.gather(*(list_(client, user_id) for user_id in [OTHER, USER, OTHER, USER, OTHER]))
    assert [page["elements"] for page in pages] == [1] * 5
    ((found,),) = [pages[1]["list"]]
    assert found == {"id": "old", "is_new": True, "target_id": TARGET, "x": None, "y": found["y"]}
    assert await read(client, "old") == 200


async def test_several_replicas_may_create_the_indexes_at_once(settings: Settings, database: DB) -> None:
    async def open_and_close() -> None:
        async with open_store(settings):
            pass

    await asyncio.gather(*(open_and_close() for _ in range(8)))
    assert database.users.index_information()["notifier.due_1"]["sparse"]


@pytest.mark.parametrize("limit", [10, 100])
async def test_what_the_array_holds_beyond_the_limit_is_not_seen(start: Start, database: DB, limit: int) -> None:
    held: list[dict[str, Any]] = [
        {"id": f"{n:024x}", "is_new": n % 2 == 0, "key": "new_post"} for n in range(limit + limit // 2)
    ]
    database.users.insert_one({"_id": ObjectId(USER), "notifications": held})
    client = await start(notifications_limit=limit)
    seen = held[-limit:][::-1]
    page = await list_(client, limit=1000)
    assert (page["elements"], page["new"], page["list"]) == (limit, limit // 2, seen)
    assert (await list_(client, skip=limit - 1, limit=5))["list"] == seen[-1:]
    assert (await list_(client, skip=limit, limit=5))["list"] == []
    assert (await list_(client, is_new="false", skip=1, limit=2))["list"] == [i for i in seen if not i["is_new"]][1:3]
    async with listening(client) as events:
        assert await events.next() == {"elements": limit, "new": limit // 2, "latest": seen[0]}
    assert [await read(client, item["id"]) for item in (held[0], held[-limit - 1])] == [404, 404]
    assert [await read(client, item["id"]) for item in (seen[-1], seen[0])] == [200, 200]
    assert (await list_(client))["new"] == limit // 2 - sum(item["is_new"] for item in (seen[0], seen[-1]))


async def test_the_array_is_bounded_and_most_creates_do_not_rewrite_it(start: Start, database: DB) -> None:
    limit = 40
    client = await start(notifications_limit=limit)
    lengths = []
    for n in range(6 * limit):
        await create(client, data={"n": n})
        lengths.append(len(user(database)["notifications"]))
    assert limit < max(lengths) <= limit + limit // 2
    trims = sum(after <= before for before, after in pairwise(lengths))
    assert trims < 3 * limit
    assert [item["data"]["n"] for item in (await list_(client, limit=100))["list"]] == list(range(n, n - limit, -1))
