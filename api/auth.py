"""Who may call: a backend with a key, or one user's browser with a short-lived token (RFC 6750, RFC 7519).

A key in `API_KEYS` allows what its scopes say, for every user, or everything if it has none. A token signed with one of
`USER_TOKEN_SECRETS` allows what concerns the user in its `sub`. Without `API_KEYS`, anyone may do everything.
"""

import hashlib
import hmac
import math
import time
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import aiohttp_cors
import jwt
from aiohttp import web
from jwt.types import Options

from settings import ALL_SCOPES, Scope, Scopes, Settings

ALGORITHM: Final = "HS256"
OPTIONS: Final[Options] = {"require": ["exp", "sub"], "verify_aud": False}
LEEWAY: Final = 30  # seconds by which the clocks of the signer and of this machine may differ
OF_STATUS: Final = "notifier: status"  # purpose of the derived secrets for `status`, and `sub` of its tokens
STATUS_TTL: Final = 60  # seconds
PREFLIGHT_AGE: Final = 7200  # seconds for which a browser may cache the answer: the most that Chrome allows


class Refused(Exception):
    """Base of the reasons to refuse a caller. The message is the caller's name for the log."""


class NoCredential(Refused):
    """There is not exactly one header `Authorization: Bearer ...`."""


class BadCredential(Refused):
    """The key or token is not valid."""


class TokenExpired(BadCredential):
    """The token's `exp` is past."""


class OutOfScope(Refused):
    """The scopes of the caller's key or token do not include this."""


class OtherUser(Refused):
    """The caller is another user."""


class ForeignPage(Exception):
    """A page of another site calls from a browser, and no key protects the service."""


@dataclass(frozen=True, slots=True)
class Caller:
    """A backend, which may act for everyone, or one user, until `until` (Unix seconds)."""

    name: str  # for the log: contains no credential
    scopes: Scopes = ALL_SCOPES
    user_id: str | None = None
    until: float = math.inf

    def must_act_for(self, user_id: str) -> None:
        if self.user_id not in {None, user_id}:
            raise OtherUser(self.name)


OF_A_USER: Final = frozenset({Scope.INBOX})
ANYONE: Final = Caller("anyone, as API_KEYS is not set")


class Gate:
    def __init__(self, settings: Settings) -> None:
        self._callers = [(key.encode(), Caller(_name(key.encode()), scopes)) for key, scopes in settings.scopes.items()]
        self._secrets = settings.user_token_secrets
        self._status_secrets = _status_secrets(settings)
        self._id_type = settings.id_type
        self._origins = frozenset(settings.cors_origins)

    def identify(self, request: web.Request, scope: Scope) -> Caller:
        """Return the caller. Raises `Refused` if it may not do this for any user, or `ForeignPage`."""
        if not self._callers:
            self._must_be_own_page(request)
            return ANYONE
        caller = self._identify_by_credential(request.headers.getall("Authorization", []))
        if scope not in caller.scopes:
            raise OutOfScope(caller.name)
        return caller

    def _must_be_own_page(self, request: web.Request) -> None:
        """Raise `ForeignPage` for a page that neither the service itself nor an origin in `CORS_ORIGINS` has sent.

        Such a page would act with the rights of anyone who opens it. Clients other than browsers send neither header
        (Fetch, section 3.1; Fetch Metadata).
        """
        site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
        if origin in self._origins or site in {"same-origin", "none"}:
            return
        if site == "cross-site" or (origin is not None and origin.partition("://")[2].lower() != request.host.lower()):
            raise ForeignPage

    def _identify_by_credential(self, authorization: Sequence[str]) -> Caller:
        scheme, _, credential = authorization[0].partition(" ") if len(authorization) == 1 else ("", "", "")
        if scheme.lower() != "bearer":
            raise NoCredential("a caller without a credential")
        token = credential.strip().encode("utf-8", "surrogateescape")
        # Every key is compared, in constant time, so that the time tells nothing about any of them.
        callers = [caller for key, caller in self._callers if hmac.compare_digest(token, key)]
        return callers[0] if callers else self._identify_by_token(token)

    def _identify_by_token(self, token: bytes) -> Caller:
        name = _name(token)
        if claims := _claims(token, self._secrets, name):
            if user_id := self._id_type.parse(claims["sub"]):
                return Caller(name, OF_A_USER, user_id, claims["exp"] + LEEWAY)
        elif _claims(token, self._status_secrets, name):
            return Caller(name, frozenset({Scope.METRICS}))
        raise BadCredential(name)


def _claims(token: bytes, secrets: Sequence[str], name: str) -> Mapping[str, Any] | None:
    """Return the claims of a token that one of the secrets has signed, `exp` as a float. Raises `BadCredential`."""
    for secret in secrets:
        try:
            claims = jwt.decode(token, secret, [ALGORITHM], OPTIONS, leeway=LEEWAY)
            datetime.fromtimestamp(float(claims["exp"]), UTC)  # raises ValueError beyond the year 9999
            return {**claims, "exp": float(claims["exp"])}
        except jwt.InvalidSignatureError:
            continue
        except jwt.ExpiredSignatureError:
            raise TokenExpired(name) from None
        except (jwt.InvalidTokenError, ValueError, OverflowError):  # `exp` is in milliseconds, or infinite
            raise BadCredential(name) from None
    return None


def _name(credential: bytes) -> str:
    """Return the name of a caller in the log, with the fingerprint of its key or token."""
    return f"the caller with credential {hashlib.sha256(credential).hexdigest()[:8]}"


def _status_secrets(settings: Settings) -> Sequence[str]:
    """Derive the secrets of `status` from the keys that may read the metrics, which nobody else has."""
    keys = [key for key, scopes in settings.scopes.items() if Scope.METRICS in scopes]
    return [hmac.new(key.encode(), OF_STATUS.encode(), hashlib.sha256).hexdigest() for key in keys]


GATE: Final = web.AppKey("GATE", Gate)


class Route(NamedTuple):
    """A route. Without a scope it is open to everyone; otherwise its handler also gets the caller."""

    method: str
    path: str
    handler: Callable[..., Awaitable[web.StreamResponse]]
    scope: Scope | None


def sign_token(secret: str, user_id: str, ttl: int) -> str:
    """Make a token that is valid for `ttl` seconds, as a team's backend does in its own language."""
    return jwt.encode({"sub": user_id, "exp": int(time.time()) + ttl}, secret, ALGORITHM)


def status_token(settings: Settings) -> str | None:
    """Make a token that opens `/metrics` for a minute, or return `None` if no key opens it."""
    secrets = _status_secrets(settings)
    return sign_token(secrets[0], OF_STATUS, STATUS_TTL) if secrets else None


def allow_cors(app: web.Application, origins: Sequence[str], paths: Container[str]) -> None:
    """Let the pages of these origins call these paths (Fetch, section 3.2)."""
    options = aiohttp_cors.ResourceOptions(
        allow_headers=("Authorization", "Content-Type", "If-None-Match", "X-Request-ID"),
        expose_headers=("ETag", "X-Request-ID"),
        max_age=PREFLIGHT_AGE,
    )
    cors = aiohttp_cors.setup(app, defaults=dict.fromkeys(origins, options))
    for route in list(app.router.routes()):
        if route.resource and route.resource.canonical in paths:
            cors.add(route)
