"""Clocks that are wrong: what is due, and how long something took, is told by MongoDB's clock or by a monotonic one."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pymongo.errors import PyMongoError

from mongo.creation import Create
from mongo.users import Clock
from settings import Settings
from store import Store, open_store
from tests.client import DB, USER, settled, user
from tests.faults import movable_clock, wrong_clock
from tests.processes import running_service
from tests.servers import MailServer, Mongod
from tests.streams import Events, client_of, stream_url
from tests.waiting import eventually_async
from tests.windows import with_kinds

OFFSETS = ["+70", "+180", "-180", "+3600", "-3600", "+5y", "-20y"]


def histogram(text: str, name: str) -> tuple[float, int]:
    """Return the sum and the count of a histogram."""
    found = [re.search(rf"^{name}_{part} (\S+)$", text, re.MULTILINE) for part in ("sum", "count")]
    assert all(found)
    total, count = (float(match[1]) for match in found if match)
    return total, int(count)


@pytest.mark.parametrize("offset", OFFSETS)
async def test_a_wrong_clock_delays_no_email_and_skews_no_metric(
    settings: Settings, database: DB, mail: MailServer, tmp_path: Path, offset: str
) -> None:
    service = await running_service(settings, tmp_path, **wrong_clock(offset))
    try:
        async with client_of(service) as client:
            started = time.monotonic()
            stream = Events(await client.get(stream_url()))
            await stream.next()
            async with client.post("/create", json={"user_id": USER, "key": "new_login"}) as response:
                assert response.status == 201
            assert (await stream.next())["elements"] == 1
            await settled(database)
            assert len(mail.ids) == 1
            async with client.get("/metrics") as response:
                metrics = await response.text()
            stream.response.close()
            took = time.monotonic() - started
        tells_when = database.client.server_info()["versionArray"][0] >= 6  # older ones do not say when a change was
        for name, measured in (("notifier_email_delivery_seconds", True), ("notifier_stream_lag_seconds", tells_when)):
            total, count = histogram(metrics, name)
            assert (count, total < took) == (measured, True), (name, total)
        assert abs(user(database)["notifications"][0]["timestamp"] - time.time()) > 60  # its clock was wrong indeed
    finally:
        service.kill()


async def test_services_with_different_clocks_share_emails_fairly(
    settings: Settings, database: DB, mail: MailServer, tmp_path: Path
) -> None:
    services = [await running_service(settings, tmp_path, **wrong_clock(offset)) for offset in ("+3600", "-3600")]
    try:
        for n in range(40):
            async with (
                client_of(services[n % 2]) as client,
                client.post("/create", json={"user_id": f"{n:024x}", "key": "registration"}) as response,
            ):
                assert response.status == 201
        await settled(database)
        assert len(mail.ids) == len(set(mail.ids)) == 40
    finally:
        for service in services:
            service.kill()


async def test_the_clock_is_mongodbs_after_every_reading(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_store(settings) as store:
        clock: Clock = store.clock
        real = clock.now()
        assert abs((real - datetime.now(UTC)).total_seconds()) < 60  # here both have the same
        clock._time += timedelta(hours=1)
        assert clock.now() - real >= timedelta(hours=1)
        await clock.sync()
        assert abs((clock.now() - real).total_seconds()) < 60
        assert clock.seconds_since(clock.now() + timedelta(seconds=5)) == 0.0
        monkeypatch.setattr(time, "monotonic", lambda original=time.monotonic: original() + HOUR)
        assert HOUR <= clock.seconds_since(real) < HOUR + 60


# --- a clock of MongoDB that is set -----------------------------------------------------------------

HOUR = 3600
Move = Callable[[int], Awaitable[None]]


@pytest.fixture
async def moving(settings: Settings, tmp_path: Path) -> AsyncIterator[tuple[Store, Settings, Move]]:
    """Return a store whose MongoDB has another clock, its settings, and a function that sets that clock."""
    offset = tmp_path / "offset"
    offset.write_text("+0\n")
    mongod = Mongod(tmp_path / "db", environment=movable_clock(offset))
    mongod.start()

    async def move(seconds: int) -> None:
        offset.with_suffix(".new").write_text(f"{seconds:+d}\n")
        offset.with_suffix(".new").rename(offset)
        with mongod.client() as direct:

            def has_moved() -> None:
                if not mongod.alive():  # the jump of a clock may end it
                    mongod.start()
                try:
                    rows = direct.admin.aggregate([{"$documents": [{}]}, {"$project": {"now": "$$NOW"}}])
                    told = direct.admin.command("hello")["localTime"], next(rows)["now"]
                except PyMongoError as exc:
                    raise AssertionError from exc
                for now in told:
                    assert abs((now.replace(tzinfo=UTC) - datetime.now(UTC)).total_seconds() - seconds) < 5

            await eventually_async(has_moved)

    settings = with_kinds(settings, tmp_path, db_uri=f"mongodb://{mongod.address}/x")
    try:
        async with open_store(settings) as store:
            yield store, settings, move
    finally:
        mongod.kill()


async def owe(store: Store, settings: Settings) -> set[str]:
    """Owe five e-mails, of which one is retried, one is held, one is leased, one is unknown here and one waits."""
    for n, key in enumerate(["receipt", "receipt", "receipt", "receipt", "comment"]):
        await store.create(Create(f"{n:024x}", settings.kinds[key]))
    retried, held, _leased, unknown = await store.outbox.claim(9, settings.mail_lease_seconds)
    await store.outbox.retry(retried, 60, "450 later", waited=60.0)
    await store.outbox.hold(held, 60, "stopped", held="kind receipt")
    await store.outbox.hold(unknown, 5, None)
    return {retried.id, held.id, unknown.id}


async def when_due(store: Store) -> dict[str, float]:
    """Return in how many seconds each e-mail is due, by MongoDB's clock."""
    await store.clock.sync()
    ids = [store.users.key(f"{n:024x}")["_id"] for n in range(5)]
    rows = await store.users.find({"_id": {"$in": ids}}, {"notifier": 1})
    items = [item for row in rows for item in row["notifier"].get("outbox", []) + row["notifier"].get("waiting", [])]
    now = store.clock.now()
    return {item["id"]: ((item.get("next_at") or item["due"]) - now).total_seconds() for item in items}


