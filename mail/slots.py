"""How many conversations may be under way at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Slot:
    """The right to one conversation."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self.given_up = False

    def give_up(self) -> None:
        """Let another conversation begin although this one only waits for its last reply, if not too many do."""
        self.given_up = self.given_up or self._slots.lend()


class Slots:
    """At most `limit` conversations, and as many again that gave up their slot."""

    def __init__(self, limit: int) -> None:
        self._free = asyncio.Semaphore(limit)
        self._lendable = limit

    @asynccontextmanager
    async def taken(self) -> AsyncIterator[Slot]:
        """Wait for a slot and hold it meanwhile."""
        await self._free.acquire()
        slot = Slot(self)
        try:
            yield slot
        finally:
            if slot.given_up:
                self._lendable += 1
            else:
                self._free.release()

    def lend(self) -> bool:
        """Free the slot of a conversation that goes on; return whether that was possible."""
        if not self._lendable:
            return False
        self._lendable -= 1
        self._free.release()
        return True
