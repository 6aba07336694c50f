"""A request to every operation, and the answer of the OpenAPI document that it must give."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from aiohttp import ClientResponse, web
from bson import ObjectId
from marshmallow import ValidationError
from pymongo import MongoClient

import handlers
from api import auth, bodies, streams
from api.bodies import ANSWERS_LIMIT, IN_FLIGHT, TooMuchInFlight
from api.problems import NoSuchNotification
from api.streams import HUB, STREAMS_PER_USER
from mail.unsubscribe import NoSuchLink
from mongo import errors
from mongo.document import OUTBOX_LIMIT, SIMPLE, JSONObject
from mongo.errors import Incomplete, NotYetComplete, Patience
from notifier import SETTINGS
from settings import UnknownUsers
from tests.client import METRICS_KEY, OTHER, TARGET, USER, Client, token
from tests.description import DESCRIBED, outcomes
from tests.links import link_path
from tests.servers import free_port

Ask = Callable[[Client], Awaitable[ClientResponse]]
DOCUMENT_LIMIT = 16 * 1024 * 1024
INVALID_REQUEST = {"user_id": ""}
CONFLICTING = "0" * 24
"""A user whose `notifications` is not an array."""


@dataclass(frozen=True)
class Case:
    """A request and its answer: a success with this status, or the problem of this exception."""

    operation: str
    outcome: int | type[Exception]
    ask: Ask
    settings: Mapping[str, Any] = field(default_factory=dict)
    patches: Mapping[str, Any] = field(default_factory=dict)
    patience: Patience | None = None


def ask(method: str, path: str, **options: Any) -> Ask:
    return lambda client: client.request(method, path, **options)


def create(**fields: Any) -> Ask:
    return ask("POST", "/create", json={"user_id": USER, "key": "new_post", **fields})


def create_with_key(**fields: Any) -> Ask:
    given = {"user_id": USER, "key": "new_post", **fields}
    return ask("POST", "/create", json=given, headers={"Idempotency-Key": "k"})


def list_(**query: Any) -> Ask:
    return ask("GET", "/list", params={"user_id": USER, **query})


def mark(path: str, **query: Any) -> Ask:
    return ask("POST", path, params={"user_id": USER, **(query or {"all": "true"})})


def of_user(method: str, path: str, user_id: str = USER, **options: Any) -> Ask:
    return ask(method, path, params={"user_id": user_id}, **options)


def open_stream(user_id: str = USER) -> Ask:
    return ask("GET", "/stream", params={"user_id": user_id})


def create_many(*user_ids: str, **fields: Any) -> Ask:
    body = {"user_ids": user_ids, "key": "new_post", **fields}
    return ask("POST", "/create", json=body, headers={"Idempotency-Key": "many"})


async def replay(client: Client) -> ClientResponse:
    await create_with_key()(client)
    response = await create_with_key()(client)
    assert response.headers["Idempotent-Replayed"] == "true"
    return response


async def list_two(client: Client) -> ClientResponse:
    await create()(client)
    await create(target_id=TARGET, data={"some": ["thing", None]})(client)
    return await list_()(client)


async def list_again(client: Client) -> ClientResponse:
    etag = (await list_two(client)).headers["ETag"]
    return await ask("GET", f"/list?user_id={USER}", headers={"If-None-Match": etag})(client)


async def kinds_again(client: Client) -> ClientResponse:
    etag = (await client.get("/kinds")).headers["ETag"]
    return await ask("GET", "/kinds", headers={"If-None-Match": etag})(client)


def mark_one(path: str) -> Ask:
    async def ask_of_one(client: Client) -> ClientResponse:
        page = await (await list_two(client)).json()
        return await mark(path, notification_id=page["data"]["list"][0]["id"])(client)

    return ask_of_one


async def reuse_key(client: Client) -> ClientResponse:
    await create_with_key()(client)
    return await create_with_key(data={})(client)


async def fill_document(client: Client) -> ClientResponse:
    full = {"_id": ObjectId(USER), "own": "x" * (DOCUMENT_LIMIT - 200)}
    await client.app[handlers.STORE].users.collection.insert_one(full)
    return await create(data={"text": "x" * 1000})(client)


async def fill_outbox(client: Client) -> ClientResponse:
    for _ in range(OUTBOX_LIMIT):
        await create(key="registration")(client)
    return await create(key="registration")(client)


SEVEN = [f"{n:024x}" for n in range(1, 8)]


async def create_for_an_unknown_user(client: Client) -> ClientResponse:
    await client.app[handlers.STORE].users.collection.insert_many([{"_id": ObjectId(user_id)} for user_id in SEVEN])
    return await create_many(*SEVEN, USER)(client)


async def create_with_a_full_outbox(client: Client) -> ClientResponse:
    await fill_outbox(client)
    return await create_many(*SEVEN, USER, key="registration")(client)


async def list_too_much(client: Client) -> ClientResponse:
    """Ask for a list while the user's clients have not read earlier answers."""
    client.app[IN_FLIGHT].held[USER] = ANSWERS_LIMIT
    return await client.get("/list", params={"user_id": USER})


