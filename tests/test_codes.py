"""What MongoDB's error codes and the driver's messages mean for a client, and what an operator reads."""

from __future__ import annotations

import asyncio

import pytest
from pymongo.errors import AutoReconnect, ConfigurationError, OperationFailure

from mongo.codes import (
    CONFLICTS,
    DUPLICATE_KEY,
    EXPECTS_TLS,
    NOT_NOW,
    NOT_USABLE,
    REFUSED_US,
    TOO_LARGE,
    UNREACHABLE,
)
from mongo.errors import Misconfigured, Patience, means_unavailable, unavailable
from settings import Settings
from tests.client import DB, ROOT, USER, Client, create, problem
from tests.faults import HEARTBEATS, failing
from tests.fixtures import Start
from tests.servers import Mongod
from tests.waiting import eventually_async

NOT_FAKED = {121, 150, 249, 343, 13388, DUPLICATE_KEY}
"""Codes that come with details which a fail point cannot make up."""
WRITES = ["findAndModify", "update"]


async def statuses(client: Client) -> list[tuple[int, str | None]]:
    """Return the statuses of a list, a create and a mark, each with its `Retry-After`."""
    requests = (
        client.get(f"/list?user_id={USER}"),
        client.post("/create", json={"user_id": USER, "key": "new_message"}),
        client.post(f"/read?user_id={USER}&all=true"),
    )
    answers = await asyncio.gather(*requests)
    for answer in answers:
        if answer.status >= 400:
            await problem(answer)
    return [(answer.status, answer.headers.get("Retry-After")) for answer in answers]


async def works(client: Client) -> None:
    assert [status for status, _ in await statuses(client)] == [200, 201, 200]


soon = pytest.mark.parametrize("patience", [Patience(operation=1.0)], ids=["soon"])
"""Lets the service give up on MongoDB after a second."""


@pytest.fixture
async def impatient_client(start: Start, settings: Settings) -> Client:
    """Start the service with heartbeats; for tests that are marked `soon`."""
    return await start(db_uri=f"{settings.db_uri}?{HEARTBEATS}")


@soon
async def test_what_mongodb_cannot_do_now_is_503_with_the_name_of_the_code_in_the_log(
    impatient_client: Client, mongod: Mongod, caplog: pytest.LogCaptureFixture
) -> None:
    for code in sorted(NOT_NOW.keys() - NOT_FAKED)[::6]:  # each takes a second; the next test has them all
        with failing(mongod, [*WRITES, "find"], errorCode=code):
            assert await statuses(impatient_client) == [(503, "5")] * 3, NOT_NOW[code]
        assert f"requests fail: MongoDB cannot do it now: {NOT_NOW[code]}." in caplog.text
        await eventually_async(lambda: works(impatient_client))


@pytest.mark.parametrize("code", sorted(NOT_NOW))
def test_every_such_code_is_retried_and_named(code: int) -> None:
    exc = OperationFailure("any text", code)
    assert means_unavailable(exc)
    assert f"{unavailable(exc)}" == f"MongoDB cannot do it now: {NOT_NOW[code]}."


@pytest.mark.parametrize("code", REFUSED_US)
@soon
async def test_refused_rights_are_503_with_the_reason_in_the_log(
    impatient_client: Client, mongod: Mongod, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    with failing(mongod, [*WRITES, "find"], errorCode=code):
        assert await statuses(impatient_client) == [(503, "5")] * 3
    assert f"requests fail: MongoDB {REFUSED_US[code]}." in caplog.text


@pytest.mark.parametrize("label", ["RetryableWriteError", "RetryableError", "SystemOverloadedError"])
@soon
async def test_an_unknown_code_that_is_labelled_retryable_is_503(
    impatient_client: Client, mongod: Mongod, caplog: pytest.LogCaptureFixture, label: str
) -> None:
    with failing(mongod, [*WRITES, "find"], errorCode=4242, errorLabels=[label]):
        assert await statuses(impatient_client) == [(503, "5")] * 3
    assert "requests fail: MongoDB cannot do it now: Location4242." in caplog.text


async def test_any_other_unknown_code_is_500_logged_once_a_minute(
    client: Client, mongod: Mongod, caplog: pytest.LogCaptureFixture
) -> None:
    with failing(mongod, [*WRITES, "find"], errorCode=4242):
        for _ in range(5):
            assert await statuses(client) == [(500, None)] * 3
    lines = [record.message for record in caplog.records if record.name == "notifier.http"]
    assert [line for line in lines if "requests fail" in line] == ["requests fail: MongoDB's error 4242 Location4242"]
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("code", sorted(CONFLICTS.keys() - NOT_FAKED))
async def test_what_the_collection_does_not_admit_is_409_alone_and_in_a_shared_call(
    client: Client, mongod: Mongod, database: DB, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    body = {"user_id": USER, "key": "new_message"}
    with failing(mongod, WRITES, errorCode=code):
        answers = [await client.post("/create", json=body)]
        answers += await asyncio.gather(*(client.post("/create", json=body) for _ in range(40)))
    assert {answer.status for answer in answers} == {409}
    assert f"requests fail: {CONFLICTS[code]}" in caplog.text
    assert database.users.count_documents({}) == 0


@pytest.mark.parametrize("code", TOO_LARGE)
async def test_no_room_is_413(client: Client, mongod: Mongod, code: int) -> None:
    with failing(mongod, WRITES, errorCode=code):
        assert (await client.post("/create", json={"user_id": USER, "key": "new_message"})).status == 413
    await create(client)


@pytest.mark.parametrize(
    ("exc", "sentence", "is_configuration"),
    [
        (OperationFailure("bad auth : Authentication failed.", 8000), "refuses the user name or password", True),
        (OperationFailure("user is not allowed to do action [insert] on [x.users]", 8000), "the rights it needs", True),
        (OperationFailure("you are over your space quota", 8000), "AtlasError", False),
        (ConfigurationError("The DNS query name does not exist: _mongodb._tcp.x."), "DNS does not know", True),
        (ConfigurationError("The resolution lifetime expired after 4 s"), "DNS does not answer", False),
        (AutoReconnect("ssl-tls-host:27017: [Errno 111] Connection refused"), "the connection is refused", False),
        (AutoReconnect("x:1: [SSL: CERTIFICATE_VERIFY_FAILED] Hostname mismatch"), "for another host", True),
        (AutoReconnect("x:1: [SSL: CERTIFICATE_VERIFY_FAILED] certificate has expired"), "has expired", False),
        (AutoReconnect("x:1: something new"), "cannot be reached", False),
    ],
    ids=lambda value: f"{value}"[:40],
)
def test_the_reason_is_one_sentence_without_a_host(exc: Exception, sentence: str, is_configuration: bool) -> None:
    found = unavailable(exc)
    assert sentence in f"{found}"
    assert isinstance(found, Misconfigured) == is_configuration
    assert "x:1" not in f"{found}"
    assert "host:" not in f"{found}"


def test_every_reason_is_documented() -> None:
    page = (ROOT / "docs/operation.md").read_text()
    sentences = [row.sentence for row in (*UNREACHABLE, *NOT_USABLE)]
    sentences += [f"MongoDB {reason}." for reason in REFUSED_US.values()] + [EXPECTS_TLS]
    assert [sentence for sentence in sentences if f"| {sentence} |" not in page] == []
