"""The metrics: what they count, and what they never contain."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tests.client import DB, OTHER, USER, Client, counted, create, metric, settled
from tests.faults import failing, scripted
from tests.fixtures import Start
from tests.servers import MailServer, Mongod, free_port
from tests.waiting import eventually_async


async def test_metrics_count_requests_and_emails_and_name_nobody(
    client: Client, database: DB, mail: MailServer
) -> None:
    mail.script = scripted({"RCPT": ["451 later", "550 5.1.1 no"]})
    await create(client, USER, "registration")
    await create(client, OTHER, "registration")
    await settled(database)
    await client.get("/nothing/" + USER)
    await client.request("BREW", "/list")
    for outcome, reason in (("sent", "sent"), ("retried", "transient"), ("dead", "permanent")):
        await counted(client, f'notifier_emails_total{{outcome="{outcome}",reason="{reason}"}}', 1)
    created = 'notifier_http_request_duration_seconds_count{method="POST",route="/create",status="201"}'
    assert await metric(client, created) == 2
    assert await metric(client, "notifier_email_delivery_seconds_count") == 1
    assert await metric(client, "notifier_smtp_breaker_open") == 0
    text = await (await client.get("/metrics")).text()
    assert "BREW" not in text
    assert USER not in text
    assert "@" not in text


@pytest.mark.ci
async def test_metrics_show_how_many_emails_are_owed(start: Start, mongod: Mongod) -> None:
    client = await start(smtp_port=free_port())
    assert await metric(client, "notifier_emails_owed") == 0
    for _ in range(3):
        await create(client, key="registration")
    await counted(client, "notifier_smtp_breaker_open", 1)

    async def is_old() -> None:
        assert await metric(client, "notifier_oldest_email_owed_seconds") >= 1

    await eventually_async(is_old)
    assert await metric(client, "notifier_emails_owed") == 3
    with failing(mongod, ["aggregate"], errorCode=91):
        text = await (await client.get("/metrics")).text()
    assert "notifier_emails_owed NaN" in text


async def test_metrics_tolerate_a_document_that_another_program_broke(client: Client, database: DB) -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    database.users.insert_many([{"notifier": {"due": later, "outbox": "x"}}, {"notifier": [{"due": later}]}])
    assert (await client.get("/metrics")).status == 200
    database.users.delete_many({})
