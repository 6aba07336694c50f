"""Reading the configuration: every setting from its variable, and what they must be together."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, cast

from environs import EnvValidationError
from marshmallow import ValidationError

from cli.variables import SettingsError, Variables, similar_names
from config.address import mailbox
from config.credentials import credential_faults
from config.keys import ALL, parse_keys
from mail.templates import Templates, TemplatesError
from mongo.connection import uri_fault
from ops.kinds import KindsError, load_kinds
from settings import Settings, UnknownUsers

__all__ = ["SettingsError", "load_settings", "read_settings"]

LOCAL_DEFAULTS: Final[Mapping[str, Any]] = {
    "host": "127.0.0.1",
    "email": "user@example.com",
    "kinds_file": Path(__file__).parent.parent / "web/demo.toml",
}
LINKS: Final = frozenset({"public_url", "unsubscribe_secrets"})
TOKENS: Final = frozenset({"api_keys", "user_token_secrets"})
NEEDS_KEYS: Final = "Missing. Without keys the API is open, and USER_TOKEN_SECRETS protect nothing."
NEEDED_BY_URL: Final = "Missing. The links to unsubscribe that PUBLIC_URL leads to need it, or a key without a scope."
NEEDS_URL: Final = "Missing. Without it there are no links to unsubscribe, and UNSUBSCRIBE_SECRETS protects nothing."
ALONE: Final = "A local run is one process. More need DB_URI and SMTP_HOST."
OF_LOCAL_RUNS: Final = "Is for local runs only. Elsewhere the service answers to any name, and API_KEYS protect it."
NOT_LOCAL: Final = "Missing. This is no local run, as {} is set."
OF_A_SERVICE: Final = (
    "Kubernetes has set this, for a Service of that name; enableServiceLinks: false in the pod's spec stops it."
)
REQUIRED: Final = ("DB_URI", "EMAIL", "SMTP_HOST")


def load_settings(env_file: Path = Path(".env")) -> Settings:
    """Read the configuration as `read_settings`, without its warnings."""
    return read_settings(env_file)[0]


def read_settings(env_file: Path = Path(".env")) -> tuple[Settings, Sequence[str]]:
    """Read the environment, then `env_file` for what it leaves out; return warnings of what may be meant otherwise.

    An empty value counts as unset. With none of `DB_URI`, an `EMAIL` in the file and the SMTP variables, the settings
    are those of a local run (`Settings.local`).

    Raises `SettingsError` with every fault.
    """
    env = Variables(env_file)
    given = {f.name for f in fields(Settings) if env.is_given(f.name.upper())}
    local = not env.of_no_local_run
    values: dict[str, Any] = {f.name: f.default for f in fields(Settings)} | (dict(LOCAL_DEFAULTS) if local else {})
    for f in fields(Settings):
        if env.str(f.name.upper(), ""):
            values[f.name] = getattr(env, f.metadata["parse"])(f.name.upper(), **f.metadata["options"])
    faults = env.faults
    try:
        env.seal()
    except EnvValidationError as exc:
        found = cast("Mapping[str, Any]", exc.error_messages)
        faults |= {name: [OF_A_SERVICE] if env.is_of_a_service(name) else _messages(found[name]) for name in found}
    if not local:
        missing = NOT_LOCAL.format(" and ".join(env.of_no_local_run))
        faults |= {name: [missing] for name in REQUIRED if name.lower() not in given}
    lacks_full_key = values["api_keys"] is not None and ALL not in parse_keys(values["api_keys"]).values()
    for name, fault in (
        ("DB_URI", uri_fault(values["db_uri"]) if values["db_uri"] else None),
        ("API_KEYS", NEEDS_KEYS if given & TOKENS == {"user_token_secrets"} else None),
        ("PUBLIC_URL", NEEDS_URL if given & LINKS == {"unsubscribe_secrets"} else None),
        ("UNSUBSCRIBE_SECRETS", NEEDED_BY_URL if given & LINKS == {"public_url"} and lacks_full_key else None),
        ("EMAIL_FIELD", _email_field_fault(values["email_field"], values["unknown_users"])),
        ("WORKERS", ALONE if local and (values["workers"] or 1) > 1 else None),
        ("LOCAL_NAMES", OF_LOCAL_RUNS if not local and "local_names" in given else None),
        *_kinds_faults(values["kinds_file"], values["templates_dir"], user=bool(values["template_fields"])),
        *credential_faults(given, values),
    ):
        if fault:
            faults[name] = fault.split("\n")
    similar = similar_names({name.upper() for name in given})
    if faults:
        raise SettingsError({**similar, **faults})
    if not values["smtp_from"]:
        login = values["smtp_login"] or ""
        values["smtp_from"] = login if _is_address(login) else values["email"]
    return Settings(**values), [*env.warnings, *(f"{name}: {slip}" for name, (slip,) in similar.items())]


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
