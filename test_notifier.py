"""What the service does, on a real MongoDB and against a real SMTP server."""

from __future__ import annotations

import asyncio
import json
import math
import re
import signal
import ssl
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from bson import ObjectId
from bson.datetime_ms import DatetimeMS
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from mongo.outbox import NO_TOKEN
from notifier import create_app
from ops.local import LocalRunError, find_mongod
from settings import Security, Settings, SettingsError
from store import open_store
from tests.bad_input import BAD_BODIES, with_
from tests.client import DB, OTHER, ROOT, TARGET, USER, Client, create, list_, one, problem, read, settled, user
from tests.fixtures import Start
from tests.processes import COMPLETE, VARIABLES, LocalRun, mongods_of, run
from tests.servers import MailServer, Mongod, free_port, smtp_server
from tests.waiting import eventually

# --- create ---------------------------------------------------------------------------------------


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


async def test_the_document_holds_exactly_the_specified_fields(client: Client, database: DB) -> None:
    before = int(time.time())
    await create(client, key="new_message", target_id=TARGET.upper(), data={"some_field": "some_value"})
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


async def test_a_missing_user_is_created_with_the_configured_address(client: Client, database: DB) -> None:
    await create(client)
    assert user(database)["email"] == "new-user@example.com"


async def test_an_existing_user_keeps_every_other_field(client: Client, database: DB) -> None:
    profile = {"_id": ObjectId(USER), "email": "ann@example.com", "name": "Ann", "tags": [1, {"a": None}]}
    database.users.insert_one(profile)
    await create(client)
    found = user(database)
    del found["notifications"]
    assert found == profile


async def test_concurrent_creates_for_a_new_user_make_one_document_and_lose_nothing(
    client: Client, database: DB
) -> None:
    await asyncio.gather(*(create(client, data={"n": n}) for n in range(50)))
    assert database.users.count_documents({}) == 1
    assert sorted(item["data"]["n"] for item in user(database)["notifications"]) == list(range(50))


async def test_beyond_the_limit_the_oldest_leave(start: Start) -> None:
    client = await start(notifications_limit=5)
    for n in range(8):
        await create(client, data={"n": n})
    page = await list_(client)
    assert (page["elements"], page["new"]) == (5, 5)
    assert [item["data"]["n"] for item in page["list"]] == [7, 6, 5, 4, 3]


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


async def test_data_may_be_as_deep_and_as_large_as_allowed_and_no_more(client: Client) -> None:
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
    for content_type in ("application/x-www-form-urlencoded", "text/plain; charset=UTF-8", "image/png"):
        response = await client.post("/create", data=body, headers={"Content-Type": content_type})
        assert response.status == 201


async def test_a_document_without_room_is_413_and_unchanged(client: Client, database: DB) -> None:
    database.users.insert_one({"_id": ObjectId(USER), "blob": b"x" * (16 * 1024 * 1024 - 1000)})
    response = await client.post("/create", json={"user_id": USER, "key": "new_post", "data": {"a": "x" * 2000}})
    assert response.status == 413
    await problem(response)
    assert "notifications" not in user(database)


async def test_what_the_collection_does_not_admit_is_409(
    client: Client, database: DB, caplog: pytest.LogCaptureFixture
) -> None:
    database.users.create_index("email", unique=True)
    await create(client, USER)
    response = await client.post("/create", json={"user_id": OTHER, "key": "new_message"})
    assert response.status == 409
    await problem(response)
    assert "@" not in caplog.text
    refused = [record for record in caplog.records if "refuses" in record.message]
    assert [getattr(record, "request_id", "") for record in refused] == [response.headers["X-Request-ID"]]
    database.users.insert_one({"_id": ObjectId("0" * 24), "email": "x", "notifications": "not ours"})
    response = await client.post("/create", json={"user_id": "0" * 24, "key": "new_message"})
    assert response.status == 409
    assert (await list_(client, "0" * 24))["list"] == []


# --- list and read --------------------------------------------------------------------------------


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


async def test_a_user_without_a_document_lists_as_empty(client: Client, database: DB) -> None:
    page = await list_(client, OTHER.upper(), nonsense="ignored")
    assert page == {"elements": 0, "new": 0, "request": {"user_id": OTHER, "skip": 0, "limit": 10}, "list": []}
    database.users.insert_one({"_id": ObjectId(OTHER), "name": "no notifications yet"})
    assert (await list_(client, OTHER))["elements"] == 0


