"""A proxy in front of MongoDB that breaks an exchange when told to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
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
        self._held: tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes] | None = None
        self.rewrite: Callable[[bytes], bytes] = lambda message: message
        """Changes each request on its way."""
        self._skip = 0

    def break_next(self, command: str, fault: str, skip: int = 0) -> None:
        """Break the next exchange of this command, or the one after `skip` others.

        "before" cuts the connection instead of forwarding the command. "after" forwards it, and cuts the connection
        instead of the reply. "swallow" forwards it, keeps the connection open and never sends the reply. "hold" cuts
        the connection, and keeps the command until `deliver`.
        """
        self._needle, self._fault, self._skip = command.encode() + b"\0", fault, skip

    async def deliver(self) -> bytes:
        """Forward the held command, and return MongoDB's reply, which the client does not get."""
        assert self._held
        reader, writer, message = self._held
        writer.write(message)
        reply = await _read_message(reader)
        writer.transport.abort()
        return reply

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
            if self._held:
                self._held[1].transport.abort()
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
                if not self._held or self._held[1] is not up_writer:
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
                message = self.rewrite(await _read_message(reader))
                if self._is_broken(message):
                    self._needle = None
                    self.faults += 1
                    if self._fault == "before":
                        return
                    replies.cancel()
                    await asyncio.wait({replies})
                    if self._fault == "hold":
                        self._held = up_reader, up_writer, message
                        return
                    up_writer.write(message)
                    await _read_message(up_reader)
                    if self._fault == "after":
                        return
                    await asyncio.sleep(60)  # longer than any client waits
                    return
                up_writer.write(message)
        finally:
            replies.cancel()

    def _is_broken(self, message: bytes) -> bool:
        if not self._needle or self._needle not in message:
            return False
        self._skip -= 1
        return self._skip < 0

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
            writer.transport.abort()


async def _read_message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(4)
    return head + await reader.readexactly(int.from_bytes(head, "little") - 4)
