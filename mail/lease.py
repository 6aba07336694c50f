"""The lease that a worker has on an e-mail."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from mongo.outbox import OwedEmail


def _nothing() -> None:
    """Do nothing."""


@dataclass(eq=False, slots=True)
class Lease:
    """An e-mail that this worker holds, until `ends` (monotonic seconds) unless the lease is extended.

    The mailer sets `sending` when the server may begin to accept the message, and calls `waits` when the reply to it
    does not come soon.
    """

    email: OwedEmail
    ends: float
    sending: bool = False
    waits: Callable[[], None] = field(default=_nothing)

    @property
    def held(self) -> bool:
        """Whether the lease has not ended. Once it has, the e-mail may be another worker's."""
        return time.monotonic() < self.ends
