"""Documents that are not ours: each harms nobody but its own user, and nothing in it is ever changed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from bson import CodecOptions, ObjectId, encode
from bson.codec_options import DatetimeConversion
from bson.raw_bson import RawBSONDocument
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings

import delivery
from settings import Settings
from tests.client import DB, USER, Client, create, list_, metric, problem, read, settled, user
from tests.fixtures import Start
from tests.odd_documents import DOCUMENTS, EMAIL, KEY, NOTIFICATION, PAST, may_be_sent
from tests.servers import MailServer
from tests.streams import stream_url
from tests.waiting import eventually_async

LATER = datetime(2100, 1, 1, tzinfo=UTC)
EXAMPLES = 100
RAW: CodecOptions[RawBSONDocument] = CodecOptions(
    document_class=RawBSONDocument,
    unicode_decode_error_handler="replace",
    datetime_conversion=DatetimeConversion.DATETIME_AUTO,
)
OWN = {"_id": 7, "to": "someone", "sent": False}
"""What a team may keep in an array."""
DAMAGED: list[dict[str, Any]] = [
    {"mail_due": PAST},
    {"mail_due": PAST, "outbox": None},
    {"mail_due": PAST, "outbox": "x"},
    {"mail_due": PAST, "outbox": {"0": EMAIL}},
    {"mail_due": PAST, "outbox": [OWN]},
    {"mail_due": PAST, "outbox": [[EMAIL]]},
    {"mail_due": PAST, "outbox": [{name: value for name, value in EMAIL.items() if name != "id"}]},
    {"mail_due": PAST, "outbox": [EMAIL | {"id": 5}]},
    {"mail_due": PAST, "outbox": [EMAIL | {"id": ["x"]}]},
    {"mail_due": PAST, "outbox": [EMAIL | {"at": "now"}]},
    {"mail_due": PAST, "outbox": [EMAIL | {"next_at": None}]},
    {"mail_due": PAST, "outbox": [EMAIL | {"tries": "many"}]},
    {"mail_due": PAST, "outbox": [EMAIL | {"token": 0}]},
    {"mail_due": "soon", "outbox": [EMAIL]},
    {"mail_due": [PAST], "outbox": [EMAIL]},
    {"mail_due": None, "outbox": []},
]
TEAMS: list[tuple[str, dict[str, Any]]] = [
    ("new_login", {"outbox": [OWN]}),
    ("new_login", {"outbox": [{"id": "a", "subject": "Hello"}]}),
    ("new_login", {"outbox": [EMAIL | {"19": 0}], "mail_due": LATER}),
    ("new_login", {"outbox": "x"}),
    ("new_login", {"outbox": []} | {"mail_due": True}),
    ("new_login", {"mail_due": PAST}),
    ("registration", {"recent": [{"k": "a-key", "page": n} for n in range(60)]}),
    ("registration", {"recent": [f"page {n}" for n in range(60)]}),
    ("registration", {"recent": {"k": "x"}}),
    ("new_message", {"notifications": [{"id": f"{n}", "text": "x"} for n in range(150)]}),
    ("new_message", {"notifications": [NOTIFICATION | {"id": 5}]}),
    ("registration", {"recent": [KEY | {"k": ["a-key"]}]}),
    ("new_message", {"notifications": [NOTIFICATION, 1]}),
    ("new_message", {"notifications": [NOTIFICATION, [NOTIFICATION]]}),
    ("new_message", {"notifications": {"a": True}}),
]


@pytest.fixture(autouse=True)
def without_odd_documents(database: DB) -> Iterator[None]:
    """Delete all documents at the end: most would fail the check of all outboxes."""
    yield
    database.users.delete_many({})


def raw(database: DB, user_id: str = USER) -> bytes | None:
    """Return the bytes of a user's document."""
    found = cast("Any", database.get_collection("users", RAW)).find_one(ObjectId(user_id))
    return bytes(found.raw) if found else None


@pytest.mark.parametrize(("key", "fields"), TEAMS, ids=lambda value: f"{value}"[:50])
async def test_a_field_of_another_program_is_409_and_never_changed(
    client: Client, database: DB, caplog: pytest.LogCaptureFixture, key: str, fields: dict[str, Any]
) -> None:
    database.users.insert_one({"_id": ObjectId(USER), "email": "user@example.com", **fields})
    before = raw(database)
    for headers in ({}, {"Idempotency-Key": "a-key"}):
        response = await client.post("/create", json={"user_id": USER, "key": key}, headers=headers)
        assert response.status == 409
        await problem(response)
    assert (await client.post(f"/read?user_id={USER}&all=true")).status in (
        {409} if "notifications" in fields else {200}
    )
    assert raw(database) == before
    assert f"document {USER}" in caplog.text
    assert any(f"`{field}`" in caplog.text for field in fields)


