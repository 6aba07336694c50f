"""The streams of a process: what they tell, whom, how many there may be, and how they end."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId

from api.auth import LEEWAY
from api.streams import HUB, KEEP_ALIVE
from settings import Settings
from tests.client import (
    DB,
    KEY,
    OTHER,
    PROTECTED,
    USER,
    Client,
    counted,
    create,
    list_,
    metric,
    problem,
    settled,
    token,
)
from tests.fixtures import Start
from tests.processes import running_service
from tests.servers import Mongod
from tests.streams import EMPTY, Events, assert_streams_open, client_of, listening, stream_url
from tests.waiting import eventually_async


async def test_an_event_comes_at_once_and_after_every_change(start: Start, client: Client, database: DB) -> None:
    replica = await start()
    users, me = database.users, {"_id": ObjectId(USER)}
    async with listening(client) as events:
        assert await events.next() == EMPTY
        await create(client, data={"n": 1})
        first = await events.next()
        assert first == {"elements": 1, "new": 1, "latest": (await list_(client))["list"][0]}
        await create(replica, key="new_post")
        assert (await events.next())["latest"]["key"] == "new_post"
        assert (await client.post(f"/read?user_id={USER}&all=true")).status == 200
        assert (await events.next())["new"] == 0
        element = {**first["latest"], "id": "theirs"}
        users.update_one(me, {"$push": {"notifications": element}})
        assert await events.next() == {"elements": 3, "new": 1, "latest": element}
        users.update_one(me, {"$pull": {"notifications": {"id": "theirs"}}})
        assert (await events.next())["elements"] == 2
        users.update_one(me, [{"$set": {"notifications": {"$slice": ["$notifications", 1]}}}])
        assert (await events.next())["elements"] == 1
        users.update_one(me, {"$unset": {"notifications": 1}})
        assert await events.next() == EMPTY
        users.replace_one(me, {"email": "a@b.example", "notifications": [element]})
        assert (await events.next())["latest"] == element
        users.delete_one(me)
        assert await events.next() == EMPTY
        users.insert_one(me | {"notifications": [element]})
        assert (await events.next())["latest"] == element


async def test_no_event_comes_unless_the_notifications_change(client: Client, database: DB) -> None:
    me = {"_id": ObjectId(USER)}
    async with listening(client) as events:
        assert await events.next() == EMPTY
        await create(client, key="new_login")
        assert (await events.next())["elements"] == 1
        await settled(database)
        await create(client, key="registration")  # only e-mailed
        await settled(database)
        database.users.update_one(me, {"$set": {"notifications_seen": 1, "profile.notifications": [1]}})
        await create(client, OTHER)
        await create(client, key="new_post")
        assert (await events.next())["latest"]["key"] == "new_post"
    await counted(client, "notifier_stream_events_total", 3)


@pytest.mark.ci
async def test_1000_clients_see_each_change_once_and_in_order(settings: Settings, database: DB, tmp_path: Path) -> None:
    service = await running_service(settings, tmp_path)
    users = [f"{n:024x}" for n in range(250)]
    async with client_of(service) as client, AsyncExitStack() as stack:
        opening = (stack.enter_async_context(listening(client, user_id)) for user_id in users * 4)
        streams = list(zip(users * 4, await asyncio.gather(*opening), strict=True))
        seen: list[list[int]] = [[] for _ in streams]

        tasks = [asyncio.create_task(follow(events, counts)) for (_, events), counts in zip(streams, seen, strict=True)]
        try:
            for _ in range(4):
                await asyncio.gather(*(create(client, user_id) for user_id in users))
                element = {"id": "theirs", "is_new": True}
                database.users.update_many({}, {"$push": {"notifications": element}})
            await eventually_async(lambda: assert_up_to_date(database, streams))
            assert await metric(client, "notifier_streams_open") == 1000
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
    service.kill()
    for counts in seen:
        assert counts[0] == 0
        assert counts == sorted(counts)
        assert len(counts) <= 1 + 8


async def follow(events: Events, counts: list[int]) -> None:
    """Read events for ever, and keep how many notifications each one reported."""
    while True:
        counts.append((await events.next())["elements"])


def assert_up_to_date(database: DB, streams: list[tuple[str, Events]]) -> None:
    truth = {str(found["_id"]): inbox_of(found) for found in database.users.find()}
    # Comparing two lists instead would keep pytest busy for minutes with their differences.
    assert all(events.last == truth[user_id] for user_id, events in streams)


def inbox_of(document: Mapping[str, Any]) -> dict[str, Any]:
    notifications = document.get("notifications", [])
    return {
        "elements": len(notifications),
        "new": sum(item["is_new"] for item in notifications),
        "latest": next(reversed(notifications), None),
    }


def bearer(value: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {value}"}


async def test_a_refused_request_gets_a_problem_and_no_stream(start: Start) -> None:
    client = await start(**PROTECTED)
    for path, headers, status in (
        (stream_url(), {}, 401),
        (stream_url(), bearer(token(exp=int(time.time()) - 60)), 401),
        (stream_url(OTHER), bearer(token()), 403),
        ("/stream", bearer(KEY), 422),
        (stream_url("x"), bearer(KEY), 422),
        (f"{stream_url()}&user_id={OTHER}", bearer(KEY), 422),
    ):
        response = await client.get(path, headers=headers)
        assert response.status == status
        await problem(response)
    assert (await client.head(stream_url())).status == 405
    async with listening(client, **bearer(token())) as own, listening(client, **bearer(KEY)) as backend:
        assert await own.next() == await backend.next() == EMPTY


async def test_a_stream_ends_when_its_token_expires(start: Start) -> None:
    client = await start(**PROTECTED)
    headers = bearer(token(exp=int(time.time()) - LEEWAY + 4))
    async with listening(client, **headers) as events, listening(client, **bearer(token())) as other:
        await events.end()
        assert (await client.get(stream_url(), headers=headers)).status == 401
        assert await other.next() == EMPTY
        body = {"user_id": USER, "key": "new_post"}
        assert (await client.post("/create", json=body, headers=bearer(KEY))).status == 201
        assert (await other.next())["new"] == 1


async def test_a_standalone_mongodb_is_501_and_says_what_to_do(start: Start, standalone: Mongod) -> None:
    client = await start(db_uri=f"mongodb://{standalone.address}/standalone")
    for _ in range(2):
        response = await client.get(stream_url())
        assert response.status == 501
        assert "replica set" in (await problem(response))["detail"]
    assert await metric(client, "notifier_streams_open") == 0


async def test_the_ninth_stream_of_a_user_is_429_until_one_ends(client: Client) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(8):
            await stack.enter_async_context(listening(client))
        response = await client.get(stream_url())
        assert (response.status, response.headers["Retry-After"]) == (429, "5")
        await problem(response)
        await stack.enter_async_context(listening(client, OTHER))
    await eventually_async(lambda: assert_status(client, 200))


async def test_a_stream_beyond_the_process_limit_is_503(start: Start) -> None:
    client = await start(stream_limit=2)
    async with listening(client, OTHER):
        async with listening(client):
            response = await client.get(stream_url())
            assert (response.status, response.headers["Retry-After"]) == (503, "5")
            await problem(response)
        await eventually_async(lambda: assert_status(client, 200))


async def assert_status(client: Client, status: int) -> None:
    async with client.get(stream_url()) as response:
        assert response.status == status


async def test_the_change_stream_ends_when_the_last_client_leaves(
    settings: Settings, database: DB, tmp_path: Path
) -> None:
    """The service is a process of its own, because aiohttp's test server cancels the handlers of clients that leave."""
    service = await running_service(settings, tmp_path)
    async with client_of(service) as client:
        assert_change_streams(database, 0)
        for _ in range(2):
            async with listening(client) as events, listening(client, OTHER), listening(client, OTHER):
                assert await metric(client, "notifier_streams_open") == 3
                await events.next()
                assert_change_streams(database, 1)
            await eventually_async(lambda: assert_streams_open(client, 0), KEEP_ALIVE / 2)
            await eventually_async(lambda: assert_change_streams(database, 0))
    service.kill()


