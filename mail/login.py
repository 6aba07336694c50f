"""Logging in at the mail server with a password, or with a token that a token server issues (OAuth 2.0).

Sources: RFC 4954 (AUTH), draft-murchison-sasl-login (LOGIN), RFC 6749 (OAuth 2.0), RFC 7628 (OAUTHBEARER), Google's and
Microsoft's pages about XOAUTH2, Microsoft ("Microsoft Entra authentication and authorization error codes").
"""

import asyncio
import logging
import math
import ssl
import time
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final

import orjson
from aiohttp import ClientConnectorCertificateError, ClientError, ClientSession, ClientTimeout
from aiosmtplib import SMTP, SMTPAuthenticationError, SMTPResponse

from mail.replies import SMTPFault, Verdict, describe
from settings import Settings

Mechanism = Callable[[SMTP, str, str], Awaitable[SMTPResponse]]

log = logging.getLogger("notifier.mail")

CHALLENGE: Final = 334
MISSING: Final = frozenset({500, 501, 502, 504, 534, 538})
"""Replies to a mechanism that the server lacks after all, or does not allow (RFC 4954, sections 4 and 6)."""
SOON: Final = 300.0  # seconds before a token ends when it is renewed; half of its lifetime if that is less
RETRY: Final = 30.0  # seconds between attempts to renew a token that is still valid
LIFETIME: Final = 300.0  # seconds for which a token is used if the token server does not say
FAULTS: Final[Mapping[str, tuple[object, ...]]] = {  # causes, and Microsoft's numbers or RFC 6749's words for them
    "the tenant in SMTP_OAUTH_TOKEN_URL does not exist": (90002, 900023),
    "the tenant has no application with SMTP_OAUTH_CLIENT_ID": (700016,),
    "SMTP_OAUTH_CLIENT_SECRET is wrong: it must be the secret's value, not its id": (7000215,),
    "SMTP_OAUTH_CLIENT_SECRET has expired: make a new one": (7000222,),
    "SMTP_OAUTH_SCOPE is wrong or not granted": (500011, 1002012, "invalid_scope"),
    "SMTP_OAUTH_CLIENT_ID or SMTP_OAUTH_CLIENT_SECRET is wrong": ("invalid_client",),
    "SMTP_OAUTH_REFRESH_TOKEN has expired or was revoked: get a new one": ("invalid_grant",),
    "the token server does not give this client tokens by {grant}": ("unauthorized_client", "unsupported_grant_type"),
}


async def _plain(smtp: SMTP, login: str, password: str) -> SMTPResponse:
    return await _respond(smtp, b"PLAIN", f"\0{login}\0{password}")


async def _login(smtp: SMTP, login: str, password: str) -> SMTPResponse:
    """Send the name and the password, each when asked: not every server takes the name with the command."""
    response = await smtp.execute_command(b"AUTH", b"LOGIN")
    for answer in (login, password):
        if response.code == CHALLENGE:
            response = await smtp.execute_command(b64encode(answer.encode()))
    return response


async def _xoauth2(smtp: SMTP, login: str, token: str) -> SMTPResponse:
    return await _present(smtp, b"XOAUTH2", f"user={login}\x01auth=Bearer {token}\x01\x01", b"")


async def _oauthbearer(smtp: SMTP, login: str, token: str) -> SMTPResponse:
    name = login.replace("=", "=3D").replace(",", "=2C")  # RFC 5801, section 4
    return await _present(smtp, b"OAUTHBEARER", f"n,a={name},\x01auth=Bearer {token}\x01\x01", b64encode(b"\x01"))


async def _present(smtp: SMTP, mechanism: bytes, token: str, end: bytes) -> SMTPResponse:
    """Present a token. A server that refuses it says why in a challenge, and replies to AUTH only after `end`."""
    response = await _respond(smtp, mechanism, token)
    if response.code != CHALLENGE:
        return response
    code, message = await smtp.execute_command(end)
    reason = response.message
    with suppress(ValueError):
        reason = b64decode(reason).decode(errors="replace")
    return SMTPResponse(code, f"{message} {reason}")


async def _respond(smtp: SMTP, mechanism: bytes, answer: str) -> SMTPResponse:
    """Send an answer with the command, or after it to a server that refuses or ignores it there."""
    encoded = b64encode(answer.encode())
    response = await smtp.execute_command(b"AUTH", mechanism, encoded)
    if response.code in {500, 501}:  # which long tokens may get
        response = await smtp.execute_command(b"AUTH", mechanism)
    if response.code == CHALLENGE and not response.message:
        response = await smtp.execute_command(encoded)
    return response


BY_PASSWORD: Final[Mapping[str, Mechanism]] = {"plain": _plain, "login": _login, "cram-md5": SMTP.auth_crammd5}
BY_TOKEN: Final[Mapping[str, Mechanism]] = {"xoauth2": _xoauth2, "oauthbearer": _oauthbearer}


