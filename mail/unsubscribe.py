"""Links to unsubscribe. Anyone who opens one needs no login, and can do nothing else with it.

The token of a link is the user's id and the name of the kind, encrypted and authenticated with AES-SIV (RFC 5297),
which needs no nonce and gives an e-mail the same link at every attempt. Its key is derived from a secret with HKDF
(RFC 5869) for this purpose alone.
"""

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
KEY_LENGTH: Final = 64  # bytes: AES-256, with a second key for the MAC


class NoSuchLink(Exception):
    """The token was made with none of the secrets, or `PUBLIC_URL` is not set, so that there are no links."""


class Links:
    """Makes links with the first of the secrets, and opens those made with any of them."""

    def __init__(self, settings: Settings) -> None:
        self._url = (settings.public_url or "").rstrip("/")
        self.settings = settings
        self._ciphers = [_cipher(secret) for secret in settings.link_secrets] if self._url else []

    def url(self, user_id: str, kind: str) -> str | None:
        """Return the link; `None` without `PUBLIC_URL`, or if the file says that the kind is required."""
        known = self.settings.kinds.get(kind)
        if not self._ciphers or (known and known.required):
            return None
        if not NAME.fullmatch(kind) or self.settings.id_type.parse(user_id) != user_id:  # another program has owed it
            return None
        sealed = self._ciphers[0].encrypt(f"{kind}\0{user_id}".encode(), None)
        return f"{self._url}/u/{_encode(sealed)}"

    def open(self, token: str) -> tuple[str, str]:
        """Return the user's id and the name of the kind in a token. Raises `NoSuchLink`."""
        for cipher in self._ciphers:
            with suppress(InvalidTag, ValueError):
                sealed = urlsafe_b64decode(token + "=" * (-len(token) % 4))
                kind, _, user_id = cipher.decrypt(sealed, None).decode().partition("\0")
                # The decoder ignores what is not base64, and ID_TYPE may have changed since.
                if _encode(sealed) == token and self.settings.id_type.parse(user_id) == user_id:
                    return user_id, kind
        raise NoSuchLink


def _cipher(secret: str) -> AESSIV:
    derivation = HKDF(SHA256(), KEY_LENGTH, salt=None, info=PURPOSE)
    return AESSIV(derivation.derive(secret.encode("utf-8", "surrogateescape")))


def _encode(sealed: bytes) -> str:
    """Return base64url without padding (RFC 4648, section 5)."""
    return urlsafe_b64encode(sealed).decode().rstrip("=")
