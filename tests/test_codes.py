"""What MongoDB's error codes and the driver's messages mean for a client, and what an operator reads."""

from __future__ import annotations

import asyncio

import pytest
from dns.resolver import NXDOMAIN
from pymongo.errors import AutoReconnect, ConfigurationError, OperationFailure

from mongo.errors import (
    CONFLICTS,
    DUPLICATE_KEY,
    FINAL,
    REFUSED_US,
    STATES,
    TOO_LARGE,
    WRONG_TYPE,
    Misconfigured,
    Patience,
    means_unavailable,
    unavailable,
)
from settings import Settings
from tests.client import DB, ROOT, USER, Client, create, problem
from tests.faults import HEARTBEATS, failing
from tests.fixtures import Start
from tests.servers import Mongod
from tests.waiting import eventually_async

NOT_FAKED = {121, DUPLICATE_KEY}
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
@pytest.mark.ci
async def test_a_temporary_error_is_503_and_the_log_has_its_name(
    impatient_client: Client, mongod: Mongod, caplog: pytest.LogCaptureFixture
) -> None:
    for code, name in {11602: "InterruptedDueToReplStateChange", 14031: "OutOfDiskSpace", 999: "Location999"}.items():
        with failing(mongod, [*WRITES, "find"], errorCode=code):
            assert await statuses(impatient_client) == [(503, "5")] * 3, name
        assert f"requests fail: MongoDB cannot do it now: error {code} {name}." in caplog.text
        await eventually_async(lambda: works(impatient_client))


@pytest.mark.parametrize("code", [6, 24, 50, 91, 112, 189, 216, 371, 402, 453, 462, 777, *STATES])
def test_states_of_the_server_are_retried_unknown_ones_too(code: int) -> None:
    exc = OperationFailure("any text", code, {"codeName": "AState"})
    assert means_unavailable(exc)
    assert f"{unavailable(exc)}" == f"MongoDB cannot do it now: error {code} AState."


@pytest.mark.parametrize("code", [*FINAL, *CONFLICTS, *TOO_LARGE, *WRONG_TYPE, 4242, 5_107_201, None])
def test_errors_of_the_statement_or_document_are_final(code: int | None) -> None:
    assert not means_unavailable(OperationFailure("any text", code))


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
    assert "requests fail: MongoDB cannot do it now: error 4242 Location4242." in caplog.text


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
async def test_writes_that_the_collection_refuses_are_409(
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
        (OperationFailure("you are over your space quota", 8000, {"codeName": "AtlasError"}), "AtlasError", False),
    ],
    ids=lambda value: f"{value}"[:40],
)
def test_the_reason_is_one_sentence_without_a_host(exc: Exception, sentence: str, is_configuration: bool) -> None:
    found = unavailable(exc)
    assert sentence in f"{found}"
    assert isinstance(found, Misconfigured) == is_configuration


def test_the_drivers_words_say_what_is_in_the_way() -> None:
    words = "db.example:27017: [Errno 111] Connection refused"
    timeouts = "(configured timeouts: connectTimeoutMS: 4000.0ms), Timeout: 4.0s, Topology Description: <…>"
    assert f"{unavailable(AutoReconnect(f'{words} {timeouts}'))}" == f"MongoDB cannot be reached: {words}."


def test_a_refused_option_is_named_without_its_value() -> None:
    refused = unavailable(ConfigurationError("hunter2 is not valid"))
    assert (isinstance(refused, Misconfigured), "hunter2" in f"{refused}") == (True, False)


def test_a_name_that_dns_does_not_know_may_be_known_later() -> None:
    exc = ConfigurationError("The DNS query name does not exist: _mongodb._tcp.db.example.")
    exc.__cause__ = NXDOMAIN()  # type: ignore[no-untyped-call]
    told = unavailable(exc)
    assert (isinstance(told, Misconfigured), f"{told}") == (False, f"MongoDB cannot be reached: {exc}")


def test_every_refusal_of_the_account_is_documented() -> None:
    page = (ROOT / "docs/running.md").read_text()
    sentences = [f"MongoDB {reason}." for reason in REFUSED_US.values()]
    assert [sentence for sentence in sentences if f"| {sentence} |" not in page] == []
