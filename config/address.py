"""E-mail addresses, in settings and in users' documents.

An address is what RFC 5322 and RFC 6531 allow, and what real mailboxes have all the same: dots in a row or at the end,
more than 64 octets before the `@`. The mail server judges the rest.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

import idna
from marshmallow import ValidationError

LOCAL_LIMIT: Final = 700
"""Octets. With more, the address would not fit into a line of its header (RFC 5322, section 2.1.1)."""
DOMAIN_LIMIT: Final = 255
"""Octets (RFC 5321, section 4.5.3.1)."""
TEXT_LIMIT: Final = 1000
"""Characters. Anything longer cannot be an address, and a document may hold millions."""
ATEXT: Final = r"A-Za-z0-9!#$%&'*+/=?^_`{|}~"
LOCAL: Final = re.compile(rf'[{ATEXT}.\u0080-\U0010ffff-]+|"(?:[ !#-\[\]-~\u0080-\U0010ffff]|\\[ -~])*"')
"""A dot-atom or a quoted string (RFC 5322, section 3.2), with any character beyond ASCII (RFC 6531, section 3.3)."""
LITERAL: Final = re.compile(r"\[(?:\d{1,3}(?:\.\d{1,3}){3}|IPv6:[0-9A-Fa-f:.]+)\]")
LABEL: Final = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
UNPRINTABLE: Final = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Categories of characters that no header may have: control characters, surrogates and separators of lines."""
JOINERS: Final = "\u200c\u200d"
"""Format characters that words of some scripts need (RFC 5892, appendix A)."""
NOT_AN_ADDRESS: Final = "Not a valid email address."
NAMED: Final = re.compile(r"(.*?)<([^<>]*)>", re.DOTALL)
QUOTED: Final = re.compile(r'"(?:[^"\\]|\\.)*"')
LIST: Final = re.compile(r"[<>]|@.*,|,.*@")
"""Only the beginning of a list of addresses has this in an unquoted name."""


def envelope_address(value: object) -> str:
    """Return the one address in `value`, normalised (NFC), an international domain as A-labels (RFC 5890).

    Raises `marshmallow.ValidationError` for anything that is not exactly one address.
    """
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
    """Return a domain as A-labels (RFC 5890), or an address literal. Raises `marshmallow.ValidationError`."""
    if LITERAL.fullmatch(value):
        return value
    try:
        name = value if value.isascii() else idna.encode(value, uts46=True).decode()
    except (idna.IDNAError, UnicodeError):
        raise ValidationError(NOT_AN_ADDRESS) from None
    labels = name.removesuffix(".").split(".")
    if len(name) > DOMAIN_LIMIT or not all(LABEL.fullmatch(label) for label in labels):
        raise ValidationError(NOT_AN_ADDRESS)
    return ".".join(labels).lower()  # so that the same address is always the same text


def mailbox(value: str) -> tuple[str, str]:
    """Return the display name, which may be empty, and the address of `user@host`, `<user@host>` or `Name <user@host>`.

    A name is taken as people write it, with commas, dots, colons and parentheses, or in quotes.
    Raises `marshmallow.ValidationError` for anything else.
    """
    if len(value) > TEXT_LIMIT or any(unicodedata.category(c) in UNPRINTABLE for c in value.strip()):
        raise ValidationError(NOT_AN_ADDRESS)
    named = NAMED.fullmatch(value.strip())
    name, address = (named[1].strip(), named[2]) if named else ("", value)
    if QUOTED.fullmatch(name):
        name = re.sub(r"\\(.)", r"\1", name[1:-1])
    elif LIST.search(name):
        raise ValidationError("Not one address. If the name is meant to be like that, put it in quotes.")
    return name, envelope_address(address)
