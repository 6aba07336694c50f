"""The command `status`."""

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

from settings import Settings
from tests.client import DB, KEY, metric, owing
from tests.faults import scripted
from tests.fixtures import Start
from tests.processes import command, running_service
from tests.servers import MailServer, free_port

NO_TOKEN = "0" * 24
REFUSED = "connect: ConnectionRefusedError: Connection refused"


async def status(settings: Settings, **variables: object) -> dict[str, Any]:
    variables = {"HOST": "127.0.0.1", "PORT": free_port()} | variables
    code, out, err = await command(settings, "status", "--json", **{name: f"{v}" for name, v in variables.items()})
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
    found = await status(settings)
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


async def test_documents_that_are_not_ours_do_not_stop_it(settings: Settings, database: DB) -> None:
    outboxes: list[dict[str, Any]] = [{"outbox": "x"}, {"outbox": [1, None, {}]}, {"outbox": {}}, {}]
    database.users.insert_many({"notifier": {"due": datetime.now(UTC), **found}} for found in outboxes)
    database.users.insert_many([{"notifier": {"due": 5}}, {"notifier": [{"due": datetime.now(UTC)}]}])
    found = await status(settings)
    assert (found["owed"], found["oldest_seconds"], found["errors"]) == (0, None, [])
    database.users.delete_many({})


async def test_it_asks_the_running_service_why_the_line_has_stopped(
    settings: Settings, mail: MailServer, tmp_path: Path
) -> None:
    service = await running_service(settings, tmp_path, API_KEYS=KEY)
    mail.script = scripted({"MAIL": ["530 5.7.0 authentication required"] * 99})
    for n in range(6):
        body = json.dumps({"user_id": f"{n:024x}", "key": "registration"}).encode()
        request = Request(f"http://127.0.0.1:{service.port}/create", body, {"Authorization": f"Bearer {KEY}"})
        await asyncio.to_thread(urlopen, request, timeout=20)
    here = {"PORT": service.port, "API_KEYS": KEY}
    deadline = time.monotonic() + 20
    while not (seen := await status(settings, **here))["service"]["stopped"] and time.monotonic() < deadline:
        pass
    (stopped,) = seen["service"]["stopped"]
    assert (stopped["group"], stopped["reply"]) == ("line", "530 5.7.0 at MAIL authentication required")
    assert stopped["next_probe"] <= 25
    assert [reason["reason"] for reason in seen["errors"]] == ["MAIL: 530 5.7.0"]
    code, out, _ = await command(settings, "status", HOST="0.0.0.0", PORT=f"{service.port}", API_KEYS=KEY)
    assert code == 0
    assert re.search(r"\nMail server +\d connections? open", out)
    assert re.search(r"\nStopped +line, 0:00:.. ago: 530 5.7.0 at MAIL auth.+; next probe in \d+ s \(\d+ wait\)", out)
    assert (await status(settings, PORT=service.port))["service"] is None  # no key, no answer
    service.kill()
    code, out, _ = await command(settings, "status", PORT=f"{service.port}")
    assert "Mail server       unknown, as no service answers here on port" in out
    mail.script = None


async def test_without_the_service_it_shows_what_mongodb_knows(settings: Settings, database: DB) -> None:
    later = datetime.now(UTC) + timedelta(minutes=1)
    stopped = {"next_at": later, "held": "line", "error": "MAIL: 530 5.7.0 authentication required"}
    database.users.insert_many([owing(email(**stopped)), owing(email(**stopped)), owing(email(next_at=later))])
    seen = await status(settings)
    assert (seen["held"], seen["errors"], seen["service"]) == (
        [{"reason": "line", "count": 2}],
        [{"reason": "MAIL: 530 5.7.0", "count": 2}],
        None,
    )
    code, out, _ = await command(settings, "status", PORT=f"{free_port()}")
    assert code == 0
    assert "Stopped           line (2 wait)\n" in out
    assert "Their last errors MAIL: 530 5.7.0 (2)\n" in out


async def test_another_program_on_the_port_is_no_service(settings: Settings) -> None:
    async def answer(_: web.BaseRequest) -> web.Response:
        return web.Response(text="notifier_smtp_connections x\n")

    async with RawTestServer(answer) as other:
        assert (await status(settings, PORT=other.port))["service"] is None


async def test_where_nothing_is_owed_it_says_so(settings: Settings) -> None:
    port = free_port()
    code, out, _ = await command(settings, "status", PORT=f"{port}")
    assert (code, out.splitlines()) == (
        0,
        [
            "E-mails owed      none",
            "Oldest            -",
            "Waiting           none",
            "Next attempt      -",
            "Their last errors none",
            (
                f"Mail server       unknown, as no service answers here on port {port}; "
                "`check` asks the mail server itself"
            ),
            "Stopped           nothing",
            "Dead letters      none",
            "Suppressed        none",
        ],
    )


@pytest.mark.parametrize("number", [10_000, pytest.param(100_000, marks=pytest.mark.ci)])
async def test_many_emails_are_counted_as_soon_as_they_are_inserted(
    settings: Settings, database: DB, number: int
) -> None:
    database.users.create_index("notifier.due", sparse=True)
    started = time.monotonic()
    for _ in range(number // 5000):
        database.users.insert_many([owing(email(error=REFUSED)) for _ in range(5000)], ordered=False)
    inserted = time.monotonic()
    found = await status(settings)
    assert time.monotonic() - inserted < 2 * (inserted - started) + 1
    assert (found["owed"], found["due"]) == (number, number)
    assert found["errors"] == [{"reason": REFUSED, "count": number}]
    database.users.drop()


async def test_metrics_count_the_dead_letters(start: Start, database: DB) -> None:
    client = await start()
    assert await metric(client, "notifier_dead_letters") == 0
    database.dead_mail.insert_many({"_id": f"{n}"} for n in range(3))
    assert await metric(client, "notifier_dead_letters") == 3
