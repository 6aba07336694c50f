"""Reading the configuration: each setting from its variable, and the rules between settings."""

from __future__ import annotations

import asyncio
import enum
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from ssl import PROTOCOL_TLS_CLIENT, SSLContext, create_default_context
from typing import Any, Final, get_args, get_origin, get_type_hints

from marshmallow import Schema, ValidationError
from marshmallow import fields as mf

from cli.variables import SettingsError, Variables
from config.address import is_address
from kinds import KindsError
from mail.templates import Templates, TemplatesError
from mongo.connection import uri_fault
from settings import VARIABLES, Security, Settings, UnknownUsers

LOCAL_DEFAULTS: Final[Mapping[str, Any]] = {
    "host": "127.0.0.1",
    "email": "user@example.com",
    "kinds_file": Path(__file__).parent.parent / "web/demo.toml",
}
REQUIRED: Final = frozenset({"DB_URI", "EMAIL", "SMTP_HOST"})
LINKS: Final = frozenset({"PUBLIC_URL", "UNSUBSCRIBE_SECRETS"})
TOKENS: Final = frozenset({"API_KEYS", "USER_TOKEN_SECRETS"})
NOT_LOCAL: Final = "Missing. This is no local run, as {} is set."
OF_LOCAL_RUNS: Final = "Is for local runs only. Elsewhere the service answers to any name, and API_KEYS protect it."
NEEDS_KEYS: Final = "Missing. Without keys the API is open, and USER_TOKEN_SECRETS protect nothing."
REPEATED: Final = "Repeats a key; a key with several scopes is SCOPE+SCOPE:KEY."
NEEDS_URL: Final = "Missing. Without it there are no links to unsubscribe, and UNSUBSCRIBE_SECRETS protects nothing."
NEEDED_BY_URL: Final = "Missing. The links to unsubscribe that PUBLIC_URL leads to need it, or a key without a scope."
TOGETHER: Final = "Missing. SMTP_LOGIN and SMTP_PASSWORD go together."
FOR_OAUTH: Final = "Missing. A login with OAuth 2.0 needs it."
NO_AUTHORITIES: Final = "Cannot be read as PEM certificates"
NOT_A_PAIR: Final = "Cannot be read as a PEM file with a certificate and its private key, without a passphrase"
PATH_REFUSES: Final = "A path needs UNKNOWN_USERS=refuse: the service creates users with a plain field."
OF_A_SERVICE: Final = (
    "Kubernetes has set this, for a Service of that name; enableServiceLinks: false in the pod's spec stops it."
)


def read_settings(env_file: Path = Path(".env")) -> tuple[Settings, Sequence[str]]:
    """Read the environment, then `env_file` for what it leaves out; return warnings of what may be a mistake.

    An empty value counts as unset. With none of `DB_URI`, an `EMAIL` in the file and the SMTP variables, the settings
    are those of a local run (`Settings.local`). Raises `SettingsError` with every fault.
    """
    variables = Variables(env_file)
    local = not variables.not_local
    parsed, wrong = _parse(variables.values)
    values = {**(LOCAL_DEFAULTS if local else {}), **parsed}
    login = values.get("smtp_login") or ""
    settings = Settings(**{"smtp_from": login if is_address(login) else values.get("email", ""), **values})
    faults = {**wrong, **variables.faults}
    if not local:
        missing = NOT_LOCAL.format(" and ".join(variables.not_local))
        faults |= {name: [missing] for name in REQUIRED - variables.present}
    for name, fault in _contradictions(settings, variables.present, local=local):
        faults.setdefault(name, fault.split("\n"))
    if faults:
        raise SettingsError({**variables.doubts, **faults})
    return settings, [*variables.warnings, *(f"{name}: {slip}" for name, (slip,) in variables.doubts.items())]


class _CommaSeparated(mf.List[Any]):
    def _deserialize(self, value: Any, *args: Any, **options: Any) -> Any:
        return super()._deserialize([item.strip() for item in value.split(",")], *args, **options)


def _field(hint: Any, check: Any) -> mf.Field[Any]:
    """Return the marshmallow field of a setting of this type."""
    item = next(iter(get_args(hint)), hint)  # the first of `float | None`, and of `Sequence[float]`
    options = {"validate": check} if check else {}
    if issubclass(item, enum.Enum):
        return mf.Enum(item, by_value=True, **options)
    parser = mf.Function(deserialize=Path) if item is Path else Schema.TYPE_MAPPING[item](**options)
    return _CommaSeparated(parser) if get_origin(hint) is Sequence else parser


