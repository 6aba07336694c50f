"""What values must be: e-mail addresses, hosts, secrets, URLs and paths, in settings and in users' documents.

Each check raises `marshmallow.ValidationError` with a sentence. An e-mail address is what RFC 5322 and RFC 6531 allow,
and what real mailboxes have all the same: dots in a row or at the end, more than 64 octets before the `@`. The mail
server judges the rest.
"""

import ipaddress
import re
import unicodedata
from collections.abc import Mapping
from typing import Final

import idna
from marshmallow import ValidationError, validate

DEAD_MAIL: Final = "dead_mail"  # the collection of the dead letters
OWN_FIELDS: Final = frozenset({"_id", "notifications", "notifier"})  # of a user's document: no setting may name them
SECRET_LENGTH: Final = 32  # bytes, as an HMAC-SHA-256 has (RFC 7518, section 3.2)
LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
PUBLIC_URL_LENGTH: Final = 180  # characters; with the longest token, a link fits into a header's line (RFC 5322, 2.1.1)
POSITIVE: Final = validate.Range(min=0, min_inclusive=False, max=86_400)
DAYS: Final = validate.Range(min=0, min_inclusive=False, max=10_000)
ENCODABLE: Final = validate.And(
    validate.Regexp("[^\ud800-\udfff]*\\Z", error="Not UTF-8."),
    validate.Regexp(r"[^\x00-\x1f\x7f]*\Z", error="Has a control character."),
)
ORIGIN: Final = validate.Regexp(
    r"https?://[a-z0-9.-]+(:\d+)?\Z", error="Not an origin such as https://app.example.com."
)
TOKEN_URL: Final = validate.Regexp(  # secrets are sent there, so only to this machine without TLS
    r"(https://[\w.-]+|https?://(localhost|127\.0\.0\.1|\[::1\]))(:\d{1,5})?(/[!-\"$-~]*)?\Z",
    error="Not an https address, such as https://oauth2.googleapis.com/token.",
)
COLLECTION: Final = validate.Regexp(  # MongoDB manual, "Restrictions on Collection Names"
    rf"(?!system\.|\.|{DEAD_MAIL}\Z)[^$\x00]{{1,120}}\Z",
    error=f"Not the name of a collection, or {DEAD_MAIL}, which is the service's.",
)
LEVEL: Final = validate.OneOf(["DEBUG", "INFO", "WARNING", "ERROR"], error="Must be one of: {choices}.")
COLLECTOR: Final = validate.URL(
    schemes={"http", "https"}, require_tld=False, error="Not an address such as http://collector:4318."
)


def host(value: str) -> None:
    try:
        in_url(value)
    except (ValidationError, ValueError):
        raise ValidationError("Not a host name or an address.") from None


def helo(value: str) -> None:
    try:
        domain(value)
    except ValidationError:
        raise ValidationError("Not a host name, or an address such as [192.0.2.1].") from None


def in_url(name: str) -> str:
    """Return a host as a browser writes it (URL Standard, section 3.5). May raise `ValueError`, too."""
    return f"[{ipaddress.IPv6Address(name)}]" if ":" in name else _a_labels(name)


def long_secret(value: str) -> None:
    ENCODABLE(value)
    if len(value.encode()) < SECRET_LENGTH:
        raise ValidationError(f"Shorter than {SECRET_LENGTH} bytes; `openssl rand -hex 32` makes a good one.")


def public_url(value: str) -> None:
    parts = re.fullmatch(r"https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:\d{1,5})?(/[a-z0-9._~%-]+)*/?", value, re.IGNORECASE)
    if not parts or not value.isascii() or len(value) > PUBLIC_URL_LENGTH or int((parts[2] or ":0")[1:]) >= 1 << 16:
        limit = f"of at most {PUBLIC_URL_LENGTH} characters"
        raise ValidationError(f"Not an address such as https://example.com/notifications, {limit}.")
    host(parts[1].strip("[]"))


def field_path(value: str) -> None:
    """Accept a field, or a path through documents and arrays, other than the service's."""
    names = value.split(".")
    if not all(re.fullmatch(r"[^$.\x00][^.\x00]*", name) for name in names) or names[0] in OWN_FIELDS:
        raise ValidationError("Not a field or a path such as emails.0.address, or a field of the service's.")


