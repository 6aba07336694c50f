"""A connection to the mail server, and the conversation on it: MAIL, RCPT, DATA and the message.

Sources: RFC 5321 (SMTP), RFC 2920 (PIPELINING).
"""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, cast

from aiosmtplib import SMTP, SMTPException, SMTPResponse, SMTPResponseException, SMTPServerDisconnected
from aiosmtplib.protocol import COMMAND_INJECTION_REGEX, MAX_RESPONSE_LENGTH, SMTPProtocol

from mail.replies import Stage

CONNECTION_AGE: Final = 300.0  # seconds after which a connection is replaced: servers close old ones unasked
CONNECTION_IDLE: Final = 30.0  # seconds without a message after which it is closed, for the same reason
QUIT_TIMEOUT: Final = 0.5  # seconds to wait for the reply to QUIT
REPLY_TIMEOUT: Final = 600.0
"""Seconds to wait for the reply to a message (RFC 5321, section 4.5.3.2.6). To give up earlier is to send the e-mail
again although the server may have accepted it."""
Address = tuple[str, int]


class Protocol(SMTPProtocol):
    """Pairs commands with replies, which may travel together (RFC 2920), whatever the server says unasked."""

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
        """Take a part of a reply. Discards an empty line before it."""
        if not self._buffer:
            data = data.lstrip(b"\r\n")
        is_read = bool(self._response_waiter and self._response_waiter.done())
        if self.expected > is_read and (is_read or not self._response_pending):
            self._buffer.extend(data[:MAX_RESPONSE_LENGTH])  # which `next_reply` will read
        elif data:
            super().data_received(data)

    def send(self, *commands: bytes, message: bytes | None = None) -> None:
        """Send a message that the server asked for, if one is given, and commands, in one write.

        `next_reply` returns the reply to each. Discards anything received earlier. The lines of the message end with
        CRLF; a dot at the beginning of one is doubled (RFC 5321, section 4.5.2). The first line is a header.
        """
        if any(COMMAND_INJECTION_REGEX.search(command) for command in commands):
            raise ValueError("a control character in a command")
        self._buffer.clear()
        self.expected, self._response_pending = len(commands) + (message is not None), True
        before = b"" if message is None else message.replace(b"\r\n.", b"\r\n..") + b".\r\n"
        self.write(before + b"\r\n".join((*commands, b"")))

    async def next_reply(self, timeout: float) -> SMTPResponse:  # noqa: ASYNC109 - aiosmtplib's name
        """Return the reply to the next of what was sent."""
        self._buffer[:] = self._buffer.lstrip(b"\r\n")
        response = self._read_response_from_buffer()  # it may have come with the one before, and be the last
        response = response or await self.read_response(timeout)
        self.expected -= 1
        return response

    async def execute_command(self, *args: bytes, timeout: float | None = None) -> SMTPResponse:  # noqa: ASYNC109
        """Send a command and return the reply to it. Discards anything received earlier."""
        self._buffer.clear()
        return await super().execute_command(*args, timeout=timeout)


@dataclass(eq=False, slots=True)
class Connection:
    """One conversation with the server, for one message after another. Commands time out after `timeout` seconds.

    Methods raise `SMTPResponseException` for a reply that refuses, and aiosmtplib's other errors.
    """

    smtp: SMTP
    protocol: Protocol
    timeout: float
    pipelines: bool
    address: Address  # the one of the server's addresses to which it leads
    opened: float = field(default_factory=time.monotonic)
    used: float = field(default_factory=time.monotonic)
    messages: int = 0  # that the server has accepted
    stage: Stage = Stage.CONNECT  # of the conversation about the current message
    together: bool = False  # whether its commands were sent together
    refused: bool = False  # whether the last message was refused, so that its transaction must be left first

    def usable(self, messages: int) -> bool:
        """Return whether the server can be expected to still listen, and to bear another of so many messages."""
        now = time.monotonic()
        is_young = now - self.opened < CONNECTION_AGE and now - self.used < CONNECTION_IDLE
        return is_young and self.messages < messages and self.smtp.is_connected

    async def begin(self) -> None:
        """Begin a conversation about another message. If the last one was refused, leave its transaction by RSET."""
        self.stage, self.together = Stage.CONNECT, False
        if not self.refused:
            return
        while self.protocol.expected:
            if (await self.protocol.next_reply(self.timeout)).code // 100 == 3:
                raise SMTPServerDisconnected("the server waits for a message without a recipient")
        self.protocol.send(b"RSET")
        if (await self.protocol.next_reply(self.timeout)).code // 100 != 2:
            raise SMTPServerDisconnected("the server does not leave a transaction")
        self.refused = False

    def prepare(self, commands: Sequence[bytes], stage: Stage, *, together: bool) -> None:
        """Say these commands next, all at once if `together` and the server pipelines. The first is at this stage."""
        self.stage, self.together = stage, together and self.pipelines
        if self.together:
            self.protocol.send(*commands)

    async def say(self, command: bytes, stage: Stage, kind: int) -> None:
        """Say a command. Any reply of this kind accepts it, such as 252 (RFC 5321, section 4.2.1)."""
        self.stage = stage
        if not self.together:
            self.protocol.send(command)
        _expect(kind, await self.protocol.next_reply(self.timeout))

    async def hand_over(self, message: bytes, ahead: Sequence[bytes]) -> None:
        """Send the message and its final dot, and with it the commands about the next message. Any 2xx accepts it."""
        self.protocol.send(*ahead, message=message)
        self.stage = Stage.DATA
        _expect(2, await self.protocol.next_reply(REPLY_TIMEOUT))
        self.messages, self.used = self.messages + 1, time.monotonic()

    async def quit(self) -> None:
        with contextlib.suppress(SMTPException):
            await self.smtp.quit(timeout=QUIT_TIMEOUT)
        drop(self.smtp)


def _expect(kind: int, response: SMTPResponse) -> None:
    if response.code // 100 != kind:
        raise SMTPResponseException(response.code, response.message)


def drop(smtp: SMTP) -> None:
    """Close at once. The closing handshake of a server that hangs would hang too."""
    if smtp.transport is not None:
        cast("asyncio.WriteTransport", smtp.transport).abort()
    smtp.close()
