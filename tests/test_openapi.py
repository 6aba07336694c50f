"""The OpenAPI document as programs use it: validated, compared with the service, and made into a client."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from jsonschema import ValidationError as JSONSchemaError
from openapi_spec_validator import OpenAPIV31SpecValidator

from api import openapi
from api.bodies import ANSWERS_LIMIT, BODY_LIMIT, SEND_TIMEOUT
from api.fields import DATA_DEPTH, DATA_LIMIT, USERS_LIMIT
from api.middleware import REQUEST_ID_PATTERN
from api.openapi import VERSION
from api.problems import PROBLEMS
from api.streams import COMMENT, KEEP_ALIVE, RETRY_MS, encode
from api.unsubscribe import CHOICES
from kinds import SPECIFIED, TOLD
from mongo.creation import Create
from mongo.document import OPTIONAL_FIELDS, OUTBOX_LIMIT, RECENT_LIMIT
from mongo.errors import DEADLINE, PING_DEADLINE
from mongo.inbox import Page
from schemas import SELECTORS, CreateSchema
from settings import IdType, Settings
from tests.bad_input import BAD_BODIES, BAD_OBJECT_IDS
from tests.client import KEY, ROOT, USER, Client, create
from tests.description import DESCRIBED, DOCUMENT, assert_conforms, example_of
from tests.processes import running_service


async def test_the_document_is_valid_openapi_3_1_and_served(client: Client) -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()
    assert DOCUMENT["openapi"].startswith("3.1.")
    assert await (await client.get("/openapi.json")).json() == DOCUMENT


def test_the_version_stands_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "api.openapi.VERSION"}
    assert DOCUMENT["info"]["version"] == VERSION


def test_the_document_with_string_ids_is_valid() -> None:
    document = openapi.describe(SPECIFIED, IdType.STRING)
    OpenAPIV31SpecValidator(document).validate()
    properties = document["components"]["schemas"]["Create"]["properties"]
    assert properties["user_id"].items() >= {"type": "string", "minLength": 1, "maxLength": 128}.items()
    assert properties["target_id"]["type"] == ["string", "null"]
    body = document["paths"]["/create"]["post"]["requestBody"]["content"]["application/json"]
    validator = Draft202012Validator(body["schema"] | {"components": document["components"]})
    for example in body["examples"].values():
        validator.validate(example["value"])


def test_a_field_of_a_create_is_in_every_place() -> None:
    given = {"user_id": USER, "key": "new_post"}
    fields = CreateSchema(IdType.OBJECTID, SPECIFIED).fields.keys() - given.keys()
    assert fields == set(OPTIONAL_FIELDS) <= {field.name for field in dataclasses.fields(Create)}
    assert fields <= DOCUMENT["components"]["schemas"]["Notification"]["properties"].keys()
    assert all(f"| `{name}` | optional |" in (ROOT / "docs/api.md").read_text() for name in fields)
    values: list[dict[str, Any]] = [{}, *({name: ["a value"]} for name in fields)]
    assert len({Create(USER, SPECIFIED["new_post"], **value).fingerprint() for value in values}) == len(values)


def test_what_its_file_says_in_words_holds_in_the_code() -> None:
    create, headers = DESCRIBED["POST /create"], DESCRIBED["POST /create"]["responses"]["201"]["headers"]
    assert f"It may have {BODY_LIMIT // 1024} KiB." in create["description"]
    assert f"is owed {OUTBOX_LIMIT} e-mails already" in headers["X-Email"]["description"]
    schema = DOCUMENT["components"]["schemas"]["Create"]["properties"]
    assert f"At most {DATA_LIMIT // 1024} KiB of JSON and {DATA_DEPTH} levels deep." in schema["data"]["description"]
    many = create["requestBody"]["content"]["application/json"]["schema"]["oneOf"][1]["$ref"].rpartition("/")[2]
    assert DOCUMENT["components"]["schemas"][many]["properties"]["user_ids"]["maxItems"] == USERS_LIMIT
    assert f"one of the user's last {RECENT_LIMIT} keys" in create["parameters"][0]["description"]
    assert headers["X-Request-ID"]["schema"]["pattern"] == f"^{REQUEST_ID_PATTERN}$"
    for path in ("/read", "/unread", "/delete"):
        names = ", ".join(f"`{name}`" for name in SELECTORS)
        assert DESCRIBED[f"POST {path}"]["description"].startswith(f"Takes exactly one of {names}.")
    assert DESCRIBED["POST /u/{token}"]["parameters"][1]["schema"]["enum"] == [*CHOICES[1:]]
    assert set(DOCUMENT["components"]["schemas"]["Kind"]["required"]) == TOLD
    advice = json.loads((ROOT / "docs/openapi.json").read_text())["x-advice"]
    assert advice.keys() - {"retry"} < {problem.name for problem in PROBLEMS}
    numbers = {name: [int(number) for number in re.findall(r"\d+", text)] for name, text in advice.items()}
    assert (numbers["Unavailable"], numbers["TooMuchInFlight"]) == (
        [DEADLINE, PING_DEADLINE],
        [ANSWERS_LIMIT >> 20, SEND_TIMEOUT],
    )
    assert f"after {KEEP_ALIVE:.0f} s without one" in DESCRIBED["GET /stream"]["description"]
    event = encode(Page(23, 12, example_of("GET /list")["data"]["list"])).decode()
    assert example_of("GET /stream") == f"retry: {RETRY_MS[0]}\n\n{event}{COMMENT.decode()}"


def test_the_code_fills_in_all_that_its_file_leaves_out() -> None:
    assert '"x-code"' in openapi.FILE.read_text()
    assert '"x-' not in json.dumps(DOCUMENT)


# --- its schemas and examples -----------------------------------------------------------------------

BODIES = [
    (name, example["value"])
    for name, operation in DESCRIBED.items()
    if "requestBody" in operation
    for content in operation["requestBody"]["content"].values()
    for example in content["examples"].values()
]


@pytest.mark.parametrize(("operation", "body"), BODIES)
async def test_an_example_of_a_body_is_accepted(client: Client, operation: str, body: dict[str, Any]) -> None:
    method, path = operation.split()
    await create(client)
    assert (await client.request(method, path, params={"user_id": USER}, json=body)).status < 300


BEYOND_SCHEMAS = {"depth 900", "lone surrogate", "lone surrogate in a name", "17 KB of data"}
TOO_DEEP = {"DBRef"}
"""Only a recursive schema could refuse these, and client generators cannot read one."""


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(case.values[0], id=case.id)
        for case in BAD_BODIES + BAD_OBJECT_IDS
        if case.values[1] == 422 and case.id not in BEYOND_SCHEMAS | TOO_DEEP
    ],
)
def test_the_document_allows_no_body_that_the_service_refuses(body: bytes) -> None:
    with pytest.raises(JSONSchemaError):
        assert_conforms(json.loads(body), {"$ref": "#/components/schemas/Create"})


def test_the_examples_conform_to_their_schemas() -> None:
    found = 0
    for operation in DESCRIBED.values():
        for response in operation["responses"].values():
            for content in response.get("content", {}).values():
                for example in content.get("examples", {}).values():
                    assert_conforms(example["value"], content["schema"])
                    found += 1
        for parameter in operation.get("parameters", ()):
            for example in parameter["schema"].get("examples", ()):
                assert_conforms(example, parameter["schema"])
                found += 1
    assert found > 60


# --- programs that read it --------------------------------------------------------------------------

CLIENT = """\
import sys
from notifier import AuthenticatedClient
from notifier.api.notifications import create, list_, read
from notifier.models import Create, CreateKey

