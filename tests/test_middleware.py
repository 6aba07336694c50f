"""Every request has an id."""

from __future__ import annotations

import pytest

from tests.client import DB, USER, owed
from tests.fixtures import Start
from tests.servers import free_port


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
