"""Promises I1 and I6 for writes that share a call: each has its own outcome, and none affects another."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from bson import DatetimeMS, ObjectId, encode
from bson.raw_bson import RawBSONDocument

from mongo.document import OUTBOX_LIMIT
from mongo.errors import Patience
from settings import Settings
from tests.client import DB, Client, create, ours, owing, read, settled, user
from tests.faults import HEARTBEATS, failing, far_from_due, impatient
from tests.fixtures import Start
from tests.servers import Mongod

# --- I1: a 201 means one notification on disk ----------------------------------------------------


@pytest.mark.ci
async def test_i1_the_largest_requests_fit_into_shared_calls(client: Client, database: DB) -> None:
    """As BSON, this list is five times as long as in JSON."""
    data = {"x": [1] * 8100}
    users = [f"{n:024x}" for n in range(120)]
    await asyncio.gather(*(create(client, user_id, "new_login", data=data) for user_id in users))
    assert all(user(database, user_id)["notifications"][0]["data"] == data for user_id in users)
    await settled(database)


async def test_i1_each_create_in_a_shared_call_has_its_own_outcome(
    client: Client, database: DB, updates: Callable[[], int]
) -> None:
    """Every outcome that a create can have, among many creates that succeed."""
    full_document, not_an_array, full_outbox, kept, replayed = (f"{n:024x}" for n in range(100, 105))
    emails = [far_from_due(n) for n in range(OUTBOX_LIMIT)]
    database.users.insert_one({"_id": ObjectId(full_document), "blob": b"x" * (16 * 1024 * 1024 - 1000)})
    database.users.insert_many(
        [
            {"_id": ObjectId(not_an_array), "notifications": "not ours"},
            *({"_id": ObjectId(user_id), **owing(*emails)} for user_id in (full_outbox, kept)),
        ]
    )
    once, changed = ({"user_id": replayed, "key": "new_post", "data": {"x": n}} for n in range(2))
    key = {"Idempotency-Key": "k"}
    assert (await client.post("/create", json=once, headers=key)).status == 201
    plain = [{"user_id": f"{n:024x}", "key": "new_login", "data": {"n": n}} for n in range(40)]
    requests = [
        ({"user_id": full_document, "key": "new_post", "data": {"a": "x" * 2000}}, {}, 413),
        ({"user_id": not_an_array, "key": "new_post"}, {}, 409),
        ({"user_id": full_outbox, "key": "registration"}, {}, 503),
        ({"user_id": kept, "key": "new_login"}, {}, 201),
        (once, key, 201),
        (changed, key, 422),
        *((body, {}, 201) for body in plain),
    ]
    before = updates()
    for _ in range(3):
        answers = [client.post("/create", json=body, headers=headers) for body, headers, _ in requests * 2]
        statuses = [answer.status for answer in await asyncio.gather(*answers)]
        assert statuses == [status for *_, status in requests * 2]
    assert updates() - before < 3 * 2 * len(requests) / 2
    for body in plain:
        assert [item["data"] for item in user(database, str(body["user_id"]))["notifications"]] == [body["data"]] * 6
    assert len(user(database, replayed)["notifications"]) == 1
    assert "notifications" not in user(database, full_outbox) | user(database, full_document)
    assert (len(user(database, kept)["notifications"]), len(ours(database, kept)["outbox"])) == (6, OUTBOX_LIMIT)
    database.users.delete_many({"_id": {"$in": [ObjectId(full_outbox), ObjectId(kept)]}})
    await settled(database)


async def test_i1_each_read_in_a_shared_call_knows_whether_it_matched(client: Client, database: DB) -> None:
    users = [f"{n:024x}" for n in range(30)]
    await asyncio.gather(*(create(client, user_id) for user_id in users))
    ids = [user(database, user_id)["notifications"][0]["id"] for user_id in users]
    expected = [200 if n % 3 else 404 for n in range(30)]
    marks = (read(client, id_ if n % 3 else "unknown", users[n]) for n, id_ in enumerate(ids))
    assert await asyncio.gather(*marks) == expected
    assert [200 - 200 * user(database, u)["notifications"][0]["is_new"] for u in users] == [
        200 if status == 200 else 0 for status in expected
    ]


async def test_i1_a_validators_refusal_affects_no_other_write(client: Client, database: DB) -> None:
    """The refusal quotes the document, and with it values of other programs that the driver may fail to decode."""
    late, text = DatetimeMS(8_640_000_000_000_000), RawBSONDocument(encode({"x": "?"}).replace(b"?", b"\xff"))
    users = [f"{n:024x}" for n in range(40)]
    database.users.insert_many([{"_id": ObjectId(user_id), "late": late, "text": text} for user_id in users[:3]])
    schema = {"properties": {"late": {"bsonType": "string"}, "text": {"properties": {"x": {"maxLength": 0}}}}}
    database.command("collMod", "users", validator={"$jsonSchema": schema}, validationLevel="strict")
    answers = [client.post("/create", json={"user_id": user_id, "key": "new_post"}) for user_id in users]
    assert [answer.status for answer in await asyncio.gather(*answers)] == [409] * 3 + [201] * 37
    assert all(len(user(database, user_id)["notifications"]) == 1 for user_id in users[3:])
    database.users.delete_many({"late": {"$exists": True}})


# --- I6: any other answer means at most one effect -----------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [{"writeConcernError": {"code": 64, "errmsg": "waiting for replication timed out"}}, {"closeConnection": True}],
    ids=["not on a majority", "no reply"],
)
@impatient
async def test_i6_an_unconfirmed_shared_call_is_a_201_for_nobody(
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


# An attempt alone may take nearly the whole time.
@pytest.mark.parametrize("patience", [Patience(operation=5.0, attempt=4.9, shared_call=0.5)], ids=["impatient"])
async def test_i6_locked_documents_fail_alone(start: Start, mongod: Mongod, database: DB) -> None:
    """Another program's transaction may lock documents for a minute. Writes to other documents must not wait for it."""
    client = await start()
    users = [f"{n:024x}" for n in range(20)]
    await asyncio.gather(*(create(client, user_id) for user_id in users))

    async def status(user_id: str) -> int:
        return (await client.post("/create", json={"user_id": user_id, "key": "new_post"})).status

    with mongod.client() as other, other.start_session() as session, session.start_transaction():
        locked = {"_id": {"$in": [ObjectId(user_id) for user_id in users[:3]]}}
        other[database.name].users.update_many(locked, {"$set": {"x": 1}}, session=session)
        alone = []
        for user_id in users[:2]:  # each alone in its call
            alone.append(asyncio.create_task(status(user_id)))
            await asyncio.sleep(0.05)
        assert await asyncio.gather(*map(status, users[2:])) == [503] + [201] * 17
        assert await asyncio.gather(*alone) == [503, 503]
    assert [len(user(database, user_id)["notifications"]) for user_id in users[3:]] == [2] * 17


async def test_i6_a_client_that_disconnects_affects_no_other_write(client: Client, database: DB) -> None:
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


@impatient
async def test_i6_beyond_the_queue_limit_requests_are_503_at_once(
    start: Start, mongod: Mongod, database: DB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mongo.batcher.QUEUE_LIMIT", 5)
    client = await start()
    with failing(mongod, ["findAndModify", "update"], blockConnection=True, blockTimeMS=300):
        posts = [client.post("/create", json={"user_id": f"{n:024x}", "key": "new_post"}) for n in range(60)]
        answers = await asyncio.gather(*posts)
    statuses = Counter(answer.status for answer in answers)
    assert statuses.keys() == {201, 503}
    assert {answer.headers.get("Retry-After") for answer in answers} == {None, "1"}
    assert database.users.count_documents({}) == statuses[201]
