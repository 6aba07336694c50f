"""What the values of settings must be, and how a path among them is followed.

Each check raises `marshmallow.ValidationError` with a sentence.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Final

from marshmallow import ValidationError, validate

from config.address import domain

DEAD_MAIL: Final = "dead_mail"
"""The collection of the dead letters."""
OWN_FIELDS: Final = frozenset({"_id", "notifications", "notifier"})
"""Fields of the user's document that the service writes, and `_id`."""
SECRET_LENGTH: Final = 32
"""Minimum bytes of a secret: the length of an HMAC-SHA-256 (RFC 7518, section 3.2)."""
HOST_LENGTH: Final = 253
LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
PUBLIC_URL_LENGTH: Final = 180
"""Characters. With the longest token, a link fits into the line of its header: 998 bytes (RFC 5322, section 2.1.1)."""
POSITIVE: Final = validate.Range(min=0, min_inclusive=False, max=86_400)
DAYS: Final = validate.Range(min=0, min_inclusive=False, max=10_000)
ENCODABLE: Final = validate.And(
    validate.Regexp("[^\ud800-\udfff]*\\Z", error="Not UTF-8."),
    validate.Regexp(r"[^\x00-\x1f\x7f]*\Z", error="Has a control character."),
)
ORIGIN: Final = validate.Regexp(
    r"https?://[a-z0-9.-]+(:\d+)?\Z", error="Not an origin such as https://app.example.com."
)
TOKEN_URL: Final = validate.Regexp(
    r"(https://[\w.-]+|https?://(localhost|127\.0\.0\.1|\[::1\]))(:\d{1,5})?(/[!-\"$-~]*)?\Z",
    error="Not an https address, such as https://oauth2.googleapis.com/token.",
)
"""Secrets are sent there, so only to this machine without TLS."""
COLLECTION: Final = validate.Regexp(
    rf"(?!system\.|\.|{DEAD_MAIL}\Z)[^$\x00]{{1,120}}\Z",
    error=f"Not the name of a collection, or {DEAD_MAIL}, which is the service's.",
)
"""MongoDB manual, "Restrictions on Collection Names"."""
LEVEL: Final = validate.OneOf(["DEBUG", "INFO", "WARNING", "ERROR"], error="Must be one of: {choices}.")
COLLECTOR: Final = validate.URL(
    schemes={"http", "https"}, require_tld=False, error="Not an address such as http://collector:4318."
)


def host(value: str) -> None:
    """Accept an address, or a host name whose labels have 1 to 63 bytes (RFC 1123, section 2.1)."""
    try:
        if ":" in value:
            ipaddress.IPv6Address(value)
            return
        name = value.encode("idna").decode()  # as the resolver and TLS do
    except ValueError:
        name = ""
    labels = name.removesuffix(".").split(".")
    if len(name) > HOST_LENGTH or not all(re.fullmatch(r"(?!-)[\w-]+(?<!-)", label) for label in labels):
        raise ValidationError("Not a host name or an address.")


def helo(value: str) -> None:
    """Accept a host name, or an address literal."""
    try:
        domain(value)
    except ValidationError:
        raise ValidationError("Not a host name, or an address such as [192.0.2.1].") from None


def in_url(name: str) -> str:
    """Return a host name or an address, which `host` accepts, as a browser writes it (URL Standard, section 3.5)."""
    return f"[{ipaddress.IPv6Address(name)}]" if ":" in name else name.encode("idna").decode().lower()


def long_secret(value: str) -> None:
    """Accept a secret that is long enough, and can be sent."""
    ENCODABLE(value)
    if len(value.encode()) < SECRET_LENGTH:
        raise ValidationError(f"Shorter than {SECRET_LENGTH} bytes; `openssl rand -hex 32` makes a good one.")


def public_url(value: str) -> None:
    """Accept an http or https address in ASCII, with or without a path."""
    parts = re.fullmatch(r"https?://([a-z0-9.-]+|\[[0-9a-f:]+\])(:\d{1,5})?(/[a-z0-9._~%-]+)*/?", value, re.IGNORECASE)
    if not parts or not value.isascii() or len(value) > PUBLIC_URL_LENGTH or int((parts[2] or ":0")[1:]) >= 1 << 16:
        raise ValidationError(
            "Not an address such as https://notifications.example.com or https://example.com/notifications, "
            f"of at most {PUBLIC_URL_LENGTH} characters."
        )
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
