"""What e-mails are compared with, and the mail servers that they are sent to. Roles of `bench.ceilings`."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from bson import ObjectId

from bench.frozen.mailer import SENDER, Mailer, as_bytes, authority, opened
from bench.frozen.outbox import Collection, Email, claim, remove
from bench.frozen.writes import EMAIL, NO_TOKEN

CLAIM_USERS: Final = 16


# --- a new connection per e-mail -------------------------------------------------------------------


async def reconnect(users: Collection, connections: int) -> None:
    """Send the e-mails owed, so many at once, each over a connection of its own."""
    tls, slots = authority(), asyncio.Semaphore(connections)

    async def deliver(email: Email) -> None:
        async with slots:
            smtp = await opened(tls)
            await smtp.sendmail(SENDER.address, email.address, as_bytes(email))
            await smtp.quit()
        await remove(users, email)

    async def work() -> None:
        while True:
            emails = await claim(users, CLAIM_USERS)
            await asyncio.gather(*map(deliver, emails))
            await asyncio.sleep(0 if emails else 0.1)

    await asyncio.gather(work(), work())  # while one claims, the e-mails of the other keep the connections busy


# --- a sender without MongoDB ----------------------------------------------------------------------


async def send(emails: int, connections: int) -> None:
    """Send so many e-mails over so many kept connections; print how long it took and the CPU, both in seconds."""
    mailers = [Mailer() for _ in range(connections)]
    await asyncio.gather(*(mailer.send(_email()) for mailer in mailers))  # so that the connections are open
    left = iter(range(emails))
    began, cpu = time.monotonic(), time.process_time()

    async def work(mailer: Mailer) -> None:
        for _ in left:
            await mailer.send(_email())

    await asyncio.gather(*map(work, mailers))
    print(json.dumps({"seconds": time.monotonic() - began, "cpu": time.process_time() - cpu}))
    await asyncio.gather(*(mailer.close() for mailer in mailers))


def _email() -> Email:
    return Email(ObjectId(), str(ObjectId()), "new_login", datetime.now(UTC), NO_TOKEN, EMAIL)


# --- a mail server ---------------------------------------------------------------------------------


async def sink() -> None:
    """Accept every login and every e-mail over TLS. The file `CERTIFICATE` holds the certificate and its key."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(os.environ["CERTIFICATE"])
    extension = b"250-PIPELINING\r\n" if os.environ.get("PIPELINING") else b""
    replies = REPLIES | {b"EHLO": b"250-sink\r\n" + extension + b"250-SMTPUTF8\r\n250 AUTH PLAIN\r\n"}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Session(replies), "127.0.0.1", int(os.environ["PORT"]), ssl=tls)
    await server.serve_forever()


REPLIES: Final = {
    b"AUTH": b"235 OK\r\n",
    b"DATA": b"354 go on\r\n",
    b"QUIT": b"221 bye\r\n",
}


class _Session(asyncio.Protocol):
    """One connection. What arrives together is answered together, as a fast server does (RFC 2920)."""

    def __init__(self, replies: Mapping[bytes, bytes]) -> None:
        self._replies = replies
        self._received = b""
        self._in_message = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(b"220 sink ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        self._received += data
        replies = []
        while (reply := self._next()) is not None:
            replies.append(reply)
        if replies:
            self._transport.write(b"".join(replies))
        if REPLIES[b"QUIT"] in replies:
            self._transport.close()

    def _next(self) -> bytes | None:
        """Take a command or a message from what was received, and return the reply; `None` if it is not whole yet."""
        line, end, rest = self._received.partition(b"\r\n.\r\n" if self._in_message else b"\r\n")
        if not end:
            return None
        self._received = rest
        command = b"" if self._in_message else line[:4].upper()
        self._in_message = command == b"DATA"
        return self._replies.get(command, b"250 OK\r\n")


# --- the way to a server far away ------------------------------------------------------------------


async def distant() -> None:
    """Pass what comes to `PORT` on to the port `SINK`, and back, each `DELAY` seconds later."""
    loop, delay, sink = asyncio.get_running_loop(), float(os.environ["DELAY"]), int(os.environ["SINK"])
    tasks = set[asyncio.Task[object]]()

    def connected() -> _Forward:
        """Connect to the sink after the handshake of TCP."""
        near, far = _Forward(delay), _Forward(delay)
        near.to, far.to = far, near

        async def connect() -> None:
            await asyncio.sleep(2 * delay)
            await loop.create_connection(lambda: far, "127.0.0.1", sink)

        task = loop.create_task(connect())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        return near

    server = await loop.create_server(connected, "127.0.0.1", int(os.environ["PORT"]))
    await server.serve_forever()


class _Forward(asyncio.Protocol):
    """One side of a connection. What it receives leaves on the side `to` after a delay."""

    to: _Forward

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._transport: asyncio.Transport | None = None
        self._early = list[bytes]()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        for data in self._early:
            transport.write(data)

    def data_received(self, data: bytes) -> None:
        asyncio.get_running_loop().call_later(self._delay, self.to.write, data)

    def connection_lost(self, _: Exception | None) -> None:
        asyncio.get_running_loop().call_later(self._delay, self.to.close)

    def write(self, data: bytes) -> None:
        """Send, as soon as there is a connection."""
        if self._transport is None:
            self._early.append(data)
        else:
            self._transport.write(data)

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._transport is not None:
            self._transport.close()
