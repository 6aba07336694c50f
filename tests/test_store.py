"""Documents and collections that the service shares with other programs, and the indexes."""

from __future__ import annotations

import asyncio
import math

import pytest
from bson import DatetimeMS, ObjectId

from settings import Settings
from store import open_store
from tests.client import DB, OTHER, TARGET, USER, Client, create, list_, problem, read, user
from tests.waiting import eventually_async


async def test_a_create_without_room_is_413_and_changes_nothing(client: Client, database: DB) -> None:
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


async def test_foreign_values_in_the_array_do_not_break_the_list(client: Client, database: DB) -> None:
    foreign = {"id": "old", "is_new": True, "target_id": ObjectId(TARGET), "x": math.nan, "y": DatetimeMS(2**62)}
    database.users.insert_one({"_id": ObjectId(USER), "notifications": [foreign]})
    await create(client, OTHER)
    pages = await asyncio.gather(*(list_(client, user_id) for user_id in [OTHER, USER, OTHER, USER, OTHER]))
    assert [page["elements"] for page in pages] == [1] * 5
    ((found,),) = [pages[1]["list"]]
    assert found == {"id": "old", "is_new": True, "target_id": TARGET, "x": None, "y": found["y"]}
    assert await read(client, "old") == 200


async def test_lists_of_the_same_moment_are_each_their_own_page(client: Client) -> None:
    for user_id, number in ((USER, 5), (OTHER, 3)):
        for _ in range(number):
            await create(client, user_id)
    asked = [(user, skip, limit) for skip in range(3) for limit in (0, 1, 2, 60) for user in (USER, OTHER)] * 3
    pages = await asyncio.gather(*(list_(client, user, skip=skip, limit=limit) for user, skip, limit in asked))
    for (user_id, skip, limit), page in zip(asked, pages, strict=True):
        everything = (await list_(client, user_id))["list"]
        assert page["list"] == everything[skip : skip + limit]


async def test_several_replicas_may_create_the_indexes_at_once(settings: Settings, database: DB) -> None:
    def made() -> None:
        assert database.users.index_information().get("notifier.due_1", {}).get("sparse")

    async def open_and_close() -> None:
        async with open_store(settings, serves=True):
            await eventually_async(made)

    await asyncio.gather(*(open_and_close() for _ in range(8)))
