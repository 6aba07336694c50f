"""E-mail addresses: one of a configuration, and one of a user's document."""

from __future__ import annotations

from email.utils import parseaddr
from typing import cast

import idna
from marshmallow import ValidationError, validate


def envelope_address(value: object) -> str:
    """Return the one address in `value`, an international domain as A-labels (RFC 5890).

    Raises `marshmallow.ValidationError` for anything that is not exactly one address.
    """
    try:
        validate.Email(error="Not a valid email address.")(cast("str", value))
        local, domain = str(value).rsplit("@", 1)
        return f"{local}@{domain if domain.isascii() else idna.encode(domain, uts46=True).decode()}"
    except (TypeError, idna.IDNAError):
        raise ValidationError("Not a valid email address.") from None


def sender_address(value: str) -> tuple[str, str]:
    """Return the display name, which may be empty, and the address of `user@host` or `Name <user@host>`.

    Raises `marshmallow.ValidationError` for anything else.
    """
    name, address = parseaddr(value)
    if not value.isprintable() or (address != value and not value.rstrip().endswith(f"<{address}>")):
        raise ValidationError("Not a valid email address.")
    return name, envelope_address(address)
