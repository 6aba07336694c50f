"""Many e-mails at once: what they share, and how a fault of one affects the others."""

from __future__ import annotations

import asyncio
import math
import ssl
import time
from collections.abc import Callable, Sized
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import pytest
from bson import ObjectId

from kinds import SPECIFIED
from mail.connection import Connection, Opener
from mail.evidence import Evidence
from mail.lease import VALID, Lease, Leases, Looks, Window
from mail.replies import Outcome, Verdict
from mail.settlement import Settler
from mongo.owed import NO_TOKEN, OwedEmail
from ops.metrics import Metrics
from settings import Settings
from tests.client import DB, OTHER, USER, create, owed, settled, user
from tests.faults import failing
from tests.fixtures import Start
from tests.owing import ids, owing
from tests.servers import MailServer, Mongod, free_port, smtp_server
from tests.smtp import raw_server
from tests.waiting import eventually_async, slow_clock

pytestmark = pytest.mark.usefixtures("nobody_else")

# --- sending ------------------------------------------------------------------------------------------


async def test_a_worn_out_connection_is_replaced_at_once(
    start: Start, database: DB, mail: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mail.limits.MESSAGES", 2)
    monkeypatch.setattr("mail.pool.IDLE_INTERVAL", 3600.0)  # so that nobody else closes it
    client = await start(smtp_connections=1)
    for _ in range(6):
        await create(client, key="registration")
    await settled(database)
    assert (len(mail.received), mail.connections) == (6, 3)


async def test_after_an_outage_one_users_emails_are_sent_in_parallel(
    start: Start, database: DB, server_tls: ssl.SSLContext
) -> None:
    port = free_port()
    client = await start(smtp_port=port, mail_retry_minutes=(5,))
    for _ in range(6):
        await create(client, key="registration")

    def failed() -> None:
        assert any(item["error"] for item in owed(database))

    await eventually_async(failed)
    async with smtp_server(server_tls, port=port) as mail:
        await settled(database)
        assert len(set(mail.ids)) == len(mail.ids) == 6


async def test_once_one_connection_works_the_others_open_in_parallel(
    start: Start, settings: Settings, database: DB, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening, most, open_connection = 0, [], Opener.open

    async def slow(opener: Opener, tries: int = 1) -> Connection:
        nonlocal opening
        opening += 1
        most.append(opening)
        await asyncio.sleep(0.3)
        opening -= 1
        return await open_connection(opener, tries)

    monkeypatch.setattr(Opener, "open", slow)
    async with owing(settings, dict.fromkeys(ids(30), 1), SPECIFIED["registration"]):
        await start(smtp_connections=10)
        await settled(database)
    assert most[0] == 1
    assert 8 <= max(most) <= 10


async def test_a_server_that_breaks_gets_the_window_of_a_process_back(
    start: Start, settings: Settings, database: DB
) -> None:
    """Another process may still reach the server. Untried e-mails are due at once, and no attempt counts."""
    async with raw_server() as server, owing(settings, dict.fromkeys(ids(40), 1), SPECIFIED["registration"]):
        server.replies = {"dot": (*[b"250-wait\r\n"] * 5, b"250 OK\r\n")}
        client = await start(smtp_port=server.port, smtp_connections=1, smtp_security="none", smtp_login=None)
        await eventually_async(lambda: assert_at_least(server.received, 2))
        server.replies = {"MAIL": b"421 4.3.2 shutting down\r\n"}
        await eventually_async(lambda: assert_unleased(database))
        assert {item["tries"] for item in owed(database)} == {0}
        await client.close()


def leased(database: DB) -> list[Any]:
    return [item for item in owed(database) if item["token"] != NO_TOKEN]


def assert_unleased(database: DB) -> None:
    assert leased(database) == []


# --- stopping -----------------------------------------------------------------------------------------


async def test_a_stop_gives_the_window_back_in_shared_updates(
    start: Start, settings: Settings, database: DB, mail: MailServer, updates: Callable[[], int]
) -> None:
    async def script(stage: str, _recipient: str) -> str | None:
        if stage == "DATA":
            await asyncio.sleep(0.2 if len(mail.received) > 4 else 0)
        return None

    mail.script = script
    async with owing(settings, dict.fromkeys(ids(100), 1), SPECIFIED["registration"]):
        client = await start(smtp_connections=2)
        await eventually_async(lambda: assert_at_least(mail.received, 8))
        await eventually_async(lambda: assert_at_least(leased(database), 12))
        before = updates()
        with slow_clock() as elapsed:
            await client.close()
            assert elapsed() < 3
    assert updates() - before < 6
    assert_unleased(database)
    assert len(set(mail.ids)) == len(mail.ids) == 100 - len(owed(database))


async def test_few_emails_are_sent_while_none_can_be_settled(
    start: Start, settings: Settings, database: DB, mail: MailServer, mongod: Mongod
) -> None:
    """At most this many e-mails would be sent again after a kill -9."""
    with ExitStack() as stack:

        async def script(stage: str, _recipient: str) -> str | None:
            if stage == "DATA" and len(mail.received) == 20:
                stack.enter_context(failing(mongod, ["update"], blockConnection=True, blockTimeMS=1500))
            return None

        mail.script = script
        async with owing(settings, dict.fromkeys(ids(25), 20), SPECIFIED["registration"]):
            await start(smtp_connections=4)
            await eventually_async(lambda: assert_at_least(mail.received, 60))
            await asyncio.sleep(0.7)
            assert len(mail.received) - (500 - len(owed(database))) <= 60
            stack.close()
            await settled(database, 30)
    assert len(set(mail.ids)) == len(mail.ids) == 500


def assert_at_least(items: Sized, count: int) -> None:
    assert len(items) >= count


# --- what is done for many at once, and a fault of one -------------------------------------------------


async def test_one_look_is_for_many_and_holds_for_50_ms(settings: Settings, database: DB) -> None:
    async with owing(settings, dict.fromkeys([USER, OTHER, *ids(4)], 1)) as direct:
        window = Window()
        emails = await direct.outbox.claim(6, 60)
        leases = {lease.email.user_id: lease for lease in (Lease(email, time.monotonic() + 60) for email in emails)}
        for lease in leases.values():
            lease.known_until = 0.0
            window.put(lease, urgent=False)
        window.pace = 1000.0
        looks = Looks(direct.outbox, window)
        run = asyncio.create_task(looks.run())
        before, asked = finds(database), time.monotonic()
        await looks(leases[USER])
        assert all(lease.wanted and lease.held for lease in leases.values())
        assert all(asked + VALID < lease.known_until <= time.monotonic() + VALID for lease in leases.values())
        assert finds(database) - before == 1
        await direct.preferences.change(OTHER, {"digest": False})
        database.users.delete_one({"_id": ObjectId(ids(1)[0])})
        await asyncio.sleep(VALID)
        assert not any(lease.known for lease in leases.values())
        await asyncio.gather(*map(looks, leases.values()))
        assert not leases[OTHER].wanted
        assert not leases[ids(1)[0]].held
        assert all(lease.wanted and lease.held for id_, lease in leases.items() if id_ not in {OTHER, ids(1)[0]})
        run.cancel()


async def test_a_look_that_nobody_awaits_can_be_asked_for_again(settings: Settings) -> None:
    async with owing(settings, {USER: 1}) as direct:
        (lease,) = (Lease(email, math.inf) for email in await direct.outbox.claim(1, 60))
        looks = Looks(direct.outbox, Window())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(looks(lease), 0.01)
        lease.wanted = False
        again = asyncio.create_task(looks(lease))
        run = asyncio.create_task(looks.run())
        await again
        assert lease.wanted
        run.cancel()


def finds(database: DB) -> int:
    """Return how often the users' collection was read."""
    total: int = database.client.admin.command("top")["totals"][f"{database.name}.users"]["queries"]["count"]
    return total


async def test_emails_settled_together_are_those_of_their_users(settings: Settings, database: DB) -> None:
    """Another program may have owed two users an e-mail of the same id."""
    async with owing(settings, {USER: 2, OTHER: 2}) as direct:
        database.users.update_many({}, {"$set": {"notifier.outbox.0.id": "same"}})
        emails = await direct.outbox.claim(2, 60)
        sent = [email for email in emails if (email.user_id == USER) == (email.id == "same")]
        assert await direct.outbox.remove_together(sent)
        assert [item["id"] == "same" for item in user(database, USER)["notifier"]["outbox"]] == [False]
        assert [item["id"] == "same" for item in user(database, OTHER)["notifier"]["outbox"]] == [True]
        assert await direct.outbox.remove_together(emails)
        assert owed(database) == []
        assert not await direct.outbox.remove_together(emails)


async def test_one_unchangeable_document_does_not_stop_settling_others(settings: Settings, database: DB) -> None:
    first, *_ = users = ids(4)
    async with owing(settings, dict.fromkeys(users, 1)) as direct:
        emails = await direct.outbox.claim(4, 60)
        database.users.update_one({"_id": ObjectId(first)}, {"$set": {"frozen": True}})
        database.command("collMod", "users", validator={"frozen": {"$exists": False}})
        sent = Outcome(verdict=Verdict.SENT, status="250")
        leases = Leases(direct.outbox, 60)
        settler = Settler(direct, settings, Metrics(), Evidence(), leases, lambda: None)
        for email in emails:
            settler.put(Lease(email, math.inf), sent)
        await settler.finish()
    assert [f"{found['_id']}" for found in database.users.find({"notifier.due": {"$exists": True}})] == [first]


# --- the window ---------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list whose only item is the time."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def fill(window: Window) -> int:
    """Fill a window; return how many e-mails it took."""
    count = window.room()
    email = OwedEmail(document_id=0, user_id="", id="", key="", at=datetime.now(UTC), tries=0, token="")
    for _ in range(count):
        window.put(Lease(email, 0.0), urgent=False)
    return count


def test_a_window_follows_the_pace_up_to_a_seconds_worth(clock: list[float]) -> None:
    window, asked = Window(), []
    for _ in range(8):
        asked.append(fill(window))
        for _ in range(len(window)):
            window.take()
            clock[0] += 0.01  # 100 e-mails a second
    assert asked[:4] == [16, 32, 64, 100]
    assert asked[-1] == pytest.approx(100, abs=2)
    for _ in range(100):
        fill(window)
        window.take()
        clock[0] += 0.5  # 2 a second
    assert len(window) == 16 - 1


def test_a_window_is_refilled_when_half_empty_or_after_half_a_s(clock: list[float]) -> None:
    window = Window()

    def take(count: int, seconds: float) -> None:
        for _ in range(count):
            window.take()
            clock[0] += seconds / count

    fill(window)
    take(8, 0.1)
    assert window.room() == 0
    take(1, 0.1)
    fill(window)
    assert len(window) == 32
    take(15, 0.45)
    assert window.room() == 0
    clock[0] += 0.1
    assert window.room() == round(15 / 0.55) - 17
