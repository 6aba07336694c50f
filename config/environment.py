"""Reading the configuration: the environment, then a file `.env`. Every fault is named at once."""

from __future__ import annotations

import difflib
import os
import ssl
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, cast

from dotenv.parser import parse_stream
from environs import Env, EnvValidationError
from marshmallow import ValidationError

from mail.address import sender_address
from mail.templates import Templates, TemplatesError
from mongo.connection import uri_fault
from ops.kinds import KindsError, load_kinds
from settings import Settings, UnknownUsers

LOCAL_DEFAULTS: Final[Mapping[str, Any]] = {"host": "127.0.0.1", "email": "user@example.com"}
LOGIN: Final = frozenset({"smtp_login", "smtp_password"})
TOKENS: Final = frozenset({"api_keys", "user_token_secret"})
NEEDS_KEYS: Final = "Missing. Without keys the API is open, and USER_TOKEN_SECRET protects nothing."
ALONE: Final = "A local run is one process. More need DB_URI and SMTP_HOST."
TOGETHER: Final = "Missing. SMTP_LOGIN and SMTP_PASSWORD go together."
REQUIRED: Final = ("DB_URI", "EMAIL", "SMTP_HOST")
NAMES: Final = frozenset(f.name.upper() for f in fields(Settings))
OTHER_NAMES: Final = {
    "DATABASE_URL": "DB_URI",
    "DB_URL": "DB_URI",
    "MONGODB_URI": "DB_URI",
    "MONGO_URI": "DB_URI",
    "MONGO_URL": "DB_URI",
    "SMTP_SERVER": "SMTP_HOST",
    "SMTP_HOSTNAME": "SMTP_HOST",
    "SMTP_USER": "SMTP_LOGIN",
    "SMTP_USERNAME": "SMTP_LOGIN",
    "SMTP_PASS": "SMTP_PASSWORD",
    "SMTP_TLS": "SMTP_SECURITY",
    "SMTP_SENDER": "SMTP_FROM",
}
"""What other programs call a variable. Set here, it would be ignored, and the service would run on something else."""
NEAR: Final = 0.85
"""How alike a name must be to one of ours to be taken for a slip (difflib's ratio)."""


class SettingsError(Exception):
    """Variables are missing or wrong. `faults` maps each name to its faults; the message names them all."""

    def __init__(self, faults: Mapping[str, Sequence[str]]) -> None:
        self.faults = faults
        lines = [f"  {name}: {' '.join(faults[name])}" for name in sorted(faults)]
        super().__init__("The configuration is not valid:\n" + "\n".join(lines))


class _Variables(Env):
    """The environment, then a file for what is unset or empty there.

    Values end before their line end. Nothing is expanded: a password may hold `${`.
    """

    def __init__(self, env_file: Path) -> None:
        super().__init__(eager=False)
        self.faults: dict[str, Sequence[str]] = {}
        values = {**self._read(env_file), **{name: value for name, value in os.environ.items() if value.strip()}}
        self._given = {name: value.strip("\r\n") for name, value in values.items() if value.strip()}
        for name in self._given:
            if ours := _meant(name):
                self.faults[name] = [f"Is none of the service's variables; is {ours} meant?"]

    def _read(self, env_file: Path) -> Mapping[str, str]:
        """Return the values of a file, which need not exist. Raises `SettingsError`."""
        try:
            with env_file.open(encoding="utf-8-sig") as lines:
                bindings = list(parse_stream(lines))
        except FileNotFoundError:
            return {}
        except UnicodeDecodeError:
            raise SettingsError({f"{env_file}": ["Not UTF-8."]}) from None
        except OSError as exc:
            raise SettingsError({f"{env_file}": [f"Cannot be read: {exc.strerror}."]}) from None
        for binding in bindings:
            if binding.error or (binding.key and binding.value is None):
                self.faults[f"{env_file}, line {binding.original.line}"] = ["Is not NAME=VALUE."]
        return {binding.key: binding.value for binding in bindings if binding.key and binding.value is not None}

    def _get_value(self, env_key: str, default: Any) -> Any:  # as environs' own FileAwareEnv does
        return self._given.get(env_key, default)


def _meant(name: str) -> str | None:
    """Return the variable that a name which is none of ours was probably meant to be."""
    if name in NAMES:
        return None
    return OTHER_NAMES.get(name) or next(iter(difflib.get_close_matches(name, NAMES, 1, NEAR)), None)


def load_settings(env_file: Path = Path(".env")) -> Settings:
    """Read the environment, then `env_file` for what it leaves unset. An empty value counts as unset.

    With none of `DB_URI`, `EMAIL` and the SMTP variables they are the settings of a local run (`Settings.local`).

    Raises `SettingsError` with every fault.
    """
    env = _Variables(env_file)
    given = {f.name for f in fields(Settings) if env.str(f.name.upper(), "")}
    local = not any(name in {"db_uri", "email"} or name.startswith("smtp_") for name in given)
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
        faults |= {name: ["Missing."] for name in REQUIRED if name.lower() not in given}
    for name, fault in (
        ("DB_URI", uri_fault(values["db_uri"]) if "db_uri" in given else None),
        ("SMTP_CA_FILE", _ca_fault(values["smtp_ca_file"]) if values["smtp_ca_file"] else None),
        ("API_KEYS", NEEDS_KEYS if given & TOKENS == {"user_token_secret"} else None),
        ("EMAIL_FIELD", _email_field_fault(values["email_field"], values["unknown_users"])),
        ("WORKERS", ALONE if local and (values["workers"] or 1) > 1 else None),
        *_kinds_faults(values["kinds_file"], values["templates_dir"]),
        ("SMTP_LOGIN", TOGETHER if given & LOGIN == {"smtp_password"} else None),
        ("SMTP_PASSWORD", TOGETHER if given & LOGIN == {"smtp_login"} else None),
    ):
        if fault:
            faults[name] = [fault]
    if faults:
        raise SettingsError(faults)
    if not values["smtp_from"]:
        login = values["smtp_login"] or ""
        values["smtp_from"] = login if _is_address(login) else values["email"]
    return Settings(**values)


def _messages(found: Sequence[str | int]) -> Sequence[str]:
    """Turn environs' errors into sentences. For a list it gives only the index of each wrong item."""
    return [message if isinstance(message, str) else f"Item {message + 1} is not valid." for message in found]


def _is_address(value: str) -> bool:
    try:
        sender_address(value)
    except ValidationError:
        return False
    return True


def _ca_fault(path: Path) -> str | None:
    try:
        ssl.create_default_context(cafile=path)
    except OSError as exc:  # ssl.SSLError is one
        return f"Cannot be read as PEM certificates: {exc.strerror or exc}."
    return None


def _email_field_fault(path: str | None, unknown_users: UnknownUsers | None) -> str | None:
    if "." in (path or "") and unknown_users is UnknownUsers.CREATE:
        return "A path needs UNKNOWN_USERS=refuse: the service creates users with a plain field."
    return None


def _kinds_faults(path: Path | None, templates: Path | None) -> Iterator[tuple[str, str]]:
    """Yield what is wrong with the kinds, or else with their templates."""
    try:
        Templates(templates, load_kinds(path))
    except KindsError as exc:
        yield "KINDS_FILE", f"{exc}"
    except TemplatesError as exc:
        yield "TEMPLATES_DIR", f"{exc}"
