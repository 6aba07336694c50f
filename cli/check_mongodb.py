"""The steps of `check` about MongoDB: reached, rights, index, streams, dead letters."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from cli.output import counted
from cli.result import Result, failed, ok, skipped
from cli.target import NoDatabase, with_database
from config.checks import DEAD_MAIL
from config.ids import IdType
from mongo.connection import connected
from mongo.errors import StoreError, persist
from mongo.overview import sample, topology
from mongo.start import version_of
from mongo.suppression import address_index
from settings import Settings
from store import Store

NEEDED: Final = ("find", "insert", "update", "remove", "createIndex", "listIndexes")
"""Actions on the collections (MongoDB manual, "Privilege Actions"); the role readWrite has them, and changeStream."""
DEADLINE: Final = 6.0
"""Seconds for each question."""
BSON_TYPES: Final[Mapping[IdType, str]] = {IdType.OBJECTID: "objectId", IdType.STRING: "string"}


async def check_mongodb(settings: Settings) -> Sequence[Result]:
    """Return the result of each step."""
    try:
        async with connected(with_database(settings).db_uri) as connection:
            store = Store(connection, settings)
            await store.clock.sync(DEADLINE)
            return [await _step(name, store, settings) for name in STEPS]
    except (NoDatabase, StoreError) as exc:
        return [failed("mongodb", f"{exc}"), *(skipped(name, "MongoDB is not reached.") for name in list(STEPS)[1:])]


async def _step(name: str, store: Store, settings: Settings) -> Result:
    try:
        return await STEPS[name](store, settings)
    except StoreError as exc:
        return failed(name, f"{exc}")


async def _version(store: Store, _: Settings) -> Result:
    version = await version_of(store.database, DEADLINE)
    return ok("mongodb", f"MongoDB {version}, {(await topology(store.database)).words}")


async def _rights(store: Store, settings: Settings) -> Result:
    """Judge the user's privileges, without writing anything."""
    who = await _authentication(store)
    if not who["authenticatedUsers"]:
        await store.users.find_one({}, {"_id": 1}, deadline=DEADLINE)
        return ok("rights", "MongoDB asks for no login")
    missing = {
        collection: [action for action in NEEDED if action not in _granted(store, who, collection)]
        for collection in (settings.users_collection, DEAD_MAIL)
    }
    lacking = [f"{', '.join(actions)} on {collection}" for collection, actions in missing.items() if actions]
    if lacking:
        advice = f"grant it the role readWrite on the database {store.database.name}"
        return failed("rights", f"The user of DB_URI may not {' and '.join(lacking)}: {advice}.")
    return ok("rights", f"the user of DB_URI may read and write the database {store.database.name}")


async def _authentication(store: Store) -> Mapping[str, Any]:
    question = {"connectionStatus": 1, "showPrivileges": True}
    status = await persist(lambda _: store.database.command(question), DEADLINE)
    information: Mapping[str, Any] = status["authInfo"]
    return information


def _granted(store: Store, who: Mapping[str, Any], collection: str) -> Iterable[str]:
    """Return the actions that the user may do on a collection (MongoDB manual, "Resource Document")."""
    granted: set[str] = set()
    for privilege in who.get("authenticatedUserPrivileges", []):
        resource = privilege["resource"]
        of_ours = resource.get("db") in {"", store.database.name} and resource.get("collection") in {"", collection}
        if of_ours or resource.get("anyResource"):
            granted.update(privilege["actions"])
    return granted


async def _index(store: Store, _: Settings) -> Result:
    due = store.outbox.due
    found = await persist(lambda _: store.users.collection.list_indexes().to_list(None), DEADLINE)
    serving = due.serving(found)
    if fault := due.fault(found):
        return failed("index", fault)
    if not serving:
        return ok("index", "not there yet; the service has it made when it runs")
    large = "" if serving.get("sparse") else f"; {serving['name']} is not, and so it is large: drop it"
    return ok("index", f"notifier.due, sparse{large}")


async def _suppress(store: Store, settings: Settings) -> Result:
    if index := await address_index(store.users):
        return ok("suppress", f"POST /suppress takes an address alone, by the index {index[0]}")
    return ok("suppress", f"POST /suppress needs user_id, as no index has {settings.email_field} first")


async def _streams(store: Store, settings: Settings) -> Result:
    if not (await topology(store.database)).streams:
        advice = "a replica set of one member has streams; until then, clients poll /list"
        return ok("streams", f"not possible, as MongoDB is a standalone server: {advice}")
    who = await _authentication(store)
    if who["authenticatedUsers"] and "changeStream" not in _granted(store, who, settings.users_collection):
        return failed(
            "streams", f"The user of DB_URI may not changeStream on {settings.users_collection}: grant readWrite."
        )
    return ok("streams", "possible")


async def _users(store: Store, settings: Settings) -> Result:
    """Look whether the settings fit the users."""
    total = await store.users.persist(lambda _: store.users.collection.estimated_document_count(), DEADLINE)
    if not (found := await sample(store.users)):
        return ok("users", f"none in the collection {settings.users_collection}")
    types, addresses, foreign = zip(*found, strict=True)
    expected, some = BSON_TYPES[settings.id_type], f"Of {counted(len(found), 'user')} looked at"
    if expected not in types:
        return failed("users", f"{some}, none has an _id of the type {expected}, but {types[0]}; check ID_TYPE.")
    if not any(addresses):
        return failed("users", f"{some}, none has an address at {settings.email_field}; check EMAIL_FIELD.")
    if any(foreign):
        words = "have something in `notifications` or `notifier` that is not the service's; rename it"
        return failed("users", f"{some}, {sum(foreign)} {words}.")
    fit = f"{types.count(expected)} have an _id of the type {expected}, and {sum(addresses)} have an address"
    return ok("users", f"{counted(total, 'user')} in all. {some}, {fit}.")


async def _dead_mail(store: Store, _: Settings) -> Result:
    count = await store.dead_mail.count()
    return ok(
        "dead_mail", f"{counted(count, 'dead letter')}; `notifier.py dead` shows why" if count else "no dead letters"
    )


STEPS: Final[Mapping[str, Callable[[Store, Settings], Awaitable[Result]]]] = {
    "mongodb": _version,
    "rights": _rights,
    "index": _index,
    "suppress": _suppress,
    "streams": _streams,
    "users": _users,
    "dead_mail": _dead_mail,
}
"""What is checked once MongoDB is reached, in this order."""
