"""What only the server needs of MongoDB: the wait at its start, a trial of what delivery does, and the upkeep."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from bson import ObjectId
from pymongo.errors import OperationFailure, PyMongoError

from mongo import backlog
from mongo.connection import Connection, Database, end
from mongo.dead_mail import DeadMail
from mongo.document import SIMPLE
from mongo.errors import PING_DEADLINE, UNAUTHORIZED, Misconfigured, StoreError, Unavailable
from mongo.grouping import Windows
from mongo.indexes import Index
from mongo.lanes import PROBE
from mongo.outbox import HAS_DUE_EMAIL, Outbox
from mongo.owed import new_element
from mongo.users import Clock, Users, persist

T = TypeVar("T")

log = logging.getLogger("notifier.mongo")

OLDEST_VERSION: Final = (5, 0)
ATTEMPT: Final = 4.0  # seconds of one attempt to connect
LOG_INTERVAL: Final = 5.0  # seconds between two log lines about the wait
UPKEEP_INTERVAL: Final = 60.0  # seconds between two checks; an index that delivery finds missing is made at once
UPKEEP_PAUSE: Final = 2.0  # seconds after a failure of MongoDB
HEAD_START: Final = 1.0  # seconds for which the start waits for the indexes: enough where there are few documents
SYNC_INTERVAL: Final = 10.0  # seconds between two readings of MongoDB's clock
SET_BACK: Final = 20.0  # seconds by which the clock may be set back, and e-mails be late, without a correction


async def patiently(open_: Callable[[], Awaitable[T]], timeout: float) -> T:  # noqa: ASYNC109 - it says why
    """Call `open_` until it succeeds. No attempt is cut short, or it would not tell the cause."""
    ends, logged = time.monotonic() + timeout, -LOG_INTERVAL
    while True:
        try:
            return await open_()
        except Misconfigured:
            raise
        except Unavailable as exc:
            now = time.monotonic()
            if now >= ends:
                raise Unavailable(f"{exc} The service waited for {timeout:g} s (START_TIMEOUT).") from exc
            if now - logged >= LOG_INTERVAL:
                logged = now
                log.warning("waiting for MongoDB, for %.0f s more at the longest: %s", ends - now, exc)


async def version_of(database: Database, deadline: float | None = None) -> str:
    """Return MongoDB's version. Raises `Misconfigured` if it is too old."""
    info = await persist(lambda _: database.command("buildInfo"), deadline)
    if tuple(info["versionArray"][:2]) < OLDEST_VERSION:
        raise Misconfigured(f"MongoDB {info['version']} is too old: the service needs 5.0 or later.")
    return f"{info['version']}"


async def must_suffice(users: Users, connection: Connection) -> None:
    """Try what delivery does, which servers that only look like MongoDB do not, or ignore. Raises `Misconfigured`."""
    version, nobody = await version_of(connection.database), {"_id": ObjectId()}
    change = users.collection.update_one
    probe = Users(connection, replace(users.settings, users_collection=PROBE))
    try:
        # It changes nothing, and needs the right to change users.
        await users.persist(lambda _: change(nobody, {"$unset": {"notifier": ""}}, collation=SIMPLE))
        await _must_keep(users)
        fault = await _try_delivery(probe)
    except Unavailable:
        raise
    except StoreError as exc:
        fault = f"{exc}"
    if fault:
        needed = "the service needs MongoDB 5.0 or later, and an ordinary collection of users."
        raise Misconfigured(f"MongoDB {version} does not do what delivery needs ({fault}): {needed}")


async def _must_keep(users: Users) -> None:
    """Raise `Misconfigured` if MongoDB deletes users, by an index, once a date of the service has passed."""
    indexes: Mapping[str, Any] = {}
    with suppress(Misconfigured):  # the user of DB_URI may not list them
        indexes = await users.persist(lambda _: users.collection.index_information(), PING_DEADLINE)
    for name, index in indexes.items():
        if "expireAfterSeconds" in index and index["key"][0][0].startswith(("notifier.", "notifications.")):
            raise Misconfigured(f"The index {name} makes MongoDB delete users (expireAfterSeconds): drop it.")


