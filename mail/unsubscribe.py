"""Links to unsubscribe: who opens one needs no login, and can do nothing else with it.

The token of a link is the user's id and the name of the kind, encrypted and authenticated by AES-SIV (RFC 5297). It is
deterministic, so an e-mail has the same link at every attempt, and needs no nonce. Its key is derived from a secret by
HKDF (RFC 5869) for this alone.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from contextlib import suppress
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from kinds import NAME
from settings import Settings

PURPOSE: Final = b"notifier: links to unsubscribe"
KEY_LENGTH: Final = 64
"""Bytes: AES-256, with a second key for the MAC."""


class NoSuchLink(Exception):
    """None of the secrets made the token, or there are no links, as `PUBLIC_URL` is not set."""


class Links:
    """Makes and opens the links. The first of the secrets makes them; those made with any of the others open too."""

    def __init__(self, settings: Settings) -> None:
        self._url = (settings.public_url or "").rstrip("/")
        self._kinds = settings.kinds
        self._id_type = settings.id_type
        self._ciphers = [_cipher(secret) for secret in settings.link_secrets] if self._url else []

    def url(self, user_id: str, kind: str) -> str | None:
        """Return the link of an e-mail, or `None` if it has none: `PUBLIC_URL` is not set, or the kind is required.

        A kind that has left the table is not required.
        """
        known = self._kinds.get(kind)
        if not self._ciphers or (known and known.required):
            return None
        if not NAME.fullmatch(kind) or self._id_type.parse(user_id) != user_id:  # another program owes this e-mail
            return None
        sealed = self._ciphers[0].encrypt(f"{kind}\0{user_id}".encode(), None)
        return f"{self._url}/u/{_encode(sealed)}"

    def open(self, token: str) -> tuple[str, str]:
        """Return the user's id and the name of the kind that a token is for. Raises `NoSuchLink`."""
        for cipher in self._ciphers:
            with suppress(InvalidTag):
                kind, _, user_id = cipher.decrypt(_decode(token), None).decode().partition("\0")
                if self._id_type.parse(user_id) == user_id:  # ID_TYPE may have changed since
                    return user_id, kind
        raise NoSuchLink


def _cipher(secret: str) -> AESSIV:
    derivation = HKDF(SHA256(), KEY_LENGTH, salt=None, info=PURPOSE)
    return AESSIV(derivation.derive(secret.encode("utf-8", "surrogateescape")))


def _encode(sealed: bytes) -> str:
    """Return base64url without padding (RFC 4648, section 5)."""
    return urlsafe_b64encode(sealed).decode().rstrip("=")


def _decode(token: str) -> bytes:
    """Undo `_encode`. Raises `NoSuchLink` for any other spelling: the decoder ignores what is not base64."""
    try:
        sealed = urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except ValueError:
        raise NoSuchLink from None
    if _encode(sealed) != token:
        raise NoSuchLink
    return sealed
