"""What MongoDB's errors mean, and how long an operation is repeated before one of them is final.

The names of the codes are those of src/mongo/base/error_codes.yml of MongoDB 8; hosted services where noted.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from dns.exception import DNSException
from pymongo import errors as driver

UNAUTHORIZED: Final = 13
REFUSED_US: Final[Mapping[int, str]] = {  # what is corrected at MongoDB or in `DB_URI`
    UNAUTHORIZED: "does not give the user of DB_URI the rights it needs: the role readWrite on the database",
    18: "refuses the user name or password of DB_URI; authSource may have to name another database",
    334: "does not offer the authMechanism of DB_URI",
    13297: "has a database whose name differs from that in DB_URI only in case, and admits no second one",
}
ATLAS: Final = 8000  # Atlas's only code for its own errors, such as that the storage quota is used up
ATLAS_REFUSED_US: Final[Mapping[str, int]] = {"bad auth": 18, "not allowed to do action": UNAUTHORIZED}
"""Parts of Atlas's messages, and the codes that MongoDB itself has for them."""
TOO_LARGE: Final = frozenset({10334, 17419, 17420})  # also of an update that would make such a document
WRONG_TYPE: Final = frozenset({2, 14, 28, 16837, 40400})
"""BadValue (a push into something other than an array), TypeMismatch, PathNotViable, an update operator on a value that
it cannot change, and `$mergeObjects` with something other than an object."""
DUPLICATE_KEY: Final = 11000
INDEX_CODES: Final = (67, 171, 201, 13026, 13027, 13068, 16755, 16766, 16804, 17261, 17262, 17280)
"""A team's index has no key for the document (expression_keys_private.cpp, fts_spec.cpp and btree_key_generator.cpp of
MongoDB 6.0)."""
CONFLICTS: Final[Mapping[int, str]] = {  # refusals by the team's collection, which last until somebody changes it
    DUPLICATE_KEY: "a unique index",
    121: "a validator of the collection",  # DocumentValidationFailure
    166: "a view in place of the collection",  # CommandNotSupportedOnView
    **dict.fromkeys(INDEX_CODES, "an index of the collection that has no key for the document"),
}
FIRST_PLACE: Final = 1000
"""Codes from here on name a place in MongoDB's source at which it refused a statement or a document. Nearly every lower
code names a state of the server, which may pass."""
STATES: Final = frozenset(
    {ATLAS, 9001, 10107, 11600, 11601, 11602, 13388, 13435, 13436, 14031, 16500, 46841, 50915, 56846, 57986, 91331}
)
"""Codes from `FIRST_PLACE` on that name a state all the same: of the network, a member of the replica set, a cluster or
the disk. 16500 is Cosmos DB's "Request rate is large"."""
FINAL: Final = frozenset(
    {
        *(1, 2, 4, 5, 8, 9, 10, 12, 14, 15, 16, 17, 20, 21, 22),  # InternalError … IllegalOperation … InvalidBSON
        *(26, 27, 28, 29, 30, 34, 40, 47, 52, 53, 54, 55, 56, 57, 59),  # NamespaceNotFound … CommandNotFound
        *(61, 65, 66, 67, 68, 72, 73, 85, 86, 96, 115),  # ShardKeyNotFound … CommandNotSupported
        *(121, 136, 166, 168, 171, 197, 201, 222, 224),  # DocumentValidationFailure … QueryFeatureNotAllowed
        *(238, 241, 260, 280, 286, 292, 303, 323),  # NotImplemented … ChangeStreamHistoryLost … APIStrictError
    }
)
"""Codes below `FIRST_PLACE` that waiting cannot change: the statement, the document or the stream is at fault. 303 is
Amazon DocumentDB's "Feature not supported"."""
NO_ANSWER: Final = "MongoDB does not answer in time."
INVALID: Final = (driver.ConfigurationError, ValueError, TypeError, LookupError)  # raised for a bad DB_URI
DEADLINE: Final = 10.0  # seconds for which an operation is repeated before it is `Unavailable`
PING_DEADLINE: Final = 2.0  # the same for a read whose answer is worthless when it is late
RETRY_PAUSE: Final = (0.05, 0.25)  # shortest and longest pause, in seconds, between two attempts
RETRYABLE: Final = ("RetryableWriteError", "RetryableError", "SystemOverloadedError", "TransientTransactionError")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long MongoDB may take, in seconds. A request that stalls a shared call delays the others only once."""

    operation: float = DEADLINE  # with all its attempts
    attempt: float = 4.0  # one call of the driver: if its reply never comes, time is left for another
    shared_call: float = 2.0  # a call that several requests share


PATIENCE: Final = Patience()


class StoreError(Exception):
    """Base of all errors that MongoDB or a user's document causes. All but `Unavailable` mean that nothing was written.

    Every operation may raise `Unavailable`, and every write `Conflict` and `TooLarge`: docstrings name only others.
    """


class Unavailable(StoreError):
    """MongoDB could not be reached or did not confirm in time. The operation may still take effect.

    The message is a sentence that tells an operator why. It may name hosts, and no user or password.
    """


class Busy(Unavailable):
    """Too many requests wait for MongoDB. This one may still take effect, unless it was its first attempt."""


class OutboxFull(Unavailable):
    """The user's outbox is full. Nothing was written."""


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
    """MongoDB cannot be used with this `DB_URI`, or with the rights of its user. Only a change of either helps."""


