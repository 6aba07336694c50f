"""Why MongoDB cannot be used, in one sentence: found by a look at what listens there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import bson
import pytest

from mongo.clock import Clock
from mongo.connection import connected
from mongo.errors import Misconfigured, Unavailable
from mongo.reasons import HEADER, OP_MSG, Reason, diagnose
from mongo.start import patiently, reach
from tests.servers import Mongod, free_port, initiate

SILENT = b""


async def said(uri: str) -> tuple[str, bool]:
    """Return what the start says of this connection string after a second, and whether waiting is no use."""
    async with connected(uri) as connection:
        with pytest.raises(Unavailable) as caught:
            await reach(Clock(connection), connection, 1.0)
    return f"{caught.value}", isinstance(caught.value, Misconfigured)


def of(reason: Reason) -> tuple[str, bool]:
    return reason.sentence, reason.is_configuration


@asynccontextmanager
async def server(reply: Callable[[], bytes | None]) -> AsyncIterator[str]:
    """Run a server that answers the first bytes with `reply`, or closes the connection; return its address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await reader.read(1)
            if (answer := reply()) is not None:
                writer.write(answer)
                await reader.read()
        writer.transport.abort()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listener:
        yield f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        listener.close()


def hello(**fields: Any) -> bytes:
    body = bytes(5) + bson.encode({"ok": 1.0, "maxWireVersion": 17, "minWireVersion": 0, **fields})
    return HEADER.pack(HEADER.size + len(body), 1, 1, OP_MSG) + body


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n" + b"x" * 100, Reason.NOT_MONGODB),
        (None, Reason.CLOSED),
        (SILENT, Reason.NO_ANSWER),
        (hello(setName="rs", hosts=["nowhere.invalid:27017"], primary="nowhere.invalid:27017"), Reason.MEMBER_NAMES),
        (hello(setName="rs", secondary=True), Reason.NO_PRIMARY),
        (hello(isreplicaset=True), Reason.NO_PRIMARY),
        (hello(setName="other", isWritablePrimary=True), Reason.OTHER_SET),
        (hello(isWritablePrimary=True), Reason.OTHER_SET),
        (hello(isWritablePrimary=True, setName="rs"), None),
    ],
)
async def test_what_a_server_says_of_itself_tells_the_reason(reply: bytes | None, reason: Reason | None) -> None:
    async with server(lambda: reply) as address:
        host, port = address.split(":")
        assert await diagnose([(host, int(port))], None, "rs") is reason


@pytest.mark.parametrize(
    ("host", "reason"), [("nowhere.invalid", Reason.UNKNOWN_HOST), ("127.0.0.1:{port}", Reason.REFUSED)]
)
async def test_the_start_says_what_is_in_the_way(host: str, reason: Reason) -> None:
    assert await said(f"mongodb://{host.format(port=free_port())}/x") == of(reason)


@pytest.fixture
def member(tmp_path: Path) -> Iterator[Mongod]:
    """Run a replica set of one member that admits few connections."""
    mongod = Mongod(tmp_path / "db", "rs0", "--maxConns", "12")
    mongod.start()
    initiate([mongod], "rs0")
    yield mongod
    mongod.kill()


async def test_a_member_that_is_called_by_another_name_is_of_the_set_also_while_it_has_no_primary(
    member: Mongod,
) -> None:
    """The driver forgets such a member then, as it does one of another replica set."""
    uri = f"mongodb://localhost:{member.port}/x?replicaSet="
    with member.client() as client:
        assert await said(f"{uri}other") == of(Reason.OTHER_SET)
        client.admin.command("replSetStepDown", 60, force=True)
        assert await said(f"{uri}rs0") == of(Reason.NO_PRIMARY)


async def test_a_limit_of_connections_is_told(member: Mongod) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(20):
            _, writer = await asyncio.open_connection("127.0.0.1", member.port)
            stack.callback(writer.close)
        assert await said(f"mongodb://{member.address}/x") == of(Reason.CLOSED)


async def test_the_cause_that_held_longest_is_told_and_not_the_last() -> None:
    causes = iter(["MongoDB has no primary.", "MongoDB has no primary."])

    async def fail(deadline: float) -> None:
        cause = next(causes, None)
        await asyncio.sleep(min(deadline, 0.15 if cause else 0.01))
        raise Unavailable(cause or "MongoDB does not answer in time.")

    with pytest.raises(Unavailable, match=r"^MongoDB has no primary\. The service waited for 0\.4 s"):
        await patiently(fail, 0.4)
