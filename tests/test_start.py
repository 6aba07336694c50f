"""Waiting for MongoDB at the start."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mongo.serving import LOG_INTERVAL
from tests.client import ROOT
from tests.processes import Service, run
from tests.servers import Mongod, free_port, initiate
from tests.waiting import eventually, slow_clock

pytestmark = pytest.mark.ci

PASSWORD_IS: dict[str, Any] = {"pwd": "pw"}
REST = {"EMAIL": "a@b.example", "SMTP_HOST": "x"}


def waits(service: Service) -> list[str]:
    return re.findall(r"waiting for MongoDB, for \d+ s more at the longest: [^\"]*", service.log())


async def test_it_waits_for_mongodb_and_says_so_then_serves(tmp_path: Path) -> None:
    late = Mongod(tmp_path / "db")
    service = Service(tmp_path, DB_URI=f"mongodb://user:hunter2@{late.address}/x?authSource=admin", **REST)
    try:
        started = time.monotonic()
        await asyncio.to_thread(eventually, lambda: assert_some(waits(service)), 60)
        await asyncio.sleep(2)
        assert service.process.poll() is None
        assert len(waits(service)) <= 1 + (time.monotonic() - started) / LOG_INTERVAL
        assert waits(service)[0].endswith("Connection refused.")
        told = len(waits(service))
        service.kill()
        service.environment["DB_URI"] = f"mongodb://{late.address}/x"
        service.restart()
        await asyncio.to_thread(eventually, lambda: assert_some(waits(service)[told:]), 60)
        await asyncio.to_thread(late.start)
        await asyncio.to_thread(eventually, service.answers, 60)
        assert "hunter2" not in service.log()
    finally:
        service.kill()
        late.kill()


async def test_it_waits_for_a_replica_set_that_is_not_initiated_yet(tmp_path: Path) -> None:
    mongod = Mongod(tmp_path / "db", "rs0")
    await asyncio.to_thread(mongod.start)
    service = Service(tmp_path, DB_URI=f"mongodb://{mongod.address}/x?replicaSet=rs0", **REST)
    try:
        await asyncio.to_thread(eventually, lambda: assert_some(waits(service)), 60)
        assert service.process.poll() is None, service.log()
        await asyncio.to_thread(initiate, [mongod], "rs0")
        await asyncio.to_thread(eventually, service.answers, 60)
    finally:
        service.kill()
        mongod.kill()


@pytest.mark.parametrize("fault", ["refused", "unknown host", "silent"])
async def test_after_the_start_timeout_it_ends_with_one_sentence(tmp_path: Path, fault: str) -> None:
    server = socket.create_server(("127.0.0.1", 0))  # which accepts nothing
    hosts = {
        "refused": f"127.0.0.1:{free_port()}",
        "unknown host": "nowhere.invalid",
        "silent": f"127.0.0.1:{server.getsockname()[1]}",
    }
    started = time.monotonic()
    with slow_clock() as elapsed:
        variables = {"DB_URI": f"mongodb://{hosts[fault]}/x", "START_TIMEOUT": "4", **REST}
        done = await asyncio.to_thread(run, cwd=tmp_path, **variables)
        assert elapsed() < 15
    server.close()
    assert time.monotonic() - started >= 4
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("The service waited for 4 s (START_TIMEOUT).")
    assert "Traceback" not in done.stderr


async def test_sigterm_ends_the_waiting(tmp_path: Path) -> None:
    service = Service(tmp_path, DB_URI=f"mongodb://127.0.0.1:{free_port()}/x", **REST)
    await asyncio.to_thread(eventually, lambda: assert_some(waits(service)), 60)
    service.signal(signal.SIGTERM)
    assert await asyncio.to_thread(service.process.wait, 9) == 0
    assert "Traceback" not in service.log()


def assert_some(found: list[str]) -> None:
    assert found


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Run a MongoDB that asks for a login."""
    server = Mongod(tmp_path_factory.mktemp("guarded"), None, "--auth")
    server.start()
    with server.client() as client:
        client.admin.command("createUser", "root", roles=["root"], **PASSWORD_IS)
    yield server
    server.kill()


def test_a_wrong_password_ends_the_start_at_once_with_code_2(tmp_path: Path, guarded: Mongod) -> None:
    uri = f"mongodb://root:hunter2@{guarded.address}/x?authSource=admin"
    done = run(cwd=tmp_path, DB_URI=uri, **REST, START_TIMEOUT="50")
    assert (done.returncode, "waited" in done.stderr) == (2, False)
    assert "refuses the user name or password of DB_URI" in done.stderr
    assert "hunter2" not in done.stderr


def test_workers_wait_as_one_process_does_and_all_end_then(tmp_path: Path) -> None:
    # Without the waiting, a worker would count as started after 8 s.
    code = "import sys, ops.listening, notifier; ops.listening.STARTING_PERIOD = 8; notifier.run()"
    variables = {"DB_URI": f"mongodb://127.0.0.1:{free_port()}/x", "WORKERS": "2", "START_TIMEOUT": "10", **REST}
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.argv[0] = {str(ROOT / 'notifier.py')!r}; {code}"],
        cwd=tmp_path,
        env={**os.environ, **variables, "PYTHONPATH": str(ROOT), "PORT": f"{free_port()}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "The service waited for 10 s (START_TIMEOUT)." in done.stderr
    assert "it is started again" not in done.stderr
