"""How many connections the server admits, and how many messages on each. Both are found by feedback.

Pure: the clock is an argument.
"""

from __future__ import annotations

from typing import Final

AT_ONCE: Final = 5
"""Connections that are opened without waiting for acceptances, once a first login has worked."""
REFUSALS: Final = 3
"""Refused connections in a row, while others are open, before these count as the limit."""
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0
"""Seconds until one connection more than the limit is tried. They double each time that it is refused."""
SPARE: Final = 2
"""Idle connections that are kept for long, unless the server admits no more than are open."""
MESSAGES: Final = 100
"""Messages on a connection, unless the server bears fewer."""


class Limits:
    """The limits of connections and of messages. `open` and `opening` are how many connections there are now."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.allowed = 1
        """Connections that may be open at once: one until the first login has worked."""
        self.found = False
        """Whether the server has refused a further one."""
        self.open = 0
        self.opening = 0
        self.messages = MESSAGES
        self._borne = 0
        self._worked = False
        self._refusals = 0
        self._pause = 0.0
        self._retry_at = 0.0

    def wait(self, now: float) -> float | None:
        """Return the seconds until another connection may be opened; `None` if that depends on those that are open."""
        total = self.open + self.opening
        if total < self.allowed:
            return 0.0
        if self.found and total < self._most and not self.opening:
            return max(0.0, self._retry_at - now)
        return None

    def spare(self, idle: int) -> int:
        """Return how many of the idle connections other processes may need more than this one."""
        return idle if self.found else max(0, idle - SPARE)

    def opened(self, now: float) -> None:
        """Note that a connection was opened."""
        self._refusals = 0
        if not self._worked:
            self._worked, self.allowed = True, min(AT_ONCE, self._most)
        elif self.found and self.open > self.allowed:
            self.allowed, self._pause, self._retry_at = self.open, FIRST_PAUSE, now + FIRST_PAUSE

    def accepted(self) -> None:
        """Note that a message was accepted."""
        if self._worked and not self.found:
            self.allowed = min(self.allowed + 1, self._most)

    def refused(self, now: float) -> None:
        """Note that a further connection could not be opened at any address of the server."""
        self._refusals += 1
        if self.found or self._refusals >= REFUSALS:
            self.overloaded(now)

    def overloaded(self, now: float) -> None:
        """Note that those that are open are as many as the server admits."""
        self.found, self._refusals = True, 0
        self.allowed = max(1, self.open)
        self._pause = min(max(FIRST_PAUSE, 2 * self._pause), LONGEST_PAUSE)
        self._retry_at = now + self._pause

    def forget(self) -> None:
        """Note that the server cannot be reached at all: what looked like its limit was an outage."""
        if self.found:
            self.found, self.allowed = False, min(AT_ONCE, self._most)
        self._refusals, self._pause = 0, 0.0

    def worn_out(self, messages: int) -> None:
        """Note that a connection refused a message that another took at once, after it had borne so many."""
        if messages == self._borne:
            self.messages = min(self.messages, messages)
        self._borne = messages
