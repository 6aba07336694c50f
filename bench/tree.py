"""The versions of the service that a run measures: the tree of the benchmark, and a commit beside it."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.load import LoadError
from bench.own import BEFORE, OWN, Layout
from tests.client import ROOT


@dataclass(frozen=True)
class Tree:
    """A version of the service, with a database of its own."""

    name: str
    folder: Path
    database: str
    layout: Layout


CURRENT: Final = Tree("service", ROOT, "bench", OWN)


@contextmanager
def tree_of(commit: str) -> Iterator[Tree]:
    """Check a commit out for the length of the block. Raises `LoadError`."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder, short = Path(name), _git("rev-parse", "--short=7", f"{commit}^{{commit}}").decode().strip()
        subprocess.run(["/usr/bin/env", "tar", "-x", "-C", name], input=_git("archive", short), check=True)
        of_old = any('"mail_due"' in path.read_text() for path in folder.glob("mongo/*.py"))
        yield Tree(short, folder, "against", BEFORE if of_old else OWN)


def _git(*arguments: str) -> bytes:
    try:
        return subprocess.run(["/usr/bin/env", "git", *arguments], cwd=ROOT, capture_output=True, check=True).stdout
    except subprocess.CalledProcessError as exc:
        raise LoadError(f"git {' '.join(arguments)}: {exc.stderr.decode().strip()}") from None
