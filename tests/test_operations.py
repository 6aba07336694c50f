"""Every operation gives every answer that the OpenAPI document describes, exactly as described."""

from __future__ import annotations

import ast
import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import ClientResponse, web
from bson import ObjectId
from marshmallow import ValidationError
from pymongo.database import Database

import handlers
from api import auth, body, pages, stream
from api.components import INVALID_REQUEST
from api.hub import HUB, STREAMS_PER_USER
from api.middleware import DRAINING
from api.operations import operations
from api.problem import MEDIA_TYPE
from api.problems import BY_EXCEPTION, PROBLEMS, ForeignHost, Incomplete, NoSuchNotification, NotYetComplete
from mongo import changes, errors
from mongo.document import OUTBOX_LIMIT
from mongo.ids import IdType
from ops.kinds import SPECIFIED
from settings import UnknownUsers
from tests.client import OTHER, PROTECTED, ROOT, TARGET, USER, Client, token
from tests.description import DESCRIBED, assert_conforms
from tests.fixtures import Start
from tests.servers import Mongod, free_port

OPERATIONS = operations(SPECIFIED, IdType.OBJECTID)

DB = Database[dict[str, Any]]
Ask = Callable[[Client], Awaitable[ClientResponse]]
DOCUMENT_LIMIT = 16 * 1024 * 1024
CONFLICTING = "0" * 24
"""A user whose `notifications` is not an array."""


def test_every_route_is_described_and_nothing_else(client: Client) -> None:
    served = {
        f"{route.method} {route.resource.canonical}"
        for route in client.app.router.routes()
        if route.resource and route.method != "HEAD" and route.resource.canonical not in pages.ASSETS
    }
    assert served == DESCRIBED.keys() == OPERATIONS.keys()
    assert served == {f"{route.method} {route.path}" for route in handlers.ROUTES}


def test_every_problem_of_a_route_is_described() -> None:
    described = {exception for operation in OPERATIONS.values() for exception in operation.problems}
    of_no_route = {web.HTTPNotFound, ForeignHost, body.BrokenBody, stream.ClientGone, Exception}
    assert described | of_no_route == BY_EXCEPTION.keys()
    assert not described & of_no_route


# --- what is asked ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A request, and what it is answered: a success of this status, or the problem of this exception."""

    operation: str
    outcome: int | type[Exception]
    ask: Ask
    settings: Mapping[str, Any] = field(default_factory=dict)
    patches: Mapping[str, Any] = field(default_factory=dict)


def ask(method: str, path: str, **options: Any) -> Ask:
    return lambda client: client.request(method, path, **options)


def create(**fields: Any) -> Ask:
    return ask("POST", "/create", json={"user_id": USER, "key": "new_post", **fields})


def create_with_key(**fields: Any) -> Ask:
    given = {"user_id": USER, "key": "new_post", **fields}
    return ask("POST", "/create", json=given, headers={"Idempotency-Key": "k"})


def list_(**query: Any) -> Ask:
    return ask("GET", "/list", params={"user_id": USER, **query})


def read(**query: Any) -> Ask:
    return ask("POST", "/read", params={"user_id": USER, **(query or {"all": "true"})})


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


async def read_one(client: Client) -> ClientResponse:
    page = await (await list_two(client)).json()
    return await read(notification_id=page["data"]["list"][0]["id"])(client)


async def send_slowly(client: Client) -> ClientResponse:
    async def slow() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(0.5)

    return await client.post("/create", data=slow())


async def reuse_key(client: Client) -> ClientResponse:
    await create_with_key()(client)
    return await create_with_key(data={})(client)


async def fill_document(client: Client) -> ClientResponse:
    full = {"_id": ObjectId(USER), "own": "x" * (DOCUMENT_LIMIT - 200)}
    await client.app[handlers.STORE].users.insert_one(full)
    return await create(data={"text": "x" * 1000})(client)


async def fill_outbox(client: Client) -> ClientResponse:
    for _ in range(OUTBOX_LIMIT):
        await create(key="registration")(client)
    return await create(key="registration")(client)


SEVEN = [f"{n:024x}" for n in range(1, 8)]


async def create_for_an_unknown_user(client: Client) -> ClientResponse:
    await client.app[handlers.STORE].users.insert_many([{"_id": ObjectId(user_id)} for user_id in SEVEN])
    return await create_many(*SEVEN, USER)(client)


async def create_with_a_full_outbox(client: Client) -> ClientResponse:
    await fill_outbox(client)
    return await create_many(*SEVEN, USER, key="registration")(client)


async def read_what_a_validator_refuses(client: Client) -> ClientResponse:
    await create()(client)
    database = client.app[handlers.STORE].users.database
    await database.command("collMod", "users", validator={"notifications.is_new": True})
    return await read()(client)


async def open_too_many_streams(client: Client) -> ClientResponse:
    responses = [await open_stream()(client) for _ in range(STREAMS_PER_USER + 1)]
    return responses[-1]


async def open_two_streams(client: Client) -> ClientResponse:
    await open_stream()(client)
    return await open_stream(OTHER)(client)


