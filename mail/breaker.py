"""The circuit breaker: while a mail server cannot be worked with, one probe at a time asks it again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

FIRST_PAUSE: Final = 1.0
"""Seconds before the first probe after a fault. They double with each further fault."""
LONGEST_PAUSE: Final = 60.0
LONGEST_SUSPICION: Final = 10.0
"""The same after suspicions, which may be unfounded: some recipients may be all that is wrong."""
SUSPICIONS: Final = 3
"""E-mails in a row whose failure may be the server's or their own. One of them alone says nothing of the server."""


class Breaker:
    """Keeps the whole process from a server that cannot be worked with.

    It is closed while sending works, and a fault of the server opens it. Until something was sent for the first time
    it is open too, so that a wrong password is tried once and not by every connection.

    `changed` is called whenever `admits` may have changed, but for the passing of time.
    """

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        self._changed = changed
        self.closed = False
        self.fault = ""
        self._pause = 0.0
        self._until = 0.0
        self._probe: object = None
        self._suspects: set[str] = set()
        self._suspected = False

    @property
    def tripped(self) -> bool:
        """Whether a fault has opened it."""
        return bool(self.fault) and not self.closed

    def wait(self) -> float:
        """Return the seconds until a probe may be sent; 0 if one may be sent now."""
        return max(0.0, self._until - time.monotonic())

    @property
    def admits(self) -> bool:
        """Whether an attempt may be made now."""
        return self.closed or not (self._probe or self.wait())

    def admit(self) -> object | None:
        """Return a ticket for one attempt, or `None`. Its holder must report how it went, or `abandon`."""
        if not self.admits:
            return None
        ticket = object()
        if not self.closed:
            self._probe = ticket
        return ticket

    def reach(self, ticket: object) -> None:
        """Report that the server let us in and takes our sender. Close, unless an e-mail must get through for that."""
        if ticket is self._probe and not self._suspected:
            self._close()

    def succeed(self, ticket: object) -> None:
        """Report that the server works. Close, if the ticket was the probe's."""
        self._suspects.clear()
        if ticket is self._probe:
            self._close()

    def _close(self) -> None:
        self.closed, self._probe, self._pause, self._suspected = True, None, 0.0, False
        self._changed()

    def suspect(self, ticket: object, email_id: str, fault: str) -> None:
        """Report a failure after MAIL that may be the server's or this e-mail's: several e-mails in a row open it."""
        self._suspects.add(email_id)
        if len(self._suspects) >= SUSPICIONS:
            self._open(ticket, fault, suspected=True)
        else:
            self.abandon(ticket)

    def fail(self, ticket: object, fault: str) -> None:
        """Open. Several attempts admitted together count as one fault, and do not count against a later probe."""
        self._open(ticket, fault, suspected=False)

    def _open(self, ticket: object, fault: str, *, suspected: bool) -> None:
        if self.closed or ticket is self._probe:
            self.closed, self._probe, self.fault, self._suspected = False, None, fault, suspected
            longest = LONGEST_SUSPICION if suspected else LONGEST_PAUSE
            self._pause = min(max(FIRST_PAUSE, self._pause * 2), longest)
            self._until = time.monotonic() + self._pause
            self._changed()

    def abandon(self, ticket: object) -> None:
        """Withdraw an attempt that showed nothing about the server."""
        if ticket is self._probe:
            self._probe = None
            self._changed()
