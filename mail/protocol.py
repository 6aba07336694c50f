"""Commands and replies on one connection, which may travel together (RFC 2920)."""

from __future__ import annotations

import asyncio

from aiosmtplib import SMTP, SMTPResponse, SMTPServerDisconnected
from aiosmtplib.protocol import COMMAND_INJECTION_REGEX, MAX_RESPONSE_LENGTH, SMTPProtocol


class Protocol(SMTPProtocol):
    """Pairs commands with replies, whatever the server says unasked: an empty line, or a reply twice."""

    def __init__(self, smtp: SMTP) -> None:
        super().__init__(asyncio.get_running_loop(), lambda _: smtp.close())
        if smtp.transport is None:
            raise SMTPServerDisconnected("Connection lost")
        self.connection_made(smtp.transport)
        self._response_pending = False  # the greeting was read before
        self.expected = 0
        smtp.transport.set_protocol(self)
        smtp.protocol = self

    def data_received(self, data: bytes) -> None:
        """Take a part of a reply. An empty line is none. Replies to several commands may come together."""
        if not self._buffer:
            data = data.lstrip(b"\r\n")
        if self.expected > 1 and self._response_waiter and self._response_waiter.done():
            self._buffer.extend(data[:MAX_RESPONSE_LENGTH])  # which `next_reply` will read
        elif data:
            super().data_received(data)

    def send(self, *commands: bytes) -> None:
        """Send commands, for each of which `next_reply` returns the reply. What came before them is none."""
        if any(COMMAND_INJECTION_REGEX.search(command) for command in commands):
            raise ValueError("a control character in a command")
        self._buffer.clear()
        self.expected, self._response_pending = len(commands), True
        self.write(b"\r\n".join((*commands, b"")))

    async def next_reply(self, timeout: float) -> SMTPResponse:  # noqa: ASYNC109 - aiosmtplib's name
        """Return the reply to the next of the commands."""
        self._buffer[:] = self._buffer.lstrip(b"\r\n")
        response = self._read_response_from_buffer()  # it may have come with the one before, and be the last
        response = response or await self.read_response(timeout)
        self.expected -= 1
        return response

    async def execute_command(self, *args: bytes, timeout: float | None = None) -> SMTPResponse:  # noqa: ASYNC109
        """Send a command and return the reply to it. What came before it is none."""
        self._buffer.clear()
        return await super().execute_command(*args, timeout=timeout)

    async def execute_message(self, message: bytes, timeout: float) -> SMTPResponse:  # noqa: ASYNC109 - as above
        """Send a message that the server asked for, and return the reply to it. Its lines end with CRLF.

        A dot at the beginning of a line is doubled (RFC 5321, section 4.5.2). The first line is a header.
        """
        self._buffer.clear()
        self.write(message.replace(b"\r\n.", b"\r\n..") + b".\r\n")
        return await self.read_response(timeout)
