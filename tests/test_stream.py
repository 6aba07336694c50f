"""The live inbox: what a stream tells, to whom, and what it survives."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import random
import re
import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from bson import ObjectId, encode
from pymongo import MongoClient, WriteConcern
from pymongo.database import Database
from pymongo.errors import PyMongoError

from api.auth import LEEWAY
from api.hub import HUB
from api.sse import KEEP_ALIVE
from mongo.changes import CHANGES, Change, Changes, Inbox
from settings import Settings
from tests.client import KEY, OTHER, PROTECTED, USER, Client, create, list_, metric, problem, settled, token
from tests.faults import HEARTBEATS, failing
from tests.fixtures import Start
from tests.processes import Service, running_service
from tests.servers import Mongod, initiate
from tests.soak import DATABASE, three_nodes
from tests.waiting import eventually_async

DB = Database[dict[str, Any]]
NOTHING = {"elements": 0, "new": 0, "latest": None}


class Events:
    """What comes on a stream."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.last: dict[str, Any] | None = None

    async def block(self) -> str:
        """Return what comes next, up to an empty line; nothing at the end."""
        return (await self.response.content.readuntil(b"\n\n")).decode().removesuffix("\n\n")

    async def next(self) -> dict[str, Any]:
        """Return the data of the next event."""
        async with asyncio.timeout(20):
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
        async with asyncio.timeout(20):
            while await self.block():
                pass


def url(user_id: str = USER) -> str:
    return f"/stream?user_id={user_id}"


@asynccontextmanager
async def listening(client: Client, user_id: str = USER, **headers: str) -> AsyncIterator[Events]:
    async with asyncio.timeout(60):  # for the first event
        response = await client.get(url(user_id), headers=headers, timeout=aiohttp.ClientTimeout(None))
    async with response:
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
    client.app[HUB].wire.keep_alive = 0.05
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
        async with asyncio.timeout(10):
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


# --- to whom ------------------------------------------------------------------------------------------


async def test_what_cannot_be_answered_is_a_problem_before_the_stream_begins(start: Start) -> None:
    client = await start(**PROTECTED)
    for path, headers, status in (
        (url(), {}, 401),
        (url(), credential(token(exp=int(time.time()) - 60)), 401),
        (url(OTHER), credential(token()), 403),
        ("/stream", credential(KEY), 422),
        (url("x"), credential(KEY), 422),
        (f"{url()}&user_id={OTHER}", credential(KEY), 422),
    ):
        response = await client.get(path, headers=headers)
        assert response.status == status
        await problem(response)
    assert (await client.head(url())).status == 405
    async with listening(client, **credential(token())) as own, listening(client, **credential(KEY)) as backend:
        assert await own.next() == await backend.next() == NOTHING


async def test_a_stream_ends_when_its_token_is_taken_no_longer(start: Start) -> None:
    client = await start(**PROTECTED)
    headers = credential(token(exp=int(time.time()) - LEEWAY + 2))
    async with listening(client, **headers) as events, listening(client, **credential(token())) as other:
        await events.ended()
        assert (await client.get(url(), headers=headers)).status == 401
        assert await other.next() == NOTHING
        await create_as(client, KEY)
        assert (await other.next())["new"] == 1


async def create_as(client: Client, key: str) -> None:
    body = {"user_id": USER, "key": "new_post"}
    assert (await client.post("/create", json=body, headers=credential(key))).status == 201


async def test_a_standalone_mongodb_is_501_with_what_to_do(start: Start, standalone: Mongod) -> None:
    client = await start(db_uri=f"mongodb://{standalone.address}/standalone")
    for _ in range(2):
        response = await client.get(url())
        assert response.status == 501
        assert "replica set" in (await problem(response))["detail"]
    assert await metric(client, "notifier_streams_open") == 0


async def test_a_ninth_stream_of_a_user_is_429_until_one_is_gone(client: Client) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(8):
            await stack.enter_async_context(listening(client))
        response = await client.get(url())
        assert (response.status, response.headers["Retry-After"]) == (429, "5")
        await problem(response)
        await stack.enter_async_context(listening(client, OTHER))
    await eventually_async(lambda: status_is(client, 200))


