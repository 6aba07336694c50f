"""What the service survives. Each promise of the README's "What is promised" is shown by a test named after it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiosmtplib import SMTPResponseException
from bson import DatetimeMS, ObjectId, encode
from bson.raw_bson import RawBSONDocument
from pymongo.database import Database
from pymongo.errors import WriteError

import store
from mail.delivery import Delivery, running_delivery
from mail.replies import Stage, Verdict, judge
from mailer import Mailer
from mongo.errors import OutboxFull
from mongo.outbox import NO_TOKEN, OUTBOX_LIMIT, Mail, Outbox
from ops.metrics import Metrics
from schemas import Create, Key
from settings import Security, Settings
from store import open_store
from tests.client import (
    OTHER,
    USER,
    Client,
    count,
    create,
    list_,
    nothing_owed,
    owe,
    owed,
    problem,
    read,
    settled,
    user,
)
from tests.faults import HEARTBEATS, failing, scripted
from tests.fixtures import Start, assert_outboxes_consistent
from tests.processes import command, running_service
from tests.proxy import Proxy
from tests.servers import MailServer, Mongod, free_port, initiate, smtp_server
from tests.waiting import eventually_async

DB = Database[dict[str, Any]]
Script = Callable[[str, str], Awaitable[str | None]]


# --- I1: each 201 is one notification --------------------------------------------------------------


@pytest.mark.parametrize("fault", ["before", "after", "swallow"])
@pytest.mark.parametrize("key", [Key.NEW_MESSAGE, Key.NEW_LOGIN, Key.REGISTRATION])
@pytest.mark.parametrize(("command", "number"), [("findAndModify", 1), ("updates", 20)], ids=["alone", "shared"])
@pytest.mark.usefixtures("impatient")
async def test_i1_i2_a_lost_reply_applies_once(
    start: Start, any_mongod: Mongod, mail: MailServer, fault: str, key: Key, command: str, number: int
) -> None:
    name = f"lost_{ObjectId()}"
    proxy = Proxy(any_mongod.port)
    async with proxy.running():
        client = await start(db_uri=f"mongodb://127.0.0.1:{proxy.port}/{name}?directConnection=true")
        users = [f"{n:024x}" for n in range(number)]
        for existing in (False, True):
            proxy.break_next(command, fault)
            await asyncio.gather(*(create(client, user_id, key.value, data={"old": existing}) for user_id in users))
        assert proxy.faults == 2
        with any_mongod.client() as direct:
            await settled(direct[name])
            for user_id in users:
                notifications = user(direct[name], user_id).get("notifications", [])
                assert [item["data"]["old"] for item in notifications] == [True, False][: 2 * key.stored]
            assert len(set(mail.ids)) == 2 * number * key.mailed
            assert max(Counter(mail.ids).values(), default=1) == 1
            direct.drop_database(name)
        await client.close()


@pytest.mark.usefixtures("impatient")
async def test_i1_a_lost_reply_applies_once_also_where_newer_ones_have_pushed_it_out(
    start: Start, standalone: Mongod
) -> None:
    """What is repeated by us, as by a driver without retryable writes, must know it by more than a short array."""
    name, proxy = f"lost_{ObjectId()}", Proxy(standalone.port)
    async with proxy.running():
        client = await start(
            db_uri=f"mongodb://127.0.0.1:{proxy.port}/{name}?directConnection=true", notifications_limit=1
        )
        other = await start(db_uri=f"mongodb://{standalone.address}/{name}", notifications_limit=1)
        proxy.break_next("findAndModify", "after")
        first = asyncio.create_task(create(client, data={"n": 1}))
        with standalone.client() as direct:

            async def is_written() -> None:
                assert direct[name].users.count_documents({"notifications.data.n": 1})

            await eventually_async(is_written)
            await create(other, data={"n": 2})
            await first
            assert proxy.faults == 1
            assert [item["data"]["n"] for item in user(direct[name], USER)["notifications"]] == [2]
            direct.drop_database(name)
        await client.close()


async def test_i1_the_largest_share_calls_that_are_not_too_large(client: Client, database: DB) -> None:
    """Short JSON may be long BSON."""
    data = {"x": [1] * 8100}
    users = [f"{n:024x}" for n in range(120)]
    await asyncio.gather(*(create(client, user_id, "new_login", data=data) for user_id in users))
    assert all(user(database, user_id)["notifications"][0]["data"] == data for user_id in users)
    await settled(database)


def far_from_due(n: int) -> dict[str, Any]:
    return store.owed_mail(f"{n:024x}", "registration", datetime.now(UTC), {}) | {
        "next_at": datetime(2100, 1, 1, tzinfo=UTC)
    }


def updates(mongod: Mongod) -> int:
    """Return how many update commands the server has got."""
    with mongod.client() as direct:
        total: int = direct.admin.command("serverStatus")["metrics"]["commands"]["update"]["total"]
        return total


async def test_i1_who_share_a_write_have_each_their_own_outcome(client: Client, database: DB, mongod: Mongod) -> None:
    """All that can become of a create, among as many for whom nothing is wrong."""
    wide, odd, owed_much, replayed = (f"{n:024x}" for n in range(100, 104))
    mails = [far_from_due(n) for n in range(OUTBOX_LIMIT)]
    database.users.insert_one({"_id": ObjectId(wide), "blob": b"x" * (16 * 1024 * 1024 - 1000)})
    database.users.insert_many(
        [
            {"_id": ObjectId(odd), "notifications": "not ours"},
            {"_id": ObjectId(owed_much), "outbox": mails, "mail_due": mails[0]["next_at"]},
        ]
    )
    once, changed = ({"user_id": replayed, "key": "new_post", "data": {"x": n}} for n in range(2))
    key = {"Idempotency-Key": "k"}
    assert (await client.post("/create", json=once, headers=key)).status == 201
    plain = [{"user_id": f"{n:024x}", "key": "new_login", "data": {"n": n}} for n in range(40)]
    requests = [
        ({"user_id": wide, "key": "new_post", "data": {"a": "x" * 2000}}, {}, 413),
        ({"user_id": odd, "key": "new_post"}, {}, 409),
        ({"user_id": owed_much, "key": "new_login"}, {}, 503),
        (once, key, 201),
        (changed, key, 422),
        *((body, {}, 201) for body in plain),
    ]
    before = updates(mongod)
    for _ in range(3):
        answers = [client.post("/create", json=body, headers=headers) for body, headers, _ in requests * 2]
        statuses = [answer.status for answer in await asyncio.gather(*answers)]
        assert statuses == [status for *_, status in requests * 2]
    assert updates(mongod) - before < 3 * 2 * len(requests) / 2
    for body in plain:
        assert [item["data"] for item in user(database, str(body["user_id"]))["notifications"]] == [body["data"]] * 6
    assert len(user(database, replayed)["notifications"]) == 1
    assert "notifications" not in user(database, owed_much) | user(database, wide)
    database.users.delete_one({"_id": ObjectId(owed_much)})
    await settled(database)


async def test_i1_who_share_a_write_are_each_told_whether_it_found_something(client: Client, database: DB) -> None:
    users = [f"{n:024x}" for n in range(30)]
    await asyncio.gather(*(create(client, user_id) for user_id in users))
    ids = [user(database, user_id)["notifications"][0]["id"] for user_id in users]
    expected = [200 if n % 3 else 404 for n in range(30)]
    marks = (read(client, id_ if n % 3 else "unknown", users[n]) for n, id_ in enumerate(ids))
    assert await asyncio.gather(*marks) == expected
    assert [200 - 200 * user(database, u)["notifications"][0]["is_new"] for u in users] == [
        200 if status == 200 else 0 for status in expected
    ]


async def test_i1_what_a_validator_refuses_does_nothing_to_those_who_share_its_call(
    client: Client, database: DB
) -> None:
    """Its answer holds the document, with whatever the team has stored in it: a date of the year 275760, say."""
    late, text = DatetimeMS(8_640_000_000_000_000), RawBSONDocument(encode({"x": "?"}).replace(b"?", b"\xff"))
    users = [f"{n:024x}" for n in range(40)]
    database.users.insert_many([{"_id": ObjectId(user_id), "late": late, "text": text} for user_id in users[:3]])
    schema = {"properties": {"late": {"bsonType": "string"}, "text": {"properties": {"x": {"maxLength": 0}}}}}
    database.command("collMod", "users", validator={"$jsonSchema": schema}, validationLevel="strict")
    answers = [client.post("/create", json={"user_id": user_id, "key": "new_post"}) for user_id in users]
    assert [answer.status for answer in await asyncio.gather(*answers)] == [409] * 3 + [201] * 37
    assert all(len(user(database, user_id)["notifications"]) == 1 for user_id in users[3:])
    database.users.delete_many({"late": {"$exists": True}})


@pytest.mark.parametrize(
    "fault",
    [{"writeConcernError": {"code": 64, "errmsg": "waiting for replication timed out"}}, {"closeConnection": True}],
    ids=["not on a majority", "no reply"],
)
@pytest.mark.usefixtures("impatient")
async def test_i6_what_a_shared_write_does_not_confirm_is_nobodys_201(
    start: Start, settings: Settings, mongod: Mongod, database: DB, fault: dict[str, Any]
) -> None:
    client = await start(db_uri=f"{settings.db_uri}?{HEARTBEATS}")
    users = [f"{n:024x}" for n in range(20)]

    async def all_create() -> set[int]:
        bodies = ({"user_id": user_id, "key": "new_post"} for user_id in users)
        answers = (client.post("/create", json=body, headers={"Idempotency-Key": "k"}) for body in bodies)
        return {answer.status for answer in await asyncio.gather(*answers)}

    with failing(mongod, ["findAndModify", "update"], **fault):
        assert await all_create() == {503}
    assert await all_create() == {201}
    assert [len(user(database, user_id)["notifications"]) for user_id in users] == [1] * 20


@pytest.mark.usefixtures("impatient")
async def test_i6_documents_that_are_locked_fail_alone(
    start: Start, mongod: Mongod, database: DB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a transaction of another program, which may take a minute; whoever waits for it must not be all who write."""
    monkeypatch.setattr("mongo.connection.ATTEMPT_TIMEOUT_MS", 1900)  # an attempt alone may take all of the time
    client = await start()
    users = [f"{n:024x}" for n in range(20)]
    await asyncio.gather(*(create(client, user_id) for user_id in users))

    async def status(user_id: str) -> int:
        return (await client.post("/create", json={"user_id": user_id, "key": "new_post"})).status

    with mongod.client() as other, other.start_session() as session, session.start_transaction():
        locked = {"_id": {"$in": [ObjectId(user_id) for user_id in users[:3]]}}
        other[database.name].users.update_many(locked, {"$set": {"x": 1}}, session=session)
        alone = []
        for user_id in users[:2]:  # each the only one of its call
            alone.append(asyncio.create_task(status(user_id)))
            await asyncio.sleep(0.05)
        assert await asyncio.gather(*map(status, users[2:])) == [503] + [201] * 17
        assert await asyncio.gather(*alone) == [503, 503]
    assert [len(user(database, user_id)["notifications"]) for user_id in users[3:]] == [2] * 17


