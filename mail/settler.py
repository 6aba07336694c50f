"""What was sent is settled together: the e-mails of some milliseconds in one update."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Final

from mail.lease import Lease, Leases
from mail.replies import Outcome
from mail.settlement import Settlements
from mail.verdicts import DONE

PAUSE: Final = 0.005
"""Seconds for which what was sent waits for more. After a crash it is sent again."""
UNSETTLED: Final = 14
"""E-mails sent and not settled, per connection, before no other is begun. They are what a crash sends again."""


class Settler:
    """Settles the e-mails of all workers. `limit` is how many may be sent and unsettled before `has_room` is false.

    `settled` is called when there is room again.
    """

    def __init__(self, settlements: Settlements, leases: Leases, limit: int, settled: Callable[[], None]) -> None:
        self._settlements = settlements
        self._leases = leases
        self._limit = limit
        self._settled = settled
        self._waiting: list[tuple[Lease, Outcome]] = []
        self._in_flight = 0
        self._together: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def has_room(self) -> bool:
        """Whether another e-mail may be sent."""
        return len(self._waiting) + self._in_flight < self._limit

    def put(self, lease: Lease, outcome: Outcome) -> None:
        """Settle an e-mail soon. Its lease is extended until then."""
        if outcome.verdict not in DONE or lease.email.suppression:
            self._start(self._settle(lease, outcome))
            return
        self._waiting.append((lease, outcome))
        if self._together is None or self._together.done():
            self._together = self._start(self._settle_together())

    def _start(self, settlement: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(settlement)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _settle(self, lease: Lease, outcome: Outcome) -> None:
        try:
            await self._settlements.settle(lease, outcome)
        finally:
            self._leases.discard(lease)

    async def _settle_together(self) -> None:
        while self._waiting:
            await asyncio.sleep(PAUSE)
            batch, self._waiting = self._waiting, []
            self._in_flight = len(batch)
            try:
                await self._settlements.settle_together(batch)
            finally:
                self._in_flight = 0
                for lease, _ in batch:
                    self._leases.discard(lease)
                self._settled()

    async def settled(self) -> None:
        """Wait until what has been put until now is settled."""
        if tasks := set(self._tasks):
            await asyncio.wait(tasks)

    async def finish(self) -> None:
        """Wait until all is settled. If this is cancelled, give up."""
        try:
            while self._tasks:
                await asyncio.wait(self._tasks)
        finally:
            for task in self._tasks:
                task.cancel()