def with_validator(ask: Ask) -> Ask:
    """Ask about a user with a notification, once the team's validator admits only other documents."""

    async def ask_with_validator(client: Client) -> ClientResponse:
        await create()(client)
        with MongoClient[JSONObject](client.app[SETTINGS].db_uri) as team:
            team.get_default_database().command("collMod", "users", validator={"email": 1})
        return await ask(client)

    return ask_with_validator


def with_full_document(ask: Ask) -> Ask:
    async def ask_of_full_document(client: Client) -> ClientResponse:
        full = {"_id": ObjectId(USER), "email": "a@example.com", "own": "x" * (DOCUMENT_LIMIT - 80)}
        await client.app[handlers.STORE].users.collection.insert_one(full)
        return await ask(client)

    return ask_of_full_document


def while_mongodb_stops(ask: Ask) -> Ask:
    """Ask while MongoDB refuses all that the service does with documents, as it does when it is shut down."""
    commands = ["find", "update", "findAndModify", "aggregate", "ping"]
    fault = {"failCommands": commands, "appName": "notifier", "errorCode": 11600}

    async def ask_meanwhile(client: Client) -> ClientResponse:
        with MongoClient[JSONObject](client.app[SETTINGS].db_uri) as direct:
            direct.admin.command({"configureFailPoint": "failCommand", "mode": "alwaysOn", "data": fault})
            try:
                return await ask(client)
            finally:
                direct.admin.command({"configureFailPoint": "failCommand", "mode": "off"})

    return ask_meanwhile


def opt_out() -> Ask:
    return of_user("POST", "/preferences", json={"*": {"email": False}})


async def erase_while_an_email_is_sent(client: Client) -> ClientResponse:
    await create(key="registration")(client)
    later = datetime(9000, 1, 1, tzinfo=UTC)
    leased = {"notifier.outbox.0.token": "1" * 24, "notifier.outbox.0.next_at": later, "notifier.due": later}
    await client.app[handlers.STORE].users.collection.update_one(
        {"_id": ObjectId(USER)}, {"$set": leased}, collation=SIMPLE
    )
    return await of_user("POST", "/erase")(client)


async def suppress_a_known_user(client: Client) -> ClientResponse:
    await create()(client)
    return await of_user("POST", "/suppress", json={"code": "5.1.1"})(client)


def follow(method: str, query: str = "") -> Ask:
    """Ask with a link to unsubscribe from a kind that has left the table."""
    return lambda client: client.request(method, link_path(client.app[SETTINGS], "news") + query)


async def open_too_many_streams(client: Client) -> ClientResponse:
    responses = [await open_stream()(client) for _ in range(STREAMS_PER_USER + 1)]
    return responses[-1]


async def open_two_streams(client: Client) -> ClientResponse:
    await open_stream()(client)
    return await open_stream(OTHER)(client)


async def open_stream_while_stopping(client: Client) -> ClientResponse:
    client.app[HUB].close()
    return await open_stream()(client)


async def probe_while_stopping(client: Client) -> ClientResponse:
    client.app[HUB].close()
    return await ask("GET", "/readyz")(client)


def with_full_queues(ask: Ask) -> Ask:
    async def ask_with_full_queues(client: Client) -> ClientResponse:
        store = client.app[handlers.STORE]
        store.users.writes._batcher._free_places = store.inbox._lists._free_places = 0
        return await ask(client)

    return ask_with_full_queues