def value_at(document: object, path: str) -> object:
    """Return the value at a path such as `emails.0.address` or `data.city`, or `None`."""
    for name in path.split("."):
        if isinstance(document, Mapping):
            document = document.get(name)
        elif isinstance(document, list) and name.isdecimal() and int(name) < len(document):
            document = document[int(name)]
        else:
            return None
    return document


# --- e-mail addresses -------------------------------------------------------------------------------

LOCAL_LIMIT: Final = 700  # octets. With more, the address would not fit into a line of its header (RFC 5322, 2.1.1)
DOMAIN_LIMIT: Final = 255  # octets (RFC 5321, section 4.5.3.1)
TEXT_LIMIT: Final = 1000  # characters. A document may hold millions
ATEXT: Final = r"A-Za-z0-9!#$%&'*+/=?^_`{|}~"
LOCAL: Final = re.compile(rf'[{ATEXT}.\u0080-\U0010ffff-]+|"(?:[ !#-\[\]-~\u0080-\U0010ffff]|\\[ -~])*"')
"""A dot-atom or a quoted string (RFC 5322, section 3.2), with any character beyond ASCII (RFC 6531, section 3.3)."""
LITERAL: Final = re.compile(r"\[(?:\d{1,3}(?:\.\d{1,3}){3}|IPv6:[0-9A-Fa-f:.]+)\]")
LABEL: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
UNPRINTABLE: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})  # control characters, surrogates and separators of lines
JOINERS: Final = "\u200c\u200d"  # format characters that words of some scripts need (RFC 5892, appendix A)
NOT_AN_ADDRESS: Final = "Not a valid email address."
NAMED: Final = re.compile(r"(.*?)<([^<>]*)>", re.DOTALL)
QUOTED: Final = re.compile(r'"(?:[^"\\]|\\.)*"')
LIST: Final = re.compile(r"[<>]|@.*,|,.*@")  # what an unquoted name has only in a list of addresses


def envelope_address(value: object) -> str:
    """Return the one address in `value`, normalised (NFC), an international domain as A-labels (RFC 5890)."""
    if not isinstance(value, str) or len(value) > TEXT_LIMIT:
        raise ValidationError(NOT_AN_ADDRESS)
    local, at, host = unicodedata.normalize("NFC", value.strip()).rpartition("@")
    if not at or not LOCAL.fullmatch(local) or len(local.encode("utf-8", "replace")) > LOCAL_LIMIT:
        raise ValidationError(NOT_AN_ADDRESS)
    if any(unicodedata.category(c)[0] in "CZ" and c not in JOINERS for c in local if not c.isascii()):
        raise ValidationError(NOT_AN_ADDRESS)
    return f"{local}@{domain(host)}"


def parse_address(value: object) -> str | None:
    """Return the `envelope_address` of a value, or `None` if it has none."""
    try:
        return envelope_address(value)
    except ValidationError:
        return None


def is_address(value: object) -> bool:
    return parse_address(value) is not None


def domain(value: str) -> str:
    return value if LITERAL.fullmatch(value) else _a_labels(value)


def _a_labels(value: str) -> str:
    """Return a domain as A-labels in lower case. Raises `ValidationError` unless its labels have 1 to 63 bytes."""
    try:
        name = value if value.isascii() else idna.encode(value, uts46=True).decode()
    except (idna.IDNAError, UnicodeError):
        raise ValidationError(NOT_AN_ADDRESS) from None
    labels = name.removesuffix(".").split(".")
    if len(name) > DOMAIN_LIMIT or not all(map(LABEL.fullmatch, labels)):
        raise ValidationError(NOT_AN_ADDRESS)
    return ".".join(labels).lower()  # so that the same address is always the same text


def mailbox(value: str) -> tuple[str, str]:
    """Return the name, as people write it or in quotes, and the address of `user@host` or `Name <user@host>`."""
    if len(value) > TEXT_LIMIT or any(unicodedata.category(c) in UNPRINTABLE for c in value.strip()):
        raise ValidationError(NOT_AN_ADDRESS)
    named = NAMED.fullmatch(value.strip())
    name, address = (named[1].strip(), named[2]) if named else ("", value)
    if QUOTED.fullmatch(name):
        name = re.sub(r"\\(.)", r"\1", name[1:-1])
    elif LIST.search(name):
        raise ValidationError("Not one address. If the name is meant to be like that, put it in quotes.")
    return name, envelope_address(address)
