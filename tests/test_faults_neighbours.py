"""Promise I10: nobody waits for somebody else's fault. One recipient of sixteen provokes the server."""

from __future__ import annotations

import asyncio
import time

import pytest
from bson import ObjectId

from settings import Security
from tests.client import DB, OTHER, USER, assert_length, create, owe, settled, user
from tests.fixtures import Start
from tests.smtp import DROP, HANG, RawServer, raw_server
from tests.waiting import assert_pause, eventually_async

POISON = "poison@example.com"
PLAIN = {"smtp_security": Security.NONE, "smtp_command_timeout": 2.0}
GIVE_UP = {"mail_retry_minutes": (0.005, 0.01), "mail_give_up_hours": 0.03 / 60}
REACTIONS = {
    "421 at RCPT": {f"RCPT {POISON}": b"421 4.7.0 try again later\r\n"},
    "hangs up at RCPT": {f"RCPT {POISON}": DROP},
    "hangs at RCPT": {f"RCPT {POISON}": HANG},
    "421 at DATA": {f"DATA {POISON}": b"421 4.7.0 try again later\r\n"},
    "hangs up at DATA": {f"DATA {POISON}": DROP},
    "hangs at DATA": {f"DATA {POISON}": HANG},
    "421 after the dot": {f"dot {POISON}": b"421 4.7.0 try again later\r\n"},
    "hangs up after the dot": {f"dot {POISON}": DROP},
    "refuses us for this one": {f"RCPT {POISON}": b"550 5.7.1 Relaying denied\r\n"},
    "refuses for an unknown reason": {f"RCPT {POISON}": b"550 5.7.1 no\r\n"},
    "says nonsense": {f"RCPT {POISON}": b"what?\r\n"},
}


@pytest.mark.parametrize("reaction", [*REACTIONS, "hangs after the dot"])
async def test_i10_one_recipient_delays_no_other(start: Start, database: DB, reaction: str) -> None:
    """The e-mail of that recipient is the first that the process tries."""
    database.users.insert_one({"_id": ObjectId(USER), "email": POISON})
    async with raw_server(REACTIONS.get(reaction, {f"dot {POISON}": HANG})) as server:
        client = await start(
            smtp_port=server.port, **PLAIN | {"smtp_command_timeout": 60.0, "mail_retry_minutes": (60.0,)}
        )
        await create(client, key="registration")
        await eventually_async(lambda: assert_tried(server.commands))
        await owe(client, 15)
        await eventually_async(lambda: assert_length(others(server), 15))
    assert database.dead_mail.count_documents({}) == 0


def others(server: RawServer) -> list[str]:
    """Return the recipients whose e-mails have arrived, without the one that provokes the server."""
    return [to for to, _ in server.received if to != POISON]


def assert_tried(commands: list[str]) -> None:
    assert "RCPT" in commands


@pytest.mark.parametrize("reaction", [name for name in REACTIONS if "refuses us" not in name])
async def test_i10_its_email_is_tried_by_the_schedule_and_given_up(
    start: Start, database: DB, reaction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mail.stops.COPIES", 100)
    database.users.insert_one({"_id": ObjectId(USER), "email": POISON})
    async with raw_server(REACTIONS[reaction]) as server:
        client = await start(smtp_port=server.port, **PLAIN | GIVE_UP | {"smtp_command_timeout": 0.2})
        await create(client, key="registration")

        async def others_get_through_until_it_dies() -> None:
            await create(client, OTHER, "registration")
            assert database.dead_mail.count_documents({}) == 1

        await eventually_async(others_get_through_until_it_dies)
        (letter,) = database.dead_mail.find()
        tried = server.commands.count("RCPT") - len(others(server))
    assert letter["tries"] == 4
    assert tried >= 4
    assert letter["error"].startswith(("Given up: ", "Probably delivered: "))


async def test_i10_five_refusals_stop_the_line_one_success_resumes_it(start: Start, database: DB) -> None:
    tried: list[float] = []

    def refuse(command: str, _number: int, _messages: int) -> bytes | None:
        if command != "RCPT":
            return None
        tried.append(time.monotonic())
        return b"550 5.7.1 no\r\n"

    async with raw_server() as server:
        server.behave = refuse
        client = await start(smtp_port=server.port, **PLAIN)
        await owe(client, 40)
        await eventually_async(lambda: assert_pause(tried, 0.8))
        assert 5 <= len(tried) <= 20
        server.behave = None
        await settled(database, 30)
    assert len(server.received) == 40
    assert database.dead_mail.count_documents({}) == 0


@pytest.mark.ci
async def test_i10_a_late_server_gets_one_copy_and_delays_no_other(
    start: Start, database: DB, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the message, and says so long afterwards."""
    monkeypatch.setattr("mailer.LATE", 0.3)
    database.users.insert_one({"_id": ObjectId(USER), "email": POISON})
    late = (*[b"250-wait\r\n"] * 50, b"250 OK\r\n")  # a line every 0.1 s
    async with raw_server({f"dot {POISON}": late}) as server:
        client = await start(smtp_port=server.port, smtp_connections=1, **PLAIN)
        await create(client, key="registration")
        await owe(client, 10)
        await eventually_async(lambda: assert_length(others(server), 10))
        assert user(database)["notifier"]["outbox"][0]["tries"] == 0  # the late reply is still awaited
        await settled(database)
    assert [to for to, _ in server.received].count(POISON) == 1
    assert database.dead_mail.count_documents({}) == 0


@pytest.mark.parametrize("reply", [HANG, DROP, b"what?\r\n"])
async def test_i10_a_server_that_never_confirms_gets_at_most_3_copies(
    start: Start, database: DB, monkeypatch: pytest.MonkeyPatch, reply: bytes
) -> None:
    monkeypatch.setattr("mail.connection.REPLY_TIMEOUT", 0.3)
    database.users.insert_one({"_id": ObjectId(USER), "email": POISON})
    async with raw_server({f"dot {POISON}": reply}) as server:
        client = await start(smtp_port=server.port, **PLAIN)
        await create(client, key="registration")
        await eventually_async(lambda: assert_copies(server, 2))
        await asyncio.sleep(1)
        assert server.commands.count("DATA") == 2  # the third waits until somebody else's e-mail is accepted
        await create(client, OTHER, "registration")
        await settled(database)
    assert server.commands.count("DATA") == 4
    (letter,) = database.dead_mail.find()
    assert letter["error"].startswith("Probably delivered: the server had the message 3 times")


def assert_copies(server: RawServer, count: int) -> None:
    assert server.commands.count("DATA") == count
