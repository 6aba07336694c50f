"""What relays limit and how they break, over real connections: no e-mail waits for the schedule, and none dies."""

from __future__ import annotations

import asyncio
import socket
import time
from collections import Counter
from typing import Any, Final

import pytest

from settings import Security
from tests.client import DB, owe, settled
from tests.fixtures import Start
from tests.smtp import DROP, RawServer, raw_server
from tests.waiting import eventually_async

BY_SCHEDULE: Final = (60.0,)
"""Minutes after which an e-mail is tried again, if that is left to the schedule: after the end of the test."""
RELAY: Final[dict[str, Any]] = {
    "smtp_security": Security.NONE,
    "smtp_login": None,
    "smtp_password": None,
    "mail_retry_minutes": BY_SCHEDULE,
}
LATER: Final = b"451 4.3.0 quux\r\n"


async def send(start: Start, database: DB, server: RawServer, count: int, **changes: Any) -> None:
    """Send this many e-mails, within seconds."""
    client = await start(**RELAY | {"smtp_port": server.port} | changes)
    await owe(client, count)
    await settled(database, 30)
    assert database.dead_mail.count_documents({}) == 0


def assert_at_least(number: int, least: int) -> None:
    assert number >= least


def assert_delivered_once(server: RawServer, count: int) -> None:
    assert len(server.received) == count


@pytest.mark.parametrize(
    ("command", "reply"),
    [
        ("greeting", b"421 4.3.2 quux\r\n"),
        ("EHLO", LATER),
        ("MAIL", LATER),
        ("DATA", LATER),
        ("dot", LATER),
        ("DATA", DROP),
    ],
)
async def test_of_two_machines_behind_a_name_one_may_be_broken(
    start: Start, database: DB, command: str, reply: bytes
) -> None:
    async with raw_server() as server:
        server.behave = lambda said, number, _: reply if said == command and number % 2 else None
        await send(start, database, server, 60)
        assert_delivered_once(server, 60)
        assert server.connections < 60


async def test_of_two_addresses_one_may_be_broken_at_data(
    start: Start, database: DB, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with raw_server({"DATA": LATER}) as broken, raw_server() as server:
        addresses = [("127.0.0.1", broken.port), ("127.0.0.1", server.port)]
        resolve = asyncio.BaseEventLoop.getaddrinfo

        async def getaddrinfo(loop: asyncio.BaseEventLoop, host: Any, *args: Any, **options: Any) -> Any:
            if host != "relay.example.com":
                return await resolve(loop, host, *args, **options)
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]

        monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)
        await send(start, database, server, 60, smtp_host="relay.example.com")
        assert_delivered_once(server, 60)
        assert broken.connections < 10  # it rests


async def test_a_limit_of_messages_on_a_connection_is_remembered(start: Start, database: DB) -> None:
    refused = Counter[int]()

    def behave(said: str, number: int, messages: int) -> bytes | None:
        if said != "DATA" or messages < 5:
            return None
        refused[number] += 1
        return b"452 4.4.5 quux\r\n"

    async with raw_server() as server:
        server.behave = behave
        await send(start, database, server, 100, smtp_connections=2)
        assert_delivered_once(server, 100)
    assert refused.total() < 8  # of 20 connections


@pytest.mark.ci
async def test_a_limit_of_messages_a_second_is_found(
    start: Start, database: DB, caplog: pytest.LogCaptureFixture
) -> None:
    left, at, refused = 14.0, time.monotonic(), 0

    def behave(said: str, _number: int, _messages: int) -> bytes | None:
        nonlocal left, at, refused
        if said != "DATA":
            return None
        now = time.monotonic()
        left, at = min(14.0, left + 14 * (now - at)), now
        if left >= 1:
            left -= 1
            return None
        refused += 1
        return b"454 Throttling failure: Maximum sending rate exceeded.\r\n"

    async with raw_server() as server:
        server.behave = behave
        await send(start, database, server, 60)
        assert_delivered_once(server, 60)
    assert refused < 60
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_after_an_outage_nobody_waits_for_the_schedule(start: Start, database: DB) -> None:
    async with raw_server({"DATA": DROP}) as server:
        client = await start(**RELAY | {"smtp_port": server.port})
        await owe(client, 40)
        await eventually_async(lambda: assert_at_least(server.commands.count("DATA"), 8))
        server.replies = {"greeting": DROP}
        more = server.connections + 6
        await eventually_async(lambda: assert_at_least(server.connections, more))
        server.replies = {}
        await settled(database, 30)
        assert_delivered_once(server, 40)
