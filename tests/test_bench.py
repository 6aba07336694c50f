"""The benchmark: its ceilings do not become faster when the service does."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bench.frozen.writes import new_element
from bench.load import LoadError
from bench.own import Layout
from bench.report import Report
from bench.tree import tree_of
from tests.client import ROOT

MODULES = """
import json, sys
import bench.ceilings
print(json.dumps([path for module in sys.modules.values() if (path := getattr(module, "__file__", None))]))
"""


def test_the_ceilings_have_no_code_of_the_service() -> None:
    command = [sys.executable, "-c", MODULES]
    loaded = json.loads(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    ours = [Path(path).relative_to(ROOT).parts[0] for path in loaded if Path(path).is_relative_to(ROOT)]
    assert set(ours) - {".venv"} == {"bench"}


def test_a_commit_is_there_for_the_length_of_a_block() -> None:
    with tree_of("HEAD") as tree:
        assert (tree.folder / "notifier.py").is_file()
        assert re.fullmatch("[0-9a-f]{7,}", tree.name)
    assert not tree.folder.exists()


def test_a_commit_that_does_not_exist_is_named() -> None:
    with pytest.raises(LoadError, match="no-such-commit"), tree_of("no-such-commit"):
        pass


def test_a_layout_may_be_nested() -> None:
    layout, due = Layout("notifier.outbox", "notifier.due", ("notifier",), new_element), datetime.now(UTC)
    document = layout.owing("0" * 24, "news", due)
    assert document["notifier"]["due"] == document["notifier"]["outbox"][0]["next_at"] == due
    assert document.keys() == {"notifier"}


def test_the_report_says_which_targets_are_met() -> None:
    report = Report()
    report.target("creates/s at 64 connections ÷ bare", 3.8)
    report.target("MongoDB commands per e-mail", 0.51)
    lines = report.markdown(None).splitlines()
    assert "| creates/s at 64 connections ÷ bare | 3.80 | ≥ 3.8 | yes |" in lines
    assert "| MongoDB commands per e-mail | 0.51 | ≤ 0.5 | **no** |" in lines
    assert "| idle RSS |  | ≤ 80 MB | not measured |" in lines
