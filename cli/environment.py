"""Reading the configuration: the environment, `.env`, files that hold secrets, and the rules between settings."""

import asyncio
import difflib
import enum
import os
import re
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from pathlib import Path
from ssl import PROTOCOL_TLS_CLIENT, SSLContext
from typing import Any, Final, get_args, get_origin

from dotenv.parser import Binding, parse_stream
from marshmallow import EXCLUDE, Schema, ValidationError
from marshmallow import fields as mf

from config.checks import is_address
from kinds import KindsError
from mail.templates import Templates, TemplatesError
from mongo.connection import uri_fault
from settings import SECRETS, VARIABLES, Security, Settings, UnknownUsers

LOCAL_DEFAULTS: Final[Mapping[str, Any]] = {
    "host": "127.0.0.1",
    "email": "user@example.com",
    "kinds_file": Path(__file__).parent.parent / "web/demo.toml",
}
SECRET_FILES: Final = {f"{name}_FILE": name for name in SECRETS}
NAMES: Final = VARIABLES.keys() | SECRET_FILES.keys()
UNKNOWN: Final = "No variable of the service has this name"
MISREAD: Final = (
    "Docker Compose would expand a $ in {}, and its value ends before a # after a space; put it in single quotes."
)
QUOTED: Final = (
    "Is in quotes, which belong to the value: `docker run --env-file` and Compose's `- NAME=VALUE` keep them."
)
PAIR: Final = "a PEM file with a certificate and its private key, without a passphrase"
OF_KUBERNETES: Final = re.compile(r"\w+_SERVICE_(HOST|PORT\w*)|\w+_PORT_\d+_(TCP|UDP|SCTP)\w*")  # set for each Service


class SettingsError(Exception):
    """Variables are missing or wrong. `faults` maps each name to its faults; the message has a line for each."""

    def __init__(self, faults: Mapping[str, Sequence[str]]) -> None:
        self.faults = faults
        lines = [f"  {name}: {fault}" for name in sorted(faults) for fault in faults[name]]
        super().__init__("The configuration is not valid:\n" + "\n".join(lines))


def read_settings(env_file: Path = Path(".env")) -> tuple[Settings, Sequence[str]]:
    """Return the settings, and warnings of what may be a mistake. Raises `SettingsError` with all faults."""
    variables = _Variables(env_file)
    present, not_local = variables.present, variables.not_local
    for name in {"DB_URI", "EMAIL", "SMTP_HOST"} - present if not_local else ():
        variables.fault(name, f"Missing. This is no local run, as {' and '.join(not_local)} is set.")
    values = {**({} if not_local else LOCAL_DEFAULTS), **variables.parsed()}
    login = values.get("smtp_login") or ""
    settings = Settings(**{"smtp_from": login if is_address(login) else values.get("email", ""), **values})
    for name, fault in _contradictions(settings, present, local=not not_local):
        variables.fault(name, *fault.split("\n"))
    if variables.faults:
        raise SettingsError({**variables.warnings, **variables.faults})
    return settings, [f"{name}: {text}" for name, texts in variables.warnings.items() for text in texts]


