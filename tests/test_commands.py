"""The commands for operators."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from argparse import ArgumentTypeError
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import jwt
import pytest
from bson import ObjectId

from api.auth import sign_token
from cli.emails import since
from settings import Settings
from tests.client import DB, KEY, OTHER, PROTECTED, ROOT, SECRET, USER, Client, create, settled
from tests.faults import scripted
from tests.fixtures import Start
from tests.processes import VARIABLES, command, command_process, run_here
from tests.servers import MailServer, free_port
from tests.waiting import eventually_async

COMMANDS = ("check", "health", "status", "dead", "retry", "discard", "flush", "mail", "token", "send", "preview")


def test_help_explains_every_variable(tmp_path: Path) -> None:
    done = run_here("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert all(f"  {name} " in done.stdout for name in VARIABLES)


@pytest.mark.parametrize(
    "arguments",
    [
        "dead",
        "dead --since yesterday",
        "retry nonsense",
        "discard nonsense",
        f"mail {USER}",
        "mail nobody",
        "token nobody",
        "status --json",
        "check",
        "preview new_login",
        "send nonsense --users /dev/null",
        "",
    ],
)
async def test_a_command_does_the_same_in_a_process_of_its_own(settings: Settings, arguments: str) -> None:
    """So that other tests may run commands in their own."""
    given = {"SMTP_PORT": "1", "PORT": f"{free_port()}"}
    if not arguments:
        given["DB_URI"] = "nonsense"
    here = await command(settings, *arguments.split(), **given)
    assert here == await command_process(settings, *arguments.split(), **given)


async def test_dead_letters_are_listed_and_owed_again(
    client: Client, settings: Settings, database: DB, mail: MailServer
) -> None:
    assert await command(settings, "dead") == (0, "There are no dead letters.\n", "")
    mail.script = scripted({"RCPT": ["550 5.1.1 unknown", "550 5.1.1 unknown"]})
    for user_id in (USER, OTHER):
        await create(client, user_id, "registration")
    await settled(database)
    first, second = database.dead_mail.find()
    code, out, _ = await command(settings, "dead")
    assert code == 0
    assert all(text in out for text in (first["_id"], USER, OTHER, "registration", "RCPT: 550 5.1.1 unknown"))
    code, out, _ = await command(settings, "dead", "--json")
    assert out.count('"error": "RCPT: 550 5.1.1 unknown"') == len(out.splitlines()) == 2
    code, out, err = await command(settings, "retry", first["_id"], "nonsense")
    assert (code, out) == (1, "Owed again: 1.\n")
    assert "nonsense: there is no such dead letter." in err
    await settled(database)
    assert mail.ids == [first["_id"]]
    database.users.delete_one({"_id": ObjectId(second["user_id"])})
    code, out, err = await command(settings, "retry", "--all")
    assert (code, out) == (1, "Owed again: 0.\n")
    assert f"{second['_id']}: its user no longer exists." in err
    assert [letter["_id"] for letter in database.dead_mail.find()] == [second["_id"]]


async def test_dead_letters_are_chosen_by_kind_and_time_and_discarded(settings: Settings, database: DB) -> None:
    now = datetime.now(UTC)
    letter = {"user_id": USER, "email": None, "tries": 1, "error": "DATA: 554 no"}
    database.dead_mail.insert_many(
        {"_id": id_, "key": key, "died_at": now - age, **letter}
        for id_, key, age in (
            ("new", "new_login", timedelta(minutes=5)),
            ("old", "new_login", timedelta(days=2)),
            ("gone", "a_kind_of_old", timedelta(hours=3)),
        )
    )

    async def listed(*arguments: str) -> list[str]:
        code, out, _ = await command(settings, "dead", "--json", *arguments)
        assert code == 0
        return [json.loads(line)["_id"] for line in out.splitlines()]

    four_hours = (now - timedelta(hours=4)).astimezone(timezone(timedelta(hours=5)))
    assert await listed() == ["old", "gone", "new"]
    assert await listed("--key", "a_kind_of_old") == ["gone"]
    assert await listed("--since", "3d", "--key", "new_login") == ["old", "new"]
    assert await listed("--since", "1h") == ["new"]
    assert await listed("--since", four_hours.isoformat()) == ["gone", "new"]
    assert (await command(settings, "dead", "--key", "nothing"))[1] == "There are no such dead letters.\n"
    code, _, err = await command(settings, "dead", "--since", "yesterday")
    assert (code, "not a time such as 2026-11-25T10:00" in err) == (2, True)

    code, out, err = await command(settings, "discard", "gone", "nonsense")
    assert (code, out, err) == (1, "Discarded: 1.\n", "nonsense: there is no such dead letter.\n")
    assert (await command(settings, "discard", "--all"))[:2] == (0, "Discarded: 2.\n")
    assert database.dead_mail.count_documents({}) == 0


async def test_discard_owed_clears_a_copy_of_production(settings: Settings, database: DB) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    email = {"id": "x", "key": "new_login", "at": now, "next_at": now, "tries": 0, "token": "a" * 24}
    notifier = {"outbox": [email, email], "due": now}
    rest = {"notifications": [{"id": "x"}]}
    database.users.insert_many({"_id": ObjectId(), "notifier": notifier, **rest} for _ in range(3))
    database.users.insert_one({"_id": ObjectId(USER), "notifier": {**notifier, "preferences": {"*": {"email": False}}}})
    database.users.insert_one({"_id": ObjectId(OTHER), "notifier": [notifier]})  # another program's
    window = {"id": "y", "key": "digest", "due": now}
    database.users.insert_one({"_id": ObjectId(), "notifier": {"waiting": [window, window], "due": now}})
    waited = "Nor will there be e-mails about 2 notifications that waited for theirs.\n"
    assert await command(settings, "discard", "--owed") == (0, f"Discarded: 8 e-mails that were owed.\n{waited}", "")
    assert await command(settings, "discard", "--owed") == (0, "Discarded: 0 e-mails that were owed.\n", "")
    kept = list(database.users.find())
    assert [set(user) - {"_id"} for user in kept] == [{"notifications"}] * 3 + [{"notifier"}] * 2 + [set()]
    assert [user["notifier"] for user in kept[3:5]] == [{"preferences": {"*": {"email": False}}}, [notifier]]
    database.users.delete_many({})


@pytest.mark.ci
def test_help_explains_a_command_and_an_error_names_them_all(tmp_path: Path) -> None:
    listed = run_here("--help", cwd=tmp_path).stdout.partition("\ncommands:\n")[2].partition("\n\n")[0]
    assert set(re.findall("^    ([a-z]+) ", listed, re.MULTILINE)) == set(COMMANDS)
    for name in COMMANDS:
        done = run_here(name, "--help", cwd=tmp_path)
        usage, sentence, *_ = done.stdout.split("\n\n")
        assert usage.startswith(f"usage: notifier.py {name}")
        assert re.match("[A-Z].*\\.", sentence, re.DOTALL), name
        assert ("KIND" in usage) == (name in {"dead", "preview", "send"})
    done = run_here("stauts", cwd=tmp_path)
    assert done.returncode == 2
    assert "argument COMMAND: invalid choice: 'stauts' (choose from " in done.stderr


async def test_stored_text_cannot_control_the_terminal(settings: Settings, database: DB) -> None:
    letter = {"_id": "a\x1b]0;b", "user_id": USER, "tries": 1, "email": "a@b.example", "died_at": datetime.now(UTC)}
    letter |= {"at": letter["died_at"]}
    database.dead_mail.insert_one(letter | {"key": "x\n\x1b[2Jy", "error": "RCPT: 550 \x9b1m"})
    out = (await command(settings, "dead"))[1]
    assert (len(out.splitlines()), "x??[2Jy" in out) == (2, True)
    code, _, err = await command(settings, "retry", "a\x1b]0;b", "\x1b[2J")
    assert code == 1
    assert (out + err).replace("\n", "").isprintable()


@pytest.mark.parametrize("wrong", ["yesterday", "2h30m", "999999d", "2026-13-01", "", "1w", "0001-01-01T00:00+14:00"])
def test_an_invalid_time_is_refused(wrong: str) -> None:
    with pytest.raises(ArgumentTypeError):
        since(wrong)


def test_a_time_without_a_zone_is_utc() -> None:
    assert since("2026-11-25T10:00") == since("2026-11-25T12:00+02:00") == datetime(2026, 11, 25, 10, tzinfo=UTC)
    assert abs(datetime.now(UTC) - timedelta(hours=2) - since("2h")) < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("command", "reader", "errors"),
    [
        ("dead", "| head -1", ""),
        ("dead --json", "| true", ""),
        ("--help", "| true", ""),
        ("preview new_login", "| true", ""),
        ("dead", ">&-", ""),
        ("dead", "> /dev/full", "The output cannot be written: No space left on device.\n"),
    ],
)
async def test_a_reader_that_stops_reading_is_not_an_error(
    settings: Settings, database: DB, command: str, reader: str, errors: str
) -> None:
    letter = {"user_id": USER, "key": "new_login", "tries": 1, "email": "a@b.example", "error": "RCPT: 550 no"}
    database.dead_mail.insert_many([{"_id": f"{n:024x}", "died_at": datetime.now(UTC), **letter} for n in range(500)])
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", f"set -o pipefail; {sys.executable} {ROOT}/notifier.py {command} {reader}"),
        env={"DB_URI": settings.db_uri, "EMAIL": settings.email, "SMTP_HOST": "localhost", "PATH": os.environ["PATH"]},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    _, err = await process.communicate()
    assert (process.returncode, err.decode()) == (1 if errors else 0, errors)


async def test_mail_shows_the_emails_of_a_user(
    start: Start, settings: Settings, database: DB, mail: MailServer
) -> None:
    client = await start()
    assert (await command(settings, "mail", USER))[1] == "The user is owed no e-mail and has no dead letter.\n"
    mail.script = scripted({"RCPT": ["550 5.2.1 no"]})
    await create(client, key="registration")
    await settled(database)
    await client.close()
    await create(await start(smtp_port=free_port()), key="new_login")

    async def shown() -> None:
        code, out, _ = await command(settings, "mail", USER.upper())
        assert code == 0
        owed, dead = out.splitlines()
        assert re.search(r"new_login .* next attempt .* request \w{32}  connect: ", owed)
        assert re.search(r"registration .* died .* request \w{32}  RCPT: 550 5.2.1 no", dead)

    await eventually_async(shown)  # once it was tried
    code, _, err = await command(settings, "mail", "nobody")
    assert (code, err) == (2, "USER_ID: Not a valid ObjectId.\n")


async def test_token_prints_a_token_that_the_service_accepts(start: Start, settings: Settings) -> None:
    code, _, err = await command(settings, "token", USER)
    assert (code, err) == (1, "USER_TOKEN_SECRETS is not set.\n")
    client = await start(**PROTECTED)
    secrets = {"API_KEYS": KEY, "USER_TOKEN_SECRETS": SECRET}
    code, out, _ = await command(settings, "token", USER, "--ttl", "60", **secrets)
    assert code == 0
    response = await client.get(f"/list?user_id={USER}", headers={"Authorization": f"Bearer {out.strip()}"})
    assert response.status == 200
    assert jwt.decode(sign_token(SECRET, USER, 5), SECRET, ["HS256"])["sub"] == USER
