"""Looks at users' documents: whether a lease is still held, and whether the user still wants the e-mail.

One look is for many e-mails: those that workers are about to send, and the next ones of the window.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Final

from mail.claimer import Window
from mail.lease import Lease
from mongo.errors import StoreError, Unavailable
from mongo.outbox import Outbox

log = logging.getLogger("notifier.delivery")

VALID: Final = 0.05
"""Seconds for which a look holds. MAIL follows no later, so an opt-out counts from the look on."""
AHEAD: Final = 40
"""E-mails of the window that a look includes at the most."""


class Looks:
    """Looks at one batch of e-mails at a time."""

    def __init__(self, outbox: Outbox, window: Window) -> None:
        self._outbox = outbox
        self._window = window
        self._asked: dict[Lease, asyncio.Future[None]] = {}
        self._wake = asyncio.Event()

    async def __call__(self, lease: Lease) -> None:
        """Find out whether the user wants an e-mail, and whether the lease is held."""
        future = self._asked.get(lease)
        if not future or future.done():  # whoever asked may have given up
            future = self._asked[lease] = asyncio.get_running_loop().create_future()
        self._wake.set()
        await future

    def prefetch(self) -> None:
        """Look soon if there is one among the next e-mails that has not been looked at."""
        if not all(lease.known for lease in self._window.next(self._ahead() // 2)):
            self._wake.set()

    def _ahead(self) -> int:
        """Return how many e-mails will be begun while a look holds."""
        return min(AHEAD, round(self._window.pace * VALID))

    async def run(self) -> None:
        """Look whenever it is needed, for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            asked, self._asked = self._asked, {}
            ahead = [lease for lease in self._window.next(self._ahead()) if not lease.known]
            try:
                await self._look([*asked, *ahead])
            finally:
                for future in asked.values():
                    if not future.done():
                        future.set_result(None)

    async def _look(self, leases: Sequence[Lease]) -> None:
        """Look at e-mails. What cannot be read is left alone, until the lease ends and it is claimed again."""
        if not leases:
            return
        try:
            found = await self._outbox.look([lease.email for lease in leases])
        except Exception as exc:  # noqa: BLE001 - whatever it is, nothing is known of the e-mails
            if len(leases) > 1 and not isinstance(exc, Unavailable):  # because of one of them
                for lease in leases:
                    await self._look([lease])
                return
            reason = f"{exc}" if isinstance(exc, StoreError) else type(exc).__name__
            log.warning("%d e-mails wait: their users' preferences cannot be read: %s", len(leases), reason)
            found = [None] * len(leases)
        for lease, look in zip(leases, found, strict=True):
            lease.known_until = time.monotonic() + VALID
            if look is None:
                lease.lose()
            else:
                lease.wanted, lease.told = lease.required or look.wanted, look.told
