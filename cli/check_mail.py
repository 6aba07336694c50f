"""The steps of `check` about the mail server: name, port, TLS, greeting, login, and one e-mail."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import takewhile
from typing import Any, Final

import jwt
from aiosmtplib import SMTPException, SMTPResponseException, SMTPServerDisconnected
from bson import ObjectId

from cli.output import counted
from cli.result import Result, failed, ok, skipped
from mail.connection import Connection
from mail.feedback import Feedback
from mail.lease import Lease
from mail.message import sender_of
from mail.oauth import Token, Tokens
from mail.opening import Opener
from mail.replies import SMTPFault
from mail.templates import Content
from mail.verdicts import Verdict
from mailer import Mailer
from mongo.owed import NO_TOKEN, OwedEmail
from settings import Security, Settings

DAY: Final = 86_400
SOON: Final = 14
"""Days to the end of a certificate that are worth a word."""
TEST: Final = Content(
    subject="Test of the notification service",
    text="`notifier.py check --to` sent this e-mail. The service can send e-mails through its mail server.",
)
TOKEN_STEPS: Final = ("oauth_server", "oauth_token")
DONE: Final[Mapping[str, str]] = {
    "smtp_dns": "{0.smtp_host} is known",
    "smtp_tcp": "port {0.smtp_port} is open",
    "smtp_tls": "as SMTP_SECURITY says",
    "smtp_ehlo": "the server greets us",
    "smtp_login": "accepted",
}
"""The steps, and what is said of one that went well."""
BY_TLS: Final[Mapping[int, str]] = {
    10: "the certificate has expired; it is the server's to renew",  # X509_V_ERR_CERT_HAS_EXPIRED
    9: "the certificate is not valid yet; is the clock of this machine right?",  # X509_V_ERR_CERT_NOT_YET_VALID
    62: "the certificate is for another name; set SMTP_HOST to a name in it",  # ..._HOSTNAME_MISMATCH
    64: "the certificate is for another address; set SMTP_HOST to a name in it",  # ..._IP_ADDRESS_MISMATCH
}
"""By OpenSSL's code, why a certificate is refused, and what to do."""
UNTRUSTED: Final = "the certificate is not trusted ({}); SMTP_CA_FILE names the authority that signed it"
NO_TLS: Final = "the server does not speak TLS from the start; SMTP_SECURITY=starttls is for those that upgrade"
REFUSED: Final = "nothing listens at port {}, or a firewall refuses; check SMTP_PORT"
CLOCK_LIMIT: Final = 60.0
"""Seconds by which our clock may differ from the token server's."""
BASIC_DISABLED: Final = "; Exchange Online takes no passwords: see docs/logins.md"
SILENT: Final = "no answer within {:g} s; a firewall may block outgoing mail, and check SMTP_PORT"


async def check_mail(settings: Settings, to: str | None) -> Sequence[Result]:
    """Return the result of each step."""
    names = [*(TOKEN_STEPS if settings.smtp_oauth_token_url else ()), *DONE, *(["smtp_test"] if to else [])]
    if settings.local:
        return [skipped(name, "a local run has a mailbox of its own, .notifier/mail") for name in names]
    opener = Opener(settings, sender_of(settings).domain)
    results = await _token(opener.tokens) if opener.tokens else []
    if all(result.state == "ok" for result in results):
        results += await _session(opener, settings)
    await opener.close()
    if to and all(result.state == "ok" for result in results):
        results.append(await _send(settings, to))
    found = {result.check: result for result in results}
    return [found.get(name, skipped(name, "an earlier step failed")) for name in names]


async def _token(tokens: Tokens) -> list[Result]:
    """Ask for a token, which the login will use."""
    try:
        token = await tokens.get()
    except SMTPFault as exc:
        words = f"{exc}"[0].upper() + f"{exc}."[1:]
        if tokens.ahead is None:
            return [failed("oauth_server", words)]
        return [_reached(tokens.ahead), failed("oauth_token", words)]
    minutes = (token.ends - time.monotonic()) / 60
    detail = f"by {tokens.grant}, valid for {minutes:.0f} min, for {_granted(token) or 'a scope that is not said'}"
    return [_reached(tokens.ahead or 0.0), ok("oauth_token", detail)]


def _reached(ahead: float) -> Result:
    order = "behind" if ahead > 0 else "ahead of"
    wrong = f"; the clock of this machine is {abs(ahead):.0f} s {order} its own: set it"
    return ok("oauth_server", f"the token server answers{wrong if abs(ahead) > CLOCK_LIMIT else ''}")


def _granted(token: Token) -> str:
    """Return the scope of a token. Microsoft says it only in the token itself, a JWT."""
    with contextlib.suppress(jwt.InvalidTokenError):
        claims = jwt.decode(token.value, options={"verify_signature": False})
        return token.scope or f"{claims.get('scp') or claims.get('roles') or 'no role'}".strip("[]")
    return token.scope


