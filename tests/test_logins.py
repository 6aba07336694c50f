"""Logins as mail servers want them: tokens, mechanisms, client certificates, and the names that the service gives."""

from __future__ import annotations

import logging
import ssl
from collections.abc import AsyncIterator
from dataclasses import replace
from email import message_from_bytes, policy
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiosmtplib import SMTPAuthenticationError, SMTPException
from bson import ObjectId

from mail.connection import Opener
from mail.replies import SMTPFault
from settings import Security, Settings
from tests.client import DB, OTHER, USER, create, owed, settled
from tests.fixtures import Start
from tests.oauth import CHALLENGE, CLIENT, BearerServer, TokenServer, token_server
from tests.servers import LOGIN, PASSWORD, localhost, smtp_server
from tests.smtp import RawServer, raw_server
from tests.waiting import eventually_async

PLAIN = Settings(
    smtp_host="127.0.0.1",
    smtp_login=LOGIN,
    smtp_password=PASSWORD,
    smtp_from="Notifier <noreply@example.com>",
    smtp_security=Security.NONE,
    smtp_connect_timeout=5,
)


async def log_in(server: RawServer, **changes: Any) -> list[str]:
    """Log in; return the commands of it."""
    opener = Opener(replace(PLAIN, smtp_port=server.port, **changes))
    try:
        await (await opener.open()).quit()
    finally:
        await opener.close()
    return [command for command in server.commands if command not in {"EHLO", "QUIT"}]


def offering(*mechanisms: str) -> bytes:
    return f"250-here\r\n250 AUTH {' '.join(mechanisms)}\r\n".encode()


# --- mechanisms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asks", [b"VXNlcm5hbWU6", b"dXNlciBuYW1lAA==", b"TG9naW46", b"Login:", b""])
async def test_login_gives_name_and_password_when_asked(asks: bytes) -> None:
    """Some servers refuse a name in the command, or ignore it and ask again, in any words."""
    async with raw_server({"EHLO": offering("LOGIN"), "AUTH LOGIN alone": b"334 " + asks + b"\r\n"}) as server:
        assert await log_in(server) == ["AUTH LOGIN alone"]
    assert server.passwords == [LOGIN, PASSWORD]


@pytest.mark.parametrize(
    ("reply", "commands"),
    [
        (b"334 \r\n", ["AUTH PLAIN"]),
        (b"334\r\n", ["AUTH PLAIN"]),
        (b"500 5.5.6 line too long\r\n", ["AUTH PLAIN", "AUTH PLAIN alone"]),
        (b"501 5.5.4 syntax\r\n", ["AUTH PLAIN", "AUTH PLAIN alone"]),
    ],
)
async def test_an_answer_may_have_to_follow_its_command(reply: bytes, commands: list[str]) -> None:
    async with raw_server({"AUTH PLAIN": reply, "AUTH PLAIN alone": b"334 \r\n"}) as server:
        assert await log_in(server) == commands
    assert server.passwords == [f"\0{LOGIN}\0{PASSWORD}"]


async def test_a_password_that_login_refuses_is_not_tried_again() -> None:
    async with raw_server({"EHLO": offering("LOGIN", "CRAM-MD5"), "password": b"535 5.7.8 no\r\n"}) as server:
        with pytest.raises(SMTPAuthenticationError):
            await log_in(server)
        assert server.passwords == [LOGIN, PASSWORD]


@pytest.mark.parametrize("reply", [b"534 5.7.9 too weak\r\n", b"538 5.7.11 needs encryption\r\n"])
async def test_a_mechanism_that_is_too_weak_is_followed_by_the_next(reply: bytes) -> None:
    async with raw_server({"AUTH PLAIN": reply}) as server:
        assert await log_in(server) == ["AUTH PLAIN", "AUTH LOGIN alone"]


# --- tokens -----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def tokens() -> AsyncIterator[TokenServer]:
    async with token_server() as server:
        yield server


LOCAL: dict[str, Any] = {"smtp_host": "127.0.0.1", "smtp_security": Security.NONE}
BEARER = "234567890" * 300
"""As long as Microsoft's."""


