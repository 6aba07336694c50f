"""One stream: a client's open connection, and the one event it is to be sent next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime


class Refused(Exception):
    """Base of the reasons why a stream cannot begin or go on."""


class TooManyOfUser(Refused):
    """The user has as many streams in this process as one user may."""


class TooManyOfProcess(Refused):
    """The process has as many streams as it may."""


class Stopping(Refused):
    """The process is about to stop."""


class Unreadable(Refused):
    """The user's document cannot be read. The log says why."""


class ClientGone(Refused):
    """The client has closed the connection."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event as it is sent, and when the change that it reports was written."""

    text: bytes
    at: datetime | None


class Stream:
    """A mailbox for one event. A newer event replaces one that was not sent yet, so a slow client costs nothing."""

    def __init__(self, is_gone: Callable[[], bool]) -> None:
        self.is_gone = is_gone
        self.has_begun = False
        self._event: Event | None = None
        self._end: type[Exception] | None = None
        self._woken = asyncio.Event()

    def offer(self, text: bytes, at: datetime | None) -> None:
        """Send this event next. It keeps the time of the one it replaces."""
        self._event = Event(text, (self._event and self._event.at) or at)
        self.has_begun = True
        self._woken.set()

    def close(self, reason: type[Exception]) -> None:
        """End the stream: whoever waits for an event gets this exception instead."""
        self._end = self._end or reason
        self._woken.set()

    async def peek(self) -> Event:
        """Wait for the next event and leave it in place. Raises the reason that the stream was closed for."""
        while True:
            if self._end:
                raise self._end
            if self._event:
                return self._event
            self._woken.clear()
            await self._woken.wait()

    async def next(self) -> Event:
        """Wait for the next event and take it. Raises as `peek`."""
        event = await self.peek()
        self._event = None
        return event
