"""The command `check`: each step says what is wrong, and what to do."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from bson import ObjectId
from pymongo import MongoClient

from settings import Security, Settings
from tests.checking import check, failures, skipped
from tests.client import DB
from tests.faults import scripted
from tests.processes import COMPLETE, command, run_here
from tests.servers import LOGIN, PASSWORD, MailServer, Mongod, free_port, localhost, smtp_server
from tests.smtp import HANG, raw_server

STEPS = ["configuration", "mongodb", "rights", "index", "suppress", "streams", "users", "dead_mail"]
PASSWORD_IS: dict[str, Any] = {"pwd": "pw"}
MAIL_STEPS = ["smtp_dns", "smtp_tcp", "smtp_tls", "smtp_ehlo", "smtp_login"]


async def test_everything_is_ok_and_a_test_email_is_sent(settings: Settings, database: DB, mail: MailServer) -> None:
    code, steps = await check(settings, "--to", "me@example.com")
    assert (code, list(steps)) == (0, [*STEPS, *MAIL_STEPS, "smtp_test"])
    assert {state for state, _ in steps.values()} == {"ok"}
    assert steps["mongodb"][1] == "MongoDB 6.0.5, a replica set with 1 member"
    assert steps["streams"][1] == "possible"
    assert f"certificate of {settings.smtp_host}, valid for " in steps["smtp_tls"][1]
    ((recipient, message),) = mail.received
    assert (recipient, message["From"], message["Subject"]) == (
        "me@example.com",
        '"Notifier" <noreply@example.com>',
        "Test of the notification service",
    )
    assert database.list_collection_names() in ([], ["users"])
    given = {"SMTP_PORT": f"{free_port()}", "SMTP_CONNECT_TIMEOUT": "2", "API_KEYS": "k" * 32}
    code, out, _ = await command(settings, "check", **given)
    lines = out.splitlines()
    assert (code, len(lines)) == (1, len(STEPS + MAIL_STEPS))
    assert lines[0] == "ok       configuration  valid"
    assert lines[len(STEPS) + 1].startswith("failed   smtp_tcp       Port ")


async def test_without_an_address_no_email_is_sent(settings: Settings, mail: MailServer) -> None:
    code, steps = await check(settings)
    assert (code, list(steps), mail.received) == (0, [*STEPS, *MAIL_STEPS], [])
    code, _, err = await command(settings, "check", "--to", "nobody")
    assert (code, "Not a valid email address." in err) == (2, True)


def test_a_wrong_configuration_is_code_2_also_as_json(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("no line\n")
    done = run_here("check", "--json", cwd=tmp_path, **{**COMPLETE, "SMTP_HOST": "smtp://x"})
    assert done.returncode == 2
    checks = json.loads(done.stdout)["checks"]
    assert [(step["check"], step["state"]) for step in checks] == [("configuration", "failed")] * 2
    assert [step["detail"].split(":")[0] for step in checks] == [".env, line 1", "SMTP_HOST"]
    done = run_here("check", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "failed   configuration  .env, line 1: Is not NAME=VALUE.\n")


# --- the mail server --------------------------------------------------------------------------------------------------


def tls(authority: trustme.CA, name: str, not_after: datetime | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(name, not_after=not_after).configure_cert(context)
    return context


async def test_check_says_why_a_certificate_is_refused(settings: Settings, authority: trustme.CA) -> None:
    if localhost() != "localhost":
        pytest.skip("/etc/hosts is missing: this test needs a host's name")
    yesterday = datetime.now(UTC) - timedelta(days=1)
    for context, host, words in (
        (tls(authority, "localhost", yesterday), "localhost", "certificate has expired"),
        (tls(authority, "mail.example.com"), "localhost", "Hostname mismatch"),
        (tls(authority, "localhost"), "127.0.0.1", "IP address mismatch"),
        (tls(trustme.CA(), "localhost"), "localhost", "unable to get local issuer certificate"),
    ):
        async with smtp_server(context) as server:
            code, steps = await check(
                replace(settings, smtp_port=server.port, smtp_host=host), "--to", "me@example.com"
            )
        assert (code, list(failures(steps))) == (1, ["smtp_tls"])
        assert failures(steps)["smtp_tls"].startswith(f"the certificate is refused ({words}")
        assert skipped(steps) == ["smtp_ehlo", "smtp_login", "smtp_test"]
        assert server.received == []


async def test_check_says_if_a_certificate_expires_soon(settings: Settings, authority: trustme.CA) -> None:
    context = tls(authority, settings.smtp_host, datetime.now(UTC) + timedelta(days=3, hours=1))
    async with smtp_server(context) as server:
        code, steps = await check(replace(settings, smtp_port=server.port))
    assert (code, steps["smtp_tls"][1].split(", until")[0]) == (
        0,
        f"certificate of {settings.smtp_host}, valid for 3 days",
    )
    assert steps["smtp_tls"][1].endswith("; renew it soon")


async def test_check_tries_a_wrong_password_once_and_reports_it(settings: Settings, mail: MailServer) -> None:
    code, steps = await check(settings, "--to", "me@example.com", SMTP_PASSWORD="hunter2")  # noqa: S106 - a wrong one
    assert (code, list(failures(steps)), skipped(steps)) == (1, ["smtp_login"], ["smtp_test"])
    assert "refuses SMTP_LOGIN and SMTP_PASSWORD: 535" in failures(steps)["smtp_login"]
    assert mail.logins == 1
    assert "hunter2" not in f"{steps}"


@pytest.mark.parametrize(
    ("changes", "step", "words"),
    [
        ({"smtp_port": free_port()}, "smtp_tcp", "Connection refused; check SMTP_PORT"),
        ({"smtp_host": "nowhere.invalid"}, "smtp_dns", "nowhere.invalid: DNS "),
    ],
)
async def test_check_says_if_the_port_is_closed_or_the_host_unknown(
    settings: Settings, changes: dict[str, Any], step: str, words: str
) -> None:
    code, steps = await check(replace(settings, **changes))
    assert (code, list(failures(steps))) == (1, [step])
    assert words in failures(steps)[step]
    assert skipped(steps) == MAIL_STEPS[MAIL_STEPS.index(step) + 1 :]


async def test_check_says_if_the_server_starts_tls_otherwise_or_never(
    settings: Settings, server_tls: ssl.SSLContext
) -> None:
    async with smtp_server(None, starttls=server_tls) as server:
        settings = replace(settings, smtp_port=server.port)
        code, steps = await check(settings)
        assert (code, list(failures(steps))) == (1, ["smtp_tls"])
        assert failures(steps)["smtp_tls"].startswith("the server does not speak TLS from the start")
        code, steps = await check(replace(settings, smtp_security=Security.STARTTLS))
        assert (code, f"certificate of {settings.smtp_host}" in steps["smtp_tls"][1]) == (0, True)
    async with smtp_server(server_tls) as server:
        code, steps = await check(replace(settings, smtp_port=server.port, smtp_security=Security.STARTTLS))
        assert (code, list(failures(steps))) == (1, ["smtp_ehlo"])
        assert "needs SMTP_SECURITY=tls" in failures(steps)["smtp_ehlo"]
        assert skipped(steps) == ["smtp_tls", "smtp_login"]
    async with smtp_server(None, auth=False) as server:
        plain = replace(settings, smtp_port=server.port, smtp_login=None, smtp_password=None)
        code, steps = await check(replace(plain, smtp_security=Security.STARTTLS))
        assert (code, list(failures(steps))) == (1, ["smtp_tls"])
        assert "no STARTTLS, and SMTP_SECURITY requires it" in failures(steps)["smtp_tls"]
        code, steps = await check(replace(plain, smtp_security=Security.AUTO))
        assert (code, steps["smtp_tls"]) == (0, ("ok", "none: the server offers no STARTTLS"))
        code, steps = await check(replace(plain, smtp_security=Security.AUTO, smtp_login=LOGIN, smtp_password=PASSWORD))
        assert (code, list(failures(steps))) == (1, ["smtp_tls"])


@pytest.mark.parametrize(
    ("replies", "step", "words"),
    [
        ({"greeting": b"554 5.7.1 your address is blocked\r\n"}, "smtp_ehlo", "refuses us: 554 5.7.1 your address is"),
        ({"greeting": HANG}, "smtp_ehlo", "The greeting timed out after 2 s"),
        ({"EHLO": b"250 here\r\n"}, "smtp_login", "The server offers no AUTH that we know"),
        ({"MAIL": b"550 5.7.1 sender \x1b[31m refused\r\n"}, "smtp_test", "MAIL: 550 5.7.1 sender"),
    ],
)
async def test_check_quotes_a_server_that_refuses_the_service(
    settings: Settings, replies: Mapping[str, bytes], step: str, words: str
) -> None:
    async with raw_server(replies) as server:
        plain = replace(settings, smtp_host="127.0.0.1", smtp_port=server.port, smtp_security=Security.NONE)
        code, steps = await check(plain, "--to", "me@example.com")
    assert (code, list(failures(steps))) == (1, [step])
    assert words in failures(steps)[step]


async def test_check_says_if_the_test_email_is_refused(settings: Settings, mail: MailServer) -> None:
    mail.script = scripted({"RCPT": ["550 5.1.1 unknown"]})
    code, steps = await check(settings, "--to", "me@example.com")
    assert (code, failures(steps)) == (1, {"smtp_test": "The test e-mail was not sent: RCPT: 550 5.1.1 unknown"})


# --- MongoDB ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongod]:
    """Run a MongoDB that asks for a login, with one user for each role."""
    server = Mongod(tmp_path_factory.mktemp("guarded"), None, "--auth")
    server.start()
    with server.client() as client:
        client.admin.command("createUser", "root", **PASSWORD_IS, roles=["root"])
    root: MongoClient[dict[str, Any]] = MongoClient(f"mongodb://root:pw@{server.address}/?authSource=admin")
    with root as client:
        client.shop.command("createUser", "writer", **PASSWORD_IS, roles=["readWrite"])
        client.shop.command("createUser", "reader", **PASSWORD_IS, roles=["read"])
        client.shop.command("createUser", "nobody", **PASSWORD_IS, roles=[])
    yield server
    server.kill()


async def test_a_standalone_server_is_ok_but_has_no_streams(settings: Settings, standalone: Mongod) -> None:
    code, steps = await check(replace(settings, db_uri=f"mongodb://{standalone.address}/checked"))
    assert code == 0
    assert steps["mongodb"][1] == "MongoDB 6.0.5, a standalone server"
    assert "not possible, as MongoDB is a standalone server" in steps["streams"][1]


@pytest.mark.parametrize(
    ("user", "step", "words"),
    [
        ("writer:pw@", None, ""),
        ("reader:pw@", "rights", "may not insert, update, remove, createIndex on users and insert"),
        ("nobody:pw@", "rights", "grant it the role readWrite on the database shop"),
        ("writer:hunter2@", "mongodb", "refuses the user name or password"),
        ("", "rights", "DB_URI"),
    ],
)
@pytest.mark.ci
async def test_check_names_the_missing_rights(
    settings: Settings, guarded: Mongod, user: str, step: str | None, words: str
) -> None:
    code, steps = await check(replace(settings, db_uri=f"mongodb://{user}{guarded.address}/shop"))
    assert code == (1 if step else 0)
    if step:
        assert words in failures(steps)[step]
    assert steps["smtp_login"][0] == "ok"
    assert "hunter2" not in f"{steps}"


@pytest.mark.ci
async def test_check_tries_the_mail_server_even_without_mongodb(settings: Settings) -> None:
    closed = f"mongodb://user:hunter2@127.0.0.1:{free_port()}/x"
    code, steps = await check(replace(settings, db_uri=closed), "--to", "me@example.com")
    assert (code, list(failures(steps))) == (1, ["mongodb"])
    assert "Connection refused" in failures(steps)["mongodb"]
    assert skipped(steps) == STEPS[2:]
    assert steps["smtp_test"][0] == "ok"
    assert "hunter2" not in f"{steps}"


async def test_check_tells_which_indexes_serve(settings: Settings, database: DB) -> None:
    assert "not there yet" in (await check(settings))[1]["index"][1]
    database.users.create_index("notifier.due", unique=True, sparse=True)
    code, steps = await check(settings)
    assert (code, list(failures(steps))) == (1, ["index"])
    assert steps["suppress"] == ("ok", "POST /suppress needs user_id, as no index has email first")
    database.users.drop_indexes()
    database.users.create_index("notifier.due", sparse=True)
    database.users.create_index("email")
    _, steps = await check(settings)
    assert steps["index"] == ("ok", "notifier.due, sparse")
    assert steps["suppress"] == ("ok", "POST /suppress takes an address alone, by the index email_1")


def users(number: int, **fields: Any) -> list[dict[str, Any]]:
    return [{"_id": ObjectId(), "emails": [{"address": f"{n}@x.example"}], **fields} for n in range(number)]


@pytest.mark.parametrize(
    ("documents", "variables", "state", "said"),
    [
        ([], {}, "ok", "none in the collection users"),
        (
            [*users(3), *users(1, notifications=[], emails="none"), {"_id": "x"}],
            {"EMAIL_FIELD": "emails.0.address", "UNKNOWN_USERS": "refuse"},
            "ok",
            "5 users in all. Of 5 users looked at, 4 have an _id of the type objectId, and 3 have an address.",
        ),
        (users(1), {}, "failed", "Of 1 user looked at, none has an address at email; check EMAIL_FIELD."),
        (users(2), {"ID_TYPE": "string"}, "failed", "none has an _id of the type string, but objectId; check ID_TYPE."),
        (
            users(1, email="a@x.example", notifier="x"),
            {},
            "failed",
            "1 have something in `notifications` or `notifier`",
        ),
        (users(2, email="a@x.example", notifications=["x"]), {}, "failed", "2 have something in `notifications` or"),
    ],
)
async def test_it_looks_whether_the_settings_fit_the_users(
    settings: Settings, database: DB, documents: list[dict[str, Any]], variables: dict[str, str], state: str, said: str
) -> None:
    if documents:
        database.users.insert_many(documents)
    _, steps = await check(settings, **variables)
    assert (steps["users"][0], said in steps["users"][1]) == (state, True)
    assert "x.example" not in f"{steps['users']}"
    database.users.delete_many({})


async def test_check_warns_of_an_open_api(settings: Settings) -> None:
    assert "API_KEYS is not set: anyone who can reach" in (await check(settings))[1]["configuration"][1]
    assert (await check(settings, API_KEYS="k" * 32))[1]["configuration"][1] == "valid"


def test_in_a_local_run_the_mail_server_is_not_checked(tmp_path: Path) -> None:
    done = run_here("check", cwd=tmp_path)
    assert done.returncode == 1
    assert "failed   mongodb        There is no local run in this folder." in done.stdout
    assert "skipped  smtp_login" in done.stdout
