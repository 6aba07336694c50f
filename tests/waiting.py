"""Waiting for what the service does in the background: a check is repeated until it raises nothing."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from threading import Event, Thread

from pymongo.errors import PyMongoError

PAUSE = 0.02
"""Seconds between two checks."""
TICK = 0.01
"""Seconds between two ticks of a slow clock."""


def eventually(check: Callable[[], object], timeout: float = 30.0) -> None:
    """Wait until `check` passes. After `timeout` seconds, raise what it raises."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            check()
        except (AssertionError, PyMongoError, OSError):
            if time.monotonic() > deadline:
                raise
            time.sleep(PAUSE)
        else:
            return


@contextmanager
def slow_clock() -> Iterator[Callable[[], float]]:
    """Return a clock of the seconds since now, which runs slower the busier the machine is.

    It counts how often a thread wakes up that sleeps for 10 ms. On a busy machine it wakes up late.
    """
    clock = _SlowClock()
    clock.start()
    try:
        yield lambda: clock.ticks * TICK
    finally:
        clock.stopped.set()
        clock.join()


class _SlowClock(Thread):
    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ticks = 0
        self.stopped = Event()

    def run(self) -> None:
        """Count."""
        while not self.stopped.wait(TICK):
            self.ticks += 1


def assert_pause(times: Sequence[float], seconds: float) -> None:
    """Check that there was a pause of this many seconds: what is tried less and less often has settled down."""
    assert any(after - before >= seconds for before, after in pairwise(times))


async def eventually_async(
    check: Callable[[], Awaitable[object] | object],
    timeout: float = 30.0,  # noqa: ASYNC109 - the last check is to raise, not to be cancelled
) -> None:
    """Wait until `check`, a function or a coroutine function, passes. After `timeout` seconds, raise what it raises."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            outcome = check()
            if inspect.isawaitable(outcome):
                await outcome
        except AssertionError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(PAUSE)
        else:
            return
