"""The commands of `docs/fewer.md`, with the kinds that the page shows."""

from __future__ import annotations

import asyncio
import re
import shlex
from pathlib import Path

from settings import Settings
from tests.client import DB, ROOT, settled
from tests.fixtures import Start
from tests.processes import command
from tests.programs import needed
from tests.servers import MailServer
from tests.templates import write
from tests.windows import end_windows

PAGE = (ROOT / "docs/fewer.md").read_text()
VALUES = r'"(id|timestamp)":"?\w+"?'


def block(language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return f"{found}"


def console() -> list[tuple[str, str]]:
    """Return the commands of the page, and what it shows that each says."""
    blocks = re.findall(r"^```console\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    parts = [part.partition("\n") for text in blocks for part in text.removeprefix("$ ").split("\n$ ")]
    return [(typed, shown.strip()) for typed, _, shown in parts]


async def test_the_page_does_what_it_says(
    start: Start, settings: Settings, database: DB, mail: MailServer, tmp_path: Path
) -> None:
    needed("curl")
    (tmp_path / "kinds.toml").write_text(block("toml"))
    templates = write(tmp_path, {"question_answered.txt": block("jinja")})
    client = await start(kinds_file=tmp_path / "kinds.toml", templates_dir=templates)
    for typed, shown in console():
        words = shlex.split(typed)
        if words[0] == "curl":
            url = words[-1].replace("http://127.0.0.1:8080", f"{client.make_url('')}".rstrip("/"))
            run = await asyncio.create_subprocess_exec(*words[:-1], "-sS", url, stdout=asyncio.subprocess.PIPE)
            said = (await run.communicate())[0].decode()
        else:
            _, said, _ = await command(settings, *words[2:], KINDS_FILE=f"{tmp_path / 'kinds.toml'}")
        assert re.sub(VALUES, "", said.strip()) == re.sub(VALUES, "", shown)
    end_windows(database, "question_answered")
    await settled(database)
    assert [(message["Subject"], f"{message.get_payload()}".split()) for _, message in mail.received] == [
        ("question_answered (2)", ["2", "answers:", "-", "Ann", "-", "Bob"])
    ]