class UnknownError(StoreError):
    """MongoDB refused for another reason."""


class Changed(StoreError):
    """The document changed between two steps of one attempt, which is then repeated."""


class Incomplete(Exception):
    """A create failed for some of many users, for good. `not_owed`: others have it without its e-mail."""

    def __init__(self, failures: Mapping[int, StoreError], *, not_owed: bool = False) -> None:
        self.failures = failures
        self.not_owed = not_owed


class NotYetComplete(Incomplete):
    """A create for many users failed for some, of whom at least one may succeed later."""


@asynccontextmanager
async def within(seconds: float) -> AsyncIterator[None]:
    """Limit the time of a call of the shared client, as `asyncio.timeout` does.

    Cancelled twice while it looks for a server, PyMongo raises a `RuntimeError` of its lock, not a `CancelledError`.
    """
    async with asyncio.timeout(seconds):
        try:
            yield
        except RuntimeError as exc:
            if (task := asyncio.current_task()) and task.cancelling():
                raise asyncio.CancelledError from exc
            raise


def refusal(exc: driver.OperationFailure) -> StoreError:
    code = exc.code or 0
    if code in TOO_LARGE:
        return TooLarge()
    if code in WRONG_TYPE:
        return WrongType("a field of another type")
    if code in CONFLICTS:
        return Conflict(CONFLICTS[code])
    return UnknownError(f"MongoDB's {name_of(exc)}")


def means_unavailable(exc: driver.PyMongoError) -> bool:
    """Return whether the same operation may succeed later."""
    if any(exc.has_error_label(label) for label in RETRYABLE):
        return True
    if isinstance(exc, driver.ConnectionFailure | driver.ConfigurationError | driver.WriteConcernError):
        return True
    if not isinstance(exc, driver.OperationFailure) or exc.code is None:  # the driver's own refusal
        return False
    if exc.code >= FIRST_PLACE:
        return exc.code in STATES or exc.code in REFUSED_US
    return exc.code not in FINAL


def unavailable(exc: Exception) -> Unavailable:
    match exc:
        case driver.OperationFailure() if code := _refused_us(exc):
            return Misconfigured(f"MongoDB {REFUSED_US[code]}.")
        case driver.OperationFailure() | driver.NotPrimaryError():
            return Unavailable(f"MongoDB cannot do it now: {name_of(exc)}.")
        case driver.ConnectionFailure() | driver.ConfigurationError(__cause__=DNSException()):
            # The driver's words name the host and the cause. Its timeouts and what it knows of all servers follow.
            words = re.split(r" \(configured |, Timeout: ", f"{exc}")[0]
            return Unavailable(f"MongoDB cannot be reached: {words.rstrip('.')}.")
    if isinstance(exc, INVALID):  # without the driver's words, which may quote the password
        return Misconfigured("DB_URI has options that are not valid, contradict each other, or need what is not there.")
    return Unavailable(NO_ANSWER)


def name_of(exc: driver.OperationFailure | driver.NotPrimaryError) -> str:
    """Return the name and number of an error, without the server's own sentence, which may hold an address."""
    details: Mapping[str, Any] = exc.details if isinstance(exc.details, Mapping) else {}
    code = (exc.code if isinstance(exc, driver.OperationFailure) else details.get("code")) or 0
    return f"error {code} {details.get('codeName', '')}".rstrip()


def _refused_us(exc: driver.OperationFailure) -> int | None:
    if exc.code == ATLAS:
        return next((code for text, code in ATLAS_REFUSED_US.items() if text in f"{exc}"), None)
    return exc.code if exc.code in REFUSED_US else None
