"""The variables: the environment, a file `.env`, and files that have secrets. What could be misread is a fault."""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Container, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from dotenv.parser import Binding, parse_stream
from environs import Env

from settings import Settings

SECRETS: Final = tuple(f.name.upper() for f in fields(Settings) if f.metadata["secret"])
"""The variables whose value may also stand in a file that `NAME_FILE` names."""
UNKNOWN: Final = "Is none of the service's variables"
NOT_SECRET: Final = f"{UNKNOWN}: a file is read only for {', '.join(SECRETS)}."
TWICE: Final = "{} is set as well: set only one of the two."
EXPANDED: Final = "Docker Compose would expand the $ in {}; put the value in single quotes."
CUT: Final = "The value of {} ends before the #, which begins a comment; put the value in single quotes."
SECRET_FILES: Final = {f"{name}_FILE": name for name in SECRETS}
NAMES: Final = frozenset(f.name.upper() for f in fields(Settings)) | SECRET_FILES.keys()
OF_KUBERNETES: Final = re.compile(r"\w+_SERVICE_(HOST|PORT\w*)|\w+_PORT_\d+_(TCP|UDP|SCTP)\w*")
"""What Kubernetes sets for each Service of a namespace, whatever its name."""
NEAR: Final = 0.8
"""How alike a name must be to one of ours to be taken for a slip (difflib's ratio)."""
LONG: Final = 6
"""Shorter names of ours are compared only in a file: in the environment, MAIL would pass for EMAIL."""
FILE_LIMIT: Final = 64 * 1024
"""Bytes of a file that has a secret."""


class SettingsError(Exception):
    """Variables are missing or wrong. `faults` maps each name to its faults; the message has a line for each."""

    def __init__(self, faults: Mapping[str, Sequence[str]]) -> None:
        self.faults = faults
        lines = [f"  {name}: {fault}" for name in sorted(faults) for fault in faults[name]]
        super().__init__("The configuration is not valid:\n" + "\n".join(lines))


class Variables(Env):
    """The environment, then a file for what is not in it. An empty variable hides that of the file.

    Values end before their line end, which a secret made with `echo` has. Nothing is expanded: a password may hold
    `${`.
    """

    def __init__(self, env_file: Path) -> None:
        super().__init__(eager=False)
        self.faults: dict[str, Sequence[str]] = {}
        self.warnings: list[str] = []
        self._lines: dict[str, int] = {}
        values = {**self._read(env_file), **os.environ}
        self._given = {name: value.strip("\r\n") for name, value in values.items() if value.strip()}
        self.of_no_local_run = [name for name in self._given if self._is_of_no_local_run(name)]
        for name, line in self._lines.items():
            if name in self._given and (fault := _slip(name, self._given[name], self._given, in_file=True)):
                self.faults[name] = [f"{fault} (in line {line} of {env_file})"]
        for name in SECRET_FILES.keys() & self._given.keys():
            self._read_secret(name, SECRET_FILES[name])

    def _read(self, env_file: Path) -> Mapping[str, str]:
        """Return the values of a file, which need not exist. Raises `SettingsError`."""
        try:
            with env_file.open(encoding="utf-8-sig") as lines:
                bindings = list(parse_stream(lines))
        except FileNotFoundError:
            if not env_file.is_symlink():
                return {}
            raise SettingsError({f"{env_file}": ["Is a link to a file that does not exist."]}) from None
        except UnicodeDecodeError:
            raise SettingsError({f"{env_file}": ["Not UTF-8."]}) from None
        except OSError as exc:
            raise SettingsError({f"{env_file}": [f"Cannot be read: {exc.strerror}."]}) from None
        values = {}
        for binding in bindings:
            if binding.error or (binding.key and binding.value is None):
                self.faults[f"{env_file}, line {_line(binding)}"] = ["Is not NAME=VALUE."]
            elif binding.key and binding.value is not None:
                values[binding.key], self._lines[binding.key] = binding.value, _line(binding)
                if misread := _misread(binding):
                    self.warnings.append(f"{env_file}, line {_line(binding)}: {misread.format(binding.key)}")
        return values

    def _read_secret(self, name: str, ours: str) -> None:
        """Take the value of a variable from the file that another names, without its final newline."""
        path = Path(self._given[name])
        where = f" ({path})" if path.is_absolute() else ""  # else it may be the secret itself
        try:
            if not stat.S_ISREG((status := path.stat()).st_mode) or status.st_size > FILE_LIMIT:
                fault = f"Is not a file of at most {FILE_LIMIT // 1024} KiB{where}."
            else:
                value = re.sub(r"\r?\n\Z", "", path.read_bytes().decode("utf-8-sig"))
                fault = TWICE.format(ours) if ours in self._given else "" if value.strip() else f"Is empty{where}."
                self._given[ours] = value
        except OSError as exc:
            fault = f"Cannot be read: {exc.strerror}{where}."
        except ValueError:  # a UnicodeDecodeError, or a name with a NUL
            fault = f"Not UTF-8{where}."
        if fault:
            self.faults[name] = [fault]

    def _get_value(self, env_key: str, default: Any) -> Any:  # as environs' own FileAwareEnv does
        return self._given.get(env_key, default)

    def _is_of_no_local_run(self, name: str) -> bool:
        """Return whether a variable says something of MongoDB, an address or a mail server, even if unknown to us.

        An `EMAIL` of the environment does not: a shell's profile may set it for other programs.
        """
        return (
            name in {"DB_URI", "DB_URI_FILE"}
            or (name == "EMAIL" and name in self._lines)
            or (name.startswith("SMTP_") and not OF_KUBERNETES.fullmatch(name))
        )

    def is_given(self, name: str) -> bool:
        """Return whether a variable has a value, be it in a file that cannot be read."""
        return name in self._given or (name in SECRETS and f"{name}_FILE" in self._given)

    def is_of_a_service(self, name: str) -> bool:
        """Return whether the value is the address of a Service of Kubernetes."""
        return bool(re.match("(tcp|udp|sctp)://", self._given.get(name, "")))


