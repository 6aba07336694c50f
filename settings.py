"""The configuration: every environment variable, read once and validated."""

from __future__ import annotations

import enum
import os
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, cast

from dotenv import dotenv_values
from environs import Env, EnvValidationError
from marshmallow import ValidationError, validate

from mail.address import envelope_address, sender_address
from mail.templates import Templates, TemplatesError
from mongo.connection import uri_fault
from ops import checks


class Security(enum.Enum):
    """How the SMTP connection is secured."""

    AUTO = "auto"
    TLS = "tls"
    STARTTLS = "starttls"
    NONE = "none"


class SettingsError(Exception):
    """Variables are missing or wrong. `faults` maps each name to its faults; the message names them all."""

    def __init__(self, faults: Mapping[str, Sequence[str]]) -> None:
        self.faults = faults
        lines = [f"  {name}: {' '.join(faults[name])}" for name in sorted(faults)]
        super().__init__("The configuration is not valid:\n" + "\n".join(lines))


def _setting(help_: str, parse: str = "str", default: Any = None, *, secret: bool = False, **parse_options: Any) -> Any:
    metadata = {"help": help_, "parse": parse, "options": parse_options}
    return field(default=default, repr=not secret, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The whole configuration. Each field is the environment variable of the same name in capitals."""

    host: str = _setting(
        "address to listen on; 127.0.0.1 in a local run",
        default="0.0.0.0",  # noqa: S104 - a container's
        validate=checks.host,
    )
    port: int = _setting("port to listen on", "int", 8080, validate=validate.Range(1, 65535))
    email: str = _setting("address of users that the service creates; required", default="", validate=envelope_address)
    db_uri: str = _setting(
        "MongoDB connection string, such as mongodb://mongodb-1/dbdata6; required", default="", secret=True
    )
    notifications_limit: int = _setting(
        "notifications kept per user; the oldest are removed", "int", 100, validate=validate.Range(1, 10_000)
    )
    smtp_host: str = _setting("SMTP server; required", default="", validate=checks.host)
    smtp_port: int = _setting("port of the SMTP server", "int", 465, validate=validate.Range(1, 65535))
    smtp_login: str | None = _setting(
        "login at the SMTP server; without one, no authentication", validate=checks.encodable
    )
    smtp_password: str | None = _setting("password of SMTP_LOGIN", secret=True, validate=checks.encodable)
    smtp_from: str = _setting(
        "sender, user@host or Name <user@host>; default SMTP_LOGIN if an address, else EMAIL", validate=sender_address
    )
    smtp_security: Security = _setting(
        "auto, tls, starttls or none; auto is TLS on port 465 and STARTTLS, if offered, on any other; "
        "only with none is a password sent in the clear",
        "enum",
        Security.AUTO,
        enum=Security,
        by_value=True,
    )
    smtp_ca_file: Path | None = _setting("PEM file of certificate authorities to trust besides the system's", "path")
    smtp_connections: int = _setting("SMTP connections open at once", "int", 4, validate=validate.Range(1, 100))
    smtp_connect_timeout: float = _setting(
        "seconds to connect, secure the connection and log in", "float", 30.0, validate=checks.POSITIVE
    )
    smtp_command_timeout: float = _setting(
        "seconds for the reply to a command", "float", 30.0, validate=checks.POSITIVE
    )
    smtp_data_timeout: float = _setting(
        "seconds after which a message without a reply lets others go first; the reply is awaited for 10 minutes",
        "float",
        30.0,
        validate=checks.POSITIVE,
    )
    mail_retry_minutes: Sequence[float] = _setting(
        "minutes before each further attempt; the last value repeats",
        "list",
        (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 240.0),
        subcast=float,
        validate=[validate.Length(min=1), checks.all_positive],
    )
    mail_ambiguous_minutes: float = _setting(
        "minimum minutes before an e-mail that the server may have accepted is sent again",
        "float",
        5.0,
        validate=checks.POSITIVE,
    )
    mail_give_up_hours: float = _setting(
        "hours of attempts after which an e-mail becomes a dead letter", "float", 48.0, validate=checks.POSITIVE
    )
    mail_lease_seconds: float = _setting(
        "seconds until another process takes over the e-mails of one that died",
        "float",
        30.0,
        validate=validate.Range(1, 3600),
    )
    api_keys: Sequence[str] = _setting(
        "comma-separated keys, one of which a backend sends as Authorization: Bearer KEY; without any, the API is open",
        "list",
        (),
        secret=True,
        subcast=str.strip,
        validate=[validate.Length(min=1), checks.long_secrets],
    )
    user_token_secret: str | None = _setting(
        "secret that signs users' tokens (JWT, HS256) for /list, /read and /stream; needs API_KEYS",
        secret=True,
        validate=[lambda value: checks.long_secrets([value]), checks.encodable],
    )
    cors_origins: Sequence[str] = _setting(
        "comma-separated origins whose pages may call /list, /read and /stream, such as https://app.example.com",
        "list",
        (),
        subcast=str.strip,
        validate=checks.origins,
    )
    stream_limit: int = _setting(
        "streams open at once in one process", "int", 10_000, validate=validate.Range(1, 1_000_000)
    )
    demo: bool = _setting("1 serves the demo page at /; a local run always does", "bool", default=False)
    templates_dir: Path | None = _setting("directory of e-mail templates; without one, an e-mail is its key", "path")
    workers: int = _setting("processes that share the port", "int", 1, validate=validate.Range(1, 64))
    log_level: str = _setting(
        "DEBUG, INFO, WARNING or ERROR",
        default="INFO",
        validate=validate.OneOf(["DEBUG", "INFO", "WARNING", "ERROR"], error="Must be one of: {choices}."),
    )

    @property
    def local(self) -> bool:
        """Whether this is a local run, on an embedded MongoDB and mailbox."""
        return not (self.db_uri or self.smtp_host)

    @property
    def security(self) -> Security:
        """`SMTP_SECURITY`, with `auto` resolved to TLS on port 465 (RFC 8314)."""
        return Security.TLS if (self.smtp_security, self.smtp_port) == (Security.AUTO, 465) else self.smtp_security

    @property
    def sender(self) -> tuple[str, str]:
        """Display name, which may be empty, and address that e-mails come from."""
        return sender_address(self.smtp_from)


LOCAL_DEFAULTS: Final[Mapping[str, Any]] = {"host": "127.0.0.1", "email": "user@example.com"}
LOGIN: Final = frozenset({"smtp_login", "smtp_password"})
TOKENS: Final = frozenset({"api_keys", "user_token_secret"})
NEEDS_KEYS: Final = "Missing. Without keys the API is open, and USER_TOKEN_SECRET protects nothing."
ALONE: Final = "A local run is one process. More need DB_URI and SMTP_HOST."
TOGETHER: Final = "Missing. SMTP_LOGIN and SMTP_PASSWORD go together."
REQUIRED: Final = ("DB_URI", "EMAIL", "SMTP_HOST")


class _Variables(Env):
    """The environment, then a file for what is unset or empty there. Nothing is expanded: a password may hold `${`."""

    def __init__(self, env_file: Path) -> None:
        super().__init__(eager=False)
        values = {**dotenv_values(env_file, interpolate=False), **{k: v for k, v in os.environ.items() if v.strip()}}
        self._given = {name: value for name, value in values.items() if value and value.strip()}

    def _get_value(self, env_key: str, default: Any) -> Any:  # as environs' own FileAwareEnv does
        return self._given.get(env_key, default)


def load_settings(env_file: Path = Path(".env")) -> Settings:
    """Read the environment, then `env_file` for what it leaves unset. An empty value counts as unset.

    With neither `DB_URI` nor `SMTP_HOST` they are the settings of a local run (`Settings.local`).

    Raises `SettingsError` with every fault.
    """
    env = _variables(env_file)
    given = {f.name for f in fields(Settings) if env.str(f.name.upper(), "")}
    local = given.isdisjoint({"db_uri", "smtp_host"})
    values: dict[str, Any] = {f.name: f.default for f in fields(Settings)} | (dict(LOCAL_DEFAULTS) if local else {})
    for f in fields(Settings):
        if f.name in given:
            values[f.name] = getattr(env, f.metadata["parse"])(f.name.upper(), **f.metadata["options"])
    faults: dict[str, Sequence[str]] = {}
    try:
        env.seal()
    except EnvValidationError as exc:
        faults = {name: _messages(found) for name, found in cast("Mapping[str, Any]", exc.error_messages).items()}
    if not local:
        faults |= {name: ["Missing."] for name in REQUIRED if name.lower() not in given}
    for name, fault in (
        ("DB_URI", uri_fault(values["db_uri"]) if "db_uri" in given else None),
        ("SMTP_CA_FILE", _ca_fault(values["smtp_ca_file"]) if values["smtp_ca_file"] else None),
        ("API_KEYS", NEEDS_KEYS if given & TOKENS == {"user_token_secret"} else None),
        ("WORKERS", ALONE if local and (values["workers"] or 1) > 1 else None),
        ("TEMPLATES_DIR", _templates_fault(values["templates_dir"])),
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


def _variables(env_file: Path) -> _Variables:
    if os.path.lexists(env_file) and not (env_file.is_file() or env_file.is_fifo()):  # it would be passed over
        raise SettingsError({f"{env_file}": ["Is not a file."]})
    try:
        return _Variables(env_file)
    except UnicodeDecodeError:
        raise SettingsError({f"{env_file}": ["Not UTF-8."]}) from None
    except OSError as exc:
        raise SettingsError({f"{env_file}": [f"Cannot be read: {exc.strerror}."]}) from None


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


def _templates_fault(folder: Path | None) -> str | None:
    try:
        Templates(folder)
    except TemplatesError as exc:
        return f"{exc}"
    return None


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
    return "\n".join(lines)
