"""Promises I1 and I6: a 201 means one effect, any other answer at most one."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId
from pymongo.errors import WriteError

from kinds import SPECIFIED
from settings import Settings
from tests.client import DB, OTHER, USER, Client, create, ours, problem, settled, user
from tests.combinations import pairwise
from tests.faults import HEARTBEATS, failing, hasty, impatient
from tests.fixtures import MONGODS, Start
from tests.proxy import FAULTS, Proxy
from tests.servers import MailServer, Mongod, initiate
from tests.waiting import eventually_async, slow_clock

# --- I1: a 201 means one notification on disk ----------------------------------------------------


@pytest.mark.parametrize(
    ("any_mongod", "command", "kind", "fault"),
    pairwise(MONGODS, ["findAndModify", "updates"], ["new_message", "new_login", "registration"], FAULTS),
    indirect=["any_mongod"],
)
@impatient
async def test_i1_i2_a_write_whose_reply_is_lost_applies_once(
    start: Start, any_mongod: Mongod, mail: MailServer, command: str, kind: str, fault: str
) -> None:
    number = 20 if command == "updates" else 1  # which is a call for many
    name = f"lost_{ObjectId()}"
    proxy = Proxy(any_mongod.port)
    async with proxy.running():
        client = await start(db_uri=f"mongodb://127.0.0.1:{proxy.port}/{name}?directConnection=true")
        users = [f"{n:024x}" for n in range(number)]
        for existing in (False, True):
            proxy.break_next(command, fault)
            await asyncio.gather(*(create(client, user_id, kind, data={"old": existing}) for user_id in users))
        assert proxy.faults == 2
        with any_mongod.client() as direct:
            await settled(direct[name])
            for user_id in users:
                notifications = user(direct[name], user_id).get("notifications", [])
                assert [item["data"]["old"] for item in notifications] == [False, True][: 2 * SPECIFIED[kind].in_app]
            assert len(set(mail.ids)) == 2 * number * SPECIFIED[kind].email
            assert max(Counter(mail.ids).values(), default=1) == 1
            direct.drop_database(name)
        await client.close()


@impatient
async def test_i1_a_write_applies_once_even_if_it_was_pushed_out(start: Start, standalone: Mongod) -> None:
    """With so short an array, a repeated write cannot recognise itself by its notification."""
    name, proxy = f"lost_{ObjectId()}", Proxy(standalone.port)
    async with proxy.running():
        client = await start(
            db_uri=f"mongodb://127.0.0.1:{proxy.port}/{name}?directConnection=true", notifications_limit=1
        )
        other = await start(db_uri=f"mongodb://{standalone.address}/{name}", notifications_limit=1)
        proxy.break_next("findAndModify", "after")
        first = asyncio.create_task(create(client, data={"n": 1}))
        with standalone.client() as direct:

            def is_written() -> None:
                assert direct[name].users.count_documents({"notifications.data.n": 1})

            await eventually_async(is_written)
            await create(other, data={"n": 2})
            await first
            assert proxy.faults == 1
            assert [item["data"]["n"] for item in user(direct[name], USER)["notifications"]] == [2]
            direct.drop_database(name)
        await client.close()


async def test_i1_racing_upserts_lose_nothing(client: Client, database: DB) -> None:
    """Racing upserts whose filter has more than `_id` fail with E11000. That does not mean that they took effect."""
    users = [f"{n:024x}" for n in range(40)]
    await asyncio.gather(*(create(client, user_id, "new_login", data={"n": n}) for user_id in users for n in range(5)))
    for user_id in users:
        assert sorted(item["data"]["n"] for item in user(database, user_id)["notifications"]) == list(range(5))
    await settled(database)


@pytest.mark.parametrize("replica_set", [None, "killed"])
async def test_i1_acknowledged_writes_survive_kill_9_of_mongod(
    start: Start, tmp_path: Path, replica_set: str | None
) -> None:
    server = Mongod(tmp_path / "db", replica_set)
    server.start()
    if replica_set:
        initiate([server], replica_set)
    uri = f"mongodb://{server.address}/killed?w=1&journal=false"  # the service must ignore these options
    client = await start(db_uri=uri, notifications_limit=10_000)
    acknowledged: list[int] = []
    statuses: Counter[int] = Counter()
    numbers = iter(range(1_000_000))
    end = time.monotonic() + 2.5

    async def load(user_id: str) -> None:
        while time.monotonic() < end:
            n = next(numbers)
            body = {"user_id": user_id, "key": "new_message", "data": {"n": n}}
            response = await client.post("/create", json=body)
            statuses[response.status] += 1
            if response.status == 201:
                acknowledged.append(n)

    async def kill() -> None:
        await asyncio.sleep(1)
        server.kill()
        await asyncio.to_thread(server.start)

    await asyncio.gather(kill(), *(load(f"{n:024x}") for n in range(16)))
    assert statuses.keys() <= {201, 503}
    with server.client() as direct:
        stored = Counter(
            item["data"]["n"] for found in direct.killed.users.find() for item in found.get("notifications", [])
        )
    assert [n for n in acknowledged if n not in stored] == []
    assert [n for n, times in stored.items() if times > 1] == []
    assert len(acknowledged) > 100
    await client.close()
    server.kill()


# --- I6: any other answer means at most one effect; with a key, a retry makes it exactly one -----


@pytest.mark.parametrize(
    "fault",
    [
        {"errorCode": 91},
        {"errorCode": 189},
        {"errorCode": 50},
        {"errorCode": 18},
        {"writeConcernError": {"code": 64, "errmsg": "waiting for replication timed out"}},
        {"writeConcernError": {"code": 91, "errmsg": "shutting down"}},
        {"closeConnection": True},
        {"blockConnection": True, "blockTimeMS": 3000, "errorCode": 91},
    ],
    ids=str,
)
@hasty
async def test_i6_a_failing_database_is_503_and_a_retry_has_one_effect(
    start: Start, settings: Settings, mongod: Mongod, database: DB, fault: dict[str, Any]
) -> None:
    client = await start(db_uri=f"{settings.db_uri}?{HEARTBEATS}")
    body = {"user_id": USER, "key": "new_login"}
    headers = {"Idempotency-Key": "k-1"}
    with failing(mongod, ["findAndModify", "update", "find"], **fault):
        requests = (
            client.post("/create", json=body, headers=headers),
            client.get(f"/list?user_id={USER}"),
            client.post(f"/read?user_id={USER}&notification_id=x"),
        )
        for response in await asyncio.gather(*requests):
            if "writeConcernError" in fault and response.method == "GET":
                continue  # a read has no write concern
            assert (response.status, response.headers["Retry-After"]) == (503, "5")
            await problem(response)
    assert len((database.users.find_one() or {}).get("notifications", [])) <= 1

    async def is_created() -> None:
        assert (await client.post("/create", json=body, headers=headers)).status == 201

    await eventually_async(is_created)
    assert len(user(database)["notifications"]) == 1
    await settled(database)


@hasty
async def test_i6_a_step_down_reported_as_a_write_error_is_503(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server does so only in a race, which the soak found on a real replica set."""

    def step_down(*_: object, **__: object) -> None:
        raise WriteError("Not primary while writing to x.users", 189)

    monkeypatch.setattr("motor.motor_asyncio.AsyncIOMotorCollection.update_one", step_down)
    assert (await client.post(f"/read?user_id={USER}&all=true")).status == 503


