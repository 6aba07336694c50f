"""The connection to MongoDB: everything the service relies on is set here, whatever the connection string says."""

import asyncio
import os
import re
import warnings
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl

# Motor reads this when it is imported. It starts threads only as it needs them, by default up to 5 a core, and each
# call that waits for a locked document holds one.
os.environ.setdefault("MOTOR_MAX_WORKERS", "128")

import pymongo
from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorCollection, AsyncIOMotorDatabase
from pymongo import AsyncMongoClient, ReadPreference, WriteConcern
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import ConfigurationError
from pymongo.read_concern import ReadConcern

from config import descriptors
from mongo.errors import INVALID, PATIENCE, Patience, unavailable, within

Client = AsyncIOMotorClient[dict[str, Any]]
Collection = AsyncIOMotorCollection[dict[str, Any]]
Database = AsyncIOMotorDatabase[dict[str, Any]]
SharedClient = AsyncMongoClient[dict[str, Any]]
SharedDatabase = AsyncDatabase[dict[str, Any]]
SharedCollection = AsyncCollection[dict[str, Any]]

DEFAULT_DATABASE: Final = "notifier"  # unless the connection string names another
OWN_DATABASES: Final = frozenset({"admin", "config", "local"})  # of MongoDB itself
CLOSE_TIMEOUT: Final = 0.5  # seconds in which a client must close
CANCEL_INTERVAL: Final = 0.1  # seconds until a task that has not ended is cancelled again
MAJORITY: Final = ReadConcern("majority")  # for reads that must not show what only a deposed primary has seen
OPTIONS: Final[dict[str, Any]] = {  # they take precedence over those of the connection string
    "appname": "notifier",
    # Acknowledged means on disk on a majority, and a list shows what was acknowledged before it.
    "w": "majority",
    "journal": True,
    "fsync": False,
    "readConcernLevel": "local",
    "readPreference": "primary",
    "readPreferenceTags": "",
    "maxStalenessSeconds": -1,
    # Values of other programs must not break the reading of a document, or of others in the same reply.
    "tz_aware": True,
    "datetime_conversion": "DATETIME_AUTO",
    "unicode_decode_error_handler": "replace",
    "uuidRepresentation": "unspecified",
    # The service repeats operations itself: that works on every kind of server and costs nothing while nothing fails.
    # The driver's retries would number writes in the sessions that lanes number; the adaptive ones send a number to a
    # standalone server too, which refuses it (PyMongo 4.20).
    "retryWrites": False,
    "max_adaptive_retries": 0,
}
POOL: Final[dict[str, Any]] = {"maxPoolSize": 64, "minPoolSize": 0}  # of the shared client
POOL_PART: Final = 8  # if few descriptors are allowed, each of the two pools may use an eighth of them


def uri_fault(uri: str) -> str | None:
    """Return what is wrong with a connection string, without repeating any of its values, or `None`."""
    scheme, _, rest = uri.partition("://")
    try:
        if scheme not in {"mongodb", "mongodb+srv"}:
            raise ConfigurationError  # the driver takes a text without a scheme for the name of a host
        with warnings.catch_warnings(action="error", category=UserWarning):  # of an option that it ignores
            warnings.filterwarnings("ignore", "You appear to be connected to")  # DocumentDB or Cosmos DB: no fault
            pymongo.MongoClient(uri, connect=False, **OPTIONS).close()  # asks no DNS yet
    except OSError as exc:
        return f"A file that the MongoDB connection string names cannot be read: {exc.strerror}."
    except (*INVALID, UserWarning) as exc:
        return _explain(rest, f"{exc}")
    database = rest.rpartition("@")[2].partition("?")[0].partition("/")[2]
    if database in OWN_DATABASES:
        return f"{database} is MongoDB's own database. Name that of your users; authSource names that of the account."
    return "The name of a database has no dot; the driver would leave out what follows." if "." in database else None


def _explain(rest: str, message: str) -> str:
    """Return why the driver refuses a connection string. Its message names the option, and may quote the password."""
    account = rest.rpartition("@")[0]
    if re.search(r"[@/?#\[\]]|:.*:|%(?![0-9A-Fa-f]{2})", account):
        return "In the user name and the password, escape @ as %40, : as %3A, / as %2F, ? as %3F, # as %23, % as %25."
    if account and not re.fullmatch("[^:]+:.+", account):
        return "The connection string has a user name without a password, or a password without a user name."
    options = parse_qsl(rest.partition("?")[2])
    named = {item.lower(): name for name, value in options for item in value.split(",")}
    named |= {name.lower(): name for name, _ in options}
    if words := [word for word in re.findall(r"\w+", message.lower()) if word in named]:
        return f"The option {named[words[0]]} is unknown, needs a package, or has a value that is not valid."
    if "certificate" in message:
        return "tlsCertificateKeyFile is not a certificate and its private key, or needs tlsCertificateKeyFilePassword."
    return "Not a valid MongoDB connection string (mongodb://[user:password@]host[:port]/database)."


class Connection(NamedTuple):
    """The database through both of PyMongo's asyncio interfaces."""

    database: Database  # Motor's, for the calls of a single request
    shared: SharedDatabase  # for calls that several requests share and the change stream; Motor would switch threads
    patience: Patience = PATIENCE


async def end(*tasks: asyncio.Task[None]) -> None:
    """Cancel tasks that use the shared client until they have ended.

    Before Python 3.12, `asyncio.wait_for` may ignore a cancellation (https://github.com/python/cpython/issues/86296),
    and PyMongo calls it while it looks for a server.
    """
    while pending := [task for task in tasks if not task.done()]:
        for task in pending:
            task.cancel()
        await asyncio.wait(pending, timeout=CANCEL_INTERVAL)


@asynccontextmanager
async def connected(uri: str, *, patience: Patience = PATIENCE) -> AsyncIterator[Connection]:
    """Yield the database. The first operation connects. Raises `Unavailable` if DNS does not resolve `mongodb+srv`."""
    limit = descriptors.limit()
    attempt, selection = round(patience.attempt * 1000), round(patience.shared_call * 750)
    try:
        few: dict[str, Any] = {"maxPoolSize": limit // POOL_PART, "minPoolSize": 0} if limit < descriptors.FEW else {}
        client: Client = AsyncIOMotorClient(uri, **OPTIONS | few, timeoutMS=attempt, serverSelectionTimeoutMS=attempt)
        shared: SharedClient = AsyncMongoClient(
            uri, **OPTIONS | POOL | few, timeoutMS=None, socketTimeoutMS=None, serverSelectionTimeoutMS=selection
        )
    except INVALID as exc:
        raise unavailable(exc) from exc
    # Set again, because the connection string may add to them, for example `wtimeoutMS`.
    concerns: Mapping[str, Any] = {
        "write_concern": WriteConcern(w="majority", j=True),
        "read_preference": ReadPreference.PRIMARY,
        "read_concern": ReadConcern("local"),
    }
    try:
        yield Connection(
            client.get_default_database(DEFAULT_DATABASE, **concerns),
            shared.get_default_database(DEFAULT_DATABASE, **concerns),
            patience,
        )
    finally:
        for _ in range(2):  # ending its sessions may hang; then a second time only closes its connections
            with suppress(TimeoutError):
                async with within(CLOSE_TIMEOUT):
                    await shared.close()
        with pymongo.timeout(CLOSE_TIMEOUT):  # without one, it would wait for a hanging server to end its sessions
            await asyncio.to_thread(client.close)
