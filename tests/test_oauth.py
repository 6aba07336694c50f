"""Tokens for the mail server: requested once, renewed before they expire; and the message if there is none."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import trustme
from aiohttp import web

from mail.login import RETRY, SOON, Tokens
from mail.replies import SMTPFault, Verdict
from settings import Settings
from tests.oauth import CLIENT, TokenServer, token_server
from tests.servers import free_port, localhost

SETTINGS = Settings(smtp_login="mailer@example.com", smtp_from="a@b.example", smtp_connect_timeout=5, **CLIENT)


@asynccontextmanager
async def tokens_of(url: str, tls: ssl.SSLContext | None = None, **changes: Any) -> AsyncIterator[Tokens]:
    tokens = Tokens(replace(SETTINGS, smtp_oauth_token_url=url, **changes), tls or ssl.create_default_context())
    yield tokens
    await tokens.close()


@pytest.fixture
async def server() -> AsyncIterator[TokenServer]:
    async with token_server() as running:
        yield running


@pytest.fixture
async def tokens(server: TokenServer) -> AsyncIterator[Tokens]:
    async with tokens_of(server.url) as made:
        yield made


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Return the clock of the tokens, in which no time passes by itself."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr("mail.login.time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


async def value(tokens: Tokens) -> str:
    return (await tokens.get()).value


async def turn() -> None:
    """Let a request to the token server come to its end."""
    await asyncio.gather(*(task for task in asyncio.all_tasks() if task.get_coro().__name__ == "_renew"))  # type: ignore[union-attr]


async def test_logins_share_a_token_and_the_request_for_it(server: TokenServer, tokens: Tokens) -> None:
    assert await asyncio.gather(*(value(tokens) for _ in range(5))) == ["token-1"] * 5
    assert await value(tokens) == "token-1"
    assert server.asked == [
        {
            "grant_type": "client_credentials",
            "client_id": "the-client",
            "client_secret": "the-secret",
            "scope": "https://mail.example.com/.default",
        }
    ]


async def test_a_new_refresh_token_replaces_the_old_one(server: TokenServer) -> None:
    given: dict[str, Any] = {
        "smtp_oauth_refresh_token": "first",
        "smtp_oauth_client_secret": None,
        "smtp_oauth_scope": None,
    }
    server.more = {"expires_in": 0, "refresh_token": "second"}
    async with tokens_of(server.url, **given) as tokens:
        assert await value(tokens) == "token-1"
        assert await value(tokens) == "token-2"
    assert server.asked == [
        {"grant_type": "refresh_token", "client_id": "the-client", "refresh_token": token}
        for token in ("first", "second")
    ]


async def test_a_token_is_renewed_while_logins_still_use_it(
    server: TokenServer, tokens: Tokens, clock: SimpleNamespace
) -> None:
    released = asyncio.Event()

    async def script(_: Mapping[str, str]) -> None:
        if len(server.asked) > 1:
            await released.wait()

    server.script = script
    assert await value(tokens) == "token-1"
    clock.now += 3599 - SOON - 1
    assert (await value(tokens), len(server.asked)) == ("token-1", 1)
    clock.now += 2
    assert [await value(tokens) for _ in range(3)] == ["token-1"] * 3  # it does not wait for the next
    released.set()
    await turn()
    assert (await value(tokens), len(server.asked)) == ("token-2", 2)


@pytest.mark.parametrize(
    ("told", "lifetime"), [(60, 60), ("120", 120), (None, 300), ("soon", 300), (-5, 300), (0.5, 300), ([], 300)]
)
async def test_a_token_is_used_for_as_long_as_the_server_says(
    server: TokenServer, tokens: Tokens, clock: SimpleNamespace, told: object, lifetime: float
) -> None:
    server.more = {} if told is None else {"expires_in": told}
    token = await tokens.get()
    assert (token.ends - clock.now, token.renew_at - clock.now) == (lifetime, lifetime / 2)


async def test_a_token_that_cannot_be_renewed_is_used_to_its_end(
    server: TokenServer, tokens: Tokens, clock: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await tokens.get()
    server.always(503, "down")
    clock.now += 3599 - 100
    for _ in range(3):
        assert await value(tokens) == "token-1"
        await turn_quietly()
    assert len(server.asked) == 2  # not at each login
    clock.now += RETRY + 1
    assert await value(tokens) == "token-1"
    await turn_quietly()
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    said = (
        "the token for the mail server ends soon, and there is no other yet: the token server gives no tokens now (503)"
    )
    assert warned == [said] * 2
    clock.now += 100
    with pytest.raises(SMTPFault, match=r"gives no tokens now \(503\)"):
        await tokens.get()
    server.script = None
    assert (await value(tokens)).startswith("token-")
    assert not any(secret in caplog.text for secret in ("the-secret", "token-"))


async def turn_quietly() -> None:
    tasks = [task for task in asyncio.all_tasks() if task.get_coro().__name__ == "_renew"]  # type: ignore[union-attr]
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_token_that_the_mail_server_refuses_is_replaced_once(server: TokenServer, tokens: Tokens) -> None:
    first = await tokens.get()
    second, same = await asyncio.gather(tokens.another(first), tokens.another(first))
    late = await tokens.another(first)
    assert (first.value, second.value, len(server.asked)) == ("token-1", "token-2", 2)
    assert same is late is second
    assert (await tokens.another(second)).value == "token-3"


async def test_closing_ends_a_request_that_hangs(server: TokenServer, tokens: Tokens) -> None:
    arrived = asyncio.Event()

    async def script(_: Mapping[str, str]) -> None:
        arrived.set()
        await asyncio.Event().wait()

    server.script = script
    waiting = asyncio.create_task(tokens.get())
    await arrived.wait()
    await tokens.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting


def microsoft(error: str, code: int) -> dict[str, object]:
    """Return an answer as Microsoft gives it."""
    words = f"AADSTS{code}: Something about ann@example.com and the-secret. Trace ID: 0"
    return {"error": error, "error_description": words, "error_codes": [code], "timestamp": "2026-11-30 12:00:00Z"}


CONFIGURED = [
    (
        400,
        microsoft("invalid_request", 90002),
        "tenant in SMTP_OAUTH_TOKEN_URL does not exist (invalid_request, AADSTS90002)",
    ),
    (400, microsoft("unauthorized_client", 700016), "the tenant has no application with SMTP_OAUTH_CLIENT_ID"),
    (401, microsoft("invalid_client", 7000215), "it must be the secret's value, not its id"),
    (401, microsoft("invalid_client", 7000222), "SMTP_OAUTH_CLIENT_SECRET has expired: make a new one"),
    (400, microsoft("invalid_scope", 70011), "SMTP_OAUTH_SCOPE is wrong or not granted"),
    (400, microsoft("invalid_request", 1002012), "SMTP_OAUTH_SCOPE is wrong or not granted"),
    (400, microsoft("interaction_required", 50079), "the token server refuses us (interaction_required, AADSTS50079)"),
    (401, {"error": "invalid_client"}, "SMTP_OAUTH_CLIENT_ID or SMTP_OAUTH_CLIENT_SECRET is wrong (invalid_client)"),
    (400, {"error": "invalid_grant"}, "SMTP_OAUTH_REFRESH_TOKEN has expired or was revoked: get a new one"),
    (400, {"error": "unauthorized_client"}, "does not give this client tokens by client_credentials"),
    (400, {"error": "unsupported_grant_type"}, "tokens by client_credentials (unsupported_grant_type)"),
    (404, "<html>Not here</html>", "the answer is not a token server's (404): check SMTP_OAUTH_TOKEN_URL"),
    (200, "<html>Please log in, Ann</html>", "the answer is not a token server's (200)"),
    (200, {"access_token": ""}, "the answer is not a token server's (200)"),
    (200, {"access_token": 5}, "the answer is not a token server's (200)"),
    (200, "[" * 100_000, "the answer is not a token server's (200)"),
    (302, "", "the answer is not a token server's (302)"),
    (400, {"error": ["ann@example.com"]}, "the answer is not a token server's (400)"),
    (400, {"error": "odd", "error_codes": [[], "x", None]}, "the token server refuses us (odd)"),
]


@pytest.mark.parametrize(("status", "answer", "words"), CONFIGURED)
async def test_a_refusal_is_one_sentence_without_the_servers_words(
    server: TokenServer, tokens: Tokens, status: int, answer: Any, words: str
) -> None:
    server.always(status, answer, **({"Location": server.url} if status == 302 else {}))
    with pytest.raises(SMTPFault) as raised:
        await tokens.get()
    assert words in f"{raised.value}"
    assert raised.value.verdict is Verdict.CONFIGURATION
    assert not any(word in f"{raised.value}" for word in ("\n", "ann", "Ann", "the-secret", "Trace"))
    assert len(server.asked) == 1  # a redirect is not followed


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_token_server_that_is_busy_or_down_is_asked_again(
    server: TokenServer, tokens: Tokens, status: int
) -> None:
    server.always(status, {"error": "server_error"})
    with pytest.raises(SMTPFault, match=rf"gives no tokens now \({status}\)") as raised:
        await tokens.get()
    assert raised.value.verdict is Verdict.CONNECTION
    server.script = None
    assert await value(tokens) == "token-2"


async def test_check_says_if_the_token_server_hangs_or_is_deaf(server: TokenServer) -> None:
    async def script(_: Mapping[str, str]) -> web.Response:
        return await asyncio.Event().wait()  # type: ignore[return-value]

    server.script = script
    for url, words in (
        (server.url, "the token server cannot be reached: no reply in time"),
        (
            f"http://127.0.0.1:{free_port()}/",
            "the token server cannot be reached: ConnectionRefusedError: Connection refused",
        ),
        (server.url.replace("http", "https"), "the token server cannot be reached: SSLError WRONG_VERSION_NUMBER"),
        (
            "https://nowhere.invalid/token",
            "the token server cannot be reached: DNS: Name or service not known",
        ),
    ):
        async with tokens_of(url, smtp_connect_timeout=0.2 if url == server.url else 5) as tokens:
            with pytest.raises(SMTPFault) as raised:
                await tokens.get()
        assert words in f"{raised.value}"
        assert raised.value.verdict is Verdict.CONNECTION
        assert not any(word in f"{raised.value}" for word in ("127.0.0.1", "nowhere"))


@pytest.mark.parametrize(
    ("from_", "to", "trusted", "words"),
    [
        (-10, 10, True, None),
        (-10, 10, False, "certificate is refused: unable to get local issuer certificate"),
        (-10, -5, True, "certificate has expired"),
        (5, 10, True, "certificate is not yet valid"),
    ],
)
async def test_the_token_servers_certificate_is_verified(
    authority: trustme.CA, from_: int, to: int, trusted: bool, words: str | None
) -> None:
    now = datetime.now(UTC)
    certificate = authority.issue_cert(
        localhost(), "127.0.0.1", not_before=now + timedelta(days=from_), not_after=now + timedelta(days=to)
    )
    theirs, ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    certificate.configure_cert(theirs)
    if trusted:
        authority.configure_trust(ours)
    async with token_server(theirs) as server, tokens_of(server.url, ours) as tokens:
        if words is None:
            assert await value(tokens) == "token-1"
        else:
            with pytest.raises(SMTPFault, match=words) as raised:
                await tokens.get()
            assert (raised.value.verdict, server.asked) == (Verdict.CONFIGURATION, [])
