"""Windows in the user's document: what a create writes, a claim turns into e-mails, and a look reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId

from mongo.creation import Create
from mongo.inbox import Selection
from mongo.owed import NO_TOKEN, OwedEmail
from settings import Settings
from store import Store, open_store
from tests.client import DB, OTHER, TARGET, USER, ours, owing, user
from tests.faults import far_from_due
from tests.windows import end_windows, with_kinds


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return with_kinds(settings, tmp_path, notifications_limit=4)


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[Store]:
    """Return a store of which no worker claims. Its inbox holds four."""
    async with open_store(settings) as store:
        yield store


@pytest.fixture
def create(store: Store, settings: Settings) -> Any:
    """Return a function that creates a notification and returns its id."""

    async def create(key: str, target_id: str | None = None, **fields: Any) -> str:
        return (await store.create(Create(USER, settings.kinds[key], target_id, **fields)))[0]

    return create


async def claimed(store: Store) -> dict[str, list[str]]:
    """Claim, and return the notifications of each e-mail, by kind."""
    return {email.key: sorted(email.ids) for email in await store.outbox.claim(10, 60)}


async def told(store: Store, emails: Sequence[OwedEmail]) -> list[list[str]]:
    """Look, and return the notifications that each e-mail would be about."""
    return [[item["id"] for item in look.told] for look in await store.outbox.look(emails) if look]


# --- a create ---------------------------------------------------------------------------------------


async def test_a_create_lets_its_email_wait_in_the_same_update(create: Any, store: Store, database: DB) -> None:
    """The end of the window is by MongoDB's clock, whatever the process's own shows."""
    store.clock._time += timedelta(hours=1)
    before = datetime.now(UTC)
    id_ = await create("answer", TARGET, data={"a": 1})
    (waiting,) = ours(database)["waiting"]
    assert waiting == {"id": id_, "key": "answer", "target_id": TARGET, "due": waiting["due"]}
    assert timedelta(minutes=69) < waiting["due"] - before < timedelta(minutes=71)
    assert ours(database) == {"waiting": [waiting], "due": waiting["due"], "recent": ours(database)["recent"]}
    assert await claimed(store) == {}


async def test_the_first_end_counts(create: Any, database: DB) -> None:
    await create("digest")
    await create("comment")
    first, second = (item["due"] for item in ours(database)["waiting"])
    assert (second < first, ours(database)["due"]) == (True, second)


async def test_a_windows_end_waits_for_room_in_the_outbox(create: Any, store: Store, database: DB) -> None:
    database.users.insert_one({"_id": ObjectId(USER), "email": "a@b.example", **owing(*map(far_from_due, range(100)))})
    ids = [await create("comment") for _ in range(2)]
    end_windows(database)
    assert await store.outbox._choose(1) == []
    assert await claimed(store) == {}
    database.users.update_one({}, {"$pop": {"notifier.outbox": 1}})
    (claim,) = (await claimed(store)).values()
    assert sorted([*claim, ours(database)["waiting"][0]["id"]]) == ids
    assert len(ours(database)["outbox"]) == 100
    database.users.delete_many({})


@pytest.mark.parametrize("odd", [{"waiting": "theirs"}, {"waiting": {}}, {"due": "soon"}], ids=str)
async def test_another_programs_field_is_refused(create: Any, database: DB, odd: dict[str, Any]) -> None:
    database.users.insert_one({"_id": ObjectId(USER), "notifier": odd})
    with pytest.raises(Exception, match="the field `notifier"):
        await create("comment")
    assert ours(database) == odd
    database.users.delete_many({})


async def test_many_users_at_once(store: Store, settings: Settings, database: DB) -> None:
    users = [f"{n:024x}" for n in range(70)]
    each = Create("", settings.kinds["answer"], TARGET, idempotency_key="k")
    for _ in range(2):
        await store.create_many(users, each)
    assert [len(document["notifier"]["waiting"]) for document in database.users.find()] == [1] * 70


# --- the claim --------------------------------------------------------------------------------------


async def test_each_kind_makes_the_emails_that_it_says(create: Any, store: Store, database: DB) -> None:
    target = [await create("answer", TARGET) for _ in range(2)]
    other, none = await create("answer", OTHER), await create("answer")
    end_windows(database)
    emails = await store.outbox.claim(10, 60)
    assert sorted(list(email.ids) for email in emails) == sorted([target, [other], [none]])
    assert {email.id for email in emails} == {target[0], other, none}
    assert all(email.at < datetime.now(UTC) and not email.tries for email in emails)
    assert "waiting" not in ours(database)
    database.users.delete_many({})
    comments = [await create("comment", TARGET) for _ in range(2)]
    digest = [await create("digest", target_id) for target_id in (TARGET, OTHER)]
    end_windows(database)
    emails = await store.outbox.claim(10, 60)
    assert sorted(list(email.ids) for email in emails) == sorted([digest, *([id_] for id_ in comments)])
    assert await claimed(store) == {}


async def test_the_first_notification_sets_the_end_of_its_window(create: Any, store: Store, database: DB) -> None:
    first = await create("answer", TARGET)
    elsewhere = await create("answer", OTHER)
    end_windows(database)
    database.users.update_one({}, {"$set": {"notifier.waiting.1.due": datetime(2100, 1, 1, tzinfo=UTC)}})
    joined = await create("answer", TARGET)
    assert await claimed(store) == {"answer": sorted([first, joined])}
    assert [item["id"] for item in ours(database)["waiting"]] == [elsewhere]
    assert ours(database)["due"] <= datetime(2100, 1, 1, tzinfo=UTC)
    later = await create("answer", TARGET)
    assert [item["id"] for item in ours(database)["waiting"]] == [elsewhere, later]


async def test_a_dead_claim_is_taken_over_whole_and_two_claim_it_once(
    create: Any, store: Store, settings: Settings, database: DB
) -> None:
    ids = [await create("digest") for _ in range(3)]
    end_windows(database)
    async with open_store(settings) as other:
        claims = await asyncio.gather(store.outbox.claim(10, 60), other.outbox.claim(10, 60))
        (email,) = [email for claim in claims for email in claim]
        end = datetime(2000, 1, 1, tzinfo=UTC)
        database.users.update_one({}, {"$set": {"notifier.outbox.0.next_at": end, "notifier.due": end}})
        (again,) = await other.outbox.claim(10, 60)
    assert (again.id, again.ids, again.at) == (email.id, email.ids, email.at)
    assert (sorted(again.ids), again.token != email.token) == (sorted(ids), True)


async def test_a_window_of_an_unknown_kind_is_left_to_others(
    create: Any, store: Store, settings: Settings, database: DB, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mongo.owed.NEXT_LOOK", 0.0)
    ids = [await create("digest") for _ in range(2)]
    later = await create("answer")
    end_windows(database, "digest")
    (tmp_path / "kinds.toml").write_text("[other]")
    async with open_store(replace(settings)) as old:  # which reads the file again
        for _ in range(2):
            assert await old.outbox.claim(10, 60) == []
    waiting = ours(database)["waiting"]
    assert [item["id"] for item in waiting] == [*ids, later]
    assert ["unknown_until" in item for item in waiting] == [True, True, False]
    assert 0 < (waiting[0]["unknown_until"] - datetime.now(UTC)).total_seconds() <= 300
    assert ours(database)["due"] == min(item["due"] for item in waiting)
    assert await claimed(store) == {"digest": ids}


@pytest.mark.usefixtures("nobody_else")
async def test_notifications_of_a_removed_kind_are_e_mailed_one_by_one(
    create: Any, settings: Settings, database: DB, tmp_path: Path
) -> None:
    ids = [await create("digest") for _ in range(2)]
    end_windows(database)
    (tmp_path / "kinds.toml").write_text("[other]")
    async with open_store(replace(settings)) as later:  # which reads the file again
        assert sorted(list(email.ids) for email in await later.outbox.claim(10, 60)) == sorted([id_] for id_ in ids)


async def test_foreign_elements_of_a_window_stay_and_are_not_told(create: Any, store: Store, database: DB) -> None:
    id_ = await create("comment")
    odd = [
        None,
        "x",
        {"id": 5, "key": "comment", "due": datetime(2000, 1, 1, tzinfo=UTC)},
        {"id": "y", "key": "comment"},
    ]
    end_windows(database)
    database.users.update_one({}, {"$push": {"notifier.waiting": {"$each": odd}}})
    assert await claimed(store) == {"comment": [id_]}
    assert ours(database)["waiting"] == odd
    database.users.delete_many({})


# --- the look ---------------------------------------------------------------------------------------


async def test_the_look_brings_what_is_unread_then_oldest_first(create: Any, store: Store, database: DB) -> None:
    ids = [await create("digest") for _ in range(4)]
    end_windows(database)
    emails = await store.outbox.claim(10, 60)
    assert await told(store, emails) == [ids]
    await store.inbox.mark(Selection(USER, "id", ids[1]), is_new=False)
    await store.inbox.delete(Selection(USER, "id", ids[0]))
    assert await told(store, emails) == [ids[2:]]
    await store.inbox.mark(Selection(USER, "id", ids[1]), is_new=True)
    assert await told(store, emails) == [ids[1:]]
    for _ in range(2):
        await create("message")
    assert await told(store, emails) == [ids[2:]]  # LIMIT pushed one out
    await store.inbox.mark(Selection(USER), is_new=False)
    assert await told(store, emails) == [[]]


async def test_a_deletion_of_one_takes_no_email_about_many(create: Any, store: Store, database: DB) -> None:
    ids = [await create("digest") for _ in range(2)]
    end_windows(database)
    emails = await store.outbox.claim(10, 60)
    assert emails[0].id == ids[0]
    assert await store.inbox.delete(Selection(USER, "id", ids[0]))
    assert await told(store, emails) == [[ids[1]]]


# --- more than the inbox holds ------------------------------------------------------------------------


async def test_a_window_ends_on_time_however_many_notifications_join(create: Any, store: Store, database: DB) -> None:
    """Notifications that the inbox no longer shows make room, and pass on the end of their window."""
    await create("digest")
    end = ours(database)["waiting"][0]["due"]
    for _ in range(100):
        await create("digest")
        assert len(ours(database)["waiting"]) <= 4 + 32
        assert ours(database)["due"] == end
    shown = [item["id"] for item in user(database)["notifications"]]
    end_windows(database)
    emails = await store.outbox.claim(10, 60)
    assert await told(store, emails) == [shown]


async def test_without_a_batch_those_pushed_out_leave_nothing(create: Any, database: DB) -> None:
    for _ in range(80):
        await create("comment")
    shown = {item["id"] for item in user(database)["notifications"]}
    assert shown <= {item["id"] for item in ours(database)["waiting"]}
    assert len(ours(database)["waiting"]) <= 36
    assert ours(database)["due"] == min(item["due"] for item in ours(database)["waiting"])


# --- collapse ---------------------------------------------------------------------------------------


async def test_a_waiting_email_passes_to_the_new_one_at_its_old_time(create: Any, store: Store, database: DB) -> None:
    await create("price", TARGET)
    before = ours(database)
    elsewhere, last = await create("price", OTHER), await create("price", TARGET)
    after = ours(database)
    assert after["waiting"][1] == before["waiting"][0] | {"id": last}
    assert after["due"] == before["due"]
    end_windows(database)
    emails = await store.outbox.claim(10, 60)
    assert sorted(await told(store, emails)) == sorted([[elsewhere], [last]])


async def test_a_due_email_that_is_not_leased_is_about_the_new_one(create: Any, store: Store, database: DB) -> None:
    await create("price", TARGET)
    end_windows(database)
    emails = await store.outbox.claim(10, 60)
    await store.outbox.release(emails)
    last = await create("price", TARGET)
    assert (ours(database)["outbox"][0]["ids"], ours(database)["outbox"][0]["token"]) == ([last], NO_TOKEN)
    assert "waiting" not in ours(database)
    emails = await store.outbox.claim(10, 60)
    assert await told(store, emails) == [[last]]


async def test_beside_a_conversation_the_new_one_opens_a_window(create: Any, store: Store, database: DB) -> None:
    first = await create("price", TARGET)
    end_windows(database)
    emails = await store.outbox.claim(10, 60)
    last = await create("price", TARGET)
    assert ours(database)["outbox"][0]["ids"] == [first]
    assert [item["id"] for item in ours(database)["waiting"]] == [last]
    assert await told(store, emails) == [[]]
    assert await store.outbox.remove(emails[0])
    end_windows(database)
    assert await told(store, await store.outbox.claim(10, 60)) == [[last]]