async def test_a_process_has_no_more_streams_than_it_may(start: Start) -> None:
    client = await start(stream_limit=2)
    async with listening(client, OTHER):
        async with listening(client):
            response = await client.get(url())
            assert (response.status, response.headers["Retry-After"]) == (503, "5")
            await problem(response)
        await eventually_async(lambda: status_is(client, 200))


async def status_is(client: Client, status: int) -> None:
    async with client.get(url()) as response:
        assert response.status == status


# --- what it holds ------------------------------------------------------------------------------------


async def test_a_client_that_goes_is_noticed_and_the_change_stream_is_open_only_while_somebody_listens(
    settings: Settings, database: DB, tmp_path: Path
) -> None:
    """In a process of its own: aiohttp's test server cancels the handlers of clients that go."""
    service = await running_service(settings, tmp_path)
    async with session(service) as client:
        await followed(database, 0)
        for _ in range(2):
            async with listening(client) as events, listening(client, OTHER), listening(client, OTHER):
                assert await metric(client, "notifier_streams_open") == 3
                await events.next()
                await followed(database, 1)
            await eventually_async(lambda: metric_is(client, "notifier_streams_open", 0), KEEP_ALIVE / 2)
            await eventually_async(lambda: followed(database, 0))
    service.kill()


async def metric_is(client: Client, name: str, value: float) -> None:
    assert await metric(client, name) == value


async def followed(database: DB, times: int) -> None:
    """Check how many change streams MongoDB serves on the users."""
    streams: list[dict[str, Any]] = [
        {"$currentOp": {"idleCursors": True}},
        {
            "$match": {
                "ns": f"{database.name}.users",
                "cursor.originatingCommand.pipeline.$changeStream": {"$exists": True},
            }
        },
    ]
    assert len(list(database.client.admin.aggregate(streams))) == times


