"""The circuit breaker: while a mail server cannot be worked with, one probe at a time asks it again."""

from __future__ import annotations

import time
from typing import Final

FIRST_PAUSE: Final = 1.0
"""Seconds before the first probe after a fault. They double with each further fault."""
LONGEST_PAUSE: Final = 60.0
SUSPICIONS: Final = 3
"""E-mails in a row whose failure may be the server's or their own. One of them alone says nothing of the server."""


class Breaker:
    """Keeps the whole process from a server that cannot be worked with.

    It is closed while sending works, and a fault of the server opens it. Until something was sent for the first time
    it is open too, so that a wrong password is tried once and not by every connection.
    """

    def __init__(self) -> None:
        self.closed = False
        self.fault = ""
        self._pause = 0.0
        self._until = 0.0
        self._probe: object = None
        self._suspects: set[str] = set()

    @property
    def tripped(self) -> bool:
        """Whether a fault has opened it."""
        return bool(self.fault) and not self.closed

    def wait(self) -> float:
        """Return the seconds until a probe may be sent; 0 if one may be sent now."""
        return max(0.0, self._until - time.monotonic())

    def admit(self) -> object | None:
        """Return a ticket for one attempt, or `None`. Its holder must report how it went, or `abandon`."""
        if not self.closed and (self._probe or self.wait()):
            return None
        ticket = object()
        if not self.closed:
            self._probe = ticket
        return ticket

    def succeed(self, ticket: object) -> None:
        """Report that the server works. Close, if the ticket was the probe's."""
        self._suspects.clear()
        if ticket is self._probe:
            self.closed, self._probe, self._pause = True, None, 0.0

    def suspect(self, ticket: object, email_id: str, fault: str) -> None:
        """Report a failure after MAIL that may be the server's or this e-mail's: several e-mails in a row open it."""
        self._suspects.add(email_id)
        if len(self._suspects) >= SUSPICIONS:
            self.fail(ticket, fault)
        else:
            self.abandon(ticket)

    def fail(self, ticket: object, fault: str) -> None:
        """Open. Several attempts admitted together count as one fault, and do not count against a later probe."""
        if self.closed or ticket is self._probe:
            self.closed, self._probe, self.fault = False, None, fault
            self._pause = min(max(FIRST_PAUSE, self._pause * 2), LONGEST_PAUSE)
            self._until = time.monotonic() + self._pause

    def abandon(self, ticket: object) -> None:
        """Withdraw an attempt that showed nothing about the server."""
        if ticket is self._probe:
            self._probe = None
