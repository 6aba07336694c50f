"""The command `status`, and the metrics that it asks for."""

from __future__ import annotations

import asyncio
import json
import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer
from bson import ObjectId

from ops.metrics import Metrics
from settings import Settings
from tests.client import DB, KEY, metric, owing, settled
from tests.faults import scripted
from tests.fixtures import Start
from tests.processes import command, running_service
from tests.servers import MailServer, Mongod, free_port

NO_TOKEN = "0" * 24
REFUSED = "connect: ConnectionRefusedError: Connection refused"


async def status(settings: Settings, **variables: object) -> dict[str, Any]:
    code, out, err = await command(
        settings, "status", "--json", **{"HOST": "127.0.0.1", **{name: f"{value}" for name, value in variables.items()}}
    )
    assert (code, err) == (0, "")
    found: dict[str, Any] = json.loads(out)
    return found


def email(**fields: Any) -> dict[str, Any]:
    now = datetime.now(UTC)
    standard = {"id": str(ObjectId()), "key": "new_login", "at": now, "next_at": now, "tries": 1, "token": NO_TOKEN}
    return {**standard, "error": None, "dead": False, **fields}


async def test_it_counts_what_is_owed_and_why(settings: Settings, database: DB) -> None:
    now = datetime.now(UTC)
    database.users.insert_many(
        [
            owing(email(at=now - timedelta(hours=2)), email(next_at=now + timedelta(hours=1), error=REFUSED)),
            owing(email(next_at=now + timedelta(hours=2), error="RCPT: 450 4.2.1 someone@example.com is busy")),
            owing(email(next_at=now + timedelta(minutes=1), token="a" * 24)),
            owing(email(next_at=now + timedelta(hours=3), error="RCPT: 450 4.2.1 other@example.com is busy")),
            {"_id": ObjectId(), "email": "nothing@example.com"},
        ]
    )
    database.dead_mail.insert_many(
        {"_id": f"{n}", "key": "new_login", "error": error}
        for n, error in enumerate(["RCPT: 550 5.1.1 <a@b>", "RCPT: 550 5.1.1 <c@d>", "DATA: 554 spam", None])
    )
    found = await status(settings, PORT=free_port())
    assert (found["owed"], found["due"], found["leased"]) == (5, 1, 1)
    assert 7200 <= found["oldest_seconds"] < 7300
    assert abs(datetime.fromisoformat(found["next_attempt"]) - now - timedelta(hours=1)) < timedelta(seconds=1)
    assert found["errors"] == [
        {"reason": "RCPT: 450 4.2.1", "count": 2},
        {"reason": REFUSED, "count": 1},
    ]
    assert (found["dead_letters"], found["dead"]) == (
        4,
        [{"reason": "RCPT: 550 5.1.1", "count": 2}, {"reason": "DATA: 554", "count": 1}],
    )
    assert (found["service"], found["streams"], list(found["kinds"])) == (
        None,
        True,
        ["registration", "new_message", "new_post", "new_login"],
    )


async def test_documents_that_are_not_ours_do_not_stop_it(settings: Settings, database: DB) -> None:
    outboxes: list[dict[str, Any]] = [{"outbox": "x"}, {"outbox": [1, None, {}]}, {"outbox": {}}, {}]
    database.users.insert_many({"notifier": {"due": datetime.now(UTC), **found}} for found in outboxes)
    database.users.insert_many([{"notifier": {"due": 5}}, {"notifier": [{"due": datetime.now(UTC)}]}])
    found = await status(settings, PORT=free_port())
    assert (found["owed"], found["oldest_seconds"], found["errors"]) == (0, None, [])
    database.users.delete_many({})


