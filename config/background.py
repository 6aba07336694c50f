"""Tasks that run beside others, and end with them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any


@asynccontextmanager
async def background(run: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run a coroutine meanwhile, and cancel it at the end."""
    task = asyncio.create_task(run)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
