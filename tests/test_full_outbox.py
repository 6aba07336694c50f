"""A full outbox: a notification that is kept costs no more than its e-mail, and the answer says so."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest
from bson import ObjectId

from kinds import SPECIFIED
from mongo.creation import Create, Recorded
from mongo.document import OUTBOX_LIMIT
from mongo.errors import RETRY_PAUSE, Patience
from mongo.inbox import ListQuery, Selection
from settings import Settings
from store import open_store
from tests.client import (
    DB,
    OTHER,
    USER,
    Client,
    assert_length,
    create,
    list_,
    metric,
    ours,
    owing,
    problem,
    settled,
    user,
)
from tests.faults import far_from_due, impatient
from tests.fixtures import Start
from tests.proxy import Proxy
from tests.servers import MailServer, Mongod
from tests.waiting import eventually_async

FULL = [far_from_due(n) for n in range(OUTBOX_LIMIT)]
NOT_OWED = "notifier_emails_not_owed_total"
KEY = {"Idempotency-Key": "k"}
REPLAYED = {"Idempotent-Replayed", "X-Notification-ID"}


def fill(database: DB, *user_ids: str) -> None:
    """Fill the outboxes of these users."""
    database.users.insert_many(
        [{"_id": ObjectId(user_id), "email": "a@b.example", **owing(*FULL)} for user_id in user_ids]
    )


async def post(client: Client, key: str = "new_login", user_id: str = USER, **options: Any) -> tuple[int, set[str]]:
    """Create a notification; return the status and which of the headers that tell more the answer has."""
    response = await client.post("/create", json={"user_id": user_id, "key": key}, **options)
    told = {"X-Notification-ID", "X-Email", "Idempotent-Replayed", "Retry-After"} & set(response.headers)
    assert response.headers.get("X-Email", "not-owed") == "not-owed"
    return response.status, told


async def test_a_notification_is_kept_without_its_email_and_says_so(
    client: Client, database: DB, mail: MailServer
) -> None:
    fill(database, USER)
    before = ours(database)
    for n in range(1, 4):
        assert await post(client) == (201, {"X-Notification-ID", "X-Email"})
        assert ((await list_(client))["elements"], await metric(client, NOT_OWED)) == (n, n)
    assert ours(database) == before
    await create(client, key="new_message")
    await create(client, OTHER, "new_login")
    assert await metric(client, NOT_OWED) == 3
    database.users.update_one({"_id": ObjectId(USER)}, {"$pop": {"notifier.outbox": 1}})
    assert await post(client) == (201, {"X-Notification-ID"})
    await eventually_async(lambda: assert_length(mail.ids, 2))  # that of the other user, and the last
    await eventually_async(lambda: assert_length(ours(database)["outbox"], OUTBOX_LIMIT - 1))
    assert (ours(database)["outbox"], await metric(client, NOT_OWED)) == (before["outbox"][:-1], 3)


async def test_beyond_the_limit_an_e_mail_only_kind_is_503(client: Client, database: DB) -> None:
    fill(database, USER)
    before = user(database)
    for headers in ({}, KEY):
        response = await client.post("/create", json={"user_id": USER, "key": "registration"}, headers=headers)
        assert (response.status, response.headers["Retry-After"]) == (503, "60")
        assert f"{OUTBOX_LIMIT} e-mails" in (await problem(response))["detail"]
    assert (user(database), await metric(client, NOT_OWED)) == (before, 0)


async def test_a_replay_has_no_effect_even_when_there_is_room_again(client: Client, database: DB) -> None:
    fill(database, USER)
    assert await post(client, headers=KEY) == (201, {"X-Notification-ID", "X-Email"})
    assert [item["k"] for item in ours(database)["recent"]] == ["k"]
    assert await post(client, headers=KEY) == (201, REPLAYED)
    assert await post(client, "new_message", headers=KEY) == (422, set())
    database.users.update_one({}, {"$pop": {"notifier.outbox": 1}})
    assert await post(client, headers=KEY) == (201, REPLAYED)
    assert len(ours(database)["outbox"]) == OUTBOX_LIMIT - 1
    assert ((await list_(client))["elements"], await metric(client, NOT_OWED)) == (1, 1)


async def test_concurrent_requests_with_one_key_keep_one_notification(client: Client, database: DB) -> None:
    fill(database, USER)
    answers = Counter(
        [frozenset(told) for _, told in await asyncio.gather(*(post(client, headers=KEY) for _ in range(20)))]
    )
    assert answers == {frozenset(REPLAYED): 19, frozenset({"X-Notification-ID", "X-Email"}): 1}
    assert ((await list_(client))["elements"], await metric(client, NOT_OWED)) == (1, 1)


@pytest.mark.parametrize("skip", [0, 1], ids=["with the e-mail", "without it"])
@pytest.mark.parametrize("fault", ["before", "after", "swallow"])
@pytest.mark.parametrize("headers", [{}, KEY], ids=["no key", "key"])
@impatient
async def test_a_lost_reply_to_either_write_keeps_one_notification(
    start: Start, standalone: Mongod, fault: str, skip: int, headers: dict[str, str]
) -> None:
    name, proxy = f"lost_{ObjectId()}", Proxy(standalone.port)
    async with proxy.running():
        client = await start(db_uri=f"mongodb://127.0.0.1:{proxy.port}/{name}?directConnection=true")
        with standalone.client() as direct:
            fill(direct[name], USER)
            before = ours(direct[name])["outbox"]
            proxy.break_next("findAndModify", fault, skip)
            assert await post(client, headers=headers) == (201, {"X-Notification-ID", "X-Email"})
            assert proxy.faults == 1
            assert ((await list_(client))["elements"], await metric(client, NOT_OWED)) == (1, 1)
            assert ours(direct[name])["outbox"] == before
            direct.drop_database(name)
        await client.close()


async def test_in_a_fan_out_they_are_created_and_counted_beside(client: Client, database: DB) -> None:
    users = [f"{n:024x}" for n in range(100)]
    fill(database, *users[:3])
    before = ours(database, users[0])["outbox"]

    async def send(key: str) -> tuple[int, dict[str, Any]]:
        body = {"user_ids": users, "key": key}
        response = await client.post("/create", json=body, headers={"Idempotency-Key": key})
        return response.status, await response.json()

    assert await send("new_login") == (201, {"success": True, "created": 100, "replayed": 0, "not_owed": 3})
    assert await send("new_login") == (201, {"success": True, "created": 0, "replayed": 100})
    assert await metric(client, NOT_OWED) == 3
    for user_id in users[:3]:
        assert (len(user(database, user_id)["notifications"]), ours(database, user_id)["outbox"]) == (1, before)
    status, body = await send("registration")
    assert (status, body["errors"]["user_ids"].keys()) == (503, {"0", "1", "2"})
    assert await metric(client, NOT_OWED) == 3
    database.users.delete_many({"_id": {"$in": [ObjectId(user_id) for user_id in users[:3]]}})
    await settled(database)


async def test_the_write_without_the_email_has_its_conditions(client: Client, database: DB) -> None:
    """An attempt with the e-mail may still be on its way, and find room by the time that it arrives."""
    users = [f"{n:024x}" for n in range(30)]
    fill(database, *users)
    for _ in range(2):  # at the second time, every document has been judged
        database.command("profile", 2)
        assert {status for status, _ in await asyncio.gather(*(post(client, user_id=id_) for id_ in users))} == {201}
        database.command("profile", 0)
        asked = [found["command"] for found in database["system.profile"].find()]
        database.drop_collection("system.profile")
    writes = [(item.get("q", item.get("query")), item.get("u", item.get("update"))) for item in asked]
    kept = [q for q, u in writes if u and "$push" in u and "notifier.outbox" not in u["$push"]]
    assert len(kept) >= len(users)
    assert all("notifications.id" in q for q in kept)
    database.users.delete_many({})


async def test_a_failed_fan_out_says_that_others_are_owed_no_email(client: Client, database: DB) -> None:
    """Asking again would count them as replays, so this answer is the one that says it."""
    fill(database, USER)
    database.users.insert_one({"_id": ObjectId(OTHER), "notifications": "theirs"})
    body = {"user_ids": [USER, OTHER], "key": "new_login"}
    response = await client.post("/create", json=body, headers=KEY)
    assert (response.status, response.headers.get("X-Email")) == (409, "not-owed")
    assert (await response.json())["errors"]["user_ids"].keys() == {"1"}
    again = await client.post("/create", json=body, headers=KEY)
    assert (again.status, "X-Email" in again.headers) == (409, False)


@impatient
async def test_a_lost_reply_without_the_email_is_no_promise_of_one(
    settings: Settings, standalone: Mongod, patience: Patience, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is done again after its turn has ended, by when the notification is there, and its e-mail is not."""
    monkeypatch.setattr("mongo.users.RETRY_PAUSE", (patience.shared_call, patience.shared_call))
    name, proxy = f"lost_{ObjectId()}", Proxy(standalone.port)
    async with proxy.running():
        uri = f"mongodb://127.0.0.1:{proxy.port}/{name}"
        async with open_store(replace(settings, db_uri=uri), patience=patience) as store:
            with standalone.client() as direct:
                fill(direct[name], USER, OTHER)
                proxy.break_next("findAndModify", "swallow", skip=2)
                each = Create("", SPECIFIED["new_login"], idempotency_key="k")
                outcomes = await store.create_many([USER, OTHER], each)
                assert (proxy.faults, outcomes) == (1, [Recorded.NOT_OWED] * 2)
                assert [len(user(direct[name], id_)["notifications"]) for id_ in (USER, OTHER)] == [1, 1]
                direct.drop_database(name)