async def test_a_client_that_does_not_read_is_dropped_and_costs_little_until_then(client: Client) -> None:
    client.app[HUB].wire.send_timeout = 1.0
    port = client.port
    with socket.socket() as idle:
        idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        idle.connect(("127.0.0.1", port))
        idle.sendall(f"GET {url()} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        async with listening(client) as events:
            for n in itertools.count():
                await create(client, data={"n": n, "text": "x" * 15_000})
                await events.is_true(client)
                assert unsent(client) < 20_000
                if await metric(client, "notifier_streams_dropped_total"):
                    break
            await create(client)
            await events.is_true(client)
        await eventually_async(lambda: nothing_unsent(client))
    assert n > 3
    await eventually_async(lambda: metric_is(client, "notifier_streams_open", 0))
    assert await metric(client, "notifier_streams_dropped_total") == 1


async def nothing_unsent(client: Client) -> None:
    assert unsent(client) == 0


def unsent(client: Client) -> int:
    """Return the bytes that the process holds for its clients."""
    runner = client.server.runner
    assert runner
    assert runner.server
    return sum(one.transport.get_write_buffer_size() for one in runner.server.connections if one.transport)


# --- what it survives ---------------------------------------------------------------------------------


async def test_nothing_falls_between_the_first_event_and_the_first_change(client: Client, mongod: Mongod) -> None:
    with failing(mongod, ["aggregate"], {"times": 1}, blockConnection=True, blockTimeMS=500):
        opening = asyncio.create_task(client.get(url()))
        await asyncio.sleep(0.2)
        await create(client)
    events = Events(await opening)
    await events.is_true(client)
    assert events.last
    assert events.last["elements"] == 1
    users = [f"{n:024x}" for n in range(40)]
    for user_id in users:
        response, _ = await asyncio.gather(client.get(url(user_id)), create(client, user_id))
        await Events(response).is_true(client, user_id)
        response.close()


async def test_1000_clients_of_one_process_see_each_change_of_their_user_once(
    settings: Settings, database: DB, tmp_path: Path
) -> None:
    service = await running_service(settings, tmp_path)
    users = [f"{n:024x}" for n in range(250)]
    async with session(service) as client, AsyncExitStack() as stack:
        opened = (stack.enter_async_context(listening(client, user_id)) for user_id in users * 4)
        streams = list(zip(users * 4, await asyncio.gather(*opened), strict=True))
        seen: list[list[int]] = [[] for _ in streams]

        async def follow(events: Events, counts: list[int]) -> None:
            while True:
                counts.append((await events.next())["elements"])

        tasks = [asyncio.create_task(follow(events, counts)) for (_, events), counts in zip(streams, seen, strict=True)]
        try:
            for _ in range(4):
                await asyncio.gather(*(create(client, user_id) for user_id in users))
                element = {"id": "theirs", "is_new": True}
                database.users.update_many({}, {"$push": {"notifications": {"$each": [element], "$position": 0}}})

            async def all_true() -> None:
                truth = {str(found["_id"]): inbox(found) for found in database.users.find()}
                # Not one comparison of them all: where it fails, pytest would look for minutes for what differs.
                assert all(events.last == truth[user_id] for user_id, events in streams)

            await eventually_async(all_true)
            assert await metric(client, "notifier_streams_open") == 1000
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
    service.kill()
    for counts in seen:
        assert counts[0] == 0
        assert counts == sorted(counts)  # none after a newer one
        assert len(counts) <= 1 + 8


def inbox(document: Mapping[str, Any]) -> dict[str, Any]:
    notifications = document.get("notifications", [])
    return {
        "elements": len(notifications),
        "new": sum(item["is_new"] for item in notifications),
        "latest": next(iter(notifications), None),
    }


@asynccontextmanager
async def session(service: Service) -> AsyncIterator[Any]:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{service.port}", connector=connector) as client:
        yield client


async def test_streams_survive_kill_9_of_the_primary(start: Start, tmp_path: Path) -> None:
    users = [f"{n:024x}" for n in range(20)]
    async with three_nodes(tmp_path) as setup:
        client = await start(db_uri=setup.uri)
        async with AsyncExitStack() as stack:
            streams = [(user_id, await stack.enter_async_context(listening(client, user_id))) for user_id in users]
            running = True
            statuses: Counter[int] = Counter()

            async def load(user_ids: list[str]) -> None:
                while running:
                    body = {"user_id": random.choice(user_ids), "key": "new_post"}
                    statuses[(await client.post("/create", json=body)).status] += 1

            tasks = [asyncio.create_task(load(users[n::4])) for n in range(4)]
            await asyncio.sleep(1)
            setup.mongods[0].kill()
            before = statuses[201]

            async def goes_on() -> None:
                assert statuses[201] > before + 200

            await eventually_async(goes_on, 30)
            running = False
            await asyncio.wait(tasks)
            for user_id, events in streams:
                await events.is_true(client, user_id)
            with setup.client() as direct:
                direct[DATABASE].users.delete_many({})
            for _, events in streams:
                while events.last != NOTHING:
                    await events.next()
        await client.close()


async def test_what_no_majority_has_yet_when_a_stream_begins_is_not_missed(start: Start, tmp_path: Path) -> None:
    """The change stream begins behind it, so the first event must wait for it."""
    async with three_nodes(tmp_path) as setup:
        client = await start(db_uri=setup.uri)
        await create(client, OTHER)
        for mode in ("alwaysOn", "off"):
            for secondary in setup.mongods[1:]:
                with secondary.client() as direct:
                    direct.admin.command({"configureFailPoint": "stopReplProducer", "mode": mode})
            if mode == "off":
                break
            await asyncio.sleep(1)  # what they had asked for before still comes
            with setup.client() as direct:
                users = direct[DATABASE].get_collection("users", write_concern=WriteConcern(1))
                users.insert_one({"_id": ObjectId(USER), "notifications": [{"id": "x", "is_new": True}]})
            told = asyncio.create_task(first_event(client))
            await asyncio.sleep(1)
        assert (await told)["elements"] == 1
        await client.close()


async def first_event(client: Client) -> dict[str, Any]:
    async with listening(client) as events:
        return await events.next()


async def test_a_client_of_a_killed_process_has_the_true_state_at_another(settings: Settings, tmp_path: Path) -> None:
    first, second = [await running_service(settings, tmp_path) for _ in range(2)]
    async with session(first) as client, session(second) as other:
        async with listening(client) as events:
            await create(other)
            await events.is_true(other)
            first.kill()
            with pytest.raises(aiohttp.ClientPayloadError):
                await events.next()
        await create(other)
        async with listening(other) as events:
            assert (await events.next())["elements"] == 2
    second.kill()


@pytest.mark.parametrize("code", [286, 136, 280, 260])
async def test_where_history_is_lost_every_client_gets_a_fresh_event(client: Client, mongod: Mongod, code: int) -> None:
    async with listening(client) as events, listening(client, OTHER) as others:
        assert await events.next() == await others.next() == NOTHING
        with failing(mongod, ["getMore"], {"times": 1}, errorCode=code):
            assert await events.next() == await others.next() == NOTHING
        await create(client)
        assert (await events.next())["elements"] == 1


@pytest.mark.parametrize("fault", [{"errorCode": 91}, {"errorCode": 43}, {"closeConnection": True}])
@pytest.mark.parametrize("times", [1, 4])
async def test_a_change_stream_that_breaks_goes_on_where_it_was(
    start: Start, settings: Settings, mongod: Mongod, fault: dict[str, Any], times: int
) -> None:
    client = await start(db_uri=f"{settings.db_uri}?{HEARTBEATS}")
    async with listening(client) as events:
        assert await events.next() == NOTHING
        with failing(mongod, ["getMore", "aggregate"], {"times": times}, **fault):
            await create(client)
            assert (await events.next())["elements"] == 1
        await create(client)
        assert (await events.next())["elements"] == 2


async def test_a_collection_that_is_dropped_and_one_that_is_renamed_are_empty(client: Client, database: DB) -> None:
    await create(client)
    async with listening(client) as events:
        assert (await events.next())["elements"] == 1
        database.users.drop()
        assert await events.next() == NOTHING
        await create(client)
        assert (await events.next())["elements"] == 1
        database.users.rename("people")
        assert await events.next() == NOTHING
        await create(client)
        assert (await events.next())["elements"] == 1


async def test_an_oplog_that_has_moved_on_is_made_up_for(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def follow(self: Changes, after: Mapping[str, Any] | None) -> AsyncGenerator[Change, None]:
        opened.append(after is not None)
        return original(self, after)

    original = Changes.follow
    monkeypatch.setattr(Changes, "follow", follow)
    with replica_set_of_one(tmp_path) as server, server.client() as direct:
        client = await start(db_uri=f"mongodb://{server.address}/moved?{HEARTBEATS}")
        async with listening(client) as events:
            assert await events.next() == NOTHING
            with failing(server, ["getMore", "aggregate"], errorCode=91):
                await create(client)
                oplog = direct.local["oplog.rs"]
                newest = oplog.find_one(sort=[("$natural", -1)])
                assert newest
                while (oplog.find_one(sort=[("$natural", 1)]) or newest)["ts"] <= newest["ts"]:
                    direct.junk.junk.insert_many([{"blob": b"x" * 1_000_000} for _ in range(10)])
            assert (await events.next())["elements"] == 1
            await create(client)
            assert (await events.next())["elements"] == 2
        assert len(opened) > 1
        assert not opened[-1]  # without the token that leads nowhere now
        await client.close()


@contextlib.contextmanager
def replica_set_of_one(folder: Path) -> Iterator[Mongod]:
    server = Mongod(folder / "one", "one", "--syncdelay", "1")  # its oplog is kept up to the last checkpoint
    server.start()
    try:
        initiate([server], "one")
        yield server
    finally:
        server.kill()


async def test_streams_stay_open_while_mongodb_is_away(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "notifier.live")
    with replica_set_of_one(tmp_path) as server:
        client = await start(db_uri=f"mongodb://{server.address}/away")
        client.app[HUB].wire.keep_alive = 0.1
        await create(client)
        async with listening(client) as events:
            assert (await events.next())["elements"] == 1
            server.kill()
            await asyncio.sleep(6)  # longer than one attempt
            server.start()
            with server.client() as direct:
                await eventually_async(lambda: delete_all(direct))
            assert await events.next() == NOTHING
            await eventually_async(lambda: logged(caplog, 2))
        await client.close()


async def test_an_inbox_that_could_not_be_read_for_a_while_is_told_then(
    client: Client,
    mongod: Mongod,
    database: DB,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "notifier.live")
    monkeypatch.setattr("mongo.errors.DEADLINE", 0.3)
    async with listening(client) as events:
        assert await events.next() == NOTHING
        with failing(mongod, ["find"], errorCode=50):
            database.users.insert_one({"_id": ObjectId(USER), "notifications": [{"id": "x"}]})
            await asyncio.sleep(2)  # some attempts
        assert (await events.next())["elements"] == 1
        await eventually_async(lambda: logged(caplog, 2))


async def delete_all(direct: MongoClient[dict[str, Any]]) -> None:
    try:
        direct.away.users.delete_many({})
    except PyMongoError as exc:
        raise AssertionError from exc


async def logged(caplog: pytest.LogCaptureFixture, lines: int) -> None:
    assert len([record for record in caplog.records if record.name == "notifier.live"]) == lines


async def test_without_mongodb_a_new_stream_is_503(
    start: Start, settings: Settings, mongod: Mongod, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await start(db_uri=f"{settings.db_uri}?{HEARTBEATS}")
    monkeypatch.setattr("api.hub.FIRST_EVENT_TIMEOUT", 1.0)
    with failing(mongod, ["aggregate"], errorCode=91):
        response = await client.get(url())
        assert (response.status, response.headers["Retry-After"]) == (503, "5")
        await problem(response)
    with failing(mongod, ["find"], errorCode=91):
        assert (await client.get(url())).status == 503
    assert await metric(client, "notifier_streams_open") == 0
    monkeypatch.undo()
    async with listening(client) as events:
        assert await events.next() == NOTHING


async def test_an_inbox_that_cannot_be_read_ends_its_own_streams_alone(
    client: Client, database: DB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all that other programs could write, nothing is known that would do this."""

    async def inboxes(self: Changes, user_ids: Collection[str]) -> Mapping[str, Inbox]:
        if OTHER in user_ids and broken:
            raise ValueError("what is this?")
        return await original(self, user_ids)

    original, broken = Changes.inboxes, False
    monkeypatch.setattr(Changes, "inboxes", inboxes)
    database.users.insert_many([{"_id": ObjectId(user_id)} for user_id in (USER, OTHER)])
    async with listening(client) as events, listening(client, OTHER) as others:
        assert await events.next() == await others.next() == NOTHING
        broken = True
        database.users.update_many({}, {"$set": {"notifications": [{"id": "x"}]}})
        await others.ended()
        assert (await events.next())["elements"] == 1
        assert (await client.get(url(OTHER))).status == 500


async def test_a_stop_ends_streams_at_once_and_refuses_new_ones(
    client: Client, settings: Settings, tmp_path: Path
) -> None:
    async with listening(client) as events:
        client.app[HUB].close()
        await events.ended()
        counted = 'notifier_http_request_duration_seconds_count{method="GET",route="/stream",status="200"}'
        assert await metric(client, counted) == 1
        response = await client.get(url())
        assert (response.status, response.headers["Retry-After"]) == (503, "5")
        await problem(response)
    service = await running_service(settings, tmp_path)
    async with session(service) as remote, listening(remote) as events:
        assert await events.next() == NOTHING
        service.signal(signal.SIGTERM)
        await events.ended()
        assert (await remote.get("/healthz")).status == 200  # streams end before requests are refused
    assert await asyncio.to_thread(service.process.wait, 10) == 0


async def test_metrics_tell_of_events_and_their_lag(client: Client) -> None:
    async with listening(client) as one, listening(client) as two:
        await create(client)
        await one.is_true(client)
        await two.is_true(client)
        assert await metric(client, "notifier_stream_lag_seconds_count") == 2
        assert await metric(client, 'notifier_stream_lag_seconds_bucket{le="60.0"}') == 2
        assert await metric(client, "notifier_stream_events_total") in {3, 4}