async def test_it_asks_the_running_service_for_the_mail_server(
    settings: Settings, database: DB, mail: MailServer, tmp_path: Path
) -> None:
    service = await running_service(settings, tmp_path, API_KEYS=KEY)
    for n in range(3):
        body = json.dumps({"user_id": f"{n:024x}", "key": "registration"})
        await asyncio.to_thread(post, service.port, body)
    await settled(database)
    found = await status(settings, PORT=service.port, API_KEYS=KEY)
    assert (found["service"]["breaker_open"], found["service"]["sent_last_hour"]) == (0, 3)
    mail.script = scripted({"MAIL": ["530 5.7.0 authentication required"] * 99})
    for n in range(6):
        body = json.dumps({"user_id": f"{n:024x}", "key": "registration"})
        await asyncio.to_thread(post, service.port, body)
    deadline = time.monotonic() + 10
    while not found["service"]["breaker_open"] and time.monotonic() < deadline:
        found = await status(settings, PORT=service.port, API_KEYS=KEY)
    assert [reason["reason"] for reason in found["errors"]] == ["MAIL: 530 5.7.0"]
    (stopped,) = found["service"]["stopped"]
    assert (stopped["group"], stopped["reply"]) == ("line", "530 5.7.0 at MAIL … authentication required")
    assert stopped["next_probe"] <= 25
    code, out, _ = await command(settings, "status", HOST="0.0.0.0", PORT=f"{service.port}", API_KEYS=KEY)
    assert code == 0
    assert "Mail server       no e-mail gets through\n" in out
    assert re.search(r"\nStopped +line, 0:00:.. ago: 530 5.7.0 at MAIL … authentication required; next probe in", out)
    assert f"Sent, last hour   3, by the service on port {service.port}\n" in out
    assert (await status(settings, PORT=service.port))["service"] is None  # no key, no answer
    service.kill()
    code, out, _ = await command(settings, "status", PORT=f"{service.port}")
    assert "Mail server       unknown, as no service answers here on port" in out
    mail.script = None


def post(port: int, body: str) -> None:
    urlopen(Request(f"http://127.0.0.1:{port}/create", body.encode(), {"Authorization": f"Bearer {KEY}"}), timeout=20)


@pytest.mark.parametrize(("number", "said"), [(0, "0 connections"), (1, "1 connection"), (2, "2 connections")])
async def test_one_connection_is_no_plural(settings: Settings, number: int, said: str) -> None:
    metrics = "".join(f"notifier_{name} {number}\n" for name in ("emails_sent_last_hour", "smtp_connections"))

    async def answer(_: web.BaseRequest) -> web.Response:
        return web.Response(text=f"{metrics}notifier_smtp_breaker_open 0\nnotifier_smtp_pace 0\n")

    async with RawTestServer(answer) as other:
        _, out, _ = await command(settings, "status", HOST="127.0.0.1", PORT=f"{other.port}")
    assert f"Mail server       usable, {said} open\n" in out


async def test_on_a_standalone_server_there_are_no_streams(settings: Settings, standalone: Mongod) -> None:
    uri = f"mongodb://{standalone.address}/empty"
    code, out, _ = await command(settings, "status", DB_URI=uri, PORT=f"{free_port()}")
    assert code == 0
    assert "E-mails owed      none\n" in out
    assert "Streams           not possible: MongoDB is a standalone server\n" in out


@pytest.mark.parametrize("number", [10_000, pytest.param(100_000, marks=pytest.mark.ci)])
async def test_many_emails_are_counted_as_soon_as_they_are_inserted(
    settings: Settings, database: DB, number: int
) -> None:
    database.users.create_index("notifier.due", sparse=True)
    started = time.monotonic()
    for _ in range(number // 5000):
        database.users.insert_many([owing(email(error=REFUSED)) for _ in range(5000)], ordered=False)
    inserted = time.monotonic()
    found = await status(settings, PORT=free_port())
    assert time.monotonic() - inserted < 2 * (inserted - started) + 1
    assert (found["owed"], found["due"]) == (number, number)
    assert found["errors"] == [{"reason": REFUSED, "count": number}]
    database.users.drop()


async def test_metrics_count_the_dead_letters(start: Start, database: DB) -> None:
    client = await start()
    assert await metric(client, "notifier_dead_letters") == 0
    database.dead_mail.insert_many({"_id": f"{n}"} for n in range(3))
    assert await metric(client, "notifier_dead_letters") == 3


async def test_what_was_sent_more_than_an_hour_ago_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0  # whole seconds, which add up exactly
    monkeypatch.setattr("ops.metrics.time.monotonic", lambda: now)
    metrics = Metrics()

    def sent() -> float:
        line = next(line for line in metrics.render().decode().splitlines() if line.startswith("notifier_emails_sent"))
        return float(line.split()[1])

    for _ in range(90):  # an e-mail a minute
        metrics.emails.labels("sent", "sent").inc()
        metrics.emails.labels("retried", "transient").inc()
        sent()
        now += 60
    assert 59 <= sent() <= 61
    now += 4000
    assert sent() <= 1
    now += 60
    assert sent() == 0
