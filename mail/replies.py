"""What an SMTP server's reply, or a broken conversation, means for an e-mail: one table.

Sources: RFC 5321 (SMTP), RFC 3463 and its registry (enhanced status codes), RFC 4954 (AUTH).
"""

from __future__ import annotations

import enum
import re
import ssl
from dataclasses import dataclass
from typing import Final

from aiosmtplib import SMTPResponseException

DETAIL_LIMIT: Final = 500
"""Characters kept of a server's reply."""


class Stage(enum.Enum):
    """How far a conversation has come."""

    CONNECT = "connect"
    """Greeting, TLS and login."""
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"


class Verdict(enum.Enum):
    """What became of an e-mail."""

    SENT = "sent"
    TRANSIENT = "transient"
    """Not now, for this e-mail."""
    PERMANENT = "permanent"
    """Never, for this e-mail."""
    AMBIGUOUS = "ambiguous"
    """The connection broke while the server had the message, so it may have accepted it."""
    CONNECTION = "connection"
    """The server cannot be worked with now. This says nothing about the e-mail."""
    CONFIGURATION = "configuration"
    """The server refuses us as we are configured. This says nothing about the e-mail."""


VERDICTS: Final = (
    # stages, how the reply begins, what it means; the first match counts
    (Stage, r"421", Verdict.CONNECTION),  # "service not available, closing transmission channel"
    (Stage, r"503|530|534|535|538", Verdict.CONFIGURATION),  # login wrong, or wanted first (RFC 4954)
    (Stage, r"5\d\d 5\.(1\.[78]|7\.(57|60|8|9|1[13]))\b", Verdict.CONFIGURATION),  # sender or login, refused late
    (
        Stage,
        r"5.*(sender address rejected|not owned by user|relay access denied|relaying denied|unable to relay)",
        Verdict.CONFIGURATION,
    ),  # Postfix, Sendmail and Exchange, at RCPT and without a code of its own
    ({Stage.CONNECT}, r"5", Verdict.CONFIGURATION),
    ({Stage.CONNECT}, r"", Verdict.CONNECTION),
    ({Stage.MAIL}, r"552|5\d\d 5\.3\.4", Verdict.PERMANENT),  # the message is too large
    ({Stage.MAIL}, r"5", Verdict.CONFIGURATION),  # the sender is refused
    (Stage, r"5", Verdict.PERMANENT),
    (Stage, r"4", Verdict.TRANSIENT),
    ({Stage.DATA}, r"", Verdict.AMBIGUOUS),  # neither accepts nor refuses a message that it has
    (Stage, r"", Verdict.CONNECTION),  # not SMTP
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an e-mail. `status` is for logs and holds no address; `detail` is for operators and may."""

    verdict: Verdict
    status: str
    detail: str


class SMTPFault(Exception):
    """The conversation cannot go on, for a reason other than a reply."""

    def __init__(self, verdict: Verdict, message: str) -> None:
        super().__init__(message)
        self.verdict = verdict


def judge(exc: Exception, stage: Stage) -> Outcome:
    """Return what an exception means that ended a conversation at this stage."""
    if isinstance(exc, SMTPFault):
        return Outcome(exc.verdict, str(exc), str(exc))
    if isinstance(exc, SMTPResponseException):
        return _judge_reply(exc, stage)
    if isinstance(exc, ValueError) and not isinstance(exc, OSError):
        verdict = Verdict.PERMANENT  # an address that does not fit into a command
    elif stage is Stage.DATA:
        verdict = Verdict.AMBIGUOUS
    elif any(isinstance(e, ssl.SSLError) and not isinstance(e, ssl.SSLEOFError) for e in (exc, exc.__cause__)):
        verdict = Verdict.CONFIGURATION  # an untrusted certificate, or no TLS where it is expected
    else:
        verdict = Verdict.CONNECTION
    text = f"{stage.value}: {type(exc.__cause__ or exc).__name__}: {exc}"[:DETAIL_LIMIT]
    return Outcome(verdict, text, text)


def _judge_reply(exc: SMTPResponseException, stage: Stage) -> Outcome:
    # A reply may have any charset and length. What is kept must fit into a document.
    reply = f"{exc.code} {exc.message}".encode("utf-8", "replace").decode()[:DETAIL_LIMIT]
    verdict = next(
        verdict
        for stages, start, verdict in VERDICTS
        if stage in stages and re.match(start, reply, re.IGNORECASE | re.DOTALL)
    )
    codes = re.match(r"-?\d+( [245]\.\d{1,3}\.\d{1,3}\b)?", reply)
    return Outcome(verdict, f"{codes[0] if codes else ''} at {stage.value}", f"{stage.value}: {reply}")
