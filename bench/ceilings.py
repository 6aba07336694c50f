"""What the service is compared with. Each role is a process of its own: `python -m bench.ceilings ROLE`.

- **bare** is what a careful engineer writes first: aiohttp, schemas, and one motor call per request with the service's
  guarantees, but no logs, metrics or retries.
- **null** is aiohttp with the schemas and no database.
- **reconnect** claims, sends and removes e-mails as bare would, over a new connection for each.
- **mailer** sends e-mails over kept connections, without MongoDB.
- **sink** is a mail server that accepts everything. It costs little, because it shares the machine.
- **distant** is a way to the sink that takes `DELAY` seconds in each direction.

None of them imports the service's code. `bench.bulk` has a further ceiling, MongoDB itself.

The roles read `PORT`, `DB_URI` and a few more variables from the environment.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

from aiohttp import web
from bson import ObjectId
from marshmallow import Schema, ValidationError
from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorCollection

from bench.frozen.schemas import (
    JSON,
    Create,
    CreateSchema,
    IdType,
    ListQuery,
    ListSchema,
    SelectionSchema,
)
from bench.frozen.writes import SAFE, creation, marking, projection
from bench.mail import distant, reconnect, send, sink

SUCCESS: Final = {"success": True}
USERS: Final = web.AppKey("USERS", AsyncIOMotorCollection[dict[str, Any]])
LIMIT: Final = web.AppKey("LIMIT", int)


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


CREATE: Final = CreateSchema(IdType.OBJECTID)
LIST: Final = ListSchema(IdType.OBJECTID)
READ: Final = SelectionSchema(IdType.OBJECTID)
ITEM: Final = {"id": "0" * 24, "timestamp": 1698138241, "is_new": True, "user_id": "0" * 24, "key": "new_post"}
PAGE: Final = {"elements": 25, "new": 25, "list": [{**ITEM, "target_id": "0" * 24, "data": {"post": "Hello"}}] * 10}


def serve(create: Any, list_: Any, read: Any) -> None:
    """Serve these handlers on `PORT`."""
    app = web.Application()
    app.add_routes([web.post("/create", create), web.get("/list", list_), web.post("/read", read)])
    app[USERS] = _users()
    app[LIMIT] = int(os.environ.get("NOTIFICATIONS_LIMIT", "100"))
    web.run_app(app, host="127.0.0.1", port=int(os.environ["PORT"]), access_log=None, print=None)


def _users() -> AsyncIOMotorCollection[JSON]:
    client: AsyncIOMotorClient[JSON] = AsyncIOMotorClient(os.environ["DB_URI"], tz_aware=True)
    return client.get_default_database().with_options(write_concern=SAFE)["users"]


async def _reconnect() -> None:
    await reconnect(_users(), int(os.environ["CONNECTIONS"]))


ROLES: Final[dict[str, Callable[[], None]]] = {
    "bare": lambda: serve(bare_create, bare_list, bare_read),
    "null": lambda: serve(null_create, null_list, null_read),
    "reconnect": lambda: asyncio.run(_reconnect()),
    "mailer": lambda: asyncio.run(send(int(os.environ["EMAILS"]), int(os.environ["CONNECTIONS"]))),
    "sink": lambda: asyncio.run(sink()),
    "distant": lambda: asyncio.run(distant()),
}

if __name__ == "__main__":
    ROLES[sys.argv[1]]()