async def log_in(smtp: SMTP, login: str, secret: str, mechanisms: Mapping[str, Mechanism]) -> None:
    """Try the mechanisms that the server offers until it has one. A refusal is final: failed logins lock accounts."""
    known = ", ".join(mechanisms).upper()
    fault: Exception = SMTPFault(Verdict.CONFIGURATION, f"the server offers no AUTH that we know ({known})")
    for name in (name for name in mechanisms if name in smtp.server_auth_methods):
        try:
            code, message = await mechanisms[name](smtp, login, secret)
        except SMTPAuthenticationError as exc:  # of aiosmtplib's own mechanism
            code, message = exc.code, exc.message
        if code // 100 == 2:
            return
        fault = SMTPAuthenticationError(code, message)
        if code not in MISSING:
            break
    raise fault


@dataclass(frozen=True, slots=True)
class Token:
    value: str = field(default="", repr=False)
    renew_at: float = -math.inf
    ends: float = -math.inf
    scope: str = ""  # if the token server says it


class Tokens:
    """The token that logins share, as they do the request for the next. Methods raise `SMTPFault`."""

    def __init__(self, settings: Settings, tls: ssl.SSLContext) -> None:
        self._settings = settings
        self._tls = tls
        self._refresh_token = settings.smtp_oauth_refresh_token
        self.grant = "refresh_token" if self._refresh_token else "client_credentials"
        self._token = Token()
        self._renewal: asyncio.Task[Token] | None = None

    async def get(self) -> Token:
        """Return the token. If it ends soon, it is renewed in the background, so that no login waits."""
        now = time.monotonic()
        if self._renewal is None and now >= self._token.renew_at:
            self._renewal = asyncio.create_task(self._renew())
            self._renewal.add_done_callback(lambda task: task.cancelled() or task.exception())  # perhaps nobody waits
        if self._renewal is None or now < self._token.ends:
            return self._token
        return await asyncio.shield(self._renewal)

    async def another(self, refused: Token) -> Token:
        """Return another token than one that the mail server has refused: it may have been revoked."""
        if refused is self._token:
            self._token = Token()
        return await self.get()

    async def close(self) -> None:
        if self._renewal:
            self._renewal.cancel()

    async def _renew(self) -> Token:
        try:
            self._token = await self._request()
        except SMTPFault as exc:
            if time.monotonic() < self._token.ends:
                log.warning("the token for the mail server ends soon, and there is no other yet: %s", exc)
                self._token = replace(self._token, renew_at=min(time.monotonic() + RETRY, self._token.ends))
            raise
        finally:
            self._renewal = None
        return self._token

    async def _request(self) -> Token:
        began = time.monotonic()
        status, answer = await self._post()
        value, seconds = answer.get("access_token"), f"{answer.get('expires_in')}"
        if status != 200 or not isinstance(value, str) or not value:
            raise self._fault(status, answer)
        self._refresh_token = f"{answer.get('refresh_token') or self._refresh_token or ''}"
        lifetime = float(seconds) if seconds.isdecimal() else LIFETIME
        ends = began + lifetime
        return Token(value, ends - min(SOON, lifetime / 2), ends, f"{answer.get('scope') or ''}")

    async def _post(self) -> tuple[int, Mapping[str, Any]]:
        """Return the status, and the object of the answer, empty if it has none."""
        settings = self._settings
        form = {
            "grant_type": self.grant,
            "client_id": settings.smtp_oauth_client_id,
            "client_secret": settings.smtp_oauth_client_secret,
            "refresh_token": self._refresh_token,
            "scope": settings.smtp_oauth_scope,
        }
        url = f"{settings.smtp_oauth_token_url}"
        data = {name: value for name, value in form.items() if value}
        try:
            async with ClientSession(timeout=ClientTimeout(settings.smtp_connect_timeout)) as session:
                # A redirect would carry the secret to another place.
                response = await session.post(url, data=data, ssl=self._tls, allow_redirects=False)
                body = await response.read()
        except ClientConnectorCertificateError as exc:
            reason = getattr(exc.certificate_error, "verify_message", "").rstrip(".")
            words = f"the token server's certificate is refused: {reason}"
            raise SMTPFault(Verdict.CONFIGURATION, words) from None
        except (ClientError, OSError) as exc:  # whose text has the server's name and addresses
            raise SMTPFault(Verdict.CONNECTION, f"the token server cannot be reached: {describe(exc)}") from None
        with suppress(ValueError):
            if isinstance(answer := orjson.loads(body), dict):
                return response.status, answer
        return response.status, {}

    def _fault(self, status: int, answer: Mapping[str, Any]) -> SMTPFault:
        """Say why there is no token. The server's own words may hold names, so they are left out."""
        error, numbers = f"{answer.get('error', '')}"[:64], answer.get("error_codes")
        if status == 429 or status >= 500:
            return SMTPFault(Verdict.CONNECTION, f"the token server gives no tokens now ({status})")
        if not error.isidentifier():
            words = f"the answer is not a token server's ({status}): check SMTP_OAUTH_TOKEN_URL"
            return SMTPFault(Verdict.CONFIGURATION, words)
        codes = [code for code in numbers if isinstance(code, int)] if isinstance(numbers, list) else []
        causes = (cause for code in (*codes, error) for cause, names in FAULTS.items() if code in names)
        words = next(causes, "the token server refuses us")
        named = ", ".join([error, *(f"AADSTS{code}" for code in codes)])
        return SMTPFault(Verdict.CONFIGURATION, f"{words.format(grant=self.grant)} ({named})")
