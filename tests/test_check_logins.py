"""The command `check` walks through a login by OAuth 2.0, and says in a sentence what is wrong with a login."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Thread

import jwt
import pytest
import trustme

from cli.check import check_mail
from mail.login import FAULTS
from settings import Security, Settings
from tests.client import ROOT
from tests.oauth import CLIENT as BY_TOKEN
from tests.oauth import BearerServer, TokenServer, token_server
from tests.processes import run_here
from tests.servers import LOGIN, free_port, localhost, smtp_server

STEPS = ["oauth_token", "smtp_dns", "smtp_tcp", "smtp_tls", "smtp_ehlo", "smtp_login"]
Steps = Mapping[str, tuple[str, str]]


@pytest.fixture
async def tokens() -> AsyncIterator[TokenServer]:
    async with token_server() as server:
        yield server


@pytest.fixture
async def bearer(server_tls: ssl.SSLContext) -> AsyncIterator[BearerServer]:
    server = BearerServer(valid={f"token-{n}" for n in range(10)})
    async with smtp_server(server_tls, mail_server=server):
        yield server


@pytest.fixture
def by_token(ca_file: Path, tokens: TokenServer, bearer: BearerServer) -> Settings:
    """Return settings of a login by tokens, without MongoDB, which this part of `check` does not need."""
    return Settings(
        db_uri="mongodb://nowhere.invalid",
        smtp_host=localhost(),
        smtp_port=bearer.port,
        smtp_login=LOGIN,
        smtp_from="noreply@example.com",
        smtp_security=Security.TLS,
        smtp_ca_file=ca_file,
        smtp_connect_timeout=5.0,
        smtp_oauth_token_url=tokens.url,
        **BY_TOKEN,
    )


async def check(settings: Settings, to: str | None = None) -> Steps:
    return {result.check: (result.state, result.detail) for result in await check_mail(settings, to)}


def failure(steps: Steps) -> tuple[str, str]:
    """Return the only step that failed and its message. The steps after it were skipped."""
    ((name, words),) = [(name, words) for name, (state, words) in steps.items() if state == "failed"]
    names = list(steps)
    assert {state for state, _ in list(steps.values())[names.index(name) + 1 :]} <= {"skipped"}
    assert "the-secret" not in f"{steps}"
    return name, words


async def test_check_walks_through_a_login(by_token: Settings, tokens: TokenServer, bearer: BearerServer) -> None:
    steps = await check(by_token, "me@example.com")
    assert (list(steps), {state for state, _ in steps.values()}) == ([*STEPS, "smtp_test"], {"ok"})
    assert steps["oauth_token"][1] == "by client_credentials, valid for 60 min, for an unnamed scope"
    assert steps["smtp_login"][1] == "accepted"
    assert len(bearer.received) == 1
    tokens.more = {"expires_in": 1800, "scope": "https://mail.google.com/"}
    steps = await check(replace(by_token, smtp_oauth_refresh_token="r"))  # noqa: S106 - of our server
    assert steps["oauth_token"][1] == "by refresh_token, valid for 30 min, for https://mail.google.com/"


async def test_check_shows_the_roles_of_a_microsoft_token(
    by_token: Settings, tokens: TokenServer, bearer: BearerServer
) -> None:
    for claims, words in (
        ({"roles": ["SMTP.SendAsApp"]}, "'SMTP.SendAsApp'"),
        ({"aud": "x"}, "no role"),
        ({"roles": 5}, "5"),
    ):
        token = jwt.encode(claims, "k" * 32)
        tokens.more, bearer.valid = {"expires_in": 3599, "access_token": token}, {token}
        steps = await check(by_token)
        assert steps["oauth_token"] == ("ok", f"by client_credentials, valid for 60 min, for {words}")


MICROSOFT = [
    ("invalid_request", 90002, "The tenant in SMTP_OAUTH_TOKEN_URL does not exist (invalid_request, AADSTS90002)."),
    (
        "invalid_client",
        7000222,
        "SMTP_OAUTH_CLIENT_SECRET has expired: make a new one (invalid_client, AADSTS7000222).",
    ),
    ("invalid_scope", 1002012, "SMTP_OAUTH_SCOPE is wrong or not granted (invalid_scope, AADSTS1002012)."),
]


@pytest.mark.parametrize(("error", "code", "words"), MICROSOFT)
async def test_check_explains_a_refused_token_request_in_a_sentence(
    by_token: Settings, tokens: TokenServer, bearer: BearerServer, error: str, code: int, words: str
) -> None:
    tokens.always(400, {"error": error, "error_codes": [code], "error_description": "of the-secret"})
    steps = await check(by_token)
    assert failure(steps) == ("oauth_token", words)
    assert bearer.connections == 0


def test_the_page_about_logins_explains_every_fault() -> None:
    page = (ROOT / "docs/logins.md").read_text()
    for words in FAULTS:
        assert f"| {words.partition(':')[0].format(grant='client_credentials')} |" in page


async def test_check_says_if_the_token_server_cannot_be_reached(by_token: Settings) -> None:
    steps = await check(replace(by_token, smtp_oauth_token_url=f"http://127.0.0.1:{free_port()}/token"))
    assert failure(steps) == (
        "oauth_token",
        "The token server cannot be reached: ConnectionRefusedError: Connection refused.",
    )


@pytest.mark.parametrize("challenges", [True, False])
async def test_check_says_if_the_mail_server_refuses_the_token(
    by_token: Settings, bearer: BearerServer, challenges: bool
) -> None:
    bearer.valid, bearer.challenges = set(), challenges
    name, words = failure(await check(by_token))
    assert (name, words.startswith("The server refuses the token for SMTP_LOGIN: 535 5.7.8 ")) == ("smtp_login", True)
    assert ('"scope": "https://mail.example.com/.default"' in words) == challenges


@pytest.fixture
def demanding(authority: trustme.CA) -> Iterator[int]:
    """Listen on a port where only clients with a certificate are welcome, as OpenSSL itself tells them."""
    theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(localhost()).configure_cert(theirs)
    theirs.verify_mode = ssl.CERT_REQUIRED

    def accept() -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            theirs.wrap_socket(connection, server_side=True).close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = Thread(target=accept)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(10)


async def test_check_says_if_a_client_certificate_is_needed(by_token: Settings, demanding: int) -> None:
    plain = replace(by_token, smtp_port=demanding, smtp_oauth_token_url=None, smtp_login=None)
    assert failure(await check(plain)) == ("smtp_tls", "the server asks for a client certificate: SMTP_CLIENT_CERT.")


@pytest.mark.ci
def test_the_steps_of_a_token_are_shown_where_one_is_used(tmp_path: Path) -> None:
    variables = {
        "DB_URI": f"mongodb://127.0.0.1:{free_port()}/x",
        "EMAIL": "a@b.example",
        "SMTP_HOST": "127.0.0.1",
        "SMTP_LOGIN": LOGIN,
        "SMTP_OAUTH_CLIENT_ID": "the-client",
        "SMTP_OAUTH_CLIENT_SECRET": "the-secret",
        "SMTP_OAUTH_TOKEN_URL": f"http://127.0.0.1:{free_port()}/token",
    }
    done = run_here("check", "--json", cwd=tmp_path, **variables)
    steps = [step["check"] for step in json.loads(done.stdout)["checks"]]
    assert (done.returncode, steps[-6:]) == (1, STEPS)
