"""What the service is compared with. Each role is a process of its own: `python -m bench.ceilings ROLE`.

- **bare** is what a careful engineer writes first: aiohttp, the same schemas, and one motor call per request with the
  same guarantees, but no logs, metrics or retries.
- **null** is aiohttp with the schemas and no database.
- **reconnect** claims and settles e-mails as the service does, but connects to the mail server anew for each.
- **sink** is a mail server that accepts everything. It costs little, because it shares the machine.
- **distant** is a way to the sink that takes `DELAY` seconds in each direction.

A further one, **mongod**, is no role: `bulk` runs the same operations straight from PyMongo, many per command.

The roles read `PORT`, `DB_URI` and a few more variables from the environment.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from aiohttp import web
from bson import ObjectId
from marshmallow import Schema, ValidationError
from mongo.marks import Selection
from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorCollection
from pymongo import UpdateOne, WriteConcern
from pymongo.collection import Collection as PyMongoCollection

from bench.load import DATA, TARGET, Workload
from bench.mail import EMAIL, distant, reconnect, sink
from config.ids import IdType
from mongo.creation import Create, Creator
from mongo.document import optional_fields
from mongo.owed import HAS_ROOM, new_element
from ops.kinds import SPECIFIED
from schemas import CreateSchema, ListQuery, ListSchema, SelectionSchema

SAFE: Final = WriteConcern(w="majority", j=True)
THREADS: Final = 4
"""Commands that `bulk` keeps in flight."""
SUCCESS: Final = {"success": True}
USERS: Final = web.AppKey("USERS", AsyncIOMotorCollection[dict[str, Any]])
LIMIT: Final = web.AppKey("LIMIT", int)

JSON = dict[str, Any]
Collection = PyMongoCollection[JSON]


# --- each operation as one call --------------------------------------------------------------------


def creation(new: Create, limit: int) -> tuple[JSON, JSON]:
    """Return the filter and the update of the upsert that records a notification, an e-mail owed, or both."""
    now, id_ = datetime.now(UTC), str(ObjectId())
    filter_: JSON = {"_id": ObjectId(new.user_id)}
    push: JSON = {}
    update: JSON = {"$setOnInsert": {"email": EMAIL}, "$push": push}
    optional = optional_fields({"target_id": new.target_id, "data": new.data})
    if new.kind.in_app:
        notification = {"id": id_, "timestamp": int(now.timestamp()), "is_new": True, "user_id": new.user_id}
        notification |= {"key": new.kind.name, **optional}
        push["notifications"] = {"$each": [notification], "$position": 0, "$slice": limit}
    if new.kind.email:
        filter_ |= HAS_ROOM
        push["outbox"] = email = new_element(id_, new.kind.name, now, optional, None)
        update["$min"] = {"mail_due": email["next_at"]}
    return filter_, update


def projection(query: ListQuery) -> JSON:
    """Return the projection that turns a user's document into a page."""
    unread = {"$filter": {"input": "$notifications", "cond": "$$this.is_new"}}
    page = {"$slice": ["$notifications", query.skip, query.limit]}
    return {"_id": 0, "elements": {"$size": "$notifications"}, "new": {"$size": unread}, "list": page}


def marking(query: Selection) -> tuple[JSON, JSON]:
    """Return the filter and the update that mark one notification as read."""
    filter_ = {"_id": ObjectId(query.user_id), "notifications.id": query.value}
    return filter_, {"$set": {"notifications.$.is_new": False}}


# --- bare and null ---------------------------------------------------------------------------------


def _load(schema: Schema, values: Mapping[str, Any]) -> Any:
    try:
        return schema.load(values)
    except ValidationError as exc:
        raise web.HTTPUnprocessableEntity(text=str(exc.messages)) from exc


async def bare_create(request: web.Request) -> web.Response:
    """Record a notification, owe an e-mail, or both."""
    new: Create = _load(CREATE, await request.json())
    filter_, update = creation(new, request.app[LIMIT])
    await request.app[USERS].find_one_and_update(filter_, update, {"_id": 1}, upsert=True)
    return web.json_response(SUCCESS, status=201)


async def bare_list(request: web.Request) -> web.Response:
    """Return a page of notifications and the counts."""
    query: ListQuery = _load(LIST, request.query)
    page = await request.app[USERS].find_one({"_id": ObjectId(query.user_id)}, projection(query))
    return web.json_response({"success": True, "data": {**(page or {}), "request": dict(request.query)}})


async def bare_read(request: web.Request) -> web.Response:
    """Mark a notification as read."""
    result = await request.app[USERS].update_one(*marking(_load(READ, request.query)))
    return web.json_response(SUCCESS, status=200 if result.matched_count else 404)


