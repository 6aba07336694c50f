"""Every operation gives every answer that the OpenAPI document describes, exactly as described."""

from __future__ import annotations

import ast
import json
import re
from typing import Any

import pytest
from aiohttp import ClientResponse, http_exceptions, web
from bson import ObjectId
from pymongo.database import Database

import handlers
from api import auth, bodies, pages
from api.problems import BY_EXCEPTION, MEDIA_TYPE, PROBLEMS, ForeignHost, TooManyConnections
from mongo import changes
from tests.asked import CASES, CONFLICTING, CREDENTIALS, FOREIGN, REFUSED, Case, open_stream
from tests.client import PROTECTED, ROOT, SUPPRESS_KEY, USER, Client
from tests.description import DESCRIBED, assert_conforms, outcomes
from tests.fixtures import Start
from tests.servers import Mongod

DB = Database[dict[str, Any]]


def test_every_route_is_described_and_nothing_else(client: Client) -> None:
    assets = {route.path for route in pages.routes()}
    served = {
        f"{route.method} {route.resource.canonical}"
        for route in client.app.router.routes()
        if route.resource and route.method != "HEAD" and route.resource.canonical not in assets
    }
    assert served == DESCRIBED.keys()
    assert served == {f"{route.method} {route.path}" for route in handlers.ROUTES}


def test_every_problem_of_a_route_is_described() -> None:
    described = {outcome for name in DESCRIBED for outcome in outcomes(name) if not isinstance(outcome, int)}
    of_no_route = {web.HTTPNotFound, ForeignHost, bodies.ClientGone, Exception}
    of_no_route |= {http_exceptions.BadHttpMessage, http_exceptions.LineTooLong, TooManyConnections}
    assert described | of_no_route == BY_EXCEPTION.keys()
    assert not described & of_no_route


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
    if case.patience:
        client.app[handlers.STORE].users.patience = case.patience
    await assert_described(case.operation, case.outcome, await case.ask(client))


@pytest.mark.parametrize(("operation", "exception"), [*REFUSED, *FOREIGN], ids=name_of)
async def test_a_refused_caller_is_answered_as_described(
    share: Start, operation: str, exception: type[Exception]
) -> None:
    client = await share(**({} if exception is auth.ForeignPage else PROTECTED))
    method, path = operation.split()
    query = {"user_id": USER, "all": "true"} if path != "/create" else {}
    headers = {"Authorization": CREDENTIALS.get(exception, str)(), "Origin": "https://evil.example"}
    if (exception, path) == (auth.OutOfScope, "/metrics"):
        headers["Authorization"] = f"Bearer {SUPPRESS_KEY}"
    await assert_described(
        operation, exception, await client.request(method, path, params=query, json={}, headers=headers)
    )


async def test_another_method_is_answered_as_described(client: Client) -> None:
    for operation in DESCRIBED:
        response = await client.delete(operation.split()[1].replace("{token}", "a-token"))
        await assert_described(operation, web.HTTPMethodNotAllowed, response)


async def test_a_standalone_mongodb_is_answered_as_described(start: Start, standalone: Mongod) -> None:
    client = await start(db_uri=f"mongodb://{standalone.address}/standalone")
    await assert_described("GET /stream", changes.NotReplicated, await open_stream()(client))


def test_every_described_answer_is_asked_for() -> None:
    asked: set[tuple[str, object]] = {(case.operation, case.outcome) for case in CASES} | {*REFUSED, *FOREIGN}
    asked |= {(name, web.HTTPMethodNotAllowed) for name in DESCRIBED} | {("GET /stream", changes.NotReplicated)}
    assert asked == {(name, outcome) for name in DESCRIBED for outcome in outcomes(name)}


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
    advice = json.loads((ROOT / "docs/openapi.json").read_text())["x-advice"]
    for text in [*(problem.detail for problem in PROBLEMS), *advice.values()]:
        for sentence in re.split(r"(?<=\.) ", text):
            found.add(max(re.split(r"\{\}|\d+", sentence), key=len).strip())
    return found - {"{retry}"}  # which stands for a sentence


def test_the_sentences_of_the_errors_stand_once() -> None:
    files = [*ROOT.glob("*.py"), *ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "docs/openapi.json"]
    files += [path for path in ROOT.glob("web/**/*") if path.is_file()]
    for wing in ("api", "mail", "mongo", "ops", "docs", "bench", "tests"):
        files += ROOT.glob(f"{wing}/*.py")
    texts = [text for path in files for text in texts_of(str(path.relative_to(ROOT)))]
    counts = {sentence: sum(text.count(sentence) for text in texts) for sentence in sentences()}
    assert {sentence: count for sentence, count in counts.items() if count != 1} == {}
