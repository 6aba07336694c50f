"""The start: waiting for MongoDB, so that services may start in any order, and a trial of what delivery needs."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final, TypeVar

from bson import ObjectId
from pymongo.errors import OperationFailure

from mongo.connection import Connection, Database
from mongo.document import SIMPLE
from mongo.errors import PING_DEADLINE, UNAUTHORIZED, Misconfigured, StoreError, Unavailable, persist
from mongo.grouping import Windows
from mongo.lanes import PROBE
from mongo.outbox import HAS_DUE_EMAIL, Outbox
from mongo.owed import new_element
from mongo.users import Users

T = TypeVar("T")

log = logging.getLogger("notifier.mongo")

OLDEST_VERSION: Final = (5, 0)
ATTEMPT: Final = 4.0
"""Seconds of one attempt to connect."""
LOG_INTERVAL: Final = 5.0
"""Seconds between two log lines about the wait."""


async def patiently(open_: Callable[[float], Awaitable[T]], timeout: float) -> T:  # noqa: ASYNC109 - it says why
    """Call `open_` until it succeeds, each time with the seconds it may take; return its result.

    After `timeout` seconds, raises `Unavailable` with the cause that lasted longest, because the last attempt may have
    been too short to find one. Raises `Misconfigured` and other errors at once.
    """
    ends, logged = time.monotonic() + timeout, -LOG_INTERVAL
    held: Counter[str] = Counter()
    while True:
        began = time.monotonic()
        try:
            return await open_(min(ATTEMPT, max(ends - began, 0.1)))
        except Unavailable as exc:
            if isinstance(exc, Misconfigured):
                raise
            now = time.monotonic()
            held[f"{exc}"] += round(1000 * (now - began))
            if now >= ends:
                ((cause, _),) = held.most_common(1)
                raise Unavailable(f"{cause} The service waited for {timeout:g} s (START_TIMEOUT).") from exc
            if now - logged >= LOG_INTERVAL:
                logged = now
                log.warning("waiting for MongoDB, for %.0f s more at the longest: %s", ends - now, exc)


async def version_of(database: Database, deadline: float | None = None) -> str:
    """Return MongoDB's version. Raises `Misconfigured` if it is too old, and `Unavailable`."""
    info = await persist(lambda _: database.command("buildInfo"), deadline)
    if tuple(info["versionArray"][:2]) < OLDEST_VERSION:
        raise Misconfigured(f"MongoDB {info['version']} is too old: the service needs 5.0 or later.")
    return f"{info['version']}"


async def _deleting(users: Users) -> str | None:
    """Return the name of an index by which MongoDB deletes users once a date of the service has passed."""
    with suppress(Misconfigured):  # the user of DB_URI may not list them
        indexes = await users.persist(lambda _: users.collection.index_information(), PING_DEADLINE)
        for name, index in indexes.items():
            field, _ = index["key"][0]
            if "expireAfterSeconds" in index and field.startswith(("notifier.", "notifications.")):
                return f"{name}"
    return None


async def must_suffice(users: Users, connection: Connection) -> None:
    """Try what delivery does on a document made for this. Raises `Misconfigured`.

    Servers that only look like MongoDB lack collations or pipeline updates, or ignore them. A user of `DB_URI` without
    the right to write that document skips the trial.
    """
    version, nobody = await version_of(connection.database), {"_id": ObjectId()}
    change = users.collection.update_one
    probe = Users(connection, replace(users.settings, users_collection=PROBE), users.patience)
    try:
        # It changes nothing, and needs the right to change users.
        await users.persist(lambda _: change(nobody, {"$unset": {"notifier": ""}}, collation=SIMPLE))
        if index := await _deleting(users):
            raise Misconfigured(f"The index {index} makes MongoDB delete users (expireAfterSeconds): drop it.")
        fault = await _try_delivery(probe)
    except Unavailable:
        raise
    except StoreError as exc:
        fault = f"{exc}"
    if fault:
        needed = "the service needs MongoDB 5.0 or later, and an ordinary collection of users."
        raise Misconfigured(f"MongoDB {version} does not do what delivery needs ({fault}): {needed}")


async def _try_delivery(probe: Users) -> str | None:
    outbox, id_, token = Outbox(probe, {"probe": "normal"}, Windows(probe, {})), ObjectId(), f"{ObjectId()}"
    email = new_element(f"{id_}", "probe", datetime.now(UTC), {}, {})
    owed = {"$set": {"notifier": {"outbox": [email], "due": email["next_at"]}}}
    key = {"_id": id_}

    async def owe(_: int) -> bool:
        try:
            await probe.collection.update_one(key, owed, upsert=True, collation=SIMPLE)
        except OperationFailure as exc:
            if exc.code == UNAUTHORIZED:
                return False
            raise
        return True

    if not await probe.persist(owe):
        return None
    due = await probe.find({**key, **HAS_DUE_EMAIL}, sort="notifier.due")
    await outbox.lease([id_], token, 1.0)
    leased = await probe.find({**key, "notifier.outbox.token": token})
    await probe.delete(key)
    return None if due and leased else "it has no effect"
