"""What an SMTP server's reply, or a broken conversation, means for an e-mail and for the server.

The replies themselves are in `mail/refusals.py`.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import ssl
from dataclasses import dataclass
from typing import Final

from aiosmtplib import SMTPResponseException, SMTPTimeoutError

from mail.refusals import VERDICTS
from mail.verdicts import AFTER, Stage, Verdict

DETAIL_LIMIT: Final = 500
"""Characters kept of a server's reply."""
CLOSING: Final = 421
"""The reply of a server that closes the connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of an e-mail. `status` is for logs and holds no address; `detail` is for operators and may.

    `stage` is how far the conversation came; `broken`, whether it ended without a reply or with one that closes the
    connection; `timed_out`, whether that was for lack of a reply in time.
    """

    verdict: Verdict
    status: str
    detail: str = ""
    stage: Stage = Stage.DATA
    broken: bool = False
    timed_out: bool = False

    @property
    def blames_server(self) -> bool:
        """Whether it says that the server cannot be worked with. Until MAIL, nothing is known to it of an e-mail."""
        return self.verdict in {Verdict.CONNECTION, Verdict.CONFIGURATION} and self.stage in {Stage.CONNECT, Stage.MAIL}

    @property
    def suspects_server(self) -> bool:
        """Whether it may be the server's fault as well as the e-mail's."""
        return self.broken or self.verdict in {Verdict.CONFIGURATION, Verdict.UNCLEAR, Verdict.AMBIGUOUS}

    @property
    def worth_a_new_connection(self) -> bool:
        """Whether a kept connection may be all that was wrong: servers close these unasked."""
        return (
            self.broken
            and self.verdict is not Verdict.AMBIGUOUS
            and not (self.timed_out and self.stage is not Stage.MAIL)
        )


class SMTPFault(Exception):
    """The conversation cannot go on, for a reason other than a reply."""

    def __init__(self, verdict: Verdict, message: str) -> None:
        super().__init__(message)
        self.verdict = verdict


def judge(exc: Exception, stage: Stage) -> Outcome:
    """Return what an exception means that ended a conversation at this stage."""
    if isinstance(exc, SMTPFault):
        broken = exc.verdict is Verdict.CONNECTION
        return Outcome(verdict=exc.verdict, status=f"{exc}", detail=f"{exc}", stage=stage, broken=broken)
    if isinstance(exc, SMTPResponseException):
        return _judge_reply(exc, stage)
    if isinstance(exc, ValueError) and not isinstance(exc, OSError):
        # A login, a host or a sender that does not fit into a command; from RCPT on, an address that does not.
        text = f"{stage.value}: {type(exc).__name__}"
        verdict = Verdict.TRANSIENT if stage in AFTER else Verdict.CONFIGURATION
        return Outcome(verdict=verdict, status=text, detail=f"{text}: {exc}"[:DETAIL_LIMIT], stage=stage)
    timed_out = isinstance(exc, SMTPTimeoutError | TimeoutError)
    words = "no reply in time" if timed_out else _describe(exc)
    return Outcome(
        verdict=_judge_break(exc, stage),
        status=f"{stage.value}: {words}",
        detail=f"{stage.value}: {words if timed_out else f'{words}: {exc}'}"[:DETAIL_LIMIT],
        stage=stage,
        broken=True,
        timed_out=timed_out,
    )


def _judge_break(exc: Exception, stage: Stage) -> Verdict:
    if stage is Stage.DATA:
        return Verdict.AMBIGUOUS
    if stage in AFTER:
        return Verdict.TRANSIENT
    if any(isinstance(e, ssl.SSLError) and not isinstance(e, ssl.SSLEOFError) for e in (exc, exc.__cause__)):
        return Verdict.CONFIGURATION  # an untrusted certificate, or no TLS where it is expected
    return Verdict.CONNECTION


def _describe(exc: Exception) -> str:
    """Name what broke, without the host and its addresses: an error of the network, or else aiosmtplib's."""
    cause = exc.__cause__ if isinstance(exc.__cause__, OSError) else exc
    if isinstance(cause, ssl.SSLError):
        return f"{type(cause).__name__} {cause.reason or ''}".rstrip()
    if isinstance(cause, socket.gaierror):
        return f"{cause.strerror} (the name of the server)"
    if isinstance(cause, OSError) and cause.errno is not None and cause.errno in errno.errorcode:
        return f"{type(cause).__name__}: {os.strerror(cause.errno)}"
    return type(cause).__name__


def _judge_reply(exc: SMTPResponseException, stage: Stage) -> Outcome:
    # A reply may have any charset and length. What is kept must fit into a document.
    reply = f"{exc.code} {exc.message}".encode("utf-8", "replace").decode()[:DETAIL_LIMIT]
    codes = re.match(r"-?\d+( [245]\.\d{1,3}\.\d{1,3}\b)?", reply)
    return Outcome(
        verdict=verdict_of(reply, stage),
        status=f"{codes[0] if codes else ''} at {stage.value}",
        detail=f"{stage.value}: {reply}",
        stage=stage,
        broken=exc.code == CLOSING or exc.code < 200,
    )


def verdict_of(reply: str, stage: Stage) -> Verdict:
    """Return the verdict of the first row of `VERDICTS` that fits a reply, such as `550 5.1.1 User unknown`."""
    one_line = " ".join(reply.split())
    return next(row.verdict for row in VERDICTS if stage in row.stages and row.pattern.match(one_line))
