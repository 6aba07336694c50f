"""Reading the configuration: the environment, then a file `.env`. Every fault is named at once."""

from __future__ import annotations

import asyncio
import difflib
import os
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, cast

from dotenv.parser import Binding, parse_stream
from environs import Env, EnvValidationError
from marshmallow import ValidationError

from config.address import mailbox
from config.credentials import credential_faults
from mail.templates import Templates, TemplatesError
from mongo.connection import uri_fault
from ops.kinds import KindsError, load_kinds
from settings import Settings, UnknownUsers

LOCAL_DEFAULTS: Final[Mapping[str, Any]] = {"host": "127.0.0.1", "email": "user@example.com"}
LINKS: Final = frozenset({"public_url", "unsubscribe_secrets"})
TOKENS: Final = frozenset({"api_keys", "user_token_secret"})
NEEDS_KEYS: Final = "Missing. Without keys the API is open, and USER_TOKEN_SECRET protects nothing."
NEEDED_BY_URL: Final = "Missing. The links to unsubscribe that PUBLIC_URL leads to need it, or API_KEYS."
NEEDS_URL: Final = "Missing. Without it there are no links to unsubscribe, and UNSUBSCRIBE_SECRETS protects nothing."
ALONE: Final = "A local run is one process. More need DB_URI and SMTP_HOST."
OF_LOCAL_RUNS: Final = "Is for local runs only. Elsewhere the service answers to any name, and API_KEYS protect it."
SIMILAR: Final = "Is none of the service's variables; is {} meant?"
NOT_LOCAL: Final = "Missing. This is no local run, as {} is set."
REQUIRED: Final = ("DB_URI", "EMAIL", "SMTP_HOST")
NAMES: Final = frozenset(f.name.upper() for f in fields(Settings))
OTHER_NAMES: Final = {
    "DB_URL": "DB_URI",
    "DB_DSN": "DB_URI",
    "DATABASE_URI": "DB_URI",
    "MONGO_URI": "DB_URI",
    "SMTP_ADDRESS": "SMTP_HOST",
    "SMTP_SERVER": "SMTP_HOST",
    "SMTP_URL": "SMTP_HOST",
    "SMTP_HOSTNAME": "SMTP_HOST",
    "SMTP_USER": "SMTP_LOGIN",
    "SMTP_USERNAME": "SMTP_LOGIN",
    "SMTP_PASS": "SMTP_PASSWORD",
    "SMTP_ENCRYPTION": "SMTP_SECURITY",
    "SMTP_SECURE": "SMTP_SECURITY",
    "SMTP_SSL": "SMTP_SECURITY",
    "SMTP_STARTTLS": "SMTP_SECURITY",
    "SMTP_TLS": "SMTP_SECURITY",
    "SMTP_SENDER": "SMTP_FROM",
}
"""What other programs call a variable. Set here, it would be ignored, and the service would run on something else."""
OF_PLATFORMS: Final = dict.fromkeys(
    ("DATABASE_URL", "MONGODB_URI", "MONGODB_URL", "MONGO_URL", "MONGODB_CONNECTION_STRING"), "DB_URI"
)
"""The same, where a file may have it for another program too: it counts only while ours is not set."""
OF_KUBERNETES: Final = re.compile(r"\w+_SERVICE_(HOST|PORT\w*)|\w+_PORT_\d+_(TCP|UDP|SCTP)\w*")
"""What Kubernetes sets for each Service of a namespace, whatever its name."""
NEAR: Final = 0.85
"""How alike a name must be to one of ours to be taken for a slip (difflib's ratio)."""
LONG: Final = 7
"""Characters of a name of ours from which on a likeness counts in the environment too: every login sets MAIL."""


class SettingsError(Exception):
    """Variables are missing or wrong. `faults` maps each name to its faults; the message names them all."""

    def __init__(self, faults: Mapping[str, Sequence[str]]) -> None:
        self.faults = faults
        lines = [f"  {name}: {' '.join(faults[name])}" for name in sorted(faults)]
        super().__init__("The configuration is not valid:\n" + "\n".join(lines))


class _Variables(Env):
    """The environment, then a file for what is unset or empty there.

    Values end before their line end, which a secret made with `echo` has. Nothing is expanded: a password may hold
    `${`.
    """

    def __init__(self, env_file: Path) -> None:
        super().__init__(eager=False)
        self.faults: dict[str, Sequence[str]] = {}
        self._lines: dict[str, int] = {}
        values = {**self._read(env_file), **{name: value for name, value in os.environ.items() if value.strip()}}
        self._given = {name: value.strip("\r\n") for name, value in values.items() if value.strip()}
        for name, line in self._lines.items():
            if name in self._given and (ours := _meant(name, self._given, in_file=True)):
                self.faults[name] = [f"{SIMILAR.format(ours)} (in line {line} of {env_file})"]

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
        return values

    def _get_value(self, env_key: str, default: Any) -> Any:  # as environs' own FileAwareEnv does
        return self._given.get(env_key, default)

    @property
    def of_no_local_run(self) -> Sequence[str]:
        """The variables that say something of MongoDB, of an address or of a mail server, even if unknown to us.

        An `EMAIL` of the environment is not one: a shell's profile may set it for other programs.
        """
        return [
            name
            for name in self._given
            if name == "DB_URI"
            or (name == "EMAIL" and name in self._lines)
            or (name.startswith("SMTP_") and not OF_KUBERNETES.fullmatch(name))
        ]


