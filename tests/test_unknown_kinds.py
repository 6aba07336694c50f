"""While two versions run, e-mails of a new kind are left to replicas that know it and its template."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime

import pytest
from bson import ObjectId

from kinds import SPECIFIED, Kind
from mongo.owed import NO_TOKEN, new_element
from settings import Settings
from store import Store, open_store
from tests.client import DB, USER, owed, owing

NEW = Kind(name="invoice", in_app=False, email=True)


@pytest.fixture
async def stores(
    settings: Settings, database: DB, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Store, Store]]:
    """Return the stores of an old replica and of a new one, to which an e-mail of the new kind is owed."""
    monkeypatch.setattr("mongo.owed.NEXT_LOOK", 0.0)
    email = new_element(f"{ObjectId()}", NEW.name, datetime.now(UTC), {})
    database.users.insert_one({"_id": ObjectId(USER), **owing(email)})
    async with AsyncExitStack() as stack:
        old, new = [await stack.enter_async_context(open_store(settings)) for _ in range(2)]
        new.outbox._kinds = [*SPECIFIED, NEW.name]
        yield old, new


async def test_an_email_of_an_unknown_kind_is_left_to_others(stores: tuple[Store, Store], database: DB) -> None:
    old, new = stores
    for _ in range(3):
        assert await old.outbox.claim(10, 60) == []
    (email,) = owed(database)
    assert (email["tries"], email["token"], email["error"]) == (0, NO_TOKEN, None)
    until = email["unknown_until"]
    assert 0 < (until - datetime.now(UTC)).total_seconds() <= 300
    assert await old.outbox.claim(10, 60) == []
    assert owed(database)[0]["unknown_until"] == until  # 5 minutes in all
    assert [found.key for found in await new.outbox.claim(10, 60)] == [NEW.name]


async def test_after_five_minutes_any_process_sends_it_with_a_warning(
    stores: tuple[Store, Store], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("mongo.owed.LEFT_TO_OTHERS", 0.0)
    old, _ = stores
    (email,) = await old.outbox.claim(10, 60)
    assert email.key == NEW.name
    await old.outbox.release([email])
    assert len(await old.outbox.claim(10, 60)) == 1
    assert caplog.text.count("this process does not know the kind invoice, nor does another") == 1


async def test_a_dead_email_of_an_unknown_kind_is_buried_by_any(stores: tuple[Store, Store], database: DB) -> None:
    old, _ = stores
    database.users.update_one({}, {"$set": {"notifier.outbox.0.dead": True}})
    assert [email.dead for email in await old.outbox.claim(10, 60)] == [True]
