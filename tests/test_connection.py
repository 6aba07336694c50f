"""Connections to the mail server: which of its addresses is used, and what is said of one that fails."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from settings import Security
from tests.client import DB, create, owed, settled
from tests.fixtures import Start
from tests.servers import free_port, localhost
from tests.smtp import DROP, HANG, raw_server
from tests.waiting import eventually_async

PLAIN: dict[str, Any] = {"smtp_security": Security.NONE, "smtp_host": "relay.example.com"}


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Return a list of the addresses and ports to which the server's name resolves."""
    found: list[tuple[str, int]] = []

    resolve = asyncio.BaseEventLoop.getaddrinfo

    async def getaddrinfo(loop: asyncio.BaseEventLoop, host: Any, *args: Any, **options: Any) -> Any:
        if host != PLAIN["smtp_host"]:
            return await resolve(loop, host, *args, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in found]

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)
    return found


@asynccontextmanager
async def black_hole() -> AsyncIterator[tuple[str, int]]:
    """Return an address that neither accepts nor refuses connections: its queue is full."""
    with socket.socket() as listener, socket.socket() as one, socket.socket() as another:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for client in (one, another):
            client.settimeout(0)
            client.connect_ex(address)
        yield address


async def test_a_dead_address_of_the_server_does_not_matter(
    start: Start, database: DB, resolve: list[tuple[str, int]]
) -> None:
    """The others are tried after a quarter of a second (RFC 8305)."""
    async with raw_server() as server, black_hole() as hole:
        client = await start(**PLAIN, smtp_connect_timeout=60)
        resolve += [("127.0.0.1", free_port()), hole, ("127.0.0.1", server.port)]
        await create(client, key="registration")
        await settled(database)


@pytest.mark.parametrize("greeting", [b"421 busy\r\n", b"554 no service\r\n", DROP, HANG])
async def test_a_broken_servers_address_is_left_for_the_next(
    start: Start, database: DB, resolve: list[tuple[str, int]], greeting: bytes
) -> None:
    async with raw_server({"greeting": greeting}) as broken, raw_server() as server:
        client = await start(**PLAIN, smtp_connect_timeout=0.5)
        resolve += [("127.0.0.1", broken.port), ("127.0.0.1", server.port)]
        await create(client, key="registration")
        await settled(database, 5)
    assert len(server.received) == 1


@pytest.mark.parametrize(
    ("replies", "words"),
    [
        (
            {"greeting": HANG},
            "the greeting timed out after 0.3 s; a server that expects TLS from the start needs SMTP_SECURITY=tls",
        ),
        ({"EHLO": HANG}, "EHLO timed out after 0.3 s"),
        ({"AUTH PLAIN": HANG}, "the login timed out after 0.3 s"),
        ({"MAIL": HANG}, "MAIL: no reply in time"),
        ({"RCPT": HANG}, "RCPT: no reply in time"),
        ({"DATA": HANG}, "DATA command: no reply in time"),
        ({"greeting": b"421 busy\r\n"}, "421 at connect"),
    ],
)
async def test_the_log_says_what_timed_out(
    start: Start, database: DB, caplog: pytest.LogCaptureFixture, replies: dict[str, bytes], words: str
) -> None:
    caplog.set_level(logging.INFO)
    async with raw_server(replies) as server:
        client = await start(
            **PLAIN | {"smtp_host": localhost(), "smtp_port": server.port},
            smtp_connect_timeout=0.3,
            smtp_command_timeout=0.3,
        )
        await create(client, key="registration")

        def failed() -> None:
            assert any(words in record.getMessage() for record in caplog.records), caplog.text

        await eventually_async(failed)
    assert any(words.replace("421 at connect", "421 busy") in item["error"] for item in owed(database))


@pytest.mark.usefixtures("database")
async def test_a_server_that_refuses_connections_is_named_in_no_log(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    client = await start(**PLAIN | {"smtp_host": localhost(), "smtp_port": free_port()})
    await create(client, key="registration")

    def failed() -> None:
        assert "connect: ConnectionRefusedError: Connection refused" in caplog.text

    await eventually_async(failed)
    assert not [record for record in caplog.records if "notifier" in record.name and "127.0" in record.getMessage()]


async def test_a_connection_that_nobody_uses_is_closed_with_a_goodbye(
    start: Start, database: DB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mail.connection.CONNECTION_IDLE", 0.2)
    async with raw_server() as server:
        client = await start(**PLAIN | {"smtp_host": "localhost", "smtp_port": server.port})
        await create(client, key="registration")
        await settled(database)
        assert "QUIT" not in server.commands

        def said_goodbye() -> None:
            assert server.commands[-1] == "QUIT"

        await eventually_async(said_goodbye, 5)
