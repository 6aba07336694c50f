"""Who may call: backends by a key, the browser of one user by a short-lived token (RFC 6750, RFC 7519).

| caller | `/create`, `/metrics` | `/list`, `/read`, `/stream` |
| --- | --- | --- |
| with one of `API_KEYS` | yes | yes, for every user |
| with a token signed by `USER_TOKEN_SECRET` | no | for the user in `sub` alone |
| anybody, where `API_KEYS` is unset | yes | yes, for every user |
"""

from __future__ import annotations

import hmac
import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import jwt
from jwt.types import Options

from settings import Settings

ALGORITHM: Final = "HS256"
OPTIONS: Final[Options] = {"require": ["exp", "sub"], "verify_aud": False}
LEEWAY: Final = 30
"""Seconds that the clocks of the signer and of this machine may differ by."""


class Unauthenticated(Exception):
    """The key or token is missing or not valid; the message says which, and `error` is RFC 6750's word for it."""

    def __init__(self, message: str, error: str | None = None) -> None:
        super().__init__(message)
        self.error = error


class Forbidden(Exception):
    """The caller is known, and may not do this."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: a backend, which may act for everybody, or one user; `until` when, in Unix time."""

    user_id: str | None = None
    until: float = math.inf

    def must_be_backend(self) -> None:
        """Raise `Forbidden` unless it is one."""
        if self.user_id is not None:
            raise Forbidden("A user's token does not allow this.")

    def must_act_for(self, user_id: str) -> None:
        """Raise `Forbidden` unless it may act for that user."""
        if self.user_id not in {None, user_id}:
            raise Forbidden("The token is another user's.")


class Gate:
    """Knows the keys and the secret."""

    def __init__(self, settings: Settings) -> None:
        self._keys = [key.encode() for key in settings.api_keys]
        self._secret = settings.user_token_secret

    def identify(self, authorization: Sequence[str]) -> Caller:
        """Return who sends these `Authorization` headers. Raises `Unauthenticated`."""
        if not self._keys:
            return Caller()
        if len(authorization) != 1:
            raise Unauthenticated("Give one Authorization header: Bearer KEY.")
        scheme, _, credential = authorization[0].partition(" ")
        if scheme.lower() != "bearer":
            raise Unauthenticated("The Authorization header must be: Bearer KEY.")
        given = credential.strip().encode("utf-8", "surrogateescape")
        # Every key is compared, in a time that tells nothing of where the difference is, or of which key was close.
        if sum(hmac.compare_digest(given, key) for key in self._keys):
            return Caller()
        return self._identify_user(given)

    def _identify_user(self, token: bytes) -> Caller:
        if not self._secret:
            raise Unauthenticated("The key is not valid.", "invalid_token")
        try:
            claims = jwt.decode(token, self._secret, [ALGORITHM], OPTIONS, leeway=LEEWAY)
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("The token has expired.", "invalid_token") from None
        except jwt.InvalidTokenError:
            raise Unauthenticated("The key or token is not valid.", "invalid_token") from None
        if not re.fullmatch("[0-9a-fA-F]{24}", claims["sub"]):
            raise Unauthenticated("The token's sub is not a user_id.", "invalid_token")
        return Caller(claims["sub"].lower(), int(claims["exp"]) + LEEWAY)


def sign_token(secret: str, user_id: str, ttl: int) -> str:
    """Make a token that is valid for `ttl` seconds, as the team's own backend does in whatever language."""
    return jwt.encode({"sub": user_id, "exp": int(time.time()) + ttl}, secret, ALGORITHM)
