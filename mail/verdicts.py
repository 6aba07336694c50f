"""Verdicts on e-mails, and the rows of the table that gives them (`mail/refusals.py`)."""

from __future__ import annotations

import enum
import re
from collections.abc import Container
from typing import Final, NamedTuple


class Stage(enum.Enum):
    """How far a conversation has come."""

    CONNECT = "connect"
    """Greeting, TLS and login."""
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA_COMMAND = "DATA command"
    """Until the server asks for the message. It cannot have accepted it yet."""
    DATA = "DATA"
    """The message, and the reply to it."""


class Verdict(enum.Enum):
    """What became of an e-mail."""

    SENT = "sent"
    TRANSIENT = "transient"
    """Not now, for this e-mail."""
    UNCLEAR = "unclear"
    """Refused, and it is not known whether because of the e-mail or of us. Tried again like a transient one."""
    PERMANENT = "permanent"
    """Never, for this e-mail."""
    AMBIGUOUS = "ambiguous"
    """The connection broke while the server had the message, so it may have accepted it."""
    CONNECTION = "connection"
    """The server cannot be worked with now. This says nothing about the e-mail."""
    CONFIGURATION = "configuration"
    """The server refuses us, our sender or our account. This says nothing about the e-mail."""
    SUPPRESSED = "suppressed"
    """Not sent, as mail to the address was refused for good before."""
    MUTED = "muted"
    """Not sent, as the user has opted out."""
    READ = "read"
    """Not sent, as the notifications that it was to speak of are read, deleted or pushed out."""


class Row(NamedTuple):
    """A reply, what it means, and who gives it. `example` is a reply that this row, and no earlier one, fits."""

    stages: Container[Stage]
    pattern: re.Pattern[str]
    verdict: Verdict
    source: str
    example: str


ANY: Final = frozenset(Stage)
BEFORE: Final = frozenset({Stage.CONNECT, Stage.MAIL})
ABOUT_US: Final = (
    r"\bsender|mail from|from address|\byour (?!message)|authenticat|\blogin\b|\brelay|client host|sending"
)
AFTER: Final = frozenset({Stage.RCPT, Stage.DATA_COMMAND, Stage.DATA})


def ours(pattern: str, source: str, example: str) -> Row:
    """Make a row of a reply about our sender or account, at any stage, whether it says 4xx or 5xx."""
    return Row(ANY, re.compile(rf"[45]\d\d.*(?:{pattern})", re.IGNORECASE), Verdict.CONFIGURATION, source, example)


def theirs(pattern: str, source: str, example: str) -> Row:
    """Make a row of a refusal in words that are about this recipient or this message, and name nothing of ours."""
    words = rf"5\d\d(?!.*(?:{ABOUT_US})).*(?:{pattern})"
    return Row(AFTER, re.compile(words, re.IGNORECASE), Verdict.PERMANENT, source, example)


def code(stages: Container[Stage], pattern: str, verdict: Verdict, source: str, example: str) -> Row:
    """Make a row of a reply that begins like this."""
    return Row(stages, re.compile(pattern, re.IGNORECASE), verdict, source, example)
