"""Sends e-mails over kept connections, with the commands of each message together (RFC 2920)."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
from typing import Final, cast

from aiosmtplib import SMTP, SMTPResponse, SMTPResponseException, SMTPServerDisconnected
from aiosmtplib.protocol import (
    COMMAND_INJECTION_REGEX,
    MAX_RESPONSE_LENGTH,
    SMTPProtocol,
    normalize_message_line_endings,
)

from bench.frozen.message import WIRE_POLICY, Content, Sender, compose
from bench.frozen.outbox import Email
from bench.frozen.writes import EMAIL

SENDER: Final = Sender("", EMAIL)
MESSAGES_PER_CONNECTION: Final = 100
COMMAND_TIMEOUT: Final = 60.0
DATA_TIMEOUT: Final = 10.0
REPLY_TIMEOUT: Final = 600.0


def authority() -> ssl.SSLContext:
    """Return a context that trusts the mail server of the benchmark."""
    return ssl.create_default_context(cafile=os.environ["SMTP_CA_FILE"])


def as_bytes(email: Email) -> bytes:
    """Make the message as it travels."""
    message = compose(email, SENDER, email.address, Content(email.key, email.key))
    return message.as_bytes(policy=WIRE_POLICY[False])


async def opened(tls: ssl.SSLContext) -> SMTP:
    """Connect and log in, as the variables of the service say."""
    smtp = SMTP(
        hostname=os.environ["SMTP_HOST"],
        port=int(os.environ["SMTP_PORT"]),
        use_tls=True,
        tls_context=tls,
        local_hostname=SENDER.domain,
        username=os.environ["SMTP_LOGIN"],
        password=os.environ["SMTP_PASSWORD"],
    )
    await smtp.connect()
    return smtp


class _Protocol(SMTPProtocol):
    """Pairs commands with replies."""

    def __init__(self, smtp: SMTP) -> None:
        super().__init__(asyncio.get_running_loop(), lambda _: smtp.close())
        if smtp.transport is None:
            raise SMTPServerDisconnected("Connection lost")
        self.connection_made(smtp.transport)
        self._response_pending = False
        self._expected = 0
        smtp.transport.set_protocol(self)
        smtp.protocol = self

    def data_received(self, data: bytes) -> None:
        """Take a part of a reply. Replies to several commands may come together."""
        if not self._buffer:
            data = data.lstrip(b"\r\n")
        if self._expected > 1 and self._response_waiter and self._response_waiter.done():
            self._buffer.extend(data[:MAX_RESPONSE_LENGTH])
        elif data:
            super().data_received(data)

    def send(self, *commands: bytes) -> None:
        """Send commands, for each of which `next_reply` returns the reply."""
        if any(COMMAND_INJECTION_REGEX.search(command) for command in commands):
            raise ValueError("a control character in a command")
        self._buffer.clear()
        self._expected, self._response_pending = len(commands), True
        self.write(b"\r\n".join((*commands, b"")))

    async def next_reply(self, timeout: float) -> SMTPResponse:  # noqa: ASYNC109 - aiosmtplib's name
        """Return the reply to the next of the commands."""
        self._buffer[:] = self._buffer.lstrip(b"\r\n")
        response = self._read_response_from_buffer()
        response = response or await self.read_response(timeout)
        self._expected -= 1
        return response

    async def execute_message(self, message: bytes, timeout: float) -> SMTPResponse:  # noqa: ASYNC109 - as above
        """Send a message that the server asked for, and return the reply to it."""
        self._buffer.clear()
        self.write(re.sub(rb"(?m)^\.", b"..", normalize_message_line_endings(message)) + b".\r\n")
        return await self.read_response(timeout)


class Mailer:
    """One connection at a time, replaced after `MESSAGES_PER_CONNECTION` messages."""

    def __init__(self) -> None:
        self._tls = authority()
        self._smtp: SMTP | None = None
        self._messages = 0

    async def send(self, email: Email) -> None:
        """Send an e-mail. Raises aiosmtplib's errors."""
        if self._smtp is None or self._messages == MESSAGES_PER_CONNECTION:
            await self.close()
            self._smtp, self._messages = await opened(self._tls), 0
            _Protocol(self._smtp)
        protocol, message = cast("_Protocol", self._smtp.protocol), as_bytes(email)
        commands = {f"MAIL FROM:<{EMAIL}>": 2, f"RCPT TO:<{email.address}>": 2, "DATA": 3}
        protocol.send(*(command.encode() for command in commands))
        for kind in commands.values():
            _expect(kind, await protocol.next_reply(COMMAND_TIMEOUT))
        reply = asyncio.ensure_future(protocol.execute_message(message, REPLY_TIMEOUT))
        await asyncio.wait({reply}, timeout=DATA_TIMEOUT)
        _expect(2, await reply)
        self._messages += 1

    async def close(self) -> None:
        """Say goodbye, then close."""
        if self._smtp is not None:
            await self._smtp.quit()


def _expect(kind: int, response: SMTPResponse) -> None:
    if response.code // 100 != kind:
        raise SMTPResponseException(response.code, response.message)