def _misread(binding: Binding) -> str | None:
    """Return what is said of a line of which another reader would make another value than this one, or ours a part."""
    raw = binding.original.string.partition("=")[2].lstrip()
    if "$" in raw and not raw.startswith("'"):
        return EXPANDED
    return CUT if binding.key in SECRETS and raw[:1] not in {"'", '"'} and re.search(r"\s#", raw) else None


def similar_names(given: Container[str]) -> Mapping[str, Sequence[str]]:
    """Return the variables of the environment that may be meant for a setting which is not given.

    A name that is like a given one belongs to another program: a client of the service has an `API_KEY`.
    """
    slips = {name: _slip(name, value, given, in_file=False) for name, value in os.environ.items() if value.strip()}
    return {name: [slip] for name, slip in slips.items() if slip}


def _line(binding: Binding) -> int:
    """Return the number of a line. The parser counts the blank lines before it as part of it."""
    text = binding.original.string
    return binding.original.line + text[: len(text) - len(text.lstrip())].count("\n")


def _slip(name: str, value: str, given: Container[str], *, in_file: bool) -> str | None:
    """Return what is wrong with a name that is none of ours, but was probably meant to be.

    In the environment, one that is like a given name of ours belongs to another program.
    """
    if name in NAMES or OF_KUBERNETES.fullmatch(name):
        return None
    if name.removesuffix("_FILE") in NAMES:
        return NOT_SECRET
    near = next(iter(difflib.get_close_matches(name.upper(), NAMES, 1, NEAR)), "")
    if value.startswith(("mongodb://", "mongodb+srv://")) and "DB_URI" not in given:
        near = "DB_URI"
    if near and (in_file or (len(near) >= LONG and near not in given)):
        return f"{UNKNOWN}; is {near} meant?"
    return f"{UNKNOWN}." if name.startswith("SMTP_") and not near else None


def describe_settings() -> str:
    """Describe every variable, for `--help`."""
    lines = []
    for f in fields(Settings):
        default = f.default
        shown = (
            ",".join(f"{item:g}" for item in default)
            if isinstance(default, tuple)
            else getattr(default, "value", default)
        )
        lines.append(f"  {f.name.upper():<20} {f.metadata['help']}" + (f" (default {shown})" if shown else ""))
    lines.append(f"\nNAME_FILE names a file that has the value, for: {', '.join(SECRETS)}.")
    return "\n".join(lines)
