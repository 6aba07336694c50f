"""The configuration: every environment variable, its default, and what it may be.

`cli/environment.py` reads them.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from marshmallow import validate

from config import checks, keys
from config.address import envelope_address, mailbox
from config.ids import IdType
from ops.kinds import Kinds, load_kinds

ANY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared with, not listened on
"""What listens on every address of this machine, and the one by which the machine reaches itself."""


class UnknownUsers(enum.Enum):
    """What a request about a user without a document does."""

    CREATE = "create"
    REFUSE = "refuse"


class Security(enum.Enum):
    """How the SMTP connection is secured."""

    AUTO = "auto"
    TLS = "tls"
    STARTTLS = "starttls"
    NONE = "none"


def _setting(help_: str, parse: str = "str", default: Any = None, *, secret: bool = False, **parse_options: Any) -> Any:
    metadata = {"help": help_, "parse": parse, "options": parse_options, "secret": secret}
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
        "MongoDB connection string, such as mongodb://mongodb-1/dbdata6; required",
        default="",
        secret=True,
        validate=checks.encodable,
    )
    users_collection: str = _setting("collection of the users' documents", default="users", validate=checks.collection)
    email_field: str = _setting(
        "where a user's document has the address, such as emails.0.address", default="email", validate=checks.field_path
    )
    language_field: str | None = _setting(
        "where a user's document has the language, which chooses the templates", validate=checks.field_path
    )
    id_type: IdType = _setting(
        "objectid or string: the type of the users' _id, and of target_id",
        "enum",
        IdType.OBJECTID,
        enum=IdType,
        by_value=True,
    )
    unknown_users: UnknownUsers = _setting(
        "create or refuse: what POST /create does about a user without a document",
        "enum",
        UnknownUsers.CREATE,
        enum=UnknownUsers,
        by_value=True,
    )
    notifications_limit: int = _setting(
        "notifications kept per user; the oldest are removed", "int", 100, validate=validate.Range(1, 10_000)
    )
    notifications_slack: int = _setting(
        "hidden notifications that the array may hold beyond NOTIFICATIONS_LIMIT; more make writes to full inboxes "
        "cheaper for MongoDB's oplog",
        "int",
        0,
        validate=validate.Range(0, 10_000),
    )
    smtp_host: str = _setting("SMTP server; required", default="", validate=checks.host)
    smtp_port: int = _setting("port of the SMTP server", "int", 465, validate=validate.Range(1, 65535))
    smtp_login: str | None = _setting(
        "login at the SMTP server; without one, no authentication", validate=checks.encodable
    )
    smtp_password: str | None = _setting("password of SMTP_LOGIN", secret=True, validate=checks.encodable)
    smtp_oauth_token_url: str | None = _setting("token server of a login by OAuth 2.0", validate=checks.token_url)
    smtp_oauth_client_id: str | None = _setting("id of the service at the token server", validate=checks.encodable)
    smtp_oauth_client_secret: str | None = _setting("secret of that id", secret=True, validate=checks.encodable)
    smtp_oauth_scope: str | None = _setting("scope of the tokens", validate=checks.encodable)
    smtp_oauth_refresh_token: str | None = _setting(
        "refresh token; without one, tokens are given to the client itself", secret=True, validate=checks.encodable
    )
    smtp_client_cert: Path | None = _setting("PEM file of a client certificate and its key", "path")
    smtp_from: str = _setting(
        "sender, user@host or Name <user@host>; default SMTP_LOGIN if an address, else EMAIL", validate=mailbox
    )
    smtp_reply_to: str | None = _setting("where answers go, written like SMTP_FROM", validate=mailbox)
    smtp_envelope_from: str = _setting("address for bounces; default SMTP_FROM's", "str", "", validate=envelope_address)
    smtp_helo: str | None = _setting("name or [address] in EHLO; default the domain of SMTP_FROM", validate=checks.helo)
    smtp_security: Security = _setting(
        "auto, tls, starttls or none; auto is TLS on port 465 and STARTTLS, if offered, on any other; "
        "only with none is a password sent in the clear",
        "enum",
        Security.AUTO,
        enum=Security,
        by_value=True,
    )
    smtp_ca_file: Path | None = _setting("PEM file of certificate authorities to trust besides the system's", "path")
    smtp_connections: int = _setting(
        "SMTP connections open at once at the most; the server may admit fewer",
        "int",
        20,
        validate=validate.Range(1, 100),
    )
    smtp_rate: float | None = _setting(
        "messages a second that a process sends at the most, such as 14 or 0.5; default: what the server bears",
        "float",
        validate=checks.POSITIVE,
    )
    smtp_connect_timeout: float = _setting(
        "seconds to connect, secure the connection and log in", "float", 30.0, validate=checks.POSITIVE
    )
    smtp_command_timeout: float = _setting(
        "seconds for the reply to a command", "float", 30.0, validate=checks.POSITIVE
    )
    mail_retry_minutes: Sequence[float] = _setting(
        "minutes before each further attempt; the last value repeats",
        "list",
        (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 240.0),
        subcast=float,
        validate=[validate.Length(min=1), checks.all_positive],
    )
    mail_give_up_hours: float = _setting(
        "hours of attempts after which an e-mail becomes a dead letter, if others get through",
        "float",
        48.0,
        validate=checks.POSITIVE,
    )
    mail_lease_seconds: float = _setting(
        "seconds until another process takes over the e-mails of one that died",
        "float",
        30.0,
        validate=validate.Range(1, 3600),
    )
    dead_mail_days: float | None = _setting(
        "days after which a dead letter is deleted; default: it stays",
        "float",
        validate=validate.Range(min=0, min_inclusive=False, max=10_000),
    )
    api_keys: Sequence[str] = _setting(
        "comma-separated keys, one of which a backend sends as Authorization: Bearer KEY; SCOPE:KEY or SCOPE+SCOPE:KEY "
        f"limits a key to one or several of {keys.NAMES}; without any key, the API is open",
        "list",
        (),
        secret=True,
        subcast=str.strip,
        validate=[validate.Length(min=1), keys.parse_keys],
    )
    user_token_secrets: Sequence[str] = _setting(
        "comma-separated secrets, any of which may sign a user's token (JWT, HS256), for what concerns that user; "
        "needs API_KEYS",
        "list",
        (),
        secret=True,
        subcast=str.strip,
        validate=[validate.Length(min=1), checks.long_secrets],
    )
    public_url: str | None = _setting(
        "where users' browsers reach the service, such as https://notifications.example.com, for links to unsubscribe; "
        "needs API_KEYS or UNSUBSCRIBE_SECRETS",
        validate=checks.public_url,
    )
    unsubscribe_secrets: Sequence[str] = _setting(
        "comma-separated secrets of the links to unsubscribe; the first makes them, all open them; default the "
        "API_KEYS without a scope",
        "list",
        (),
        secret=True,
        subcast=str.strip,
        validate=[validate.Length(min=1), checks.long_secrets],
    )
    cors_origins: Sequence[str] = _setting(
        "comma-separated origins whose pages may call what concerns a user, such as https://app.example.com",
        "list",
        (),
        subcast=str.strip,
        validate=checks.origins,
    )
    keep_alive_seconds: float = _setting(
        "seconds until an idle connection is closed; more than the proxy in front waits",
        "float",
        120.0,
        validate=checks.POSITIVE,
    )
    stream_limit: int = _setting(
        "streams open at once in one process", "int", 10_000, validate=validate.Range(1, 1_000_000)
    )
    demo: bool = _setting("1 serves the demo page at /; a local run always does", "bool", default=False)
    local_names: Sequence[str] = _setting(
        "comma-separated names and addresses, besides localhost and HOST, by which a browser may call a local run",
        "list",
        (),
        subcast=str.strip,
        validate=[validate.Length(min=1), checks.hosts],
    )
    templates_dir: Path | None = _setting("directory of e-mail templates; without one, an e-mail is its key", "path")
    template_fields: Sequence[str] = _setting(
        "comma-separated fields of the user's document, such as name,profile.name, that templates see as user",
        "list",
        (),
        subcast=str.strip,
        validate=[validate.Length(min=1), checks.field_paths],
    )
    kinds_file: Path | None = _setting(
        "TOML file of the kinds of notification; default the four, and in a local run one more to try", "path"
    )
    start_timeout: float = _setting("seconds to wait for MongoDB at the start", "float", 60.0, validate=checks.POSITIVE)
    workers: int = _setting("processes that share the port", "int", 1, validate=validate.Range(1, 64))
    otel_exporter_otlp_endpoint: str | None = _setting(
        "OpenTelemetry collector that gets spans by OTLP over HTTP, such as http://collector:4318; "
        "needs requirements-otel.txt",
        validate=validate.URL(schemes={"http", "https"}, require_tld=False),
    )
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
    def scopes(self) -> Mapping[str, keys.Scopes]:
        """The keys of `API_KEYS`, each with its scopes."""
        return keys.parse_keys(self.api_keys)

    @property
    def openness(self) -> str | None:
        """What there is to say of an API that is open to more than this machine, or `None` if it is not."""
        if self.api_keys or self.host in checks.LOOPBACK:
            return None
        return f"API_KEYS is not set: anyone who can reach {self.host} port {self.port} has full access"

    @property
    def url(self) -> str:
        """The service's address for programs on this machine, without a path."""
        return f"http://{checks.in_url(ANY_ADDRESS.get(self.host, self.host))}:{self.port}"

    @property
    def kinds(self) -> Kinds:
        """The kinds of notification. Raises `KindsError`."""
        return load_kinds(self.kinds_file)

    @property
    def link_secrets(self) -> Sequence[str]:
        """The secrets of the links to unsubscribe: by default the keys that may do everything."""
        return self.unsubscribe_secrets or [key for key, scopes in self.scopes.items() if scopes == keys.ALL]

    @property
    def security(self) -> Security:
        """`SMTP_SECURITY`, with `auto` resolved to TLS on port 465 (RFC 8314)."""
        return Security.TLS if (self.smtp_security, self.smtp_port) == (Security.AUTO, 465) else self.smtp_security