async def null_create(request: web.Request) -> web.Response:
    """Validate the request and do nothing."""
    _load(CREATE, await request.json())
    return web.json_response(SUCCESS, status=201)


async def null_list(request: web.Request) -> web.Response:
    """Return the same page to everyone."""
    query: ListQuery = _load(LIST, request.query)
    return web.json_response({"success": True, "data": {**PAGE, "request": dict(request.query), "skip": query.skip}})


async def null_read(request: web.Request) -> web.Response:
    """Validate the request and do nothing."""
    _load(READ, request.query)
    return web.json_response(SUCCESS)


CREATE: Final = CreateSchema(IdType.OBJECTID, SPECIFIED)
LIST: Final = ListSchema(IdType.OBJECTID)
READ: Final = SelectionSchema(IdType.OBJECTID, SPECIFIED)
ITEM: Final = {"id": "0" * 24, "timestamp": 1698138241, "is_new": True, "user_id": "0" * 24, "key": "new_post"}
PAGE: Final = {"elements": 25, "new": 25, "list": [{**ITEM, "target_id": "0" * 24, "data": {"post": "Hello"}}] * 10}


def serve(create: Any, list_: Any, read: Any) -> None:
    """Serve these handlers on `PORT`."""
    app = web.Application()
    app.add_routes([web.post("/create", create), web.get("/list", list_), web.post("/read", read)])
    client: AsyncIOMotorClient[JSON] = AsyncIOMotorClient(os.environ["DB_URI"])
    app[USERS] = client.get_default_database().with_options(write_concern=SAFE)["users"]
    app[LIMIT] = int(os.environ.get("NOTIFICATIONS_LIMIT", "100"))
    web.run_app(app, host="127.0.0.1", port=int(os.environ["PORT"]), access_log=None, print=None)


# --- mongod ----------------------------------------------------------------------------------------


def bulk(users: Collection, workload: Workload, batch: int, seconds: float) -> tuple[int, float]:
    """Run a workload of `OPERATIONS` straight on MongoDB, `batch` operations per command.

    Return how many operations it did, and in how many seconds.
    """
    users = users.with_options(write_concern=SAFE)
    started = time.perf_counter()

    def work() -> int:
        done = 0
        while time.perf_counter() < started + seconds:
            ids = [f"{random.randrange(workload.users):024x}" for _ in range(batch)]
            OPERATIONS[workload.name](users, ids, workload.notifications)
            done += batch
        return done

    with ThreadPoolExecutor(THREADS) as pool:
        done = sum(task.result() for task in [pool.submit(work) for _ in range(THREADS)])
    return done, time.perf_counter() - started


def _store(users: Collection, ids: Sequence[str], _: int) -> None:
    creates = [Create(id_, SPECIFIED["new_post"], TARGET, DATA) for id_ in ids]
    users.bulk_write([UpdateOne(*creation(new, 100), upsert=True) for new in creates], ordered=False)


def _write_as_the_service(users: Collection, ids: Sequence[str], key: str | None) -> None:
    creator = Creator(id_type=IdType.OBJECTID, limit=100, profile={"email": EMAIL}, creates_users=True)
    new, now = Create("", SPECIFIED["new_post"], TARGET, DATA, idempotency_key=key), datetime.now(UTC)
    writes = [creator.make(replace(new, user_id=id_), now, "hash").write.statement() for id_ in set(ids)]
    users.database.command("update", users.name, updates=writes, ordered=False, writeConcern=SAFE.document)


def _append(users: Collection, ids: Sequence[str], _: int) -> None:
    _write_as_the_service(users, ids, None)


def _many(users: Collection, ids: Sequence[str], _: int) -> None:
    _write_as_the_service(users, ids, f"{random.random()}")


def _list(users: Collection, ids: Sequence[str], _: int) -> None:
    list(users.find({"_id": {"$in": [ObjectId(id_) for id_ in ids]}}, projection(ListQuery("", 0, 10))))


def _read(users: Collection, ids: Sequence[str], notifications: int) -> None:
    queries = [Selection(id_, "id", f"{random.randrange(notifications):024x}") for id_ in ids]
    users.bulk_write([UpdateOne(*marking(query)) for query in queries], ordered=False)


OPERATIONS: Final = {"stored": _store, "appended": _append, "many": _many, "list": _list, "read": _read}


ROLES: Final[dict[str, Callable[[], None]]] = {
    "bare": lambda: serve(bare_create, bare_list, bare_read),
    "null": lambda: serve(null_create, null_list, null_read),
    "reconnect": lambda: asyncio.run(reconnect(int(os.environ["CONNECTIONS"]))),
    "sink": lambda: asyncio.run(sink()),
    "distant": lambda: asyncio.run(distant()),
}

if __name__ == "__main__":
    ROLES[sys.argv[1]]()
