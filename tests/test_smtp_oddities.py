"""Real servers: replies that RFC 5321 allows, and replies that it forbids but servers send."""

from __future__ import annotations

import pytest
from bson import ObjectId

from settings import Security
from tests.client import DB, OTHER, USER, assert_length, create, owed, settled
from tests.fixtures import Start
from tests.smtp import DROP, EHLO, raw_server
from tests.waiting import eventually_async

PLAIN = {"smtp_security": Security.NONE, "smtp_command_timeout": 0.5, "smtp_connect_timeout": 2}


@pytest.mark.parametrize(
    "replies",
    [
        pytest.param({"RCPT": b"252 cannot verify, but will try\r\n"}, id="252 at RCPT"),
        pytest.param({"RCPT": b"251 will forward\r\n"}, id="251 at RCPT"),
        pytest.param({"MAIL": b"255 fine\r\n", "RCPT": b"299 fine\r\n"}, id="other 2xx"),
        pytest.param({"dot": b"251 taken\r\n"}, id="251 after the dot"),
        pytest.param({"DATA": b"354\r\n", "dot": b"250\r\n"}, id="no text"),
        pytest.param({"DATA": b"354-go\r\n354 on\r\n", "dot": b"250-taken\r\n250-as\r\n250 1\r\n"}, id="several lines"),
        pytest.param({"dot": (b"25", b"0-taken\r", b"\n250 O", b"K\r\n")}, id="a reply in pieces"),
        pytest.param({"dot": b"250 angenommen f\xfcr Sie \xff\r\n"}, id="not UTF-8"),
        pytest.param({"MAIL": b"250 OK\n", "dot": b"250 OK\n"}, id="bare line feeds"),
        pytest.param({"dot": b"250 " + b"x" * 4000 + b"\r\n"}, id="a long line"),
        pytest.param({"greeting": b"220-here\r\n220-and there\r\n220 now\r\n"}, id="a greeting of several lines"),
        pytest.param({"greeting": b"220 here\r\n\r\n"}, id="an empty line behind the greeting"),
        pytest.param({"greeting": (b"220 here\r\n", b"\r\n")}, id="an empty line a little after the greeting"),
        pytest.param({"EHLO": EHLO + b"\r\n", "MAIL": b"250 OK\r\n\r\n"}, id="empty lines behind replies"),
        pytest.param({"MAIL": b"\r\n250 OK\r\n"}, id="an empty line before a reply"),
        pytest.param({"RCPT": b"250 OK\r\n250 OK\r\n"}, id="a reply twice"),
        pytest.param({"AUTH PLAIN": b"504 no such mechanism\r\n"}, id="PLAIN is refused, LOGIN works"),
        pytest.param({"AUTH PLAIN": b"535 wrong\r\n", "EHLO": b"250-here\r\n250 AUTH=LOGIN\r\n"}, id="AUTH=LOGIN"),
        pytest.param({"EHLO": b"250-here\r\n250-auth plain\r\n250 Size\r\n"}, id="lower case"),
    ],
)
async def test_a_server_may_be_odd(start: Start, database: DB, replies: dict[str, bytes | tuple[bytes, ...]]) -> None:
    async with raw_server(replies) as server:
        client = await start(smtp_port=server.port, **PLAIN)
        await create(client, key="registration")
        await create(client, OTHER, "registration")
        await settled(database)
    assert len(server.received) == 2
    assert database.dead_mail.count_documents({}) == 0


@pytest.mark.parametrize("reply", [b"500 what\r\n", b"502 no\r\n", b"504 no\r\n"])
async def test_a_server_without_ehlo_is_greeted_with_helo(start: Start, database: DB, reply: bytes) -> None:
    async with raw_server({"EHLO": reply}) as server:
        client = await start(smtp_port=server.port, smtp_login=None, smtp_password=None, **PLAIN)
        await create(client, key="registration")
        await settled(database)
    assert server.commands[:3] == ["EHLO", "HELO", "MAIL"]
    assert len(server.received) == 1


async def test_a_refused_password_is_not_tried_with_another_mechanism(start: Start, database: DB) -> None:
    async with raw_server({"AUTH PLAIN": b"535 5.7.8 wrong\r\n"}) as server:
        client = await start(smtp_port=server.port, **PLAIN)
        await create(client, key="registration")
        await attempted(database)
    assert "AUTH LOGIN alone" not in server.commands


@pytest.mark.parametrize(
    "replies",
    [
        pytest.param({"DATA": b"250 OK\r\n"}, id="DATA is answered with 250"),
        pytest.param({"RCPT": (b"250 OK\r\n", b"250 OK\r\n")}, id="a second reply to RCPT comes late"),
        pytest.param({"DATA": b"451 later\r\n"}, id="451 at DATA"),
        pytest.param({"DATA": DROP}, id="drop at DATA"),
    ],
)
async def test_a_message_not_handed_over_is_neither_sent_nor_ambiguous(
    start: Start, database: DB, replies: dict[str, bytes | tuple[bytes, ...]]
) -> None:
    """A reply that belongs to another command must not make an e-mail disappear."""
    async with raw_server(replies) as server:
        client = await start(smtp_port=server.port, smtp_connections=1, **PLAIN)
        await create(client, key="registration")
        await attempted(database)
        (item,) = owed(database)
        assert "copies" not in item
        assert server.received == []
        server.replies = {}
        await settled(database)
    assert len(server.received) == 1


async def test_a_message_travels_as_it_is(start: Start, database: DB) -> None:
    """Its lines end in CRLF, and no line is taken for the final dot."""
    async with raw_server() as server:
        client = await start(smtp_port=server.port, **PLAIN)
        await create(client, key="registration")
        await settled(database)
    ((_, message),) = server.received
    assert b"\n" not in message.replace(b"\r\n", b"")
    assert message.endswith(b"registration\r\n")


async def test_an_address_needing_smtputf8_says_so_and_harms_no_other(start: Start, database: DB) -> None:
    """One recipient needs the option at MAIL, so its refusal concerns only that recipient."""
    database.users.insert_one({"_id": ObjectId(USER), "email": "संपर्क@डाटामेल.भारत"})
    async with raw_server() as server:
        client = await start(smtp_port=server.port, **PLAIN)
        await create(client, key="registration")
        await settled(database)
        ((recipient, message),) = server.received
        assert recipient == "संपर्क@xn--c2bd4bq1db8d.xn--h2brj9c"
        assert f"To: {recipient}\r\n".encode() in message
        server.replies = {"MAIL SMTPUTF8": b"555 no such parameter\r\n"}
        await create(client, key="registration")
        await attempted(database)
        assert all("tried" in item for item in owed(database))
        await create(client, OTHER, "registration")
        await eventually_async(lambda: assert_length(server.received, 2), 2)
        server.replies = {}
        await settled(database)
    assert database.dead_mail.count_documents({}) == 0
    assert len(server.received) == 3


async def attempted(database: DB) -> None:
    """Wait until an attempt has failed. The e-mail must still be owed."""

    def failed() -> None:
        assert any(item["error"] for item in owed(database))

    await eventually_async(failed)
