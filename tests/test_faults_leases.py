"""Promises I4 and I5: a lease has one holder, and a worker that has lost it changes nothing."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from delivery import Delivery
from kinds import SPECIFIED
from mongo.creation import Create
from mongo.errors import Patience, Unavailable
from mongo.owed import OwedEmail
from ops.metrics import Metrics
from settings import Security, Settings
from store import open_store
from tests.client import DB, OTHER, USER, assert_length, assert_nothing_owed, create, owed, settled, user
from tests.fixtures import Start
from tests.processes import running_service
from tests.proxy import FAULTS, Proxy
from tests.servers import MailServer, Mongod
from tests.smtp import raw_server
from tests.waiting import eventually_async, slow_clock


@pytest.mark.ci
async def test_i4_eight_workers_send_each_of_1000_emails_once(start: Start, database: DB, mail: MailServer) -> None:
    clients = [await start(smtp_connections=2, smtp_command_timeout=60.0) for _ in range(8)]
    for block in range(0, 1000, 100):
        await asyncio.gather(
            *(create(clients[n % 8], f"{n // 10:024x}", "registration") for n in range(block, block + 100))
        )
    await settled(database, 60)
    assert len(mail.received) == 1000
    assert set(Counter(mail.ids).values()) == {1}


async def test_i4_i5_only_the_holder_of_a_lease_changes_anything(settings: Settings, database: DB) -> None:
    async with open_store(settings) as direct, open_store(settings) as another:
        await direct.create(Create(USER, SPECIFIED["registration"]))
        one, other = direct.outbox, another.outbox
        (lost,) = await one.claim(1, 60)
        assert await other.claim(1, 60) == []
        end = lease_end(database)
        await one.extend([lost], 3600)
        assert lease_end(database) - end > timedelta(seconds=3000)
        assert await other.claim(1, 60) == []
        end = lease_end(database) - timedelta(seconds=7200)
        database.users.update_one({}, {"$set": {"notifier.outbox.0.next_at": end, "notifier.due": end}})
        (held,) = await other.claim(1, 60)
        assert held.id == lost.id
        before = user(database)
        assert not await one.remove(lost)
        assert not await one.retry(lost, 0, "late", tries=7, copies=0)
        assert not await direct.dead_mail.bury(lost, 7, "late")
        await one.extend([lost], 3600)
        assert user(database) == before
        assert database.dead_mail.count_documents({}) == 0
        assert await other.remove(held)
    assert_nothing_owed(database)


async def test_an_email_that_is_put_back_keeps_the_count_of_copies(settings: Settings, database: DB) -> None:
    async with open_store(settings) as direct:
        await direct.create(Create(USER, SPECIFIED["registration"]))
        (email,) = await direct.outbox.claim(1, 60)
        assert await direct.outbox.hold(replace(email, copies=1), None, "connect: no reply in time")
    (item,) = owed(database)
    assert item["copies"] == 1


def lease_end(database: DB) -> datetime:
    """Return when the lease of the only e-mail ends."""
    (email,) = owed(database)
    end: datetime = email["next_at"]
    return end


async def test_i4_a_lease_is_extended_while_a_conversation_runs(
    settings: Settings, database: DB, mail: MailServer
) -> None:
    """By 4.5 s after each 1.5 s, which leaves a busy machine enough of it."""
    release = asyncio.Event()

    async def script(stage: str, _recipient: str) -> str | None:
        if stage == "DATA":
            await release.wait()
        return None

    mail.script = script
    short = replace(settings, mail_lease_seconds=4.5)
    async with open_store(settings) as direct:
        await direct.create(Create(USER, SPECIFIED["registration"]))
        outbox = direct.outbox
        async with Delivery(direct, short, asyncio.Event(), Metrics()) as delivery:
            await eventually_async(lambda: assert_length(delivery._leases, 1))
            for _ in range(2):
                end = lease_end(database)
                await eventually_async(lambda end=end: assert_later(lease_end(database), end))  # type: ignore[misc]
                assert await outbox.claim(1, 60) == []
            release.set()
            await settled(database)
    assert len(mail.received) == 1


def assert_later(moment: datetime, other: datetime) -> None:
    assert moment > other


@pytest.mark.parametrize("lease", [5, pytest.param(30, marks=pytest.mark.ci)])
@pytest.mark.ci
async def test_i4_after_a_kill_9_another_process_delivers_in_time(
    settings: Settings, database: DB, mail: MailServer, tmp_path: Path, lease: int
) -> None:
    """The dead process had claimed the e-mail and was in the conversation. The default lease is of 30 s."""
    dead = await running_service(settings, tmp_path, MAIL_LEASE_SECONDS=lease, SMTP_COMMAND_TIMEOUT=30)
    reached = asyncio.Event()

    async def script(stage: str, _recipient: str) -> str | None:
        if stage == "RCPT" and not reached.is_set():
            reached.set()
            await asyncio.sleep(60)
        return None

    mail.script = script
    async with open_store(settings) as direct:
        await direct.create(Create(USER, SPECIFIED["new_login"]))
    await reached.wait()
    other = await running_service(settings, tmp_path, MAIL_LEASE_SECONDS=lease)
    dead.kill()
    with slow_clock() as elapsed:
        await settled(database, within=120)
        logging.getLogger(__name__).info("delivered %.1f s after the kill", elapsed())
        assert elapsed() < lease + 10
    other.kill()
    assert len(mail.received) == 1


@pytest.mark.parametrize("stage", ["RCPT", "DATA"])
async def test_i5_a_lease_ending_mid_conversation_stops_the_message(
    settings: Settings, database: DB, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    """MongoDB cannot be reached, so the lease is not extended, and another worker may take the e-mail over."""

    async def unreachable(*_: object) -> None:
        raise Unavailable

    slow = (*[b""] * 18, b"354 go on\r\n" if stage == "DATA" else b"250 OK\r\n")  # 1.8 s
    async with raw_server({stage: slow}) as server, open_store(settings) as direct:
        short = replace(
            settings,
            mail_lease_seconds=1.5,
            smtp_command_timeout=5,
            smtp_port=server.port,
            smtp_security=Security.NONE,
        )
        await direct.create(Create(USER, SPECIFIED["registration"]))
        monkeypatch.setattr(direct.outbox, "extend", unreachable)
        async with Delivery(direct, short, asyncio.Event(), Metrics()) as delivery:
            await eventually_async(lambda: assert_in("RCPT", server.commands))
            await eventually_async(lambda: assert_length(delivery._leases, 0))
        assert server.received == []
    assert len(owed(database)) == 1


def assert_in(item: object, items: Sequence[object]) -> None:
    assert item in items


async def test_i5_an_email_whose_lease_has_ended_is_not_sent(
    settings: Settings, database: DB, mail: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(settings) as direct:
        await direct.create(Create(USER, SPECIFIED["registration"]))
        outbox = direct.outbox
        claim, monotonic = outbox.claim, time.monotonic

        async def claim_too_late(users: int, lease: float) -> Sequence[OwedEmail]:
            emails = await claim(users, lease)
            monkeypatch.setattr(time, "monotonic", lambda: monotonic() + settings.mail_lease_seconds)
            return emails

        monkeypatch.setattr(outbox, "claim", claim_too_late)
        async with Delivery(direct, settings, asyncio.Event(), Metrics()):
            await asyncio.sleep(0.5)
    assert mail.received == []
    assert len(owed(database)) == 1


@pytest.mark.ci
async def test_i5_a_worker_frozen_past_its_lease_sends_nothing_later(
    settings: Settings, database: DB, mail: MailServer, tmp_path: Path
) -> None:
    """Twelve e-mails wait in the frozen worker for its one connection. Another worker takes them over."""
    frozen = await running_service(settings, tmp_path, SMTP_CONNECTIONS=1)
    reached = asyncio.Event()

    async def script(stage: str, _recipient: str) -> str | None:
        if stage == "DATA" and not reached.is_set():
            reached.set()
            await asyncio.sleep(0.5)
        return None

    async with open_store(settings) as direct:
        # It closes the breaker, so that many are claimed at once.
        await direct.create(Create(OTHER, SPECIFIED["registration"]))
        await settled(database)
        mail.script = script
        mail.received.clear()
        for n in range(12):
            await direct.create(Create(f"{n:024x}", SPECIFIED["registration"]))
        await reached.wait()
        frozen.signal(signal.SIGSTOP)
        other = await running_service(settings, tmp_path)
        await settled(database, within=40)
        sent = len(mail.received)
        frozen.signal(signal.SIGCONT)
        await asyncio.sleep(2)
        for service in (frozen, other):
            service.kill()
    assert len(set(mail.ids)) == 12
    assert len(mail.received) == sent <= 13  # only the one being sent may go out twice
    assert database.dead_mail.count_documents({}) == 0


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("patience", [Patience(operation=3.5, attempt=0.4)])
async def test_i4_i5_a_lost_reply_about_many_leases_does_no_harm(
    settings: Settings, database: DB, mongod: Mongod, fault: str, patience: Patience
) -> None:
    """Each of these calls is repeated, and has the effect of one."""
    users, proxy = [f"{n:024x}" for n in range(4)], Proxy(mongod.port)
    async with proxy.running(), open_store(settings) as direct:
        near = replace(settings, db_uri=f"mongodb://127.0.0.1:{proxy.port}/{database.name}?directConnection=true")
        for user_id in users:
            await direct.create(Create(user_id, SPECIFIED["registration"]))
        async with open_store(near, patience=patience) as store:
            proxy.break_next("update", fault)
            emails = await store.outbox.claim(4, 60)
            assert sorted(email.user_id for email in emails) == users
            assert await direct.outbox.claim(4, 60) == []
            proxy.break_next("find", fault)
            assert [look and look.wanted for look in await store.outbox.look(emails)] == [True] * 4
            before = max(item["next_at"] for item in owed(database))
            proxy.break_next("update", fault)
            await store.outbox.extend(emails, 120)
            assert min(item["next_at"] for item in owed(database)) > before
            proxy.break_next("update", fault)
            await store.outbox.remove_together(emails[:2])
            assert sorted(item["id"] for item in owed(database)) == sorted(email.id for email in emails[2:])
            proxy.break_next("update", fault)
            await store.outbox.release(emails[2:])
            assert proxy.faults == 5
        assert sorted(email.id for email in await direct.outbox.claim(4, 60)) == sorted(e.id for e in emails[2:])
