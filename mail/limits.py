"""How many connections the server admits, and how many messages on each. Both are found by feedback.

A connection proves itself by its first message. One that is refused before, at the greeting or in the middle of that
message, is one too many, or leads to a machine that is broken. Several in a row are the limit; but where one was
refused and a later one proves itself, it was the machine.

Pure: the clock is an argument.
"""

from __future__ import annotations

import math
from typing import Final

AT_ONCE: Final = 5
"""Connections that are opened without waiting for acceptances, once a first login has worked."""
REFUSALS: Final = 8
MOST_REFUSALS: Final = 20
"""Refused connections in a row, while others are open, that count as the limit: twice as many after each mistake."""
FIRST_PAUSE: Final = 0.5
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
        self._most_borne = 0
        self._borne = 0
        self._worked = False
        self._refused = 0
        self._enough = REFUSALS
        self._too_many = math.inf
        self._pause = 0.0
        self._retry_at = 0.0
        self._one_more = False

    def wait(self, now: float) -> float | None:
        """Return the seconds until another connection may be opened; `None` if that depends on those that are open."""
        total = self.open + self.opening
        if total < self.allowed:
            return 0.0
        if self.found and total < self._most and not self.opening:
            return max(0.0, self._retry_at - now)
        return None

    @property
    def growing(self) -> bool:
        """Whether an acceptance lets another connection be opened."""
        return not self.found and self.allowed < self._most

    def spare(self, idle: int) -> int:
        """Return how many of the idle connections other processes may need more than this one."""
        return idle if self.found else max(0, idle - SPARE)

    def opened(self, now: float) -> None:
        """Note that a connection was opened."""
        if not self._worked:
            self._worked, self.allowed = True, min(AT_ONCE, self._most)
        elif self.open > self.allowed:
            self._one_more, self._retry_at = True, now + self._pause

    def accepted(self) -> None:
        """Note that a message was accepted."""
        if self._worked and not self.found:
            self.allowed = min(self.allowed + 1, self._most)

    def proved(self, number: int) -> None:
        """Note that the first message on a connection was accepted, the last of so many that have delivered."""
        self._refused = 0
        if number >= self._too_many:  # it was no limit
            self.found, self._pause, self._too_many = False, 0.0, math.inf
            self._enough = min(2 * self._enough, MOST_REFUSALS)
        elif number > self.allowed:
            self.allowed, self._pause = number, 0.0

    def refused(self, number: int, now: float) -> None:
        """Note that a connection was refused before it had proved itself, so that there are not so many."""
        self._refused += 1
        self._too_many = min(self._too_many, number)
        if not self.found and self._refused < self._enough:
            return
        self.found, self.allowed = True, max(1, number - 1)
        if now >= self._retry_at or self._one_more:  # else it was under way already
            self._one_more = False
            self._pause = min(max(FIRST_PAUSE, 2 * self._pause), LONGEST_PAUSE)
            self._retry_at = now + self._pause

    def forget(self) -> None:
        """Note that the server cannot be reached at all: what looked like its limit was an outage."""
        if self.found:
            self.found, self.allowed = False, min(AT_ONCE, self._most)
        self._refused, self._pause, self._too_many = 0, 0.0, math.inf

    def bore(self, messages: int) -> None:
        """Note that a connection has borne so many messages, so that fewer are no limit."""
        self._most_borne = max(self._most_borne, messages)

    def worn_out(self, messages: int) -> None:
        """Note that a connection refused a message that another took at once, after it had borne so many.

        That is the limit if it happens twice in a row, and no connection has borne more. Some servers refuse any
        message now and then.
        """
        if messages == self._borne == self._most_borne:
            self.messages = messages
        self._borne = messages
