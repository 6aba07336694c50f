"""The command `check`: the configuration, MongoDB and the mail server, step by step, as the service would use them."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from cli.check_mail import Result, StepFailed, check_mail
from cli.environment import read_settings
from cli.output import counted, say
from cli.variables import SettingsError
from config.address import is_address
from config.checks import DEAD_MAIL, value_at
from config.ids import IdType
from mongo.connection import Database, connected
from mongo.errors import StoreError
from mongo.serving import version_of
from mongo.suppression import address_index
from mongo.users import REFUSING, Users, foreign_fields, persist
from ops.local import NoDatabase, with_database
from settings import Settings
from store import Store

LOCAL: Final = "a local run, as nothing is configured; set DB_URI, EMAIL and SMTP_HOST for any other"
STANDALONE: Final = (
    "not possible, as MongoDB is a standalone server: a replica set of one member has streams; until then, clients "
    "poll /list"
)
FOREIGN: Final = "have something in `notifications` or `notifier` that is not the service's; rename it"
NEEDED: Final = ("find", "insert", "update", "remove", "createIndex", "listIndexes")
"""Actions on the collections (MongoDB manual, "Privilege Actions"). The role readWrite has them, and changeStream."""
DEADLINE: Final = 6.0
"""Seconds for each question."""
SAMPLE: Final = 1000
"""Users in a sample."""
SAMPLE_DEADLINE: Final = 60.0
"""Seconds for the query that takes it."""
BSON_TYPES: Final[Mapping[IdType, str]] = {IdType.OBJECTID: "objectId", IdType.STRING: "string"}


def run_check(options: argparse.Namespace) -> int:
    """Check, and print a line for each step; return 0, 1 if a step failed, or 2 for a wrong configuration."""
    try:
        settings, warnings = read_settings()
        results = asyncio.run(_check(settings, warnings, options.to))
        code = int(any(result.state == "failed" for result in results))
    except SettingsError as exc:
        faults = [f"{name}: {text}" for name, texts in sorted(exc.faults.items()) for text in texts]
        results, code = [Result("failed", "configuration", fault) for fault in faults], 2
    if options.json:
        say(json.dumps({"ok": not code, "checks": [result._asdict() for result in results]}))
        return code
    for state, step, detail in results:
        say(f"{state:9}{step:15}{' '.join(detail.split())}")
    return code


async def _check(settings: Settings, warnings: Sequence[str], to: str | None) -> Sequence[Result]:
    openness = [settings.openness] if settings.openness else []
    detail = "; ".join([LOCAL if settings.local else "valid", *warnings, *openness])
    mongodb, mail = await asyncio.gather(_check_mongodb(settings), check_mail(settings, to))
    return [Result("ok", "configuration", detail), *mongodb, *mail]


async def _check_mongodb(settings: Settings) -> Sequence[Result]:
    """Ask MongoDB each of `STEPS`. Nothing is written."""
    try:
        async with connected(with_database(settings).db_uri) as connection:
            store = Store(connection, settings)
            await store.clock.sync(DEADLINE)
            return [await _result(step, store, settings) for step in STEPS]
    except (NoDatabase, StoreError) as exc:
        first, *others = STEPS
        skipped = [Result("skipped", step, "MongoDB is not reached.") for step in others]
        return [Result("failed", first, f"{exc}"), *skipped]


async def _result(step: str, store: Store, settings: Settings) -> Result:
    try:
        return Result("ok", step, await STEPS[step](store, settings))
    except (StepFailed, StoreError) as exc:
        return Result("failed", step, f"{exc}")


async def _version(store: Store, _: Settings) -> str:
    topology, _has_streams = await _topology(store.database)
    return f"MongoDB {await version_of(store.database, DEADLINE)}, {topology}"


async def _topology(database: Database) -> tuple[str, bool]:
    """Return what kind of MongoDB this is, in words, and whether it has change streams."""
    hello = await persist(lambda _: database.command("hello"), DEADLINE)
    if hello.get("msg") == "isdbgrid":
        return "a sharded cluster", True
    if "setName" in hello:
        members = len(hello.get("hosts", [])) + len(hello.get("passives", []))
        return f"a replica set with {counted(members, 'member')}", True
    return "a standalone server", False


async def _rights(store: Store, settings: Settings) -> str:
    """Judge the user's privileges, without writing anything."""
    lacking = await _lacking(store, NEEDED, settings.users_collection, DEAD_MAIL)
    if lacking is None:
        await store.users.find_one({}, {"_id": 1}, deadline=DEADLINE)
        return "MongoDB asks for no login"
    if lacking:
        advice = f"grant it the role readWrite on the database {store.database.name}"
        raise StepFailed(f"The user of DB_URI may not {' and '.join(lacking)}: {advice}.")
    return f"the user of DB_URI may read and write the database {store.database.name}"