class _Variables:
    """The environment, then a file for what is not in it. An empty variable is unset, and hides that of the file.

    A value ends before its line end, which a secret made with `echo` has. Nothing is expanded: a password may hold
    `${`. `present` has the names of the settings with a value, even one in a file that cannot be read.
    """

    def __init__(self, env_file: Path) -> None:
        self.faults: dict[str, Sequence[str]] = {}
        self.warnings: defaultdict[str, list[str]] = defaultdict(list)
        self._lines: dict[str, int] = {}
        values = {**self._read(env_file), **os.environ}
        self._values = {name: value.strip("\r\n") for name, value in values.items() if value.strip()}
        self.present = {SECRET_FILES.get(name, name) for name in self._values}
        for name, value in self._values.items():
            line = self._lines.get(name)
            if slip := _slip(name, () if line else self.present):
                if line:
                    self.fault(name, f"{slip} (in line {line} of {env_file})")
                else:  # it may be another program's
                    self.warnings[name].append(slip)
            if name in NAMES & os.environ.keys() and re.fullmatch(r"\s*(['\"]).*\1\s*", value, re.DOTALL):
                self.fault(name, QUOTED)
        for name in SECRET_FILES.keys() & self._values.keys():
            self._read_secret(name, SECRET_FILES[name])

    def fault(self, name: str, *texts: str) -> None:
        """Note what is wrong with a variable. What follows from an earlier fault does not count."""
        self.faults.setdefault(name, texts)

    def _read(self, env_file: Path) -> Mapping[str, str]:
        """Return the values of a file, which need not exist. Raises `SettingsError`."""
        try:
            with env_file.open(encoding="utf-8-sig") as lines:
                bindings = list(parse_stream(lines))
        except (OSError, UnicodeDecodeError) as exc:
            if isinstance(exc, FileNotFoundError) and not env_file.is_symlink():
                return {}
            fault = f"Cannot be read: {getattr(exc, 'strerror', 'not UTF-8')}."
            raise SettingsError({f"{env_file}": [fault]}) from None
        values = {}
        for binding in bindings:
            name, value, text = binding.key, binding.value, binding.original.string
            blank = len(text) - len(text.lstrip())  # to the parser, blank lines are part of the next one
            line = binding.original.line + text[:blank].count("\n")
            place = f"{env_file}, line {line}"
            if binding.error or (name and value is None):
                self.fault(place, "Is not NAME=VALUE.")
            elif name and value is not None:
                if name in values:
                    self.warnings[place].append(f"{name} is in line {self._lines[name]}, too; the later one counts.")
                if _is_misread(binding):
                    self.warnings[place].append(MISREAD.format(name))
                values[name], self._lines[name] = value, line
        return values

    def _read_secret(self, name: str, secret: str) -> None:
        """Take the value of a secret from the file that a variable names, without its final newline."""
        path = Path(self._values[name])
        where = f" ({path})" if path.is_absolute() else ""  # else it may be the secret itself
        try:
            value = path.read_text("utf-8-sig").removesuffix("\n")
            fault = "" if value.strip() else f"Is empty{where}."
        except (OSError, ValueError) as exc:  # a UnicodeDecodeError, or a name with a NUL
            value, fault = "", f"Cannot be read: {getattr(exc, 'strerror', 'not UTF-8')}{where}."
        if secret in self._values:
            fault = f"{secret} is set as well: set only one of the two."
        if fault:
            self.fault(name, fault)
        else:
            self._values[secret] = value

    @property
    def not_local(self) -> Sequence[str]:
        """The variables that mean a database or a mail server, even unknown ones: this is no local run."""
        email = {"EMAIL"} & self._lines.keys()  # in the environment, it may be meant for other programs
        smtp = {name for name in self.present if name.startswith("SMTP_") and not OF_KUBERNETES.fullmatch(name)}
        return sorted(self.present & ({"DB_URI"} | email | smtp))

    def parsed(self) -> Mapping[str, Any]:
        schema = Schema.from_dict({name: _field(f.type, f.metadata["check"]) for name, f in VARIABLES.items()})()
        try:
            values = schema.load(self._values, unknown=EXCLUDE)
        except ValidationError as exc:
            values = exc.valid_data
            for name, texts in exc.messages_dict.items():
                if self._values[name].startswith("tcp://"):
                    self.fault(name, "Kubernetes has set this for a Service; enableServiceLinks: false stops it.")
                items = texts.items() if isinstance(texts, dict) else ()  # of a list, by the index of each item
                self.fault(name, *[f"Item {index + 1}: {' '.join(each)}" for index, each in items] or texts)
        return {VARIABLES[name].name: value for name, value in values.items() if name not in self.faults}


def _is_misread(binding: Binding) -> bool:
    """Return whether Docker Compose would expand the value of a line, or a secret loses what follows a `#`."""
    raw = binding.original.string.partition("=")[2].lstrip()
    is_cut = binding.key in SECRETS and raw[:1] != '"' and re.search(r"\s#", raw)
    return not raw.startswith("'") and bool("$" in raw or is_cut)


def _slip(name: str, present: Container[str]) -> str | None:
    """Return what is wrong with a name that is probably a misspelt setting, unless that is present."""
    if name in NAMES or OF_KUBERNETES.fullmatch(name):
        return None
    if name.removesuffix("_FILE") in NAMES:
        return f"{UNKNOWN}: a file is read only for {', '.join(SECRETS)}."
    long = [known for known in NAMES if len(known) > 5]  # else MAIL, which every login sets, would pass for EMAIL
    for near in difflib.get_close_matches(name.upper(), long, 1, cutoff=0.8):
        return None if near in present else f"{UNKNOWN}; is {near} meant?"
    return f"{UNKNOWN}." if name.startswith("SMTP_") else None


