"""The connections to the mail server: as many as it admits, each kept for the next e-mails."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Final

from aiosmtplib import SMTPException

from mail.connection import Connection, Opener
from mail.feedback import Feedback
from mail.replies import SMTPFault, judge
from mail.verdicts import Stage

IDLE_INTERVAL: Final = 1.0
"""Seconds between two looks for kept connections that are not needed."""
FAULTS: Final = (SMTPException, SMTPFault, OSError, ValueError)
"""What ends a conversation."""


class Pool:
    """Opens connections, and keeps those that nobody uses now."""

    def __init__(self, opener: Opener, feedback: Feedback) -> None:
        self._opener = opener
        self._feedback = feedback
        self._limits = feedback.limits
        self._open: set[Connection] = set()
        self._kept: list[Connection] = []
        self._returned = asyncio.Event()

    @property
    def connections(self) -> int:
        """Number of connections that are open or being opened."""
        return len(self._open) + self._limits.opening

    def wait(self) -> float | None:
        """Return the seconds until a connection may be used or opened; `None` if one must be given back before."""
        if self._kept:  # one that is worn out makes room for another
            return 0.0
        return self._limits.wait(time.monotonic())

    async def take(self) -> Connection | None:
        """Return the usable connection used last; else close those kept, which hold the places of new ones."""
        if not (found := self._take_if(lambda _: True)):
            await self.close(*self._kept)
        return found

    def _take_if(self, suits: Callable[[Connection], bool]) -> Connection | None:
        for connection in reversed(self._kept):
            if connection.usable(self._limits.messages) and suits(connection):
                self._kept.remove(connection)
                return connection
        return None

    async def connect(self) -> Connection:
        """Open a connection. Raises `FAULTS`."""
        self._limits.opening += 1
        try:
            connection = await self._opener.open()
        except FAULTS as exc:
            self._feedback.not_connected(judge(exc, Stage.CONNECT))
            raise
        finally:
            self._limits.opening -= 1
        self._open.add(connection)
        self._feedback.connected(len(self._open))
        return connection

    async def ask_whether_the_server_lives(self) -> None:
        """Open a connection if none is left, so that an outage is not taken for a fault of the e-mail that met it."""
        if not self._open:
            with contextlib.suppress(*FAULTS):
                self.keep(await self.connect())

    @contextlib.asynccontextmanager
    async def other_than(self, refusing: Connection) -> AsyncIterator[Connection]:
        """Provide another connection than one that has refused a message, which nobody uses meanwhile.

        One that has borne no message may be one too many, so it is one that has delivered. One that has borne some may
        have reached its limit, so it is one that has borne fewer, or a new one. Raises `FAULTS` if there is none.
        """
        if refusing in self._kept:
            self._kept.remove(refusing)
        self._open.discard(refusing)
        self._returned.set()
        try:
            if refusing.messages:
                other = self._take_if(lambda kept: 0 < kept.messages < refusing.messages)
            else:
                other = await self._proven()
            yield other or await self.connect()
        finally:
            if refusing.smtp.is_connected:
                self._open.add(refusing)
                self.keep(refusing)

    async def _proven(self) -> Connection | None:
        """Wait for a connection that has delivered; `None` if none is in use any more."""
        while not (found := self._take_if(lambda kept: kept.messages > 0)):
            if not any(connection.messages for connection in self._open.difference(self._kept)):
                return None
            self._returned.clear()
            await self._returned.wait()
        return found

    def keep(self, connection: Connection) -> None:
        """Keep a connection for the next e-mail, unless another has taken its place."""
        if connection not in self._open:
            self.drop(connection)
            return
        connection.used = time.monotonic()
        self._kept.append(connection)
        self._returned.set()

    def leave(self, connection: Connection) -> None:
        """Let another connection take the place of one that waits for a late reply."""
        self._open.discard(connection)
        self._feedback.disconnected(len(self._open))

    def drop(self, connection: Connection) -> None:
        """Close a connection at once."""
        connection.drop()
        self._open.discard(connection)
        self._returned.set()
        self._feedback.disconnected(len(self._open))

    async def close(self, *connections: Connection) -> None:
        """Say goodbye on connections that nobody uses, and close them."""
        self._kept = [connection for connection in self._kept if connection not in connections]
        await asyncio.gather(*(connection.quit() for connection in connections))
        for connection in connections:
            self.drop(connection)

    async def close_idle(self) -> None:
        """Close the kept connections that will not be used again, or that other processes may need, for ever."""
        while True:
            await asyncio.sleep(IDLE_INTERVAL)
            kept = sorted(self._kept, key=lambda connection: connection.used)
            spare = [connection for connection in kept[: self._limits.spare(len(kept))] if connection.idle]
            old = [connection for connection in kept if not connection.usable(self._limits.messages)]
            await self.close(*{*spare, *old})

    async def close_all(self) -> None:
        """Close every kept connection, and what opening needs."""
        await self.close(*self._kept)
        await self._opener.close()
