"""The tables of the documentation are those of the code."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from api.problems import PROBLEMS
from handlers import ROUTES
from settings import VARIABLES
from tests.client import ROOT


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the program that `make docs` runs."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    return import_module("generate")


Generate = Callable[..., tuple[int, str]]


@pytest.fixture
def generate(program: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Generate:
    """Return a function that runs it with these arguments, in this process, and returns its code and output."""

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["generate.py", *arguments])
        return program.main(), capsys.readouterr().out

    return run


def test_the_pages_are_up_to_date() -> None:
    command = [sys.executable, str(ROOT / "docs/generate.py"), "--check"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """Return a copy of the pages, one of them out of date."""
    for path in ROOT.glob("docs/*.md"):
        shutil.copy(path, tmp_path)
    page = tmp_path / "configuration.md"
    page.write_text(page.read_text().replace("| `PORT` | `8080` |", "| `PORT` | `80` |"))
    return tmp_path


def test_a_page_that_is_out_of_date_is_named_and_written(pages: Path, generate: Generate) -> None:
    assert generate("--check", "--folder", str(pages)) == (1, "Out of date: configuration.md. Run `make docs`.\n")
    assert generate("--folder", str(pages)) == (0, "Written: configuration.md.\n")
    assert (pages / "configuration.md").read_text() == (ROOT / "docs/configuration.md").read_text()
    assert generate("--check", "--folder", str(pages)) == (0, "")


def test_the_tables_are_complete(program: ModuleType) -> None:
    pages = ("api", "configuration", "security")
    api, configuration, security = ((ROOT / f"docs/{name}.md").read_text() for name in pages)
    assert all(f"| `{route.method} {route.path}` |" in security for route in ROUTES)
    assert all(f"| {problem.status} | {program.meaning(problem)} |" in api for problem in PROBLEMS)
    assert all(re.search(rf"^\| `{name}`[ ,]", configuration, re.MULTILINE) for name in VARIABLES)
    packages = re.findall(r"^([\w-]+)==", (ROOT / "requirements.in").read_text(), re.MULTILINE)
    assert all(f"| {name} |" in (ROOT / "README.md").read_text() for name in packages)


def test_every_table_has_its_place_in_a_page(program: ModuleType) -> None:
    written = "".join(page.read_text() for page in (ROOT / "README.md", *ROOT.glob("docs/*.md")))
    assert {"errors", "scale_rates", "scale_users", "scale_bounds"} <= program.BLOCKS.keys()
    assert all(f"<!-- end of {block} -->" in written for block in program.BLOCKS)
