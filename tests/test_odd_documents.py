"""Documents of other programs: each affects only its own user, and nothing in it is ever changed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any, cast

import pytest
from aiohttp import ClientResponse
from bson import ObjectId, encode
from bson.raw_bson import RawBSONDocument
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings

from handlers import STORE
from mongo.document import TYPES
from mongo.errors import Conflict
from notifier import SETTINGS
from settings import Settings
from tests.client import DB, OTHER, USER, Client, create, list_, metric, ours, owing, problem, read, settled, user
from tests.fixtures import Start
from tests.links import link_path
from tests.odd_documents import (
    DOCUMENTS,
    EMAIL,
    KEY,
    NO_OBJECTS,
    NOTIFICATION,
    OWN,
    PAST,
    RAW,
    is_ours,
    may_be_sent,
    raw,
)
from tests.servers import MailServer
from tests.streams import stream_url
from tests.waiting import eventually_async

EXAMPLES = 100
LINKED = {"public_url": "https://x.example", "unsubscribe_secrets": ("u" * 32,)}
FOREIGN_ARRAYS: list[tuple[Any, bool]] = [
    ({"a": True}, False),
    ("text", False),
    (None, False),
    ([OWN], False),
    ([1, "text"], False),
    ([{"id": f"{n}", "text": "x"} for n in range(150)], False),
    ([NOTIFICATION | {"id": 5}], False),
    ([NOTIFICATION, 1], True),
    ([NOTIFICATION, [NOTIFICATION]], False),
    ([None, NOTIFICATION, OWN], True),
]
"""Values of a field `notifications` that belongs to the team, and whether something in it can be marked."""
ODD_PARTS: list[tuple[dict[str, Any], str, set[str]]] = [
    ({"due": "soon"}, "notifier.due", {"e-mail", "both", "both, key", "many", "retry"}),
    ({"due": [PAST]}, "notifier.due", {"e-mail", "both", "both, key", "many", "retry"}),
    ({"due": None, "mine": [1]}, "notifier.due", {"e-mail", "both", "both, key", "many", "retry"}),
    ({"outbox": "text"}, "notifier.outbox", {"e-mail", "both", "both, key", "many", "retry"}),
    ({"outbox": {"99": 1}}, "notifier.outbox", {"e-mail", "both", "both, key", "many", "retry"}),
    ({"recent": "text"}, "notifier.recent", {"e-mail", "kept, key", "both, key", "many", "retry"}),
    ({"recent": {"k": "x"}}, "notifier.recent", {"e-mail", "kept, key", "both, key", "many", "retry"}),
    ({"preferences": "off"}, "notifier.preferences", {"preferences", "unsubscribe"}),
    ({"preferences": [OWN]}, "notifier.preferences", {"preferences", "unsubscribe"}),
]
"""Parts of an object named `notifier` that have another type, and which requests that is in the way of."""
LETTER = {"_id": "d" * 24, "user_id": USER, "key": "registration", "at": PAST, "tries": 1, "error": "x"}
WRITES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "kept": ("/create", {"json": {"user_id": USER, "key": "new_message"}}),
    "kept, key": (
        "/create",
        {"json": {"user_id": USER, "key": "new_message"}, "headers": {"Idempotency-Key": "kept"}},
    ),
    "e-mail": ("/create", {"json": {"user_id": USER, "key": "registration"}}),
    "both": ("/create", {"json": {"user_id": USER, "key": "new_login"}}),
    "both, key": ("/create", {"json": {"user_id": USER, "key": "new_login"}, "headers": {"Idempotency-Key": "both"}}),
    "many": (
        "/create",
        {"json": {"user_ids": [OTHER, USER], "key": "new_login"}, "headers": {"Idempotency-Key": "many"}},
    ),
    "read": ("/read", {"params": {"user_id": USER, "all": "true"}}),
    "unread": ("/unread", {"params": {"user_id": USER, "notification_id": "a" * 24}}),
    "delete": ("/delete", {"params": {"user_id": USER, "all": "true"}}),
    "delete one": ("/delete", {"params": {"user_id": USER, "notification_id": "7"}}),
    "preferences": ("/preferences", {"params": {"user_id": USER}, "json": {"*": {"email": False}}}),
    "suppress": ("/suppress", {"params": {"user_id": USER}}),
    "lift": ("/suppress", {"params": {"user_id": USER}, "json": {"suppressed": False}}),
    "unsubscribe": ("", {}),
    "erase": ("/erase", {"params": {"user_id": USER}}),
    "retry": ("", {}),
}
"""Everything that may write to a user's document: the path and the options of the request."""
NEEDS_AN_OBJECT = WRITES.keys() - {"kept", "read", "unread"}
NEEDS_OUR_ARRAY = {"kept", "kept, key", "both", "both, key", "many", "read", "unread", "delete", "delete one", "erase"}


