"""Tokens for the login at the mail server (OAuth 2.0): asked of a token server, and renewed before they end.

Sources: RFC 6749 (OAuth 2.0), Microsoft ("Microsoft Entra authentication and authorization error codes").
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from socket import gaierror
from typing import Any, Final, TypeVar

import orjson
from aiohttp import ClientError, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector
from aiosmtplib import SMTPAuthenticationError

from mail.replies import SMTPFault
from mail.verdicts import Verdict
from settings import Settings

T = TypeVar("T")

log = logging.getLogger("notifier.mail")

SOON: Final = 300.0
"""Seconds before its end in which a token is renewed; or half of its time, if that is less."""
RETRY: Final = 30.0
"""Seconds between attempts to renew a token that is still good."""
LIFETIME: Final = 300.0
"""Seconds for which a token is used if the token server does not say how long it is valid."""
FAULTS: Final[Mapping[tuple[object, ...], str]] = {
    (90002, 900023): "the tenant in SMTP_OAUTH_TOKEN_URL does not exist",
    (700016,): "the tenant has no application with SMTP_OAUTH_CLIENT_ID",
    (7000215,): "SMTP_OAUTH_CLIENT_SECRET is wrong: it must be the secret's value, not its id",
    (7000222,): "SMTP_OAUTH_CLIENT_SECRET has expired: make a new one",
    ("invalid_client",): "SMTP_OAUTH_CLIENT_ID or SMTP_OAUTH_CLIENT_SECRET is wrong",
    ("invalid_grant",): "SMTP_OAUTH_REFRESH_TOKEN has expired or was revoked: get a new one",
    ("invalid_scope", 500011, 1002012): "SMTP_OAUTH_SCOPE is wrong or not granted",
    ("unauthorized_client", "unsupported_grant_type"): "the token server does not give this client tokens by {grant}",
}
"""What errors mean: Microsoft's numbers, and the words of RFC 6749, section 5.2. The first that fits counts."""

REASONS: Final = {TimeoutError: "no answer in time", ssl.SSLError: "no TLS", gaierror: "DNS does not know it"}


@dataclass(frozen=True, slots=True)
class Token:
    """A token, when to renew it and when it ends (monotonic), and its scope, as far as the token server says."""

    value: str = field(repr=False)
    renew_at: float
    ends: float
    scope: str


NONE: Final = Token("", -math.inf, -math.inf, "")


