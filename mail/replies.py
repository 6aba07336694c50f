"""How far an attempt came, what became of it, and what a server's reply, or a broken conversation, means by itself.

Most replies mean little: `mail/evidence.py` judges them by what other e-mails get at the same time. A reply is in
`ROWS` if no relay uses its words about the sender. "Recipient address rejected: Access denied" is not there: Exchange
Online says it about one mailbox, and Postfix to a client that must log in.

Sources: RFC 1870, 3463, 5321, 7293 and 7505, and the replies of Exim, Postfix, Postgrey, SES, Gmail, Yahoo, Yandex,
mail.ru and cPanel.
"""

import enum
import errno
import os
import re
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from aiosmtplib import SMTPResponseException, SMTPTimeoutError


class Stage(enum.Enum):
    CONNECT = "connect"  # greeting, TLS and login
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA_COMMAND = "DATA command"  # until the server asks for the message; it cannot have accepted the message yet
    DATA = "DATA"  # the message, and the reply to it


class Verdict(enum.Enum):
    SENT = "sent"
    TRANSIENT = "transient"  # refused with 4xx, or the conversation broke
    DEFERRED = "deferred"  # refused with 4xx for a reason that is known to be the recipient's
    TOO_FAST = "too fast"  # refused because of the pace; it is sent soon, more slowly
    UNCLEAR = "unclear"  # refused with 5xx for a reason that may be ours
    OVERSIZED = "oversized"  # refused with 5xx because of the message itself
    PERMANENT = "permanent"  # refused with 5xx for a reason that is known to be the recipient's
    DOUBTED = "doubted"  # the same, but too many other e-mails to the domain or through the relay are refused like this
    AMBIGUOUS = "ambiguous"  # the connection broke while the server had the message, so it may have accepted it
    CONNECTION = "connection"  # no connection could be opened, which says nothing about the e-mail
    CONFIGURATION = "configuration"  # the server refuses the login, or cannot be used as the settings say: likewise
    HELD = "held"  # not sent: its kind or domain has stopped, or copies are under way and nobody else's gets through
    SUPPRESSED = "suppressed"  # not sent: an earlier e-mail to the address was refused for good
    UNRENDERED = "unrendered"  # not sent: its templates took too much time or memory; tried again, but seldom
    MUTED = "muted"  # not sent: the user has opted out
    READ = "read"  # not sent: the notifications that it was to speak of are read, deleted or pushed out


DONE: Final = frozenset({Verdict.SENT, Verdict.MUTED, Verdict.READ})  # how an e-mail ends without a fault
DETAIL_LIMIT: Final = 500  # characters kept of a server's reply
WORDS_LIMIT: Final = 200  # characters of a reply that are logged
CLOSING: Final = 421  # code of the reply with which a server closes the connection
REPLY: Final = re.compile(r"([245]\d\d)[ -]?(?:([245]\.\d{1,3}\.\d{1,3})\b)?(.*)", re.DOTALL)
NAMES: Final = re.compile(r"<[^>]*>|\S+@\S+|[\w-]+(?:\.[\w-]+)+|\[[\d.:a-f]+\]", re.IGNORECASE)
"""Addresses, hosts and codes. They say nothing about the reason, whatever words they contain."""
ABOUT_US: Final = re.compile(  # refusals that may be about the sender, whatever their code
    r"\bsender|mail from|from address|\byour (?!message)|authenticat|\blog(?:ged )?in\b|\brelay|client host|sending"
    r"|polic(?:y|ies)|reputation|spam|abuse|block|suspicious|rejected by rule|\bquota\b.*\bper\b",
    re.IGNORECASE,
)
FULL: Final = re.compile(  # such a mailbox exists, whatever the code
    r"(?:mailbox|recipient|inbox)\b.{0,60}(?:\bfull\b|over ?quota|exceed\w*|out of storage|storage)"
    r"|over ?quota|exceeded storage|insufficient mailbox",
    re.IGNORECASE,
)
ROWS: Final[Mapping[str, Verdict]] = {  # of a reply as CODE ENHANCED_CODE WORDS; the first match counts
    r"4.*(?:too m(?:any|uch) (?:messages|e?mails?)\b|(?:sending|message|maximum) rate"
    r"|rate limit|too fast\b|slow down)": Verdict.TOO_FAST,
    r"4.*(?:gr[ae]y-?list|receiving mail (?:too quickly|at a rate))": Verdict.DEFERRED,
    r"4.. 4\.(?:1\.1|2\.2) ": Verdict.DEFERRED,
    r"5.. 5\.(?:1\.(?:1|2|3|4|6|10)|2\.[12]|7\.1[78]) ": Verdict.PERMANENT,
    r"5.. 5\.(?:3\.4|6\.\d+) ": Verdict.OVERSIZED,
    r"552 (?!5\.[27]).*(?:message.*(?:size|too (?:large|big|long))|size limit)": Verdict.OVERSIZED,
    r"5.. (?!5\.7\.[^1]).*(?:(?:no such|unknown|unrecognized) (?:local )?(?:user|mailbox|recipient|person)\b"
    r"|\b(?:user|mailbox|recipient)\b.{0,60}(?:unknown|not found|n[o']t exist)"
    r"|unrouteable address|doesn't have an? \S* ?account|mailbox\b.{0,20}\b(?:full|over quota))": Verdict.PERMANENT,
}
AT_MAIL: Final = frozenset({Verdict.TOO_FAST, Verdict.OVERSIZED})  # known before the server is told the recipient
BOUNCES: Final[Mapping[str, tuple[str, str]]] = {  # enhanced codes that suppress an address, and their sources
    "5.1.1": ("The mailbox does not exist.", "RFC 3463, section 3.2"),
    "5.1.2": ("The domain does not exist, or takes no mail.", "RFC 3463, section 3.2"),
    "5.1.6": ("The mailbox has moved, and takes no mail any more.", "RFC 3463, section 3.2"),
    "5.1.10": ("The domain says that it takes no mail (null MX).", "RFC 7505, section 4.2"),
}


