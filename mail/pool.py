"""The connections to the mail server: as many as it admits, each kept for the next e-mails."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from typing import Final

from aiosmtplib import SMTPException

from mail.connection import Connection, Opener, drop
from mail.feedback import Feedback
from mail.replies import SMTPFault, Stage, judge
from settings import Settings

IDLE_INTERVAL: Final = 1.0  # seconds between two looks for kept connections that are not needed
SPARE_IDLE: Final = 2.0  # seconds without a message until a connection is closed that another process may need
FIRST_TRIES: Final = 3  # attempts at a first connection: one of several machines may be broken
FAULTS: Final = (SMTPException, SMTPFault, OSError, ValueError)  # what ends a conversation


class Pool:
    """Opens connections, and keeps those that nobody uses now."""

    def __init__(self, settings: Settings, feedback: Feedback) -> None:
        self._opener = Opener(settings)
        self._feedback = feedback
        self._limits = feedback.limits
        self._open: set[Connection] = set()
        self._kept: list[Connection] = []
        self._aside: set[Connection] = set()  # those that have refused a message which another is asked to take
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()

    def wait(self) -> float | None:
        """Return the seconds until a connection may be used or opened; `None` if one must be given back first."""
        return 0.0 if self._kept else self._limits.wait(time.monotonic())  # a worn-out one makes room for another

    async def take(self) -> Connection:
        """Return the connection used last, or a new one, whichever is there first. Raises `FAULTS`."""
        opening = None
        while not (kept := self._take_if(lambda _: True)):
            if self._kept:  # which are worn out, and hold the places of new ones
                await self._close(*self._kept)
                continue
            if opening and opening.done():
                opening.result()  # raises; or somebody else took it
                opening = None
            if opening is None and self._limits.wait(time.monotonic()) == 0:
                self._limits.opening += 1
                opening = self._run(self._open_and_keep())
            await self._change()
        return kept

    async def another(self, failed: Connection) -> Connection:
        """Return a connection other than the one on which a message has failed. Raises `FAULTS` if there is none.

        One that has never delivered may be one too many, or lead to a broken machine: one that has delivered comes
        next. One that has may be worn out: one that has borne fewer messages comes next, or a new one. The caller must
        `keep` or `blame` it.
        """
        if not failed.messages:
            self._opener.rest(failed.address)
            return await self._one_proven() or await self._connect()
        fresher = None
        if failed in self._kept:  # it has refused the message; else it broke, and so may have all others
            self._kept.remove(failed)
            self._aside.add(failed)
            fresher = self._take_if(lambda kept: 0 < kept.messages < failed.messages)
        return fresher or await self._connect()

    async def _one_proven(self) -> Connection | None:
        while not (found := self._take_if(lambda kept: kept.messages > 0)):
            in_use = self._open.difference(self._kept, self._aside)
            if not any(connection.messages for connection in in_use):
                return None
            await self._change()
        return found

    def _take_if(self, suits: Callable[[Connection], bool]) -> Connection | None:
        for connection in reversed(self._kept):
            if connection.usable(self._limits.messages) and suits(connection):
                self._kept.remove(connection)
                return connection
        return None

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def _connect(self) -> Connection:
        self._limits.opening += 1
        return await self._open_counted()

    async def _open_and_keep(self) -> None:
        self.keep(await self._open_counted())

    async def _open_counted(self) -> Connection:
        try:
            connection = await self._opener.open(1 if self._open else FIRST_TRIES)
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
                self.keep(await self._connect())

    def _run(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        def done(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            self._changed.set()
            if not task.cancelled():
                task.exception()  # which whoever started it may no longer need

        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(done)
        return task

    def delivered(self, connection: Connection) -> None:
        self._limits.bore(connection.messages)
        if connection.messages == 1:
            self._limits.proved(self._proven)

    @property
    def _proven(self) -> int:
        return sum(connection.messages > 0 for connection in self._open)

    def bears_another(self, connection: Connection) -> bool:
        return connection in self._open and connection.usable(self._limits.messages - 1)

    def keep(self, connection: Connection) -> None:
        """Keep a connection for the next e-mail if it is sound, and no other has taken its place; else close it."""
        if connection not in self._open or not connection.sound:
            self._drop(connection)
            return
        connection.used = time.monotonic()
        self._aside.discard(connection)
        self._kept.append(connection)
        self._changed.set()

    def blame(self, connection: Connection) -> None:
        """Close a connection that has refused a message which another took at once. The sender need not wait."""
        self._feedback.blame(connection.messages, self._proven)
        self._run(self._close(connection))

    def leave(self, connection: Connection) -> None:
        """Let another connection take the place of one that waits for a late reply."""
        self._open.discard(connection)
        self._aside.discard(connection)
        self._changed.set()
        self._feedback.disconnected(len(self._open))

    def _drop(self, connection: Connection) -> None:
        drop(connection.smtp)
        self.leave(connection)

    async def _close(self, *connections: Connection) -> None:
        self._kept = [connection for connection in self._kept if connection not in connections]
        try:
            await asyncio.gather(*(connection.quit() for connection in connections))
        finally:
            for connection in connections:
                self._drop(connection)

    async def close_idle(self) -> None:
        """Again and again, close the kept connections that will not be used, or that other processes may need."""
        while True:
            await asyncio.sleep(IDLE_INTERVAL)
            kept = sorted(self._kept, key=lambda connection: connection.used)
            spare, idle_since = self._limits.spare(len(kept)), time.monotonic() - SPARE_IDLE
            idle = {connection for connection in kept[:spare] if connection.used < idle_since}
            worn_out = {connection for connection in kept if not connection.usable(self._limits.messages)}
            await self._close(*(idle | worn_out))

    async def close_all(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self._close(*self._kept)
        await self._opener.close()
