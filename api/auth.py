"""Who may call: a backend with a key, or one user's browser with a short-lived token (RFC 6750, RFC 7519).

A key of `API_KEYS` opens everything, for every user. A token signed with `USER_TOKEN_SECRET` opens what concerns the
user in its `sub`. Without `API_KEYS` the API is open to anyone.
"""

from __future__ import annotations

import hmac
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import jwt
from aiohttp import web
from jwt.types import Options

from settings import Settings

ALGORITHM: Final = "HS256"
OPTIONS: Final[Options] = {"require": ["exp", "sub"], "verify_aud": False}
LEEWAY: Final = 30
"""Seconds by which the clocks of the signer and of this machine may differ."""


class Unauthenticated(Exception):
    """Base of the reasons why the caller is not known. `error` is RFC 6750's code for `WWW-Authenticate`."""

    error = ""


class NoCredential(Unauthenticated):
    """There is not exactly one header `Authorization: Bearer ...`."""


class BadCredential(Unauthenticated):
    """The key or token is not valid."""

    error = "invalid_token"


class TokenExpired(BadCredential):
    """The token's `exp` is past."""


class TokenWithoutUser(BadCredential):
    """The token's `sub` is not a user's id."""


class BackendOnly(Exception):
    """The caller is a user, and only a backend may do this."""


class ForeignPage(Exception):
    """A browser calls for a page of another site, and no key protects the service."""


class OtherUser(Exception):
    """The caller is another user."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller: a backend, which may act for everyone, or one user, until `until` (Unix seconds)."""

    user_id: str | None = None
    until: float = math.inf

    def must_be_backend(self) -> None:
        """Raise `BackendOnly` unless the caller is a backend."""
        if self.user_id is not None:
            raise BackendOnly

    def must_act_for(self, user_id: str) -> None:
        """Raise `OtherUser` unless the caller may act for this user."""
        if self.user_id not in {None, user_id}:
            raise OtherUser


class Gate:
    """Identifies callers by the configured keys and secret."""

    def __init__(self, settings: Settings) -> None:
        self._keys = [key.encode() for key in settings.api_keys]
        self._secret = settings.user_token_secret
        self._id_type = settings.id_type
        self._origins = frozenset(settings.cors_origins)

    def must_be_own_page(self, headers: Mapping[str, str], host: str) -> None:
        """Raise `ForeignPage` for a page that neither the service itself nor an origin in `CORS_ORIGINS` has sent.

        Only while there are no keys: then a page acts with the rights of whoever looks at it. Other clients than
        browsers send neither header (Fetch, section 3.1; Fetch Metadata).
        """
        site, origin = headers.get("Sec-Fetch-Site"), headers.get("Origin")
        if self._keys or origin in self._origins or site in {"same-origin", "none"}:
            return
        if site == "cross-site" or (origin is not None and origin.partition("://")[2].lower() != host.lower()):
            raise ForeignPage

    def identify(self, authorization: Sequence[str]) -> Caller:
        """Return the caller that sends these `Authorization` headers. Raises `Unauthenticated`."""
        if not self._keys:
            return Caller()
        scheme, _, credential = authorization[0].partition(" ") if len(authorization) == 1 else ("", "", "")
        if scheme.lower() != "bearer":
            raise NoCredential
        given = credential.strip().encode("utf-8", "surrogateescape")
        # Every key is compared, in constant time, so that the time tells nothing about any of them.
        if sum(hmac.compare_digest(given, key) for key in self._keys):
            return Caller()
        return self._identify_user(given)

    def _identify_user(self, token: bytes) -> Caller:
        if not self._secret:
            raise BadCredential
        try:
            claims = jwt.decode(token, self._secret, [ALGORITHM], OPTIONS, leeway=LEEWAY)
        except jwt.ExpiredSignatureError:
            raise TokenExpired from None
        except jwt.InvalidTokenError:
            raise BadCredential from None
        user_id = self._id_type.parse(claims["sub"])
        if user_id is None:
            raise TokenWithoutUser
        return Caller(user_id, int(claims["exp"]) + LEEWAY)


GATE: Final = web.AppKey("GATE", Gate)


def identify(request: web.Request) -> Caller:
    """Return the caller of a request. Raises `Unauthenticated` or `ForeignPage`."""
    gate = request.app[GATE]
    gate.must_be_own_page(request.headers, request.host)
    return gate.identify(request.headers.getall("Authorization", []))


def sign_token(secret: str, user_id: str, ttl: int) -> str:
    """Make a token that is valid for `ttl` seconds, as a team's backend does in its own language."""
    return jwt.encode({"sub": user_id, "exp": int(time.time()) + ttl}, secret, ALGORITHM)