def parse(reply: str) -> tuple[str, str, str]:
    """Return the code, the enhanced code (RFC 3463) and the words, without names. Each may be empty."""
    match = REPLY.match(reply)
    code, enhanced, words = match.groups(default="") if match else ("", "", reply)
    return code, enhanced, " ".join(NAMES.sub("…", words).split())


def verdict_of(reply: str, stage: Stage) -> Verdict:
    """Return what a 4xx or 5xx reply means by itself."""
    refusal = code, _, words = parse(reply)
    is_final = code.startswith("5")
    if stage is Stage.CONNECT:
        return Verdict.CONFIGURATION if is_final else Verdict.CONNECTION
    text = " ".join(refusal)
    verdict = next((known for row, known in ROWS.items() if re.match(row, text, re.IGNORECASE)), None)
    is_doubtful = verdict is Verdict.PERMANENT and ABOUT_US.search(words)
    if verdict and not is_doubtful and (stage is not Stage.MAIL or verdict in AT_MAIL):
        return verdict
    return Verdict.UNCLEAR if is_final else Verdict.TRANSIENT


def bounce_code(verdict: Verdict, reply: str) -> str | None:
    """Return the code of `BOUNCES` for which a refusal suppresses its address, unless its words mean something else."""
    _, enhanced, words = parse(reply)
    if verdict not in {Verdict.PERMANENT, Verdict.DOUBTED} or ABOUT_US.search(words) or FULL.search(words):
        return None
    return enhanced if enhanced in BOUNCES else None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an attempt to send an e-mail."""

    verdict: Verdict
    status: str  # for logs, without an address
    detail: str = ""  # for the operator, perhaps with one
    stage: Stage = Stage.CONNECT  # how far the conversation came
    code: int = 0  # of the reply that refused the e-mail, if any
    reply: str = ""
    broken: bool = False  # the conversation ended without a reply, or with one that closes the connection
    timed_out: bool = False  # no reply came in time

    @property
    def quote(self) -> str:
        """The status and the words of the reply, without addresses and hosts."""
        return f"{self.status} {parse(self.reply)[-1][:WORDS_LIMIT]}".rstrip()

    @property
    def tried(self) -> bool:
        return self.stage is not Stage.CONNECT

    @property
    def worth_another_connection(self) -> bool:
        """Whether it may be the connection's fault: servers limit connections, and messages on each, in odd words."""
        unknown = self.verdict in {Verdict.TRANSIENT, Verdict.UNCLEAR} and self.code >= 400
        return unknown and self.stage not in {Stage.CONNECT, Stage.RCPT}


class SMTPFault(Exception):
    """The conversation cannot go on, for a reason other than a reply."""

    def __init__(self, verdict: Verdict, message: str) -> None:
        super().__init__(message)
        self.verdict = verdict


def judge(exc: Exception, stage: Stage) -> Outcome:
    if isinstance(exc, SMTPFault):
        return Outcome(exc.verdict, f"{exc}", f"{exc}", stage, broken=exc.verdict is Verdict.CONNECTION)
    if isinstance(exc, SMTPResponseException):
        return _judge_reply(exc, stage)
    broken, verdict = True, _verdict_of_break(exc, stage)
    if isinstance(exc, ValueError) and not isinstance(exc, OSError):
        # A login, a host or a sender that does not fit into a command; from RCPT on, an address that does not.
        broken = False
        verdict = Verdict.CONFIGURATION if stage in {Stage.CONNECT, Stage.MAIL} else Verdict.TRANSIENT
    status, timed_out = f"{stage.value}: {describe(exc)}", isinstance(exc, SMTPTimeoutError | TimeoutError)
    detail = status if timed_out else f"{status}: {exc}"[:DETAIL_LIMIT].rstrip(": ")
    return Outcome(verdict, status, detail, stage, broken=broken, timed_out=timed_out)


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
    if stage is not Stage.CONNECT:
        return Verdict.AMBIGUOUS if stage is Stage.DATA else Verdict.TRANSIENT
    if any(isinstance(e, ssl.SSLError) and not isinstance(e, ssl.SSLEOFError) for e in (exc, exc.__cause__)):
        return Verdict.CONFIGURATION  # an untrusted certificate, or no TLS where it is expected
    return Verdict.CONNECTION
