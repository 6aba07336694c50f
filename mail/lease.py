"""The lease that a worker has on an e-mail."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from mongo.owed import OwedEmail


async def _always() -> bool:
    return True


@dataclass(eq=False, slots=True)
class Lease:
    """An e-mail that this worker holds, until `ends` (monotonic seconds) unless the lease is extended.

    The mailer calls `is_wanted` when it has a connection, which may be long in coming: the user may have opted out
    meanwhile. `None` means that the lease was lost.

    The mailer sets `sending` when the server may begin to accept the message, and calls `wait` when the reply to it
    does not come soon: then `waiting` is set, and `on_wait` called.
    """

    email: OwedEmail
    ends: float
    sending: bool = False
    waiting: bool = False
    on_wait: Callable[[], None] | None = None
    is_wanted: Callable[[], Awaitable[bool | None]] = _always

    @property
    def held(self) -> bool:
        """Whether the lease has not ended. Once it has, the e-mail may be another worker's."""
        return time.monotonic() < self.ends

    def wait(self) -> None:
        """Note that nothing is left to do but to wait for the reply to the message."""
        self.waiting = True
        if self.on_wait:
            self.on_wait()