def bad_bodies(path: str) -> list[Case]:
    """Return the cases of a body that is no JSON object."""
    operation = f"POST {path}"

    def post(**options: Any) -> Ask:
        return ask("POST", path, params={"user_id": USER}, **options)

    async def send_slowly(client: Client) -> ClientResponse:
        async def slow() -> AsyncIterator[bytes]:
            yield b"{"
            await asyncio.sleep(0.5)

        return await post(data=slow())(client)

    return [
        Case(operation, bodies.NotJSON, post(data=b'{"a": NaN}')),
        Case(operation, bodies.Compressed, post(data=b"text", headers={"Content-Encoding": "gzip"})),
        Case(operation, bodies.BodyTooSlow, send_slowly, patches={"api.bodies.BODY_TIMEOUT": 0.1}),
        Case(operation, web.HTTPRequestEntityTooLarge, post(data=b" " * (bodies.BODY_LIMIT + 1))),
    ]


MARKING = ("/read", "/unread", "/delete")
REFUSING = {"unknown_users": UnknownUsers.REFUSE}
LINKED = {"public_url": "https://x.example", "unsubscribe_secrets": ("u" * 32,)}
NO_TIME: dict[str, Any] = {
    "patience": Patience(operation=0.3),
    "patches": {"store.PING_DEADLINE": 0.3, "api.streams.FIRST_EVENT_TIMEOUT": 0.2},
}

