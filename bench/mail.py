"""What e-mails are compared with, and the mail servers that they are sent to. Roles of `bench.ceilings`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from pathlib import Path
from typing import Final

from aiosmtplib import SMTP

from config.environment import load_settings
from mail.message import Sender, compose
from mail.templates import Content
from mongo.owed import OwedEmail
from settings import Settings
from store import open_store

EMAIL: Final = "bench@example.com"
SENDER: Final = Sender("", EMAIL)


# --- a new connection per e-mail -------------------------------------------------------------------


async def reconnect(connections: int) -> None:
    """Send the e-mails owed, so many at once, each over a connection of its own."""
    settings = load_settings(Path(os.devnull))
    tls = ssl.create_default_context(cafile=str(settings.smtp_ca_file))
    slots = asyncio.Semaphore(connections)
    async with open_store(settings) as store:

        async def deliver(email: OwedEmail) -> None:
            async with slots:
                await _send(email, settings, tls)
            await store.outbox.remove(email)

        async def work() -> None:
            while True:
                emails = await store.outbox.claim(16, settings.mail_lease_seconds)
                await asyncio.gather(*map(deliver, emails))
                await asyncio.sleep(0 if emails else 0.1)

        await asyncio.gather(work(), work())  # while one claims, the e-mails of the other keep the connections busy


async def _send(email: OwedEmail, settings: Settings, tls: ssl.SSLContext) -> None:
    to = str(email.address)
    message = compose(email, SENDER, to, Content(email.key, email.key))
    smtp = SMTP(
        hostname=settings.smtp_host,
        port=settings.smtp_port,
        use_tls=True,
        tls_context=tls,
        local_hostname=SENDER.domain,
        username=settings.smtp_login,
        password=settings.smtp_password,
    )
    async with smtp:
        await smtp.sendmail(EMAIL, to, message)


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
