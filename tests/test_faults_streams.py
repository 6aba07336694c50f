"""Streams while MongoDB or a process of the service fails."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
from bson import ObjectId

from mongo.changes import Changes
from mongo.errors import Patience
from mongo.inbox import Page
from settings import Settings
from tests.client import DB, OTHER, USER, Client, create, metric, problem
from tests.faults import HEARTBEATS, failing
from tests.fixtures import Start
from tests.processes import running_service
from tests.servers import Mongod
from tests.soak import DATABASE, three_nodes
from tests.streams import EMPTY, client_of, listening, replica_set_of_one, stream_url
from tests.waiting import eventually, eventually_async

pytestmark = pytest.mark.ci


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

            def assert_goes_on() -> None:
                assert statuses[201] > before + 200

            await eventually_async(assert_goes_on, 30)
            running = False
            await asyncio.wait(tasks)
            for user_id, events in streams:
                await events.catch_up(client, user_id)
            with setup.client() as direct:
                direct[DATABASE].users.delete_many({})
            for _, events in streams:
                while events.last != EMPTY:
                    await events.next()
        await client.close()


async def test_after_a_kill_another_process_gives_clients_the_state(settings: Settings, tmp_path: Path) -> None:
    first, second = [await running_service(settings, tmp_path) for _ in range(2)]
    async with client_of(first) as client, client_of(second) as other:
        async with listening(client) as events:
            await create(other)
            await events.catch_up(other)
            first.kill()
            with pytest.raises(aiohttp.ClientPayloadError):
                await events.next()
        await create(other)
        async with listening(other) as events:
            assert (await events.next())["elements"] == 2
    second.kill()


async def test_streams_stay_open_while_mongodb_is_down(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "notifier.streams")
    with replica_set_of_one(tmp_path) as server:
        client = await start(db_uri=f"mongodb://{server.address}/away")
        monkeypatch.setattr("api.streams.KEEP_ALIVE", 0.1)
        await create(client)
        async with listening(client) as events:
            assert (await events.next())["elements"] == 1
            server.kill()
            await asyncio.sleep(6)  # longer than the timeout of an attempt
            server.start()
            with server.client() as direct:
                await asyncio.to_thread(eventually, lambda: direct.away.users.delete_many({}))
            assert await events.next() == EMPTY
            await eventually_async(lambda: assert_logged(caplog, 1))
        await client.close()


@pytest.mark.parametrize("patience", [Patience(operation=0.3)], ids=["soon"])
async def test_an_inbox_is_sent_once_it_can_be_read_again(
    client: Client,
    mongod: Mongod,
    database: DB,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "notifier.streams")
    async with listening(client) as events:
        assert await events.next() == EMPTY
        with failing(mongod, ["find"], errorCode=50):
            database.users.insert_one({"_id": ObjectId(USER), "notifications": [{"id": "x"}]})
            await asyncio.sleep(2)  # for several attempts
        assert (await events.next())["elements"] == 1
        await eventually_async(lambda: assert_logged(caplog, 1))


def assert_logged(caplog: pytest.LogCaptureFixture, lines: int) -> None:
    assert len([record for record in caplog.records if record.name == "notifier.streams"]) == lines


async def test_without_mongodb_a_new_stream_is_503(
    start: Start, settings: Settings, mongod: Mongod, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await start(db_uri=f"{settings.db_uri}?{HEARTBEATS}")
    monkeypatch.setattr("api.streams.FIRST_EVENT_TIMEOUT", 1.0)
    with failing(mongod, ["aggregate"], errorCode=91):
        response = await client.get(stream_url())
        assert (response.status, response.headers["Retry-After"]) == (503, "5")
        await problem(response)
    with failing(mongod, ["find"], errorCode=91):
        assert (await client.get(stream_url())).status == 503
    assert await metric(client, "notifier_streams_open") == 0
    monkeypatch.undo()
    async with listening(client) as events:
        assert await events.next() == EMPTY


async def test_after_an_unexpected_error_inboxes_are_read_again(
    client: Client, database: DB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure is made up: nothing is known that another program could write and this one not read."""

    async def inboxes(self: Changes, user_ids: Collection[str]) -> Mapping[str, Page]:
        if failures:
            raise failures.pop()
        return await original(self, user_ids)

    original, failures = Changes.inboxes, list[Exception]()
    monkeypatch.setattr(Changes, "inboxes", inboxes)
    database.users.insert_many([{"_id": ObjectId(user_id)} for user_id in (USER, OTHER)])
    async with listening(client) as events, listening(client, OTHER) as others:
        assert await events.next() == await others.next() == EMPTY
        failures.append(ValueError("unreadable"))
        database.users.update_many({}, {"$set": {"notifications": [{"id": "x"}]}})
        assert (await events.next())["elements"] == (await others.next())["elements"] == 1
    assert not failures