async def test_what_other_programs_keep_in_the_array_does_not_break_the_list(client: Client, database: DB) -> None:
    foreign = {"id": "old", "is_new": True, "target_id": ObjectId(TARGET), "x": math.nan, "y": DatetimeMS(2**62)}
    database.users.insert_one({"_id": ObjectId(USER), "notifications": [foreign]})
    await create(client, OTHER)
    pages = await asyncio.gather(*(list_(client, user_id) for user_id in [OTHER, USER, OTHER, USER, OTHER]))
    assert [page["elements"] for page in pages] == [1] * 5
    ((found,),) = [pages[1]["list"]]
    assert found == {"id": "old", "is_new": True, "target_id": TARGET, "x": None, "y": found["y"]}
    assert await read(client, "old") == 200


async def test_read_marks_one_notification_and_twice_is_once(client: Client) -> None:
    for _ in range(3):
        await create(client)
    ids = [item["id"] for item in (await list_(client))["list"]]
    for _ in range(2):
        assert await read(client, ids[1], USER.upper()) == 200
        assert [item["is_new"] for item in (await list_(client))["list"]] == [True, False, True]


async def test_read_of_what_the_user_has_not_is_404(client: Client) -> None:
    await create(client)
    await create(client, OTHER)
    id_ = (await list_(client))["list"][0]["id"]
    for user_id, notification_id in ((USER, "unknown"), (OTHER, id_), ("0" * 24, id_)):
        assert await read(client, notification_id, user_id) == 404
    assert (await list_(client))["new"] == 1


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("body", "status", "errors"), BAD_BODIES)
async def test_a_bad_body_names_every_fault_and_stores_nothing(
    client: Client, database: DB, body: bytes, status: int, errors: set[str] | None
) -> None:
    response = await client.post("/create", data=body)
    found = await problem(response)
    assert response.status == status
    assert (found.get("errors", {}).keys() or None) == errors
    assert database.users.count_documents({}) == 0


async def test_every_fault_of_data_is_named(client: Client) -> None:
    response = await client.post("/create", data=with_(data={"$a": 2**63, "b\0": "\ud800"}))
    assert len((await problem(response))["errors"]["data"]) == 4


@pytest.mark.parametrize("content_type", ["application/json; charset=nonsense", "text/plain; charset=utf-16"])
async def test_a_charset_that_is_not_that_of_json_is_400(client: Client, database: DB, content_type: str) -> None:
    response = await client.post("/create", data=with_(), headers={"Content-Type": content_type})
    assert "charset" in (await problem(response))["detail"]
    assert response.status == 400
    assert database.users.count_documents({}) == 0


