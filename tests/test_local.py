"""The local run: an embedded MongoDB and mailbox."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from settings import Settings
from tests.bad_input import with_
from tests.browser import local_run
from tests.client import KEY, OLD_KEY, ROOT, USER, assert_length
from tests.demo import run_shell
from tests.processes import LocalRun, mongods_of, run
from tests.servers import free_port
from tests.waiting import eventually, eventually_async

pytestmark = pytest.mark.ci


def test_a_local_run_serves_sends_and_keeps_its_data(tmp_path: Path) -> None:
    local = LocalRun(tmp_path)
    assert local.get("/create", with_()) == {"success": True}
    eventually(lambda: assert_length(local.mails(), 1))
    assert "Subject: new_login" in local.mails()[0]
    assert (tmp_path / ".notifier").stat().st_mode & 0o777 == 0o700  # users' data, on a machine of several people
    local.end(signal.SIGKILL)
    local = LocalRun(tmp_path)
    assert local.get("/list?user_id=" + USER)["data"]["elements"] == 1
    assert local.end(signal.SIGTERM) == 0
    assert not mongods_of(tmp_path)
    output = (tmp_path / "output").read_text()
    assert "ended with exit code" not in output
    assert "LOCAL RUN" in output
    assert f"Open http://127.0.0.1:{local.port}/ in a browser" in output
    assert "curl" in output
    assert "@" not in re.sub(r"curl.*", "", output)


@pytest.mark.parametrize("keys", [{}, {"API_KEYS": f"{OLD_KEY},{KEY}"}])
async def test_the_curls_of_the_banner_work_when_pasted(tmp_path: Path, keys: dict[str, str]) -> None:
    async with local_run(tmp_path, **keys):
        output = (tmp_path / "output").read_text()
        create, list_ = re.findall("^  (curl .*)$", output, re.MULTILINE)
        assert not re.search(f"{KEY}|{OLD_KEY}", output)
        assert await asyncio.to_thread(run_shell, create) == {"success": True}
        listed: Any = await asyncio.to_thread(run_shell, list_)
        assert listed["data"]["elements"] == 1


async def test_the_page_stores_the_user_of_the_banner(tmp_path: Path) -> None:
    page = (ROOT / "docs/configuration.md").read_text().partition("### A test user")[2]
    (command,) = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    async with local_run(tmp_path, UNKNOWN_USERS="refuse") as local:
        assert 'store that user first: docs/configuration.md, "A test user"' in (tmp_path / "output").read_text()
        with pytest.raises(HTTPError, match="404"):
            await asyncio.to_thread(local.get, "/create", with_())
        typed = ["/bin/sh", "-c", command.replace(".venv/bin/python", sys.executable)]
        await asyncio.to_thread(subprocess.run, typed, cwd=tmp_path, check=True)
        assert await asyncio.to_thread(local.get, "/create", with_()) == {"success": True}
        await eventually_async(lambda: assert_length(local.mails(), 1))
        assert "To: ann@example.com" in local.mails()[0]


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("FE80:0::1", "http://[fe80::1]:80"),
        ("Box.local", "http://box.local:80"),
    ],
)
def test_the_banner_calls_the_service_by_an_address_that_works(host: str, url: str) -> None:
    assert Settings(host=host, port=80).url == url


def test_the_mongod_of_a_killed_local_run_ends_too(tmp_path: Path) -> None:
    local = LocalRun(tmp_path)
    assert mongods_of(tmp_path)
    local.end(signal.SIGKILL)

    def gone() -> None:
        assert not mongods_of(tmp_path)

    eventually(gone)


def test_a_local_run_ends_in_time_although_its_mongod_hangs(tmp_path: Path) -> None:
    local = LocalRun(tmp_path)
    (mongod,) = [int(id_) for id_ in mongods_of(tmp_path) if "mongod" in f"{Path(f'/proc/{id_}/exe').readlink()}"]
    os.kill(mongod, signal.SIGSTOP)
    local.end(signal.SIGTERM)

    def gone() -> None:
        assert not mongods_of(tmp_path)

    eventually(gone)


def test_a_local_run_ends_when_its_mongodb_does_and_says_so(tmp_path: Path) -> None:
    local = LocalRun(tmp_path)
    (mongod,) = [int(id_) for id_ in mongods_of(tmp_path) if "mongod" in f"{Path(f'/proc/{id_}/exe').readlink()}"]
    os.kill(mongod, signal.SIGKILL)
    assert local.process.wait(30) == 1
    output = (tmp_path / "output").read_text()
    sentence = "The MongoDB of the local run ended with exit code -9: see .notifier/mongod.log."
    assert f"{sentence} The local run ends." in output
    assert output.splitlines()[-1] == sentence


def test_a_second_local_run_in_a_folder_ends_with_the_reason(tmp_path: Path) -> None:
    local = LocalRun(tmp_path)
    done = run(cwd=tmp_path, PORT=str(free_port()))
    assert (done.returncode, "another local run" in done.stderr) == (1, True)
    assert local.get("/list?user_id=" + USER)
    local.end(signal.SIGTERM)