@pytest.mark.parametrize("kind", ["registration", "new_login"])
async def test_a_create_whose_email_was_sent_already_is_no_replay(
    settings: Settings, standalone: Mongod, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Its first attempt took effect and the reply was lost; the e-mail was sent and settled before the next one."""
    name, proxy, sleep = f"lost_{ObjectId()}", Proxy(standalone.port), asyncio.sleep
    async with proxy.running(), AsyncExitStack() as stack:
        uris = f"mongodb://{standalone.address}/{name}", f"mongodb://127.0.0.1:{proxy.port}/{name}"
        store, proxied = [await stack.enter_async_context(open_store(replace(settings, db_uri=uri))) for uri in uris]
        new = Create(USER, SPECIFIED[kind], idempotency_key="k")

        async def deliver(seconds: float) -> None:
            if seconds > RETRY_PAUSE[1]:  # it is that of the clock
                return await sleep(seconds)
            monkeypatch.setattr(asyncio, "sleep", sleep)
            (email,) = await store.outbox.claim(1, 60)
            assert await store.outbox.remove(email)
            await store.inbox.delete(Selection(USER))
            return None

        monkeypatch.setattr(asyncio, "sleep", deliver)  # the pause before the write is repeated
        proxy.break_next("findAndModify", "after")
        id_, outcome = await proxied.create(new)
        assert (proxy.faults, outcome, bool(id_)) == (1, Recorded.CREATED, True)
        assert await store.create(new) == (id_, Recorded.REPLAYED)
        assert (await store.outbox.claim(1, 60), (await store.inbox.list(ListQuery(USER, 0, 10))).elements) == ([], 0)
        with standalone.client() as client:
            client.drop_database(name)
