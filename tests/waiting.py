"""Waiting for what the service does in the background."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from pymongo.errors import PyMongoError


def eventually(check: Callable[[], object], timeout: float = 15.0) -> None:
    """Repeat a check until it passes; after `timeout` seconds let it fail."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            check()
        except (AssertionError, PyMongoError, OSError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


async def eventually_async(check: Callable[[], Awaitable[object]], timeout: float = 15.0) -> None:  # noqa: ASYNC109
    """Repeat a check until it passes; after `timeout` seconds let it fail."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            await check()
        except AssertionError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.02)
        else:
            return
