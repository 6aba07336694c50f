"""The tests on a machine without the programs that some of them run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.client import ROOT
from tests.programs import ALL_PROGRAMS, PACKAGES

pytestmark = pytest.mark.ci

SOME = [
    "tests/test_bell_engines.py",
    "tests/test_bell_frameworks.py",
    "tests/test_clock.py::test_services_with_different_clocks_share_emails_fairly",
    "tests/test_deploy.py::test_an_alert_fires_when_it_should_and_then_only",
    "tests/test_deploy.py::test_compose_reads_its_files",
    "tests/test_deploy.py::test_every_alert_says_what_is_wrong_and_what_to_do",
    "tests/test_deploy.py::test_nginx_reads_its_configuration",
    "tests/test_postfix.py",
    "tests/test_unsubscribe.py::test_the_documented_command_does_what_a_mail_program_does",
]
"""Tests, of which one needs no program and the others need one or several."""
SECOND = {"Xvfb", "chromium", "node", "openssl"}
"""Programs that are needed only together with another, which is reported as missing first."""


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


@pytest.mark.timeout(400)
def test_missing_programs_skip_tests_and_are_listed_once_each(tmp_path: Path) -> None:
    code, output = run_tests(tmp_path, "-n", "1", *SOME)
    assert code == 0, output
    skipped = re.findall(r"^SKIPPED \[(\d+)\] .*?: (\S+) is missing: (.*)$", output, re.MULTILINE)
    lines = {name: (int(count), how) for count, name, how in skipped}
    assert len(lines) == len(skipped)
    assert {name: how for name, (_, how) in lines.items()} == {
        name: f"apt-get install {PACKAGES[name]}" for name in PACKAGES.keys() - SECOND
    }
    assert lines["promtool"][0] == (ROOT / "deploy/alerts.yaml").read_text().count("- alert:")
    assert " 1 passed" in output


def test_in_ci_a_missing_program_is_a_failure(tmp_path: Path) -> None:
    code, output = run_tests(tmp_path, "tests/test_deploy.py", "-k", "nginx_reads", **{ALL_PROGRAMS: "1"})
    assert code == 1
    assert "nginx is missing: apt-get install nginx-light" in output