def assert_change_streams(database: DB, count: int) -> None:
    """Check how many change streams are open on the collection of users."""
    streams: list[dict[str, Any]] = [
        {"$currentOp": {"idleCursors": True}},
        {
            "$match": {
                "ns": f"{database.name}.users",
                "cursor.originatingCommand.pipeline.$changeStream": {"$exists": True},
            }
        },
    ]
    assert len(list(database.client.admin.aggregate(streams))) == count


async def test_a_stop_ends_streams_at_once_and_refuses_new_ones(
    client: Client, settings: Settings, tmp_path: Path
) -> None:
    async with listening(client) as events:
        client.app[HUB].close()
        await events.end()
        begun = 'notifier_http_request_duration_seconds_count{method="GET",route="/stream",status="200"}'
        await counted(client, begun, 1)
        response = await client.get(stream_url())
        assert (response.status, response.headers["Retry-After"]) == (503, "5")
        await problem(response)
    service = await running_service(settings, tmp_path)
    async with client_of(service) as remote, listening(remote) as events:
        assert await events.next() == EMPTY
        service.signal(signal.SIGTERM)
        await events.end()
        assert (await remote.get("/healthz")).status == 200  # streams end before requests are refused
    assert await asyncio.to_thread(service.process.wait, 10) == 0
