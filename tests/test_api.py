"""The three requests of the specification in detail: create, list and read, on a real MongoDB and a real SMTP server.

Everything holds for users whose `_id` is an ObjectId, as specified, and for those whose `_id` is a string.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
from aiohttp.test_utils import TestClient, TestServer
from bson import ObjectId
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from pymongo import MongoClient

from handlers import STORE
from notifier import create_app
from settings import IdType, Settings
from tests.bad_input import BAD_BODIES, BAD_OBJECT_IDS, BAD_STRING_IDS, with_
from tests.client import DB, OTHER, TARGET, USER, Client, create, list_, problem, read, settled, user
from tests.fixtures import Start
from tests.servers import MailServer, Mongod


@pytest.fixture(params=IdType, ids=lambda id_type: id_type.value)
def id_type(request: pytest.FixtureRequest) -> IdType:
    """Return each type that the ids of users may have."""
    return cast("IdType", request.param)


def _stored(id_type: IdType, user_id: str) -> ObjectId | str:
    return ObjectId(user_id) if id_type is IdType.OBJECTID else user_id


@pytest.fixture
def again(id_type: IdType) -> Callable[[str], str]:
    """Return a function that writes an id in another way, if there is one: strings have only one."""
    return str.upper if id_type is IdType.OBJECTID else str


# --- create --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "stored", "mailed"),
    [
        ("registration", False, True),
        ("new_message", True, False),
        ("new_post", True, False),
        ("new_login", True, True),
    ],
)
async def test_each_key_stores_and_mails_what_the_specification_says(
    client: Client, database: DB, mail: MailServer, key: str, stored: bool, mailed: bool
) -> None:
    await create(client, key=key)
    await settled(database)
    assert len(user(database).get("notifications", [])) == stored
    assert len(mail.received) == mailed


async def test_the_document_holds_exactly_the_specified_fields(
    client: Client, database: DB, again: Callable[[str], str]
) -> None:
    before = int(time.time())
    await create(client, key="new_message", target_id=again(TARGET), data={"some_field": "some_value"})
    (notification,) = user(database)["notifications"]
    assert re.fullmatch("[0-9a-f]{24}", notification["id"])
    assert before <= notification["timestamp"] <= time.time()
    assert notification == {
        "id": notification["id"],
        "timestamp": notification["timestamp"],
        "is_new": True,
        "user_id": USER,
        "key": "new_message",
        "target_id": TARGET,
        "data": {"some_field": "some_value"},
    }
    assert list(notification) == ["id", "timestamp", "is_new", "user_id", "key", "target_id", "data"]


async def test_null_means_absent(client: Client, database: DB) -> None:
    await create(client, target_id=None, data=None)
    assert user(database)["notifications"][0].keys() == {"id", "timestamp", "is_new", "user_id", "key"}


async def test_a_missing_user_is_created_with_the_configured_address(
    client: Client, database: DB, id_type: IdType
) -> None:
    await create(client)
    assert user(database)["email"] == "new-user@example.com"
    assert user(database)["_id"] == _stored(id_type, USER)


async def test_an_existing_user_keeps_every_other_field(client: Client, database: DB, id_type: IdType) -> None:
    profile = {"_id": _stored(id_type, USER), "email": "ann@example.com", "name": "Ann", "tags": [1, {"a": None}]}
    database.users.insert_one(profile)
    await create(client)
    found = user(database)
    del found["notifications"]
    assert found == profile


async def test_concurrent_creates_make_one_user_and_lose_nothing(client: Client, database: DB) -> None:
    await asyncio.gather(*(create(client, data={"n": n}) for n in range(50)))
    assert database.users.count_documents({}) == 1
    assert sorted(item["data"]["n"] for item in user(database)["notifications"]) == list(range(50))


async def test_data_comes_back_as_it_was_sent(client: Client) -> None:
    data = {
        "": "",
        "dotted.name": [True, None, -0.5, 2**63 - 1, -(2**63), 1e300],
        "ünïcödé 🎉": {"nested": [[], {}, "\0\n\u2028"]},
        "_id": "mine",
        "a$": "$b",
    }
    await create(client, data=data)
    assert (await list_(client))["list"][0]["data"] == data


# --- list and read -------------------------------------------------------------------------------


async def test_list_pages_newest_first_with_exact_counts(client: Client) -> None:
    for n in range(12):
        await create(client, data={"n": n})
    page = await list_(client)
    assert page["request"] == {"user_id": USER, "skip": 0, "limit": 10}
    assert [item["data"]["n"] for item in page["list"]] == list(range(11, 1, -1))
    for item in page["list"][:3]:
        assert await read(client, item["id"]) == 200
    page = await list_(client, skip=10, limit=5)
    assert (page["elements"], page["new"]) == (12, 9)
    assert page["request"] == {"user_id": USER, "skip": 10, "limit": 5}
    assert [item["data"]["n"] for item in page["list"]] == [1, 0]
    assert (await list_(client, limit=0))["list"] == []
    assert (await list_(client, skip=2**63 - 1))["list"] == []


async def test_the_list_of_a_user_without_a_document_is_empty(
    client: Client, database: DB, id_type: IdType, again: Callable[[str], str]
) -> None:
    page = await list_(client, again(OTHER), nonsense="ignored")
    assert page == {"elements": 0, "new": 0, "request": {"user_id": OTHER, "skip": 0, "limit": 10}, "list": []}
    database.users.insert_one({"_id": _stored(id_type, OTHER), "name": "no notifications yet"})
    assert (await list_(client, OTHER))["elements"] == 0


async def test_read_marks_one_notification_and_may_be_repeated(client: Client, again: Callable[[str], str]) -> None:
    for _ in range(3):
        await create(client)
    ids = [item["id"] for item in (await list_(client))["list"]]
    for _ in range(2):
        assert await read(client, ids[1], again(USER)) == 200
        assert [item["is_new"] for item in (await list_(client))["list"]] == [True, False, True]


async def test_read_of_an_unknown_notification_is_404(client: Client) -> None:
    await create(client)
    await create(client, OTHER)
    id_ = (await list_(client))["list"][0]["id"]
    for user_id, notification_id in ((USER, "unknown"), (OTHER, id_), ("0" * 24, id_)):
        assert await read(client, notification_id, user_id) == 404
    assert (await list_(client))["new"] == 1


# --- create, list and read together do what these few lines do -----------------------------------


LIMITS = [*range(1, 11), 20]
"""From 9 on, the array holds more than the limit at times."""
USERS = [f"{n:024x}" for n in range(4)]


class Model:
    """The notifications of every user, newest first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.users: dict[str, list[dict[str, Any]]] = {user_id: [] for user_id in USERS}

    def create(self, user_id: str, n: int) -> None:
        self.users[user_id] = [{"n": n, "is_new": True}, *self.users[user_id]][: self.limit]

    def read(self, user_id: str, index: int) -> bool:
        for item in self.users[user_id][index : index + 1]:
            item["is_new"] = False
        return index < len(self.users[user_id])

    def list(self, user_id: str, skip: int, limit: int) -> tuple[int, int, list[dict[str, Any]]]:
        items = self.users[user_id]
        return len(items), sum(item["is_new"] for item in items), items[skip : skip + limit]


