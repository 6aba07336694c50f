"""What became of an attempt to send an e-mail, and how far it came."""

from __future__ import annotations

import enum
from typing import Final


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


AFTER: Final = frozenset({Stage.RCPT, Stage.DATA_COMMAND, Stage.DATA})


class Verdict(enum.Enum):
    """What became of an e-mail."""

    SENT = "sent"
    TRANSIENT = "transient"
    """Refused by 4xx, or the conversation broke."""
    DEFERRED = "deferred"
    """Refused by 4xx, and known to be about the recipient."""
    TOO_FAST = "too fast"
    """Refused because of the pace. It is sent soon, more slowly."""
    UNCLEAR = "unclear"
    """Refused by 5xx, for a reason that may be ours."""
    OVERSIZED = "oversized"
    """Refused by 5xx, and known to be about the message."""
    PERMANENT = "permanent"
    """Refused by 5xx, and known to be about the recipient."""
    DOUBTED = "doubted"
    """The same, but too many others at the domain or the relay are refused like this."""
    AMBIGUOUS = "ambiguous"
    """The connection broke while the server had the message, so it may have accepted it."""
    CONNECTION = "connection"
    """There was no connection. This says nothing about the e-mail."""
    CONFIGURATION = "configuration"
    """The server refuses the login, or cannot be used as the settings say. Nor does this."""
    HELD = "held"
    """Not sent, as its kind or domain has stopped, or as only two copies are sent while nobody gets through."""
    SUPPRESSED = "suppressed"
    """Not sent, as mail to the address was refused for good before."""
    UNRENDERED = "unrendered"
    """Its templates took too much time or memory. Tried again like a transient one, but seldom."""
    MUTED = "muted"
    """Not sent, as the user has opted out."""
    READ = "read"
    """Not sent, as the notifications that it was to speak of are read, deleted or pushed out."""


DONE: Final = frozenset({Verdict.SENT, Verdict.MUTED, Verdict.READ})
"""What ends an e-mail without a fault."""
