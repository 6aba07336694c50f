"""How much the array holds: the limit, and with slack a little more, which nobody sees."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from bson import ObjectId, encode

from tests.client import DB, OTHER, USER, Client, create, list_, ours, read, user
from tests.fixtures import Start
from tests.servers import Mongod
from tests.streams import listening

LIMIT, SLACK = 10, 6


def admit(database: DB, length: int) -> None:
    """Let MongoDB refuse every write after which an array is longer, so that it never is at any moment."""
    database.create_collection("users", validator={f"notifications.{length}": {"$exists": False}})


def held(count: int) -> list[dict[str, Any]]:
    return [
        {"id": f"{n:024x}", "is_new": n % 2 == 0, "key": "new_post", "data": {"x": "x" * 100}} for n in range(count)
    ]


def newest(database: DB, user_id: str = USER) -> list[int]:
    return [item["data"]["n"] for item in user(database, user_id)["notifications"]]


async def test_without_slack_the_array_never_holds_more_than_the_limit(start: Start, database: DB) -> None:
    admit(database, LIMIT)
    client = await start(notifications_limit=LIMIT)
    for n in range(2 * LIMIT):
        await create(client, data={"n": n})
        assert newest(database) == list(range(n + 1))[-LIMIT:]
    await asyncio.gather(*(create(client, OTHER, data={"n": n}) for n in range(100)))
    users = [USER, OTHER, *(f"{n:024x}" for n in range(70))]
    for n in range(2):
        body = {"user_ids": users, "key": "new_post", "data": {"n": 100 + n}}
        assert (await client.post("/create", json=body, headers={"Idempotency-Key": f"{n}"})).status == 201
    assert [newest(database, user_id)[-2:] for user_id in users] == [[100, 101]] * len(users)
    assert (len(newest(database)), len(newest(database, OTHER))) == (LIMIT, LIMIT)


async def test_with_slack_it_never_holds_more_than_both(
    start: Start, database: DB, monkeypatch: pytest.MonkeyPatch
) -> None:
    admit(database, LIMIT + SLACK)
    client = await start(notifications_limit=LIMIT, notifications_slack=SLACK)
    monkeypatch.setattr("mongo.creation.randrange", lambda slack: slack - 1)  # no create trims to the limit by chance
    for n in range(2 * (LIMIT + SLACK)):
        await create(client, data={"n": n})
        assert newest(database) == list(range(n + 1))[-LIMIT - SLACK :]
        seen = [item["data"]["n"] for item in (await list_(client, limit=100))["list"]]
        assert seen == list(range(n, max(n - LIMIT, -1), -1))
    await asyncio.gather(*(create(client, OTHER) for _ in range(100)))
    assert len(user(database, OTHER)["notifications"]) == LIMIT + SLACK


async def test_with_slack_some_creates_trim_to_the_limit(start: Start, database: DB) -> None:
    client = await start(notifications_limit=LIMIT, notifications_slack=5 * SLACK)
    lengths = []
    for n in range(100):
        await create(client, data={"n": n})
        lengths.append(len(newest(database)))
    trims = sum(after <= before and after == LIMIT for before, after in pairwise(lengths))
    assert 1 <= trims <= 50  # of 4 in 30
    assert LIMIT < max(lengths) <= LIMIT + 5 * SLACK


async def test_with_slack_a_create_costs_the_oplog_little(start: Start, mongod: Mongod, database: DB) -> None:
    """Without it, each create on a full inbox costs the whole array."""

    async def cost(**changes: int) -> float:
        """Return the bytes of the oplog that a create costs."""
        database.users.replace_one({"_id": ObjectId(USER)}, {"notifications": held(100)}, upsert=True)
        client = await start(**changes)
        with mongod.client() as direct:
            oplog = direct.local["oplog.rs"]
            last = oplog.find_one(sort=[("$natural", -1)])
            assert last
            for _ in range(100):
                await create(client)
            mine = {"ns": f"{database.name}.users", "ts": {"$gt": last["ts"]}}
            entries = [len(encode(entry)) for entry in oplog.find(mine)]
        assert len(entries) == 100
        return sum(entries) / 100

    array = len(encode({"": held(100)}))
    assert await cost(notifications_limit=100) > 0.7 * array
    assert await cost(notifications_limit=100, notifications_slack=50) < 0.4 * array


@pytest.mark.parametrize("limit", [10, 100])
@pytest.mark.parametrize("slack", [0, 50])
async def test_notifications_beyond_the_limit_are_invisible(start: Start, database: DB, limit: int, slack: int) -> None:
    """As after the limit was lowered. Without slack, it is there until the next create, and a mark still finds it."""
    before = held(limit + limit // 2)
    database.users.insert_one({"_id": ObjectId(USER), "notifications": before})
    client = await start(notifications_limit=limit, notifications_slack=slack)
    seen = before[-limit:][::-1]
    page = await list_(client, limit=1000)
    assert (page["elements"], page["new"], page["list"]) == (limit, limit // 2, seen)
    assert (await list_(client, skip=limit - 1, limit=5))["list"] == seen[-1:]
    assert (await list_(client, skip=limit, limit=5))["list"] == []
    assert (await list_(client, is_new="false", skip=1, limit=2))["list"] == [i for i in seen if not i["is_new"]][1:3]
    async with listening(client) as events:
        assert await events.next() == {"elements": limit, "new": limit // 2, "latest": seen[0]}
    beyond = [item["id"] for item in (before[0], before[-limit - 1])]
    assert [await read(client, id_) for id_ in beyond] == [404 if slack else 200] * 2
    assert [await read(client, item["id"]) for item in (seen[-1], seen[0])] == [200, 200]
    assert (await list_(client))["new"] == limit // 2 - sum(item["is_new"] for item in (seen[0], seen[-1]))


async def test_with_slack_what_is_beyond_the_limit_cannot_be_deleted(start: Start, database: DB) -> None:
    before = held(LIMIT + 5)
    database.users.insert_one({"_id": ObjectId(USER), "notifications": before})
    client = await start(notifications_limit=LIMIT, notifications_slack=SLACK)
    assert await delete(client, before[4]["id"]) == 404
    assert user(database) == {"_id": ObjectId(USER), "notifications": before}
    assert await delete(client, before[5]["id"]) == 200
    assert (user(database)["notifications"], ours(database)) == (before[6:], {"deleted": [before[5]["id"]]})


async def delete(client: Client, id_: str) -> int:
    return (await client.post("/delete", params={"user_id": USER, "notification_id": id_})).status
