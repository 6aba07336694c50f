"""`/erase`: everything that the service keeps about a user is gone once it answers."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from json import loads
from typing import Any

import pytest
from bson import ObjectId

from kinds import SPECIFIED
from mongo.creation import Create
from mongo.dead_mail import DeadMail
from mongo.document import WRITTEN
from settings import Settings
from store import Store, open_store
from tests.client import (
    DB,
    OTHER,
    PROTECTED,
    ROOT,
    USER,
    Client,
    create,
    list_,
    ours,
    owed,
    problem,
    settled,
    token,
    user,
)
from tests.fixtures import Start, assert_outboxes_consistent
from tests.servers import MailServer, free_port
from tests.streams import listening
from tests.waiting import eventually_async

PROFILE = {"_id": ObjectId(USER), "email": "ann@example.com", "name": "Ann", "visits": [1, 2]}


async def erase(client: Client, user_id: str = USER, **options: Any) -> int:
    return (await client.post("/erase", params={"user_id": user_id}, **options)).status


async def test_other_traces_of_an_erased_user_are_where_the_page_says(client: Client, database: DB) -> None:
    page = (ROOT / "docs/api.md").read_text()
    (block,) = re.findall(
        r"tried by tests/test_erasure.py -->\n\n```js\ndb.users.updateMany\((.*?)\)\n```", page, re.DOTALL
    )
    filter_, update, options = loads(f"[{block}]")
    for target in (USER, OTHER):
        await create(client, OTHER, target_id=target)
    database.users.update_many(filter_, update, array_filters=options["arrayFilters"])
    assert [item.get("target_id") for item in (await list_(client, OTHER))["list"]] == [OTHER, None]


async def leave_everything(client: Client, database: DB) -> None:
    """Let the service hold all it can of `USER`, and something of another user."""
    database.users.insert_one(PROFILE)
    body = {"user_id": USER, "key": "new_login"}
    for key in ("a", "b"):
        assert (await client.post("/create", json=body, headers={"Idempotency-Key": key})).status == 201
    newest = (await list_(client))["list"][0]["id"]
    for path, json in (
        (f"/delete?notification_id={newest}&", None),
        ("/preferences?", {"*": {"email": False}}),
        ("/suppress?", {}),
        ("/seen?", None),
    ):
        assert (await client.post(f"{path}user_id={USER}", json=json)).status == 200
    window = {"id": "x", "key": "digest", "due": datetime(2100, 1, 1, tzinfo=UTC)}
    database.users.update_one({"_id": ObjectId(USER)}, {"$push": {"notifier.waiting": window}})
    database.dead_mail.insert_many([{"user_id": USER}, {"user_id": USER}, {"user_id": OTHER}])
    await create(client, OTHER, key="new_login")
    assert user(database).keys() == PROFILE.keys() | {"notifications", "notifier"}
    assert {f"notifier.{name}" for name in ours(database)} | {"notifications"} == set(WRITTEN)


async def test_i13_nothing_is_left_but_the_profile(start: Start, database: DB) -> None:
    client = await start(smtp_port=free_port())
    await leave_everything(client, database)

    async def is_erased() -> None:
        assert await erase(client) == 200  # 503 only while a probe of the mail server, which is gone, is under way

    for _ in range(2):
        await eventually_async(is_erased)
        assert user(database) == PROFILE
        assert [letter["user_id"] for letter in database.dead_mail.find()] == [OTHER]
        assert (await list_(client))["elements"] == 0
    assert len(ours(database, OTHER)["outbox"]) == 1
    await create(client)
    assert (await list_(client))["elements"] == 1


async def test_an_unknown_user_is_erased_too_dead_letters_included(client: Client, database: DB) -> None:
    database.dead_mail.insert_one({"user_id": USER})
    assert await erase(client) == 200
    assert (database.users.count_documents({}), database.dead_mail.count_documents({})) == (0, 0)


async def test_only_a_backend_may_erase(start: Start, database: DB) -> None:
    client = await start(**PROTECTED)
    database.users.insert_one(PROFILE | {"notifier": {"recent": []}})
    assert await erase(client, headers={"Authorization": f"Bearer {token()}"}) == 403
    assert ours(database) == {"recent": []}


async def test_erasing_keeps_unknown_fields_of_the_object(client: Client, database: DB) -> None:
    later = {"felt_at": datetime(2026, 1, 1, tzinfo=UTC), "of a later version": [1]}
    database.users.insert_one(PROFILE | {"notifications": [], "notifier": later | {"recent": [], "deleted": ["x"]}})
    assert await erase(client) == 200
    assert user(database) == PROFILE | {"notifier": later}


async def test_streams_show_an_erasure(client: Client) -> None:
    await create(client)
    async with listening(client) as stream:
        assert (await stream.next())["elements"] == 1
        assert await erase(client) == 200
        assert (await stream.next())["elements"] == 0


async def test_i13_during_a_conversation_it_is_503_and_200_afterwards(
    client: Client, database: DB, mail: MailServer
) -> None:
    release, busy = asyncio.Event(), asyncio.Event()

    async def script(stage: str, _recipient: str) -> str | None:
        if stage == "DATA":
            busy.set()
            await release.wait()
        return None

    mail.script = script
    await create(client, key="new_login")
    await busy.wait()
    response = await client.post("/erase", params={"user_id": USER})
    assert (response.status, response.headers["Retry-After"]) == (503, "5")
    await problem(response)
    assert len(user(database)["notifications"]) == 1
    release.set()
    await settled(database)
    assert await erase(client) == 200
    assert user(database).keys() == {"_id", "email"}
    assert len(mail.received) == 1


async def test_an_email_waiting_for_its_retry_is_erased_and_not_sent(
    client: Client, database: DB, mail: MailServer
) -> None:
    async def script(stage: str, _recipient: str) -> str | None:
        return "451 later" if stage == "RCPT" else None

    mail.script = script
    await create(client, key="registration")

    def has_failed() -> None:
        assert owed(database)[0]["error"]

    async def is_erased() -> None:
        assert await erase(client) == 200  # 503 only while an attempt is under way

    await eventually_async(has_failed)
    await eventually_async(is_erased)
    mail.script = None
    assert user(database).keys() == {"_id", "email"}
    await asyncio.sleep(1)
    assert mail.received == []


# --- crashes ----------------------------------------------------------------------------------------


async def dying(store: Store, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """Erase `USER`, but die when this method of the dead letters is reached."""

    async def die(*_: object) -> None:
        raise SystemExit

    monkeypatch.setattr(DeadMail, method, die)
    with pytest.raises(SystemExit):
        await store.erase(USER)
    monkeypatch.undo()


async def test_i13_after_a_crash_between_the_steps_a_repetition_erases(
    settings: Settings, database: DB, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.dead_mail.insert_one({"user_id": USER})
    async with open_store(settings) as store:
        await store.create(Create(USER, SPECIFIED["new_login"]))
        await dying(store, monkeypatch, "discard_of_user")
        assert user(database).keys() == {"_id", "email"}
        assert database.dead_mail.count_documents({}) == 1
        await store.erase(USER)
        assert database.dead_mail.count_documents({}) == 0


@pytest.mark.parametrize("times", [1, 2])
async def test_i13_a_frozen_worker_leaves_no_letter_of_an_erased_user(
    settings: Settings, database: DB, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """It wakes after its lease has ended and the user was erased, and only then writes the dead letter."""
    write = DeadMail._write

    async with open_store(settings) as store:
        await store.create(Create(USER, SPECIFIED["registration"]))
        (email,) = await store.outbox.claim(1, 0.3)

        async def frozen(dead_mail: DeadMail, *arguments: Any) -> None:
            await asyncio.sleep(0.5)
            await store.erase(USER)
            for _ in range(times):  # twice, as if the first reply had been lost
                await write(dead_mail, *arguments)

        monkeypatch.setattr(DeadMail, "_write", frozen)
        assert await store.dead_mail.bury(email, 1, "x")
        assert database.dead_mail.count_documents({}) == 0


@pytest.mark.parametrize(
    "order",
    [
        ["frozen", "next"],
        ["next", "frozen"],
        ["next", "frozen", "frozen"],
        ["frozen", "next", "frozen"],
        ["frozen", "next", "frozen", "frozen"],
    ],
    ids="-".join,
)
async def test_a_frozen_worker_keeps_the_next_workers_letter(
    settings: Settings, database: DB, monkeypatch: pytest.MonkeyPatch, order: list[str]
) -> None:
    """In whatever order the two write the letter, and the frozen one again, as if a reply had been lost."""
    write = DeadMail._write

    async with open_store(settings) as store:
        await store.create(Create(USER, SPECIFIED["registration"]))
        (email,) = await store.outbox.claim(1, 0.3)

        async def frozen(dead_mail: DeadMail, *arguments: Any) -> None:
            monkeypatch.setattr(DeadMail, "_write", write)
            for worker in order:
                if worker == "frozen":
                    await write(dead_mail, *arguments)
                    continue
                await asyncio.sleep(0.5)
                (again,) = await store.outbox.claim(1, 60)
                assert again.dead
                assert await store.dead_mail.bury(again, again.tries, again.error)

        monkeypatch.setattr(DeadMail, "_write", frozen)
        assert await store.dead_mail.bury(email, 1, "x")
        assert database.dead_mail.count_documents({}) == 1
        assert_outboxes_consistent(database)


async def test_i13_a_retry_of_letters_read_before_erasing_owes_nothing(settings: Settings, database: DB) -> None:
    async with open_store(settings) as store:
        await store.create(Create(USER, SPECIFIED["registration"]))
        (email,) = await store.outbox.claim(1, 60)
        assert await store.dead_mail.bury(email, 1, "x")
        (letter,) = await store.dead_mail.find()
        await store.erase(USER)
        assert not await store.dead_mail.owe_again(letter)
    assert owed(database) == []