async def test_a_field_of_another_program_is_409_in_a_shared_call(client: Client, database: DB) -> None:
    users = [f"{n:024x}" for n in range(40)]
    for user_id, (_, fields) in zip(users, TEAMS, strict=False):
        database.users.insert_one({"_id": ObjectId(user_id), **fields})
    before = [raw(database, user_id) for user_id in users[: len(TEAMS)]]
    keys = [key for key, _ in TEAMS] + ["new_message"] * (40 - len(TEAMS))
    posts = [client.post("/create", json={"user_id": u, "key": k}) for u, k in zip(users, keys, strict=True)]
    statuses = [response.status for response in await asyncio.gather(*posts)]
    assert statuses == [409] * len(TEAMS) + [201] * (40 - len(TEAMS))
    marks = [client.post(f"/read?user_id={user_id}&all=true") for user_id in users]
    statuses = [response.status for response in await asyncio.gather(*marks)]
    assert statuses == [409 if "notifications" in fields else 200 for _, fields in TEAMS] + [200] * (40 - len(TEAMS))
    assert [raw(database, user_id) for user_id in users[: len(TEAMS)]] == before


async def test_what_a_request_does_not_touch_may_be_anything(client: Client, database: DB) -> None:
    database.users.insert_one({"_id": ObjectId(USER), "outbox": [OWN], "recent": "x", "mail_due": 5})
    await create(client)
    assert (await list_(client))["elements"] == 1
    found = user(database)
    assert (found["outbox"], found["recent"], found["mail_due"]) == ([OWN], "x", 5)


async def test_a_null_that_an_operator_left_in_an_array_does_no_harm(
    client: Client, database: DB, mail: MailServer
) -> None:
    element = EMAIL | {"id": "c" * 24}
    arrays = {"notifications": [None, NOTIFICATION], "outbox": [None, element], "recent": [None, KEY]}
    database.users.insert_one({"_id": ObjectId(USER), "email": "user@example.com", "mail_due": PAST, **arrays})
    response = await client.post(
        "/create", json={"user_id": USER, "key": "new_login"}, headers={"Idempotency-Key": "a"}
    )
    assert response.status == 201
    assert await read(client, "a" * 24) == 200
    await settled(database)
    assert len(mail.ids) == 2
    found = user(database)
    assert found["outbox"] == [None]
    assert [item and item["id"] for item in found["notifications"]][:-1] == [None, NOTIFICATION["id"]]


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
    assert await metric(client, "notifier_foreign_documents") == len(odd)
    lines = [line.message for line in caplog.records if line.message.startswith("document ObjectId(")]
    assert len(lines) == len(set(lines)) == len(odd)
    for document in odd:
        (line,) = [line for line in lines if f"{document['_id']}" in line]
        assert ("`mail_due`" in line) == (not isinstance(document["mail_due"], datetime))
    assert "@" not in "".join(lines)


