"""The configuration: every environment variable, its default, and what it may be; ids, whose type is one of them.

`cli/environment.py` reads them. `--help`, `.env.example` and the page of the documentation are made from `grouped`.
"""

import enum
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from bson import ObjectId
from marshmallow import ValidationError, validate

from config import checks
from config.checks import envelope_address, mailbox
from kinds import Kinds, load_kinds

LOOPBACK_OF: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with, not listened on
RETRY_MINUTES: Final = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 240.0)
OBJECT_ID: Final = "[0-9a-fA-F]{24}"
STRING_LIMIT: Final = 128  # characters
STRING: Final = rf"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{{1,{STRING_LIMIT}}}"


def named(id_: str) -> str:
    """Return a name for the document in the log. An `_id` that may be an e-mail address is not shown."""
    return "a document whose _id is an address" if "@" in id_ else f"document {id_}"


class IdType(enum.Enum):
    """The type of the `_id`s, and of the ids of entities that notifications are about."""

    OBJECTID = "objectid"
    STRING = "string"

    def __init__(self, name: str) -> None:
        self.matches = re.compile(OBJECT_ID if name == "objectid" else STRING).fullmatch
        self.canonical: Callable[[str], str] = str.lower if name == "objectid" else str

    @property
    def fault(self) -> str:
        if self is IdType.OBJECTID:
            return "Not a valid ObjectId."
        return f"Not 1 to {STRING_LIMIT} characters without control characters."

    def parse(self, text: str) -> str | None:
        return self.canonical(text) if self.matches(text) else None

    def from_bson(self, value: object) -> str | None:
        """Return the id, or `None` if `_id` has another type: the document is then another program's."""
        kind = ObjectId if self is IdType.OBJECTID else str
        return str(value) if isinstance(value, kind) else None


class UnknownUsers(enum.Enum):
    CREATE = "create"
    REFUSE = "refuse"


class Security(enum.Enum):
    AUTO = "auto"
    TLS = "tls"
    STARTTLS = "starttls"
    NONE = "none"


class Scope(enum.Enum):
    """What a caller may do, for every user. A user's token has `INBOX`, for that user."""

    CREATE = "create"
    INBOX = "inbox"
    SUPPRESS = "suppress"
    ERASE = "erase"
    METRICS = "metrics"


Scopes = frozenset[Scope]
ALL_SCOPES: Final = frozenset(Scope)
SCOPE_NAMES: Final = ", ".join(scope.value for scope in Scope)


def parse_key(item: str) -> tuple[str, Scopes]:
    """Return the key and the scopes of an item of `API_KEYS`. An error quotes nothing, as that may be part of a key."""
    names, colon, key = item.partition(":") if ":" in item else ("", "", item)
    try:
        scopes = frozenset(map(Scope, names.split("+"))) if colon else ALL_SCOPES
    except ValueError:
        raise ValidationError(f"Has no scope before its colon; the scopes are {SCOPE_NAMES}.") from None
    checks.long_secret(key)
    return key, scopes


def _setting(
    help_: str, default: Any = None, check: Callable[[Any], object] | None = None, *, secret: bool = False
) -> Any:
    """Declare a variable. Its type says how it is parsed; `check` judges its value, or each item of a list."""
    return field(default=default, repr=not secret, metadata={"help": help_, "check": check, "secret": secret})


