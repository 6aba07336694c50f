"""Claims the e-mails that are next, a window at a time, and gives back those that nobody has begun."""

import asyncio
import logging
import math
import random
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from mail.lease import REFILL, Lease, Window
from mail.settlement import Settler
from mongo.errors import StoreError

log = logging.getLogger("notifier.delivery")

POLL: Final = 1.0  # seconds between two looks for e-mails that fell due or that another process owes
POLL_SPREAD: Final = (0.8, 1.2)  # factors between which the polls are spread, so that workers do not look all at once
CLAIM_PAUSE: Final = 0.02  # seconds to wait after a claim that found few; what is owed meanwhile shares the next
PROBE_INTERVAL: Final = 5.0  # seconds between two searches for an e-mail that would be a good probe
PROBES: Final = 8  # users whose e-mails are claimed, to choose the best of them as a probe


@dataclass(eq=False)
class Claimer:
    """Keeps a window filled. Set `owed` when there may be something to claim."""

    settler: Settler
    owed: asyncio.Event
    window: Window = field(default_factory=Window)
    stopped: bool = False
    _probed: float = -math.inf

    def stop(self) -> None:
        self.stopped = True
        self.owed.set()

    async def run(self) -> None:
        while not self.stopped:
            self.owed.clear()
            try:
                pause = await self._claim_if_needed()
            except Exception:
                log.exception("unexpected error: e-mails wait")
                pause = POLL
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self.owed.wait()
        await self._give_back()

    async def _claim_if_needed(self) -> float:
        """Claim e-mails if the window has room; return the seconds to wait unless something happens."""
        users, now = self.window.room(), time.monotonic()
        if line := self.settler.evidence.line:
            # A domain that accepted lately may be among those claimed, so it is looked for more often.
            wait = min(line.others.wait(now), max(line.proven.wait(now), self._probed + PROBE_INTERVAL - now))
            if wait > 0:
                await self._give_back()
                return wait
            users, self._probed = 0 if self.window else PROBES, now
        if not users:
            return REFILL
        claimed = await self._claim(users)
        if 0 < claimed < users:
            await asyncio.sleep(CLAIM_PAUSE)
        if claimed and self.window.low and not self.settler.evidence.line:
            self.owed.set()
        return POLL * random.uniform(*POLL_SPREAD)

    async def _claim(self, users: int) -> int:
        end = self.settler.leases.end()  # from before the request, so never later than MongoDB's
        try:
            emails = await self.settler.store.outbox.claim(users, self.settler.leases.seconds)
        except StoreError as exc:
            log.warning("no e-mails can be claimed: %s", exc)
            return 0
        now = time.monotonic()
        for email in emails:
            lease = Lease(self.settler.count(email, now), end)
            self.settler.leases.add(lease)
            if outcome := self.settler.without_attempt(lease.email, now):
                self.settler.put(lease, outcome)
            else:
                self.put(lease)
        self.settler.wake_workers()
        return len(emails)

    def put(self, lease: Lease, place: int | None = None) -> None:
        kind = self.settler.settings.kinds.get(lease.email.key)
        lease.known_until, lease.required = 0.0, bool(kind and kind.required)
        self.window.put(lease, urgent=bool(kind and kind.rank == "high"), place=place)

    async def _give_back(self) -> None:
        leases = self.window.clear()
        held = [lease.email for lease in leases if lease.held]
        try:
            if held:
                await self.settler.store.outbox.release(held)
        except StoreError as exc:
            log.warning("some e-mails could not be given back, so they wait until their leases end: %s", exc)
        finally:
            self.settler.leases.difference_update(leases)