CASES = [
    Case("POST /create", 201, create()),
    Case("POST /create", 201, replay),
    Case("POST /create", 201, create_many(USER, OTHER)),
    Case("POST /create", Incomplete, create_for_an_unknown_user, settings=REFUSING),
    Case("POST /create", NotYetComplete, create_with_a_full_outbox, settings={"smtp_port": free_port()}),
    *bad_bodies("/create"),
    Case("POST /create", ValidationError, ask("POST", "/create", json=INVALID_REQUEST)),
    Case("POST /create", errors.UnknownUser, create(), settings=REFUSING),
    Case("POST /create", errors.KeyReused, reuse_key),
    Case("POST /create", errors.Conflict, create(user_id=CONFLICTING)),
    Case("POST /create", errors.TooLarge, fill_document),
    Case("POST /create", errors.Unavailable, while_mongodb_stops(create()), **NO_TIME),
    Case("POST /create", errors.Busy, with_full_queues(create())),
    Case("POST /create", errors.OutboxFull, fill_outbox, settings={"smtp_port": free_port()}),
    Case("GET /list", 200, list_()),
    Case("GET /list", 200, list_two),
    Case("GET /list", 304, list_again),
    Case("GET /list", ValidationError, ask("GET", "/list", params=INVALID_REQUEST)),
    Case("GET /list", errors.Unavailable, while_mongodb_stops(list_()), **NO_TIME),
    Case("GET /list", errors.Busy, with_full_queues(list_())),
    *(
        case
        for path in MARKING
        for case in (
            Case(f"POST {path}", 200, mark_one(path)),
            Case(f"POST {path}", NoSuchNotification, mark(path, notification_id="unknown")),
            Case(f"POST {path}", ValidationError, ask("POST", path, params=INVALID_REQUEST)),
            Case(f"POST {path}", errors.Conflict, mark(path, user_id=CONFLICTING, all="true")),
            Case(f"POST {path}", errors.Unavailable, while_mongodb_stops(mark(path)), **NO_TIME),
            Case(f"POST {path}", errors.Busy, with_full_queues(mark(path, notification_id="any"))),
        )
    ),
    Case("POST /seen", 200, of_user("POST", "/seen")),
    Case("POST /seen", ValidationError, ask("POST", "/seen", params=INVALID_REQUEST)),
    Case("POST /seen", errors.Conflict, with_validator(of_user("POST", "/seen"))),
    Case("POST /seen", errors.TooLarge, with_full_document(of_user("POST", "/seen"))),
    Case("POST /seen", errors.Unavailable, while_mongodb_stops(of_user("POST", "/seen")), **NO_TIME),
    Case("POST /seen", errors.Busy, with_full_queues(of_user("POST", "/seen"))),
    Case("GET /preferences", 200, of_user("GET", "/preferences")),
    Case("GET /preferences", ValidationError, ask("GET", "/preferences", params=INVALID_REQUEST)),
    Case("GET /preferences", errors.Unavailable, while_mongodb_stops(of_user("GET", "/preferences")), **NO_TIME),
    Case("POST /preferences", 200, opt_out()),
    Case("POST /preferences", errors.UnknownUser, opt_out(), settings=REFUSING),
    Case(
        "POST /preferences",
        errors.Conflict,
        with_validator(opt_out()),
    ),
    Case("POST /preferences", errors.TooLarge, with_full_document(opt_out())),
    Case("POST /preferences", errors.Unavailable, while_mongodb_stops(opt_out()), **NO_TIME),
    Case("POST /erase", 200, of_user("POST", "/erase")),
    Case("POST /erase", ValidationError, ask("POST", "/erase", params=INVALID_REQUEST)),
    Case("POST /erase", errors.Conflict, of_user("POST", "/erase", CONFLICTING)),
    Case("POST /erase", errors.EmailUnderWay, erase_while_an_email_is_sent, settings={"smtp_port": free_port()}),
    Case("POST /erase", errors.Unavailable, while_mongodb_stops(of_user("POST", "/erase")), **NO_TIME),
    Case("POST /suppress", 200, suppress_a_known_user),
    Case("POST /suppress", errors.UnknownUser, of_user("POST", "/suppress")),
    Case("POST /suppress", errors.Conflict, with_validator(of_user("POST", "/suppress"))),
    Case("POST /suppress", errors.TooLarge, with_full_document(of_user("POST", "/suppress"))),
    Case("POST /suppress", errors.Unavailable, while_mongodb_stops(of_user("POST", "/suppress")), **NO_TIME),
    *(
        case
        for path in ("/preferences", "/suppress")
        for case in (
            *bad_bodies(path),
            Case(f"POST {path}", ValidationError, ask("POST", path, params=INVALID_REQUEST, json=INVALID_REQUEST)),
        )
    ),
    Case("GET /u/{token}", 200, follow("GET"), settings=LINKED),
    Case("GET /u/{token}", NoSuchLink, ask("GET", "/u/a-token"), settings=LINKED),
    Case("POST /u/{token}", 200, follow("POST"), settings=LINKED),
    Case("POST /u/{token}", NoSuchLink, follow("POST", "?choice=none"), settings=LINKED),
    Case("POST /u/{token}", errors.Conflict, with_validator(follow("POST")), settings=LINKED),
    Case("POST /u/{token}", errors.TooLarge, with_full_document(follow("POST")), settings=LINKED),
    Case("GET /u/{token}", errors.Unavailable, while_mongodb_stops(follow("GET")), settings=LINKED, **NO_TIME),
    Case("POST /u/{token}", errors.Unavailable, while_mongodb_stops(follow("POST")), settings=LINKED, **NO_TIME),
    Case("GET /list", TooMuchInFlight, list_too_much, patches={"api.bodies.ANSWERS_PATIENCE": 0.01}),
    Case("GET /stream", 200, open_stream()),
    Case("GET /stream", ValidationError, ask("GET", "/stream", params=INVALID_REQUEST)),
    Case("GET /stream", streams.TooManyOfUser, open_too_many_streams),
    Case("GET /stream", streams.TooManyOfProcess, open_two_streams, settings={"stream_limit": 1}),
    Case("GET /stream", streams.Stopping, open_stream_while_stopping),
    Case("GET /stream", errors.Unavailable, while_mongodb_stops(open_stream()), **NO_TIME),
    Case("GET /healthz", 200, ask("GET", "/healthz")),
    Case("GET /readyz", 200, ask("GET", "/readyz")),
    Case("GET /readyz", errors.Unavailable, while_mongodb_stops(ask("GET", "/readyz")), **NO_TIME),
    Case("GET /readyz", streams.Stopping, probe_while_stopping),
    Case("GET /metrics", 200, ask("GET", "/metrics")),
    Case("GET /kinds", 200, ask("GET", "/kinds")),
    Case("GET /kinds", 304, kinds_again),
    Case("GET /openapi.json", 200, ask("GET", "/openapi.json")),
    Case("GET /docs", 200, ask("GET", "/docs")),
]
CREDENTIALS: Mapping[type[Exception], Callable[[], str]] = {
    auth.NoCredential: lambda: "",
    auth.BadCredential: lambda: "Bearer wrong",
    auth.TokenExpired: lambda: f"Bearer {token(exp=int(time.time()) - 60)}",
    auth.OutOfScope: lambda: f"Bearer {METRICS_KEY}",
    auth.OtherUser: lambda: f"Bearer {token(sub=OTHER)}",
}
"""Values of `Authorization`. Tokens are made when they are used, because they would expire during a long run."""
FOREIGN = [(name, auth.ForeignPage) for name, operation in DESCRIBED.items() if "security" in operation]
REFUSED = [(name, exception) for name in DESCRIBED for exception in CREDENTIALS if exception in outcomes(name)]
