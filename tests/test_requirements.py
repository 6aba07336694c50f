"""The pinned packages: what `make lock` wrote is complete, and is what the `.in` files ask for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.client import ROOT

LOCKS = ("requirements", "requirements-local", "requirements-dev")
PIN = re.compile(r"^(\w[^\\\n]*)((?:\\\n +--hash=sha256:[0-9a-f]{64} ?)*)$", re.MULTILINE)


def asked(path: Path) -> set[tuple[str, str]]:
    """Return the names and versions of a `.in` file, and of those that it includes."""
    pins: set[tuple[str, str]] = set()
    for line in path.read_text().splitlines():
        if included := re.match(r"-r (\S+)", line):
            pins |= asked(path.parent / included[1])
        elif re.match(r"\w", line):
            requirement = Requirement(line.split("#")[0])
            pins.add((canonicalize_name(requirement.name), f"{requirement.specifier}"))
    return pins


@pytest.mark.parametrize("name", LOCKS)
def test_the_lock_has_all_that_was_asked_for_and_a_hash_of_each(name: str) -> None:
    pins = PIN.findall((ROOT / f"{name}.txt").read_text())
    locked = {(canonicalize_name(r.name), f"{r.specifier}") for r in (Requirement(pin) for pin, _ in pins)}
    assert asked(ROOT / f"{name}.in") <= locked
    assert all(version.startswith("==") for _, version in locked)
    assert [pin for pin, hashes in pins if not hashes] == []


def test_all_locks_agree() -> None:
    own, local, dev = ({pin.split()[0] for pin, _ in PIN.findall((ROOT / f"{n}.txt").read_text())} for n in LOCKS)
    assert own <= local <= dev
