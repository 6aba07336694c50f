"""The container image: its files, put together as Docker would, are all that the service needs."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from api.openapi import VERSION
from settings import Settings
from tests.client import ROOT
from tests.processes import VARIABLES
from tests.servers import free_port
from tests.waiting import eventually_async

WINGS = ("api", "config", "mail", "mongo", "ops")
WILDCARDS = {"**/": "(.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def is_ignored(name: str, patterns: list[str]) -> bool:
    """Apply .dockerignore: the last pattern that matches a path or a folder above it decides."""
    ignored = False
    for pattern in patterns:
        if re.fullmatch(f"{expression(pattern.removeprefix('!'))}(/.*)?", name):
            ignored = not pattern.startswith("!")
    return ignored


def expression(pattern: str) -> str:
    pieces = re.split(r"(\*\*/|\*\*|\*|\?)", pattern.strip("/"))
    return "".join(WILDCARDS.get(piece, re.escape(piece)) for piece in pieces)


def copied(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Yield each file that the Dockerfile copies, and where to. Raises where a `COPY` finds nothing, as Docker does."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    for instruction in re.findall(r"^COPY (.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE):
        *sources, target = instruction.split()
        for source in sources:
            found = list(files_of(source, patterns))
            assert found, f"COPY {source} copies nothing"
            yield from ((file, folder / target / name) for file, name in found)


def files_of(source: str, patterns: list[str]) -> Iterator[tuple[Path, Path]]:
    """Yield the files that Docker sends for a source, and their names below the target: a folder's own name is none."""
    for top in ROOT.glob(source):
        for file in top.rglob("*") if top.is_dir() else [top]:
            if file.is_file() and not is_ignored(file.relative_to(ROOT).as_posix(), patterns):
                yield file, file.relative_to(top if top.is_dir() else ROOT)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Return a folder with nothing but the files of the image."""
    folder = tmp_path / "image"
    for file, target in copied(folder):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    return folder


async def test_the_image_has_all_that_the_service_needs(image: Path, settings: Settings) -> None:
    for folder in (*WINGS, "web"):
        assert names(image / folder) == {name for name in names(ROOT / folder) if not name.endswith(".pyc")}
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    port = free_port()
    variables = {
        "DB_URI": settings.db_uri,
        "EMAIL": settings.email,
        "SMTP_HOST": settings.smtp_host,
        "HOST": "127.0.0.1",
        "PORT": f"{port}",
        "DEMO": "1",
        "KINDS_FILE": f"{ROOT / 'examples/kinds.toml'}",
        "TEMPLATES_DIR": f"{ROOT / 'examples/templates'}",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "notifier.py", cwd=image, env=environment | variables
    )
    try:
        await eventually_async(lambda: serves(port))
    finally:
        process.terminate()
        await process.wait()
    assert process.returncode == 0


def names(folder: Path) -> set[str]:
    """Return the names of all files below a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


async def serves(port: int) -> None:
    """Check requests that need modules and files of every folder."""
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        for path in ("/readyz", "/inbox.js", "/", "/docs", "/openapi.json"):
            try:
                async with session.get(path) as response:
                    assert response.status == 200, path
            except aiohttp.ClientError as exc:
                raise AssertionError(path) from exc


def test_the_image_has_neither_tests_nor_caches(image: Path) -> None:
    assert [name for name in names(image) if "test" in name or name.endswith(".pyc")] == []


def test_the_image_and_the_changelog_name_the_version() -> None:
    assert f'org.opencontainers.image.version="{VERSION}"' in (ROOT / "Dockerfile").read_text()
    assert re.search(rf"^## \[{VERSION}\] - \d{{4}}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
