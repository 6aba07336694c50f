"""A proxy in front of MongoDB that breaks an exchange when told to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

FAULTS = ("before", "after", "swallow")
"""How an exchange is broken: see `Proxy.break_next`."""


class Proxy:
    """A TCP proxy in front of the port `target`. `faults` is the number of exchanges that it has broken."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self.faults = 0
        self._target = target
        self._needle: bytes | None = None
        self._fault = ""

    def break_next(self, command: str, fault: str) -> None:
        """Break the next exchange of this command.

        "before" cuts the connection instead of forwarding the command. "after" forwards it, and cuts the connection
        instead of the reply. "swallow" forwards it, keeps the connection open and never sends the reply.
        """
        self._needle, self._fault = command.encode() + b"\0", fault

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Proxy]:
        """Listen meanwhile on `port`."""
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._tasks.add(task)
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._target)
            try:
                await self._exchange(reader, writer, up_reader, up_writer)
            finally:
                up_writer.transport.abort()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _exchange(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        up_reader: asyncio.StreamReader,
        up_writer: asyncio.StreamWriter,
    ) -> None:
        """Forward one request at a time, and every reply: the driver's monitors get several for one request."""
        replies = asyncio.create_task(self._forward(up_reader, writer))
        try:
            while True:
                message = await _read_message(reader)
                if self._needle and self._needle in message:
                    self._needle = None
                    self.faults += 1
                    if self._fault == "before":
                        return
                    replies.cancel()
                    await asyncio.wait({replies})
                    up_writer.write(message)
                    await _read_message(up_reader)
                    if self._fault == "after":
                        return
                    await asyncio.sleep(60)  # longer than any client waits
                    return
                up_writer.write(message)
        finally:
            replies.cancel()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
            writer.transport.abort()


async def _read_message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(4)
    return head + await reader.readexactly(int.from_bytes(head, "little") - 4)