GROUPS: Final = {  # the first setting of each group, and what the group is called
    "port": "The service, its database and its mail server",
    "users_collection": "Users and notifications",
    "api_keys": "Who may call",
    "smtp_from": "E-mail",
    "host": "The process",
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The whole configuration. Each field with a help text is the environment variable of the same name in capitals."""

    port: int = _setting("port to listen on", 8080, validate.Range(1, 65535))
    email: str = _setting("address of users whom the service creates; required", "", envelope_address)
    db_uri: str = _setting("MongoDB connection string; required", "", checks.ENCODABLE, secret=True)
    smtp_host: str = _setting("SMTP server; required", "", checks.host)
    smtp_port: int = _setting("port of the SMTP server", 465, validate.Range(1, 65535))
    smtp_login: str | None = _setting("user name at the SMTP server; without one, no login", check=checks.ENCODABLE)
    smtp_password: str | None = _setting("password of SMTP_LOGIN", check=checks.ENCODABLE, secret=True)

    users_collection: str = _setting("collection of the users' documents", "users", checks.COLLECTION)
    email_field: str = _setting("path of a user's address, such as emails.0.address", "email", checks.field_path)
    language_field: str | None = _setting("path of a user's language, which chooses templates", check=checks.field_path)
    id_type: IdType = _setting("type of users' _id, and of target_id: objectid or string", IdType.OBJECTID)
    unknown_users: UnknownUsers = _setting("create or refuse users without a document", UnknownUsers.CREATE)
    notifications_limit: int = _setting("notifications kept for each user", 100, validate.Range(1, 10_000))
    notifications_slack: int = _setting("hidden ones beyond these, to trim less often", 0, validate.Range(0, 10_000))
    kinds_file: Path | None = _setting("TOML file of the kinds; else the four built-in, in a local run one more")

    api_keys: Sequence[str] = _setting(
        f"KEY, SCOPE:KEY or SCOPE+SCOPE:KEY, comma-separated; without any, the API is open. Scopes: {SCOPE_NAMES}",
        (),
        parse_key,
        secret=True,
    )
    user_token_secrets: Sequence[str] = _setting(
        "secrets that sign users' tokens, comma-separated; need API_KEYS", (), checks.long_secret, secret=True
    )
    cors_origins: Sequence[str] = _setting(
        "origins whose pages may call the routes for users, comma-separated", (), checks.ORIGIN
    )
    public_url: str | None = _setting(
        "where users' browsers reach the service, for links to unsubscribe", check=checks.public_url
    )
    unsubscribe_secrets: Sequence[str] = _setting(
        "secrets of these links, comma-separated; the first signs; without any, keys of API_KEYS without a scope",
        (),
        checks.long_secret,
        secret=True,
    )
    local_names: Sequence[str] = _setting("further host names of a local run, comma-separated", (), checks.host)

    smtp_from: str = _setting("user@host or Name <user@host>; else SMTP_LOGIN if an address, else EMAIL", check=mailbox)
    smtp_reply_to: str | None = _setting("where answers go, written like SMTP_FROM", check=mailbox)
    smtp_envelope_from: str = _setting("where bounces go; else to the address of SMTP_FROM", "", envelope_address)
    smtp_helo: str | None = _setting("name or [address] in EHLO; else the domain of SMTP_FROM", check=checks.helo)
    smtp_security: Security = _setting(
        "auto, tls, starttls or none; auto is TLS on port 465 and STARTTLS, if offered, elsewhere; only none sends a "
        "password in the clear",
        Security.AUTO,
    )
    smtp_ca_file: Path | None = _setting("PEM file of certificate authorities to trust besides the system's")
    smtp_client_cert: Path | None = _setting("PEM file of a client certificate and its key")
    smtp_oauth_token_url: str | None = _setting("token server of a login by OAuth 2.0", check=checks.TOKEN_URL)
    smtp_oauth_client_id: str | None = _setting("the service's id at the token server", check=checks.ENCODABLE)
    smtp_oauth_client_secret: str | None = _setting("secret of that id", check=checks.ENCODABLE, secret=True)
    smtp_oauth_scope: str | None = _setting("scope of the tokens", check=checks.ENCODABLE)
    smtp_oauth_refresh_token: str | None = _setting(
        "refresh token; without one, the id and secret alone get tokens", check=checks.ENCODABLE, secret=True
    )
    smtp_connections: int = _setting("most SMTP connections of a process", 20, validate.Range(1, 100))
    smtp_rate: float | None = _setting("most messages a second of a process, such as 14 or 0.5", check=checks.POSITIVE)
    smtp_connect_timeout: float = _setting("seconds to connect, secure the connection, log in", 30.0, checks.POSITIVE)
    smtp_command_timeout: float = _setting("seconds to wait for the reply to a command", 30.0, checks.POSITIVE)
    mail_retry_minutes: Sequence[float] = _setting(
        "minutes before each further attempt; the last value repeats", RETRY_MINUTES, checks.POSITIVE
    )
    mail_give_up_hours: float = _setting("hours of attempts before an e-mail is a dead letter", 48.0, checks.POSITIVE)
    mail_lease_seconds: float = _setting(
        "seconds until another process takes over the e-mails of one that died", 30.0, validate.Range(1, 3600)
    )
    dead_mail_days: float | None = _setting("days until a dead letter is deleted; else it stays", check=checks.DAYS)
    templates_dir: Path | None = _setting("directory of e-mail templates; without one, an e-mail says its key")
    template_fields: Sequence[str] = _setting(
        "fields of a user's document that templates see, such as name,profile.name", (), checks.field_path
    )

    host: str = _setting("address to listen on; 127.0.0.1 in a local run", "0.0.0.0", checks.host)  # noqa: S104
    workers: int = _setting("processes that share the port", 1, validate.Range(1, 64))
    start_timeout: float = _setting("seconds to wait for MongoDB at the start", 60.0, checks.POSITIVE)
    keep_alive_seconds: float = _setting("seconds until an idle connection is closed", 120.0, checks.POSITIVE)
    demo: bool = _setting("1 serves the demo page at /; a local run always does", default=False)
    log_level: str = _setting("DEBUG, INFO, WARNING or ERROR", "INFO", checks.LEVEL)
    otel_exporter_otlp_endpoint: str | None = _setting("OpenTelemetry collector for spans", check=checks.COLLECTOR)

    stream_limit: int = 10_000  # open at once in one process; no variable: the limit of open files counts first

    @property
    def local(self) -> bool:
        return not (self.db_uri or self.smtp_host)

    @cached_property
    def scopes(self) -> Mapping[str, Scopes]:
        return dict(map(parse_key, self.api_keys))

    @property
    def openness(self) -> str | None:
        """A warning if machines other than this one can call the API without a key, else `None`."""
        if self.api_keys or self.host in checks.LOOPBACK:
            return None
        return f"API_KEYS is not set: anyone who can reach {self.host} port {self.port} has full access"

    @property
    def url(self) -> str:
        """The service's address for programs on this machine."""
        return f"http://{checks.in_url(LOOPBACK_OF.get(self.host, self.host))}:{self.port}"

    @cached_property
    def kinds(self) -> Kinds:
        """The kinds, read once. Raises `KindsError`."""
        return load_kinds(self.kinds_file)

    @property
    def link_secrets(self) -> Sequence[str]:
        """The secrets of the links to unsubscribe: by default the keys that open everything."""
        return self.unsubscribe_secrets or [key for key, scopes in self.scopes.items() if scopes == ALL_SCOPES]

    @property
    def security(self) -> Security:
        """`SMTP_SECURITY`, with `auto` resolved to TLS on port 465 (RFC 8314)."""
        return Security.TLS if (self.smtp_security, self.smtp_port) == (Security.AUTO, 465) else self.smtp_security


VARIABLES: Final[Mapping[str, Field[Any]]] = {f.name.upper(): f for f in fields(Settings) if "help" in f.metadata}
SECRETS: Final = tuple(name for name, f in VARIABLES.items() if f.metadata["secret"])  # `NAME_FILE` may have the value


def grouped() -> Mapping[str, Mapping[str, Field[Any]]]:
    groups, heading = dict[str, dict[str, Field[Any]]](), ""
    for name, variable in VARIABLES.items():
        heading = GROUPS.get(variable.name, heading)
        groups.setdefault(heading, {})[name] = variable
    return groups


def default_of(variable: Field[Any]) -> str:
    """Return the default as one would write it in `.env`."""
    value = getattr(variable.default, "value", variable.default)  # of an enum
    if isinstance(value, tuple):
        return ",".join(f"{item:g}" for item in value)
    if isinstance(value, bool | float):
        return f"{value:g}"
    return "" if value is None else f"{value}"
