"""Programs that a test runs and a bare machine lacks: without one, the test is skipped, and the end of the run says so.

Every skip for the same program has the same reason and comes from the same line, so pytest counts them in one line.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Final

import pytest

ALL_PROGRAMS: Final = "NOTIFIER_ALL_PROGRAMS"
"""The variable under which a missing program is a failure, so that CI skips nothing."""
PACKAGES: Final = {
    "chromium": "chromium",
    "curl": "curl",
    "docker-compose": "docker-compose",
    "faketime": "faketime",
    "nginx": "nginx-light",
    "node": "nodejs",
    "npm": "npm",
    "openssl": "openssl",
    "postfix": "postfix",
    "promtool": "prometheus",
}
"""The programs, and Debian's package of each."""


def needed(name: str) -> str:
    """Return the path of a program. Without it, skip the test that asks."""
    folders = os.environ["PATH"].split(os.pathsep)
    beside = [f"{Path(folder).parent / 'sbin'}" for folder in folders]  # Debian's servers; only root has it on PATH
    if path := shutil.which(name, path=os.pathsep.join([*folders, *beside])):
        return path
    if os.environ.get(ALL_PROGRAMS):
        pytest.fail(_reason(name), pytrace=False)
    pytest.skip(_reason(name))


def needed_by(command: str) -> str:
    """Return a shell command. Skip the test unless there is every program that the command names."""
    for name in PACKAGES:
        if re.search(rf"(^|[\s|(;]){name}\s", command):
            needed(name)
    return command


def _reason(name: str) -> str:
    return f"{name} is missing: apt-get install {PACKAGES[name]}"
