"""The process: how it fails to start, and how it stops."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path

from settings import Settings
from tests.client import DB, KEY
from tests.processes import run, running_service
from tests.servers import free_port


def test_a_wrong_configuration_is_exit_code_2(tmp_path: Path) -> None:
    done = run(cwd=tmp_path, PORT="0", DB_URI="x")
    assert done.returncode == 2
    assert all(name in done.stderr for name in ("PORT", "DB_URI", "EMAIL", "SMTP_HOST"))
    assert "Traceback" not in done.stderr


def test_an_unreachable_database_ends_the_start_with_one_sentence(tmp_path: Path) -> None:
    uri = f"mongodb://user:hunter2@127.0.0.1:{free_port()}/x"
    done = run(cwd=tmp_path, DB_URI=uri, EMAIL="a@b.example", SMTP_HOST="x", START_TIMEOUT="1")
    assert (done.returncode, done.stderr.splitlines()[-1][:7]) == (1, "MongoDB")
    assert "hunter2" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_conflicting_index_ends_the_start_with_one_sentence(settings: Settings, database: DB, tmp_path: Path) -> None:
    database.users.create_index("mail_due", name="mail_due_1", unique=True)
    done = run(cwd=tmp_path, DB_URI=settings.db_uri, EMAIL="a@b.example", SMTP_HOST="x")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "The service cannot start: MongoDB's error 86 IndexKeySpecsConflict."
    assert "Traceback" not in done.stderr


async def test_after_sigterm_it_is_unready_at_once_and_ends_within_8_seconds(
    settings: Settings, tmp_path: Path
) -> None:
    service = await running_service(settings, tmp_path, API_KEYS=KEY)
    started = time.monotonic()
    service.signal(signal.SIGTERM)
    await asyncio.sleep(0.3)
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 503")
    writer.close()
    assert await asyncio.to_thread(service.process.wait, 10) == 0
    assert time.monotonic() - started < 8