def warnings_about(settings: Settings) -> Sequence[str]:
    """Return a sentence for each variable of the environment that may be meant for the service, which ignores it."""
    given = {f.name for f in fields(Settings) if getattr(settings, f.name) != f.default}
    return [f"{name}: {' '.join(sentences)}" for name, sentences in _similar_names(given).items()]


def _similar_names(given: Container[str]) -> Mapping[str, Sequence[str]]:
    """Return the variables of the environment that may be meant for a setting which is not given.

    A name that is like a given one belongs to another program: a client of the service has an `API_KEY`.
    """
    meant = {name: _meant(name, (), in_file=False) for name, value in os.environ.items() if value.strip()}
    return {name: [SIMILAR.format(ours)] for name, ours in meant.items() if ours and ours.lower() not in given}


def _line(binding: Binding) -> int:
    """Return the number of a line. The parser counts the blank lines before it as part of it."""
    text = binding.original.string
    return binding.original.line + text[: len(text) - len(text.lstrip())].count("\n")


def _meant(name: str, given: Container[str], *, in_file: bool) -> str | None:
    """Return the variable that a name which is none of ours was probably meant to be."""
    if name in NAMES or OF_KUBERNETES.fullmatch(name):
        return None
    if name in OF_PLATFORMS:
        return None if OF_PLATFORMS[name] in given else OF_PLATFORMS[name]
    near = next(iter(difflib.get_close_matches(name.upper(), NAMES, 1, NEAR)), None)
    return OTHER_NAMES.get(name) or (near if near and (in_file or len(near) >= LONG) else None)


def load_settings(env_file: Path = Path(".env")) -> Settings:
    """Read the environment, then `env_file` for what it leaves unset. An empty value counts as unset.

    With none of `DB_URI`, an `EMAIL` in the file and the SMTP variables, they are those of a local run
    (`Settings.local`).

    Raises `SettingsError` with every fault.
    """
    env = _Variables(env_file)
    given = {f.name for f in fields(Settings) if env.str(f.name.upper(), "")}
    local = not env.of_no_local_run
    values: dict[str, Any] = {f.name: f.default for f in fields(Settings)} | (dict(LOCAL_DEFAULTS) if local else {})
    for f in fields(Settings):
        if f.name in given:
            values[f.name] = getattr(env, f.metadata["parse"])(f.name.upper(), **f.metadata["options"])
    faults = env.faults
    try:
        env.seal()
    except EnvValidationError as exc:
        found = cast("Mapping[str, Any]", exc.error_messages)
        faults |= {name: _messages(messages) for name, messages in found.items()}
    if not local:
        missing = NOT_LOCAL.format(" and ".join(env.of_no_local_run))
        faults |= {name: [missing] for name in REQUIRED if name.lower() not in given}
    for name, fault in (
        ("DB_URI", uri_fault(values["db_uri"]) if values["db_uri"] else None),
        ("API_KEYS", NEEDS_KEYS if given & TOKENS == {"user_token_secret"} else None),
        ("PUBLIC_URL", NEEDS_URL if given & LINKS == {"unsubscribe_secrets"} else None),
        ("UNSUBSCRIBE_SECRETS", NEEDED_BY_URL if given & (LINKS | {"api_keys"}) == {"public_url"} else None),
        ("EMAIL_FIELD", _email_field_fault(values["email_field"], values["unknown_users"])),
        ("WORKERS", ALONE if local and (values["workers"] or 1) > 1 else None),
        ("LOCAL_NAMES", OF_LOCAL_RUNS if not local and "local_names" in given else None),
        *_kinds_faults(values["kinds_file"], values["templates_dir"], user=bool(values["template_fields"])),
        *credential_faults(given, values),
    ):
        if fault:
            faults[name] = [fault]
    if faults:
        raise SettingsError({**_similar_names(given), **faults})
    if not values["smtp_from"]:
        login = values["smtp_login"] or ""
        values["smtp_from"] = login if _is_address(login) else values["email"]
    return Settings(**values)


def _messages(found: Sequence[str | int]) -> Sequence[str]:
    """Turn environs' errors into sentences. For a list it gives only the index of each wrong item."""
    return [message if isinstance(message, str) else f"Item {message + 1} is not valid." for message in found]


def _is_address(value: str) -> bool:
    try:
        mailbox(value)
    except ValidationError:
        return False
    return True


def _email_field_fault(path: str | None, unknown_users: UnknownUsers | None) -> str | None:
    if "." in (path or "") and unknown_users is UnknownUsers.CREATE:
        return "A path needs UNKNOWN_USERS=refuse: the service creates users with a plain field."
    return None


def _kinds_faults(path: Path | None, folder: Path | None, *, user: bool) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the kinds, or else with their templates."""
    try:
        kinds = load_kinds(path)
        if folder:
            asyncio.run(Templates(folder, kinds, user=user).test())
    except KindsError as exc:
        yield "KINDS_FILE", f"{exc}"
    except TemplatesError as exc:
        yield "TEMPLATES_DIR", f"{exc}"
