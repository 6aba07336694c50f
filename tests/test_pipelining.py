"""Commands that are sent together (RFC 2920): fewer round trips, and the same outcomes as one at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from bson import ObjectId

from settings import Security
from tests.client import DB, OTHER, USER, create, owed, settled
from tests.fixtures import Start
from tests.smtp import EHLO, REPLIES, raw_server
from tests.waiting import eventually_async

PLAIN = {
    "smtp_security": Security.NONE,
    "smtp_login": None,
    "smtp_password": None,
    "smtp_command_timeout": 2.0,
    "smtp_connections": 1,
}
WITHOUT = {"EHLO": EHLO.replace(b"250-PIPELINING\r\n", b"")}


@dataclass
class Turns:
    """What a server read in one turn, each time before it replied."""

    replies: Mapping[str, bytes]
    piece: int
    pause: float
    port: int = 0
    hangs_for: bytes = b"nobody"
    """At the envelope of this recipient it says nothing, not even to MAIL (RFC 2920, section 3.2, allows that)."""
    closes_after: bytes = b"nothing"
    """Having said this, it closes the connection."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    read: list[bytes] = field(default_factory=list)
    messages: int = 0

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer all that was read at once, in pieces of this many bytes."""
        writer.write(b"220 here\r\n")
        in_message = False
        while data := await reader.read(1 << 20):
            self.read.append(data)
            if self.hangs_for in data:
                await self.ended.wait()
                break
            said = b""
            for line in [b"dot"] if in_message else data.splitlines():
                command = line.decode().split(" ")[0]
                said += self.replies.get(command, REPLIES.get(command, b"502 no\r\n"))
            self.messages += in_message
            in_message = said.endswith(b"354 go on\r\n")
            for start in range(0, len(said), self.piece):
                writer.write(said[start : start + self.piece])
                await writer.drain()
                await asyncio.sleep(self.pause)
            if self.closes_after in said:
                break
        writer.close()


@asynccontextmanager
async def turns(
    replies: Mapping[str, bytes] | None = None, piece: int = 1 << 20, pause: float = 0
) -> AsyncIterator[Turns]:
    state = Turns(replies or {}, piece, pause)
    server = await asyncio.start_server(state.converse, "127.0.0.1", 0)
    state.port = server.sockets[0].getsockname()[1]
    async with server:
        yield state
        state.ended.set()


@pytest.mark.parametrize("pause", [0, 0.001])
@pytest.mark.parametrize("piece", [1, 5, 8, 9, 16, 1 << 20])
async def test_an_email_takes_two_round_trips_however_replies_arrive(
    start: Start, database: DB, piece: int, pause: float
) -> None:
    async with turns(None, piece, pause) as server:
        client = await start(smtp_port=server.port, **PLAIN)
        for user_id in (USER, OTHER):
            await create(client, user_id, "registration")
            await settled(database)
        ehlo, first, message, again, _ = server.read
        assert ehlo.startswith(b"EHLO ")
        assert [line.split(b" ")[0] for line in first.splitlines()] == [b"MAIL", b"RCPT", b"DATA"]
        assert message.endswith(b"\r\n.\r\n")
        assert again == first
        assert server.messages == 2


async def test_without_the_extension_commands_are_sent_one_at_a_time(start: Start, database: DB) -> None:
    async with turns(WITHOUT) as server:
        client = await start(smtp_port=server.port, **PLAIN)
        await create(client, key="registration")
        await settled(database)
        assert [data.split(b" ")[0].strip() for data in server.read[:4]] == [b"EHLO", b"MAIL", b"RCPT", b"DATA"]


@pytest.mark.parametrize("data", [b"354 go on\r\n", b"503 no valid recipients\r\n", b"554 no\r\n"])
async def test_a_refused_recipient_gets_no_message_even_after_a_354(start: Start, database: DB, data: bytes) -> None:
    async with turns({"RCPT": b"550 5.1.1 unknown\r\n", "DATA": data}) as server:
        client = await start(smtp_port=server.port, **PLAIN)
        await create(client, key="registration")
        await settled(database)
        assert len(server.read) == 2  # EHLO, and the envelope
    assert [letter["error"] for letter in database.dead_mail.find()] == ["RCPT: 550 5.1.1 unknown"]


async def test_a_server_out_of_step_gets_one_command_at_a_time(start: Start, database: DB) -> None:
    async with raw_server({"MAIL": b"250 OK\r\n250 OK\r\n"}) as server:
        client = await start(smtp_port=server.port, **PLAIN)
        for user_id in (USER, OTHER):
            await create(client, user_id, "registration")
        await settled(database)
    assert [recipient for recipient, _ in server.received] == ["new-user@example.com"] * 2
    assert database.dead_mail.count_documents({}) == 0


async def test_a_later_commands_reply_is_not_blamed_on_an_earlier_one(start: Start, database: DB) -> None:
    async with turns({"DATA": b"451 4.3.0 later\r\n"}) as server:
        client = await start(smtp_port=server.port, **PLAIN)
        await create(client, key="registration")

        def tried() -> None:
            assert owed(database)[0]["error"] == "DATA command: 451 4.3.0 later"

        await eventually_async(tried)
        server.replies = {}
        await settled(database)
        assert server.messages == 1


async def test_a_server_slow_about_one_recipient_delays_no_other(start: Start, database: DB) -> None:
    database.users.insert_one({"_id": ObjectId(USER), "email": "poison@example.com"})
    async with turns() as server:
        server.hangs_for = b"poison@"
        client = await start(smtp_port=server.port, **PLAIN | {"smtp_command_timeout": 0.5})
        await create(client, key="registration")

        def tried(times: int) -> None:
            items = owed(database)
            assert len(items) == 1  # what was just delivered is settled a moment later
            assert len([data for data in server.read if server.hangs_for in data]) >= times
            assert items[0]["error"] == "RCPT: no reply in time"

        await eventually_async(lambda: tried(1))
        await create(client, OTHER, "registration")
        await eventually_async(lambda: assert_messages(server, 1))
        await eventually_async(lambda: tried(2))
        asked = [data for data in server.read if server.hangs_for in data]
        assert asked[0].startswith(b"MAIL ")
        assert asked[-1].startswith(b"RCPT ")  # one command at a time shows what it ponders


def assert_messages(server: Turns, count: int) -> None:
    assert server.messages == count


async def test_replies_sent_just_before_the_connection_closes_are_read(start: Start, database: DB) -> None:
    async with turns({"DATA": b"554 5.7.1 no\r\n"}) as server:
        server.closes_after = b"554"
        client = await start(smtp_port=server.port, **PLAIN)
        await create(client, key="registration")

        def tried() -> None:
            assert owed(database)[0]["error"] == "DATA command: 554 5.7.1 no"

        await eventually_async(tried)
        server.replies = {}
        await settled(database)