@impatient
@pytest.mark.ci
async def test_i6_an_exhausted_pool_is_503(start: Start, settings: Settings, mongod: Mongod) -> None:
    client = await start(db_uri=f"{settings.db_uri}?maxPoolSize=1&waitQueueTimeoutMS=100&{HEARTBEATS}")
    with failing(mongod, ["find", "findAndModify"], blockConnection=True, blockTimeMS=2500):
        requests = (client.post("/create", json={"user_id": USER, "key": "new_post"}) for _ in range(20))
        assert {response.status for response in await asyncio.gather(*requests)} <= {503, 201}
        assert (await client.get(f"/list?user_id={USER}")).status == 503
    await create(client)


@impatient
@pytest.mark.ci
async def test_i6_a_frozen_mongod_is_503_until_it_recovers(start: Start, tmp_path: Path) -> None:
    server = Mongod(tmp_path / "db")
    server.start()
    client = await start(db_uri=f"mongodb://{server.address}/frozen")
    server.signal(signal.SIGSTOP)
    requests = (client.post("/create", json={"user_id": USER, "key": "new_post"}) for _ in range(50))
    with slow_clock() as elapsed:
        assert {response.status for response in await asyncio.gather(*requests)} == {503}
        assert elapsed() < 4
    server.signal(signal.SIGCONT)
    await eventually_async(lambda: create(client))
    await client.close()
    server.kill()


async def test_i6_concurrent_requests_with_one_key_have_one_effect(client: Client, database: DB) -> None:
    for key in ("new_login", "registration"):
        body = {"user_id": USER, "key": key, "target_id": "A" * 24}
        headers = {"Idempotency-Key": f'"{key}-8e03978e"'}
        responses = await asyncio.gather(*(client.post("/create", json=body, headers=headers) for _ in range(20)))
        assert {response.status for response in responses} == {201}
        replays = Counter(response.headers.get("Idempotent-Replayed") for response in responses)
        assert replays == {"true": 19, None: 1}
        assert len(user(database).get("notifications", [])) == 1
        body["target_id"] = "a" * 24  # the same body, written differently
        response = await client.post("/create", json={**body, "data": None}, headers=headers)
        assert (response.status, response.headers["Idempotent-Replayed"]) == (201, "true")
    await settled(database)


async def test_i6_a_key_with_another_body_is_422_and_has_no_effect(client: Client, database: DB) -> None:
    headers = {"idempotency-key": "k"}  # lower case, as in HTTP/2
    first = {"user_id": USER, "key": "new_message", "data": {"n": 1}}
    assert (await client.post("/create", json=first, headers=headers)).status == 201
    for other in ({**first, "data": {"n": 2}}, {**first, "key": "new_post"}, {**first, "target_id": "a" * 24}):
        response = await client.post("/create", json=other, headers=headers)
        assert response.status == 422
        assert (await problem(response))["errors"].keys() == {"Idempotency-Key"}
    assert len(user(database)["notifications"]) == 1
    assert (await client.post("/create", json={**first, "user_id": OTHER}, headers=headers)).status == 201


async def test_i6_the_last_32_keys_are_remembered(client: Client, database: DB) -> None:
    body = {"user_id": USER, "key": "new_message"}
    for n in range(33):
        assert (await client.post("/create", json=body, headers={"Idempotency-Key": f"k{n}"})).status == 201
    for n, replayed in ((32, "true"), (1, "true"), (0, None)):
        response = await client.post("/create", json=body, headers={"Idempotency-Key": f"k{n}"})
        assert response.headers.get("Idempotent-Replayed") == replayed
    assert len(ours(database)["recent"]) == 32
