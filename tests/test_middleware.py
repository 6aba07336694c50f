"""Every request has an id, and may be part of a trace."""

from __future__ import annotations

import pytest

from tests.client import DB, USER, Client, owed
from tests.fixtures import Start
from tests.servers import free_port
from tests.waiting import eventually_async


@pytest.mark.parametrize(("given", "kept"), [("trace-1.a_B", True), ("x" * 65, False), ("a b", False), ("", False)])
async def test_a_request_id_is_returned_and_kept_with_the_email(
    start: Start, database: DB, given: str, kept: bool
) -> None:
    client = await start(smtp_port=free_port())
    body = {"user_id": USER, "key": "registration"}
    response = await client.post("/create", json=body, headers={"X-Request-ID": given} if given else {})
    answered = response.headers["X-Request-ID"]
    assert (answered == given) == kept
    (email,) = owed(database)
    assert email["request_id"] == answered


TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (TRACE, True),
        ("ff" + TRACE[2:], False),
        (TRACE.upper(), False),
        (f"{TRACE}-x", False),
        (TRACE.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32), False),
        (TRACE.replace("00f067aa0ba902b7", "0" * 16), False),
    ],
)
async def test_a_trace_is_in_the_logs_of_the_request_and_its_email(
    client: Client, caplog: pytest.LogCaptureFixture, given: str, kept: bool
) -> None:
    caplog.set_level("INFO", "notifier")
    body = {"user_id": USER, "key": "registration"}
    await client.post("/create", json=body, headers={"traceparent": given})

    def check() -> None:
        for logger in ("notifier.http", "notifier.delivery"):
            lines = [record for record in caplog.records if record.name == logger]
            assert [getattr(line, "traceparent", None) for line in lines] == [given if kept else None]

    await eventually_async(check)
