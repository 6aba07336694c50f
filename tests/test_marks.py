"""`/unread` and `/delete`, which select notifications as `/read` does."""

from __future__ import annotations

from typing import Any

import pytest
from bson import ObjectId

from tests.client import DB, OTHER, TARGET, USER, Client, create, list_, ours, read, user
from tests.fixtures import Start


async def post(client: Client, path: str, user_id: str = USER, **selector: str) -> int:
    response = await client.post(path, params={"user_id": user_id, **selector})
    return response.status


async def delete(client: Client, **selector: str) -> int:
    return await post(client, "/delete", **selector)


async def ids(client: Client, user_id: str = USER) -> list[str]:
    """Return the ids of the inbox, newest first."""
    return [item["id"] for item in (await list_(client, user_id, limit=1000))["list"]]


async def fill(client: Client) -> list[str]:
    """Create three notifications of two kinds for `USER`, and one for another; return the ids of the three."""
    await create(client, key="new_post", target_id=TARGET)
    await create(client, key="new_message")
    await create(client, key="new_post")
    await create(client, OTHER)
    return await ids(client)


async def test_a_notification_can_be_marked_as_unread_again_and_again(client: Client) -> None:
    await create(client)
    (id_,) = await ids(client)
    assert await read(client, id_) == 200
    assert (await list_(client))["new"] == 0
    for _ in range(2):
        assert await post(client, "/unread", notification_id=id_) == 200
        assert (await list_(client))["new"] == 1


SELECTORS = [({"key": "new_post"}, [1]), ({"target_id": TARGET}, [0, 1]), ({"all": "true"}, [])]


@pytest.mark.parametrize(("selector", "left"), SELECTORS)
async def test_selectors_delete_all_that_match_and_nothing_else(
    client: Client, selector: dict[str, str], left: list[int]
) -> None:
    three = await fill(client)
    for _ in range(2):
        assert await delete(client, **selector) == 200
        assert await ids(client) == [three[n] for n in left]
    assert len(await ids(client, OTHER)) == 1


@pytest.mark.parametrize(("selector", "left"), SELECTORS)
async def test_selectors_mark_all_that_match_as_unread(
    client: Client, selector: dict[str, str], left: list[int]
) -> None:
    await fill(client)
    assert await post(client, "/read", all="true") == 200
    assert await post(client, "/unread", **selector) == 200
    assert (await list_(client))["new"] == 3 - len(left)


async def test_one_notification_is_deleted_at_once_and_for_good(client: Client, database: DB) -> None:
    three = await fill(client)
    assert await delete(client, notification_id=three[1]) == 200
    data = await list_(client)
    assert (data["elements"], data["new"], [item["id"] for item in data["list"]]) == (2, 2, [three[0], three[2]])
    assert ours(database)["deleted"] == [three[1]]
    for path in ("/read", "/unread"):
        assert await post(client, path, notification_id=three[1]) == 404


async def test_deleting_twice_is_200_and_an_unknown_id_is_404(client: Client) -> None:
    await create(client)
    (id_,) = await ids(client)
    assert [await delete(client, notification_id=id_) for _ in range(2)] == [200, 200]
    assert await delete(client, notification_id="never") == 404
    assert await post(client, "/delete", OTHER, notification_id=id_) == 404
    assert await post(client, "/delete", OTHER, all="true") == 200


async def test_a_deletion_brings_back_nothing_that_was_hidden(start: Start, database: DB) -> None:
    client = await start(notifications_limit=10)
    old = {"timestamp": 1, "is_new": True, "user_id": USER, "key": "new_post"}
    database.users.insert_one({"_id": ObjectId(USER), "notifications": [old | {"id": f"{n}"} for n in range(15)]})
    assert await ids(client) == [f"{n}" for n in range(14, 4, -1)]
    assert await delete(client, notification_id="14") == 200
    assert await ids(client) == [f"{n}" for n in range(13, 4, -1)]
    assert await delete(client, notification_id="3") == 404


async def test_as_many_deleted_ids_are_remembered_as_an_inbox_holds(start: Start, database: DB) -> None:
    client = await start(notifications_limit=40)
    for _ in range(2):
        for _ in range(30):
            await create(client)
        newest = (await ids(client))[:30]
        assert await delete(client, all="true") == 200
    remembered = ours(database)["deleted"]
    assert (len(remembered), remembered[-30:]) == (40, newest[::-1])
    assert user(database)["notifications"] == []


async def test_an_id_that_is_no_text_stays_and_harms_nothing(client: Client, database: DB) -> None:
    odd = {"id": ["x"], "is_new": False, "key": "new_post"}
    database.users.insert_one({"_id": ObjectId(USER), "notifications": [odd]})
    await create(client, key="new_post")
    assert await delete(client, key="new_post") == 200
    assert user(database)["notifications"] == [odd]
    assert await delete(client, all="true") == 409  # as nothing is left that can be deleted
    assert user(database)["notifications"] == [odd]


async def test_a_null_among_the_notifications_stays_and_is_not_deleted(client: Client, database: DB) -> None:
    await create(client)
    database.users.update_one({}, {"$push": {"notifications": None}})
    assert await delete(client, all="true") == 200
    assert user(database)["notifications"] == [None]
    assert len(ours(database)["deleted"]) == 1


@pytest.mark.parametrize("value", ["x", {"a": 1}, [1], ["a", None], False], ids=repr)
async def test_odd_deleted_ids_hinder_nothing_and_stay_in_an_array(client: Client, database: DB, value: Any) -> None:
    database.users.insert_one({"_id": ObjectId(USER), "notifier": {"deleted": value}})
    await create(client)
    (id_,) = await ids(client)
    assert await post(client, "/read", all="true") == 200
    assert ours(database) == {"deleted": value}
    assert await delete(client, all="true") == 200
    assert (ours(database)["deleted"], await ids(client)) == ([*(value if isinstance(value, list) else []), id_], [])


async def test_a_create_after_a_deletion_with_the_same_key_is_a_replay(client: Client) -> None:
    body, headers = {"user_id": USER, "key": "new_post"}, {"Idempotency-Key": "k"}
    assert (await client.post("/create", json=body, headers=headers)).status == 201
    assert await delete(client, all="true") == 200
    response = await client.post("/create", json=body, headers=headers)
    assert (response.status, response.headers["Idempotent-Replayed"], await ids(client)) == (201, "true", [])
