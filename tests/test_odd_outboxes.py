"""Outboxes of other programs, or damaged: nothing in them is sent or changed, and they delay nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from bson import ObjectId, encode
from bson.raw_bson import RawBSONDocument

from tests.client import DB, USER, create, owing, settled
from tests.fixtures import Start
from tests.odd_documents import EMAIL, NO_OBJECTS, OWN, PAST, raw
from tests.servers import MailServer
from tests.waiting import eventually_async

DAMAGED: list[dict[str, Any]] = [
    *({"notifier": value} for value in NO_OBJECTS),
    {"notifier": {"due": PAST}},
    {"notifier": {"due": PAST, "outbox": None}},
    {"notifier": {"due": PAST, "outbox": "x"}},
    {"notifier": {"due": PAST, "outbox": {"0": EMAIL}}},
    {"notifier": {"due": PAST, "outbox": [OWN]}},
    {"notifier": {"due": PAST, "outbox": [None]}},
    {"notifier": {"due": PAST, "outbox": [[EMAIL]]}},
    {"notifier": {"due": PAST, "outbox": [{name: value for name, value in EMAIL.items() if name != "id"}]}},
    {"notifier": {"due": PAST, "outbox": [EMAIL | {"id": 5}]}},
    {"notifier": {"due": PAST, "outbox": [EMAIL | {"id": ["x"]}]}},
    {"notifier": {"due": PAST, "outbox": [EMAIL | {"at": "now"}]}},
    {"notifier": {"due": PAST, "outbox": [EMAIL | {"next_at": None}]}},
    {"notifier": {"due": PAST, "outbox": [EMAIL | {"tries": "many"}]}},
    {"notifier": {"due": PAST, "outbox": [EMAIL | {"token": 0}]}},
    {"notifier": {"due": "soon", "outbox": [EMAIL]}},
    {"notifier": {"due": [PAST], "outbox": [EMAIL]}},
    {"notifier": {"due": None, "outbox": []}},
]


@pytest.fixture(autouse=True)
def without_odd_documents(database: DB) -> Iterator[None]:
    """Delete all documents at the end: most would fail the check of all outboxes."""
    yield
    database.users.delete_many({})


@pytest.mark.parametrize("copies", [1, 3])
async def test_odd_outboxes_hold_up_nobody_and_are_left_as_they_are(
    start: Start, database: DB, mail: MailServer, caplog: pytest.LogCaptureFixture, copies: int
) -> None:
    """There are more of them than a worker looks at, and all are due before any other."""
    odd = [{"_id": ObjectId(), "email": "user@example.com", **fields} for fields in DAMAGED for _ in range(copies)]
    database.users.insert_many(odd)
    before = [raw(database, f"{document['_id']}") for document in odd]
    client = await start()
    users = [f"{n:024x}" for n in range(15)]
    await asyncio.gather(*(create(client, user_id, "registration") for user_id in users))

    async def all_sent() -> None:
        assert len(mail.ids) == 15

    await eventually_async(all_sent, 10)
    assert [raw(database, f"{document['_id']}") for document in odd] == before
    assert (await client.get("/metrics")).status == 200
    assert [record.message for record in caplog.records if record.levelname in {"WARNING", "ERROR"}] == []


async def test_a_document_that_cannot_be_changed_holds_up_nobody(
    start: Start, database: DB, mail: MailServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A validator that came later than they did, for instance."""
    odd = [{"_id": ObjectId(), "email": "user@example.com", "plan": 1, **owing(EMAIL)} for _ in range(50)]
    database.users.insert_many(odd)
    database.command("collMod", "users", validator={"plan": {"$not": {"$type": "int"}}})
    client = await start()
    users = [f"{n:024x}" for n in range(15)]
    await asyncio.gather(*(create(client, user_id, "registration") for user_id in users))

    async def all_sent() -> None:
        assert len(mail.ids) == 15

    await eventually_async(all_sent, 10)
    reason = "MongoDB does not let its outbox be changed: a validator of the collection"

    async def all_logged() -> None:
        lines = [record.message for record in caplog.records if record.levelname in {"WARNING", "ERROR"}]
        assert sorted(lines) == sorted(f"document {document['_id']!r}: {reason}" for document in odd)

    await eventually_async(all_logged, 10)
    database.users.delete_many({"plan": 1})


@pytest.mark.parametrize(
    "change",
    [
        {"tries": float("nan")},
        {"tries": float("inf")},
        {"tries": -5},
        {"tries": -(2**63)},
        {"copies": -5},
        {"copies": "x"},
        {"data": 5},
        {"data": {"$set": 1}},
        {"error": 5, "dead": "x", "request_id": 1, "target_id": {}},
        {"99": 1},
    ],
    ids=str,
)
@pytest.mark.usefixtures("client")
async def test_an_email_with_odd_values_is_settled(database: DB, mail: MailServer, change: dict[str, Any]) -> None:
    database.users.insert_one({"_id": ObjectId(USER), "email": "user@example.com", **owing(EMAIL | change)})
    await settled(database)
    assert len(mail.ids) == 1


async def test_an_email_with_absurd_tries_ends_at_its_next_failure(
    start: Start, database: DB, mail: MailServer
) -> None:
    async def refuse(stage: str, _: str) -> str | None:
        return "451 4.3.0 later" if stage == "RCPT" else None

    mail.script = refuse
    database.users.insert_one({"_id": ObjectId(USER), "email": "user@example.com", **owing(EMAIL | {"tries": 2**62})})
    await start()
    await settled(database, 5)
    assert database.dead_mail.count_documents({}) == 1


@pytest.mark.parametrize(
    "email",
    [5, {"@": 1}, ["@"], {"$set": 1}, "x" * 100_000, {"$ref": "a", "$id": 1, "b": 2}],
    ids=lambda v: f"{v}"[:20],
)
@pytest.mark.usefixtures("client")
async def test_an_invalid_address_makes_a_dead_letter(
    database: DB, email: object, caplog: pytest.LogCaptureFixture
) -> None:
    address = RawBSONDocument(encode({"x": email}))["x"]
    odd = owing(EMAIL | {"data": {"$set": {"a.b": 1}}})
    database.users.insert_one({"_id": ObjectId(USER), "email": address, **odd})
    await settled(database)
    letter = database.dead_mail.find_one({})
    assert letter
    assert letter["error"]
    assert "unexpected" not in caplog.text
