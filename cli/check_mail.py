"""The steps of `check` about the mail server: a token, then name, port, TLS, greeting and login, then one e-mail."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import takewhile
from typing import Final, NamedTuple

import jwt
from aiosmtplib import SMTPException, SMTPResponseException
from bson import ObjectId

from cli.output import counted
from mail.connection import Connection
from mail.feedback import Feedback
from mail.lease import Lease
from mail.login import Token, Tokens
from mail.message import Letters, Sender
from mail.opening import Opener
from mail.replies import SMTPFault, Verdict
from mail.templates import Content
from mailer import Mailer, Worker
from mongo.owed import NO_TOKEN, OwedEmail
from settings import Security, Settings

DAY: Final = 86_400
SOON: Final = 14
"""Days of validity below which `check` says to renew a certificate."""
TEST: Final = Content(
    subject="Test of the notification service",
    text="`notifier.py check --to` sent this e-mail. The service can send e-mails through its mail server.",
)
SMTP_STEPS: Final[Mapping[str, str]] = {
    "smtp_dns": "{0.smtp_host} is known",
    "smtp_tcp": "port {0.smtp_port} is open",
    "smtp_tls": "as SMTP_SECURITY says",
    "smtp_ehlo": "the server greets us",
    "smtp_login": "accepted",
}
"""The steps of opening a connection, and what to say of one that succeeds."""
UNTRUSTED: Final = (
    "the certificate is refused ({}): it must name SMTP_HOST, and its authority be the system's or in SMTP_CA_FILE."
)
NO_TLS: Final = "the server does not speak TLS from the start; SMTP_SECURITY=starttls is for those that upgrade."


class StepFailed(Exception):
    """A step of `check` failed. The message says what is wrong and what to do."""

    def __init__(self, detail: str, step: str = "") -> None:
        super().__init__(detail)
        self.step = step


class Result(NamedTuple):
    """The outcome of a step of `check`: `ok`, `failed` or `skipped`, and a sentence."""

    state: str
    check: str
    detail: str


async def check_mail(settings: Settings, to: str | None) -> Sequence[Result]:
    """Walk through a delivery as far as it gets; return the result of each step."""
    steps = [*(["oauth_token"] if settings.smtp_oauth_token_url else []), *SMTP_STEPS, *(["smtp_test"] if to else [])]
    if settings.local:
        return [Result("skipped", step, "a local run has a mailbox of its own, .notifier/mail") for step in steps]
    results = {step: Result("skipped", step, "an earlier step failed") for step in steps}
    try:
        async for step, detail in _walk(settings, to):
            results[step] = Result("ok", step, detail)
    except StepFailed as exc:
        results[exc.step] = Result("failed", exc.step, f"{exc}")
    return list(results.values())


async def _walk(settings: Settings, to: str | None) -> AsyncIterator[tuple[str, str]]:
    """Yield each step that succeeds, and what to say of it. Raises `StepFailed`."""
    opener = Opener(settings, Sender(settings).domain)
    try:
        if opener.tokens:
            yield "oauth_token", await _token(opener.tokens)
        async for done in _session(opener, settings):
            yield done
    finally:
        await opener.close()
    if to:
        yield "smtp_test", await _send(settings, to)


async def _token(tokens: Tokens) -> str:
    """Ask for a token, which the login will use."""
    try:
        token = await tokens.get()
    except SMTPFault as exc:
        raise StepFailed(f"{exc}"[0].upper() + f"{exc}."[1:], "oauth_token") from None
    minutes = (token.ends - time.monotonic()) / 60
    return f"by {tokens.grant}, valid for {minutes:.0f} min, for {_granted(token) or 'an unnamed scope'}"


def _granted(token: Token) -> str:
    """Return the scope of a token. Microsoft says it only in the token itself, a JWT."""
    with contextlib.suppress(jwt.InvalidTokenError):
        claims = jwt.decode(token.value, options={"verify_signature": False})
        return token.scope or f"{claims.get('scp') or claims.get('roles') or 'no role'}".strip("[]")
    return token.scope


async def _session(opener: Opener, settings: Settings) -> AsyncIterator[tuple[str, str]]:
    """Open a connection as the service does."""
    said = {step: words.format(settings) for step, words in SMTP_STEPS.items()}
    try:
        connection = await opener.open()
    except (SMTPException, SMTPFault, OSError, ValueError) as exc:
        failure = _failure(exc, opener.last.step, settings)
        if failure.step == "smtp_ehlo" and settings.security is not Security.TLS:
            del said["smtp_tls"]  # STARTTLS comes after EHLO
        for step in takewhile(lambda step: step != failure.step, said):
            yield step, said[step]
        raise failure from exc
    said["smtp_tls"] = _certificate(connection, settings)
    if not settings.smtp_login:
        said["smtp_login"] = "none, as SMTP_LOGIN is not set"
    await connection.quit()
    for done in said.items():
        yield done


def _failure(exc: Exception, step: str, settings: Settings) -> StepFailed:
    """Return the step at which a connection could not be opened, and why."""
    cause: BaseException | None = exc
    while cause and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__
    if isinstance(cause, ssl.SSLError):
        return StepFailed(_tls_words(cause), "smtp_tls")
    if isinstance(exc, socket.gaierror):
        words = f"{settings.smtp_host}: DNS does not know it, or does not answer; check SMTP_HOST."
        return StepFailed(words, "smtp_dns")
    if step == "connecting":
        why = os.strerror(exc.errno) if isinstance(exc, OSError) and exc.errno else f"{exc}"
        return StepFailed(f"Port {settings.smtp_port}: {why}; check SMTP_PORT, and firewalls.", "smtp_tcp")
    about_tls = "TLS" in step or (isinstance(exc, SMTPFault) and exc.verdict is Verdict.CONFIGURATION)
    name = "smtp_login" if step == "the login" else "smtp_tls" if about_tls else "smtp_ehlo"
    if isinstance(exc, SMTPResponseException):
        return StepFailed(_refusal(exc, settings, at_login=step == "the login"), name)
    if isinstance(exc, SMTPFault):
        return StepFailed(f"{exc}.", name)
    return StepFailed(f"The connection breaks at this step: {step} ({type(exc).__name__}).", name)


def _refusal(exc: SMTPResponseException, settings: Settings, *, at_login: bool) -> str:
    secret = "the token for SMTP_LOGIN" if settings.smtp_oauth_token_url else "SMTP_LOGIN and SMTP_PASSWORD"
    basic = "basic authentication is disabled" in exc.message
    hint = "; Exchange Online takes no passwords: see docs/logins.md" if basic else ""
    return f"The server refuses {secret if at_login else 'us'}: {exc.code} {exc.message}{hint}"


def _tls_words(fault: ssl.SSLError) -> str:
    if isinstance(fault, ssl.SSLCertVerificationError):
        return UNTRUSTED.format(fault.verify_message.rstrip("."))
    if f"{fault.reason}".endswith("CERTIFICATE_REQUIRED"):
        return "the server asks for a client certificate: SMTP_CLIENT_CERT."
    return NO_TLS if fault.reason in {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"} else f"TLS fails: {fault.reason}."


def _certificate(connection: Connection, settings: Settings) -> str:
    transport = connection.smtp.transport
    certificate = transport.get_extra_info("peercert") if transport else None
    if not certificate:
        asked = settings.security is Security.NONE
        return "none, as SMTP_SECURITY says" if asked else "none: the server offers no STARTTLS"
    name = next((f"{value}" for _, value in certificate.get("subjectAltName", ())), "no name")
    ends = ssl.cert_time_to_seconds(certificate["notAfter"])
    days = math.floor((ends - time.time()) / DAY)
    left = f"valid for {counted(days, 'day')}, until {datetime.fromtimestamp(ends, UTC):%F}"
    return f"certificate of {name}, {left}{'; renew it soon' if days < SOON else ''}"


class _Test(Letters):
    async def content(self, _: Lease) -> Content:
        return TEST


async def _send(settings: Settings, to: str) -> str:
    """Send one e-mail as the service does."""
    now, id_ = datetime.now(UTC), f"{ObjectId()}"
    email = OwedEmail(document_id=None, user_id="", id=id_, key="check", at=now, tries=0, token=NO_TOKEN, address=to)
    mailer = Mailer(settings, Feedback(settings), _Test(settings), Worker())
    outcome = await mailer.send(Lease(email, math.inf))
    await mailer.pool.close_all()
    if outcome is None or outcome.verdict is not Verdict.SENT:
        raise StepFailed(f"The test e-mail was not sent: {outcome.detail if outcome else ''}", "smtp_test")
    return "the server accepted the test e-mail; see whether it arrives"
