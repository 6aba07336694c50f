"""Dead letters whose e-mails are owed again."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
from bson import ObjectId

from mongo.creation import Create
from mongo.document import OUTBOX_LIMIT, JSONObject
from mongo.errors import OutboxFull
from ops.kinds import SPECIFIED
from settings import Settings
from store import Store, open_store
from tests.client import DB, USER, owed
from tests.fixtures import assert_outboxes_consistent
from tests.proxy import Proxy
from tests.servers import Mongod


async def dead_letter(store: Store, request_id: str | None = None) -> JSONObject:
    """Owe an e-mail to `USER`, make a dead letter of it and return that."""
    await store.create(Create(USER, SPECIFIED["registration"], request_id=request_id))
    (claimed,) = await store.outbox.claim(1, 60)
    assert await store.dead_mail.bury(claimed, 1, "x")
    (letter,) = await store.dead_mail.find()
    return letter


async def test_a_retry_keeps_the_request_id(settings: Settings, database: DB) -> None:
    async with open_store(settings) as store:
        letter = await dead_letter(store, "trace-me")
        assert await store.dead_mail.owe_again(letter)
    (email,) = owed(database)
    assert email["request_id"] == "trace-me"


async def test_a_retry_whose_reply_is_lost_owes_the_email_once(
    settings: Settings, standalone: Mongod, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the e-mail is delivered before the write is repeated."""
    name, proxy, sleep = f"lost_{ObjectId()}", Proxy(standalone.port), asyncio.sleep
    async with proxy.running(), AsyncExitStack() as stack:
        uris = f"mongodb://{standalone.address}/{name}", f"mongodb://127.0.0.1:{proxy.port}/{name}"
        store, proxied = [await stack.enter_async_context(open_store(replace(settings, db_uri=uri))) for uri in uris]
        letter = await dead_letter(store)

        async def deliver(_: float) -> None:
            monkeypatch.setattr(asyncio, "sleep", sleep)
            (email,) = await store.outbox.claim(1, 60)
            assert await store.outbox.remove(email)

        monkeypatch.setattr(asyncio, "sleep", deliver)  # the pause before the write is repeated
        proxy.break_next("update", "after")
        assert await proxied.dead_mail.owe_again(letter)
        assert (proxy.faults, await store.outbox.claim(1, 60), await store.dead_mail.find()) == (1, [], [])
        with standalone.client() as client:
            client.drop_database(name)


async def test_a_retry_that_dies_halfway_owes_the_email_once(settings: Settings, database: DB) -> None:
    async with open_store(settings) as store:
        letter = await dead_letter(store)
        assert await store.dead_mail.owe_again(letter)
        database.dead_mail.insert_one(letter)  # as if it had died before it deleted the letter
        assert await store.dead_mail.owe_again(letter)
        assert (len(owed(database)), database.dead_mail.count_documents({})) == (1, 0)


async def test_a_retry_into_a_full_outbox_is_refused(settings: Settings, database: DB) -> None:
    async with open_store(settings) as store:
        letter = await dead_letter(store)
        for _ in range(OUTBOX_LIMIT):
            await store.create(Create(USER, SPECIFIED["registration"]))
        with pytest.raises(OutboxFull):
            await store.dead_mail.owe_again(letter)
        assert (len(owed(database)), database.dead_mail.count_documents({})) == (OUTBOX_LIMIT, 1)
        assert_outboxes_consistent(database)
