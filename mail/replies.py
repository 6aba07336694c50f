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

from mail.refusals import REPLY, verdict_of, without_names
from mail.verdicts import AFTER, Stage, Verdict

DETAIL_LIMIT: Final = 500
"""Characters kept of a server's reply."""
WORDS_LIMIT: Final = 200
"""Characters of a reply that are logged."""
CLOSING: Final = 421
"""The reply of a server that closes the connection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of an e-mail. `status` is for logs and holds no address; `detail` is for operators and may.

    `stage` is how far the conversation came; `code` that of the reply which refused it, or 0; `reply` is that reply;
    `broken`, whether it ended without a reply or with one that closes the connection; `timed_out`, whether that was for
    lack of a reply in time.
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
        """What an alarm says of it: the reply without addresses and hosts."""
        return f"{self.status} {without_names(self.reply)[4:WORDS_LIMIT]}".rstrip()

    @property
    def tried(self) -> bool:
        """Whether the server was asked to take this e-mail."""
        return self.stage is not Stage.CONNECT

    @property
    def worth_a_new_connection(self) -> bool:
        """Whether a kept connection may be all that was wrong: servers close these unasked."""
        return (
            self.broken
            and self.verdict is not Verdict.AMBIGUOUS
            and not (self.timed_out and self.stage is not Stage.MAIL)
        )

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
    if stage is not Stage.CONNECT:
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
    found = REPLY.match(reply)
    codes = " ".join(filter(None, found.groups()[:2])) if found else f"{exc.code}"
    refused = 400 <= exc.code < 600
    return Outcome(
        verdict=_judge_refusal(reply, stage) if refused else _judge_nonsense(stage),
        status=f"{codes} at {stage.value}",
        detail=f"{stage.value}: {reply}",
        stage=stage,
        code=exc.code if refused else 0,
        reply=reply,
        broken=exc.code == CLOSING or exc.code < 200,
    )


def _judge_refusal(reply: str, stage: Stage) -> Verdict:
    if stage is Stage.CONNECT:
        return Verdict.CONFIGURATION if reply.startswith("5") else Verdict.CONNECTION
    return verdict_of(reply, stage)


def _judge_nonsense(stage: Stage) -> Verdict:
    """Judge what is no reply, or another one than can be given here."""
    known = {Stage.CONNECT: Verdict.CONNECTION, Stage.DATA: Verdict.AMBIGUOUS}
    return known.get(stage, Verdict.TRANSIENT)
