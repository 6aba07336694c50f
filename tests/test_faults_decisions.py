"""Promises about what users decide: a deletion holds, an opt-out stops e-mails, whatever fails meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId

from handlers import STORE
from mongo.outbox import Look
from mongo.owed import OwedEmail
from tests.client import DB, USER, Client, create, list_, ours, owed, settled
from tests.faults import failing, impatient
from tests.fixtures import Start
from tests.proxy import FAULTS, Proxy
from tests.servers import MailServer, Mongod
from tests.waiting import eventually_async


@pytest.fixture
async def proxied(mongod: Mongod) -> AsyncIterator[tuple[Proxy, str, str]]:
    """Return a proxy of MongoDB, and connection strings with and without it to a new database.

    Asked for before `start`, it outlives the services, which could not give their leases back without it.
    """
    name, proxy = f"decided_{ObjectId()}", Proxy(mongod.port)
    async with proxy.running():
        uris = [f"mongodb://127.0.0.1:{port}/{name}?directConnection=true" for port in (proxy.port, mongod.port)]
        yield proxy, uris[0], uris[1]
    with mongod.client() as client:
        client.drop_database(name)


async def nothing_is_owed(client: Client) -> None:
    """Wait until no e-mail is owed."""
    users = client.app[STORE].users.collection

    async def is_settled() -> None:
        assert await users.count_documents({"notifier.due": {"$exists": True}}) == 0

    await eventually_async(is_settled)


# --- a deleted notification never comes back ----------------------------------------------------------


@pytest.mark.parametrize(("command", "number"), [("findAndModify", 1), ("updates", 20)], ids=["alone", "shared"])
@pytest.mark.parametrize("key", [None, "k"], ids=["without a key", "with a key"])
@impatient
async def test_i11_a_create_repeated_after_deletion_restores_nothing(
    proxied: Any, start: Start, mail: MailServer, command: str, number: int, key: str | None
) -> None:
    """Its first attempt took effect and the reply was lost; before the next one, the user deletes."""
    proxy, uri, direct_uri = proxied
    client, other = await start(db_uri=uri), await start(db_uri=direct_uri)
    users = [f"{n:024x}" for n in range(number)]
    headers = {"Idempotency-Key": key} if key else {}

    async def create_for(user_id: str) -> tuple[int, bool]:
        response = await client.post("/create", json={"user_id": user_id, "key": "new_login"}, headers=headers)
        return response.status, "Idempotent-Replayed" in response.headers

    async def delete_for(user_id: str) -> None:
        async def is_there() -> None:
            assert (await list_(other, user_id))["elements"] == 1

        await eventually_async(is_there)
        response = await other.post("/delete", params={"user_id": user_id, "all": "true"})
        assert response.status == 200

    proxy.break_next(command, "swallow")
    creations = [asyncio.create_task(create_for(user_id)) for user_id in users]
    await asyncio.gather(*map(delete_for, users))
    assert proxy.faults == 1
    assert await asyncio.gather(*creations) == [(201, False)] * number
    for user_id in users:
        assert (await list_(other, user_id))["elements"] == 0
    await nothing_is_owed(other)
    assert len(mail.ids) == len(set(mail.ids)) <= number  # most were taken back


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("selector", ["notification_id", "all"])
@impatient
async def test_i11_a_deletion_with_a_lost_reply_happens_once(
    proxied: Any, start: Start, fault: str, selector: str
) -> None:
    proxy, uri, _ = proxied
    client = await start(db_uri=uri)
    for _ in range(2):
        await create(client)
    newest, oldest = [item["id"] for item in (await list_(client))["list"]]
    proxy.break_next("update", fault)
    value = newest if selector == "notification_id" else "true"
    response = await client.post("/delete", params={"user_id": USER, selector: value})
    assert (response.status, proxy.faults) == (200, 1)
    left = [item["id"] for item in (await list_(client))["list"]]
    assert left == ([oldest] if selector == "notification_id" else [])


@impatient
async def test_i1_a_repeated_deletion_spares_newer_notifications(proxied: Any, start: Start) -> None:
    proxy, uri, direct_uri = proxied
    client, other = await start(db_uri=uri), await start(db_uri=direct_uri)
    await create(client)
    proxy.break_next("update", "swallow")
    deletion = asyncio.create_task(client.post("/delete", params={"user_id": USER, "all": "true"}))

    async def is_deleted() -> None:
        assert (await list_(other))["elements"] == 0

    await eventually_async(is_deleted)
    await create(other, data={"n": 2})
    assert ((await deletion).status, proxy.faults) == (200, 1)
    assert [item["data"] for item in (await list_(other))["list"]] == [{"n": 2}]


# --- an opt-out that was answered ---------------------------------------------------------------------


@pytest.fixture
def kinds(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "kinds.toml").write_text("[digest]\nemail = true\n")
    return {"kinds_file": tmp_path / "kinds.toml"}


@pytest.mark.parametrize("fault", FAULTS)
@impatient
async def test_i12_an_opt_out_with_a_lost_reply_takes_effect(
    proxied: Any, start: Start, mail: MailServer, kinds: dict[str, Any], fault: str
) -> None:
    proxy, uri, _ = proxied
    client = await start(db_uri=uri, **kinds)
    await create(client, key="digest")
    await nothing_is_owed(client)
    proxy.break_next("findAndModify", fault)
    response = await client.post("/preferences", params={"user_id": USER}, json={"*": {"email": False}})
    assert (response.status, (await response.json())["data"]["digest"]["email"], proxy.faults) == (200, False, 1)
    await create(client, key="digest")
    await nothing_is_owed(client)
    assert len(mail.received) == 1


@impatient
@pytest.mark.ci
async def test_i12_an_email_waits_if_preferences_cannot_be_read(
    start: Start, database: DB, mail: MailServer, mongod: Mongod, kinds: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is neither sent against an opt-out that nobody could read, nor lost."""
    client = await start(mail_lease_seconds=1.0, **kinds)
    outbox, attempts = client.app[STORE].outbox, 0
    look = outbox.look

    async def unreadable_at_first(emails: Sequence[OwedEmail]) -> Sequence[Look | None]:
        nonlocal attempts
        attempts += 1
        with failing(mongod, ["find"], errorCode=11600) if attempts == 1 else nullcontext():
            return await look(emails)

    monkeypatch.setattr(outbox, "look", unreadable_at_first)
    await create(client, key="digest")
    await settled(database)
    assert (attempts >= 2, len(mail.received)) == (True, 1)


