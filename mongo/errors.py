"""What MongoDB's errors mean, and how long an operation is repeated before one of them is final."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import pymongo
from pymongo.errors import (
    ConfigurationError,
    ConnectionFailure,
    DocumentTooLarge,
    DuplicateKeyError,
    NotPrimaryError,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WriteConcernError,
    WriteError,
)

from mongo.batcher import QueueFull
from mongo.codes import (
    ATLAS,
    ATLAS_REFUSED_US,
    CONFLICTS,
    DUPLICATE_KEY,
    REFUSED_US,
    TOO_LARGE,
    WRONG_TYPE,
    is_final,
)
from mongo.reasons import reason_of

T = TypeVar("T")

DEADLINE: Final = 10.0
"""Seconds for which an operation is repeated before it is `Unavailable`."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long MongoDB may take, in seconds.

    `operation` bounds an operation with all its attempts, `attempt` one call of the driver, and leaves time for another
    when a reply never comes. `shared_call` bounds a call that several requests share: one that stalls it is repeated
    alone, so it delays the others only once.
    """

    operation: float = DEADLINE
    attempt: float = 4.0
    shared_call: float = 2.0


PATIENCE: Final = Patience()
PING_DEADLINE: Final = 2.0
"""The same, in seconds, for a read whose answer is worthless when it is late."""
RETRY_PAUSE: Final = (0.05, 0.25)
"""Shortest and longest pause, in seconds, between two attempts."""
RETRYABLE_LABELS: Final = (
    "RetryableWriteError",
    "RetryableError",
    "SystemOverloadedError",
    "TransientTransactionError",
)


class StoreError(Exception):
    """Base of all errors that MongoDB or a user's document causes."""


class Unavailable(StoreError):
    """MongoDB could not be reached or did not confirm in time. The operation may still take effect.

    The message is a sentence that tells an operator why, without any part of the connection string.
    """


class Busy(Unavailable):
    """Too many requests wait for MongoDB. This one may still take effect, unless it was its first attempt."""


class OutboxFull(Unavailable):
    """The user is owed as many e-mails as the outbox holds. Nothing was written."""


class EmailUnderWay(Unavailable):
    """An e-mail of the user is being sent. Nothing was written."""


class UnknownUser(StoreError):
    """The user has no document, and is not to be created. Nothing was written."""


class KeyReused(StoreError):
    """The idempotency key was used with another request before. Nothing was written."""


class Conflict(StoreError):
    """The users' collection or the user's document does not admit the write. Nothing was written."""


class WrongType(Conflict):
    """A field of the user's document has another type than the service's. Nothing was written."""


class TooLarge(StoreError):
    """The user's document would exceed MongoDB's limit of 16 MiB. Nothing was written."""


class Misconfigured(Unavailable):
    """MongoDB cannot be used as `DB_URI` and its user's rights are. Only a change of either helps."""


class UnknownError(StoreError):
    """MongoDB refused for a reason that this module does not know."""


class Changed(StoreError):
    """The document changed between two reads of one attempt. The attempt is repeated."""


async def persist(
    attempt: Callable[[int], Awaitable[T]], deadline: float | None = None, *, patience: Patience = PATIENCE
) -> T:
    """Repeat an operation that MongoDB could not do or confirm, until the deadline in seconds.

    `attempt` is given the number of the attempt, from 0 on. The operation must be safe to repeat after it took effect
    and its reply was lost.

    Raises a `StoreError`.
    """
    cause: Exception | None = None
    limit = patience.operation if deadline is None else deadline
    n, ends = -1, asyncio.get_running_loop().time() + limit
    try:
        while True:
            n += 1
            # Without a deadline of its own, the first attempt is bounded by the driver, or by the queue that it joins:
            # a timer for each request would cost as much as its log line.
            async with nullcontext() if n == 0 and deadline is None else asyncio.timeout_at(ends):
                try:
                    # The driver must give up first, as it knows why. Else its own timeout is short enough.
                    with nullcontext() if deadline is None else pymongo.timeout(0.8 * limit):
                        return await attempt(n)
                except (Changed, TimeoutError) as exc:
                    cause = exc
                except PyMongoError as exc:
                    if not means_unavailable(exc):
                        raise
                    # After a refusal, the driver takes the server for unknown for a while.
                    if not (isinstance(cause, OperationFailure) and isinstance(exc, ServerSelectionTimeoutError)):
                        cause = exc
                await asyncio.sleep(random.uniform(*RETRY_PAUSE))
    except TimeoutError as exc:
        raise unavailable(cause or exc) from (cause or exc)
    except QueueFull as exc:
        raise Busy from exc
    except DocumentTooLarge as exc:
        raise TooLarge from exc
    except OperationFailure as exc:
        # Without the server's own sentence: it may hold an address, and would end in the log.
        raise refusal(exc) from None


def refusal(exc: OperationFailure) -> StoreError:
    """Return what a final refusal of MongoDB means."""
    code = exc.code or 0
    if code in TOO_LARGE:
        return TooLarge()
    if code in WRONG_TYPE:
        return WrongType("a field of another type")
    if code in CONFLICTS:
        return Conflict(CONFLICTS[code])
    return UnknownError(f"MongoDB's {name_of(exc)}")


def means_unavailable(exc: PyMongoError) -> bool:
    """Return whether MongoDB may be able to do later what it could not do or confirm now."""
    if any(exc.has_error_label(label) for label in RETRYABLE_LABELS):
        return True
    if isinstance(exc, OperationFailure):
        return isinstance(exc, WriteConcernError) or exc.code in REFUSED_US or not is_final(exc.code)
    return isinstance(exc, ConnectionFailure | ConfigurationError)


def unavailable(exc: Exception) -> Unavailable:
    """Return the `Unavailable` that says why, in a sentence without any part of the connection string."""
    match exc:
        case OperationFailure() if code := _refused_us(exc):
            return Misconfigured(f"MongoDB {REFUSED_US[code]}.")
        case OperationFailure() | NotPrimaryError():
            return Unavailable(f"MongoDB cannot do it now: {name_of(exc)}.")
    reason = reason_of(exc)
    return (Misconfigured if reason.is_configuration else Unavailable)(reason.sentence)


def name_of(exc: OperationFailure | NotPrimaryError) -> str:
    """Return the name and number of an error, without the server's own sentence, which may hold an address."""
    details: Mapping[str, Any] = exc.details if isinstance(exc.details, Mapping) else {}
    code = (exc.code if isinstance(exc, OperationFailure) else details.get("code")) or 0
    return f"error {code} {details.get('codeName', '')}".rstrip()


def _refused_us(exc: OperationFailure) -> int | None:
    """Return the code of `REFUSED_US` that a refusal has, or means."""
    if exc.code == ATLAS:
        return next((code for text, code in ATLAS_REFUSED_US.items() if text in f"{exc}"), None)
    return exc.code if exc.code in REFUSED_US else None


def write_error(error: Mapping[str, Any]) -> PyMongoError:
    """Turn an element of `writeErrors` into the exception that the driver raises for a single write."""
    kind = DuplicateKeyError if error["code"] == DUPLICATE_KEY else WriteError
    return kind(error["errmsg"], error["code"], error)
