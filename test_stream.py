"""The live inbox: what a stream tells, to whom, and what it survives."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
from bson import ObjectId, encode
from pymongo.database import Database

import handlers
from conftest import Client, Start
from store import CHANGES
from test_notifier import OTHER, USER, create, list_, settled
from test_operation import metric

DB = Database[dict[str, Any]]
NOTHING = {"elements": 0, "new": 0, "latest": None}


class Events:
    """What comes on a stream."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.last: dict[str, Any] | None = None

    async def block(self) -> str:
        """Return what comes next, up to an empty line; nothing at the end."""
        async with asyncio.timeout(20):
            raw = await self.response.content.readuntil(b"\n\n")
        return raw.decode().removesuffix("\n\n")

    async def next(self) -> dict[str, Any]:
        """Return the data of the next event."""
        while not (found := re.fullmatch("event: inbox\ndata: (.*)", block := await self.block())):
            assert re.match("retry: |: ", block)
        data: dict[str, Any] = json.loads(found[1])
        self.last = data
        return data

    async def is_true(self, client: Client, user_id: str = USER) -> None:
        """Read until the last event is what is listed."""
        page = await list_(client, user_id, limit=1)
        truth = {"elements": page["elements"], "new": page["new"], "latest": (page["list"] or [None])[0]}
        while self.last != truth:
            await self.next()

    async def ended(self) -> None:
        """Read up to the end, which must be a proper one."""
        while await self.block():
            pass


def url(user_id: str = USER) -> str:
    return f"/stream?user_id={user_id}"


@asynccontextmanager
async def listening(client: Client, user_id: str = USER, **headers: str) -> AsyncIterator[Events]:
    async with client.get(url(user_id), headers=headers, timeout=aiohttp.ClientTimeout(None)) as response:
        assert response.status == 200, await response.text()
        yield Events(response)


def credential(value: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {value}"}


# --- what it tells ------------------------------------------------------------------------------------


async def test_an_event_comes_at_once_and_after_every_change_by_whomever(
    start: Start, client: Client, database: DB
) -> None:
    replica = await start()
    users, me = database.users, {"_id": ObjectId(USER)}
    async with listening(client) as events:
        assert await events.next() == NOTHING
        await create(client, data={"n": 1})
        first = await events.next()
        assert first == {"elements": 1, "new": 1, "latest": (await list_(client))["list"][0]}
        await create(replica, key="new_post")
        assert (await events.next())["latest"]["key"] == "new_post"
        assert (await client.post(f"/read?user_id={USER}&all=true")).status == 200
        assert (await events.next())["new"] == 0
        element = {**first["latest"], "id": "theirs"}
        users.update_one(me, {"$push": {"notifications": {"$each": [element], "$position": 0}}})
        assert await events.next() == {"elements": 3, "new": 1, "latest": element}
        users.update_one(me, {"$pull": {"notifications": {"id": "theirs"}}})
        assert (await events.next())["elements"] == 2
        users.update_one(me, [{"$set": {"notifications": {"$slice": ["$notifications", 1]}}}])
        assert (await events.next())["elements"] == 1
        users.update_one(me, {"$unset": {"notifications": 1}})
        assert await events.next() == NOTHING
        users.replace_one(me, {"email": "a@b.example", "notifications": [element]})
        assert (await events.next())["latest"] == element
        users.delete_one(me)
        assert await events.next() == NOTHING
        users.insert_one(me | {"notifications": [element]})
        assert (await events.next())["latest"] == element


async def test_no_event_comes_when_nothing_about_the_notifications_changes(client: Client, database: DB) -> None:
    me = {"_id": ObjectId(USER)}
    async with listening(client) as events:
        assert await events.next() == NOTHING
        await create(client, key="new_login")
        assert (await events.next())["elements"] == 1
        await settled(database)
        await create(client, key="registration")  # an e-mail, and no notification
        await settled(database)
        database.users.update_one(me, {"$set": {"notifications_seen": 1, "profile.notifications": [1]}})
        await create(client, OTHER)
        await create(client, key="new_post")
        assert (await events.next())["latest"]["key"] == "new_post"
    assert await metric(client, "notifier_stream_events_total") == 3


async def test_the_array_does_not_travel(database: DB) -> None:
    me, note = {"_id": ObjectId(USER)}, {"id": "x", "is_new": True, "data": {"text": "x" * 200}}
    database.users.insert_one(me | {"notifications": [note] * 100})
    with database.users.watch(CHANGES, max_await_time_ms=100) as changes:
        push = {"notifications": {"$each": [note], "$position": 0, "$slice": 100}}
        database.users.update_one(me, {"$push": push})
        change = next(changes)
        assert change.keys() == {"_id", "documentKey", "wallTime"}
        assert len(encode(change)) < 250
        database.users.update_one(me, {"$set": {"outbox": [{"id": "x"}]}})
        database.users.update_one(me, {"$set": {"outbox.0.token": "x"}})
        assert changes.try_next() is None
    database.users.delete_many({})


async def test_a_stream_is_as_event_streams_are(start: Start) -> None:
    client = await start(cors_origins=("https://app.example.com",))
    client.app[handlers.LIVE].keep_alive = 0.05
    headers = {"X-Request-ID": "trace-me", "Origin": "https://app.example.com"}
    async with listening(client, **headers) as events:
        got = events.response.headers
        assert got["Content-Type"] == "text/event-stream"
        assert (got["Cache-Control"], got["X-Accel-Buffering"]) == ("no-store", "no")
        assert (got["X-Request-ID"], got["Vary"]) == ("trace-me", "Origin")
        assert got["Access-Control-Allow-Origin"] == "https://app.example.com"
        assert "X-Request-ID" in got["Access-Control-Expose-Headers"]
        assert re.fullmatch(r"retry: \d{4}", await events.block())
        assert await events.next() == NOTHING
        assert {await events.block() for _ in range(3)} == {": keep-alive"}
        await create(client)
        assert (await events.next())["elements"] == 1
    async with listening(client, Origin="https://evil.example") as events:
        assert "Access-Control-Allow-Origin" not in events.response.headers
        assert events.response.headers["Vary"] == "Origin"
    preflight = {"Origin": "https://app.example.com", "Access-Control-Request-Method": "GET"}
    assert (await client.options(url(), headers=preflight)).status == 200
    counted = 'notifier_http_request_duration_seconds_sum{method="GET",route="/stream",status="200"}'
    before = await metric(client, counted)
    assert before > 0
    await asyncio.sleep(0)
    assert await metric(client, counted) == before
