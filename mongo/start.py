"""Waiting for MongoDB at the start, so that nobody need start it first."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from pymongo.errors import OperationFailure

from mongo.clock import Clock
from mongo.connection import Connection
from mongo.errors import Misconfigured, Unavailable

T = TypeVar("T")

log = logging.getLogger("notifier.mongo")

ATTEMPT: Final = 4.0
"""Seconds of one attempt to connect."""
LOG_INTERVAL: Final = 5.0
"""Seconds between two lines that say what the service waits for."""


async def patiently(open_: Callable[[float], Awaitable[T]], timeout: float) -> T:  # noqa: ASYNC109 - it says why
    """Call `open_`, which is given the seconds it may take, until it succeeds; return what it returns.

    After `timeout` seconds, raises `Unavailable` with the cause that held longest: the last attempt may have had no
    time to find one. Raises at once a `Misconfigured` or another `StoreError`.
    """
    ends, logged = time.monotonic() + timeout, -LOG_INTERVAL
    held: Counter[str] = Counter()
    while True:
        began = time.monotonic()
        try:
            return await open_(min(ATTEMPT, max(ends - began, 0.1)))
        except Misconfigured:
            raise
        except Unavailable as exc:
            now = time.monotonic()
            held[f"{exc}"] += round(1000 * (now - began))
            if now >= ends:
                cause, _ = held.most_common(1)[0]
                raise Unavailable(f"{cause} The service waited for {timeout:g} s (START_TIMEOUT).") from exc
            if now - logged >= LOG_INTERVAL:
                logged = now
                log.warning("waiting for MongoDB, for %.0f s more at the longest: %s", ends - now, exc)


async def reach(clock: Clock, connection: Connection, deadline: float | None = None) -> None:
    """Connect, and read MongoDB's clock. Raises `Unavailable`, which says why it cannot."""
    try:
        await clock.sync(deadline)
    except Misconfigured:
        raise
    except Unavailable as exc:
        if isinstance(exc.__cause__, OperationFailure):  # it answers
            raise
        raise await connection.diagnosis() or exc from exc
