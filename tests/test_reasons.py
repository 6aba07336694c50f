"""Why MongoDB cannot be used, in one sentence with the driver's own reason."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from mongo.connection import connected
from mongo.errors import Unavailable
from mongo.serving import patiently
from mongo.users import Clock
from tests.servers import Mongod, free_port, initiate
from tests.waiting import eventually_async


async def said(uri: str) -> str:
    """Return the start's message about this connection string; nothing if MongoDB can be used."""
    async with connected(uri) as connection:
        try:
            await Clock(connection.database).sync(3.0)
        except Unavailable as exc:
            return f"{exc}"
    return ""


@pytest.mark.parametrize(
    ("host", "words"),
    [("nowhere.invalid", r"\[Errno -\d\] "), ("127.0.0.1:{port}", r"\[Errno 111\] Connection refused\.$")],
)
async def test_the_start_says_what_is_in_the_way(host: str, words: str) -> None:
    told = await said(f"mongodb://u:hunter2@{host.format(port=free_port())}/x")
    assert re.search(words, told), told
    assert "hunter2" not in told


@pytest.fixture
def member(tmp_path: Path) -> Iterator[Mongod]:
    """Run a replica set of one member that admits few connections."""
    mongod = Mongod(tmp_path / "db", "rs0", "--maxConns", "12")
    mongod.start()
    initiate([mongod], "rs0")
    yield mongod
    mongod.kill()


@pytest.mark.ci
async def test_a_wrong_set_name_or_a_missing_primary_is_reported(member: Mongod) -> None:
    uri = f"mongodb://localhost:{member.port}/x?replicaSet="
    with member.client() as client:
        assert "replica set" in await said(f"{uri}other")
        client.admin.command("replSetStepDown", 60, force=True)
        assert "rimary" in await said(f"{uri}rs0")


async def test_a_mongodb_that_is_full_is_reported(member: Mongod) -> None:
    async with AsyncExitStack() as stack:

        async def ask() -> None:
            for _ in range(20):  # again, when those by which the set was initiated have made room
                _, writer = await asyncio.open_connection("127.0.0.1", member.port)
                stack.callback(writer.close)
            assert "connection closed" in await said(f"mongodb://{member.address}/x")

        await eventually_async(ask)


async def test_no_attempt_is_too_short_to_find_a_cause() -> None:
    causes = iter(["MongoDB does not answer in time.", "MongoDB has no primary."])

    async def fail() -> None:
        await asyncio.sleep(0.3)
        raise Unavailable(next(causes))

    with pytest.raises(Unavailable, match=r"^MongoDB has no primary\. The service waited for 0\.4 s"):
        await patiently(fail, 0.4)