async def _try_delivery(probe: Users) -> str | None:
    """Owe and lease an e-mail; return a fault, if there is one."""
    outbox, id_, token = Outbox(probe, {"probe": "normal"}, Windows(probe, {})), ObjectId(), f"{ObjectId()}"
    email, key = new_element(f"{id_}", "probe", datetime.now(UTC), {}), {"_id": id_}
    notifier = {"outbox": [email], "due": email["next_at"]}

    async def owe(_: int) -> bool:
        try:
            await probe.collection.update_one(key, {"$set": {"notifier": notifier}}, upsert=True, collation=SIMPLE)
        except OperationFailure as exc:
            if exc.code == UNAUTHORIZED:
                return False
            raise
        return True

    if not await probe.persist(owe):
        return None
    due = await probe.find({**key, **HAS_DUE_EMAIL}, sort=["notifier.due"])
    await outbox.lease([id_], token, 1.0)
    leased = await probe.find({**key, "notifier.outbox.token": token})
    await probe.delete(key)
    return None if due and leased else "it has no effect"


class Upkeep:
    """Makes the indexes, `due` first, follows MongoDB's clock, and deletes old dead letters."""

    def __init__(self, clock: Clock, outbox: Outbox, dead_mail: DeadMail) -> None:
        self._clock = clock
        self._outbox = outbox
        self._dead_mail = dead_mail
        self._settings = outbox.users.settings
        letters = outbox.users.shared.database[dead_mail.letters.collection.name]
        self._indexes = (
            outbox.due,
            Index(outbox.users.shared, "notifier.suppression.at", sparse=True),
            Index(letters, "collection", "died_at"),
            Index(letters, "user_id"),
        )
        self._set_back: float | None = 0.0  # seconds since the last correction, or `None`; 0 at the start: unknown
        self._looked = asyncio.Event()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self._outbox.due.is_missing = True
        tasks = [asyncio.create_task(run) for run in (self._run(), self._follow_clock())]
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(HEAD_START):
                    await self._looked.wait()
            yield
        finally:
            await end(*tasks)

    async def _run(self) -> None:
        while True:
            pause = UPKEEP_INTERVAL
            try:
                for index in self._indexes:
                    await index.make()
                self._looked.set()
                await self.correct()
                if self._settings.dead_mail_days is not None:
                    await self._dead_mail.expire(self._settings.dead_mail_days)
            except (StoreError, PyMongoError, TimeoutError):
                log.debug("MongoDB fails; its indexes are checked again soon")
                pause = UPKEEP_PAUSE
            except Exception:
                log.exception("unexpected error: indexes are not checked")
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._outbox.due.lost.wait()

    async def _follow_clock(self) -> None:
        while True:
            with suppress(StoreError):  # the log has the reason from the next claim
                await self.read_clock()
            await asyncio.sleep(SYNC_INTERVAL)

    async def read_clock(self) -> None:
        if (seconds := await self._clock.sync()) > SET_BACK:
            log.warning("MongoDB's clock was set back by %.0f s, so e-mails that wait are due now", seconds)
            self._set_back = seconds + (self._set_back or 0.0)
            self._outbox.due.lost.set()

    async def correct(self) -> None:
        """Correct the due times once after each setback of the clock, and once after the start."""
        if (seconds := self._set_back) is None or self._outbox.due.is_missing:
            return
        try:
            await backlog.set_back(self._outbox, seconds)
        except Unavailable:
            raise
        except StoreError as exc:  # because of a single document
            log.warning("some e-mails may be late, as MongoDB does not let them be changed: %s", exc)
        self._set_back = (self._set_back or 0.0) - seconds or None
