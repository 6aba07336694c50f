"""What the service needs of MongoDB, looked at once at the start, and by `check`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from bson import ObjectId
from pymongo.asynchronous.command_cursor import AsyncCommandCursor
from pymongo.errors import OperationFailure

from mongo.codes import REFUSED_US, is_final
from mongo.connection import Connection
from mongo.document import SIMPLE
from mongo.errors import Misconfigured, StoreError, Unavailable
from mongo.indexes import deleting
from mongo.lanes import PROBE
from mongo.outbox import HAS_DUE_EMAIL, Outbox
from mongo.owed import new_element
from mongo.users import Users
from mongo.waiting import Windows

T = TypeVar("T")

OLDEST_VERSION: Final = (5, 0)
NOT_ORDINARY: Final = {"view": "a view", "timeseries": "a time-series collection"}
"""Types of collections whose documents cannot be updated."""


async def must_suit(users: Users, deadline: float | None = None) -> str:
    """Return MongoDB's version. Raises `Misconfigured` if it, the database or the collection cannot be used.

    It only reads; what the user of `DB_URI` may not ask shows later. Raises `Unavailable`.
    """
    database, name = users.shared.database, users.shared.name
    info = await _ask(users, lambda: database.command("buildInfo"), deadline) or {}
    version = f"{info.get('version')}"
    if tuple(info.get("versionArray", OLDEST_VERSION)[:2]) < OLDEST_VERSION:
        raise Misconfigured(f"MongoDB {version} is too old: the service needs 5.0 or later.")
    for other in await _ask(users, database.client.list_database_names, deadline) or ():
        if other != database.name and other.lower() == database.name.lower():
            raise Misconfigured(f"MongoDB {REFUSED_US[13297]}.")
    for found in await _ask(users, lambda: _all(database.list_collections(filter={"name": name})), deadline) or ():
        if kind := NOT_ORDINARY.get(found["type"]):
            raise Misconfigured(f"USERS_COLLECTION: {name} is {kind}, whose documents cannot be updated.")
    if index := deleting(await _ask(users, lambda: _all(users.shared.list_indexes()), deadline) or ()):
        raise Misconfigured(f"The index {index} of {name} makes MongoDB delete users (expireAfterSeconds): drop it.")
    return version


async def _ask(users: Users, question: Callable[[], Awaitable[T]], deadline: float | None) -> T | None:
    """Return the answer, or `None` if the user may not ask, or the server does not know the question."""

    async def attempt(_: int) -> T | None:
        try:
            async with asyncio.timeout(users.patience.attempt):
                return await question()
        except OperationFailure as exc:
            if exc.code in REFUSED_US or is_final(exc.code):
                return None
            raise

    return await users.persist(attempt, deadline)


async def _all(cursor: Awaitable[AsyncCommandCursor[Any]]) -> list[Any]:
    return await (await cursor).to_list()


async def must_suffice(users: Users, connection: Connection) -> None:
    """Try on a document of its own what delivery does. Raises `Misconfigured` and `Unavailable`.

    Servers that only look like MongoDB lack collations or updates by pipelines, or take them without effect. Without
    the right to write to that document, nothing is known.
    """
    version, nobody = await must_suit(users), {"_id": ObjectId()}
    change = users.collection.update_one
    probe = Users(connection, PROBE, users.shape, patience=users.patience)
    try:
        # It changes nothing, and needs the right to change users.
        await users.persist(lambda _: change(nobody, {"$unset": {"notifier": ""}}, collation=SIMPLE))
        fault = await _try_delivery(probe)
    except Unavailable:
        raise
    except StoreError as exc:
        fault = f"{exc}"
    if fault:
        raise Misconfigured(
            f"MongoDB {version} does not do what delivery needs ({fault}): the service needs MongoDB 5.0 or later."
        )


async def _try_delivery(probe: Users) -> str | None:
    """Lease an e-mail and delete it; return what went wrong. Raises a `StoreError`."""
    outbox, id_, token = Outbox(probe, {"probe": "normal"}, Windows(probe, {}, 1)), ObjectId(), f"{ObjectId()}"
    email = new_element(f"{id_}", "probe", datetime.now(UTC), {}, {})
    owed = {"$set": {"notifier": {"outbox": [email], "due": email["next_at"]}}}
    key = {"_id": id_}

    async def owe(_: int) -> bool:
        try:
            await probe.collection.update_one(key, owed, upsert=True, collation=SIMPLE)
        except OperationFailure as exc:
            if exc.code in REFUSED_US:
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
