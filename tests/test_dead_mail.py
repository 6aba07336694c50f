"""Dead letters: their e-mails owed again, and the indexes of their collection."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from bson import ObjectId
from pymongo.collation import Collation

from mongo.document import OUTBOX_LIMIT, JSONObject
from mongo.errors import OutboxFull, Patience
from mongo.requests import Create
from ops.kinds import SPECIFIED
from settings import Settings
from store import Store, open_store
from tests.client import DB, USER, owed
from tests.combinations import pairwise
from tests.faults import impatient
from tests.fixtures import MONGODS, assert_outboxes_consistent
from tests.proxy import FAULTS, Proxy
from tests.servers import Mongod
from tests.waiting import eventually_async


async def dead_letter(store: Store, **origin: str) -> JSONObject:
    """Owe an e-mail to `USER`, make a dead letter of it and return that."""
    await store.create(Create(USER, SPECIFIED["registration"], origin=origin))
    (claimed,) = await store.outbox.claim(1, 60)
    assert await store.dead_mail.bury(claimed, 1, "x")
    (letter,) = await store.dead_mail.find()
    return letter


async def test_a_retry_keeps_where_the_email_came_from(settings: Settings, database: DB) -> None:
    origin = {"request_id": "trace-me", "traceparent": "00-x"}
    async with open_store(settings) as store:
        letter = await dead_letter(store, **origin)
        assert await store.dead_mail.owe_again(letter)
    (email,) = owed(database)
    assert email.items() >= origin.items()


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


async def test_a_retry_leaves_the_letter_of_an_email_that_dies_again_at_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(settings) as store:
        letter = await dead_letter(store)
        delete = store.dead_mail.letters.delete

        async def die_again(*arguments: Any) -> None:
            (email,) = await store.outbox.claim(1, 60)
            assert await store.dead_mail.bury(email, 1, "y")
            await delete(*arguments)

        monkeypatch.setattr(store.dead_mail.letters, "delete", die_again)
        assert await store.dead_mail.owe_again(letter)
        assert [letter["_id"] for letter in await store.dead_mail.find()] == [letter["_id"]]


async def test_a_retry_into_a_full_outbox_is_refused(settings: Settings, database: DB) -> None:
    async with open_store(settings) as store:
        letter = await dead_letter(store)
        for _ in range(OUTBOX_LIMIT):
            await store.create(Create(USER, SPECIFIED["registration"]))
        with pytest.raises(OutboxFull):
            await store.dead_mail.owe_again(letter)
        assert (len(owed(database)), database.dead_mail.count_documents({})) == (OUTBOX_LIMIT, 1)
        assert_outboxes_consistent(database)


@pytest.mark.parametrize(
    ("any_mongod", "fault", "step"),
    pairwise(MONGODS, FAULTS, ["mark_dead", "_write", "remove"]),
    indirect=["any_mongod"],
)
@impatient
async def test_i2_a_burial_whose_reply_is_lost_leaves_exactly_one_letter(
    settings: Settings,
    any_mongod: Mongod,
    monkeypatch: pytest.MonkeyPatch,
    patience: Patience,
    step: str,
    fault: str,
) -> None:
    name, proxy = f"lost_{ObjectId()}", Proxy(any_mongod.port)
    async with proxy.running():
        uri = f"mongodb://127.0.0.1:{proxy.port}/{name}?directConnection=true"
        async with open_store(replace(settings, db_uri=uri), patience=patience) as store:
            await store.create(Create(USER, SPECIFIED["registration"]))
            (email,) = await store.outbox.claim(1, 60)
            broken = store.dead_mail if step == "_write" else store.outbox
            original = getattr(broken, step)

            async def break_it(*arguments: Any) -> Any:
                proxy.break_next("update", fault)
                return await original(*arguments)

            monkeypatch.setattr(broken, step, break_it)
            assert await store.dead_mail.bury(email, 1, "x")
            assert proxy.faults == 1
            assert [letter["_id"] for letter in await store.dead_mail.find()] == [email.id]
            assert await store.outbox.of_user(USER) == ([], [])
    with any_mongod.client() as client:
        client.drop_database(name)


# --- indexes ----------------------------------------------------------------------------------------


def expiry(database: DB) -> int | None:
    """Return after how many seconds MongoDB deletes a dead letter."""
    seconds: int | None = database.dead_mail.index_information()["died_at_1"].get("expireAfterSeconds")
    return seconds


async def test_dead_mail_days_may_be_set_changed_and_taken_back(settings: Settings, database: DB) -> None:
    for days, seconds in ((None, None), (30, 2_592_000), (30, 2_592_000), (0.5, 43_200), (None, None)):
        async with open_store(replace(settings, dead_mail_days=days), serves=True):
            assert expiry(database) == seconds


async def test_replicas_with_different_days_may_start_at_once(settings: Settings, database: DB) -> None:
    async def open_and_close(days: float | None) -> None:
        async with open_store(replace(settings, dead_mail_days=days), serves=True):
            pass

    await asyncio.gather(*(open_and_close(days) for days in (None, 1, 2, 3) * 3))
    assert expiry(database) in {None, 86_400, 172_800, 259_200}


async def test_mongodb_deletes_letters_that_are_too_old(settings: Settings) -> None:
    async with open_store(replace(settings, dead_mail_days=1), serves=True) as store:
        letter = await dead_letter(store)
        old = letter | {"_id": "old", "died_at": datetime.now(UTC) - timedelta(days=1)}
        await store.dead_mail.letters.collection.insert_one(old)

        async def is_deleted() -> None:
            assert await store.dead_mail.find() == [letter]

        await eventually_async(is_deleted)


async def test_a_command_leaves_the_days_as_the_service_has_set_them(settings: Settings, database: DB) -> None:
    async with open_store(replace(settings, dead_mail_days=30), serves=True):
        pass
    async with open_store(settings):
        assert expiry(database) == 2_592_000


async def test_an_index_under_another_name_is_replaced(settings: Settings, database: DB) -> None:
    database.dead_mail.create_index("died_at", name="mine", expireAfterSeconds=1)
    async with open_store(settings, serves=True):
        assert "mine" not in database.dead_mail.index_information()
        assert expiry(database) is None


@pytest.mark.parametrize("query", [{"user_id": USER}, {"died_at": {"$gte": datetime(2026, 1, 1)}}])  # noqa: DTZ001
async def test_queries_of_dead_letters_use_an_index(settings: Settings, database: DB, query: dict[str, Any]) -> None:
    async with open_store(settings, serves=True) as store:
        await dead_letter(store)
    plan = database.dead_mail.find(query, collation=Collation("simple")).explain()["queryPlanner"]["winningPlan"]
    assert "IXSCAN" in str(plan)


async def test_the_count_of_suppressions_reads_an_index_only_of_those(settings: Settings, database: DB) -> None:
    database.users.insert_many([{"n": n} for n in range(50)])
    async with open_store(settings) as store:
        database.users.insert_one(
            {"notifier": {"suppression": {"address": "a", "code": "5.1.1", "at": datetime.now(UTC)}}}
        )
        assert await store.suppressions.count() == 1
    query = {"notifier.suppression.at": {"$gte": datetime(1970, 1, 1)}}  # noqa: DTZ001
    plan = database.users.find(query, collation=Collation("simple")).explain()["executionStats"]
    assert plan["totalDocsExamined"] == 1
