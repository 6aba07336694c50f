"""Waiting e-mails fall due when a stop ends, and when an operator says so."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
from bson import ObjectId

from cli.emails import flush
from kinds import SPECIFIED
from mongo import backlog
from mongo.creation import Create
from mongo.owed import ERAS_END, FLUSHED, OwedEmail
from settings import Settings
from store import Store, open_store
from tests.client import DB, OTHER, USER, owed

KINDS = ("registration", "new_login")


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[Store]:
    """Return a store in which two users are owed an e-mail of each of two kinds."""
    async with open_store(settings) as opened:
        for user in (USER, OTHER):
            for key in KINDS:
                await opened.create(Create(user, SPECIFIED[key]))
        yield opened


async def claim(store: Store) -> list[OwedEmail]:
    """Claim all that is due."""
    return [email for _ in range(3) for email in await store.outbox.claim(8, 60)]


async def test_flush_lets_everything_fall_due_but_what_is_leased(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, *others = await claim(store)
    assert len(others) == 2
    await store.outbox.retry(first, 3600, "later", tries=1, waited=60.0)
    await store.outbox.hold(second, 3600, "stopped", held="kind new_login")
    assert await claim(store) == []
    await flush(store, Namespace(user_id=None))
    assert "Due now" in capsys.readouterr().out
    again = await claim(store)
    assert {email.id for email in again} == {first.id, second.id}
    assert {email.held for email in again} == {FLUSHED}
    assert {email.id: (email.tries, email.waited) for email in again}[first.id] == (1, 60.0)
    assert await backlog.flush(store.outbox) == 0


async def test_flush_of_a_user_leaves_the_others_waiting(store: Store) -> None:
    for email in await claim(store):
        await store.outbox.retry(email, 3600, "later")
    assert await backlog.flush(store.outbox, USER) == 1
    assert {email.user_id for email in await claim(store)} == {USER}


async def test_after_a_stop_only_emails_that_it_held_fall_due(store: Store, database: DB) -> None:
    emails = await claim(store)
    for email in emails:
        await store.outbox.hold(email, 3600, "stopped", held=f"kind {email.key}")
    await backlog.lift(store.outbox, "kind new_login")
    due = {item["key"]: item["next_at"] for item in owed(database) if item["next_at"] < ERAS_END}
    assert due.keys() == {"new_login"}
    assert {email.key for email in await claim(store)} == {"new_login"}


async def test_all_pages_of_what_waits_fall_due(store: Store, database: DB, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of users who are owed something new as well, too, and however many fell due at the same moment."""
    monkeypatch.setattr("mongo.backlog.PAGE", 2)
    for n in range(9):
        await store.create(Create(f"{n:024x}", SPECIFIED["registration"]))
    emails = [email for _ in range(9) for email in await store.outbox.claim(3, 60)]
    for email in emails:
        await store.outbox.hold(email, 3600, "stopped", held="line")
    *_, last = database.users.find().sort("notifier.due")
    same = {"notifier.due": last["notifier"]["due"]}
    database.users.update_many({"_id": {"$gte": ObjectId(f"{4:024x}")}}, {"$set": same})
    await store.create(Create(f"{0:024x}", SPECIFIED["registration"]))
    await backlog.lift(store.outbox, "line")
    assert {item["next_at"] < ERAS_END for item in owed(database)} == {True}
    assert len(owed(database)) == len(emails) + 1


@pytest.mark.parametrize("key", ["new_login", None])
async def test_emails_tried_since_a_stop_began_fall_due(store: Store, key: str | None) -> None:
    for email in await claim(store):
        await store.outbox.retry(email, 3600, "554", tries=0)
    began = store.clock.now()
    await backlog.lift(store.outbox, "line", began + timedelta(seconds=60), key)
    assert await claim(store) == []
    await backlog.lift(store.outbox, "line", began - timedelta(seconds=60), key)
    assert {email.key for email in await claim(store)} == ({key} if key else set(KINDS))
