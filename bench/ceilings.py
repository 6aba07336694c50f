"""What the service is measured against, each a process of its own: `python bench_ceilings.py ROLE`.

- **bare**: what a careful engineer writes first. aiohttp, the same schemas, one call of motor a request, with the same
  guarantees; no logs, no metrics, no retries.
- **null**: aiohttp and the schemas, and no database.
- **mongod**: the same operations straight from PyMongo, many in one command; here in the bench's own process, `bulk`.
- **letters**: e-mails claimed and settled as the service does, and a connection to the mail server for each.
- **sink**: a mail server that takes everything at little cost, since it shares the machine with what is measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import ssl
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.headerregistry import Address
from email.policy import SMTP as SMTP_POLICY
from pathlib import Path
from typing import Any, Final

from aiohttp import web
from aiosmtplib import SMTP
from bson import ObjectId
from marshmallow import Schema, ValidationError
from motor.motor_asyncio import AsyncIOMotorClient, AsyncIOMotorCollection
from pymongo import UpdateOne, WriteConcern
from pymongo.collection import Collection as PyMongoCollection

from bench.load import DATA, TARGET, Workload
from mail.templates import Content
from mailer import Letter, compose, sender_header
from mongo.outbox import Mail, Outbox
from schemas import Create, CreateSchema, Key, ListQuery, ListSchema, ReadQuery, ReadSchema
from settings import Settings, load_settings
from store import open_store

EMAIL: Final = "bench@example.com"
SAFE: Final = WriteConcern(w="majority", j=True)
THREADS: Final = 4
"""Commands that `bulk` has on their way at once."""
SUCCESS: Final = {"success": True}
USERS: Final = web.AppKey("USERS", AsyncIOMotorCollection[dict[str, Any]])
LIMIT: Final = web.AppKey("LIMIT", int)

JSON = dict[str, Any]
Collection = PyMongoCollection[JSON]


# --- the operations, as one call each --------------------------------------------------------------


def creation(new: Create, limit: int) -> tuple[JSON, JSON]:
    """Return the filter and the update of an upsert."""
    now, id_ = datetime.now(UTC), str(ObjectId())
    filter_: JSON = {"_id": ObjectId(new.user_id)}
    push: JSON = {}
    update: JSON = {"$setOnInsert": {"email": EMAIL}, "$push": push}
    about = {name: value for name, value in (("target_id", new.target_id), ("data", new.data)) if value is not None}
    if new.key.stored:
        item = {"id": id_, "timestamp": int(now.timestamp()), "is_new": True, "user_id": new.user_id}
        item |= {"key": new.key.value, **about}
        push["notifications"] = {"$each": [item], "$position": 0, "$slice": limit}
    if new.key.mailed:
        filter_["outbox.19"] = {"$exists": False}
        push["outbox"] = mail = owed_mail(id_, new.key.value, now, about)
        update["$min"] = {"mail_due": mail["next_at"]}
    return filter_, update


def projection(query: ListQuery) -> JSON:
    """Return the projection that makes a page."""
    unread = {"$filter": {"input": "$notifications", "cond": "$$this.is_new"}}
    page = {"$slice": ["$notifications", query.skip, query.limit]}
    return {"_id": 0, "elements": {"$size": "$notifications"}, "new": {"$size": unread}, "list": page}


def marking(query: ReadQuery) -> tuple[JSON, JSON]:
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
    """Record a notification, an owed e-mail, or both."""
    new: Create = _load(CREATE, await request.json())
    filter_, update = creation(new, request.app[LIMIT])
    await request.app[USERS].find_one_and_update(filter_, update, {"_id": 1}, upsert=True)
    return web.json_response(SUCCESS, status=201)


async def bare_list(request: web.Request) -> web.Response:
    """Return a page and the counts."""
    query: ListQuery = _load(LIST, request.query)
    page = await request.app[USERS].find_one({"_id": ObjectId(query.user_id)}, projection(query))
    return web.json_response({"success": True, "data": {**(page or {}), "request": dict(request.query)}})


async def bare_read(request: web.Request) -> web.Response:
    """Mark a notification as read."""
    result = await request.app[USERS].update_one(*marking(_load(READ, request.query)))
    return web.json_response(SUCCESS, status=200 if result.matched_count else 404)


async def null_create(request: web.Request) -> web.Response:
    """Validate, and forget."""
    _load(CREATE, await request.json())
    return web.json_response(SUCCESS, status=201)


async def null_list(request: web.Request) -> web.Response:
    """Return a page that is always the same."""
    query: ListQuery = _load(LIST, request.query)
    return web.json_response({"success": True, "data": {**PAGE, "request": dict(request.query), "skip": query.skip}})


async def null_read(request: web.Request) -> web.Response:
    """Validate, and forget."""
    _load(READ, request.query)
    return web.json_response(SUCCESS)


CREATE: Final = CreateSchema()
LIST: Final = ListSchema()
READ: Final = ReadSchema()
ITEM: Final = {"id": "0" * 24, "timestamp": 1698138241, "is_new": True, "user_id": "0" * 24, "key": "new_post"}
PAGE: Final = {"elements": 25, "new": 25, "list": [{**ITEM, "target_id": "0" * 24, "data": {"post": "Hello"}}] * 10}


def serve(create: Any, list_: Any, read: Any) -> None:
    """Serve these on `PORT`."""
    app = web.Application()
    app.add_routes([web.post("/create", create), web.get("/list", list_), web.post("/read", read)])
    client: AsyncIOMotorClient[JSON] = AsyncIOMotorClient(os.environ["DB_URI"])
    app[USERS] = client.get_default_database().with_options(write_concern=SAFE)["users"]
    app[LIMIT] = int(os.environ.get("NOTIFICATIONS_LIMIT", "100"))
    web.run_app(app, host="127.0.0.1", port=int(os.environ["PORT"]), access_log=None, print=None)


# --- mongod ----------------------------------------------------------------------------------------


def bulk(users: Collection, workload: Workload, batch: int, seconds: float) -> tuple[int, float]:
    """Return how many requests of "stored", "list" or "read" MongoDB itself did, and in how many seconds.

    `batch` of them are one command, and `THREADS` commands are on their way at once.
    """
    users = users.with_options(write_concern=SAFE)
    started = time.perf_counter()

    def work() -> int:
        done = 0
        while time.perf_counter() < started + seconds:
            ids = [f"{random.randrange(workload.users):024x}" for _ in range(batch)]
            OPERATIONS[workload.name](users, ids, workload.items)
            done += batch
        return done

    with ThreadPoolExecutor(THREADS) as pool:
        done = sum(task.result() for task in [pool.submit(work) for _ in range(THREADS)])
    return done, time.perf_counter() - started


def _store(users: Collection, ids: Sequence[str], _: int) -> None:
    news = [Create(id_, Key.NEW_POST, TARGET, DATA) for id_ in ids]
    users.bulk_write([UpdateOne(*creation(new, 100), upsert=True) for new in news], ordered=False)


def _list(users: Collection, ids: Sequence[str], _: int) -> None:
    list(users.find({"_id": {"$in": [ObjectId(id_) for id_ in ids]}}, projection(ListQuery("", 0, 10))))


def _read(users: Collection, ids: Sequence[str], items: int) -> None:
    queries = [ReadQuery(id_, "id", f"{random.randrange(items):024x}") for id_ in ids]
    users.bulk_write([UpdateOne(*marking(query)) for query in queries], ordered=False)


OPERATIONS: Final = {"stored": _store, "list": _list, "read": _read}


# --- a connection a letter -------------------------------------------------------------------------


async def letters(connections: int) -> None:
    """Deliver what is owed as the service does, so many at once, but connect for each."""
    settings = load_settings(lambda _: None, Path(os.devnull))
    tls = ssl.create_default_context(cafile=str(settings.smtp_ca_file))
    slots = asyncio.Semaphore(connections)
    local, domain = EMAIL.split("@")
    sender = sender_header(Address(username=local, domain=domain))
    async with open_store(settings) as store:
        outbox = Outbox(store)

        async def deliver(mail: Mail) -> None:
            async with slots:
                await _send(mail, settings, tls, sender)
            await outbox.settle_sent(mail)

        async def work() -> None:
            while True:
                mails = await outbox.claim(16, settings.lease)
                await asyncio.gather(*map(deliver, mails))
                await asyncio.sleep(0 if mails else 0.1)

        await asyncio.gather(work(), work())  # while one claims, the other's keep the connections busy


async def _send(mail: Mail, settings: Settings, tls: ssl.SSLContext, sender: Any) -> None:
    letter = Letter(mail.id, mail.at, mail.email, Content(mail.key, mail.key))
    message = compose(letter, sender, str(mail.email))
    smtp = SMTP(
        hostname=settings.smtp_host,
        port=settings.smtp_port,
        use_tls=True,
        tls_context=tls,
        local_hostname=sender.addresses[0].domain,
        username=settings.smtp_login,
        password=settings.smtp_password,
    )
    async with smtp:
        await smtp.sendmail(EMAIL, str(mail.email), message.as_bytes(policy=SMTP_POLICY))


# --- a mail server ---------------------------------------------------------------------------------


async def sink() -> None:
    """Take every e-mail, over TLS with the certificate and key in the file `CERTIFICATE`, after any login."""
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(os.environ["CERTIFICATE"])
    server = await asyncio.start_server(_converse, "127.0.0.1", int(os.environ["PORT"]), ssl=tls)
    await server.serve_forever()


async def _converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        writer.write(b"220 sink ESMTP\r\n")
        while line := await reader.readline():
            command = line[:4].upper()
            if command == b"DATA":
                writer.write(b"354 go on\r\n")
                await reader.readuntil(b"\r\n.\r\n")
            writer.write(REPLIES.get(command, b"250 OK\r\n"))
            if command == b"QUIT":
                break
    writer.close()


REPLIES: Final = {
    b"EHLO": b"250-sink\r\n250-SMTPUTF8\r\n250 AUTH PLAIN\r\n",
    b"AUTH": b"235 OK\r\n",
    b"QUIT": b"221 bye\r\n",
}

ROLES: Final[dict[str, Callable[[], None]]] = {
    "bare": lambda: serve(bare_create, bare_list, bare_read),
    "null": lambda: serve(null_create, null_list, null_read),
    "letters": lambda: asyncio.run(letters(int(os.environ["CONNECTIONS"]))),
    "sink": lambda: asyncio.run(sink()),
}

if __name__ == "__main__":
    ROLES[sys.argv[1]]()
