"""The tests on a machine without the programs that some of them run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.client import ROOT
from tests.programs import ALL_PROGRAMS, PACKAGES

SOME = [
    "tests/test_bell_docs.py",
    "tests/test_bell_frameworks.py",
    "tests/test_clock.py",
    "tests/test_deploy.py",
    "tests/test_postfix.py",
    "tests/test_unsubscribe.py::test_the_command_of_the_documentation_does_what_a_mail_program_does",
]
"""Tests that need each of the programs, and some that need none."""


def run_tests(folder: Path, *arguments: str, **variables: str) -> tuple[int, str]:
    """Run tests with an empty folder as PATH; return the exit code and the output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "NOTIFIER_"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        cwd=ROOT,
        env=environment | {"PATH": f"{folder}"} | variables,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def test_without_the_programs_the_tests_pass_and_one_line_for_each_says_how_to_get_it(tmp_path: Path) -> None:
    code, output = run_tests(tmp_path, "-n", "2", *SOME)
    assert code == 0, output
    skipped = re.findall(r"^SKIPPED \[(\d+)\] .*?: (\S+) is missing: (.*)$", output, re.MULTILINE)
    lines = {name: (int(count), how) for count, name, how in skipped}
    assert len(lines) == len(skipped)
    assert {name: how for name, (_, how) in lines.items()} == {
        name: f"apt-get install {PACKAGES[name]}" for name in PACKAGES.keys() - {"openssl"}
    }
    assert lines["promtool"][0] == (ROOT / "deploy/alerts.yaml").read_text().count("- alert:") + 1
    assert re.search(r"[1-9]\d* passed", output)


def test_where_all_programs_are_promised_a_missing_one_is_a_failure(tmp_path: Path) -> None:
    code, output = run_tests(tmp_path, "tests/test_deploy.py", "-k", "nginx_reads", **{ALL_PROGRAMS: "1"})
    assert code == 1
    assert "nginx is missing: apt-get install nginx-light" in output
