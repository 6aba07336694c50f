"""Promise I7: a fault of the configuration kills no e-mail."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from settings import Security
from tests.client import DB, Client, owe, owed, settled
from tests.faults import scripted
from tests.fixtures import Start
from tests.servers import MailServer, smtp_server
from tests.waiting import assert_pause, eventually_async


@pytest.mark.ci
async def test_i7_a_wrong_password_costs_one_try_a_probe_and_no_email(
    start: Start, database: DB, mail: MailServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tests.servers.PASSWORD", "another")
    client, started = await start(), time.monotonic()
    await owe(client, 30)
    await eventually_async(lambda: assert_at_least(mail.logins, 3))
    assert time.monotonic() - started > 2.5  # at 0, 1 and 3 s
    assert (len(owed(database)), database.dead_mail.count_documents({})) == (30, 0)
    assert {item["tries"] for item in owed(database)} == {0}
    alarms = [record for record in caplog.records if record.levelname == "ERROR" and "SMTP" in record.message]
    assert len(alarms) == 1
    monkeypatch.undo()
    await settled(database)
    assert len(set(mail.ids)) == len(mail.ids) == 30


@pytest.mark.ci
async def test_i7_a_server_that_refuses_us_gets_one_probe_at_a_time(
    client: Client, database: DB, mail: MailServer
) -> None:
    tried: list[float] = []

    async def script(_stage: str, _recipient: str) -> str | None:
        tried.append(time.monotonic())
        return "550 5.7.1 sender refused"

    mail.script = script
    await owe(client, 10)
    await eventually_async(lambda: assert_pause(tried, 1.5))
    # At the most all ten before the line stops, each at once over another connection; then probes: at once, after 1 s
    # and 2 s, each over two connections as well.
    assert 5 <= len(tried) <= 2 * (10 + 3)
    mail.script = None
    await settled(database)


def assert_at_least(number: int, least: int) -> None:
    assert number >= least


@asynccontextmanager
async def silent_server() -> AsyncIterator[int]:
    """Listen on a port and never say anything; return the port."""
    writers: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: writers.append(writer), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


@pytest.mark.parametrize("fault", ["certificate", "no STARTTLS", "plaintext", "hanging greeting", "no AUTH", "clear"])
async def test_i7_an_unusable_server_kills_none_and_gets_no_password(
    start: Start, database: DB, server_tls: ssl.SSLContext, fault: str
) -> None:
    async with AsyncExitStack() as stack:
        changes: dict[str, Any] = {"smtp_connect_timeout": 0.3}
        mail = MailServer()
        if fault == "hanging greeting":
            changes["smtp_port"] = await stack.enter_async_context(silent_server())
        else:
            tls = server_tls if fault in {"certificate", "no AUTH"} else None
            await stack.enter_async_context(
                smtp_server(tls, auth=fault not in {"no AUTH", "no STARTTLS"}, mail_server=mail)
            )
            changes["smtp_port"] = mail.port
        if fault == "certificate":
            changes["smtp_ca_file"] = None
        if fault in {"no STARTTLS", "clear"}:
            changes["smtp_security"] = Security.STARTTLS if fault == "no STARTTLS" else Security.AUTO
        if fault == "no STARTTLS":
            changes |= {"smtp_login": None, "smtp_password": None}  # not even without a password in the clear
        client = await start(**changes)
        await owe(client, 5)
        await eventually_async(lambda: assert_tried(database))
        assert [item["tries"] for item in owed(database)] == [0] * 5
        assert (database.dead_mail.count_documents({}), mail.received, mail.logins) == (0, [], 0)


@pytest.mark.parametrize(
    ("stage", "reply"),
    [
        ("MAIL", "550 5.7.1 sender not allowed"),
        ("MAIL", "530 5.7.0 authentication required"),
        ("RCPT", "530 5.7.0 authentication required"),
        ("DATA", "550 5.7.60 client may not send as this sender"),
        ("RCPT", "550 5.4.5 Daily user sending limit exceeded"),
        ("DATA", "554 5.2.252 SendAsDenied; not allowed to send as another"),
        ("DATA", "554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException"),
        ("DATA", "550 The from address does not match a verified Sender Identity"),
        ("RCPT", "553 Relaying disallowed as another"),
        ("RCPT", "554 5.7.1 Relay access denied"),
        ("RCPT", "550 5.7.1 Helo command rejected: Host not found"),
        ("DATA", "550 5.7.1 our policy does not like it"),
    ],
)
async def test_i7_a_fault_of_our_account_kills_no_email(
    client: Client, database: DB, mail: MailServer, stage: str, reply: str, caplog: pytest.LogCaptureFixture
) -> None:
    mail.script = scripted({stage: [reply] * 1000})
    await owe(client, 5)
    await eventually_async(lambda: assert_alarm(caplog))
    assert (len(owed(database)), database.dead_mail.count_documents({})) == (5, 0)
    mail.script = None
    await settled(database)
    assert (len(set(mail.ids)), database.dead_mail.count_documents({})) == (5, 0)


def assert_tried(database: DB) -> None:
    assert any(item["error"] for item in owed(database))


def assert_alarm(caplog: pytest.LogCaptureFixture) -> None:
    assert [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.mark.parametrize(
    "changes",
    [
        {"smtp_host": "smtp\n.example.com"},
        {"smtp_host": "smtp..example.com"},
        {"smtp_host": "x" * 64 + ".example.com"},
        {"smtp_host": "smtp.\udcff.example.com"},
        {"smtp_password": "not UTF-8: \udcff"},
        {"smtp_login": "line\nbreak"},
    ],
)
async def test_i7_a_value_that_cannot_be_used_kills_no_email(
    start: Start, database: DB, mail: MailServer, changes: dict[str, str]
) -> None:
    """The settings refuse these. Whatever else is raised before RCPT must do as little harm."""
    client = await start(**changes)
    await owe(client, 3)
    await eventually_async(lambda: assert_tried(database))
    assert [item["tries"] for item in owed(database)] == [0] * 3
    assert (database.dead_mail.count_documents({}), mail.received) == (0, [])
