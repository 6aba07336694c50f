"""The configuration: where it comes from, and how its faults are reported."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from cli.environment import SettingsError
from settings import Security, Settings
from tests.client import ROOT
from tests.processes import COMPLETE, VARIABLES, run_here

BAD_HOSTS = [
    "smtp\n.example.com",
    "x\ny",
    "a..b",
    ".x",
    "a" * 64 + ".x",
    "ü" * 60,
    "-a",
    "a b",
    "[::1]",
    "x:1",
    "x/y",
    "a\udcff",
]
OAUTH = {
    "SMTP_OAUTH_TOKEN_URL": "https://login.example.com/tenant/oauth2/v2.0/token",
    "SMTP_OAUTH_CLIENT_ID": "x",
    "SMTP_OAUTH_CLIENT_SECRET": "hunter2",
}
BAD_TOKEN_URLS = [
    "login.example.com/token",
    "http://login.example.com/token",
    "http://localhost.example.com/token",
    "http://127.0.0.1.example.com/token",
    "http://[::1].example.com/token",
    "https://me:hunter2@x.example/token",
    "https://x.example/token#a",
    "https://x.example/to ken",
    "https://",
]
BAD_URLS = [
    "notifications.example.com",
    "ftp://x.example",
    "https://",
    "https:///u",
    "https://me:hunter2@x.example",
    "https://x.example?a=b",
    "https://x.example/#a",
    "https://x.example//",
    "https://x.example/a b",
    "https://x.example/<a>",
    "https://x.example:99999",
    "https://bücher.example",
    "https://a..b",
    "https://[::1",
    "https://x.example/" + "a" * 200,
]


def test_the_variables_of_the_specification_are_enough(environment: Callable[..., Settings]) -> None:
    env_file = "".join(f"{name}={value}\n" for name, value in COMPLETE.items())
    env_file += "PORT=80\nSMTP_PORT=465\nSMTP_LOGIN=me@example.com\nSMTP_PASSWORD='p w#\"${HOME}'\n"
    settings = environment(env_file)
    assert not settings.local
    assert (settings.host, settings.port, settings.smtp_port) == ("0.0.0.0", 80, 465)
    assert (settings.smtp_from, settings.smtp_password) == ("me@example.com", 'p w#"${HOME}')
    assert settings.security is Security.TLS
    assert "p w#" not in repr(settings)


def test_the_environment_beats_the_file_and_empty_means_unset(environment: Callable[..., Settings]) -> None:
    settings = environment("PORT=1\nEMAIL=file@example.com", **COMPLETE, PORT="2", SMTP_LOGIN="", SMTP_PORT=" ")
    assert (settings.port, settings.email) == (2, "test@example.com")
    assert (settings.smtp_login, settings.smtp_port) == (None, 465)
    assert environment(PORT="", env_file="PORT=3").port == 8080  # so that one run can do without a line of the file
    assert replace(settings, smtp_port=587).security is Security.AUTO
    assert settings.smtp_from == "test@example.com"


def test_without_any_configuration_it_is_a_local_run_on_loopback(environment: Callable[..., Settings]) -> None:
    settings = environment()
    assert settings.local
    assert (settings.host, settings.port) == ("127.0.0.1", 8080)


@pytest.mark.parametrize(
    ("variables", "faults"),
    [
        ({"DB_URI": COMPLETE["DB_URI"]}, {"EMAIL", "SMTP_HOST"}),
        ({"SMTP_HOST": "x"}, {"EMAIL", "DB_URI"}),
        ({**COMPLETE, "DB_URI": "postgres://user:hunter2@x"}, {"DB_URI"}),
        ({**COMPLETE, "DB_URI": "mongodb://user:hunter2@/@x"}, {"DB_URI"}),
        ({**COMPLETE, "PORT": "http"}, {"PORT"}),
        ({**COMPLETE, "PORT": "65536"}, {"PORT"}),
        ({**COMPLETE, "DB_URI": "mongodb://x/?tls=true&tlsCAFile=/nothing"}, {"DB_URI"}),
        ({**COMPLETE, "EMAIL": "nobody"}, {"EMAIL"}),
        ({**COMPLETE, "SMTP_LOGIN": "x"}, {"SMTP_PASSWORD"}),
        ({**COMPLETE, "SMTP_PASSWORD": "hunter2"}, {"SMTP_LOGIN"}),
        ({**COMPLETE, **OAUTH}, {"SMTP_LOGIN"}),
        ({**COMPLETE, **OAUTH, "SMTP_LOGIN": "x", "SMTP_PASSWORD": "hunter2"}, {"SMTP_PASSWORD"}),
        ({**COMPLETE, **OAUTH, "SMTP_PASSWORD": "hunter2"}, {"SMTP_LOGIN", "SMTP_PASSWORD"}),
        (
            {**COMPLETE, "SMTP_OAUTH_SCOPE": "x"},
            {"SMTP_LOGIN", "SMTP_OAUTH_TOKEN_URL", "SMTP_OAUTH_CLIENT_ID", "SMTP_OAUTH_CLIENT_SECRET"},
        ),
        ({**COMPLETE, **OAUTH, "SMTP_LOGIN": "x", "SMTP_OAUTH_CLIENT_ID": ""}, {"SMTP_OAUTH_CLIENT_ID"}),
        (
            {**COMPLETE, "SMTP_LOGIN": "x", "SMTP_OAUTH_CLIENT_ID": "x", "SMTP_OAUTH_REFRESH_TOKEN": "x"},
            {"SMTP_OAUTH_TOKEN_URL"},
        ),
        (
            {**COMPLETE, **OAUTH, "SMTP_LOGIN": "x", "SMTP_OAUTH_CLIENT_SECRET": "hunter2\n2"},
            {"SMTP_OAUTH_CLIENT_SECRET"},
        ),
        *(
            ({**COMPLETE, **OAUTH, "SMTP_LOGIN": "x", "SMTP_OAUTH_TOKEN_URL": url}, {"SMTP_OAUTH_TOKEN_URL"})
            for url in BAD_TOKEN_URLS
        ),
        ({**COMPLETE, "SMTP_CLIENT_CERT": "/nothing/here.pem"}, {"SMTP_CLIENT_CERT"}),
        ({**COMPLETE, "SMTP_CLIENT_CERT": __file__, "SMTP_SECURITY": "none"}, {"SMTP_CLIENT_CERT", "SMTP_SECURITY"}),
        ({**COMPLETE, "SMTP_HELO": "a b"}, {"SMTP_HELO"}),
        ({**COMPLETE, "SMTP_HELO": "x@y.example"}, {"SMTP_HELO"}),
        ({**COMPLETE, "SMTP_HELO": "[a.example]"}, {"SMTP_HELO"}),
        ({**COMPLETE, "SMTP_REPLY_TO": "Ann"}, {"SMTP_REPLY_TO"}),
        ({**COMPLETE, "SMTP_ENVELOPE_FROM": "Bounces <a@b.example>"}, {"SMTP_ENVELOPE_FROM"}),
        ({**COMPLETE, "SMTP_FROM": "Ann <a@b.example>, Bob <c@d.example>"}, {"SMTP_FROM"}),
        ({**COMPLETE, "SMTP_FROM": "a@b.example, c@d.example"}, {"SMTP_FROM"}),
        ({**COMPLETE, "SMTP_FROM": "Eve\n<a@b.example>"}, {"SMTP_FROM"}),
        ({**COMPLETE, "SMTP_SECURITY": "ssl"}, {"SMTP_SECURITY"}),
        ({**COMPLETE, "SMTP_CA_FILE": "/nothing/here.pem"}, {"SMTP_CA_FILE"}),
        ({**COMPLETE, "SMTP_CA_FILE": __file__}, {"SMTP_CA_FILE"}),
        ({**COMPLETE, "NOTIFICATIONS_LIMIT": "0"}, {"NOTIFICATIONS_LIMIT"}),
        ({**COMPLETE, "MAIL_RETRY_MINUTES": "1,x"}, {"MAIL_RETRY_MINUTES"}),
        ({**COMPLETE, "MAIL_RETRY_MINUTES": "1,-1"}, {"MAIL_RETRY_MINUTES"}),
        ({**COMPLETE, "SMTP_RATE": "nan"}, {"SMTP_RATE"}),
        ({**COMPLETE, "LOG_LEVEL": "loud"}, {"LOG_LEVEL"}),
        ({**COMPLETE, "API_KEYS": "hunter2"}, {"API_KEYS"}),
        ({**COMPLETE, "API_KEYS": "x" * 32 + ","}, {"API_KEYS"}),
        ({**COMPLETE, "USER_TOKEN_SECRETS": "x" * 32}, {"API_KEYS"}),
        ({**COMPLETE, "API_KEYS": "x" * 32, "USER_TOKEN_SECRETS": "hunter2"}, {"USER_TOKEN_SECRETS"}),
        ({**COMPLETE, "PUBLIC_URL": "https://x.example"}, {"UNSUBSCRIBE_SECRETS"}),
        ({**COMPLETE, "UNSUBSCRIBE_SECRETS": "x" * 32}, {"PUBLIC_URL"}),
        ({"UNSUBSCRIBE_SECRETS": "x" * 32}, {"PUBLIC_URL"}),  # of a local run
        ({**COMPLETE, "PUBLIC_URL": "https://x.example", "UNSUBSCRIBE_SECRETS": "hunter2"}, {"UNSUBSCRIBE_SECRETS"}),
        *(({**COMPLETE, "API_KEYS": "x" * 32, "PUBLIC_URL": url}, {"PUBLIC_URL"}) for url in BAD_URLS),
        ({**COMPLETE, "CORS_ORIGINS": "*"}, {"CORS_ORIGINS"}),
        *(({**COMPLETE, "SMTP_HOST": host}, {"SMTP_HOST"}) for host in BAD_HOSTS),
        *(({**COMPLETE, "HOST": host}, {"HOST"}) for host in BAD_HOSTS),
        ({**COMPLETE, "SMTP_LOGIN": "x", "SMTP_PASSWORD": "hunter2\udcff"}, {"SMTP_PASSWORD"}),
        ({**COMPLETE, "SMTP_LOGIN": "x\udcff", "SMTP_PASSWORD": "hunter2"}, {"SMTP_LOGIN"}),
        ({**COMPLETE, "SMTP_LOGIN": "x", "SMTP_PASSWORD": "hunter2\nx"}, {"SMTP_PASSWORD"}),
        ({**COMPLETE, "API_KEYS": "x" * 32, "USER_TOKEN_SECRETS": "s" * 32 + "\udcff"}, {"USER_TOKEN_SECRETS"}),
        ({**COMPLETE, "API_KEYS": "x" * 32 + ", " + " " * 40}, {"API_KEYS"}),
        (
            {"DB_URI": "x", "PORT": "x", "SMTP_LOGIN": "x", "SMTP_SECURITY": "x"},
            {"DB_URI", "PORT", "SMTP_PASSWORD", "SMTP_SECURITY", "EMAIL", "SMTP_HOST"},
        ),
    ],
)
def test_every_fault_of_the_configuration_is_named_at_once(
    environment: Callable[..., Settings], variables: dict[str, str], faults: set[str]
) -> None:
    with pytest.raises(SettingsError) as raised:
        environment(**variables)
    assert raised.value.faults.keys() == faults
    assert all(name in str(raised.value) for name in faults)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    "host",
    ["x", "smtp.example.com", "smtp.example.com.", "my_mail-1", "127.0.0.1", "::1", "fe80::1%eth0", "münchen.example"],
)
def test_a_host_is_a_name_or_an_address(environment: Callable[..., Settings], host: str) -> None:
    settings = environment(**COMPLETE | {"SMTP_HOST": host, "HOST": host})
    assert (settings.smtp_host, settings.host) == (host, host)


@pytest.mark.parametrize(
    "url", ["https://x.example", "http://127.0.0.1:8080/", "https://[::1]:1/a", "HTTPS://X.example/a-b/c_d~%20/"]
)
def test_an_address_for_browsers_may_have_a_port_and_a_path(environment: Callable[..., Settings], url: str) -> None:
    secrets = {"UNSUBSCRIBE_SECRETS": "a" * 32 + ", " + "b" * 32}
    settings = environment(**COMPLETE, PUBLIC_URL=url, **secrets)
    assert (settings.public_url, settings.link_secrets) == (url, ["a" * 32, "b" * 32])
    assert "aaa" not in repr(settings)
    assert environment(**COMPLETE, PUBLIC_URL=url, UNSUBSCRIBE_SECRETS="", API_KEYS="k" * 32).link_secrets == ["k" * 32]


@pytest.mark.parametrize(
    "url", ["https://oauth2.googleapis.com/token", "http://localhost:1/t?a=b", "http://127.0.0.1:80", "http://[::1]/t"]
)
def test_a_login_by_oauth_needs_no_password_and_shows_no_secret(environment: Callable[..., Settings], url: str) -> None:
    given = {**COMPLETE, **OAUTH, "SMTP_LOGIN": "me@example.com", "SMTP_OAUTH_TOKEN_URL": url}
    settings = environment(**given, SMTP_OAUTH_REFRESH_TOKEN="hunter3")  # noqa: S106 - to look for
    assert (settings.smtp_from, settings.smtp_oauth_token_url) == ("me@example.com", url)
    assert "hunter" not in repr(settings)


def test_a_client_certificate_needs_its_key_without_a_passphrase(
    environment: Callable[..., Settings], tmp_path: Path
) -> None:
    pair, other = (trustme.CA().issue_cert("me@example.com") for _ in range(2))
    chain, path = pair.cert_chain_pems[0].bytes(), tmp_path / "pair.pem"
    key = load_pem_private_key(pair.private_key_pem.bytes(), None)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    for content in (chain, pair.private_key_pem.bytes(), other.private_key_pem.bytes() + chain, locked + chain, b""):
        path.write_bytes(content)
        with pytest.raises(
            SettingsError, match="SMTP_CLIENT_CERT: Cannot be read as a PEM file with a certificate and its"
        ):
            environment(**COMPLETE, SMTP_CLIENT_CERT=f"{path}")
    path.write_bytes(pair.private_key_pem.bytes() + chain)
    assert environment(**COMPLETE, SMTP_CLIENT_CERT=f"{path}").smtp_client_cert == path


def test_a_password_may_have_any_printable_character(environment: Callable[..., Settings]) -> None:
    given = "pä ss\u00a0w\u200bord🔑"
    assert environment(**COMPLETE, SMTP_LOGIN="x", SMTP_PASSWORD=given).smtp_password == given


@pytest.mark.parametrize("kind", ["directory", "unreadable", "dangling", "binary"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, kind: str) -> None:
    file = tmp_path / ".env"
    match kind:
        case "directory":
            file.mkdir()
        case "unreadable":  # to root too
            file.symlink_to("/proc/self/mem")
        case "dangling":
            file.symlink_to("nowhere")
        case "binary":
            file.write_bytes(b"PORT=\xff")
    done = run_here(cwd=tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(r"The configuration is not valid:\n  \.env: [A-Z][^.]*\.\n", done.stderr)


def test_the_documentation_names_every_variable() -> None:
    for file in ("docs/configuration.md", ".env.example"):
        text = (ROOT / file).read_text()
        assert [name for name in VARIABLES if not re.search(rf"\b{name}\b", text)] == []