async def test_a_token_is_presented_in_the_form_of_each_mechanism(tokens: TokenServer) -> None:
    by_token = CLIENT | {"smtp_oauth_token_url": tokens.url, "smtp_login": "a=b,c@example.com"}
    tokens.more = {"access_token": BEARER, "expires_in": "3600"}
    for offered, first in (
        (["LOGIN", "PLAIN", "OAUTHBEARER", "XOAUTH2"], f"user=a=b,c@example.com\x01auth=Bearer {BEARER}\x01\x01"),
        (["PLAIN", "OAUTHBEARER"], f"n,a=a=3Db=2Cc@example.com,\x01auth=Bearer {BEARER}\x01\x01"),
    ):
        async with raw_server({"EHLO": offering(*offered)}) as server:
            await log_in(server, **by_token)
            assert server.presented == [first]
            server.replies = {"AUTH XOAUTH2": b"504 not now\r\n", **server.replies}
            assert (await log_in(server, **by_token))[-1] == "AUTH OAUTHBEARER"
    async with raw_server({"EHLO": offering("PLAIN")}) as server:
        with pytest.raises(SMTPFault, match=r"offers no AUTH that we know \(XOAUTH2, OAUTHBEARER\)"):
            await log_in(server, **by_token)


async def test_a_login_presents_a_second_token_and_no_third(tokens: TokenServer) -> None:
    by_token = CLIENT | {"smtp_oauth_token_url": tokens.url}
    async with raw_server({"EHLO": offering("XOAUTH2"), "AUTH XOAUTH2": b"535 5.7.8 no\r\n"}) as server:
        with pytest.raises(SMTPAuthenticationError):
            await log_in(server, **by_token)
    assert ([command for command in server.commands if "AUTH" in command], len(tokens.asked)) == (
        ["AUTH XOAUTH2"] * 2,
        2,
    )


@pytest.fixture
async def bearer(server_tls: ssl.SSLContext) -> AsyncIterator[BearerServer]:
    """Run a mail server over TLS that takes a token."""
    server = BearerServer()
    async with smtp_server(server_tls, mail_server=server):
        yield server


