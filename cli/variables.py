"""The variables: the environment, a file `.env`, and files that hold secrets. What could be misread is a fault."""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Final

from dotenv.parser import Binding, parse_stream

from settings import SECRETS, VARIABLES

SECRET_FILES: Final = {f"{name}_FILE": name for name in SECRETS}
NAMES: Final = VARIABLES.keys() | SECRET_FILES.keys()
UNKNOWN: Final = "No variable of the service has this name"
NOT_SECRET: Final = f"{UNKNOWN}: a file is read only for {', '.join(SECRETS)}."
TWICE: Final = "{} is set as well: set only one of the two."
EXPANDED: Final = "Docker Compose would expand the $ in {}; put the value in single quotes."
CUT: Final = "The value of {} ends before the #, which begins a comment; put the value in single quotes."
QUOTED: Final = (
    "Is in quotes, which belong to the value: `docker run --env-file` and Compose's `- NAME=VALUE` keep them."
)
IN_QUOTES: Final = re.compile(r"\s*(['\"]).*\1\s*", re.DOTALL)
AGAIN: Final = "{} is in line {} as well; the later line counts."
OF_KUBERNETES: Final = re.compile(r"\w+_SERVICE_(HOST|PORT\w*)|\w+_PORT_\d+_(TCP|UDP|SCTP)\w*")
"""Variables that Kubernetes sets for each Service of a namespace, whatever its name."""
LIKENESS: Final = 0.8
"""A name at least this like a variable's is taken for a slip (difflib's ratio)."""
LIKENESS_LENGTH: Final = 6
"""Shorter names are not compared: MAIL, which every login sets, would pass for EMAIL."""
FILE_LIMIT: Final = 64 * 1024
"""Bytes of a file that holds a secret."""


class SettingsError(Exception):
    """Variables are missing or wrong. `faults` maps each name to its faults; the message has a line for each."""

    def __init__(self, faults: Mapping[str, Sequence[str]]) -> None:
        self.faults = faults
        lines = [f"  {name}: {fault}" for name in sorted(faults) for fault in faults[name]]
        super().__init__("The configuration is not valid:\n" + "\n".join(lines))


class Variables:
    """The environment, then a file for what is not in it. An empty variable hides that of the file.

    A value ends before its line end, which a secret made with `echo` has. Nothing is expanded: a password may hold
    `${`. `present` has the names of the settings with a value, even one in a file that cannot be read. `doubts` are
    names of the environment that are probably slips, but may belong to another program.
    """

    def __init__(self, env_file: Path) -> None:
        self.faults: dict[str, Sequence[str]] = {}
        self.warnings: list[str] = []
        self.doubts: dict[str, Sequence[str]] = {}
        self._lines: dict[str, int] = {}
        values = {**self._read(env_file), **os.environ}
        self.values = {name: value.strip("\r\n") for name, value in values.items() if value.strip()}
        self.present = {SECRET_FILES.get(name, name) for name in self.values}
        for name in self.values:
            if not (line := self._lines.get(name)) and (slip := _slip(name, self.present)):
                self.doubts[name] = [slip]
            elif line and (slip := _slip(name, ())):
                self.faults[name] = [f"{slip} (in line {line} of {env_file})"]
        for name in SECRET_FILES.keys() & self.values.keys():
            self._read_secret(name, SECRET_FILES[name])
        quoted = (name for name in NAMES & os.environ.keys() if IN_QUOTES.fullmatch(os.environ[name]))
        self.faults |= {name: [QUOTED] for name in quoted}

    def _read(self, env_file: Path) -> Mapping[str, str]:
        """Return the values of a file, which need not exist. Raises `SettingsError`."""
        try:
            with env_file.open(encoding="utf-8-sig") as lines:
                bindings = list(parse_stream(lines))
        except (OSError, UnicodeDecodeError) as exc:
            if isinstance(exc, FileNotFoundError) and not env_file.is_symlink():
                return {}
            fault = f"Cannot be read: {exc.strerror}." if isinstance(exc, OSError) else "Not UTF-8."
            raise SettingsError({f"{env_file}": [fault]}) from None
        values = {}
        for binding in bindings:
            place = f"{env_file}, line {_line(binding)}"
            if binding.error or (binding.key and binding.value is None):
                self.faults[place] = ["Is not NAME=VALUE."]
            elif binding.key and binding.value is not None:
                if binding.key in values:
                    self.warnings.append(f"{place}: {AGAIN.format(binding.key, self._lines[binding.key])}")
                values[binding.key], self._lines[binding.key] = binding.value, _line(binding)
                if misread := _misread(binding):
                    self.warnings.append(f"{place}: {misread.format(binding.key)}")
        return values

    def _read_secret(self, name: str, secret: str) -> None:
        """Take the value of a secret from the file that a variable names, without its final newline."""
        path = Path(self.values[name])
        where = f" ({path})" if path.is_absolute() else ""  # else it may be the secret itself
        try:
            if not stat.S_ISREG((status := path.stat()).st_mode) or status.st_size > FILE_LIMIT:
                fault = f"Is not a file of at most {FILE_LIMIT // 1024} KiB{where}."
            else:
                value = re.sub(r"\r?\n\Z", "", path.read_bytes().decode("utf-8-sig"))
                fault = TWICE.format(secret) if secret in self.values else "" if value.strip() else f"Is empty{where}."
                self.values |= {} if fault else {secret: value}
        except OSError as exc:
            fault = f"Cannot be read: {exc.strerror}{where}."
        except ValueError:  # a UnicodeDecodeError, or a name with a NUL
            fault = f"Not UTF-8{where}."
        if fault:
            self.faults[name] = [fault]

    @property
    def not_local(self) -> Sequence[str]:
        """Return the variables that mean a database or a mail server, even unknown ones: this is no local run.

        An `EMAIL` of the environment does not count: a shell's profile may set it for other programs.
        """
        return [
            name
            for name in self.values
            if name in {"DB_URI", "DB_URI_FILE"}
            or (name == "EMAIL" and name in self._lines)
            or (name.startswith("SMTP_") and not OF_KUBERNETES.fullmatch(name))
        ]


def _line(binding: Binding) -> int:
    """Return the number of a line. The parser counts the blank lines before it as part of it."""
    text = binding.original.string
    return binding.original.line + text[: len(text) - len(text.lstrip())].count("\n")


def _misread(binding: Binding) -> str | None:
    """Return a warning about a line that Docker Compose reads differently, or that loses a part of a secret."""
    raw = binding.original.string.partition("=")[2].lstrip()
    if "$" in raw and not raw.startswith("'"):
        return EXPANDED
    return CUT if binding.key in SECRETS and raw[:1] not in {"'", '"'} and re.search(r"\s#", raw) else None


def _slip(name: str, present: Container[str]) -> str | None:
    """Return what is wrong with a name that is probably a misspelt setting."""
    if name in NAMES or OF_KUBERNETES.fullmatch(name):
        return None
    if name.removesuffix("_FILE") in NAMES:
        return NOT_SECRET
    candidates = [known for known in NAMES if len(known) >= LIKENESS_LENGTH]
    for near in difflib.get_close_matches(name.upper(), candidates, 1, LIKENESS):
        return None if near in present else f"{UNKNOWN}; is {near} meant?"
    return f"{UNKNOWN}." if name.startswith("SMTP_") else None