user_id = "638f394d4b7243fc0399ea67"
client = AuthenticatedClient(base_url=sys.argv[1], token=sys.argv[2], raise_on_unexpected_status=True)
body = Create.from_dict({"user_id": user_id, "key": "new_post", "data": {"title": "Bread", "tags": ["a", {"b": None}]}})
assert create.sync(client=client, body=body, idempotency_key="a").success is True
assert create.sync_detailed(client=client, body=body, idempotency_key="a").headers["Idempotent-Replayed"] == "true"
page = list_.sync(client=client, user_id=user_id, is_new=True)
assert (page.data.elements, page.data.new) == (1, 1)
assert page.data.list_[0].to_dict()["data"] == {"title": "Bread", "tags": ["a", {"b": None}]}
assert read.sync(client=client, user_id=user_id, notification_id=page.data.list_[0].id).success is True
assert list_.sync(client=client, user_id=user_id).data.new == 0
problem = read.sync(client=client, user_id=user_id, notification_id="unknown")
assert (problem.success, problem.status) == (False, 404)
"""


async def run_python(folder: Path, *arguments: str, **variables: str) -> str:
    """Run a Python program; return its output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *arguments),
        cwd=folder,
        env=os.environ | variables,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


async def test_a_generated_client_creates_lists_and_reads(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "openapi.json").write_text(json.dumps(DOCUMENT))
    (tmp_path / "config.json").write_text(json.dumps({"post_hooks": [], "package_name_override": "notifier"}))
    generate = ("generate", "--path=openapi.json", "--config=config.json", "--meta=none", "--output-path=notifier")
    await run_python(tmp_path, "-m", "openapi_python_client", *generate, "--fail-on-warning")
    service = await running_service(settings, tmp_path, API_KEYS=KEY)
    try:
        await run_python(tmp_path, "-c", CLIENT, f"http://127.0.0.1:{service.port}", KEY)
    finally:
        service.kill()


@pytest.mark.ci
async def test_schemathesis_finds_no_difference(settings: Settings, tmp_path: Path) -> None:
    service = await running_service(settings, tmp_path, API_KEYS=KEY)
    (tmp_path / "openapi.json").write_text(json.dumps(DOCUMENT))  # the route of a fetched document is not tested
    try:
        output = await run_python(
            tmp_path,
            *("-m", "schemathesis.cli", "run", "openapi.json", f"--url=http://127.0.0.1:{service.port}"),
            *("--checks=all", "--max-examples=60", "--generation-deterministic", "--continue-on-failure", "--no-color"),
            *("-H", f"Authorization: Bearer {KEY}", "--exclude-path=/stream"),  # a stream does not end
            SCHEMATHESIS_HOOKS=str(ROOT / "tests/schemathesis_hooks.py"),
            PYTHONPATH=str(ROOT),
        )
    finally:
        service.kill()
    assert f"Tested: {len(DESCRIBED) - 1}" in output