async def test_emails_survive_the_end_and_the_refusal_of_tokens(
    start: Start, database: DB, tokens: TokenServer, bearer: BearerServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A token ends within the run, and another is revoked."""
    caplog.set_level(logging.DEBUG)
    tokens.more = {"expires_in": 0}
    client = await start(**CLIENT, smtp_oauth_token_url=tokens.url, smtp_port=bearer.port)
    bearer.valid = {"token-1", "token-2", "token-4"}
    for n, user_id in enumerate([USER, OTHER, USER], 1):
        await create(client, user_id, "registration")
        await settled(database)
        assert len(bearer.received) == n
        bearer.hang_up()
    assert [token for _, _, token in bearer.presented] == ["token-1", "token-2", "token-3", "token-4"]
    assert {(mechanism, login) for mechanism, login, _ in bearer.presented} == {("XOAUTH2", LOGIN)}
    ours = [record for record in caplog.records if record.name.startswith("notifier")]
    assert not [record for record in ours if record.levelno >= logging.WARNING]
    assert not any(secret in caplog.text for secret in ("token-", "the-secret"))


@pytest.mark.parametrize("challenges", [True, False], ids=["as Gmail", "as Exchange"])
async def test_a_token_that_is_never_accepted_kills_no_email(
    start: Start,
    database: DB,
    tokens: TokenServer,
    bearer: BearerServer,
    caplog: pytest.LogCaptureFixture,
    challenges: bool,
) -> None:
    bearer.valid, bearer.challenges = set(), challenges
    client = await start(**CLIENT, smtp_oauth_token_url=tokens.url, smtp_port=bearer.port)
    await create(client, key="registration")

    def failed() -> None:
        assert owed(database)[0]["error"]
        assert any("535" in record.getMessage() for record in caplog.records if record.levelname == "ERROR")

    await eventually_async(failed)
    (email,) = owed(database)
    assert (email["tries"], database.dead_mail.count_documents({})) == (0, 0)
    assert "535 5.7.8 Username and token not accepted" in email["error"]
    assert (str(CHALLENGE["scope"]) in email["error"]) == challenges
    assert len(tokens.asked) <= len(bearer.presented)
    bearer.valid = {f"token-{n}" for n in range(20)}
    await settled(database)


async def test_a_token_server_that_is_down_kills_no_email(
    start: Start, database: DB, tokens: TokenServer, bearer: BearerServer
) -> None:
    tokens.always(503, "")
    client = await start(**CLIENT, smtp_oauth_token_url=tokens.url, smtp_port=bearer.port)
    await create(client, key="registration")

    def failed() -> None:
        assert owed(database)[0]["error"] == "the token server gives no tokens now (503)"

    await eventually_async(failed)
    assert (owed(database)[0]["tries"], bearer.connections) == (0, 0)
    tokens.script, bearer.valid = None, {f"token-{n}" for n in range(20)}
    await settled(database)


# --- client certificates ----------------------------------------------------------------------------------------------


async def test_a_server_may_ask_for_a_client_certificate(
    settings: Settings, authority: trustme.CA, tmp_path: Path, start: Start, database: DB
) -> None:
    theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(localhost()).configure_cert(theirs)
    authority.configure_trust(theirs)
    theirs.verify_mode = ssl.CERT_REQUIRED
    pair = tmp_path / "client.pem"
    authority.issue_cert("mailer@example.com").private_key_and_cert_chain_pem.write_to_path(str(pair))
    nobody: dict[str, Any] = {"smtp_login": None, "smtp_password": None}
    async with smtp_server(theirs, auth=False) as server:
        client = await start(smtp_port=server.port, smtp_client_cert=pair, **nobody)
        await create(client, key="registration")
        await settled(database)
        assert len(server.received) == 1
        opener = Opener(replace(settings, smtp_port=server.port, **nobody))
        with pytest.raises(SMTPException):
            await opener.open()


async def test_a_client_certificate_needs_tls(tmp_path: Path, authority: trustme.CA) -> None:
    pair = tmp_path / "client.pem"
    authority.issue_cert("mailer@example.com").private_key_and_cert_chain_pem.write_to_path(str(pair))
    async with raw_server() as server:
        with pytest.raises(SMTPFault, match="offers no STARTTLS"):
            await log_in(server, smtp_security=Security.AUTO, smtp_client_cert=pair, smtp_login=None)


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("helo", "said"),
    [
        (None, "example.com"),
        ("mail.example.net", "mail.example.net"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("[192.0.2.1]", "[192.0.2.1]"),
        ("[IPv6:2001:db8::1]", "[IPv6:2001:db8::1]"),
    ],
)
async def test_the_service_greets_with_its_name(helo: str | None, said: str) -> None:
    async with raw_server() as server:
        await log_in(server, smtp_helo=helo)
    assert server.helo == said


async def test_answers_and_bounces_go_where_they_shall(start: Start, database: DB) -> None:
    long = "x" * 100 + "@example.com"
    database.users.insert_one({"_id": ObjectId(USER), "email": long})
    async with raw_server() as server:
        client = await start(
            smtp_port=server.port,
            smtp_from="Acme, Inc. <noreply@example.com>",
            smtp_reply_to="Acme (EU): Support <support@example.com>",
            smtp_envelope_from=" bounces@bücher.example",
            **LOCAL,
        )
        await create(client, key="registration")
        await settled(database)
    ((recipient, message),) = server.received
    headers = message_from_bytes(message, policy=policy.default)
    assert (recipient, server.sender) == (long, "bounces@xn--bcher-kva.example")
    assert headers["From"].addresses[0].display_name == "Acme, Inc."
    assert headers["Reply-To"].addresses[0].display_name == "Acme (EU): Support"
    assert headers["Message-ID"].endswith("@example.com>")
    assert headers["X-Auto-Response-Suppress"] == "DR, RN, NRN, OOF, AutoReply"


async def test_a_sender_beyond_ascii_says_so_wherever_it_stands(start: Start, database: DB) -> None:
    for n, changes in enumerate(
        [
            {"smtp_from": "jörg@example.com"},
            {"smtp_reply_to": "Jörg <jörg@example.com>"},
            {"smtp_envelope_from": "jörg@example.com"},
        ]
    ):
        async with raw_server() as server:
            client = await start(smtp_port=server.port, **LOCAL, **changes)
            await create(client, f"{n:024x}", key="registration")
            await settled(database)
        assert server.options == ["SMTPUTF8"]
