"""Programs that a test runs and a bare machine lacks: without one, the test is skipped, and the end of the run says so.

A pytest plugin, which gives every skip for the same program the same place, so that pytest counts them in one line.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Final

import pytest

ALL_PROGRAMS: Final = "NOTIFIER_ALL_PROGRAMS"
"""The variable under which a missing program is a failure, so that CI skips nothing."""
PACKAGES: Final = {
    "WebKitWebDriver": "webkit2gtk-driver",
    "Xvfb": "xvfb",
    "chromium": "chromium",
    "chromium-headless-shell": "chromium-headless-shell",
    "curl": "curl",
    "docker-compose": "docker-compose",
    "faketime": "faketime",
    "firefox-esr": "firefox-esr",
    "nginx": "nginx-light",
    "node": "nodejs",
    "npm": "npm",
    "openssl": "openssl",
    "postfix": "postfix",
    "promtool": "prometheus",
}
"""The programs, and Debian's package of each."""
REASONS: Final = {name: f"{name} is missing: apt-get install {package}" for name, package in PACKAGES.items()}
PLACE: Final = ("tests/programs.py", 1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Report a test that lacks a program as skipped here, wherever it asked."""
    report = yield
    if isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if reason in REASONS.values():
            report.longrepr = (*PLACE, reason)
    return report


def needed(name: str) -> str:
    """Return the path of a program. Without it, skip the test that asks."""
    folders = os.environ["PATH"].split(os.pathsep)
    beside = [f"{Path(folder).parent / 'sbin'}" for folder in folders]  # Debian's servers; only root has it on PATH
    if path := shutil.which(name, path=os.pathsep.join([*folders, *beside])):
        return path
    if os.environ.get(ALL_PROGRAMS):
        pytest.fail(REASONS[name], pytrace=False)
    pytest.skip(REASONS[name])


def needed_by(command: str) -> str:
    """Return a shell command. Skip the test unless there is every program that the command names."""
    for name in PACKAGES:
        if re.search(rf"(^|[\s|(;]){name}\s", command):
            needed(name)
    return command
