"""What MongoDB's errors mean, and how long an operation is repeated before one of them is final."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final, TypeVar

from pymongo.errors import (
    ConfigurationError,
    ConnectionFailure,
    DocumentTooLarge,
    DuplicateKeyError,
    ExecutionTimeout,
    OperationFailure,
    PyMongoError,
    WriteConcernError,
    WriteError,
)

from mongo.batcher import QueueFull

T = TypeVar("T")

DEADLINE: Final = 10.0
"""Seconds for which an operation is repeated before it is `Unavailable`."""
PING_DEADLINE: Final = 2.0
"""The same, in seconds, for a read whose answer is worthless when it is late."""
RETRY_PAUSE: Final = (0.05, 0.25)
"""Shortest and longest pause, in seconds, between two attempts."""
DUPLICATE_KEY: Final = 11000
ACCESS_CODES: Final = frozenset({13, 18})
"""Unauthorized and AuthenticationFailed. They are mended at MongoDB, without a restart of the service."""
RETRYABLE_CODES: Final = frozenset(
    {6, 7, 50, 89, 90, 91, 133, 134, 189, 262, 358, 365, 388, 402, 407, 453, 462}
    | {9001, 10107, 11600, 11602, 13435, 13436, 91331}
)
"""Codes of the Retryable Writes specification, and those that MongoDB's error_codes.yml puts into RetriableError.

A server that steps down or is overloaded uses them, in write errors too."""


class StoreError(Exception):
    """Base of all errors that MongoDB or a user's document causes."""


class Unavailable(StoreError):
    """MongoDB could not be reached or did not confirm in time. The operation may still take effect."""


class Busy(Unavailable):
    """Too many requests wait for MongoDB. This one may still take effect, unless it was its first attempt."""


class OutboxFull(Unavailable):
    """The user is owed as many e-mails as the outbox holds. Nothing was written."""


class KeyReused(StoreError):
    """The idempotency key was used with another request before. Nothing was written."""


class Conflict(StoreError):
    """The users' collection or the user's document does not admit the write. Nothing was written."""


class TooLarge(StoreError):
    """The user's document would exceed MongoDB's limit of 16 MiB. Nothing was written."""


class UnknownError(StoreError):
    """MongoDB refused for a reason that this module does not know."""


class Changed(StoreError):
    """The document changed between two reads of one attempt. The attempt is repeated."""


REFUSALS: Final[Mapping[int | None, Callable[[], StoreError]]] = {
    2: partial(Conflict, "a field of another type"),  # BadValue, such as a push to a field that is no array
    121: partial(Conflict, "a validator of the collection"),  # DocumentValidationFailure
    10334: TooLarge,  # BSONObjectTooLarge
    17419: TooLarge,  # the update would make one
    17420: TooLarge,
}
"""Final refusals, by MongoDB's error code."""


async def persist(attempt: Callable[[], Awaitable[T]], deadline: float | None = None) -> T:
    """Repeat an operation that MongoDB could not do or confirm, until the deadline in seconds (default `DEADLINE`).

    The operation must be safe to repeat after it took effect and its reply was lost.

    Raises a `StoreError`.
    """
    cause: Exception | None = None
    try:
        async with asyncio.timeout(DEADLINE if deadline is None else deadline):
            while True:
                try:
                    return await attempt()
                except Changed as exc:
                    cause = exc
                except PyMongoError as exc:
                    if not means_unavailable(exc):
                        raise
                    cause = exc
                await asyncio.sleep(random.uniform(*RETRY_PAUSE))
    except TimeoutError as exc:
        raise Unavailable from (cause or exc)
    except QueueFull as exc:
        raise Busy from exc
    except DocumentTooLarge as exc:
        raise TooLarge from exc
    except OperationFailure as exc:
        # The server's own sentence may hold an address, and would end in the log: only the code is kept.
        name = (exc.details or {}).get("codeName", "")
        refusal = REFUSALS.get(exc.code, partial(UnknownError, f"MongoDB's error {exc.code} {name}"))
        raise refusal() from None


def means_unavailable(exc: PyMongoError) -> bool:
    """Return whether MongoDB may be able to do later what it could not do or confirm now."""
    return (
        isinstance(exc, ConnectionFailure | ConfigurationError | ExecutionTimeout | WriteConcernError)
        or exc.has_error_label("RetryableError")
        or exc.has_error_label("SystemOverloadedError")
        or (isinstance(exc, OperationFailure) and exc.code in ACCESS_CODES | RETRYABLE_CODES)
    )


def write_error(error: Mapping[str, Any]) -> PyMongoError:
    """Turn an element of `writeErrors` into the exception that the driver raises for a single write."""
    kind = DuplicateKeyError if error["code"] == DUPLICATE_KEY else WriteError
    return kind(error["errmsg"], error["code"], error)