@pytest.fixture(autouse=True)
def without_odd_documents(database: DB) -> Iterator[None]:
    """Delete all documents at the end: most would fail the check of all outboxes."""
    yield
    database.users.delete_many({})


async def ask(client: Client, name: str) -> ClientResponse:
    path, options = WRITES[name]
    return await client.post(path or link_path(client.app[SETTINGS], "news"), **options)


async def is_refused(client: Client, database: DB, name: str) -> bool:
    """Make one of the `WRITES`; return whether it was refused, which must not change the document."""
    before = raw(database)
    if name == "retry":
        database.dead_mail.insert_one(LETTER)
        try:
            await client.app[STORE].dead_mail.owe_again(LETTER)
            refused = False
        except Conflict:
            refused = True
        assert database.dead_mail.delete_many({}).deleted_count == refused
    else:
        response = await ask(client, name)
        refused = response.status == 409
        assert refused or response.status in {200, 201, 404}
        if refused:
            errors = (await problem(response)).get("errors")
            assert errors is None or errors["user_ids"].keys() == {"1"}
    if refused:
        assert raw(database) == before
    return refused


async def refused(
    start: Start, database: DB, caplog: pytest.LogCaptureFixture, document: dict[str, Any], field: str
) -> set[str]:
    """Return which of `WRITES` are refused for this document, while other users are served."""
    client = await start(**LINKED)
    found = set()
    for name in WRITES:
        database.users.replace_one({"_id": ObjectId(USER)}, {"email": "a@b.example", **document}, upsert=True)
        if await is_refused(client, database, name):
            found.add(name)
        for path in ("/list", "/preferences"):
            assert (await client.get(path, params={"user_id": USER})).status == 200
    database.users.delete_one({"_id": ObjectId(USER)})
    await settled(database)
    assert (await list_(client, OTHER))["elements"] == 1  # that of the fan-out
    lines = [record.message for record in caplog.records if record.levelname in {"WARNING", "ERROR"}]
    assert lines == [f"requests fail: the field `{field}` of document {USER}, which is not the service's"]
    return found


@pytest.mark.parametrize("value", NO_OBJECTS, ids=lambda value: f"{value}"[:40])
async def test_a_notifier_that_is_no_object_is_409_where_it_is_needed(
    start: Start, database: DB, caplog: pytest.LogCaptureFixture, value: Any
) -> None:
    document = {"notifier": value}
    assert await refused(start, database, caplog, document, "notifier") == NEEDS_AN_OBJECT


@pytest.mark.parametrize(("value", "is_markable"), FOREIGN_ARRAYS, ids=lambda value: f"{value}"[:40])
async def test_a_foreign_array_is_409_wherever_ours_is_needed(
    start: Start, database: DB, caplog: pytest.LogCaptureFixture, value: Any, is_markable: bool
) -> None:
    expected = NEEDS_OUR_ARRAY - ({"read", "unread"} if is_markable else set())
    assert await refused(start, database, caplog, {"notifications": value}, "notifications") == expected


@pytest.mark.parametrize(("parts", "field", "expected"), ODD_PARTS, ids=[f"{parts}"[:40] for parts, *_ in ODD_PARTS])
async def test_a_part_of_another_type_is_409_only_where_it_is_needed(
    start: Start, database: DB, caplog: pytest.LogCaptureFixture, parts: dict[str, Any], field: str, expected: set[str]
) -> None:
    assert await refused(start, database, caplog, {"notifier": parts}, field) == expected


async def test_an_object_named_notifier_keeps_its_unknown_fields(client: Client, database: DB) -> None:
    theirs = {"theme": "dark", "channels": [{"sms": True}]}
    database.users.insert_one({"_id": ObjectId(USER), "email": "a@b.example", "notifier": theirs})
    await create(client, key="new_login")
    await settled(database)
    for name in ("preferences", "suppress", "delete", "retry", "kept, key"):
        assert not await is_refused(client, database, name)
    await settled(database)
    assert theirs.items() <= ours(database).items()
    assert (await client.post("/erase", params={"user_id": USER})).status == 200
    assert user(database) == {"_id": ObjectId(USER), "email": "a@b.example", "notifier": theirs}