class Comparison(RuleBasedStateMachine):
    """Does the same to the service and to the model. Several users' requests run at once, so that they share calls."""

    settings: Settings

    @initialize(limit=st.sampled_from(LIMITS))
    def start(self, limit: int) -> None:
        self.loop = asyncio.new_event_loop()
        self.model = Model(limit)
        self.mongodb: MongoClient[dict[str, Any]] = MongoClient(uri := f"{self.settings.db_uri}_{ObjectId()}")
        self.client: Client = self.loop.run_until_complete(self.start_client(db_uri=uri, notifications_limit=limit))

    async def start_client(self, **changes: Any) -> Client:
        client = TestClient(TestServer(create_app(replace(self.settings, **changes))))
        await client.start_server()
        return client

    def teardown(self) -> None:
        self.loop.run_until_complete(self.client.close())
        self.loop.close()
        self.mongodb.close()

    @invariant()
    def arrays_are_bounded(self) -> None:
        limit = self.model.limit
        for found in self.mongodb.get_default_database().users.find():
            assert len(found["notifications"]) <= (limit if limit < 8 else limit + limit // 2)

    @rule(
        plans=st.dictionaries(
            st.sampled_from(USERS),
            st.lists(
                st.one_of(
                    st.tuples(
                        st.just("create"), st.integers(0, 2**63 - 1), st.sampled_from(["new_message", "new_post"])
                    ),
                    st.tuples(st.just("read"), st.integers(0, 8)),
                    st.tuples(st.just("list"), st.integers(0, 30), st.integers(0, 30)),
                ),
                min_size=1,
                max_size=12,
            ),
            min_size=1,
        )
    )
    def at_once(self, plans: dict[str, list[tuple[Any, ...]]]) -> None:
        async def one_after_another(user_id: str, plan: list[tuple[Any, ...]]) -> None:
            for operation, *arguments in plan:
                await getattr(self, operation)(user_id, *arguments)

        async def all_users() -> None:
            await asyncio.gather(*(one_after_another(user_id, plan) for user_id, plan in plans.items()))

        self.loop.run_until_complete(all_users())

    async def create(self, user_id: str, n: int, key: str) -> None:
        await create(self.client, user_id, key, data={"n": n})
        self.model.create(user_id, n)

    async def read(self, user_id: str, index: int) -> None:
        page = await list_(self.client, user_id)
        id_ = page["list"][index]["id"] if index < len(page["list"]) else "unknown"
        assert await read(self.client, id_, user_id) == (200 if self.model.read(user_id, index) else 404)

    async def list(self, user_id: str, skip: int, limit: int) -> None:
        page = await list_(self.client, user_id, skip=skip, limit=limit)
        items = [{"n": item["data"]["n"], "is_new": item["is_new"]} for item in page["list"]]
        assert (page["elements"], page["new"], items) == self.model.list(user_id, skip, limit)


@pytest.mark.ci
def test_the_service_agrees_with_a_model(settings: Settings, mongod: Mongod) -> None:
    Comparison.settings = settings
    run_state_machine_as_test(
        Comparison,
        settings=hypothesis_settings(max_examples=15, stateful_step_count=8, deadline=None, database=None),
    )
    with mongod.client() as client:
        for name in client.list_database_names():
            if name.startswith(f"{settings.db_uri.rsplit('/', 1)[1]}_"):
                client.drop_database(name)


# --- bad input -----------------------------------------------------------------------------------


BAD = {IdType.OBJECTID: BAD_BODIES + BAD_OBJECT_IDS, IdType.STRING: BAD_BODIES + BAD_STRING_IDS}


@pytest.mark.parametrize(
    ("id_type", "body", "status", "errors"),
    [pytest.param(type_, *case.values, id=f"{type_.value}-{case.id}") for type_ in IdType for case in BAD[type_]],
)
async def test_every_fault_of_a_bad_body_is_named(
    share: Start, direct: MongoClient[Any], id_type: IdType, body: bytes, status: int, errors: set[str] | None
) -> None:
    client = await share(id_type=id_type)
    response = await client.post("/create", data=body)
    found = await problem(response)
    assert response.status == status
    assert (found.get("errors", {}).keys() or None) == errors
    assert direct[client.app[STORE].database.name].users.count_documents({}) == 0


async def test_every_fault_of_data_is_named(client: Client) -> None:
    response = await client.post("/create", data=with_(data={"$a": 2**63, "b\0": ["\ud800", "é"]}))
    assert len((await problem(response))["errors"]["data"]) == 3


async def test_data_may_be_as_deep_and_as_large_as_its_limits(client: Client) -> None:
    deep: dict[str, Any] = {}
    for _ in range(31):
        deep = {"a": deep}
    await create(client, data=deep)
    await create(client, data={"a": "x" * (16 * 1024 - len('{"a":""}'))})
    for too_much in ({"a": deep}, {"a": "x" * (16 * 1024 - len('{"a":""}') + 1)}):
        response = await client.post("/create", json={"user_id": USER, "key": "new_post", "data": too_much})
        assert response.status == 422
        assert (await problem(response))["errors"].keys() == {"data"}


async def test_the_body_is_json_whatever_media_type_it_claims(client: Client) -> None:
    body = json.dumps({"user_id": USER, "key": "new_message"})
    for content_type in ("application/x-www-form-urlencoded", "text/plain; charset=nonsense", "image/png"):
        response = await client.post("/create", data=body, headers={"Content-Type": content_type})
        assert response.status == 201


async def test_a_body_that_does_not_arrive_in_time_is_408(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.bodies.BODY_TIMEOUT", 0.2)
    reader, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(b"POST /create HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    assert (await reader.readline()).split()[1] == b"408"
    writer.close()
    await writer.wait_closed()


async def test_a_compressed_body_is_415(client: Client, database: DB) -> None:
    response = await client.post("/create", data=with_(), headers={"Content-Encoding": "gzip"})
    assert (response.status, response.headers["Accept-Encoding"]) == (415, "identity")
    await problem(response)
    assert database.users.count_documents({}) == 0


@pytest.mark.parametrize(
    ("method", "path", "errors"),
    [
        ("GET", "/list", {"user_id"}),
        ("GET", f"/list?user_id={USER}&user_id={OTHER}", {"user_id"}),
        ("GET", f"/list?user_id={USER}&skip=-1&limit=1001", {"skip", "limit"}),
        ("GET", f"/list?user_id={USER}&skip=9223372036854775808", {"skip"}),
        ("GET", f"/list?user_id={USER}&skip={'9' * 5000}", {"skip"}),
        ("GET", f"/list?user_id={USER}&skip=1.5&limit=", {"skip", "limit"}),
        ("GET", f"/list?user_id={USER}&limit=-0x1", {"limit"}),
        ("POST", "/read", {"user_id", "notification_id"}),
        ("GET", f"/list?user_id={USER}&is_new=1", {"is_new"}),
        ("POST", f"/read?user_id={USER}&notification_id=", {"notification_id"}),
        ("POST", f"/read?user_id={USER}&notification_id={'x' * 129}", {"notification_id"}),
        ("POST", "/read?user_id[$gt]=&notification_id[$ne]=", {"user_id", "notification_id"}),
    ],
)
async def test_every_fault_of_a_bad_query_is_named(
    share: Start, id_type: IdType, method: str, path: str, errors: set[str]
) -> None:
    client = await share(id_type=id_type)
    response = await client.request(method, path)
    found = await problem(response)
    assert (response.status, found["errors"].keys()) == (422, errors)
    assert found["title"] == "Unprocessable Content"


@pytest.mark.parametrize("id_", [b"%ff%fe", b"%ED%A0%80", b"\xff\xfe", b"%00", b"\xc3\xa9"])
async def test_strange_bytes_in_a_query_are_a_client_error(share: Start, id_type: IdType, id_: bytes) -> None:
    client = await share(id_type=id_type)
    reader, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(b"POST /read?user_id=%s&notification_id=%s HTTP/1.1\r\nHost: x\r\n\r\n" % (USER.encode(), id_))
    assert (await reader.readline()).split()[1] in {b"400", b"404", b"422"}
    writer.close()
    await writer.wait_closed()


async def test_unknown_routes_and_methods_are_problems_too(client: Client) -> None:
    response = await client.get("/nothing/here")
    assert (response.status, (await problem(response))["title"]) == (404, "Not Found")
    response = await client.get("/create")
    assert (response.status, response.headers["Allow"]) == (405, "POST")
    await problem(response)
