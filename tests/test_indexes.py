"""The indexes: made beside serving, whoever made them before, and made again once they are gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from handlers import STORE
from mongo.errors import Misconfigured, Patience
from settings import Settings
from store import open_store
from tests.checking import check, failures
from tests.client import DB, Client, create, settled
from tests.faults import failing
from tests.fixtures import Start
from tests.servers import MailServer, Mongod
from tests.soak import three_nodes
from tests.waiting import eventually, eventually_async

OWN: dict[str, Any] = {"key": {"notifier.due": 1}, "name": "notifier.due_1", "sparse": True}


@contextmanager
def hanging_builds(mongod: Mongod) -> Iterator[None]:
    """Let MongoDB begin to make indexes and not go on."""
    with mongod.client() as client:
        point = "hangAfterStartingIndexBuild"
        client.admin.command({"configureFailPoint": point, "mode": "alwaysOn"})
        try:
            yield
        finally:
            client.admin.command({"configureFailPoint": point, "mode": "off"})


def indexes(database: DB) -> set[str]:
    return set(database.users.index_information())


def assert_told(caplog: pytest.LogCaptureFixture, words: str) -> None:
    assert words in caplog.text


async def test_a_long_build_holds_up_emails_and_nothing_else(
    start: Start,
    mongod: Mongod,
    database: DB,
    mail: MailServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("mongo.indexes.TELL_AFTER", 0.2)
    database.users.insert_many([{"n": n} for n in range(500)])
    with hanging_builds(mongod):
        client = await start()
        assert (await client.get("/readyz")).status == 200
        await create(client, key="new_login")
        told = "MongoDB is making the index notifier.due_1. Until it is there, e-mails wait."
        await eventually_async(lambda: assert_told(caplog, told))
        assert "notifier_emails_owed NaN" in await (await client.get("/metrics")).text()
        assert mail.received == []
    await settled(database)
    assert len(mail.ids) == 1
    await eventually_async(lambda: assert_told(caplog, "users: the index notifier.due_1 is there"))
    assert caplog.text.count("is making the index notifier.due_1") == 1


async def test_a_build_goes_on_when_the_service_ends(
    settings: Settings, mongod: Mongod, database: DB, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mongo.serving.HEAD_START", 0.2)
    database.users.insert_one({})
    with hanging_builds(mongod):
        async with asyncio.timeout(30), open_store(settings, serves=True):
            pass
    await asyncio.to_thread(eventually, lambda: list(database.users.find(hint="notifier.due_1")))


@pytest.mark.ci
async def test_a_member_that_is_down_does_not_hold_up_the_indexes(settings: Settings, tmp_path: Path) -> None:
    async with three_nodes(tmp_path) as setup:
        with setup.client() as client:
            client.x.users.insert_many([{"n": n} for n in range(500)])
        setup.mongods[2].kill()
        uri = setup.uri.replace("/soak?", "/x?")
        async with open_store(replace(settings, db_uri=uri), serves=True) as store:
            await eventually_async(lambda: assert_there(store.outbox.due.hint))


def assert_there(hint: str | None) -> None:
    assert hint


@pytest.mark.parametrize("how", ["dropped", "lost with its collection"])
async def test_an_index_that_is_gone_is_made_again_and_logged(
    client: Client, database: DB, mail: MailServer, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    await eventually_async(lambda: assert_in("notifier.due_1", indexes(database)))
    if how == "dropped":
        database.users.drop_index("notifier.due_1")
    else:
        database.users.drop()
    await create(client, key="registration")
    await settled(database)
    assert len(mail.ids) == 1
    assert "users: the index notifier.due_1 was dropped, and is made again" in caplog.text
    assert "notifier.due_1" in indexes(database)


def assert_in(item: object, items: set[str]) -> None:
    assert item in items


SERVING = [
    # an index that is there, and those that there are then
    ({**OWN, "name": "mine"}, {"mine"}),
    ({"key": OWN["key"], "name": "notifier.due_1"}, {"notifier.due_1"}),
    ({**OWN, "collation": {"locale": "en"}}, {"notifier.due_1", "notifier.due_1_own"}),
    ({"key": OWN["key"], "partialFilterExpression": {"a": 1}, "name": "part"}, {"part", "notifier.due_1"}),
    ({"key": {"a": 1}, "name": "notifier.due_1"}, {"notifier.due_1", "notifier.due_1_own"}),
]


@pytest.mark.parametrize(("index", "then"), SERVING, ids=range(len(SERVING)))
async def test_beside_an_index_that_serves_or_differs_emails_are_sent(
    start: Start, database: DB, settings: Settings, index: dict[str, Any], then: set[str]
) -> None:
    database.command("createIndexes", "users", indexes=[index])
    assert (await check(settings))[1]["index"][0] == "ok"
    client = await start()
    await create(client, key="registration")
    await settled(database)
    assert {name for name in indexes(database) if name not in {"_id_", "notifier.suppression.at_1"}} == then


@pytest.mark.parametrize("name", ["notifier.due_1", "mine"])
async def test_an_index_in_the_way_is_named_and_requests_are_served(
    start: Start,
    database: DB,
    settings: Settings,
    mail: MailServer,
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    database.command("createIndexes", "users", indexes=[{**OWN, "hidden": True, "name": name}])
    sentence = f"The index {name} of users is hidden: unhide it."
    client = await start()
    await create(client, key="new_login")
    await eventually_async(lambda: assert_told(caplog, f"{sentence} Until it is there, e-mails wait."))
    assert failures((await check(settings))[1]) == {"index": sentence}
    assert mail.received == []
    database.command("collMod", "users", index={"name": name, "hidden": False})
    client.app[STORE].outbox.due.lost.set()  # rather than after a minute
    await settled(database)


async def test_a_unique_index_is_reported_even_if_another_one_serves(
    start: Start, database: DB, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    database.command("createIndexes", "users", indexes=[{**OWN, "unique": True, "name": "mine"}])
    client = await start()
    await create(client, key="registration")
    await settled(database)
    sentence = "The index mine of users is unique: drop it; the service makes its own."
    await eventually_async(lambda: assert_told(caplog, sentence))
    assert failures((await check(settings))[1]) == {"index": sentence}


async def test_an_unusable_collection_or_index_stops_the_start(settings: Settings, database: DB) -> None:
    database.create_collection("times", timeseries={"timeField": "t"})
    database.command({"create": "seen", "viewOn": "users", "pipeline": []})
    other_case = settings.db_uri.replace(database.name, database.name.upper())
    for odd, words in {
        replace(settings, users_collection="times"): "MongoDB's error",
        replace(settings, users_collection="seen"): "a view in place of the collection",
        replace(settings, db_uri=other_case): "differs from that in DB_URI only in case",
    }.items():
        await assert_refused(odd, words)
    database.users.create_index("notifier.due", expireAfterSeconds=10**8)
    await assert_refused(settings, "makes MongoDB delete users")


async def assert_refused(settings: Settings, words: str) -> None:
    with pytest.raises(Misconfigured, match=words):
        async with open_store(settings, serves=True, patience=Patience(operation=1.5)):
            pass


async def test_a_server_that_lacks_what_delivery_needs_is_named(settings: Settings, mongod: Mongod) -> None:
    with (
        failing(mongod, ["update"], errorCode=115),
        pytest.raises(
            Misconfigured,
            match=r"MongoDB 6.* does not do what delivery needs \(MongoDB's error 115 CommandNotSupported",
        ),
    ):
        async with open_store(settings, serves=True):
            pass