async def test_an_email_is_not_sent_if_its_user_was_deleted(
    start: Start, database: DB, mail: MailServer, kinds: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await start(**kinds)
    outbox, checked = client.app[STORE].outbox, asyncio.Event()
    look = outbox.look

    async def after_deletion(emails: Sequence[OwedEmail]) -> Sequence[Look | None]:
        database.users.delete_one({"_id": ObjectId(USER)})
        checked.set()
        return await look(emails)

    monkeypatch.setattr(outbox, "look", after_deletion)
    await create(client, key="digest")
    await checked.wait()
    await asyncio.sleep(0.3)
    assert mail.received == []


# --- a bounce -----------------------------------------------------------------------------------------


async def test_a_worker_dying_on_a_bounce_has_suppressed_the_address(
    start: Start, database: DB, mail: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The update that marks the e-mail dead also suppresses its address."""

    async def refuse(stage: str, _recipient: str) -> str | None:
        return "550 5.1.1 no such user" if stage == "RCPT" else None

    mail.script = refuse
    client = await start(mail_lease_seconds=1.0)
    monkeypatch.setattr(client.app[STORE].dead_mail, "_write", asyncio.Event().wait)
    await create(client, key="registration")

    def is_marked() -> None:
        assert owed(database)[0]["dead"]

    await eventually_async(is_marked)
    assert ours(database)["suppression"]["code"] == "5.1.1"
    await client.close()
    mail.script = None
    monkeypatch.undo()
    await start(mail_lease_seconds=1.0)
    await settled(database)
    (letter,) = database.dead_mail.find()
    assert (letter["error"], mail.received) == ("RCPT: 550 5.1.1 no such user", [])
