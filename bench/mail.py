"""What e-mails are compared with, and the mail servers that they are sent to. Roles of `bench.ceilings`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl
import time
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
    server = await asyncio.start_server(_converse, "127.0.0.1", int(os.environ["PORT"]), ssl=tls)
    await server.serve_forever()


async def distant() -> None:
    """Pass what comes to `PORT` on to the port `SINK`, and back, each `DELAY` seconds later."""
    delay, sink = float(os.environ["DELAY"]), int(os.environ["SINK"])

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                asyncio.get_running_loop().call_later(delay, writer.write, data)
        asyncio.get_running_loop().call_later(delay, writer.close)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(2 * delay)  # the handshake of TCP
        to_sink = await asyncio.open_connection("127.0.0.1", sink)
        await asyncio.gather(forward(reader, to_sink[1]), forward(to_sink[0], writer))

    server = await asyncio.start_server(connected, "127.0.0.1", int(os.environ["PORT"]))
    await server.serve_forever()


async def _converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    extension = b"250-PIPELINING\r\n" if os.environ.get("PIPELINING") else b""
    replies = REPLIES | {b"EHLO": b"250-sink\r\n" + extension + b"250-SMTPUTF8\r\n250 AUTH PLAIN\r\n"}
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        writer.write(b"220 sink ESMTP\r\n")
        while line := await reader.readline():
            command = line[:4].upper()
            if command == b"DATA":
                writer.write(b"354 go on\r\n")
                await reader.readuntil(b"\r\n.\r\n")
            writer.write(replies.get(command, b"250 OK\r\n"))
            if command == b"QUIT":
                break
    writer.close()


REPLIES: Final = {
    b"AUTH": b"235 OK\r\n",
    b"QUIT": b"221 bye\r\n",
}
