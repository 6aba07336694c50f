"""`/delete` takes back e-mails, until the look before they are sent."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from bson import ObjectId

from tests.client import DB, OTHER, TARGET, USER, Client, assert_nothing_owed, create, list_, ours, owed, owing, user
from tests.faults import far_from_due
from tests.fixtures import Start
from tests.odd_documents import OWN
from tests.servers import MailServer, free_port
from tests.waiting import eventually_async


@pytest.fixture
async def down(start: Start) -> Client:
    """Start the service with a mail server that does not answer."""
    return await start(smtp_port=free_port())


async def told(client: Client, key: str, **fields: Any) -> str:
    """Create a notification; return its id."""
    response = await client.post("/create", json={"user_id": USER, "key": key, **fields})
    assert response.status == 201
    return response.headers["X-Notification-ID"]


async def delete(client: Client, user_id: str = USER, **selector: str) -> int:
    response = await client.post("/delete", params={"user_id": user_id, **selector})
    return response.status


def ids_owed(database: DB) -> list[str]:
    return [email["id"] for email in owed(database)]


@pytest.mark.parametrize("selector", [{"key": "new_login"}, {"target_id": TARGET}, {"all": "true"}], ids=str)
async def test_deleting_a_notification_withdraws_its_emails(
    down: Client, database: DB, selector: dict[str, str]
) -> None:
    await told(down, "new_login", target_id=TARGET)
    alone = await told(down, "registration")
    await told(down, "new_login", target_id=TARGET)
    await create(down, OTHER, "new_login", target_id=TARGET)
    assert await delete(down, **selector) == 200
    assert ids_owed(database)[:-1] == [alone]
    assert (await list_(down))["elements"] == 0
    assert len(owed(database)) == 2
    assert await delete(down, notification_id=alone) == 200
    assert len(ours(database)["deleted"]) == 3
    assert "due" not in ours(database)


async def test_an_email_alone_is_deleted_by_its_id_once_and_for_good(down: Client, database: DB) -> None:
    kept, alone = await told(down, "new_login"), await told(down, "registration")
    assert await delete(down, OTHER, notification_id=alone) == 404
    assert [await delete(down, notification_id=alone) for _ in range(2)] == [200, 200]
    assert (ids_owed(database), ours(database)["deleted"]) == ([kept], [alone])
    assert (await list_(down))["elements"] == 1
    assert await delete(down, notification_id=kept) == 200
    assert (ids_owed(database), "due" in ours(database)) == ([], False)


async def test_an_email_of_a_notification_pushed_out_is_taken_back(start: Start, database: DB) -> None:
    client = await start(smtp_port=free_port(), notifications_limit=2, notifications_slack=4)
    first = await told(client, "new_login")
    for _ in range(3):
        await create(client)
    assert await delete(client, notification_id=first) == 200
    assert (ids_owed(database), len(user(database)["notifications"])) == ([], 2)


@pytest.mark.parametrize("key", ["new_login", "registration"])
async def test_an_email_that_is_claimed_is_taken_back_until_its_look(
    start: Start, database: DB, mail: MailServer, key: str
) -> None:
    """The only connection is busy with another user's e-mail. Both kinds are required, so that nobody can opt out."""
    client = await start(smtp_connections=1)
    release, busy = asyncio.Event(), asyncio.Event()

    async def script(stage: str, _recipient: str) -> str | None:
        if stage == "RCPT" and not busy.is_set():
            busy.set()
            await release.wait()
        return None

    mail.script = script
    await create(client, OTHER, key="registration")
    await busy.wait()
    id_ = await told(client, key)

    def is_claimed() -> None:
        assert ours(database)["outbox"][0]["token"] != "0" * 24

    await eventually_async(is_claimed)
    assert await delete(client, notification_id=id_) == 200
    assert ours(database)["outbox"] == []
    release.set()
    last = await told(client, "registration")
    await eventually_async(lambda: assert_nothing_owed(database))
    sent = [message["Message-ID"].strip("<>").partition("@")[0] for _, message in mail.received]
    assert (sent.count(id_), sent.count(last), len(sent)) == (0, 1, 2)


async def test_an_outbox_of_another_program_stays_as_it_is(client: Client, database: DB) -> None:
    odd = {"outbox": [OWN, None, "x"], "due": "soon"}
    database.users.insert_one({"_id": ObjectId(USER), "notifier": odd})
    await create(client)
    assert await delete(client, all="true") == 200
    assert {name: ours(database)[name] for name in odd} == odd
    database.users.delete_many({})
    await create(client)
    assert await delete(client, all="true") == 200
    assert ours(database).keys() == {"deleted"}


async def test_other_emails_keep_when_they_are_due(down: Client, database: DB) -> None:
    later = far_from_due(1)
    database.users.insert_one({"_id": ObjectId(USER), "email": "a@b.example", **owing(later)})
    id_ = await told(down, "new_login")
    assert ours(database)["due"] < later["next_at"]
    assert await delete(down, notification_id=id_) == 200
    assert ours(database)["due"] == later["next_at"]
