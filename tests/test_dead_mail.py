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

from kinds import SPECIFIED
from mongo.backlog import reasons
from mongo.creation import Create
from mongo.document import OUTBOX_LIMIT, JSONObject
from mongo.errors import OutboxFull, Patience
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


async def test_a_retry_leaves_the_letter_of_an_email_that_dies_again(
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
async def test_i2_a_dead_letter_with_a_lost_reply_is_written_once(
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


# --- age and indexes --------------------------------------------------------------------------------


async def test_old_letters_of_ones_own_collection_are_deleted(settings: Settings, database: DB) -> None:
    old = datetime.now(UTC) - timedelta(days=1)
    database.dead_mail.insert_many(
        [
            {"_id": "old", "collection": "users", "died_at": old},
            {"_id": "theirs", "collection": "people", "died_at": old},
            {"_id": "odd", "collection": "users", "died_at": "yesterday"},
            {"_id": "young", "collection": "users", "died_at": datetime.now(UTC)},
        ]
    )

    def left() -> set[str]:
        return {letter["_id"] for letter in database.dead_mail.find()}

    async with open_store(settings, serves=True) as store:
        assert len(left()) == 4
        await store.dead_mail.expire(2)
        assert len(left()) == 4
    async with open_store(replace(settings, dead_mail_days=1), serves=True):
        await eventually_async(lambda: assert_equal(left(), {"theirs", "odd", "young"}))


def assert_equal(one: object, other: object) -> None:
    assert one == other


async def test_services_with_one_database_keep_their_letters_apart(settings: Settings, database: DB) -> None:
    async with (
        open_store(settings) as ours,
        open_store(replace(settings, users_collection="people")) as theirs,
    ):
        await dead_letter(ours)
        await dead_letter(theirs)
        ids = [letter["_id"] for store in (ours, theirs) for letter in await store.dead_mail.find()]
        assert len(ids) == 2
        assert [await store.dead_mail.count() for store in (ours, theirs)] == [1, 1]
        assert [len(await store.dead_mail.find(user_id=USER)) for store in (ours, theirs)] == [1, 1]
        assert len((await reasons(ours.users, ours.dead_mail))["dead"]) == 1
        assert await ours.dead_mail.find([ids[1]]) == []
        assert not await ours.dead_mail.owe_again(database.dead_mail.find_one({"_id": ids[1]}) or {})
        assert await ours.dead_mail.discard([ids[1]]) == []
        assert await ours.dead_mail.discard() == [{"_id": ids[0]}]
        await ours.dead_mail.discard_of_user(USER)
        assert [letter["_id"] for letter in await theirs.dead_mail.find()] == [ids[1]]


@pytest.mark.parametrize("query", [{"user_id": USER}, {"died_at": {"$gte": datetime(2026, 1, 1)}}])  # noqa: DTZ001
async def test_queries_of_dead_letters_use_an_index(settings: Settings, database: DB, query: dict[str, Any]) -> None:
    async with open_store(settings, serves=True) as store:
        await dead_letter(store)
        cursor = database.dead_mail.find({**store.dead_mail.own, **query}, collation=Collation("simple"))
    assert "IXSCAN" in str(cursor.explain()["queryPlanner"]["winningPlan"])


async def test_the_count_of_suppressions_reads_an_index_only_of_those(settings: Settings, database: DB) -> None:
    database.users.insert_many([{"n": n} for n in range(50)])
    async with open_store(settings, serves=True) as store:
        database.users.insert_one(
            {"notifier": {"suppression": {"address": "a", "code": "5.1.1", "at": datetime.now(UTC)}}}
        )
        assert await store.suppressions.count() == 1
    query = {"notifier.suppression.at": {"$gte": datetime(1970, 1, 1)}}  # noqa: DTZ001
    plan = database.users.find(query, collation=Collation("simple")).explain()["executionStats"]
    assert plan["totalDocsExamined"] == 1