class Tokens:
    """The tokens of a process. Logins share one, and the request for the next. Methods raise `SMTPFault`."""

    def __init__(self, settings: Settings, tls: ssl.SSLContext) -> None:
        self._settings = settings
        self._tls = tls
        self._refresh_token = settings.smtp_oauth_refresh_token
        self.grant = "refresh_token" if self._refresh_token else "client_credentials"
        self._session: ClientSession | None = None
        self._token = NONE
        self._renewal: asyncio.Task[Token] | None = None
        self.ahead: float | None = None
        """Seconds by which the token server's clock is ahead of ours; `None` until it has answered."""

    async def get(self) -> Token:
        """Return a token. One that ends soon is renewed meanwhile, so that no login waits."""
        now = time.monotonic()
        if self._renewal is None and now >= self._token.renew_at:
            self._renewal = asyncio.create_task(self._renew())
            self._renewal.add_done_callback(lambda task: task.cancelled() or task.exception())  # no login may wait
        if self._renewal is None or now < self._token.ends:
            return self._token
        return await asyncio.shield(self._renewal)

    async def try_with(self, attempt: Callable[[str], Awaitable[T]]) -> T:
        """Call `attempt` with a token, and with another if the mail server refuses the first: it may be revoked."""
        token = await self.get()
        try:
            return await attempt(token.value)
        except SMTPAuthenticationError:
            if token is self._token:
                self._token = NONE
        return await attempt((await self.get()).value)

    async def close(self) -> None:
        """Stop asking."""
        if self._renewal:
            self._renewal.cancel()
        if self._session:
            await self._session.close()

    async def _renew(self) -> Token:
        try:
            self._token = await self._ask()
        except SMTPFault as exc:
            if time.monotonic() < self._token.ends:
                log.warning("the token for the mail server ends soon, and there is no other yet: %s", exc)
                self._token = replace(self._token, renew_at=min(time.monotonic() + RETRY, self._token.ends))
            raise
        finally:
            self._renewal = None
        return self._token

    async def _ask(self) -> Token:
        asked = time.monotonic()
        status, answer = await self._post()
        value, another, seconds = (answer.get(name) for name in ("access_token", "refresh_token", "expires_in"))
        if status != 200 or not isinstance(value, str) or not value:
            raise self._fault(status, answer)
        if another and isinstance(another, str):
            self._refresh_token = another
        lifetime = float(f"{seconds}") if f"{seconds}".isdecimal() else LIFETIME  # some say it as a text
        ends = asked + lifetime
        return Token(value, ends - min(SOON, lifetime / 2), ends, f"{answer.get('scope') or ''}")

    async def _post(self) -> tuple[int, Mapping[str, Any]]:
        """Ask the token server; return the status and the object of its answer, empty if it has none."""
        settings = self._settings
        if self._session is None:
            connector, limit = (
                TCPConnector(ssl=self._tls, force_close=True),
                ClientTimeout(settings.smtp_connect_timeout),
            )
            self._session = ClientSession(connector=connector, timeout=limit, cookie_jar=DummyCookieJar())
        form = {
            "grant_type": self.grant,
            "client_id": settings.smtp_oauth_client_id,
            "client_secret": settings.smtp_oauth_client_secret,
            "refresh_token": self._refresh_token,
            "scope": settings.smtp_oauth_scope,
        }
        given, url = {name: value for name, value in form.items() if value}, f"{settings.smtp_oauth_token_url}"
        try:  # a redirect would carry the secret to another place
            async with self._session.post(url, data=given, allow_redirects=False) as response:
                body = await response.read()
        except (ClientError, OSError) as exc:
            raise _unreachable(exc) from None
        self.ahead, answer = 0.0, None
        with contextlib.suppress(ValueError, TypeError, KeyError):
            self.ahead = (parsedate_to_datetime(response.headers["Date"]) - datetime.now(UTC)).total_seconds()
        with contextlib.suppress(ValueError):
            answer = orjson.loads(body)
        return response.status, answer if isinstance(answer, dict) else {}

    def _fault(self, status: int, answer: Mapping[str, Any]) -> SMTPFault:
        """Return what an answer without a token means. What the server says in words may hold names: it is left out."""
        error, numbers = f"{answer.get('error', '')}"[:64], answer.get("error_codes")
        if status == 429 or status >= 500:
            return SMTPFault(Verdict.CONNECTION, f"the token server gives no tokens now ({status})")
        if not error.isidentifier():
            words = f"the answer is not a token server's ({status}): check SMTP_OAUTH_TOKEN_URL"
            return SMTPFault(Verdict.CONFIGURATION, words)
        found = [code for code in numbers if isinstance(code, int)] if isinstance(numbers, list) else []
        told = (words for codes, words in FAULTS.items() if {error, *found} & {*codes})
        named = ", ".join([error, *(f"AADSTS{code}" for code in found)])
        words = next(told, "the token server refuses us").format(grant=self.grant)
        return SMTPFault(Verdict.CONFIGURATION, f"{words} ({named})")


def _unreachable(exc: Exception) -> SMTPFault:
    """Return why there was no answer, without the name and the addresses of the server."""
    cause = getattr(exc, "certificate_error", None) or getattr(exc, "os_error", None) or exc
    if isinstance(cause, ssl.SSLCertVerificationError):
        hint = "; is the clock of this machine right?" if cause.verify_code in {9, 10} else ""  # not yet, or expired
        words = f"the token server's certificate is refused: {cause.verify_message.rstrip('.')}{hint}"
        return SMTPFault(Verdict.CONFIGURATION, words)
    code = cause.errno if isinstance(cause, OSError) else None
    reason = os.strerror(code) if code else type(cause).__name__
    reason = next((words for kind, words in REASONS.items() if isinstance(cause, kind)), reason)
    return SMTPFault(Verdict.CONNECTION, f"the token server cannot be reached: {reason}")
