"""What an SMTP server's reply, or a broken conversation, means by itself.

Most mean little by themselves. `mail/evidence.py` judges them by what other e-mails get.
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from dataclasses import dataclass
from typing import Final

from aiosmtplib import SMTPResponseException, SMTPTimeoutError

from mail.refusals import parse, verdict_of
from mail.verdicts import Stage, Verdict

DETAIL_LIMIT: Final = 500
"""Characters kept of a server's reply."""
WORDS_LIMIT: Final = 200
"""Characters of a reply that are logged."""
CLOSING: Final = 421
"""Code of the reply with which a server closes the connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of an attempt to send an e-mail. `status` is for logs and has no address; `detail` may have one.

    `stage` is how far the conversation came. If a reply refused the e-mail, `code` is its code, else 0, and `reply` is
    all of it. `broken` says that the conversation ended without a reply or with one that closes the connection, and
    `timed_out` that no reply came in time.
    """

    verdict: Verdict
    status: str
    detail: str = ""
    stage: Stage = Stage.DATA
    code: int = 0
    reply: str = ""
    broken: bool = False
    timed_out: bool = False

    @property
    def quote(self) -> str:
        """The status and the words of the reply without addresses and hosts, for an alarm."""
        return f"{self.status} {parse(self.reply).words[:WORDS_LIMIT]}".rstrip()

    @property
    def tried(self) -> bool:
        """Whether the server was asked to take this e-mail."""
        return self.stage is not Stage.CONNECT

    @property
    def worth_a_new_connection(self) -> bool:
        """Whether only the kept connection may have been at fault: servers close idle ones without notice."""
        is_slow_reply = self.timed_out and self.stage is not Stage.MAIL
        return self.broken and not is_slow_reply and self.verdict is not Verdict.AMBIGUOUS

    @property
    def worth_another_connection(self) -> bool:
        """Whether the fault may be the connection's: servers limit connections, and messages on each, in odd words."""
        unknown = self.verdict in {Verdict.TRANSIENT, Verdict.UNCLEAR} and self.code >= 400
        return unknown and self.stage not in {Stage.CONNECT, Stage.RCPT}


class SMTPFault(Exception):
    """The conversation cannot go on, for a reason other than a reply."""

    def __init__(self, verdict: Verdict, message: str) -> None:
        super().__init__(message)
        self.verdict = verdict


def judge(exc: Exception, stage: Stage) -> Outcome:
    """Return what it means that an exception ended a conversation at this stage."""
    if isinstance(exc, SMTPFault):
        broken = exc.verdict is Verdict.CONNECTION
        return Outcome(verdict=exc.verdict, status=f"{exc}", detail=f"{exc}", stage=stage, broken=broken)
    if isinstance(exc, SMTPResponseException):
        return _judge_reply(exc, stage)
    if isinstance(exc, ValueError) and not isinstance(exc, OSError):
        # A login, a host or a sender that does not fit into a command; from RCPT on, an address that does not.
        verdict = Verdict.CONFIGURATION if stage in {Stage.CONNECT, Stage.MAIL} else Verdict.TRANSIENT
        status = f"{stage.value}: {type(exc).__name__}"
        return Outcome(verdict=verdict, status=status, detail=f"{status}: {exc}"[:DETAIL_LIMIT], stage=stage)
    status = f"{stage.value}: {describe(exc)}"
    timed_out = isinstance(exc, SMTPTimeoutError | TimeoutError)
    return Outcome(
        verdict=_verdict_of_break(exc, stage),
        status=status,
        detail=status if timed_out else f"{status}: {exc}"[:DETAIL_LIMIT].rstrip(": "),
        stage=stage,
        broken=True,
        timed_out=timed_out,
    )


def describe(exc: Exception) -> str:
    """Name an error of the network, or else of the library that met it, without the host and its addresses."""
    cause = exc.__cause__ if isinstance(exc.__cause__, OSError) else exc
    if isinstance(exc, SMTPTimeoutError | TimeoutError):
        return "no reply in time"
    if isinstance(cause, ssl.SSLError):
        return f"{type(cause).__name__} {cause.reason or ''}".rstrip()
    if isinstance(cause, socket.gaierror):
        return f"DNS: {cause.strerror}"
    if isinstance(cause, OSError) and cause.errno is not None and cause.errno in errno.errorcode:
        return f"{type(cause).__name__}: {os.strerror(cause.errno)}"
    return type(cause).__name__


def _judge_reply(exc: SMTPResponseException, stage: Stage) -> Outcome:
    # A reply may have any charset and length. What is kept must fit into a document.
    reply = f"{exc.code} {exc.message}".encode("utf-8", "replace").decode()[:DETAIL_LIMIT]
    code, enhanced, _ = parse(reply)
    refused = 400 <= exc.code < 600
    return Outcome(
        verdict=verdict_of(reply, stage) if refused else _verdict_of_break(exc, stage),
        status=f"{' '.join(filter(None, (code, enhanced))) or exc.code} at {stage.value}",
        detail=f"{stage.value}: {reply}",
        stage=stage,
        code=exc.code if refused else 0,
        reply=reply,
        broken=exc.code == CLOSING or exc.code < 200,
    )


def _verdict_of_break(exc: Exception, stage: Stage) -> Verdict:
    """Judge a conversation that ended without a reply, or with one that makes no sense at this stage."""
    if stage is Stage.DATA:
        return Verdict.AMBIGUOUS
    if stage is not Stage.CONNECT:
        return Verdict.TRANSIENT
    if any(isinstance(e, ssl.SSLError) and not isinstance(e, ssl.SSLEOFError) for e in (exc, exc.__cause__)):
        return Verdict.CONFIGURATION  # an untrusted certificate, or no TLS where it is expected
    return Verdict.CONNECTION
