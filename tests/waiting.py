"""Waiting for what the service does in the background: a check is repeated until it raises nothing."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable

from pymongo.errors import PyMongoError

PAUSE = 0.02
"""Seconds between two checks."""


def eventually(check: Callable[[], object], timeout: float = 15.0) -> None:
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


async def eventually_async(
    check: Callable[[], Awaitable[object] | object],
    timeout: float = 15.0,  # noqa: ASYNC109 - the last check is to raise, not to be cancelled
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