def _parse(values: Mapping[str, str]) -> tuple[Mapping[str, Any], Mapping[str, Sequence[str]]]:
    """Return the settings that are valid, and by variable the faults of the others."""
    hints = get_type_hints(Settings)
    schema = Schema.from_dict({n: _field(hints[f.name], f.metadata["check"]) for n, f in VARIABLES.items()})()
    try:
        valid, faults = schema.load({name: value for name, value in values.items() if name in VARIABLES}), {}
    except ValidationError as exc:
        valid = exc.valid_data
        faults = {name: _sentences(values[name], messages) for name, messages in exc.messages_dict.items()}
    return {VARIABLES[name].name: value for name, value in valid.items() if name not in faults}, faults


def _sentences(value: str, messages: Any) -> Sequence[str]:
    """Return marshmallow's messages about a variable as sentences. Those of a list are by the index of each item."""
    if re.match("(tcp|udp|sctp)://", value):
        return [OF_A_SERVICE]
    if isinstance(messages, Mapping):
        return [f"Item {index + 1}: {text}" for index, texts in messages.items() for text in texts]
    return list(messages)


def _contradictions(settings: Settings, present: set[str], *, local: bool) -> Iterator[tuple[str, str]]:
    """Yield variables that contradict or lack others, and the faults."""
    is_path = "." in settings.email_field
    rules = (
        ("API_KEYS", present & TOKENS == {"USER_TOKEN_SECRETS"}, NEEDS_KEYS),
        ("API_KEYS", len(settings.scopes) < len(settings.api_keys), REPEATED),
        ("PUBLIC_URL", present & LINKS == {"UNSUBSCRIBE_SECRETS"}, NEEDS_URL),
        ("UNSUBSCRIBE_SECRETS", present & LINKS == {"PUBLIC_URL"} and not settings.link_secrets, NEEDED_BY_URL),
        ("EMAIL_FIELD", is_path and settings.unknown_users is UnknownUsers.CREATE, PATH_REFUSES),
        ("WORKERS", local and settings.workers > 1, "A local run is one process. More need DB_URI and SMTP_HOST."),
        ("LOCAL_NAMES", bool(settings.local_names) and not local, OF_LOCAL_RUNS),
    )
    yield from ((name, words) for name, holds, words in rules if holds)
    if settings.db_uri and (fault := uri_fault(settings.db_uri)):
        yield "DB_URI", fault
    yield from _login_faults(settings, present)
    try:
        if settings.kinds and settings.templates_dir:
            asyncio.run(Templates(settings).test())
    except KindsError as exc:
        yield "KINDS_FILE", f"{exc}"
    except TemplatesError as exc:
        yield "TEMPLATES_DIR", f"{exc}"


def _login_faults(settings: Settings, present: set[str]) -> Iterator[tuple[str, str]]:
    """Yield variables that a login at the mail server lacks or contradicts, and the faults."""
    oauth = {name for name in present if name.startswith("SMTP_OAUTH_")}
    proof = set() if "SMTP_OAUTH_REFRESH_TOKEN" in oauth else {"SMTP_OAUTH_CLIENT_SECRET"}
    needed = {"SMTP_OAUTH_TOKEN_URL", "SMTP_OAUTH_CLIENT_ID", *proof} if oauth else {"SMTP_PASSWORD"}
    if present & {"SMTP_LOGIN", "SMTP_PASSWORD", *oauth}:
        yield from ((name, FOR_OAUTH if oauth else TOGETHER) for name in {"SMTP_LOGIN", *needed} - present)
    if oauth and "SMTP_PASSWORD" in present:
        yield "SMTP_PASSWORD", "A login has a password or OAuth 2.0, not both."
    if path := settings.smtp_ca_file:
        yield from _file_faults("SMTP_CA_FILE", NO_AUTHORITIES, path, partial(create_default_context, cafile=path))
    if path := settings.smtp_client_cert:
        load = SSLContext(PROTOCOL_TLS_CLIENT).load_cert_chain
        # Without a password, OpenSSL would ask the terminal for that of an encrypted key.
        yield from _file_faults("SMTP_CLIENT_CERT", NOT_A_PAIR, path, partial(load, path, password=""))
        if settings.smtp_security is Security.NONE:
            yield "SMTP_SECURITY", "Must not be none with SMTP_CLIENT_CERT, which only TLS can show."


def _file_faults(name: str, words: str, path: Path, load: Callable[[], object]) -> Iterator[tuple[str, str]]:
    try:
        load()
    except OSError as exc:  # ssl.SSLError is one
        yield name, f"{words}: {path}: {exc.strerror or exc}."