class _CommaSeparated(mf.List[Any]):
    def _deserialize(self, value: Any, *args: Any, **options: Any) -> Any:
        return super()._deserialize([item.strip() for item in value.split(",")], *args, **options)


def _field(hint: Any, check: Any) -> mf.Field[Any]:
    item = next(iter(get_args(hint)), hint)  # the first of `float | None`, and of `Sequence[float]`
    options = {"validate": check} if check else {}
    if issubclass(item, enum.Enum):
        return mf.Enum(item, by_value=True, **options)
    parser = mf.Function(deserialize=Path) if item is Path else Schema.TYPE_MAPPING[item](**options)
    return _CommaSeparated(parser) if get_origin(hint) is Sequence else parser


def _contradictions(settings: Settings, present: AbstractSet[str], *, local: bool) -> Iterator[tuple[str, str]]:
    if present & {"API_KEYS", "USER_TOKEN_SECRETS"} == {"USER_TOKEN_SECRETS"}:
        yield "API_KEYS", "Missing. Without keys the API is open, and USER_TOKEN_SECRETS protect nothing."
    if len(settings.scopes) < len(settings.api_keys):
        yield "API_KEYS", "Repeats a key; a key with several scopes is SCOPE+SCOPE:KEY."
    links = present & {"PUBLIC_URL", "UNSUBSCRIBE_SECRETS"}
    if links == {"UNSUBSCRIBE_SECRETS"}:
        yield "PUBLIC_URL", "Missing. Without it there are no links that UNSUBSCRIBE_SECRETS could sign."
    if links == {"PUBLIC_URL"} and not settings.link_secrets:
        yield "UNSUBSCRIBE_SECRETS", "Missing. The links of PUBLIC_URL need it, or a key without a scope."
    if "." in settings.email_field and settings.unknown_users is UnknownUsers.CREATE:
        yield "EMAIL_FIELD", "A path needs UNKNOWN_USERS=refuse: the service creates users with a plain field."
    if local and settings.workers > 1:
        yield "WORKERS", "A local run is one process. More need DB_URI and SMTP_HOST."
    if settings.local_names and not local:
        yield "LOCAL_NAMES", "Is for local runs only. Elsewhere the service answers to any name."
    yield from _login_faults(settings, present)
    yield from _file_faults(settings)


def _login_faults(settings: Settings, present: AbstractSet[str]) -> Iterator[tuple[str, str]]:
    oauth = {name for name in present if name.startswith("SMTP_OAUTH_")}
    needed, means = {"SMTP_LOGIN", "SMTP_PASSWORD"}, "a password"
    if oauth:
        proof = set() if "SMTP_OAUTH_REFRESH_TOKEN" in oauth else {"SMTP_OAUTH_CLIENT_SECRET"}
        needed, means = {"SMTP_LOGIN", "SMTP_OAUTH_TOKEN_URL", "SMTP_OAUTH_CLIENT_ID", *proof}, "OAuth 2.0"
    if present & {"SMTP_LOGIN", "SMTP_PASSWORD", *oauth}:
        yield from ((name, f"Missing. A login with {means} needs it.") for name in needed - present)
    if oauth and "SMTP_PASSWORD" in present:
        yield "SMTP_PASSWORD", "A login has a password or OAuth 2.0, not both."
    if settings.smtp_client_cert and settings.smtp_security is Security.NONE:
        yield "SMTP_SECURITY", "Must not be none with SMTP_CLIENT_CERT, which only TLS can show."


def _file_faults(settings: Settings) -> Iterator[tuple[str, str]]:
    if settings.db_uri and (fault := uri_fault(settings.db_uri)):
        yield "DB_URI", fault
    context = SSLContext(PROTOCOL_TLS_CLIENT)
    # Without a password, OpenSSL would ask the terminal for that of an encrypted key.
    load_pair = partial(context.load_cert_chain, password="")
    for name, path, load, words in (
        ("SMTP_CA_FILE", settings.smtp_ca_file, context.load_verify_locations, "PEM certificates"),
        ("SMTP_CLIENT_CERT", settings.smtp_client_cert, load_pair, PAIR),
    ):
        try:
            if path:
                load(path)
        except OSError as exc:  # ssl.SSLError is one
            yield name, f"Cannot be read as {words}: {path}: {exc.strerror or exc}."
    try:
        if settings.kinds and settings.templates_dir:
            asyncio.run(Templates(settings).test())
    except KindsError as exc:
        yield "KINDS_FILE", f"{exc}"
    except TemplatesError as exc:
        yield "TEMPLATES_DIR", f"{exc}"