async def _session(opener: Opener, settings: Settings) -> Sequence[Result]:
    """Open a connection as the service does, and tell how far that came."""
    try:
        connection = await opener.open()
    except (SMTPException, SMTPFault, OSError, ValueError) as exc:
        return _broken(exc, opener.step, settings)
    results = [ok(step, DONE[step].format(settings)) for step in ("smtp_dns", "smtp_tcp")]
    results += [_tls(connection, settings), ok("smtp_ehlo", DONE["smtp_ehlo"])]
    await connection.quit()
    return [*results, ok("smtp_login", DONE["smtp_login"] if settings.smtp_login else "none, as SMTP_LOGIN is not set")]


def _broken(exc: Exception, step: str, settings: Settings) -> Sequence[Result]:
    """Return the results of a connection that could not be opened: the steps before the fault, and the fault."""
    configured = isinstance(exc, SMTPFault) and exc.verdict is Verdict.CONFIGURATION  # about STARTTLS
    words = _words(exc, step, settings)
    if step == "connecting":
        name, words = _unreached(exc, settings)
    elif step == "the login":
        name = "smtp_login"
    else:
        name = "smtp_tls" if _ssl_error(exc) or configured or "TLS" in step else "smtp_ehlo"
    before = list(takewhile(lambda done: done != name, DONE))
    if name == "smtp_ehlo" and settings.security is not Security.TLS:
        before.remove("smtp_tls")
    return [*(ok(done, DONE[done].format(settings)) for done in before), failed(name, words)]


def _unreached(exc: Exception, settings: Settings) -> tuple[str, str]:
    port = settings.smtp_port
    if isinstance(exc, socket.gaierror):
        why = "DNS does not answer" if exc.errno == socket.EAI_AGAIN else "DNS does not know it; check SMTP_HOST"
        return "smtp_dns", f"{settings.smtp_host}: {why}."
    if isinstance(exc, SMTPFault):
        return "smtp_tcp", f"Port {port}: {SILENT.format(settings.smtp_connect_timeout)}."
    code = getattr(exc, "errno", None) or errno.ENETUNREACH
    return "smtp_tcp", f"Port {port}: {REFUSED.format(port) if code == errno.ECONNREFUSED else os.strerror(code)}."


def _words(exc: Exception, step: str, settings: Settings) -> str:
    if fault := _ssl_error(exc):
        return f"{_tls_words(fault)}."
    if isinstance(exc, SMTPFault):
        return f"{exc}."
    if isinstance(exc, SMTPResponseException):
        by_token = settings.smtp_oauth_token_url
        secret = "the token for SMTP_LOGIN" if by_token else "SMTP_LOGIN and SMTP_PASSWORD"
        hint = BASIC_DISABLED if "basic authentication is disabled" in exc.message else ""
        return f"The server refuses {secret if step == 'the login' else 'us'}: {exc.code} {exc.message}{hint}"
    if isinstance(exc, SMTPServerDisconnected | ConnectionError):
        return f"The server closes the connection at this step: {step}."
    return f"At this step: {step}: {type(exc).__name__}."


def _ssl_error(exc: BaseException | None) -> ssl.SSLError | None:
    while exc is not None and not isinstance(exc, ssl.SSLError):
        exc = exc.__cause__
    return exc


def _tls_words(fault: ssl.SSLError) -> str:
    if isinstance(fault, ssl.SSLCertVerificationError):
        return BY_TLS.get(fault.verify_code) or UNTRUSTED.format(fault.verify_message)
    if f"{fault.reason}".endswith("CERTIFICATE_REQUIRED"):
        return "the server asks for a client certificate: SMTP_CLIENT_CERT"
    return NO_TLS if fault.reason in {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"} else f"TLS fails: {fault.reason}"


def _tls(connection: Connection, settings: Settings) -> Result:
    transport = connection.smtp.transport
    certificate = transport.get_extra_info("peercert") if transport else None
    if not certificate:
        asked = settings.security is Security.NONE
        return ok("smtp_tls", "none, as SMTP_SECURITY says" if asked else "none: the server offers no STARTTLS")
    ends = ssl.cert_time_to_seconds(certificate["notAfter"])
    days = math.floor((ends - time.time()) / DAY)
    left = f"valid for {counted(days, 'day')}, until {datetime.fromtimestamp(ends, UTC):%F}"
    return ok("smtp_tls", f"certificate of {_name(certificate)}, {left}" + ("; renew it soon" if days < SOON else ""))


def _name(certificate: Mapping[str, Any]) -> str:
    return next((f"{value}" for _, value in certificate.get("subjectAltName", ())), "no name")


async def _say(_: Lease) -> Content:
    return TEST


async def _send(settings: Settings, to: str) -> Result:
    """Send one e-mail as the service does."""
    email = OwedEmail(
        document_id=None,
        user_id="",
        id=f"{ObjectId()}",
        key="check",
        at=datetime.now(UTC),
        tries=0,
        token=NO_TOKEN,
        address=to,
    )
    mailer = Mailer(settings, Feedback(settings))
    outcome = await mailer.send(Lease(email, math.inf), _say)
    await mailer.pool.close_all()
    if outcome is None or outcome.verdict is not Verdict.SENT:
        return failed("smtp_test", f"The test e-mail was not sent: {outcome.detail if outcome else ''}")
    return ok("smtp_test", "the server accepted the test e-mail; see whether it arrives")