def breaking(_: object) -> bytes:
    raise ValueError


async def open_stream_while_stopping(client: Client) -> ClientResponse:
    client.app[HUB].close()
    return await open_stream()(client)


async def probe_while_stopping(client: Client) -> ClientResponse:
    client.app[DRAINING].set()
    return await ask("GET", "/readyz")(client)


def with_full_queues(ask: Ask) -> Ask:
    async def ask_with_full_queues(client: Client) -> ClientResponse:
        store = client.app[handlers.STORE]
        store._writes._batcher._free_places = store._lists._free_places = 0
        return await ask(client)

    return ask_with_full_queues


NO_TIME = {"mongo.errors.DEADLINE": 0, "store.PING_DEADLINE": 1e-9, "api.hub.FIRST_EVENT_TIMEOUT": 0.2}

CASES = [
    Case("POST /create", 201, create()),
    Case("POST /create", 201, replay),
    Case("POST /create", 201, create_many(USER, OTHER)),
    Case("POST /create", Incomplete, create_for_an_unknown_user, settings={"unknown_users": UnknownUsers.REFUSE}),
    Case("POST /create", NotYetComplete, create_with_a_full_outbox, settings={"smtp_port": free_port()}),
    Case("POST /create", body.WrongCharset, ask("POST", "/create", headers={"Content-Type": "text/json;charset=x"})),
    Case("POST /create", body.NotUTF8, ask("POST", "/create", data=b"\xff")),
    Case("POST /create", body.NotJSON, ask("POST", "/create", data=b'{"a": NaN}')),
    Case("POST /create", body.NotAnObject, ask("POST", "/create", data=b"[]")),
    Case("POST /create", body.Compressed, ask("POST", "/create", data=b"text", headers={"Content-Encoding": "gzip"})),
    Case("POST /create", body.BodyTooSlow, send_slowly, patches={"api.body.BODY_TIMEOUT": 0.1}),
    Case("POST /create", web.HTTPRequestEntityTooLarge, ask("POST", "/create", data=b" " * (body.BODY_LIMIT + 1))),
    Case("POST /create", ValidationError, ask("POST", "/create", json=INVALID_REQUEST)),
    Case("POST /create", errors.UnknownUser, create(), settings={"unknown_users": UnknownUsers.REFUSE}),
    Case("POST /create", errors.KeyReused, reuse_key),
    Case("POST /create", errors.Conflict, create(user_id=CONFLICTING)),
    Case("POST /create", errors.TooLarge, fill_document),
    Case("POST /create", errors.Unavailable, create(), patches=NO_TIME),
    Case("POST /create", errors.Busy, with_full_queues(create())),
    Case("POST /create", errors.OutboxFull, fill_outbox, settings={"smtp_port": free_port()}),
    Case("GET /list", 200, list_()),
    Case("GET /list", 200, list_two),
    Case("GET /list", 304, list_again),
    Case("GET /list", ValidationError, ask("GET", "/list", params=INVALID_REQUEST)),
    Case("GET /list", errors.Unavailable, list_(), patches=NO_TIME),
    Case("GET /list", errors.Busy, with_full_queues(list_())),
    Case("POST /read", 200, read_one),
    Case("POST /read", NoSuchNotification, read(notification_id="unknown")),
    Case("POST /read", ValidationError, ask("POST", "/read", params=INVALID_REQUEST)),
    Case("POST /read", errors.Conflict, read_what_a_validator_refuses),
    Case("POST /read", errors.Unavailable, read(), patches=NO_TIME),
    Case("POST /read", errors.Busy, with_full_queues(read())),
    Case("GET /stream", 200, open_stream()),
    Case("GET /stream", ValidationError, ask("GET", "/stream", params=INVALID_REQUEST)),
    Case("GET /stream", stream.Unreadable, open_stream(), patches={"api.hub.encode": breaking}),
    Case("GET /stream", stream.TooManyOfUser, open_too_many_streams),
    Case("GET /stream", stream.TooManyOfProcess, open_two_streams, settings={"stream_limit": 1}),
    Case("GET /stream", stream.Stopping, open_stream_while_stopping),
    Case("GET /stream", errors.Unavailable, open_stream(), patches=NO_TIME),
    Case("GET /healthz", 200, ask("GET", "/healthz")),
    Case("GET /readyz", 200, ask("GET", "/readyz")),
    Case("GET /readyz", errors.Unavailable, ask("GET", "/readyz"), patches=NO_TIME),
    Case("GET /readyz", stream.Stopping, probe_while_stopping),
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
    auth.TokenWithoutUser: lambda: f"Bearer {token(sub='admin')}",
    auth.BackendOnly: lambda: f"Bearer {token(sub=OTHER)}",
    auth.OtherUser: lambda: f"Bearer {token(sub=OTHER)}",
}
"""What to send as `Authorization`. Tokens are made when they are used, as they expire within a long run."""
FOREIGN = [(name, auth.ForeignPage) for name, operation in OPERATIONS.items() if operation.callers]
REFUSED = [
    (name, exception)
    for name, operation in OPERATIONS.items()
    for exception in operation.problems
    if exception in CREDENTIALS
]