async def test_a_body_that_does_not_come_is_408(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.body.BODY_TIMEOUT", 0.2)
    reader, writer = await asyncio.open_connection(client.host, client.port)
    writer.write(b"POST /create HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    assert (await reader.readline()).split()[1] == b"408"
    writer.close()
    await writer.wait_closed()


async def test_a_body_that_is_not_compressed_as_declared_is_400(client: Client) -> None:
    response = await client.post("/create", data=with_(), headers={"Content-Encoding": "gzip"})
    assert response.status == 400
    await problem(response)


@pytest.mark.parametrize(
    ("method", "path", "errors"),
    [
        ("GET", "/list", {"user_id"}),
        ("GET", f"/list?user_id={USER}&user_id={OTHER}", {"user_id"}),
        ("GET", f"/list?user_id={USER}&skip=-1&limit=1001", {"skip", "limit"}),
        ("GET", f"/list?user_id={USER}&skip=9223372036854775808", {"skip"}),
        ("GET", f"/list?user_id={USER}&skip={'9' * 5000}", {"skip"}),
        ("GET", f"/list?user_id={USER}&skip=1.5&limit=", {"skip", "limit"}),
        ("GET", f"/list?user_id={USER}&skip=1_0&limit=%201", {"skip", "limit"}),
        ("GET", f"/list?user_id={USER}&limit=-0x1", {"limit"}),
        ("POST", "/read", {"user_id", "notification_id"}),
        ("GET", f"/list?user_id={USER}&is_new=1", {"is_new"}),
        ("POST", f"/read?user_id={USER}&notification_id=", {"notification_id"}),
        ("POST", f"/read?user_id={USER}&notification_id={'x' * 129}", {"notification_id"}),
        ("POST", "/read?user_id[$gt]=&notification_id[$ne]=", {"user_id", "notification_id"}),
    ],
)
async def test_a_bad_query_names_every_fault(client: Client, method: str, path: str, errors: set[str]) -> None:
    response = await client.request(method, path)
    found = await problem(response)
    assert (response.status, found["errors"].keys()) == (422, errors)
    assert found["title"] == "Unprocessable Content"


@pytest.mark.parametrize("id_", [b"%ff%fe", b"%ED%A0%80", b"\xff\xfe", b"%00", b"\xc3\xa9"])
async def test_a_query_in_bytes_that_are_no_unicode_is_no_fault_of_the_service(client: Client, id_: bytes) -> None:
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


# --- e-mail ---------------------------------------------------------------------------------------


async def test_the_message_carries_the_key_to_the_address_of_the_document(
    client: Client, database: DB, mail: MailServer
) -> None:
    database.users.insert_one({"_id": ObjectId(USER), "email": "ann@bücher.example"})
    await create(client, key="new_login")
    await settled(database)
    ((recipient, message),) = mail.received
    assert recipient == "ann@xn--bcher-kva.example"
    assert message["From"] == "Notifier <noreply@example.com>"
    assert message["Subject"] == "new_login"
    assert message.get_payload() == "new_login\r\n"
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["Message-ID"] == f"<{user(database)['notifications'][0]['id']}@example.com>"
    assert message["Date"]
    assert mail.logins == 1


@pytest.mark.parametrize(
    "address", [None, "", "nobody", "a@b.example, c@d.example", 7, ["a@b.example"], "a@b.c\r\nX: y"]
)
async def test_a_user_without_a_valid_address_gets_a_dead_letter_and_no_mail_goes_elsewhere(
    client: Client, database: DB, mail: MailServer, address: object
) -> None:
    database.users.insert_one({"_id": ObjectId(USER), **({} if address is None else {"email": address})})
    await create(client, key="registration")
    await settled(database)
    (letter,) = database.dead_mail.find()
    assert "address" in letter["error"]
    assert (letter["user_id"], letter["key"], letter["tries"]) == (USER, "registration", 1)
    assert mail.received == []


async def test_smtp_down_at_create_changes_nothing_and_the_mail_arrives_when_it_is_back(
    start: Start, database: DB, server_tls: ssl.SSLContext
) -> None:
    port = free_port()
    client = await start(smtp_port=port)
    await create(client, key="new_login")
    assert (await list_(client))["elements"] == 1
    await asyncio.sleep(0.2)
    async with smtp_server(server_tls, port=port) as mail:
        await settled(database)
        assert mail.ids == [user(database)["notifications"][0]["id"]]


async def test_a_refused_recipient_becomes_a_dead_letter_and_others_flow(
    client: Client, database: DB, mail: MailServer
) -> None:
    async def script(stage: str, recipient: str) -> str | None:
        return "550 5.1.1 no such user" if stage == "RCPT" and recipient == "gone@example.com" else None

    mail.script = script
    database.users.insert_one({"_id": ObjectId(USER), "email": "gone@example.com"})
    for user_id in (USER, OTHER):
        await create(client, user_id, key="new_login")
    await settled(database)
    (letter,) = database.dead_mail.find()
    assert letter["_id"] == user(database)["notifications"][0]["id"]
    assert letter["email"] == "gone@example.com"
    assert letter["error"] == "RCPT: 550 5.1.1 no such user"
    assert [recipient for recipient, _ in mail.received] == ["new-user@example.com"]


async def test_a_transient_refusal_is_tried_again_and_later_each_time(
    client: Client, database: DB, mail: MailServer
) -> None:
    times = []

    async def script(stage: str, _recipient: str) -> str | None:
        if stage != "RCPT":
            return None
        times.append(time.monotonic())
        return "451 4.7.1 come back" if len(times) < 3 else None

    mail.script = script
    await create(client, key="registration")
    await settled(database)
    assert len(mail.received) == 1
    assert times[1] - times[0] >= 0.8 * 0.005 * 60
    assert times[2] - times[1] >= 0.8 * 0.01 * 60


async def test_two_workers_send_each_of_200_mails_once(start: Start, database: DB, mail: MailServer) -> None:
    clients = [await start(), await start()]
    users = [f"{n:024x}" for n in range(100)]
    await asyncio.gather(*(create(clients[n % 2], users[n // 2], "registration") for n in range(200)))
    await settled(database)
    assert len(mail.received) == 200
    assert set(Counter(mail.ids).values()) == {1}


async def test_connections_are_kept_for_the_next_message(client: Client, database: DB, mail: MailServer) -> None:
    for n in range(5):
        await create(client, f"{n:024x}", "registration")
        await settled(database)
    assert (len(mail.received), mail.connections) == (5, 1)


async def test_a_stop_finishes_what_is_being_sent_and_gives_back_the_rest(
    start: Start, database: DB, mail: MailServer
) -> None:
    sending = asyncio.Event()

    async def script(stage: str, _recipient: str) -> str | None:
        if stage == "DATA":
            sending.set()
            await asyncio.sleep(0.3)
        return None

    mail.script = script
    client = await start(smtp_connections=1)
    for n in range(3):
        await create(client, f"{n:024x}", "registration")
    await sending.wait()
    await client.close()
    assert len(mail.received) == 1
    owed = [item for user in database.users.find() for item in user["outbox"]]
    assert [item["token"] for item in owed] == [NO_TOKEN, NO_TOKEN]
    await start()
    await settled(database)
    assert len(set(mail.ids)) == len(mail.ids) == 3


@pytest.mark.parametrize("security", [Security.AUTO, Security.STARTTLS])
async def test_starttls_is_used_before_the_login(
    start: Start, database: DB, server_tls: ssl.SSLContext, security: Security
) -> None:
    async with smtp_server(None, starttls=server_tls) as mail:
        client = await start(smtp_port=mail.port, smtp_security=security)
        await create(client, key="registration")
        await settled(database)
        assert (len(mail.received), mail.logins) == (1, 1)


async def test_indexes_may_be_created_by_several_replicas_at_once(settings: Settings, database: DB) -> None:
    async def open_and_close() -> None:
        async with open_store(settings):
            pass

    await asyncio.gather(*(open_and_close() for _ in range(8)))
    assert database.users.index_information()["mail_due_1"]["sparse"]


# --- a property: create, list and read are what ten lines of Python say ----------------------------


LIMIT = 4
USERS = [f"{n:024x}" for n in range(6)]


class Model:
    """The notifications of every user, newest first, as the specification has them."""

    def __init__(self) -> None:
        self.users: dict[str, list[dict[str, Any]]] = {user_id: [] for user_id in USERS}

    def create(self, user_id: str, n: int) -> None:
        self.users[user_id] = [{"n": n, "is_new": True}, *self.users[user_id]][:LIMIT]

    def read(self, user_id: str, index: int) -> bool:
        for item in self.users[user_id][index : index + 1]:
            item["is_new"] = False
        return index < len(self.users[user_id])

    def list(self, user_id: str, skip: int, limit: int) -> tuple[int, int, list[dict[str, Any]]]:
        items = self.users[user_id]
        return len(items), sum(item["is_new"] for item in items), items[skip : skip + limit]


class Comparison(RuleBasedStateMachine):
    """Does the same to the service and to the model; to the service for several users at once, so that calls share."""

    settings: Settings

    @initialize()
    def start(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.model = Model()
        self.client: Client = self.loop.run_until_complete(self.start_client())

    async def start_client(self) -> Client:
        uri = f"{self.settings.db_uri}_{ObjectId()}"
        client = TestClient(TestServer(create_app(replace(self.settings, db_uri=uri, notifications_limit=LIMIT))))
        await client.start_server()
        return client

    def teardown(self) -> None:
        self.loop.run_until_complete(self.client.close())
        self.loop.close()

    @rule(
        plans=st.dictionaries(
            st.sampled_from(USERS),
            st.lists(
                st.one_of(
                    st.tuples(
                        st.just("create"), st.integers(0, 2**63 - 1), st.sampled_from(["new_message", "new_post"])
                    ),
                    st.tuples(st.just("read"), st.integers(0, LIMIT)),
                    st.tuples(st.just("list"), st.integers(0, LIMIT + 1), st.integers(0, LIMIT + 1)),
                ),
                min_size=1,
                max_size=8,
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


def test_the_service_agrees_with_a_model(settings: Settings, mongod: Mongod) -> None:
    Comparison.settings = settings
    run_state_machine_as_test(
        Comparison,
        settings=hypothesis_settings(max_examples=20, stateful_step_count=25, deadline=None, database=None),
    )
    with mongod.client() as client:
        for name in client.list_database_names():
            if name.startswith(f"{settings.db_uri.rsplit('/', 1)[1]}_"):
                client.drop_database(name)


# --- configuration --------------------------------------------------------------------------------


def test_the_specifications_own_variables_are_enough(environment: Callable[..., Settings]) -> None:
    env_file = "".join(f"{name}={value}\n" for name, value in COMPLETE.items())
    env_file += "PORT=80\nSMTP_PORT=465\nSMTP_LOGIN=me@example.com\nSMTP_PASSWORD='p w#\"${HOME}'\n"
    settings = environment(env_file)
    assert not settings.local
    assert (settings.host, settings.port, settings.smtp_port) == ("0.0.0.0", 80, 465)
    assert (settings.smtp_from, settings.smtp_password) == ("me@example.com", 'p w#"${HOME}')
    assert settings.security is Security.TLS
    assert "p w#" not in repr(settings)


def test_the_environment_goes_before_the_file_and_empty_is_unset(environment: Callable[..., Settings]) -> None:
    settings = environment("PORT=1\nEMAIL=file@example.com", **COMPLETE, PORT="2", SMTP_LOGIN="", SMTP_PORT=" ")
    assert (settings.port, settings.email) == (2, "test@example.com")
    assert (settings.smtp_login, settings.smtp_port) == (None, 465)
    assert environment(PORT="", env_file="PORT=3").port == 3
    assert replace(settings, smtp_port=587).security is Security.AUTO
    assert settings.smtp_from == "test@example.com"


def test_nothing_configured_is_a_local_run_on_loopback(environment: Callable[..., Settings]) -> None:
    settings = environment()
    assert settings.local
    assert (settings.host, settings.port) == ("127.0.0.1", 8080)


@pytest.mark.parametrize(
    ("variables", "faults"),
    [
        ({"DB_URI": COMPLETE["DB_URI"]}, {"EMAIL", "SMTP_HOST"}),
        ({"SMTP_HOST": "x"}, {"EMAIL", "DB_URI"}),
        ({**COMPLETE, "DB_URI": "postgres://user:hunter2@x"}, {"DB_URI"}),
        ({**COMPLETE, "DB_URI": "mongodb://user:hunter2@/@x"}, {"DB_URI"}),
        ({**COMPLETE, "PORT": "http"}, {"PORT"}),
        ({**COMPLETE, "PORT": "65536"}, {"PORT"}),
        ({**COMPLETE, "DB_URI": "mongodb://x/?tls=true&tlsCAFile=/nothing"}, {"DB_URI"}),
        ({**COMPLETE, "EMAIL": "nobody"}, {"EMAIL"}),
        ({**COMPLETE, "SMTP_LOGIN": "x"}, {"SMTP_PASSWORD"}),
        ({**COMPLETE, "SMTP_PASSWORD": "hunter2"}, {"SMTP_LOGIN"}),
        ({**COMPLETE, "SMTP_FROM": "a@b.example, c@d.example"}, {"SMTP_FROM"}),
        ({**COMPLETE, "SMTP_FROM": "Eve\n<a@b.example>"}, {"SMTP_FROM"}),
        ({**COMPLETE, "SMTP_SECURITY": "ssl"}, {"SMTP_SECURITY"}),
        ({**COMPLETE, "SMTP_CA_FILE": "/nothing/here.pem"}, {"SMTP_CA_FILE"}),
        ({**COMPLETE, "SMTP_CA_FILE": __file__}, {"SMTP_CA_FILE"}),
        ({**COMPLETE, "NOTIFICATIONS_LIMIT": "0"}, {"NOTIFICATIONS_LIMIT"}),
        ({**COMPLETE, "MAIL_RETRY_MINUTES": "1,x"}, {"MAIL_RETRY_MINUTES"}),
        ({**COMPLETE, "MAIL_RETRY_MINUTES": "1,-1"}, {"MAIL_RETRY_MINUTES"}),
        ({**COMPLETE, "SMTP_DATA_TIMEOUT": "nan"}, {"SMTP_DATA_TIMEOUT"}),
        ({**COMPLETE, "LOG_LEVEL": "loud"}, {"LOG_LEVEL"}),
        ({**COMPLETE, "API_KEYS": "hunter2"}, {"API_KEYS"}),
        ({**COMPLETE, "API_KEYS": "x" * 32 + ","}, {"API_KEYS"}),
        ({**COMPLETE, "USER_TOKEN_SECRET": "x" * 32}, {"API_KEYS"}),
        ({**COMPLETE, "API_KEYS": "x" * 32, "USER_TOKEN_SECRET": "hunter2"}, {"USER_TOKEN_SECRET"}),
        ({**COMPLETE, "CORS_ORIGINS": "*"}, {"CORS_ORIGINS"}),
        ({**COMPLETE, "API_KEYS": "x" * 32 + ", " + " " * 40}, {"API_KEYS"}),
        (
            {"DB_URI": "x", "PORT": "x", "SMTP_LOGIN": "x", "SMTP_SECURITY": "x"},
            {"DB_URI", "PORT", "SMTP_PASSWORD", "SMTP_SECURITY", "EMAIL", "SMTP_HOST"},
        ),
    ],
)
def test_every_fault_of_the_configuration_is_named_at_once(
    environment: Callable[..., Settings], variables: dict[str, str], faults: set[str]
) -> None:
    with pytest.raises(SettingsError) as raised:
        environment(**variables)
    assert raised.value.faults.keys() == faults
    assert all(name in str(raised.value) for name in faults)
    assert "hunter2" not in str(raised.value)


def test_a_wrong_configuration_ends_the_start_with_exit_code_2(tmp_path: Path) -> None:
    done = run(cwd=tmp_path, PORT="0", DB_URI="x")
    assert done.returncode == 2
    assert all(name in done.stderr for name in ("PORT", "DB_URI", "EMAIL", "SMTP_HOST"))
    assert "Traceback" not in done.stderr


def test_a_database_out_of_reach_ends_the_start_with_one_sentence(tmp_path: Path) -> None:
    uri = f"mongodb://user:hunter2@127.0.0.1:{free_port()}/x"
    done = run(cwd=tmp_path, DB_URI=uri, EMAIL="a@b.example", SMTP_HOST="x")
    assert (done.returncode, done.stderr.splitlines()[-1][:7]) == (1, "MongoDB")
    assert "hunter2" not in done.stderr
    assert "Traceback" not in done.stderr


def test_an_index_that_is_in_the_way_ends_the_start_with_one_sentence(
    settings: Settings, database: DB, tmp_path: Path
) -> None:
    database.users.create_index("mail_due", name="mail_due_1", unique=True)
    done = run(cwd=tmp_path, DB_URI=settings.db_uri, EMAIL="a@b.example", SMTP_HOST="x")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "The service cannot start: MongoDB's error 86 IndexKeySpecsConflict."
    assert "Traceback" not in done.stderr


def test_help_explains_every_variable(tmp_path: Path) -> None:
    done = run("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert all(f"  {name} " in done.stdout for name in VARIABLES)


def test_the_documentation_names_every_variable() -> None:
    for file in ("README.md", ".env.example"):
        text = (ROOT / file).read_text()
        assert [name for name in VARIABLES if not re.search(rf"\b{name}\b", text)] == []


# --- the local run --------------------------------------------------------------------------------


def test_the_local_run_serves_mails_and_keeps_its_data_also_when_killed(tmp_path: Path) -> None:
    local = LocalRun(tmp_path)
    assert local.get("/create", with_()) == {"success": True}
    eventually(lambda: one(local.mails()))
    assert "Subject: new_login" in local.mails()[0]
    local.end(signal.SIGKILL)
    local = LocalRun(tmp_path)
    assert local.get("/list?user_id=" + USER)["data"]["elements"] == 1
    assert local.end(signal.SIGTERM) == 0
    assert not mongods_of(tmp_path)
    output = (tmp_path / "output").read_text()
    assert "LOCAL RUN" in output
    assert "curl" in output
    assert "@" not in re.sub(r"curl.*", "", output)


def test_a_killed_local_run_takes_its_mongod_along(tmp_path: Path) -> None:
    local = LocalRun(tmp_path)
    assert mongods_of(tmp_path)
    local.end(signal.SIGKILL)

    def gone() -> None:
        assert not mongods_of(tmp_path)

    eventually(gone)


def test_a_second_local_run_in_the_folder_says_so(tmp_path: Path) -> None:
    local = LocalRun(tmp_path)
    done = run(cwd=tmp_path, PORT=str(free_port()))
    assert (done.returncode, "another local run" in done.stderr) == (1, True)
    assert local.get("/list?user_id=" + USER)
    local.end(signal.SIGTERM)


def test_without_a_mongod_the_local_run_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LocalRunError, match=r"requirements-local\.txt"):
        find_mongod()
