"""The change stream: no change is missed, whatever happens while it begins or breaks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId, encode
from pymongo import WriteConcern

from mongo.changes import CHANGES
from settings import Settings
from tests.client import DB, OTHER, USER, Client, create
from tests.faults import HEARTBEATS, failing
from tests.fixtures import Start
from tests.servers import Mongod
from tests.soak import DATABASE, three_nodes
from tests.streams import EMPTY, Events, listening, stream_url


async def test_a_change_does_not_carry_the_notifications(database: DB) -> None:
    me, note = {"_id": ObjectId(USER)}, {"id": "x", "is_new": True, "data": {"text": "x" * 200}}
    database.users.insert_one(me | {"notifications": [note] * 100})
    with database.users.watch(CHANGES, max_await_time_ms=100) as changes:
        push = {"notifications": {"$each": [note], "$slice": -100}}
        database.users.update_one(me, {"$push": push})
        change = next(changes)
        assert change.keys() - {"wallTime"} == {"_id", "documentKey"}  # the former from MongoDB 6.0 on
        assert len(encode(change)) < 250
    database.users.delete_many({})


EMAIL = {"id": "x", "token": "0"}
NOTED = {"notifications": [{"id": "x", "is_new": True}, {"id": "y", "is_new": True}]}
KEPT = {
    "notifier": {"outbox": [EMAIL], "recent": [{"k": 1}], "deleted": ["x"], "preferences": {}, "due": 1, "seen_at": 1}
}
TOLD: list[tuple[dict[str, Any], Any, bool]] = [
    ({}, {"$push": {"notifications": {"id": "z"}}}, True),
    (NOTED, {"$push": {"notifications": {"$each": [{"id": "z"}], "$slice": -2}}}, True),
    (NOTED, {"$set": {"notifications.1.is_new": False}}, True),
    (NOTED, {"$pop": {"notifications": 1}}, True),
    (NOTED, {"$unset": {"notifications": 1}}, True),
    (NOTED, [{"$set": {"notifications": {"$slice": ["$notifications", -1]}, "notifier.deleted": ["x"]}}], True),
    (NOTED | KEPT, [{"$unset": ["notifications", "notifier"]}], True),
    (KEPT, {"$unset": {"notifier": 1}}, True),
    (KEPT, {"$set": {"notifier.seen_at": 2}}, True),
    (KEPT, {"$unset": {"notifier.seen_at": 1}}, True),
    ({}, {"$set": {"notifier.seen_at": 2}}, True),
    ({}, {"$set": {"notifier": {"seen_at": 2, "recent": []}}}, True),
    ({}, {"$push": {"notifier.outbox": EMAIL}, "$min": {"notifier.due": 1}}, False),
    (KEPT, {"$push": {"notifier.outbox": EMAIL, "notifier.recent": {"k": 2}}}, False),
    (KEPT, {"$push": {"notifier.recent": {"$each": [{"k": 2}], "$slice": -1}}}, False),
    (KEPT, {"$set": {"notifier.outbox.0.token": "1", "notifier.due": 2}}, False),
    (KEPT, [{"$set": {"notifier.outbox": []}}, {"$unset": "notifier.due"}], False),
    (KEPT, {"$set": {"notifier.deleted": [], "notifier.preferences.x": {"email": False}}}, False),
    (KEPT, {"$set": {"notifier.suppression": {"address": "a", "seen_at": 1}}}, False),
    (KEPT, {"$unset": {"notifier.suppression": 1, "notifier.preferences": 1, "notifier.due": 1}}, False),
    ({}, {"$set": {"notifier": {"recent": []}}}, False),
    ({}, {"$set": {"notifications_seen": 1, "my.notifications": 1, "notifierx": {"seen_at": 1}, "seen_at": 1}}, False),
    ({"notifierx": 1, "my": {"notifier": 1}}, {"$unset": {"notifierx": 1, "my.notifier": 1}}, False),
]


@pytest.mark.parametrize(("before", "update", "is_told"), TOLD, ids=lambda value: f"{value}"[:60])
def test_only_changes_of_notifications_and_seen_are_reported(
    database: DB, before: dict[str, Any], update: Any, is_told: bool
) -> None:
    me, last = {"_id": ObjectId(USER)}, {"_id": ObjectId(OTHER), "last": True}
    database.users.insert_one(me | before)
    with database.users.watch(CHANGES) as changes:
        assert database.users.update_one(me, update).modified_count == 1
        database.users.insert_one(last)
        told = [next(changes)["documentKey"]["_id"]]
        while told[-1] != last["_id"]:
            told.append(next(changes)["documentKey"]["_id"])
    assert told == [me["_id"]] * is_told + [last["_id"]]
    database.users.delete_many({})


async def test_no_change_is_missed_while_a_stream_begins(client: Client, mongod: Mongod) -> None:
    with failing(mongod, ["aggregate"], {"times": 1}, blockConnection=True, blockTimeMS=500):
        opening = asyncio.create_task(client.get(stream_url()))
        await asyncio.sleep(0.2)
        await create(client)
    events = Events(await opening)
    await events.catch_up(client)
    assert events.last
    assert events.last["elements"] == 1
    users = [f"{n:024x}" for n in range(40)]
    for user_id in users:
        response, _ = await asyncio.gather(client.get(stream_url(user_id)), create(client, user_id))
        await Events(response).catch_up(client, user_id)
        response.close()


@pytest.mark.ci
async def test_a_new_stream_misses_no_write_without_a_majority_yet(start: Start, tmp_path: Path) -> None:
    """The change stream begins after that write, so the first event must wait until a majority has it."""
    async with three_nodes(tmp_path) as setup:
        client = await start(db_uri=setup.uri)
        await create(client, OTHER)
        with replication_stopped(setup.mongods[1:]):
            await asyncio.sleep(1)  # what they have asked for still arrives
            with setup.client() as direct:
                users = direct[DATABASE].get_collection("users", write_concern=WriteConcern(1))
                users.insert_one({"_id": ObjectId(USER), "notifications": [{"id": "x", "is_new": True}]})
            first = asyncio.create_task(first_event(client))
            await asyncio.sleep(1)
            assert not first.done()
        assert (await first)["elements"] == 1
        await client.close()


@contextmanager
def replication_stopped(secondaries: list[Mongod]) -> Iterator[None]:
    """Keep new writes from these members."""

    def switch(mode: str) -> None:
        for secondary in secondaries:
            with secondary.client() as direct:
                direct.admin.command({"configureFailPoint": "stopReplProducer", "mode": mode})

    switch("alwaysOn")
    try:
        yield
    finally:
        switch("off")


async def first_event(client: Client) -> dict[str, Any]:
    async with listening(client) as events:
        return await events.next()


@pytest.mark.parametrize("code", [286, 136, 280, 260])
async def test_every_client_gets_a_fresh_event_when_history_is_lost(client: Client, mongod: Mongod, code: int) -> None:
    async with listening(client) as events, listening(client, OTHER) as others:
        assert await events.next() == await others.next() == EMPTY
        with failing(mongod, ["getMore"], {"times": 1}, errorCode=code):
            assert await events.next() == await others.next() == EMPTY
        await create(client)
        assert (await events.next())["elements"] == 1


@pytest.mark.parametrize("fault", [{"errorCode": 91}, {"errorCode": 43}, {"closeConnection": True}])
@pytest.mark.parametrize("times", [1, 4])
async def test_no_change_is_missed_when_the_change_stream_breaks(
    start: Start, settings: Settings, mongod: Mongod, fault: dict[str, Any], times: int
) -> None:
    client = await start(db_uri=f"{settings.db_uri}?{HEARTBEATS}")
    async with listening(client) as events:
        assert await events.next() == EMPTY
        with failing(mongod, ["getMore", "aggregate"], {"times": times}, **fault):
            await create(client)
            await events.catch_up(client)
        await create(client)
        await events.catch_up(client)


async def test_inboxes_are_empty_after_the_collection_is_gone(client: Client, database: DB) -> None:
    await create(client)
    async with listening(client) as events:
        assert (await events.next())["elements"] == 1
        database.users.drop()
        assert await events.next() == EMPTY
        await create(client)
        assert (await events.next())["elements"] == 1
        database.users.rename("people")
        assert await events.next() == EMPTY
        await create(client)
        assert (await events.next())["elements"] == 1
