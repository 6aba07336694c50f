"""A scripted SMTP server: it says exactly what a script tells it, even what no server library would allow."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

Converse = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

DROP: Final = b"drop"
"""Close the connection instead of replying."""
HANG: Final = b"hang"
"""Never reply."""
EHLO: Final = b"250-here\r\n250-AUTH PLAIN LOGIN\r\n250-PIPELINING\r\n250 SMTPUTF8\r\n"
REPLIES: Final[Mapping[str, bytes]] = {
    "greeting": b"220 here\r\n",
    "EHLO": EHLO,
    "HELO": b"250 here\r\n",
    "AUTH PLAIN": b"235 in\r\n",
    "AUTH LOGIN alone": b"334 VXNlcm5hbWU6\r\n",
    "name": b"334 UGFzc3dvcmQ6\r\n",
    "password": b"235 in\r\n",
    "AUTH XOAUTH2": b"235 in\r\n",
    "AUTH OAUTHBEARER": b"235 in\r\n",
    "MAIL": b"250 OK\r\n",
    "RCPT": b"250 OK\r\n",
    "DATA": b"354 go on\r\n",
    "dot": b"250 OK\r\n",
    "RSET": b"250 OK\r\n",
    "QUIT": b"221 bye\r\n",
}
"""The replies of an ordinary server."""
UNKNOWN: Final = b"502 unknown command\r\n"


Behave = Callable[[str, int, int], bytes | None]
"""Returns the reply to a command on the n-th connection after this many messages; `None` for the usual reply."""


@dataclass
class RawServer:
    """A server and its replies, by command, `command recipient` or `MAIL option`. The parts of a tuple come slowly."""

    replies: Mapping[str, bytes | tuple[bytes, ...]]
    port: int = 0
    commands: list[str] = field(default_factory=list)
    received: list[tuple[str, bytes]] = field(default_factory=list)
    passwords: list[str] = field(default_factory=list)
    presented: list[str] = field(default_factory=list)
    """What AUTH commands carried."""
    behave: Behave | None = None
    connections: int = 0
    helo: str = ""
    sender: str = ""
    options: list[str] = field(default_factory=list)

    def _reply(self, command: str, recipient: str = "") -> tuple[bytes, ...]:
        known = {**REPLIES, **self.replies}
        reply = known.get(f"{command} {recipient}", known.get(command, UNKNOWN))
        return reply if isinstance(reply, tuple) else (reply,)

    async def _say(self, writer: asyncio.StreamWriter, reply: tuple[bytes, ...]) -> None:
        for n, part in enumerate(reply):
            if part == DROP:
                raise ConnectionError
            if part == HANG:
                await asyncio.sleep(60)
            if n:
                await asyncio.sleep(0.1)
            writer.write(part)
            await writer.drain()

    def _note(self, command: str, line: str) -> None:
        words = line.split(" ")
        if command == "EHLO":
            self.helo = words[-1]
        elif command == "MAIL":
            self.sender, self.options = line.partition("<")[2].partition(">")[0], words[2:]
        elif command.startswith("AUTH") and len(words) > 2:
            self.presented.append(base64.b64decode(words[2]).decode())

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hold one conversation."""
        recipient, messages = "", 0
        self.connections += 1
        number = self.connections

        def reply_to(command: str, argument: str = "") -> tuple[bytes, ...]:
            said = self.behave(command, number, messages) if self.behave else None
            return (said,) if said else self._reply(command, argument)

        with suppress(ConnectionError):
            await self._say(writer, reply_to("greeting"))
            while line := (await reader.readline()).decode().strip():
                words = line.split(" ")
                command = " ".join(words[:2]).upper() if words[0].upper() == "AUTH" else words[0].upper()
                self._note(command, line)
                if command == line.upper() and words[0].upper() == "AUTH":
                    command += " alone"
                if command == "RCPT":
                    recipient = line.partition("<")[2].rstrip(">")
                self.commands.append(command)
                reply = reply_to(command, words[-1] if command == "MAIL" else recipient)
                await self._say(writer, reply)
                asked = ["password", "name"] if command == "AUTH LOGIN alone" else ["password"]
                while reply[0].startswith(b"334"):
                    self.passwords.append(base64.b64decode(await reader.readline()).decode())
                    reply = self._reply(asked.pop())
                    await self._say(writer, reply)
                if b"".join(reply).startswith(b"354"):
                    message = await reader.readuntil(b"\r\n.\r\n")
                    answer = reply_to("dot", recipient)
                    messages += answer[0].startswith(b"2")
                    if answer[0].startswith((b"2", HANG)):
                        self.received.append((recipient, message.removesuffix(b".\r\n")))
                    await self._say(writer, answer)
                if command == "QUIT":
                    break


@asynccontextmanager
async def raw_server(
    replies: Mapping[str, bytes | tuple[bytes, ...]] | None = None, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[RawServer]:
    """Run a server that gives these replies, and the ordinary ones otherwise, without TLS."""
    state = RawServer(replies or {})
    async with conversing(state.converse, host, port) as state.port:
        yield state


@asynccontextmanager
async def conversing(converse: Converse, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[int]:
    """Run a server that converses so on every connection, without TLS; yield its port."""
    tasks: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        tasks.add(task)
        try:
            with suppress(asyncio.CancelledError, asyncio.IncompleteReadError):
                await converse(reader, writer)
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(connected, host, port, limit=1 << 20)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)
