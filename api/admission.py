"""The first protocol of a connection: it hands the connection to aiohttp's, or refuses it while descriptors are few."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from typing import Any, Final, cast

import orjson

from api.problem import MEDIA_TYPE
from api.problems import BY_EXCEPTION, TooManyConnections
from ops.logs import Throttle

log = logging.getLogger("notifier.http")

REFUSING: Final = 32
"""Connections that are being refused at once. The oldest is broken when there are more: it may never say anything."""
REFUSAL_TIMEOUT: Final = 2.0
"""Seconds in which a client must send its request and take the refusal."""
USER_TIMEOUT: Final = getattr(socket, "TCP_USER_TIMEOUT", None)  # RFC 5482, on Linux
USER_TIMEOUT_MS: Final = 30_000
"""Milliseconds for which sent bytes may stay unacknowledged, or not be taken. The kernel's default is 15 minutes."""
EXHAUSTED: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


class Admission:
    """Makes the protocols of connections. Those whose descriptor is `last` or higher are refused."""

    def __init__(self, make: Callable[[], asyncio.BaseProtocol], last: int) -> None:
        self.make = make
        self.last = last
        self.refusing: dict[asyncio.Transport, None] = {}
        self._throttle = Throttle()

    def __call__(self) -> asyncio.BaseProtocol:
        """Return the protocol of one connection."""
        return _Newcomer(self)

    def complain(self, sentence: str) -> None:
        """Log once a minute."""
        if self._throttle.allows(sentence):
            log.error("%s", sentence)

    def handle(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Handle an error that asyncio meets, as the loop's exception handler. Of accept(2) it has one a second."""
        exc = context.get("exception")
        if isinstance(exc, OSError) and exc.errno in EXHAUSTED and "socket" in context:
            self.complain("no connection can be accepted, as the process may open no more files (ulimit -n)")
        else:
            loop.default_exception_handler(context)


class _Newcomer(asyncio.Protocol):
    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._is_answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Hand the connection over, or wait for a request to refuse."""
        self._transport = cast("asyncio.Transport", transport)
        connection, admission = transport.get_extra_info("socket"), self._admission
        if connection.fileno() < admission.last:
            if USER_TIMEOUT:
                connection.setsockopt(socket.IPPROTO_TCP, USER_TIMEOUT, USER_TIMEOUT_MS)
            protocol = admission.make()
            self._transport.set_protocol(protocol)
            protocol.connection_made(transport)
            return
        admission.complain(
            "connections are refused, as the process has nearly as many files open as it may (ulimit -n)"
        )
        admission.refusing[self._transport] = None
        if len(admission.refusing) > REFUSING:
            oldest = next(iter(admission.refusing))
            del admission.refusing[oldest]
            oldest.abort()
        asyncio.get_running_loop().call_later(REFUSAL_TIMEOUT, self._transport.abort)

    def connection_lost(self, _: Exception | None) -> None:
        """Make room for another one."""
        self._admission.refusing.pop(self._transport, None)

    def data_received(self, _: bytes) -> None:
        """Refuse the request once it begins, as a client loses an answer to what it has not sent."""
        if not self._is_answered:
            self._is_answered = True
            self._transport.write(refusal())
            self._transport.write_eof()


def refusal() -> bytes:
    """Return the answer of a connection that is refused."""
    problem = BY_EXCEPTION[TooManyConnections]
    body = orjson.dumps(problem.document())
    head = (
        f"HTTP/1.1 {problem.status} {problem.title}\r\nContent-Type: {MEDIA_TYPE}\r\nContent-Length: {len(body)}\r\n"
        f"Retry-After: {problem.retry_after}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body