async def correct(store: Store) -> None:
    await store.upkeep.read_clock()
    await store.upkeep.correct()


async def test_after_mongodbs_clock_was_set_back_no_email_is_late(moving: tuple[Store, Settings, Move]) -> None:
    """E-mails that were put off while the clock was ahead would wait for an hour longer."""
    store, settings, move = moving
    await correct(store)  # as a start does
    await move(HOUR)
    await correct(store)
    waiting = await owe(store, settings)
    await move(0)
    await correct(store)
    due = await when_due(store)
    assert len(due) == 5
    assert {id_ for id_, seconds in due.items() if seconds < 0} == waiting
    lease, window = sorted(seconds for seconds in due.values() if seconds > 0)
    assert (lease <= settings.mail_lease_seconds, 0 < window <= 600) == (True, True), due
    again = await store.outbox.claim(9, settings.mail_lease_seconds)
    assert {email.id for email in again} == waiting


@pytest.mark.ci
async def test_a_start_corrects_what_is_known_to_be_from_the_future(
    moving: tuple[Store, Settings, Move],
) -> None:
    """Nobody saw the clock being set back: what a stop holds is found when the stop ends, and no later than that."""
    store, settings, move = moving
    await move(HOUR)
    await store.clock.sync()
    await owe(store, settings)
    await move(0)
    await store.clock.sync()
    await store.upkeep.correct()
    due = sorted((await when_due(store)).values())
    assert [due[0] < 0, due[1] <= settings.mail_lease_seconds, due[2] <= 600] == [True] * 3, due


@pytest.mark.ci
async def test_after_mongodbs_clock_was_set_ahead_no_email_is_late(moving: tuple[Store, Settings, Move]) -> None:
    """Waiting e-mails are due early, and e-mails put off later are due by the new clock."""
    store, settings, move = moving
    await correct(store)
    before = await owe(store, settings)
    await move(HOUR)
    assert all(seconds < 0 for seconds in (await when_due(store)).values())
    assert before <= {email.id for email in await store.outbox.claim(9, settings.mail_lease_seconds)}
    await correct(store)
    await store.create(Create(f"{0:024x}", settings.kinds["comment"]))
    latest = max((await when_due(store)).values())
    assert 590 < latest <= 600
