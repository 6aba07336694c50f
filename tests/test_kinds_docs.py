"""`docs/kinds.md`, followed to the letter by a team with a MongoDB of string ids and five kinds of its own."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from api.bodies import json_bytes
from config.checks import field_path
from kinds import SETTINGS, SPECIFIED, describe_kinds, load_kinds
from settings import Settings
from tests.browser import local_run
from tests.client import DB, ROOT, assert_length
from tests.processes import Service, unconfigured
from tests.programs import needed, needed_by
from tests.servers import MailServer
from tests.templates import Rendered
from tests.waiting import eventually_async

PAGE = (ROOT / "docs/kinds.md").read_text()
USER = "u7Qb3nJ2vKxYz"
USERS = [
    {
        "_id": USER,
        "emails": [{"address": "ann@example.com", "verified": True}],
        "profile": {"name": "Ann", "language": "de"},
    },
    {"_id": "p9", "emails": [{"address": "bob@example.com"}], "profile": {"name": "Bob"}},
]
"""The first is the one that the page shows."""


def test_the_page_explains_every_setting_of_a_kind() -> None:
    assert all(f"| `{name}` |" in PAGE for name in SETTINGS)


def block(language: str) -> str:
    """Return the first block in this language."""
    found = re.search(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert found
    return found[1]


def console() -> list[tuple[str, str]]:
    """Return each command, and the output that the page shows for it."""
    blocks = re.findall(r"^```console\n\$ (.*?)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert PAGE.count("\n$ ") == len(blocks)
    return blocks


def write_files(folder: Path) -> None:
    """Write what the page says: the kinds, the templates and `.env`."""
    (folder / "kinds.toml").write_text(block("toml"))
    (folder / "templates").mkdir()
    for name, text in re.findall(r"^`templates/(\S+)`\n\n```jinja\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE):
        (folder / "templates" / name).write_text(text)
    (folder / ".env").write_text(block("sh"))
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "notifier.py").symlink_to(ROOT / "notifier.py")


@pytest.mark.ci
async def test_the_page_leads_to_a_local_run_too(tmp_path: Path) -> None:
    needed("curl")
    write_files(tmp_path)
    lines = block("sh").splitlines(keepends=True)
    assert [line.partition("=")[0] for line in lines[:5]] == [
        "EMAIL",
        "DB_URI",
        "SMTP_HOST",
        "SMTP_LOGIN",
        "SMTP_PASSWORD",
    ]
    (tmp_path / ".env").write_text("".join(lines[5:]))
    (store,) = re.findall(r"^```sh\n(\.venv.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    create = next(command for command, _ in console() if "/create" in command)
    async with local_run(tmp_path) as local:
        await asyncio.to_thread(shell, store, tmp_path)
        typed = create.replace("127.0.0.1:8080", f"127.0.0.1:{local.port}")
        assert await asyncio.to_thread(shell, typed, tmp_path) == '{"success": true}'
        await eventually_async(lambda: assert_length(local.mails(), 1))
    assert "Bestellung 1027 ist unterwegs" in local.mails()[0]


def shell(command: str, folder: Path, **variables: str) -> str:
    done = subprocess.run(
        ["/bin/bash", "-c", needed_by(command)],
        cwd=folder,
        env=unconfigured() | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == "" or "curl" in command
    return done.stdout


async def test_the_page_leads_from_a_clone_to_the_right_email(
    settings: Settings, database: DB, mail: MailServer, tmp_path: Path
) -> None:
    needed("curl")
    write_files(tmp_path)
    database.users.insert_many(USERS)
    servers = {
        "DB_URI": settings.db_uri,
        "SMTP_HOST": settings.smtp_host,
        "SMTP_PORT": f"{mail.port}",
        "SMTP_LOGIN": settings.smtp_login or "",
        "SMTP_PASSWORD": settings.smtp_password or "",
        "SMTP_CA_FILE": f"{settings.smtp_ca_file}",
        "SMTP_SECURITY": "tls",
    }
    service = Service(tmp_path, **servers)
    await eventually_async(lambda: _answers(service))

    def received() -> None:
        assert len(mail.received) == 1

    for command, shown in console():
        if " mail " in command:
            await eventually_async(received)
        typed = command.replace("127.0.0.1:8080", f"127.0.0.1:{service.port}")
        out = await asyncio.to_thread(shell, typed, tmp_path, **servers)
        text, whole, _ = shown.partition("…")
        answer = out if not whole else out[: len(text)]
        assert _without_values(answer.strip()) == _without_values(text.strip())
    ((recipient, message),) = mail.received
    assert (recipient, message["Subject"]) == ("ann@example.com", "Bestellung 1027 ist unterwegs")
    assert "die Bestellung 1027 wurde heute verschickt." in str(message.get_payload())
    assert database.users.count_documents({}) == len(USERS)
    created = 'curl -d \'{"user_id": "p9", "key": "order_shipped", "data": {"number": 8}}\''
    await asyncio.to_thread(shell, f"{created} http://127.0.0.1:{service.port}/create", tmp_path)
    await eventually_async(lambda: _received(mail, "bob@example.com", "Order 8 is on its way"))
    service.kill()


def _answers(service: Service) -> None:
    try:
        service.answers()
    except OSError as exc:
        raise AssertionError(service.log()) from exc


def _received(mail: MailServer, recipient: str, subject: str) -> None:
    assert (recipient, subject) in [(address, message["Subject"]) for address, message in mail.received]


def _without_values(text: str) -> str:
    """Return an answer without what differs each time."""
    return re.sub(r'("id":"|"timestamp":)\w+', r"\1?", text)


def test_the_page_of_the_api_shows_the_answer_without_a_file() -> None:
    assert f"/kinds\n{json_bytes(describe_kinds(SPECIFIED)).decode()}" in (ROOT / "docs/api.md").read_text()


def test_the_page_has_five_kinds_and_explains_every_setting() -> None:
    assert len(tomllib.loads(block("toml"))) == 5
    assert re.findall(r"^\| `(\w+)` \|", PAGE.partition("## Users")[0], re.MULTILINE) == list(SETTINGS)


def test_the_example_of_the_templates_is_one_of_two_languages(tmp_path: Path) -> None:
    write_files(tmp_path)
    templates = Rendered(tmp_path / "templates", load_kinds(tmp_path / "kinds.toml"))
    fields = {"key": "order_shipped", "data": {"number": 7}}
    assert [templates.render(fields, language).subject for language in ("de", "en")] == [
        "Bestellung 7 ist unterwegs",
        "Order 7 is on its way",
    ]


@pytest.mark.parametrize("path", re.findall(r"_FIELD=(\S+)", PAGE))
def test_the_paths_of_the_page_are_accepted(path: str) -> None:
    field_path(path)
