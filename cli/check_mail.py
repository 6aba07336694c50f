"""The steps of `check` about the mail server: name, port, TLS, greeting, login, and one e-mail."""

from __future__ import annotations

import asyncio
import errno
import math
import os
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from aiohappyeyeballs import start_connection
from aiosmtplib import SMTPException, SMTPResponseException, SMTPServerDisconnected
from bson import ObjectId

from cli.result import Result, failed, ok, skipped
from mail.connection import ATTEMPT_DELAY, Connection, Opener
from mail.lease import Lease
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
STEPS: Final = ("smtp_dns", "smtp_tcp", "smtp_tls", "smtp_ehlo", "smtp_login")
BY_TLS: Final[Mapping[int, str]] = {
    10: "the certificate has expired; it is the server's to renew",  # X509_V_ERR_CERT_HAS_EXPIRED
    62: "the certificate is for another name; set SMTP_HOST to a name in it",  # ..._HOSTNAME_MISMATCH
    64: "the certificate is for another address; set SMTP_HOST to a name in it",  # ..._IP_ADDRESS_MISMATCH
}
"""By OpenSSL's code, why a certificate is refused, and what to do."""
UNTRUSTED: Final = "the certificate is not trusted ({}); SMTP_CA_FILE names the authority that signed it"
NO_TLS: Final = "the server does not speak TLS from the start; SMTP_SECURITY=starttls is for those that upgrade"
REFUSED: Final = "nothing listens at port {}, or a firewall refuses; check SMTP_PORT"
SILENT: Final = "no answer within {:g} s; a firewall may block outgoing mail, and check SMTP_PORT"


async def check_mail(settings: Settings, to: str | None) -> Sequence[Result]:
    """Return the result of each step."""
    names = [*STEPS, *(["smtp_test"] if to else [])]
    if settings.local:
        return [skipped(name, "a local run has a mailbox of its own, .notifier/mail") for name in names]
    results = [await _dns(settings)]
    for step in (_tcp, _session):
        if all(result.state.value == "ok" for result in results):
            results += await step(settings)
    if to and all(result.state.value == "ok" for result in results):
        results.append(await _send(settings, to))
    found = {result.check: result for result in results}
    return [found.get(name, skipped(name, "an earlier step failed")) for name in names]


async def _dns(settings: Settings) -> Result:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(settings.smtp_host, settings.smtp_port)
    except socket.gaierror as exc:
        why = "DNS does not answer" if exc.errno == socket.EAI_AGAIN else "DNS does not know it; check SMTP_HOST"
        return failed("smtp_dns", f"{settings.smtp_host}: {why}.")
    addresses = sorted({f"{info[4][0]}" for info in found})
    return ok("smtp_dns", f"{settings.smtp_host} is {', '.join(addresses)}")


async def _tcp(settings: Settings) -> Sequence[Result]:
    port, limit = settings.smtp_port, settings.smtp_connect_timeout
    try:
        async with asyncio.timeout(limit):
            loop = asyncio.get_running_loop()
            found = await loop.getaddrinfo(settings.smtp_host, port, type=socket.SOCK_STREAM)
            (await start_connection(found, happy_eyeballs_delay=ATTEMPT_DELAY, interleave=1)).close()
    except TimeoutError:
        return [failed("smtp_tcp", f"Port {port}: {SILENT.format(limit)}.")]
    except OSError as exc:
        refused = exc.errno == errno.ECONNREFUSED
        why = REFUSED.format(port) if refused else os.strerror(exc.errno or errno.ENETUNREACH)
        return [failed("smtp_tcp", f"Port {port}: {why}.")]
    return [ok("smtp_tcp", f"port {port} is open")]


async def _session(settings: Settings) -> Sequence[Result]:
    """Open a connection as the service does: TLS, greeting and login."""
    opener = Opener(settings, settings.sender[1].rpartition("@")[2])
    try:
        connection = await opener.open()
    except (SMTPException, SMTPFault, OSError, ValueError) as exc:
        return _broken(exc, opener.step, settings)
    results = [_tls(connection, settings), ok("smtp_ehlo", "the server greets us")]
    login = "accepted" if settings.smtp_login else "none, as SMTP_LOGIN is not set"
    await connection.quit()
    return [*results, ok("smtp_login", login)]


def _broken(exc: Exception, step: str, settings: Settings) -> Sequence[Result]:
    """Return the results of a connection that could not be opened: the steps before the fault, and the fault."""
    words = _words(exc, step)
    if step == "the login":
        return [
            ok("smtp_tls", "as SMTP_SECURITY says"),
            ok("smtp_ehlo", "the server greets us"),
            failed("smtp_login", words),
        ]
    configured = isinstance(exc, SMTPFault) and exc.verdict is Verdict.CONFIGURATION  # about STARTTLS
    if _ssl_error(exc) or configured or "TLS" in step:
        return [failed("smtp_tls", words)]
    before = [ok("smtp_tls", "as SMTP_SECURITY says")] if settings.security is Security.TLS else []
    return [*before, failed("smtp_ehlo", words)]


def _words(exc: Exception, step: str) -> str:
    if fault := _ssl_error(exc):
        return f"{_tls_words(fault)}."
    if isinstance(exc, SMTPFault):
        return f"{exc}."
    if isinstance(exc, SMTPResponseException):
        who = "refuses SMTP_LOGIN and SMTP_PASSWORD" if step == "the login" else "refuses us"
        return f"The server {who}: {exc.code} {exc.message}"
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
    return NO_TLS if fault.reason in {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"} else f"TLS fails: {fault.reason}"


def _tls(connection: Connection, settings: Settings) -> Result:
    transport = connection.smtp.transport
    certificate = transport.get_extra_info("peercert") if transport else None
    if not certificate:
        asked = settings.security is Security.NONE
        return ok("smtp_tls", "none, as SMTP_SECURITY says" if asked else "none: the server offers no STARTTLS")
    ends = ssl.cert_time_to_seconds(certificate["notAfter"])
    days = math.floor((ends - time.time()) / DAY)
    left = f"valid for {days} days, until {datetime.fromtimestamp(ends, UTC):%F}"
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
    mailer = Mailer(settings)
    outcome = await mailer.send(Lease(email, math.inf), _say)
    await mailer.close()
    if outcome is None or outcome.verdict is not Verdict.SENT:
        return failed("smtp_test", f"The test e-mail was not sent: {outcome.detail if outcome else ''}")
    return ok("smtp_test", "the server accepted the test e-mail; see whether it arrives")
