"""Clocks that are wrong: what is due, and how long something took, is told by MongoDB's clock or by a monotonic one."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from mongo.clock import Clock
from settings import Settings
from store import open_store
from tests.client import DB, USER, settled, user
from tests.faults import wrong_clock
from tests.processes import running_service
from tests.servers import MailServer
from tests.streams import Events, client_of, stream_url

OFFSETS = ["+70", "+180", "-180", "+3600", "-3600", "+5y", "-20y"]


def histogram(text: str, name: str) -> tuple[float, int]:
    """Return the sum and the count of a histogram."""
    found = [re.search(rf"^{name}_{part} (\S+)$", text, re.MULTILINE) for part in ("sum", "count")]
    assert all(found)
    total, count = (float(match[1]) for match in found if match)
    return total, int(count)


@pytest.mark.parametrize("offset", OFFSETS)
async def test_a_wrong_clock_delays_no_email_and_lengthens_no_measurement(
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


async def test_two_services_whose_clocks_disagree_take_no_email_from_each_other(
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
        await settled(database, 10)
        assert len(mail.ids) == len(set(mail.ids)) == 40
    finally:
        for service in services:
            service.kill()


async def test_the_clock_is_mongodbs_after_every_reading(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_store(settings) as store:
        clock: Clock = store.clock
        real = clock.now()
        assert abs((real - datetime.now(UTC)).total_seconds()) < 1  # here both have the same
        clock._time += timedelta(hours=1)
        assert clock.now() - real >= timedelta(hours=1)
        await clock.sync()
        assert abs((clock.now() - real).total_seconds()) < 2
        assert clock.seconds_since(clock.now() + timedelta(seconds=5)) == 0.0
        monkeypatch.setattr(time, "monotonic", lambda original=time.monotonic: original() + 10)
        assert 9 < clock.seconds_since(real) < 20
