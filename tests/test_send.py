"""The command `send`: a list of any length, checked before anything is sent, and safe to send again."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId

from api.problems import BY_EXCEPTION
from cli.send import read_users, send
from kinds import SPECIFIED
from mongo.creation import Create
from mongo.errors import Conflict, Patience, UnknownUser
from settings import IdType, Settings
from store import open_store
from tests.client import DB, OTHER, ROOT, USER, Client, create, list_, settled
from tests.faults import HEARTBEATS, failing, impatient
from tests.processes import command
from tests.servers import MailServer, Mongod
from tests.waiting import eventually_async


def counts(database: DB) -> Counter[int]:
    """Return how many users have how many notifications."""
    return Counter(len(found.get("notifications", [])) for found in database.users.find())


MANY = "".join(f"{n:024x}\n" for n in range(2500))
"""More users than two requests may have."""
Listed = Callable[[str], str]


@pytest.fixture
def listed(tmp_path: Path) -> Listed:
    """Return a function that writes a list and returns its path."""

    def write(text: str) -> str:
        (tmp_path / "users.txt").write_bytes(text.encode(errors="surrogatepass"))
        return f"{tmp_path / 'users.txt'}"

    return write


async def test_sending_a_list_twice_notifies_everyone_once(settings: Settings, database: DB, listed: Listed) -> None:
    arguments = ("send", "new_post", "--users", listed(MANY), "--data")
    sent = await command(settings, *arguments, '{"n": 1}')
    assert sent[:2] == (0, "Created: 2500. Created before: 0. Failed: 0.\n")
    assert "100%" in sent[2]
    listed(MANY.upper().replace("\n", "\r\n\r\n"))  # the same list, written differently
    sent = await command(settings, *arguments, '{"n": 1}')
    assert sent[:2] == (0, "Created: 0. Created before: 2500. Failed: 0.\n")
    assert counts(database) == {1: 2500}
    sent = await command(settings, *arguments, '{"n": 2}')
    assert sent[1] == "Created: 2500. Created before: 0. Failed: 0.\n"
    assert counts(database) == {2: 2500}


async def test_a_list_that_has_grown_goes_on_under_its_key(settings: Settings, database: DB, listed: Listed) -> None:
    arguments = ("send", "new_post", "--users", listed(MANY), "--idempotency-key", "week-48")
    await command(settings, *arguments)
    listed(f"{USER}\n{MANY}{OTHER}\n")
    assert (await command(settings, *arguments))[1] == "Created: 2. Created before: 2500. Failed: 0.\n"
    assert counts(database) == {1: 2502}


async def test_standard_input_may_have_ids_and_json_objects(settings: Settings, client: Client) -> None:
    lines = ["\ufeff{}", "{}", '"{}"', '{{"user_id": "{}", "x": 1}}', '{{"_id": {{"$oid": "{}"}}}}']
    users = [f"{n:024x}" for n in range(len(lines))]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(ROOT / "notifier.py"), "send", "new_login", "--users", "-", "--target-id", OTHER.upper()),
        env={"DB_URI": settings.db_uri, "EMAIL": settings.email, "SMTP_HOST": "localhost"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    given = "\n\n".join(line.format(user_id) for line, user_id in zip(lines, users, strict=True))
    out, _ = await process.communicate(f"{given}\n\n".encode())
    assert (process.returncode, out) == (0, b"Created: 5. Created before: 0. Failed: 0.\n")
    for user_id in users:
        (stored,) = (await list_(client, user_id))["list"]
        assert (stored["key"], stored["target_id"]) == ("new_login", OTHER)


async def test_the_running_service_sends_the_emails(
    client: Client, settings: Settings, database: DB, mail: MailServer, listed: Listed
) -> None:
    await create(client)
    path = listed(f"{USER}\n{OTHER}\n{USER}\n")
    code, out, _ = await command(settings, "send", "registration", "--users", path)
    assert (code, out) == (0, "Created: 2. Created before: 1. Failed: 0.\n")
    await settled(database)
    assert len(mail.ids) == 2


async def test_nothing_is_sent_unless_every_line_is_a_user(settings: Settings, database: DB, listed: Listed) -> None:
    lines = ["nobody", "{", '{"user_id": 5}', '{"user_id": "x"}', "\ud800", '["a"]']
    path = listed(MANY + "\n".join(lines))
    arguments = ("send", "new_post", "--users", path)
    code, out, err = await command(settings, *arguments)
    assert (code, out) == (2, "")
    assert err.splitlines() == [f"{path}, line {n}: Not a valid ObjectId." for n in range(2501, 2507)]
    listed("?\n" * 100)
    code, _, err = await command(settings, *arguments)
    assert (code, len(err.splitlines()), err.splitlines()[-1]) == (2, 21, f"{path}: 80 more lines like these.")
    listed("\n \n")
    assert (await command(settings, *arguments))[::2] == (2, f"{path}: names no user.\n")
    missing = f"{path}.missing"
    sent = await command(settings, *arguments[:3], missing)
    assert sent[::2] == (2, f"{missing}: No such file or directory.\n")
    assert database.users.count_documents({}) == 0


async def test_every_fault_of_the_notification_is_told(settings: Settings, listed: Listed) -> None:
    arguments = ("--users", listed(MANY), "--data", '{"$a": 1}', "--target-id", "x", "--idempotency-key", "ö")
    code, _, err = await command(settings, "send", "nonsense", *arguments)
    assert code == 2
    assert all(f"{name}: " in err for name in ("key", "data", "target_id", "Idempotency-Key"))
    code, _, err = await command(settings, "send", "new_post", "--users", listed(MANY), "--data", "{")
    assert (code, err.startswith("data: not JSON: ")) == (2, True)


async def test_those_who_cannot_be_notified_are_named_with_the_reason(
    settings: Settings, database: DB, listed: Listed
) -> None:
    database.users.insert_many([{"_id": "ann"}, {"_id": "zoë", "notifications": 5}])
    variables = {"ID_TYPE": IdType.STRING.value, "UNKNOWN_USERS": "refuse"}
    code, out, err = await command(settings, "send", "new_post", "--users", listed("ann\nbob\nzoë\n"), **variables)
    assert (code, out) == (1, "Created: 1. Created before: 0. Failed: 2.\n")
    assert f"bob: {BY_EXCEPTION[UnknownUser].detail}" in err
    assert f"zoë: {BY_EXCEPTION[Conflict].detail}" in err
    assert "To go on" not in err


@impatient
@pytest.mark.ci
async def test_without_mongodb_it_stops_and_the_next_run_goes_on(
    settings: Settings,
    mongod: Mongod,
    database: DB,
    listed: Listed,
    capsys: pytest.CaptureFixture[str],
    patience: Patience,
) -> None:
    new = Create("0" * 24, SPECIFIED["new_post"])
    again = replace(settings, db_uri=f"{settings.db_uri}?{HEARTBEATS}")
    users = read_users(listed(MANY), IdType.OBJECTID)
    async with open_store(again, patience=patience) as store:
        with failing(mongod, ["update", "findAndModify"], {"skip": 5}, errorCode=91):
            assert await send(store, users, new) == 1
        before = database.users.count_documents({})
        assert 0 < before < 2000
        out, err = capsys.readouterr()
        assert out == f"Created: {before}. Created before: 0. Failed: {2000 - before}.\n"
        assert re.search(r"Not tried, as MongoDB does not answer: 500\.\nTo go on, .* --idempotency-key \w{32}: ", err)
        assert await send(store, users, new) == 0
    assert capsys.readouterr().out == f"Created: {2500 - before}. Created before: {before}. Failed: 0.\n"
    assert counts(database) == {1: 2500}


@pytest.mark.ci
async def test_an_interrupted_sending_goes_on_where_it_was(settings: Settings, database: DB, tmp_path: Path) -> None:
    path = tmp_path / "many.ndjson"
    path.write_text("".join(json.dumps({"_id": {"$oid": f"{n:024x}"}}) + "\n" for n in range(8_000)))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(ROOT / "notifier.py"), "send", "new_post", "--users", f"{path}"),
        env={"DB_URI": settings.db_uri, "EMAIL": settings.email, "SMTP_HOST": "localhost"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )

    def some() -> None:
        assert database.users.find_one({"_id": ObjectId(f"{1500:024x}")})

    await eventually_async(some, 30)
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    assert (process.returncode, out) == (130, b"")
    (key,) = re.findall(rb"Interrupted\. To go on, run the command again with --idempotency-key (\w{32}): nobody", err)
    assert b"Traceback" not in err
    done = database.users.count_documents({})
    assert 1500 < done < 8_000
    arguments = ("--users", f"{path}", "--idempotency-key", key.decode())
    _, again, _ = await command(settings, "send", "new_post", *arguments)
    counted: Any = [int(part.split(": ")[1]) for part in again.strip().rstrip(".").split(". ")]
    assert (sum(counted), counted[1] >= done, counted[2]) == (8_000, True, 0)
    assert counts(database) == {1: 8_000}
