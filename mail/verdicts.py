"""How far an attempt to send an e-mail came, and what became of it."""

from __future__ import annotations

import enum
from typing import Final


class Stage(enum.Enum):
    CONNECT = "connect"
    """Greeting, TLS and login."""
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA_COMMAND = "DATA command"
    """Until the server asks for the message. It cannot have accepted the message yet."""
    DATA = "DATA"
    """The message, and the reply to it."""


class Verdict(enum.Enum):
    SENT = "sent"
    TRANSIENT = "transient"
    """Refused with 4xx, or the conversation broke."""
    DEFERRED = "deferred"
    """Refused with 4xx for a reason that is known to be the recipient's."""
    TOO_FAST = "too fast"
    """Refused because of the pace. It is sent soon, more slowly."""
    UNCLEAR = "unclear"
    """Refused with 5xx for a reason that may be ours."""
    OVERSIZED = "oversized"
    """Refused with 5xx because of the message itself."""
    PERMANENT = "permanent"
    """Refused with 5xx for a reason that is known to be the recipient's."""
    DOUBTED = "doubted"
    """The same, but too many other e-mails to the domain or through the relay are refused like this."""
    AMBIGUOUS = "ambiguous"
    """The connection broke while the server had the message, so the server may have accepted it."""
    CONNECTION = "connection"
    """No connection could be opened. That says nothing about the e-mail."""
    CONFIGURATION = "configuration"
    """The server refuses the login, or cannot be used as the settings say. That says nothing about it either."""
    HELD = "held"
    """Not sent: its kind or domain has stopped, or two copies are under way and nobody else's e-mail gets through."""
    SUPPRESSED = "suppressed"
    """Not sent: an earlier e-mail to the address was refused for good."""
    UNRENDERED = "unrendered"
    """Not sent: its templates took too much time or memory. It is tried again like a transient one, but seldom."""
    MUTED = "muted"
    """Not sent: the user has opted out."""
    READ = "read"
    """Not sent: the notifications that it was to speak of are read, deleted or pushed out."""


DONE: Final = frozenset({Verdict.SENT, Verdict.MUTED, Verdict.READ})
"""How an e-mail ends without a fault."""