async def test_a_document_that_mongodb_does_not_let_be_changed_holds_up_nobody(
    start: Start, database: DB, mail: MailServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A validator that came later than they did, for instance."""
    monkeypatch.setattr(delivery, "FOREIGN_INTERVAL", 0.2)
    odd = [
        {"_id": ObjectId(), "email": "user@example.com", "mail_due": PAST, "outbox": [EMAIL], "plan": 1}
        for _ in range(50)
    ]
    database.users.insert_many(odd)
    database.command("collMod", "users", validator={"plan": {"$not": {"$type": "int"}}})
    client = await start()
    users = [f"{n:024x}" for n in range(15)]
    await asyncio.gather(*(create(client, user_id, "registration") for user_id in users))

    async def all_sent() -> None:
        assert len(mail.ids) == 15

    await eventually_async(all_sent, 10)

    async def all_counted() -> None:
        assert await metric(client, "notifier_foreign_documents") == 50

    await eventually_async(all_counted, 10)
    assert f"document {odd[0]['_id']!r}: MongoDB does not let its `outbox` be changed: a validator" in caplog.text
    assert "unexpected" not in caplog.text


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
        {"19": 1},
    ],
    ids=str,
)
@pytest.mark.usefixtures("client")
async def test_an_email_with_odd_values_is_settled(database: DB, mail: MailServer, change: dict[str, Any]) -> None:
    document = {"email": "user@example.com", "mail_due": PAST, "outbox": [EMAIL | change]}
    database.users.insert_one({"_id": ObjectId(USER), **document})
    await settled(database)
    assert len(mail.ids) == 1


async def test_an_email_that_counts_more_tries_than_there_can_be_ends_at_its_next_failure(
    start: Start, database: DB, mail: MailServer
) -> None:
    async def refuse(stage: str, _: str) -> str | None:
        return "451 4.3.0 later" if stage == "RCPT" else None

    mail.script = refuse
    document = {"mail_due": PAST, "outbox": [EMAIL | {"tries": 2**62}], "email": "user@example.com"}
    database.users.insert_one({"_id": ObjectId(USER), **document})
    await start()
    await settled(database, 5)
    assert database.dead_mail.count_documents({}) == 1


@pytest.mark.parametrize(
    "email",
    [5, {"@": 1}, ["@"], {"$set": 1}, "x" * 100_000, {"$ref": "a", "$id": 1, "b": 2}],
    ids=lambda v: f"{v}"[:20],
)
@pytest.mark.usefixtures("client")
async def test_an_address_that_is_none_is_a_dead_letter(
    database: DB, email: object, caplog: pytest.LogCaptureFixture
) -> None:
    element = EMAIL | {"data": {"$set": {"a.b": 1}}}
    fields = {"mail_due": PAST, "outbox": [element]}
    database.users.insert_one({"_id": ObjectId(USER), "email": RawBSONDocument(encode({"x": email}))["x"], **fields})
    await settled(database)
    letter = database.dead_mail.find_one({})
    assert letter
    assert letter["error"]
    assert "unexpected" not in caplog.text


async def test_any_document_harms_nobody_but_its_user(
    start: Start, settings: Settings, database: DB, mail: MailServer
) -> None:
    client = await start(mail_retry_minutes=(60.0,))
    documents: list[dict[str, Any]] = []

    @hypothesis_settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(document=DOCUMENTS)
    def collect(document: dict[str, Any]) -> None:
        documents.append(document)

    collect()
    others = [f"{n + 2**80:024x}" for n in range(len(documents))]
    for n, document in enumerate(documents):
        try:
            await exercise(client, database, document, f"{n:024x}", others[n])
        except AssertionError as exc:
            exc.add_note(f"The document: {document}")
            raise

    def all_sent() -> None:
        owing = {"_id": {"$in": [ObjectId(other) for other in others]}, "mail_due": {"$exists": True}}
        assert database.users.count_documents(owing) == 0

    await eventually_async(all_sent, 20)
    assert [address for address, _ in mail.received].count(settings.email) >= len(others)
    await client.close()


async def exercise(client: Client, database: DB, document: dict[str, Any], odd: str, other: str) -> None:
    """Make every request for a user with this document, and one for another."""
    database.users.insert_one({"_id": ObjectId(odd), **document})
    untouched = not may_be_sent(document)
    for key, headers in (("new_login", {}), ("registration", {"Idempotency-Key": "a-key"}), ("new_message", {})):
        before = raw(database, odd)
        response = await client.post("/create", json={"user_id": odd, "key": key}, headers=headers)
        assert response.status in {201, 409, *({422} if headers else ()), *({503} if _is_full(document) else ())}
        untouched = untouched and response.status != 201
        if untouched:
            assert raw(database, odd) == before
    assert (await client.get(f"/list?user_id={odd}&limit=1000")).status == 200
    assert (await client.get(f"/list?user_id={odd}&is_new=true")).status == 200
    for query in ("all=true", "notification_id=x", "key=new_login", f"notification_id={'a' * 24}"):
        assert (await client.post(f"/read?user_id={odd}&{query}")).status in {200, 404, 409}
    async with client.get(stream_url(odd)) as response:
        assert response.status in {200, 409}
    await create(client, other, "new_login")
    assert (await list_(client, other))["elements"] == 1


def _is_full(document: dict[str, Any]) -> bool:
    """Return whether the outbox holds as many e-mails as it may, so that a 503 is right."""
    outbox = document.get("outbox")
    return isinstance(outbox, list) and len(outbox) >= 18