async def test_in_shared_calls_odd_documents_affect_no_other_write(client: Client, database: DB) -> None:
    odd = [{"notifier": value} for value in NO_OBJECTS]
    odd += [{"notifications": value} for value, _ in FOREIGN_ARRAYS]
    odd += [{"notifier": parts} for parts, _, expected in ODD_PARTS if "both, key" in expected]
    users = [f"{n:024x}" for n in range(len(odd) + 20)]
    database.users.insert_many([{"_id": ObjectId(u), **fields} for u, fields in zip(users, odd, strict=False)])
    before = [raw(database, user_id) for user_id in users[: len(odd)]]
    bodies = [{"user_id": user_id, "key": "new_login"} for user_id in users]
    posts = [client.post("/create", json=body, headers={"Idempotency-Key": "k"}) for body in bodies]
    expected = [409] * len(odd) + [201] * 20
    assert [response.status for response in await asyncio.gather(*posts)] == expected
    body = {"user_ids": users, "key": "new_login"}
    response = await client.post("/create", json=body, headers={"Idempotency-Key": "many"})
    assert (await problem(response))["errors"]["user_ids"].keys() == {f"{n}" for n in range(len(odd))}
    assert [raw(database, user_id) for user_id in users[: len(odd)]] == before
    assert [len(user(database, user_id)["notifications"]) for user_id in users[len(odd) :]] == [2] * 20
    database.users.delete_many({"_id": {"$in": [ObjectId(user_id) for user_id in users[: len(odd)]]}})
    await settled(database)


# --- arrays that are ours, and in which others write -------------------------------------------------


@pytest.mark.parametrize("element", [OWN, 5, "text", [OWN], [NOTIFICATION], {"id": 5, "is_new": False}], ids=str)
async def test_a_foreign_element_added_later_counts_for_the_limit(
    client: Client, start: Start, database: DB, element: Any
) -> None:
    """The document was judged when this process wrote to it first. Another process still judges it."""
    for n in range(100):
        await create(client, data={"n": n})
    database.users.update_one({}, {"$push": {"notifications": element}})
    before = user(database)["notifications"]
    for name in ("delete", "erase"):
        assert await is_refused(client, database, name)
    assert await is_refused(await start(), database, "kept")
    assert await read(client, before[50]["id"]) == 200
    is_in_the_way = element == [NOTIFICATION]  # MongoDB finds an id in it, and cannot mark it
    assert await is_refused(client, database, "read") == is_in_the_way
    assert [item["is_new"] for item in user(database)["notifications"][:-1]].count(True) == 99 * is_in_the_way
    after = [item | {"is_new": True} for item in user(database)["notifications"][:-1]]
    assert after + user(database)["notifications"][-1:] == before
    for name in ("kept", "both", "e-mail"):
        assert not await is_refused(client, database, name)
    assert user(database)["notifications"][-3] == element
    for _ in range(98):
        await create(client)
    assert element not in user(database)["notifications"]
    assert len(user(database)["notifications"]) == 100
    await settled(database)


async def test_a_null_that_an_operator_left_harms_nobody(client: Client, database: DB, mail: MailServer) -> None:
    emails = [EMAIL | {"id": f"{n:024x}"} for n in (1, 2)]
    parts = {**owing(*emails)["notifier"], "recent": [KEY, KEY], "deleted": ["x", "y"]}
    document = {"notifications": [NOTIFICATION, NOTIFICATION | {"id": "e" * 24}], "notifier": parts}
    nulls = ("notifications.0", "notifier.outbox.0", "notifier.recent.0", "notifier.deleted.0")
    with database.client.start_session() as session, session.start_transaction():  # or it is sent before
        database.users.insert_one({"_id": ObjectId(USER), "email": "a@b.example", **document}, session=session)
        database.users.update_one({"_id": ObjectId(USER)}, {"$unset": dict.fromkeys(nulls, 1)}, session=session)
    await create(client, OTHER, "registration")
    for name in ("both, key", "e-mail", "preferences", "lift"):
        assert not await is_refused(client, database, name)
    assert not await is_refused(client, database, "retry")
    assert await read(client, "e" * 24) == 200
    await settled(database)
    assert "1".rjust(24, "0") not in mail.ids
    assert len(set(mail.ids)) == len(mail.ids) == 5
    assert ours(database)["outbox"] == [None]
    assert [item and item["id"] for item in user(database)["notifications"]][:-1] == [None, "e" * 24]
    assert await metric(client, "notifier_emails_owed") == 0
    assert not await is_refused(client, database, "delete one")
    assert not await is_refused(client, database, "delete")
    assert (user(database)["notifications"], ours(database)["deleted"][:2]) == ([None], [None, "y"])
    assert not await is_refused(client, database, "erase")
    assert user(database) == {"_id": ObjectId(USER), "email": "a@b.example"}


