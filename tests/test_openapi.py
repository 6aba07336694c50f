"""What the service says of itself, held against what it does."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import tomllib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse
from bson import ObjectId
from jsonschema import Draft202012Validator
from jsonschema import ValidationError as JSONSchemaError
from openapi_spec_validator import OpenAPIV31SpecValidator
from pymongo.database import Database

import handlers
from api import openapi, pages
from api.auth import sign_token
from settings import Settings
from tests.bad_input import BAD_BODIES
from tests.client import Client
from tests.fixtures import Start
from tests.processes import running_service
from tests.servers import Mongod, free_port

DB = Database[dict[str, Any]]
USER = "638f394d4b7243fc0399ea67"
OTHER = "638f394d4b7243fc0399ea68"
ROOT = Path(__file__).parent
DOCUMENT = openapi.describe(handlers.ROUTES)
OPERATIONS = {
    f"{method.upper()} {path}": operation
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
}


def conforms(value: object, schema: dict[str, Any]) -> None:
    """Check a value against a schema of the document."""
    Draft202012Validator(schema | {"components": DOCUMENT["components"]}).validate(value)


async def test_the_document_is_valid_openapi_3_1_and_served(client: Client) -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()
    assert DOCUMENT["openapi"].startswith("3.1.")
    assert await (await client.get("/openapi.json")).json() == DOCUMENT


def test_its_version_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert DOCUMENT["info"]["version"] == project["project"]["version"]


def test_every_route_is_described_and_nothing_else(client: Client) -> None:
    served = {
        f"{route.method} {route.resource.canonical}"
        for route in client.app.router.routes()
        if route.resource and route.method != "HEAD" and route.resource.canonical not in pages.MODULE
    }
    assert served == OPERATIONS.keys() == openapi.OPERATIONS.keys()
    assert served == {f"{route.method} {route.path}" for route in handlers.ROUTES}


# --- every status ---------------------------------------------------------------------------------

Ask = Callable[[Client], Awaitable[ClientResponse]]


def ask(method: str, path: str, **options: Any) -> Ask:
    return lambda client: client.request(method, path, **options)


def create(**fields: Any) -> Ask:
    return ask("POST", "/create", json={"user_id": USER, "key": "new_post", **fields})


async def read_one(client: Client) -> ClientResponse:
    await create()(client)
    page = await (await client.get("/list", params={"user_id": USER})).json()
    return await client.post("/read", params={"user_id": USER, "notification_id": page["data"]["list"][0]["id"]})


async def replay(client: Client) -> ClientResponse:
    again = ask("POST", "/create", json={"user_id": USER, "key": "new_post"}, headers={"Idempotency-Key": "k"})
    await again(client)
    response = await again(client)
    assert response.headers["Idempotent-Replayed"] == "true"
    return response


async def list_all(client: Client) -> ClientResponse:
    await create()(client)
    await create(target_id=OTHER, data={"some": ["thing", None]})(client)
    return await ask("GET", f"/list?user_id={USER}")(client)


async def list_again(client: Client) -> ClientResponse:
    etag = (await list_all(client)).headers["ETag"]
    return await ask("GET", f"/list?user_id={USER}", headers={"If-None-Match": etag})(client)


async def too_many(client: Client) -> ClientResponse:
    responses = [await ask("GET", f"/stream?user_id={USER}")(client) for _ in range(9)]
    return responses[-1]


async def stall(client: Client) -> ClientResponse:
    async def body() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(0.5)

    return await client.post("/create", data=body())


ANSWERS: list[tuple[str, int, Ask]] = [
    ("POST /create", 201, create()),
    ("POST /create", 201, replay),
    ("POST /create", 400, ask("POST", "/create", data=b"[]")),
    ("POST /create", 405, ask("PUT", "/create")),
    ("POST /create", 409, create(user_id="0" * 24)),
    ("POST /create", 413, ask("POST", "/create", data=b" " * 70_000)),
    ("POST /create", 422, create(user_id=1)),
    ("GET /list", 200, list_all),
    ("GET /list", 405, ask("POST", "/list")),
    ("GET /list", 422, ask("GET", "/list?user_id=1&skip=-1")),
    ("POST /read", 200, read_one),
    ("GET /list", 304, list_again),
    ("GET /stream", 200, ask("GET", f"/stream?user_id={USER}")),
    ("GET /stream", 405, ask("POST", "/stream")),
    ("GET /stream", 422, ask("GET", "/stream?user_id=1")),
    ("GET /stream", 429, too_many),
    ("GET /healthz", 200, ask("GET", "/healthz")),
    ("GET /healthz", 405, ask("POST", "/healthz")),
    ("GET /readyz", 200, ask("GET", "/readyz")),
    ("GET /readyz", 405, ask("POST", "/readyz")),
    ("GET /metrics", 200, ask("GET", "/metrics")),
    ("GET /metrics", 405, ask("POST", "/metrics")),
    ("POST /read", 404, ask("POST", f"/read?user_id={USER}&notification_id=unknown")),
    ("POST /read", 405, ask("GET", "/read")),
    ("POST /read", 422, ask("POST", "/read?user_id=1")),
    ("GET /openapi.json", 200, ask("GET", "/openapi.json")),
    ("GET /openapi.json", 405, ask("POST", "/openapi.json")),
    ("GET /docs", 200, ask("GET", "/docs")),
    ("GET /docs", 405, ask("POST", "/docs")),
]
UNAVAILABLE: list[tuple[str, Ask]] = [
    ("POST /create", create()),
    ("GET /list", ask("GET", f"/list?user_id={USER}")),
    ("POST /read", ask("POST", f"/read?user_id={USER}&notification_id=x")),
    ("GET /stream", ask("GET", f"/stream?user_id={USER}")),
    ("GET /readyz", ask("GET", "/readyz")),
]
BODIES_TOO_SLOW = ("POST /create", "408")
STANDALONE = ("GET /stream", "501")
SECURED = [name for name, operation in OPERATIONS.items() if "security" in operation]


async def is_described(operation: str, response: ClientResponse) -> None:
    """Check a response against what the document says of its status: media type, headers, body and title."""
    described = OPERATIONS[operation]["responses"][str(response.status)]
    for name, header in described.get("headers", {}).items():
        assert name in response.headers or not header.get("required")
        if name in response.headers:
            value = response.headers[name]
            conforms(int(value) if header["schema"]["type"] == "integer" else value, header["schema"])
    if "content" not in described:
        assert await response.read() == b""
        return
    ((media_type, content),) = described["content"].items()
    assert response.content_type == media_type
    body: Any
    if media_type == "text/event-stream":  # which does not end
        body = (await response.content.readuntil(b"data: ")).decode()
    else:
        body = await (response.text() if media_type.startswith("text/") else response.json())
    conforms(body, content["schema"])
    if media_type == openapi.PROBLEM_TYPE:
        assert body["title"] == content["examples"]["problem"]["value"]["title"]


@pytest.mark.parametrize(("operation", "status", "request_"), ANSWERS)
async def test_an_answer_is_as_described(
    client: Client, database: DB, operation: str, status: int, request_: Ask
) -> None:
    database.users.insert_one({"_id": ObjectId("0" * 24), "notifications": "no array"})
    response = await request_(client)
    assert response.status == status
    await is_described(operation, response)


@pytest.mark.parametrize(("operation", "request_"), UNAVAILABLE)
async def test_a_503_is_as_described(
    client: Client, monkeypatch: pytest.MonkeyPatch, operation: str, request_: Ask
) -> None:
    monkeypatch.setattr("mongo.errors.DEADLINE", 0)
    monkeypatch.setattr("mongo.outbox.PING_DEADLINE", 1e-9)
    monkeypatch.setattr("api.hub.FIRST_EVENT_TIMEOUT", 0.2)
    response = await request_(client)
    assert response.status == 503
    await is_described(operation, response)


async def test_a_408_is_as_described(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.body.BODY_TIMEOUT", 0.1)
    await is_described("POST /create", await stall(client))


async def test_a_501_is_as_described(start: Start, standalone: Mongod) -> None:
    client = await start(db_uri=f"mongodb://{standalone.address}/standalone")
    response = await client.get(f"/stream?user_id={USER}")
    assert response.status == 501
    await is_described("GET /stream", response)


@pytest.mark.parametrize("operation", SECURED)
async def test_a_401_and_a_403_are_as_described(start: Start, operation: str) -> None:
    client = await start(api_keys=("k" * 32,), user_token_secret="s" * 32)
    method, path = operation.split()
    query = {"user_id": USER, "all": "true"} if path in {"/list", "/read", "/stream"} else {}
    token = sign_token("s" * 32, OTHER, 60)
    for status, headers in ((401, {}), (403, {"Authorization": f"Bearer {token}"})):
        response = await client.request(method, path, params=query, headers=headers)
        assert response.status == status
        await is_described(operation, response)


async def test_a_full_outbox_is_as_described(start: Start) -> None:
    client = await start(smtp_port=free_port())
    responses = [await create(key="registration")(client) for _ in range(21)]
    assert responses[-1].status == 503
    await is_described("POST /create", responses[-1])


def test_every_described_status_is_asked_for() -> None:
    asked = {(operation, str(status)) for operation, status, _ in ANSWERS}
    asked |= {(operation, "503") for operation, _ in UNAVAILABLE} | {BODIES_TOO_SLOW, STANDALONE}
    asked |= {(operation, status) for operation in SECURED for status in ("401", "403")}
    assert asked == {(name, status) for name, operation in OPERATIONS.items() for status in operation["responses"]}


# --- every example --------------------------------------------------------------------------------

BODIES = [
    (name, example["value"])
    for name, operation in OPERATIONS.items()
    if "requestBody" in operation
    for content in operation["requestBody"]["content"].values()
    for example in content["examples"].values()
]


@pytest.mark.parametrize(("operation", "body"), BODIES)
async def test_an_example_of_a_body_is_accepted(client: Client, operation: str, body: dict[str, Any]) -> None:
    method, path = operation.split()
    assert (await client.request(method, path, json=body)).status < 300


BEYOND_SCHEMAS = {"depth 900", "lone surrogate", "lone surrogate in a name", "17 KB of data"}


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(case.values[0], id=case.id)
        for case in BAD_BODIES
        if case.values[1] == 422 and case.id not in BEYOND_SCHEMAS
    ],
)
def test_a_body_that_the_service_refuses_is_none_that_the_document_allows(body: bytes) -> None:
    with pytest.raises(JSONSchemaError):
        conforms(json.loads(body), {"$ref": "#/components/schemas/Create"})


def test_the_examples_of_answers_and_fields_are_what_their_schemas_say() -> None:
    found = 0
    for operation in OPERATIONS.values():
        for response in operation["responses"].values():
            for content in response.get("content", {}).values():
                for example in content.get("examples", {}).values():
                    conforms(example["value"], content["schema"])
                    found += 1
        for parameter in operation.get("parameters", ()):
            for example in parameter["schema"].get("examples", ()):
                conforms(example, parameter["schema"])
                found += 1
    assert found > 15


# --- for people, and by a machine -----------------------------------------------------------------


async def test_the_page_names_every_operation_and_asks_for_nothing_but_the_document(client: Client) -> None:
    response = await client.get("/docs")
    text = await response.text()
    for operation in OPERATIONS:
        assert f"<code>{operation}</code>" in text
    links = set(re.findall(r"""(?:href|src|url|@import)\s*[=(]?\s*["']?([^"'>\s)]+)""", text))
    ids = {f"#{id_}" for id_ in re.findall('id="([^"]+)"', text)}
    assert {link for link in links if not link.startswith("#")} == {"/openapi.json"}
    assert {link for link in links if link.startswith("#")} <= ids
    assert "<script" not in text
    policy = response.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")


async def test_schemathesis_finds_nothing(settings: Settings, tmp_path: Path) -> None:
    key = "k" * 32
    service = await running_service(settings, tmp_path, API_KEYS=key)
    (tmp_path / "openapi.json").write_text(json.dumps(DOCUMENT))  # it would not ask for a document that it fetched
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "run", "openapi.json", f"--url=http://127.0.0.1:{service.port}"),
        *("--checks=all", "--max-examples=60", "--generation-deterministic", "--continue-on-failure", "--no-color"),
        *("-H", f"Authorization: Bearer {key}", "--exclude-path=/stream"),  # a stream does not end
        cwd=tmp_path,
        env=os.environ | {"SCHEMATHESIS_HOOKS": str(ROOT / "schemathesis_hooks.py")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    service.kill()
    assert process.returncode == 0, output.decode()
    assert f"Tested: {len(OPERATIONS) - 1}" in output.decode()
