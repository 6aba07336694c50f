"""Collections as they are: with a collation, indexes and a validator of the team's."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from bson import ObjectId
from pymongo import GEO2D, GEOSPHERE, HASHED, TEXT

from tests.client import DB, USER, Client, create, list_, problem, read, settled, user
from tests.fixtures import Start
from tests.servers import MailServer

IGNORES_CASE = {"locale": "en", "strength": 1}


async def test_keys_stay_distinct_under_a_case_insensitive_collation(
    start: Start, database: DB, mail: MailServer
) -> None:
    for name in ("users", "dead_mail"):
        database.create_collection(name, collation=IGNORES_CASE)
    client = await start()
    body = {"user_id": USER, "key": "new_login"}
    replays = []
    for key in ("order-a", "order-A", "ORDER-A", "order-á", "order-a"):
        response = await client.post("/create", json=body, headers={"Idempotency-Key": key})
        replays.append((response.status, response.headers.get("Idempotent-Replayed")))
    if replays[3][0] == 422:  # such a key is not valid anyway
        del replays[3]
    assert replays == [(201, None)] * (len(replays) - 1) + [(201, "true")]
    await settled(database)
    assert len(mail.ids) == len(replays) - 1
    (first, *_) = (await list_(client))["list"]
    assert await read(client, first["id"].upper()) == 404
    assert await read(client, first["id"]) == 200
    posts = (
        client.post("/create", json={"user_id": f"{n:024x}", "key": "new_post"}, headers={"Idempotency-Key": key})
        for n in range(20)
        for key in ("k", "K")
    )
    assert {response.status for response in await asyncio.gather(*posts)} == {201}
    assert all(len(user(database, f"{n:024x}")["notifications"]) == 2 for n in range(20))


NO_KEY = "an index of the collection that has no key for the document"
INDEXES: list[tuple[str, list[tuple[str, Any]], dict[str, Any], dict[str, Any], str]] = [
    ("new_message", [("$**", TEXT)], {}, {"data": {"language": 5}}, NO_KEY),
    ("new_message", [("$**", TEXT)], {}, {"data": {"language": "klingon"}}, NO_KEY),
    (
        "new_message",
        [("notifications.data.at", GEOSPHERE)],
        {},
        {"data": {"at": {"type": "Point", "coordinates": [999, 999]}}},
        NO_KEY,
    ),
    ("new_message", [("notifications.data.at", GEO2D)], {}, {"data": {"at": [1]}}, NO_KEY),
    ("new_message", [("notifications.data.at", GEO2D)], {}, {"data": {"at": [999, 999]}}, NO_KEY),
    ("new_message", [("notifications.data.at", GEO2D)], {}, {"data": {"at": ["a", "b"]}}, NO_KEY),
    ("new_message", [("notifications", HASHED)], {}, {}, NO_KEY),
    ("new_message", [("notifications.id", HASHED)], {}, {}, NO_KEY),
    ("new_login", [("notifications.id", 1), ("notifier.outbox.id", 1)], {}, {}, NO_KEY),
    ("new_message", [("username", 1)], {"unique": True}, {}, "a unique index"),
    ("new_message", [("notifications.key", 1)], {"unique": True}, {}, "a unique index"),
]


@pytest.mark.parametrize(("key", "fields", "options", "request_fields", "cause"), INDEXES, ids=lambda v: f"{v}"[:40])
async def test_an_index_without_a_key_for_a_document_causes_409(
    client: Client,
    database: DB,
    caplog: pytest.LogCaptureFixture,
    key: str,
    fields: list[tuple[str, Any]],
    options: dict[str, Any],
    request_fields: dict[str, Any],
    cause: str,
) -> None:
    database.users.create_index(fields, **options)
    if options:
        await create(client, "f" * 24)  # the one that is unique
    else:
        database.users.insert_many([{"_id": ObjectId(f"{n:024x}")} for n in range(20)])
    bodies = [{"user_id": f"{n:024x}", "key": key, **request_fields} for n in range(40)]
    harmless = [{"user_id": f"{n:024x}", "key": "registration"} for n in range(100, 110) if not options]
    alone = await client.post("/create", json=bodies[0])
    assert alone.status == 409
    await problem(alone)
    answers = [(await client.post("/create", json=body)) for body in bodies[20:22]]
    answers += await asyncio.gather(*(client.post("/create", json=body) for body in [*bodies, *harmless]))
    statuses = [answer.status for answer in answers]
    assert statuses == [409] * 42 + [201] * len(harmless)
    assert cause in caplog.text
    assert "@" not in caplog.text
    assert database.users.count_documents({"notifications": {"$exists": True}}) == len(options)
    await settled(database)


async def test_a_validator_is_409_with_the_cause_in_the_log(
    client: Client, database: DB, caplog: pytest.LogCaptureFixture
) -> None:
    database.command("collMod", "users", validator={"$jsonSchema": {"required": ["username"]}})
    database.users.insert_many([{"_id": ObjectId(f"{n:024x}"), "username": f"{n}"} for n in range(20)])
    posts = [client.post("/create", json={"user_id": f"{n:024x}", "key": "new_login"}) for n in range(40)]
    assert [response.status for response in await asyncio.gather(*posts)] == [201] * 20 + [409] * 20
    assert "requests fail: a validator of the collection" in caplog.text
    assert database.users.count_documents({}) == 20
    await settled(database)


async def test_a_mark_that_an_index_does_not_admit_is_409(
    client: Client, database: DB, caplog: pytest.LogCaptureFixture
) -> None:
    for n in range(2):
        await create(client, f"{n:024x}")
    database.users.create_index("notifications.is_new", unique=True, partialFilterExpression={"one": True})
    first, second = (user(database, f"{n:024x}")["notifications"][0]["id"] for n in range(2))
    database.users.update_one({"_id": ObjectId("0" * 24)}, {"$set": {"one": True}})
    assert await read(client, first, "0" * 24) == 200
    database.users.update_one({"_id": ObjectId(f"{1:024x}")}, {"$set": {"one": True}})
    response = await client.post(f"/read?user_id={1:024x}&notification_id={second}")
    assert response.status == 409
    assert "a unique index" in caplog.text
