"""The worker: what it sends, when it tries again, and how it stops."""

from __future__ import annotations

import asyncio
import signal
import ssl
import time
from collections import Counter
from pathlib import Path

from bson import ObjectId

from kinds import SPECIFIED
from mongo.creation import Create
from mongo.owed import NO_TOKEN
from settings import Settings
from store import open_store
from tests.client import DB, OTHER, USER, Client, create, list_, owed, settled, user
from tests.faults import failing
from tests.fixtures import Start
from tests.processes import ends_within, running_service
from tests.servers import MailServer, Mongod, free_port, smtp_server


async def test_creates_succeed_and_emails_wait_while_mail_is_down(
    start: Start, database: DB, server_tls: ssl.SSLContext
) -> None:
    port = free_port()
    client = await start(smtp_port=port)
    await create(client, key="new_login")
    assert (await list_(client))["elements"] == 1
    await asyncio.sleep(0.2)
    async with smtp_server(server_tls, port=port) as mail:
        await settled(database)
        assert mail.ids == [user(database)["notifications"][0]["id"]]


async def test_a_refused_recipient_is_a_dead_letter_and_delays_nobody(
    client: Client, database: DB, mail: MailServer
) -> None:
    async def script(stage: str, recipient: str) -> str | None:
        return "550 5.1.1 no such user" if stage == "RCPT" and recipient == "gone@example.com" else None

    mail.script = script
    database.users.insert_one({"_id": ObjectId(USER), "email": "gone@example.com"})
    for user_id in (USER, OTHER):
        await create(client, user_id, key="new_login")
    await settled(database)
    (letter,) = database.dead_mail.find()
    assert letter["_id"] == user(database)["notifications"][0]["id"]
    assert letter["email"] == "gone@example.com"
    assert letter["error"] == "RCPT: 550 5.1.1 no such user"
    assert [recipient for recipient, _ in mail.received] == ["new-user@example.com"]


async def test_after_transient_refusals_the_pauses_follow_the_schedule(
    client: Client, database: DB, mail: MailServer
) -> None:
    times = []

    async def script(stage: str, _recipient: str) -> str | None:
        if stage != "RCPT":
            return None
        times.append(time.monotonic())
        return "451 4.7.1 come back" if len(times) < 3 else None

    mail.script = script
    await create(client, key="registration")
    await settled(database)
    assert len(mail.received) == 1
    assert times[1] - times[0] >= 0.8 * 0.005 * 60
    assert times[2] - times[1] >= 0.8 * 0.01 * 60


async def test_two_workers_send_each_of_200_emails_once(start: Start, database: DB, mail: MailServer) -> None:
    clients = [await start(), await start()]
    users = [f"{n:024x}" for n in range(100)]
    await asyncio.gather(*(create(clients[n % 2], users[n // 2], "registration") for n in range(200)))
    await settled(database)
    assert len(mail.received) == 200
    assert set(Counter(mail.ids).values()) == {1}


async def test_a_stop_finishes_one_email_and_gives_back_the_others(
    start: Start, database: DB, mail: MailServer
) -> None:
    sending = asyncio.Event()

    async def script(stage: str, _recipient: str) -> str | None:
        if stage == "DATA":
            sending.set()
            await asyncio.sleep(0.3)
        return None

    mail.script = script
    client = await start(smtp_connections=1)
    for n in range(3):
        await create(client, f"{n:024x}", "registration")
    await sending.wait()
    await client.close()
    assert len(mail.received) == 1
    assert [item["token"] for item in owed(database)] == [NO_TOKEN, NO_TOKEN]
    await start()
    await settled(database)
    assert len(set(mail.ids)) == len(mail.ids) == 3


async def test_a_stop_during_a_claim_gives_the_leases_back(start: Start, mongod: Mongod, database: DB) -> None:
    client = await start(smtp_port=free_port())
    with failing(mongod, ["update"], blockConnection=True, blockTimeMS=500):
        await create(client, key="registration")
        await asyncio.sleep(0.2)
        await client.close()
    assert [(item["token"], item["tries"]) for item in owed(database)] == [(NO_TOKEN, 0)]


async def test_sigterm_finishes_one_email_and_gives_back_the_others(
    settings: Settings, database: DB, mail: MailServer, tmp_path: Path
) -> None:
    service = await running_service(settings, tmp_path, SMTP_CONNECTIONS=1)

    async def script(stage: str, _recipient: str) -> str | None:
        if stage == "DATA":
            service.signal(signal.SIGTERM)  # and again, as an impatient orchestrator would
            await asyncio.sleep(0.5)
            service.signal(signal.SIGTERM)
            await asyncio.sleep(1.5)
        return None

    mail.script = script
    async with open_store(settings) as direct:
        for _ in range(3):
            await direct.create(Create(USER, SPECIFIED["registration"]))
    assert await asyncio.to_thread(ends_within, 9, service.process) == 0, service.log()
    assert len(mail.received) == 1
    assert [item["token"] for item in owed(database)] == [NO_TOKEN, NO_TOKEN]
