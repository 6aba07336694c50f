"""The tables of the documentation are those of the code."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from api.operations import operations
from api.problems import PROBLEMS
from config.ids import IdType
from kinds import SPECIFIED
from settings import Settings
from tests.client import ROOT

OPERATIONS = operations(SPECIFIED, IdType.OBJECTID)


def generate(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, str(ROOT / "docs/generate.py"), *arguments]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    return process.returncode, process.stdout + process.stderr


def test_the_pages_are_up_to_date() -> None:
    assert generate("--check") == (0, "")


@pytest.fixture
def pages(tmp_path: Path) -> Path:
    """Return a copy of the pages, one of them out of date."""
    for path in ROOT.glob("docs/*.md"):
        shutil.copy(path, tmp_path)
    page = tmp_path / "operation.md"
    page.write_text(page.read_text().replace("| `PORT` | `8080` |", "| `PORT` | `80` |"))
    return tmp_path


def test_a_page_that_is_out_of_date_is_named_and_written(pages: Path) -> None:
    assert generate("--check", "--folder", str(pages)) == (1, "Out of date: operation.md. Run `make docs`.\n")
    assert generate("--folder", str(pages)) == (0, "Written: operation.md.\n")
    assert (pages / "operation.md").read_text() == (ROOT / "docs/operation.md").read_text()
    assert generate("--check", "--folder", str(pages)) == (0, "")


def test_the_tables_are_complete() -> None:
    api, operation = ((ROOT / f"docs/{name}.md").read_text() for name in ("api", "operation"))
    assert all(f"| `{route}` |" in operation for route in OPERATIONS)
    assert all(f"| {problem.status} | {problem.meaning} |" in api for problem in PROBLEMS)
    assert all(re.search(rf"^\| `{field.name.upper()}`[ ,]", operation, re.MULTILINE) for field in fields(Settings))


def test_every_table_has_its_place_in_a_page() -> None:
    written = "".join(page.read_text() for page in ROOT.glob("docs/*.md"))
    program = "import generate; print(*generate.BLOCKS)"
    command = [sys.executable, "-c", program]
    blocks = subprocess.run(command, cwd=ROOT / "docs", capture_output=True, text=True, check=True).stdout.split()
    assert {"errors", "scale_rates", "scale_users", "scale_bounds"} <= set(blocks)
    assert all(f"<!-- end of {block} -->" in written for block in blocks)