# --- what it is answered ------------------------------------------------------------------------------


async def assert_described(operation: str, outcome: int | type[Exception], response: ClientResponse) -> None:
    """Check an answer against the document: status, headers, media type and body. A problem equals its example."""
    problem = None if isinstance(outcome, int) else BY_EXCEPTION[outcome]
    assert response.status == (problem.status if problem else outcome)
    described = DESCRIBED[operation]["responses"][str(response.status)]
    for name, header in described["headers"].items():
        assert name in response.headers or not header.get("required")
        if name in response.headers:
            value = response.headers[name]
            assert_conforms(int(value) if header["schema"]["type"] == "integer" else value, header["schema"])
    if "content" not in described:
        assert await response.read() == b""
        return
    ((media_type, content),) = described["content"].items()
    assert response.content_type == media_type
    received = await read_body(response)
    assert_conforms(received, content["schema"])
    if problem:
        assert media_type == MEDIA_TYPE
        assert received == content["examples"][problem.name]["value"]


async def read_body(response: ClientResponse) -> Any:
    if response.content_type == "text/event-stream":  # it does not end
        return (await response.content.readuntil(b"data: ")).decode()
    return await (response.text() if response.content_type.startswith("text/") else response.json())


def name_of(value: object) -> str:
    outcome = value.outcome if isinstance(value, Case) else value
    name = getattr(outcome, "__name__", f"{outcome}")
    return f"{value.operation} {name}" if isinstance(value, Case) else name


@pytest.mark.parametrize("case", CASES, ids=name_of)
async def test_an_answer_is_as_described(
    start: Start, database: DB, monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    database.users.insert_one({"_id": ObjectId(CONFLICTING), "notifications": "no array"})
    client = await start(**case.settings)
    for name, value in case.patches.items():
        monkeypatch.setattr(name, value)
    await assert_described(case.operation, case.outcome, await case.ask(client))


@pytest.mark.parametrize(("operation", "exception"), [*REFUSED, *FOREIGN], ids=name_of)
async def test_a_refused_caller_is_answered_as_described(
    start: Start, operation: str, exception: type[Exception]
) -> None:
    client = await start(**({} if exception is auth.ForeignPage else PROTECTED))
    method, path = operation.split()
    query = {"user_id": USER, "all": "true"} if path in {"/list", "/read", "/stream"} else {}
    headers = {"Authorization": CREDENTIALS.get(exception, str)(), "Origin": "https://evil.example"}
    await assert_described(operation, exception, await client.request(method, path, params=query, headers=headers))


async def test_another_method_is_answered_as_described(client: Client) -> None:
    for operation in OPERATIONS:
        response = await client.delete(operation.split()[1])
        await assert_described(operation, web.HTTPMethodNotAllowed, response)


async def test_a_standalone_mongodb_is_answered_as_described(start: Start, standalone: Mongod) -> None:
    client = await start(db_uri=f"mongodb://{standalone.address}/standalone")
    await assert_described("GET /stream", changes.NotReplicated, await open_stream()(client))


def test_every_described_answer_is_asked_for() -> None:
    asked: set[tuple[str, object]] = {(case.operation, case.outcome) for case in CASES} | {*REFUSED, *FOREIGN}
    asked |= {(name, web.HTTPMethodNotAllowed) for name in OPERATIONS} | {("GET /stream", changes.NotReplicated)}
    described: set[tuple[str, object]] = set()
    for name, operation in OPERATIONS.items():
        described |= {(name, outcome) for outcome in (*operation.answers, *operation.problems)}
    assert asked == described


# --- where an error's sentences stand ---------------------------------------------------------------


def texts_of(path: str) -> list[str]:
    """Return the texts of a file in which a sentence may stand: the strings of a module, else the whole file."""
    source = (ROOT / path).read_text()
    if not path.endswith(".py"):
        return [" ".join(re.sub(r"<!-- (\w+): made by .*?<!-- end of \1 -->", "", source, flags=re.DOTALL).split())]
    constants = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    return [" ".join(value.split()) for value in constants if isinstance(value, str)]


def sentences() -> set[str]:
    """Return the longest constant part of each sentence of the table."""
    found = set()
    for problem in PROBLEMS:
        for sentence in re.split(r"(?<=\.) ", f"{problem.detail} {problem.advice}".strip()):
            found.add(max(re.split(r"\{\}|\d+", sentence), key=len).strip())
    return found


def test_the_sentences_of_the_errors_stand_once() -> None:
    files = [*ROOT.glob("*.py"), *ROOT.glob("*.md"), *ROOT.glob("web/*"), *ROOT.glob("docs/*.md")]
    for wing in ("api", "mail", "mongo", "ops", "docs", "bench", "tests"):
        files += ROOT.glob(f"{wing}/*.py")
    texts = [text for path in files for text in texts_of(str(path.relative_to(ROOT)))]
    counts = {sentence: sum(text.count(sentence) for text in texts) for sentence in sentences()}
    assert {sentence: count for sentence, count in counts.items() if count != 1} == {}