async def test_i6_a_client_that_leaves_takes_no_neighbour_along(client: Client, database: DB) -> None:
    server = client.server
    users = [f"{n:024x}" for n in range(20)]
    writers = []
    for user_id in users[:10]:
        _, writer = await asyncio.open_connection(server.host, server.port)
        body = json.dumps({"user_id": user_id, "key": "new_post"}).encode()
        writer.write(b"POST /create HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        writers.append(writer)
    answers = [asyncio.create_task(create(client, user_id)) for user_id in users[10:]]
    for writer in writers:
        await asyncio.sleep(0)
        writer.transport.abort()
    await asyncio.gather(*answers)
    assert all(len(user(database, user_id)["notifications"]) == 1 for user_id in users[10:])


@pytest.mark.usefixtures("impatient")
async def test_i6_when_too_many_wait_the_others_are_503_at_once(
    start: Start, mongod: Mongod, database: DB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mongo.writes.QUEUE_LIMIT", 5)
    client = await start()
    with failing(mongod, ["findAndModify", "update"], blockConnection=True, blockTimeMS=300):
        posts = [client.post("/create", json={"user_id": f"{n:024x}", "key": "new_post"}) for n in range(60)]
        answers = await asyncio.gather(*posts)
    statuses = Counter(answer.status for answer in answers)
    assert statuses.keys() == {201, 503}
    assert {answer.headers.get("Retry-After") for answer in answers} == {None, "1"}
    assert database.users.count_documents({}) == statuses[201]


async def test_i1_the_upsert_race_loses_nothing(client: Client, database: DB) -> None:
    """A filter of more than `_id` makes racing upserts fail with E11000, which does not mean that they are done."""
    users = [f"{n:024x}" for n in range(40)]
    await asyncio.gather(*(create(client, user_id, "new_login", data={"n": n}) for user_id in users for n in range(5)))
    for user_id in users:
        assert sorted(item["data"]["n"] for item in user(database, user_id)["notifications"]) == list(range(5))
    await settled(database)


@pytest.mark.parametrize("replica_set", [None, "killed"])
async def test_i1_what_was_acknowledged_survives_kill_9_of_mongod(
    start: Start, tmp_path: Path, replica_set: str | None
) -> None:
    server = Mongod(tmp_path / "db", replica_set)
    server.start()
    if replica_set:
        initiate([server], replica_set)
    uri = f"mongodb://{server.address}/killed?w=1&journal=false"  # what the service must not be talked into
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


# --- I6: what is not a 201 has at most one effect; with a key a retry makes it exactly one ----------


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
@pytest.mark.usefixtures("impatient")
async def test_i6_a_database_that_fails_is_503_with_retry_after_and_a_retry_is_one_effect(
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
    assert (await client.post("/create", json=body, headers=headers)).status == 201
    assert len(user(database)["notifications"]) == 1
    await settled(database)


@pytest.mark.usefixtures("impatient")
async def test_i6_a_step_down_in_a_write_error_is_503(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a race on a real replica set makes the server say it so; the soak did."""

    def step_down(*_: object, **__: object) -> None:
        raise WriteError("Not primary while writing to x.users", 189)

    monkeypatch.setattr("motor.motor_asyncio.AsyncIOMotorCollection.update_one", step_down)
    assert (await client.post(f"/read?user_id={USER}&all=true")).status == 503


@pytest.mark.usefixtures("impatient")
async def test_i6_an_exhausted_pool_is_503(start: Start, settings: Settings, mongod: Mongod) -> None:
    client = await start(db_uri=f"{settings.db_uri}?maxPoolSize=1&waitQueueTimeoutMS=100&{HEARTBEATS}")
    with failing(mongod, ["find", "findAndModify"], blockConnection=True, blockTimeMS=2500):
        requests = (client.post("/create", json={"user_id": USER, "key": "new_post"}) for _ in range(20))
        assert {response.status for response in await asyncio.gather(*requests)} <= {503, 201}
        assert (await client.get(f"/list?user_id={USER}")).status == 503
    await create(client)


@pytest.mark.usefixtures("impatient")
async def test_i6_a_frozen_mongod_is_503_and_recovers(start: Start, tmp_path: Path) -> None:
    server = Mongod(tmp_path / "db")
    server.start()
    client = await start(db_uri=f"mongodb://{server.address}/frozen")
    server.signal(signal.SIGSTOP)
    requests = (client.post("/create", json={"user_id": USER, "key": "new_post"}) for _ in range(50))
    started = time.monotonic()
    assert {response.status for response in await asyncio.gather(*requests)} == {503}
    assert time.monotonic() - started < 4
    server.signal(signal.SIGCONT)
    await asyncio.sleep(1)
    await create(client)
    await client.close()
    server.kill()


async def test_i6_a_key_makes_any_number_of_requests_one_effect_also_at_once(client: Client, database: DB) -> None:
    for key, keep in (("new_login", 1), ("registration", 0)):
        body = {"user_id": USER, "key": key, "target_id": "A" * 24}
        headers = {"Idempotency-Key": f'"{key}-8e03978e"'}
        responses = await asyncio.gather(*(client.post("/create", json=body, headers=headers) for _ in range(20)))
        assert {response.status for response in responses} == {201}
        replays = Counter(response.headers.get("Idempotent-Replayed") for response in responses)
        assert replays == {"true": 19, None: 1}
        assert len(user(database).get("notifications", [])) == 1
        del keep
        body["target_id"] = "a" * 24  # the same thing in other words
        response = await client.post("/create", json={**body, "data": None}, headers=headers)
        assert (response.status, response.headers["Idempotent-Replayed"]) == (201, "true")
    await settled(database)


async def test_i6_a_key_with_another_body_is_422_and_has_no_effect(client: Client, database: DB) -> None:
    headers = {"idempotency-key": "k"}  # as HTTP/2 has it
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
    assert len(user(database)["recent"]) == 32


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", "ü"])
async def test_a_bad_key_is_named_with_every_other_fault(client: Client, key: str) -> None:
    response = await client.post("/create", json={"user_id": USER}, headers={"Idempotency-Key": key})
    assert response.status == 422
    assert (await problem(response))["errors"].keys() == {"key", "Idempotency-Key"}


# --- I2, I3: each owed e-mail is delivered or a dead letter, under one Message-ID and Date ------------


async def test_i2_i3_a_worker_killed_between_the_250_and_the_settling_sends_the_same_mail_again(
    settings: Settings, database: DB, mail: MailServer, tmp_path: Path
) -> None:
    service = await running_service(settings, tmp_path)

    async def script(stage: str, _recipient: str) -> str | None:
        if stage == "DATA" and not mail.received:
            service.kill()
        return None

    mail.script = script
    async with open_store(settings) as direct:
        await direct.create(Create(USER, Key.REGISTRATION))
    await eventually_async(lambda: count(mail.received, 1))
    service.restart()
    await eventually_async(lambda: count(mail.received, 2), 30)
    await settled(database)
    service.kill()
    first, second = (message for _, message in mail.received)
    assert first["Message-ID"] == second["Message-ID"]
    assert first["Date"] == second["Date"]
    assert database.dead_mail.count_documents({}) == 0


@pytest.mark.parametrize(
    ("replies", "deliveries"),
    [
        pytest.param({"RCPT": ["451 4.3.0 later"]}, 1, id="451, then 250"),
        pytest.param({"MAIL": [None, None, None, "421 4.7.0 too many"]}, 1, id="421 at the fourth MAIL"),
        pytest.param({"MAIL": ["421 4.3.2 shutting down"] * 2}, 1, id="421 at MAIL"),
        pytest.param({"MAIL": ["drop"]}, 1, id="drop at MAIL"),
        pytest.param({"RCPT": ["hang"]}, 1, id="hang at RCPT"),
        pytest.param({"DATA": ["452 4.3.1 full"]}, 1, id="452 after the dot"),
        pytest.param({"DATA": ["drop"]}, 1, id="drop after the dot"),
        pytest.param({"DATA": ["hang"]}, 1, id="hang after the dot"),
        pytest.param({"DATA": ["250 OK and drop"]}, 2, id="taken, and drop before the 250"),
        pytest.param({"MAIL": ["999 what"]}, 1, id="nonsense"),
    ],
)
async def test_i2_i3_a_fault_of_the_server_delays_an_e_mail_and_never_kills_it(
    start: Start, database: DB, mail: MailServer, replies: dict[str, list[str | None]], deliveries: int
) -> None:
    mail.script = scripted(replies)
    client = await start(smtp_connections=1, smtp_command_timeout=0.3, smtp_data_timeout=0.3)
    for n in range(5):
        await create(client, f"{n:024x}", "registration")
        await asyncio.sleep(0.02)
    await settled(database)
    assert database.dead_mail.count_documents({}) == 0
    assert len(set(mail.ids)) == 5
    assert 5 <= len(mail.ids) <= 4 + deliveries
    assert len({(message["Message-ID"], message["Date"]) for _, message in mail.received}) == 5


LATIN_1 = "5.1.1 Empf\udce4nger unbekannt"


@pytest.mark.parametrize(
    ("stage", "code", "message", "verdict"),
    [
        (Stage.CONNECT, 421, "busy", Verdict.CONNECTION),
        (Stage.CONNECT, 554, "no service here", Verdict.CONFIGURATION),
        (Stage.CONNECT, 454, "4.7.0 temporary authentication failure", Verdict.CONNECTION),
        (Stage.CONNECT, 535, "5.7.8 authentication failed", Verdict.CONFIGURATION),
        (Stage.MAIL, 451, "later", Verdict.TRANSIENT),
        (Stage.MAIL, 421, "closing", Verdict.CONNECTION),
        (Stage.MAIL, 552, "5.3.4 too large", Verdict.PERMANENT),
        (Stage.MAIL, 550, "sender refused", Verdict.CONFIGURATION),
        (Stage.RCPT, 550, LATIN_1, Verdict.PERMANENT),
        (Stage.RCPT, 503, "5.5.1 authenticate first", Verdict.CONFIGURATION),
        (Stage.RCPT, 553, "5.7.1 <a@b.c>: Sender address rejected: not owned by user x", Verdict.CONFIGURATION),
        (Stage.RCPT, 554, "5.7.1 <a@b.c>: Relay access denied", Verdict.CONFIGURATION),
        (Stage.RCPT, 354, "what", Verdict.CONNECTION),
        (Stage.DATA, 550, "5.1.8 bad sender\n5.1.8 indeed", Verdict.CONFIGURATION),
        (Stage.DATA, 554, "5.7.1 spam", Verdict.PERMANENT),
        (Stage.DATA, 250 - 50, "taken, in a way", Verdict.AMBIGUOUS),
        (Stage.DATA, -1, "\udcff", Verdict.AMBIGUOUS),
    ],
)
def test_each_reply_means_what_the_table_says(stage: Stage, code: int, message: str, verdict: Verdict) -> None:
    outcome = judge(SMTPResponseException(code, message), stage)
    assert outcome.verdict is verdict
    assert "@" not in outcome.status
    outcome.detail.encode()


async def test_i2_a_document_with_hardly_any_room_still_gets_its_mail_out(
    client: Client, database: DB, mail: MailServer
) -> None:
    profile = {"email": "ann@example.com", "blob": b"", "outbox": [], "recent": []}
    database.users.insert_one({"_id": ObjectId(OTHER), **profile})
    before = len(encode(user(database, OTHER)))
    mail.script = scripted({"MAIL": ["451 wait"], "RCPT": ["451 " + "long " * 80]})
    await create(client, OTHER, "registration")
    room = len(encode(user(database, OTHER))) - before  # what `create` takes, and not a byte more
    await settled(database)
    mail.received.clear()
    mail.script = scripted({"RCPT": ["451 " + "long " * 80]})
    database.users.insert_one({"_id": ObjectId(USER), **profile, "blob": b"x" * (16 * 1024 * 1024 - before - room)})
    response = await client.post("/create", json={"user_id": USER, "key": "registration"})
    assert response.status == 201
    await settled(database)
    assert [recipient for recipient, _ in mail.received] == ["ann@example.com"]


@pytest.mark.parametrize(
    ("stage", "reply"),
    [("RCPT", "550 5.1.1 unknown"), ("RCPT", "552 5.2.2 full"), ("DATA", "554 5.7.1 spam"), ("RCPT", "553 no")],
)
async def test_i2_a_permanent_refusal_is_one_dead_letter_at_once(
    client: Client, database: DB, mail: MailServer, stage: str, reply: str
) -> None:
    mail.script = scripted({stage: [reply]})
    await create(client, key="registration")
    await settled(database)
    (letter,) = database.dead_mail.find()
    assert (letter["error"], letter["tries"], mail.received) == (f"{stage}: {reply}", 1, [])


async def test_i2_a_refusal_is_not_hidden_by_a_server_that_hangs_afterwards(
    client: Client, database: DB, mail: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang(*_: object) -> str:
        await asyncio.sleep(30)
        return "250 OK"

    monkeypatch.setattr(MailServer, "handle_RSET", hang, raising=False)
    mail.script = scripted({"RCPT": ["550 5.1.1 unknown"]})
    started = time.monotonic()
    await create(client, key="registration")
    await settled(database)
    assert database.dead_mail.count_documents({}) == 1
    assert time.monotonic() - started < 1.5


async def test_i2_an_e_mail_is_given_up_when_it_was_tried_for_long_enough(
    start: Start, database: DB, mail: MailServer
) -> None:
    mail.script = scripted({"RCPT": ["451 4.2.0 later"] * 100})
    client = await start(mail_retry_minutes=(0.001, 0.002), mail_give_up_hours=0.0066 / 60)
    await create(client, key="registration")
    await settled(database)
    (letter,) = database.dead_mail.find()
    assert letter["tries"] == 4  # tried after 0.001, 0.003 and 0.005 minutes; 0.007 were too many
    assert letter["error"] == "Given up: RCPT: 451 4.2.0 later"


async def test_i2_a_death_between_the_dead_letter_and_the_settling_leaves_one_dead_letter(
    settings: Settings, database: DB, start: Start, mail: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(settings) as direct:
        await direct.create(Create(USER, Key.REGISTRATION))
        worker = Outbox(direct)
        (claimed,) = await worker.claim(1, 0.1)
        settle = worker._settle

        async def settle_or_die(mail: Mail, change: dict[str, Any] | None) -> bool:
            if change is None:  # the last step: it is owed no longer
                raise asyncio.CancelledError
            return await settle(mail, change)

        monkeypatch.setattr(worker, "_settle", settle_or_die)
        with pytest.raises(asyncio.CancelledError):
            await worker.settle_dead(claimed, 1, "RCPT: 550")
    assert (database.dead_mail.count_documents({}), len(owed(database))) == (1, 1)
    await start()
    await settled(database)
    (letter,) = database.dead_mail.find()
    assert (letter["error"], mail.received) == ("RCPT: 550", [])


# --- I4, I5: leases -----------------------------------------------------------------------------------


async def test_i4_eight_workers_send_each_of_1000_mails_once(start: Start, database: DB, mail: MailServer) -> None:
    clients = [await start(smtp_connections=2) for _ in range(8)]
    for block in range(0, 1000, 100):
        await asyncio.gather(
            *(create(clients[n % 8], f"{n // 10:024x}", "registration") for n in range(block, block + 100))
        )
    await settled(database)
    assert len(mail.received) == 1000
    assert set(Counter(mail.ids).values()) == {1}


async def test_i4_i5_a_lease_belongs_to_one_worker_and_one_that_lost_it_changes_nothing(
    settings: Settings, database: DB
) -> None:
    async with open_store(settings) as direct, open_store(settings) as another:
        await direct.create(Create(USER, Key.REGISTRATION))
        one, other = Outbox(direct), Outbox(another)
        (lost,) = await one.claim(1, 0.3)
        assert await other.claim(1, 60) == []
        await one.extend([lost], 0.6)
        await asyncio.sleep(0.4)
        assert await other.claim(1, 60) == []
        await asyncio.sleep(0.3)
        (held,) = await other.claim(1, 60)
        assert held.id == lost.id
        before = user(database)
        assert not await one.settle_sent(lost)
        assert not await one.settle_retry(lost, 0, 7, "late")
        assert not await one.settle_dead(lost, 7, "late")
        await one.extend([lost], 3600)
        assert user(database) == before
        assert database.dead_mail.count_documents({}) == 0
        assert await other.settle_sent(held)
    nothing_owed(database)


async def test_i4_a_lease_is_extended_while_a_conversation_runs(
    settings: Settings, database: DB, mail: MailServer
) -> None:
    async def script(stage: str, _recipient: str) -> str | None:
        await asyncio.sleep(1.0 if stage == "DATA" else 0)
        return None

    mail.script = script

    class Short(Settings):
        lease = 0.5

    short = Short(**{name: getattr(settings, name) for name in Settings.__dataclass_fields__})
    async with open_store(settings) as direct:
        await direct.create(Create(USER, Key.REGISTRATION))
        mailer = Mailer(short)
        delivery = Delivery(Outbox(direct), mailer, short, asyncio.Event(), Metrics())
        loops = asyncio.create_task(delivery.run()), asyncio.create_task(delivery.keep_leases())
        await eventually_async(lambda: count(list(delivery._held), 1))
        for _ in range(16):
            assert await Outbox(direct).claim(1, 60) == []
            await asyncio.sleep(0.05)
        await settled(database)
        await delivery.stop(*loops)
        await mailer.close()
    assert len(mail.received) == 1


async def test_i5_a_lease_that_ran_out_is_not_extended_and_its_e_mail_not_sent(
    settings: Settings, database: DB, mail: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(settings) as direct:
        await direct.create(Create(USER, Key.REGISTRATION))
        outbox = Outbox(direct)
        claim = outbox.claim

        async def claim_too_late(users: int, lease: float) -> Sequence[Mail]:
            mails = await claim(users, lease)
            monkeypatch.setattr(time, "monotonic", lambda: monotonic() + settings.lease)
            return mails

        monotonic = time.monotonic
        monkeypatch.setattr(outbox, "claim", claim_too_late)
        async with running_delivery(outbox, settings, asyncio.Event(), Metrics()):
            await asyncio.sleep(0.5)
    assert mail.received == []
    assert len(owed(database)) == 1


async def test_a_stop_while_claiming_gives_the_leases_back(start: Start, mongod: Mongod, database: DB) -> None:
    client = await start(smtp_port=free_port())
    with failing(mongod, ["update"], blockConnection=True, blockTimeMS=500):
        await create(client, key="registration")
        await asyncio.sleep(0.2)
        await client.close()
    assert [(item["token"], item["tries"]) for item in owed(database)] == [(NO_TOKEN, 0)]


async def test_i5_a_worker_frozen_past_its_lease_sends_and_changes_nothing_when_it_wakes(
    settings: Settings, database: DB, mail: MailServer, tmp_path: Path
) -> None:
    """Twelve e-mails wait in the frozen worker for its one connection; another takes them over."""
    frozen = await running_service(settings, tmp_path, SMTP_CONNECTIONS=1, SMTP_DATA_TIMEOUT=1)
    reached = asyncio.Event()

    async def script(stage: str, _recipient: str) -> str | None:
        if stage == "DATA" and not reached.is_set():
            reached.set()
            await asyncio.sleep(0.5)
        return None

    async with open_store(settings) as direct:
        await direct.create(Create(OTHER, Key.REGISTRATION))  # proves the connection, so that many are claimed at once
        await settled(database)
        mail.script = script
        mail.received.clear()
        for n in range(12):
            await direct.create(Create(f"{n:024x}", Key.REGISTRATION))
        await reached.wait()
        frozen.signal(signal.SIGSTOP)
        other = await running_service(settings, tmp_path)
        await settled_within(database, 40)
        sent = len(mail.received)
        frozen.signal(signal.SIGCONT)
        await asyncio.sleep(2)
        for service in (frozen, other):
            service.kill()
    assert len(set(mail.ids)) == 12
    assert len(mail.received) == sent <= 13  # only what it was just sending may go out twice
    assert database.dead_mail.count_documents({}) == 0


async def settled_within(database: DB, seconds: float) -> None:
    async def check() -> None:
        nothing_owed(database)

    await eventually_async(check, seconds)


async def test_sigterm_while_sending_finishes_that_mail_and_gives_back_the_others(
    settings: Settings, database: DB, mail: MailServer, tmp_path: Path
) -> None:
    service = await running_service(settings, tmp_path, SMTP_CONNECTIONS=1, SMTP_DATA_TIMEOUT=3)

    async def script(stage: str, _recipient: str) -> str | None:
        if stage == "DATA":
            service.signal(signal.SIGTERM)  # and again, as an impatient orchestrator would
            await asyncio.sleep(0.5)
            service.signal(signal.SIGTERM)
            await asyncio.sleep(1.5)
        return None

    mail.script = script
    async with open_store(settings) as direct:
        for _ in range(3):
            await direct.create(Create(USER, Key.REGISTRATION))
    started = time.monotonic()
    assert await asyncio.to_thread(service.process.wait, 10) == 0, service.log()
    assert time.monotonic() - started < 9
    assert len(mail.received) == 1
    assert [item["token"] for item in owed(database)] == [NO_TOKEN, NO_TOKEN]


# --- I7: a fault of our configuration kills no e-mail -------------------------------------------------


async def test_i7_a_wrong_password_is_tried_once_a_probe_interval_and_kills_no_e_mail(
    start: Start, database: DB, mail: MailServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tests.servers.PASSWORD", "another")
    client = await start()
    await owe(client, 30)
    await asyncio.sleep(3.6)
    assert 2 <= mail.logins <= 3  # at 0, 1 and 3 s
    assert (len(owed(database)), database.dead_mail.count_documents({})) == (30, 0)
    assert {item["tries"] for item in owed(database)} == {0}
    alarms = [record for record in caplog.records if record.levelname == "ERROR" and "SMTP" in record.message]
    assert len(alarms) == 1
    monkeypatch.undo()
    await settled(database)
    assert len(set(mail.ids)) == len(mail.ids) == 30


async def test_i7_one_probe_at_a_time_is_sent_to_a_server_that_refuses_us(
    client: Client, database: DB, mail: MailServer
) -> None:
    tried = []

    async def script(stage: str, _recipient: str) -> str | None:
        tried.append(stage)
        await asyncio.sleep(0.1)
        return "550 5.7.1 sender refused"

    mail.script = script
    await asyncio.gather(*(create(client, key="registration") for _ in range(10)))
    await asyncio.sleep(3.6)
    assert 2 <= len(tried) <= 3  # at 0, 1 and 3 s
    mail.script = None
    await settled(database)


@asynccontextmanager
async def silent_server() -> AsyncIterator[int]:
    """Listen, and never say a word."""
    writers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: writers.append(writer), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


@pytest.mark.parametrize("fault", ["certificate", "no STARTTLS", "plaintext", "hanging greeting", "no AUTH", "clear"])
async def test_i7_a_server_we_cannot_work_with_kills_no_e_mail_and_gets_no_password(
    start: Start, database: DB, server_tls: ssl.SSLContext, fault: str
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        changes: dict[str, Any] = {"smtp_connect_timeout": 0.3}
        mail = MailServer()
        if fault == "hanging greeting":
            changes["smtp_port"] = await stack.enter_async_context(silent_server())
        else:
            tls = server_tls if fault in {"certificate", "no AUTH"} else None
            await stack.enter_async_context(
                smtp_server(tls, auth=fault not in {"no AUTH", "no STARTTLS"}, mail_server=mail)
            )
            changes["smtp_port"] = mail.port
        if fault == "certificate":
            changes["smtp_ca_file"] = None
        if fault in {"no STARTTLS", "clear"}:
            changes["smtp_security"] = Security.STARTTLS if fault == "no STARTTLS" else Security.AUTO
        if fault == "no STARTTLS":
            changes |= {"smtp_login": None, "smtp_password": None}  # even so not in the clear
        client = await start(**changes)
        await owe(client, 5)
        await asyncio.sleep(1.5)
        assert [item["tries"] for item in owed(database)] == [0] * 5
        assert any(item["error"] for item in owed(database))
        assert (database.dead_mail.count_documents({}), mail.received, mail.logins) == (0, [], 0)


@pytest.mark.parametrize(
    ("stage", "reply"),
    [
        ("MAIL", "550 5.7.1 sender not allowed"),
        ("MAIL", "530 5.7.0 authentication required"),
        ("RCPT", "530 5.7.0 authentication required"),
        ("DATA", "550 5.7.60 client may not send as this sender"),
    ],
)
async def test_i7_a_refused_sender_kills_no_e_mail(
    client: Client, database: DB, mail: MailServer, stage: str, reply: str
) -> None:
    mail.script = scripted({stage: [reply] * 2})
    await owe(client, 5)
    await settled(database)
    assert (len(set(mail.ids)), database.dead_mail.count_documents({})) == (5, 0)


# --- I8: the outbox is bounded without silent loss ------------------------------------------------------


async def test_i8_the_twentyfirst_owed_e_mail_is_503_and_all_twenty_arrive(
    start: Start, database: DB, server_tls: ssl.SSLContext
) -> None:
    port = free_port()
    client = await start(smtp_port=port)
    body = {"user_id": USER, "key": "new_login"}
    responses = await asyncio.gather(*(client.post("/create", json=body) for _ in range(30)))
    assert Counter(response.status for response in responses) == {201: 20, 503: 10}
    for response in responses:
        if response.status == 503:
            assert "Retry-After" in response.headers
            assert "e-mails" in (await problem(response))["detail"]
    assert (await list_(client))["elements"] == 20
    await create(client, key="new_message")
    async with smtp_server(server_tls, port=port) as mail:
        await settled(database)
        assert len(set(mail.ids)) == len(mail.ids) == 20
    await create(client, key="new_login")


# --- dead letters are for people ------------------------------------------------------------------------


async def test_dead_letters_are_listed_and_owed_again_while_a_replica_runs(
    client: Client, settings: Settings, database: DB, mail: MailServer
) -> None:
    assert await command(settings, "dead") == (0, "There are no dead letters.\n", "")
    mail.script = scripted({"RCPT": ["550 5.1.1 unknown", "550 5.1.1 unknown"]})
    for user_id in (USER, OTHER):
        await create(client, user_id, "registration")
    await settled(database)
    first, second = database.dead_mail.find()
    code, out, _ = await command(settings, "dead")
    assert code == 0
    assert all(text in out for text in (first["_id"], USER, OTHER, "registration", "RCPT: 550 5.1.1 unknown"))
    code, out, _ = await command(settings, "dead", "--json")
    assert out.count('"error": "RCPT: 550 5.1.1 unknown"') == len(out.splitlines()) == 2
    code, out, err = await command(settings, "retry", first["_id"], "nonsense")
    assert (code, out) == (1, "Owed again: 1.\n")
    assert "nonsense" in err
    await settled(database)
    assert mail.ids == [first["_id"]]
    database.users.delete_one({"_id": ObjectId(second["user_id"])})
    code, out, err = await command(settings, "retry", "--all")
    assert (code, out) == (1, "Owed again: 0.\n")
    assert "gone" in err
    assert [letter["_id"] for letter in database.dead_mail.find()] == [second["_id"]]


async def test_a_retry_whose_reply_was_lost_owes_the_e_mail_once(
    settings: Settings, standalone: Mongod, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it is delivered before the retry is repeated."""
    name, proxy, sleep = f"lost_{ObjectId()}", Proxy(standalone.port), asyncio.sleep
    async with proxy.running(), AsyncExitStack() as stack:
        uris = f"mongodb://{standalone.address}/{name}", f"mongodb://127.0.0.1:{proxy.port}/{name}"
        stores = [await stack.enter_async_context(open_store(replace(settings, db_uri=uri))) for uri in uris]
        await stores[0].create(Create(USER, Key.REGISTRATION))
        outbox = Outbox(stores[0])
        (claimed,) = await outbox.claim(1, 60)
        await outbox.settle_dead(claimed, 1, "x")
        (letter,) = await outbox.dead_letters()

        async def deliver(_: float) -> None:
            monkeypatch.setattr(asyncio, "sleep", sleep)
            (mail,) = await outbox.claim(1, 60)
            assert await outbox.settle_sent(mail)

        monkeypatch.setattr(asyncio, "sleep", deliver)
        proxy.break_next("update", "after")
        assert await Outbox(stores[1]).owe_again(letter)
        assert (proxy.faults, await outbox.claim(1, 60), await outbox.dead_letters()) == (1, [], [])
        with standalone.client() as direct:
            direct.drop_database(name)


async def test_a_retry_that_died_halfway_owes_the_e_mail_once(settings: Settings, database: DB) -> None:
    async with open_store(settings) as direct:
        await direct.create(Create(USER, Key.REGISTRATION))
        outbox = Outbox(direct)
        (claimed,) = await outbox.claim(1, 60)
        await outbox.settle_dead(claimed, 1, "x")
        (letter,) = await outbox.dead_letters()
        assert await outbox.owe_again(letter)
        database.dead_mail.insert_one(letter)  # as if it had not come to delete it
        assert await outbox.owe_again(letter)
        assert (len(owed(database)), database.dead_mail.count_documents({})) == (1, 0)
        for _ in range(19):
            await direct.create(Create(USER, Key.REGISTRATION))
        with pytest.raises(OutboxFull):
            await outbox.owe_again({**letter, "_id": "another"})
        assert_outboxes_consistent(database)