async def _lacking(store: Store, needed: Sequence[str], *collections: str) -> Sequence[str] | None:
    """Return what the user of `DB_URI` may not do, by collection; `None` if MongoDB asks for no login.

    The shapes are those of the MongoDB manual, "connectionStatus" and "Resource Document".
    """
    question = {"connectionStatus": 1, "showPrivileges": True}
    who: Mapping[str, Any] = (await persist(lambda _: store.database.command(question), DEADLINE))["authInfo"]
    lacking = []
    for collection in collections:
        allowed: set[str] = set()
        for privilege in who.get("authenticatedUserPrivileges", ()):
            resource, databases = privilege["resource"], {"", store.database.name}
            is_here = resource.get("db") in databases and resource.get("collection") in {"", collection}
            allowed |= set(privilege["actions"]) if is_here or resource.get("anyResource") else set()
        if missing := [action for action in needed if action not in allowed]:
            lacking.append(f"{', '.join(missing)} on {collection}")
    return lacking if who["authenticatedUsers"] else None


async def _index(store: Store, _: Settings) -> str:
    due = store.outbox.due
    indexes = await persist(lambda _: store.users.collection.list_indexes().to_list(None), DEADLINE)
    if fault := due.fault(indexes):
        raise StepFailed(fault)
    if not (serving := due.serving(indexes)):
        return "not there yet; the service makes it when it runs"
    large = "" if serving.get("sparse") else f"; {serving['name']} is not, and so it is large: drop it"
    return f"notifier.due, sparse{large}"


async def _suppress(store: Store, settings: Settings) -> str:
    if index := await address_index(store.users):
        return f"POST /suppress takes an address alone, by the index {index[0]}"
    return f"POST /suppress needs user_id, as no index has {settings.email_field} first"


async def _streams(store: Store, settings: Settings) -> str:
    _words, has_streams = await _topology(store.database)
    if not has_streams:
        return STANDALONE
    if lacking := await _lacking(store, ["changeStream"], settings.users_collection):
        raise StepFailed(f"The user of DB_URI may not {lacking[0]}: grant readWrite.")
    return "possible"


async def _users(store: Store, settings: Settings) -> str:
    """Look whether the settings fit the users."""
    total = await store.users.persist(lambda _: store.users.collection.estimated_document_count(), DEADLINE)
    if not (users := await _sample(store.users)):
        return f"none in the collection {settings.users_collection}"
    types, addresses, foreign = zip(*users, strict=True)
    expected, some = BSON_TYPES[settings.id_type], f"Of {counted(len(users), 'user')} looked at"
    if expected not in types:
        raise StepFailed(f"{some}, none has an _id of the type {expected}, but {types[0]}; check ID_TYPE.")
    if not any(addresses):
        raise StepFailed(f"{some}, none has an address at {settings.email_field}; check EMAIL_FIELD.")
    if any(foreign):
        raise StepFailed(f"{some}, {sum(foreign)} {FOREIGN}.")
    fit = f"{types.count(expected)} have an _id of the type {expected}, and {sum(addresses)} have an address"
    return f"{counted(total, 'user')} in all. {some}, {fit}."


async def _sample(users: Users) -> Sequence[tuple[str, bool, bool]]:
    """Return for each user in a sample: the type of `_id`, whether there is an address, whether a field is foreign."""
    path = users.settings.email_field
    top = path.partition(".")[0]
    read = {"_id": {"$type": "$_id"}, "address": f"${top}", **REFUSING}
    rows = await users.aggregate([{"$sample": {"size": SAMPLE}}, {"$project": read}], SAMPLE_DEADLINE)
    addresses = [value_at({top: row.get("address")}, path) for row in rows]
    return [(row["_id"], is_address(at), bool(foreign_fields(row))) for row, at in zip(rows, addresses, strict=True)]


async def _dead_mail(store: Store, _: Settings) -> str:
    count = await store.dead_mail.count()
    return f"{counted(count, 'dead letter')}; `notifier.py dead` shows why" if count else "no dead letters"


STEPS: Final[Mapping[str, Callable[[Store, Settings], Awaitable[str]]]] = {
    "mongodb": _version,
    "rights": _rights,
    "index": _index,
    "suppress": _suppress,
    "streams": _streams,
    "users": _users,
    "dead_mail": _dead_mail,
}
"""The questions to MongoDB. Each returns what to say of its step, or raises `StepFailed` or `StoreError`."""