# --- any document ------------------------------------------------------------------------------------


@pytest.mark.ci
async def test_any_document_harms_nobody_but_its_user(
    start: Start, settings: Settings, database: DB, mail: MailServer
) -> None:
    documents: list[dict[str, Any]] = []

    @hypothesis_settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(document=DOCUMENTS)
    def collect(document: dict[str, Any]) -> None:
        documents.append(document)

    collect()  # before there is a service, whose threads draw random numbers too
    client = await start(mail_retry_minutes=(60.0,))
    others = [f"{n + 2**80:024x}" for n in range(len(documents))]
    for n, document in enumerate(documents):
        try:
            await exercise(client, database, document, f"{n:024x}", others[n])
        except AssertionError as exc:
            exc.add_note(f"The document: {document}")
            raise

    def all_sent() -> None:
        owing = {"_id": {"$in": [ObjectId(other) for other in others]}, "notifier.due": {"$exists": True}}
        assert database.users.count_documents(owing) == 0

    await eventually_async(all_sent, 20)
    assert [address for address, _ in mail.received].count(settings.email) >= len(others)
    await client.close()


def requests_for(user_id: str) -> list[tuple[str, dict[str, Any], set[int]]]:
    """Return every request for a user that may write: path, options, and which statuses besides 409 may answer it."""

    def create_of(kind: str, key: str | None = None) -> tuple[str, dict[str, Any], set[int]]:
        body = {"user_id": user_id, "key": kind}
        return (
            "/create",
            {"json": body, "headers": {"Idempotency-Key": key} if key else {}},
            {201, *([422] if key else [])},
        )

    me = {"user_id": user_id}
    marks = [{"all": "true"}, {"notification_id": "x"}, {"key": "new_login"}, {"notification_id": "a" * 24}]
    return [
        create_of("new_login"),
        create_of("registration", "a-key"),
        create_of("new_message"),
        *(("/read", {"params": me | query}, {200, 404}) for query in marks),
        *(("/delete", {"params": me | query}, {200, 404}) for query in marks[1:]),
        ("/preferences", {"params": me, "json": {"*": {"email": False}, "new_login": {"email": True}}}, {200, 422}),
        ("/suppress", {"params": me, "json": {}}, {200}),
        ("/suppress", {"params": me, "json": {"suppressed": False}}, {200}),
        ("/erase", {"params": me}, {200}),
    ]


async def exercise(client: Client, database: DB, document: dict[str, Any], odd: str, other: str) -> None:
    """Make every request for a user with this document, and one for another."""
    database.users.insert_one({"_id": ObjectId(odd), **document})
    may_change = may_be_sent(document)
    for path, options, statuses in requests_for(odd):
        before, theirs = raw(database, odd), foreign(database, odd)
        response = await client.post(path, **options)
        assert response.status in {409, *statuses, *({503} if may_change else ())}, (path, await response.text())
        may_change = may_change or response.status == 201  # as what is owed by then is delivered
        if response.status not in {200, 201} and not may_change:
            assert raw(database, odd) == before, path
        assert foreign(database, odd) == theirs, path
    for query in ("limit=1000", "is_new=true"):
        assert (await client.get(f"/list?user_id={odd}&{query}")).status == 200
    assert (await client.get(f"/preferences?user_id={odd}")).status == 200
    async with client.get(stream_url(odd)) as response:
        assert response.status == 200
    await create(client, other, "new_login")
    assert (await list_(client, other))["elements"] == 1


def foreign(database: DB, user_id: str) -> bytes:
    """Return the part of a document that no request may change: all but the service's own."""
    found = cast("Any", database.get_collection("users", RAW)).find_one(ObjectId(user_id))
    document = dict(found.items())
    notifications, notifier = document.get("notifications"), document.get("notifier")
    if isinstance(notifications, list):
        document["notifications"] = [item for item in notifications if not is_ours(item)]
        if not document["notifications"]:
            del document["notifications"]
    if isinstance(notifier, RawBSONDocument):
        document["notifier"] = {name: value for name, value in notifier.items() if f"notifier.{name}" not in TYPES}
        if not document["notifier"]:
            del document["notifier"]
    return encode(document, codec_options=RAW)
