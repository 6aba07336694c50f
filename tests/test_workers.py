"""Several processes that share a port."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import pytest
from aiohttp import ClientSession, TCPConnector

from settings import Settings
from tests.client import USER
from tests.processes import Service, run, running_service
from tests.servers import free_port
from tests.waiting import eventually_async

pytestmark = pytest.mark.ci


def children(pid: int) -> list[int]:
    """Return the ids of the child processes."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            if int(path.read_text().rsplit(")", 1)[1].split()[1]) == pid:
                found.append(int(path.parent.name))
    return found


def alive(pids: list[int]) -> list[int]:
    """Return those of the processes that have not ended."""
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


async def fetch(service: Service, path: str) -> str:
    """Return the answer to a GET over a connection of its own, which may reach any worker."""
    async with (
        ClientSession(connector=TCPConnector(force_close=True)) as session,
        session.get(f"http://127.0.0.1:{service.port}{path}") as response,
    ):
        response.raise_for_status()
        return await response.text()


async def counted(service: Service) -> int:
    """Return how many lists the metrics count."""
    found = re.search(
        r"^notifier_http_request_duration_seconds_count{.*/list.*} (\d+)",
        await fetch(service, "/metrics"),
        re.MULTILINE,
    )
    return int(found[1]) if found else 0


def metrics_files(folder: Path) -> set[Path]:
    """Return the files of the workers' metrics below a folder."""
    return set(folder.glob("notifier-metrics-*/*.db"))


async def test_workers_share_a_port_and_a_dead_one_is_replaced(settings: Settings, tmp_path: Path) -> None:
    service = await running_service(settings, tmp_path, WORKERS=3, TMPDIR=tmp_path)

    def all_listen() -> None:
        assert len(children(service.process.pid)) == 3
        assert service.log().count("listening on") >= 3

    await eventually_async(all_listen)
    await asyncio.gather(*(fetch(service, f"/list?user_id={USER}") for _ in range(60)))
    assert [await counted(service) for _ in range(5)] == [60] * 5
    before, files = children(service.process.pid), metrics_files(tmp_path)
    os.kill(before[0], signal.SIGKILL)

    def replaced() -> None:
        now = children(service.process.pid)
        assert len(now) == 3
        assert before[0] not in now
        assert service.log().count("listening on") == 4

    await eventually_async(replaced)
    assert await counted(service) == 60
    assert metrics_files(tmp_path) == files  # a worker that died leaves none behind
    second = await asyncio.to_thread(run, cwd=tmp_path, **service.environment)
    assert second.returncode == 1
    assert (
        second.stderr == f"The service cannot listen on HOST 127.0.0.1, PORT {service.port}: Address already in use.\n"
    )
    service.signal(signal.SIGTERM)
    assert await asyncio.to_thread(service.process.wait, 10) == 0
    assert not alive(before)


async def test_workers_bear_that_tmp_is_cleaned(settings: Settings, tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    service = await running_service(settings, tmp_path, WORKERS=2, TMPDIR=temporary)

    def both_listen() -> None:
        assert service.log().count("listening on") == 2

    await eventually_async(both_listen)
    assert list(temporary.glob("notifier-metrics-*/*.db"))
    shutil.rmtree(temporary)
    await fetch(service, f"/list?user_id={USER}")
    for _ in range(10):
        assert "notifier_emails_owed" in await fetch(service, "/metrics")
    before = children(service.process.pid)
    os.kill(before[0], signal.SIGKILL)

    def replaced() -> None:
        assert len(set(children(service.process.pid)) - set(before)) == 1
        assert service.log().count("listening on") == 3

    await eventually_async(replaced)
    for _ in range(20):  # either worker answers
        assert "notifier_emails_owed" in await fetch(service, "/metrics")
        assert "elements" in await fetch(service, f"/list?user_id={USER}")
    service.signal(signal.SIGTERM)
    assert await asyncio.to_thread(service.process.wait, 10) == 0
    assert "Traceback" not in service.log()


async def test_workers_end_with_their_supervisor(settings: Settings, tmp_path: Path) -> None:
    service = await running_service(settings, tmp_path, WORKERS=2)
    workers = children(service.process.pid)
    service.kill()

    def gone() -> None:
        assert not alive(workers)

    await eventually_async(gone)


def test_workers_that_cannot_start_say_why_in_one_sentence(tmp_path: Path) -> None:
    service = Service(
        tmp_path,
        WORKERS=2,
        EMAIL="a@example.com",
        SMTP_HOST="x",
        DB_URI=f"mongodb://127.0.0.1:{free_port()}",
        START_TIMEOUT=1,
    )
    assert service.process.wait(30) == 1
    # A worker that ends just as it is told to is unknown to asyncio.
    expected = ("waiting for MongoDB", "Unknown child process")
    (why,) = {line for line in service.log().splitlines() if not any(words in line for words in expected)}
    assert why.startswith("MongoDB cannot be reached: ")
    assert why.endswith("The service waited for 1 s (START_TIMEOUT).")
