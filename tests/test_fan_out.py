"""`POST /create` for many users: everyone once, whatever happens to some of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from bson import ObjectId

from api.problems import BY_EXCEPTION
from mongo.document import OUTBOX_LIMIT
from mongo.errors import Unavailable, UnknownUser
from settings import IdType, Settings, UnknownUsers
from tests.client import DB, OTHER, USER, Client, create, list_, metric, ours, owing, problem, settled, user
from tests.faults import HEARTBEATS, failing, far_from_due, hasty, impatient
from tests.fixtures import Start
from tests.processes import running_service
from tests.proxy import FAULTS, Proxy
from tests.servers import MailServer, Mongod
from tests.streams import client_of
from tests.waiting import eventually, eventually_async

USERS = [f"{n:024x}" for n in range(150)]
"""More than two batches."""


async def send(
    client: Any, users: list[str], key: str = "new_message", repeat: str = "k", **fields: Any
) -> tuple[int, dict[str, Any]]:
    """Ask for a notification for many users; return the status and the body of the answer."""
    body = {"user_ids": users, "key": key, **fields}
    async with client.post("/create", json=body, headers={"Idempotency-Key": repeat}) as response:
        if response.status == 503:
            assert response.headers["Retry-After"] == "5"
        return response.status, await (response.json() if response.status == 201 else problem(response))


def done(created: int, replayed: int = 0) -> tuple[int, dict[str, Any]]:
    return 201, {"success": True, "created": created, "replayed": replayed}


def counts(database: DB) -> Counter[int]:
    """Return how many users have how many notifications."""
    return Counter(len(found.get("notifications", [])) for found in database.users.find())


async def test_a_repeated_fan_out_notifies_a_thousand_users_once_each(client: Client, database: DB) -> None:
    users = [f"{n:024x}" for n in range(1000)]
    assert await send(client, users[:10]) == done(10)
    assert await asyncio.gather(*(send(client, users) for _ in range(3))) != []
    assert await send(client, users) == done(0, 1000)
    assert counts(database) == {1: 1000}
    assert len({user(database, user_id)["notifications"][0]["id"] for user_id in users}) == 1000
    assert await send(client, users[::-1], repeat="another", data={"n": 1}, target_id=OTHER) == done(1000)
    (newest,) = (await list_(client, users[7], limit=1))["list"]
    assert newest.keys() == {"id", "timestamp", "is_new", "user_id", "key", "target_id", "data"}
    assert (newest["user_id"], newest["data"]) == (users[7], {"n": 1})


async def test_the_counts_distinguish_new_and_earlier_notifications(client: Client, database: DB) -> None:
    assert await send(client, USERS[:40]) == done(40)
    assert await send(client, USERS[30:50]) == done(10, 10)
    response = await client.post(
        "/create", json={"user_id": USERS[0], "key": "new_message"}, headers={"Idempotency-Key": "k"}
    )
    assert (response.status, response.headers["Idempotent-Replayed"]) == (201, "true")
    assert [response.headers["X-Notification-ID"]] == [item["id"] for item in (await list_(client, USERS[0]))["list"]]
    assert counts(database) == {1: 50}


async def test_a_single_create_tells_the_id_that_the_list_shows(client: Client) -> None:
    response = await client.post("/create", json={"user_id": USER, "key": "new_login"})
    assert [response.headers["X-Notification-ID"]] == [item["id"] for item in (await list_(client))["list"]]


@pytest.mark.parametrize("key", ["new_message", "new_login", "registration"])
async def test_every_single_create_returns_an_id_and_its_replay_too(client: Client, key: str) -> None:
    body, headers = {"user_id": USER, "key": key}, {"Idempotency-Key": "k"}
    first, again = [await client.post("/create", json=body, headers=headers) for _ in range(2)]
    assert ("Idempotent-Replayed" in first.headers, again.headers["Idempotent-Replayed"]) == (False, "true")
    assert ObjectId.is_valid(first.headers["X-Notification-ID"])
    assert again.headers["X-Notification-ID"] == first.headers["X-Notification-ID"]


async def test_everyone_is_sent_one_email(client: Client, database: DB, mail: MailServer) -> None:
    for _ in range(2):
        await send(client, USERS[:70], "registration")
    await settled(database)
    assert len(mail.ids) == len(set(mail.ids)) == 70


# --- what is refused ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("users", "errors"),
    [
        ([USER, "x", 5, OTHER], {"1": ["Not a valid ObjectId."], "2": ["Not a valid ObjectId."]}),
        ([USER, OTHER, USER.upper(), OTHER], {"2": ["Is in the list already."], "3": ["Is in the list already."]}),
        ([], ["Not 1 to 1000 ids."]),
        ([f"{n:024x}" for n in range(1001)], ["Not 1 to 1000 ids."]),
        ([1] * 20_000, ["Not 1 to 1000 ids."]),
        (USER, ["Not a valid list."]),
        (None, ["Field may not be null."]),
    ],
    ids=["wrong", "repeated", "none", "too many", "far too many", "no list", "null"],
)
async def test_everything_is_validated_before_anything_is_written(
    client: Client, database: DB, users: object, errors: object
) -> None:
    body = {"user_ids": users, "key": "nonsense", "x": 1}
    response = await client.post("/create", json=body)
    found = (await problem(response))["errors"]
    assert (response.status, found.keys()) == (422, {"user_ids", "key", "x", "Idempotency-Key"})
    assert found["user_ids"] == errors
    assert found["Idempotency-Key"] == ["Missing data for required field."]
    assert database.users.count_documents({}) == 0


async def test_one_user_or_many_must_be_given(client: Client) -> None:
    body = {"user_ids": [USER], "user_id": USER, "key": "new_post"}
    response = await client.post("/create", json=body, headers={"Idempotency-Key": "k"})
    assert (await problem(response))["errors"] == {"user_ids": ["Give either user_id or user_ids."]}


@pytest.mark.parametrize("count", [1, 150])
async def test_unknown_users_are_named_by_index_others_are_notified(start: Start, database: DB, count: int) -> None:
    client = await start(id_type=IdType.STRING, unknown_users=UnknownUsers.REFUSE)
    known = [f"user {n}" for n in range(count)]
    database.users.insert_many([{"_id": user_id} for user_id in known])
    status, body = await send(client, [*known, "nobody"])
    assert (status, body["errors"]) == (409, {"user_ids": {f"{count}": [BY_EXCEPTION[UnknownUser].detail]}})
    assert counts(database) == {1: count}
    assert await send(client, known) == done(0, count)


async def test_each_user_has_an_outcome_and_a_repetition_does_the_rest(client: Client, database: DB) -> None:
    full, foreign, owed, changed = (USERS[n] for n in (1, 70, 71, 149))
    emails = [far_from_due(n) for n in range(OUTBOX_LIMIT)]
    database.users.insert_many(
        [
            {"_id": ObjectId(full), "blob": b"x" * (16 * 1024 * 1024 - 1000)},
            {"_id": ObjectId(foreign), "notifications": "not ours"},
            {"_id": ObjectId(owed), **owing(*emails)},
        ]
    )
    await send(client, [changed], "new_message")
    status, body = await send(client, USERS, "new_login", data={"a": "x" * 2000})
    assert status == 409
    assert {index: reason[0][:36] for index, reason in body["errors"]["user_ids"].items()} == {
        "1": "The user's document has no room for ",
        "70": "The users' collection does not admit",
        "149": "The Idempotency-Key belongs to anoth",
    }
    assert counts(database)[1] == len(USERS) - 2
    assert len(ours(database, owed)["outbox"]) == OUTBOX_LIMIT
    assert await metric(client, "notifier_emails_not_owed_total") == 1
    for user_id in (full, foreign, owed):
        database.users.delete_one({"_id": ObjectId(user_id)})
    status, body = await send(client, USERS, "new_login", data={"a": "x" * 2000})
    assert (status, body["errors"]["user_ids"].keys()) == (409, {"149"})
    assert counts(database) == {1: len(USERS)}
    await settled(database)


# --- what fails ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS)
@impatient
async def test_i1_a_batch_whose_reply_is_lost_applies_once(start: Start, any_mongod: Mongod, fault: str) -> None:
    name, proxy = f"lost_{ObjectId()}", Proxy(any_mongod.port)
    async with proxy.running():
        client = await start(db_uri=f"mongodb://127.0.0.1:{proxy.port}/{name}?directConnection=true")
        proxy.break_next("updates", fault)
        assert await send(client, USERS) == done(len(USERS))
        assert proxy.faults == 1
        with any_mongod.client() as direct:
            assert counts(direct[name]) == {1: len(USERS)}
            direct.drop_database(name)
        await client.close()


@hasty
async def test_i6_without_mongodb_a_fan_out_ends_in_time(
    start: Start, settings: Settings, mongod: Mongod, database: DB
) -> None:
    client = await start(db_uri=f"{settings.db_uri}?{HEARTBEATS}")
    with failing(mongod, ["findAndModify", "update", "find"], errorCode=91):
        status, body = await asyncio.wait_for(send(client, USERS), 8)
    assert (status, body["errors"]["user_ids"].keys()) == (503, {f"{n}" for n in range(len(USERS))})
    assert {reason for (reason,) in body["errors"]["user_ids"].values()} == {BY_EXCEPTION[Unavailable].detail}

    async def is_done() -> None:
        status, body = await send(client, USERS)
        assert (status, status == 201 and body["created"] + body["replayed"]) == (201, len(USERS))

    await eventually_async(is_done)
    assert counts(database) == {1: len(USERS)}


@impatient
async def test_i6_locked_documents_fail_alone(start: Start, mongod: Mongod, database: DB) -> None:
    client = await start()
    await send(client, USERS, repeat="first")
    with mongod.client() as other, other.start_session() as session, session.start_transaction():
        locked = {"_id": {"$in": [ObjectId(user_id) for user_id in USERS[3:6]]}}
        other[database.name].users.update_many(locked, {"$set": {"x": 1}}, session=session)
        status, body = await send(client, USERS[:60])
    assert (status, body["errors"]["user_ids"].keys()) == (503, {"3", "4", "5"})
    status, body = await send(client, USERS[:60])  # the server may go on with what the service has given up
    assert (status, body["created"] + body["replayed"]) == (201, 60)
    assert counts(database) == {2: 60, 1: len(USERS) - 60}


@pytest.mark.ci
async def test_i1_after_a_kill_9_asking_again_notifies_each_once(
    settings: Settings, mongod: Mongod, database: DB, tmp_path: Path
) -> None:
    service = await running_service(settings, tmp_path)
    users = [f"{n:024x}" for n in range(1000)]
    async with client_of(service) as client:
        with failing(mongod, ["update"], {"skip": 2}, blockConnection=True, blockTimeMS=3000):
            asking = asyncio.create_task(send(client, users))
            await eventually_async(lambda: assert_some(database))
            service.kill()
        with pytest.raises(aiohttp.ClientError):
            await asking
    assert database.users.count_documents({}) < 1000
    service.restart()
    await asyncio.to_thread(eventually, service.answers)
    async with client_of(service) as client:
        status, body = await send(client, users)
    service.kill()
    assert (status, body["created"] + body["replayed"]) == (201, 1000)
    assert body["replayed"] >= 1
    assert counts(database) == {1: 1000}


def assert_some(database: DB) -> None:
    assert database.users.count_documents({})


async def test_beside_single_creates_its_batches_are_small(client: Client, updates: Callable[[], int]) -> None:
    users = [f"{n:024x}" for n in range(1000)]
    before = updates()
    assert await send(client, users) == done(1000)
    assert updates() - before == 16
    await create(client, OTHER)
    before = updates()
    sending = asyncio.create_task(send(client, users, repeat="again"))
    singles = 1
    while not sending.done():
        await create(client, OTHER)
        singles += 1
    assert await sending == done(1000)
    assert updates() - before >= 50
    assert (await list_(client, OTHER))["elements"] == min(singles, 100)


@impatient
async def test_i6_a_locked_document_delays_nobody_but_its_user(
    start: Start, mongod: Mongod, database: DB, caplog: pytest.LogCaptureFixture
) -> None:
    client = await start()
    await send(client, USERS, repeat="first")
    await create(client, OTHER)  # so that batches are small, and one at a time
    database.users.update_one({"_id": ObjectId(USERS[80])}, {"$set": {"notifications": "not ours"}})
    with mongod.client() as other, other.start_session() as session, session.start_transaction():
        other[database.name].users.update_one({"_id": ObjectId(USERS[3])}, {"$set": {"x": 1}}, session=session)
        status, body = await send(client, USERS)
    assert (status, body["errors"]["user_ids"].keys()) == (503, {"3", "80"})
    assert "the field `notifications` of document" in caplog.text


@impatient
async def test_notifications_beyond_the_inbox_make_room(
    start: Start, database: DB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mongo.creation.randrange", lambda limit: limit - 1)  # no create trims by chance
    held = [{"id": f"{n}", "is_new": False, "data": {"x": "x" * 1_100_000}} for n in range(14)]
    for user_id in (USER, OTHER):
        database.users.insert_one({"_id": ObjectId(user_id), "notifications": held, "own": "x" * 1_370_000})
    client = await start(notifications_limit=10, notifications_slack=5)
    await create(client, USER, data={"x": "x" * 16_000})
    assert await send(client, [OTHER], data={"x": "x" * 16_000}) == done(1)
    assert [len(user(database, user_id)["notifications"]) for user_id in (USER, OTHER)] == [10, 10]
