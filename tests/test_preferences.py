"""`/preferences`: what it answers, what is stored, and what becomes of the e-mails."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId

from mail.connection import Connection, Opener
from mongo.inbox import wants_email
from settings import UnknownUsers
from tests.client import (
    DB,
    OTHER,
    PROTECTED,
    USER,
    Client,
    assert_nothing_owed,
    counted,
    create,
    ours,
    problem,
    settled,
    user,
)
from tests.client import token as token_of
from tests.fixtures import Start
from tests.servers import MailServer, free_port
from tests.waiting import eventually_async

KINDS = """
[digest]
email = true
[invoice]
email = true
[receipt]
email = true
required = true
[comment]
"""
OFF, ON, DEFAULT = {"email": False}, {"email": True}, {"email": None}


@pytest.fixture
def kinds(tmp_path: Path) -> dict[str, Any]:
    """Return the setting of a file with two kinds that a user may opt out of, one required, and one without e-mail."""
    (tmp_path / "kinds.toml").write_text(KINDS)
    return {"kinds_file": tmp_path / "kinds.toml"}


@pytest.fixture
async def client(start: Start, kinds: dict[str, Any]) -> Client:
    return await start(**kinds)


async def change(client: Client, body: object, user_id: str = USER) -> dict[str, bool]:
    """Change preferences; return which kinds are then e-mailed."""
    response = await client.post("/preferences", params={"user_id": user_id}, json=body)
    answer = await response.json()
    assert (response.status, answer["success"]) == (200, True), answer
    shown = await (await client.get("/preferences", params={"user_id": user_id})).json()
    assert shown == answer
    assert {name: kind["required"] for name, kind in answer["data"].items()} == {
        "digest": False,
        "invoice": False,
        "receipt": True,
    }
    return {name: kind["email"] for name, kind in answer["data"].items()}


def state(*, digest: bool = True, invoice: bool = True) -> dict[str, bool]:
    return {"digest": digest, "invoice": invoice, "receipt": True}


async def test_an_unknown_user_has_the_default_and_stays_unknown(client: Client, database: DB) -> None:
    response = await client.get("/preferences", params={"user_id": USER})
    assert (await response.json())["data"] == {
        "digest": {"email": True, "required": False},
        "invoice": {"email": True, "required": False},
        "receipt": {"email": True, "required": True},
    }
    assert database.users.count_documents({}) == 0


CHANGES = [
    pytest.param([{"digest": OFF}], {"digest": False}, {"digest": OFF}, id="one"),
    pytest.param([{"digest": OFF}, {"digest": ON}], {}, None, id="and back"),
    pytest.param([{"digest": OFF}, {"digest": None}], {}, None, id="and to the default"),
    pytest.param([{"digest": OFF}, {"digest": DEFAULT}], {}, None, id="and to the default of the channel"),
    pytest.param([{"digest": OFF}, {"invoice": OFF}], {"digest": False, "invoice": False}, None, id="partial"),
    pytest.param([{"*": OFF}], {"digest": False, "invoice": False}, {"*": OFF}, id="all"),
    pytest.param([{"*": OFF}, {"*": None}], {}, None, id="all, and back"),
    pytest.param([{"*": OFF, "digest": ON}], {"invoice": False}, {"*": OFF, "digest": ON}, id="all but one"),
    pytest.param([{"*": OFF}, {"digest": ON}], {"invoice": False}, {"*": OFF, "digest": ON}, id="all, later but one"),
    pytest.param([{"*": OFF, "digest": ON}, {"digest": None}], {"digest": False, "invoice": False}, None, id="follow"),
    pytest.param([{"*": OFF, "digest": ON}, {"*": ON}], {}, None, id="all but one, and back"),
    pytest.param([{"digest": ON, "receipt": ON}], {}, None, id="no difference"),
    pytest.param([{}], {}, None, id="nothing"),
]


@pytest.mark.parametrize(("bodies", "expected", "stored"), CHANGES)
async def test_changes_are_partial_and_only_differences_are_stored(
    client: Client, database: DB, bodies: list[object], expected: dict[str, bool], stored: object
) -> None:
    await create(client, key="comment")
    for body in bodies:
        found = await change(client, body)
    assert found == state(**expected)
    if stored is not None or not expected:
        assert ours(database).get("preferences") == stored


REFUSED = [
    ({"unknown": OFF}, "Must be one of: digest, invoice, receipt, *."),
    ({"comment": OFF}, "Must be one of"),
    ({"receipt": OFF}, "nobody can opt out"),
    ({"digest": False}, 'Must be {"email": true}'),
    ({"digest": {}}, 'Must be {"email": true}'),
    ({"digest": {"email": 0}}, 'Must be {"email": true}'),
    ({"digest": {"email": "false"}}, 'Must be {"email": true}'),
    ({"digest": {"email": False, "sms": True}}, 'Must be {"email": true}'),
    ({"*": []}, 'Must be {"email": true}'),
]


@pytest.mark.parametrize(("body", "reason"), REFUSED)
async def test_a_wrong_body_is_422_and_changes_nothing(
    client: Client, database: DB, body: dict[str, object], reason: str
) -> None:
    response = await client.post("/preferences", params={"user_id": USER}, json={"invoice": OFF} | body)
    assert response.status == 422
    ((name, (said,)),) = (await problem(response))["errors"].items()
    assert name == next(iter(body))
    assert reason in said
    assert database.users.count_documents({}) == 0


async def test_every_fault_is_named_at_once_but_no_more_than_sixteen(client: Client) -> None:
    body = {"receipt": OFF, **{f"kind{n}": OFF for n in range(1000)}}
    response = await client.post("/preferences", params={"user_id": "x"}, json=body)
    errors = (await problem(response))["errors"]
    assert {"user_id", "receipt", "kind0"} <= errors.keys()
    assert len(errors) == 17


async def test_a_user_without_a_document_can_opt_out(start: Start, client: Client, database: DB, kinds: Any) -> None:
    assert await change(client, {"*": OFF}) == state(digest=False, invoice=False)
    assert user(database) == {
        "_id": ObjectId(USER),
        "email": "new-user@example.com",
        "notifier": {"preferences": {"*": OFF}},
    }
    refusing = await start(unknown_users=UnknownUsers.REFUSE, **kinds)
    response = await refusing.post("/preferences", params={"user_id": OTHER}, json={"*": OFF})
    assert (response.status, database.users.count_documents({})) == (404, 1)


async def test_a_token_opens_ones_own_preferences_only(start: Start, kinds: Any) -> None:
    client = await start(**PROTECTED, **kinds)
    headers = {"Authorization": f"Bearer {token_of()}"}
    for user_id, status in ((USER, 200), (OTHER, 403)):
        params = {"user_id": user_id}
        assert (await client.get("/preferences", params=params, headers=headers)).status == status
        assert (await client.post("/preferences", params=params, headers=headers, json={"*": OFF})).status == status


@pytest.mark.parametrize("value", ["off", [], ["off"], False, 5], ids=repr)
async def test_preferences_of_another_type_are_409_and_stay(
    client: Client, database: DB, mail: MailServer, value: Any
) -> None:
    database.users.insert_one({"_id": ObjectId(USER), "email": "a@b.c", "notifier": {"preferences": value}})
    response = await client.post("/preferences", params={"user_id": USER}, json={"*": OFF})
    assert response.status == 409
    await create(client, key="digest")
    await settled(database)
    assert len(mail.received) == 1
    assert ours(database)["preferences"] == value


@pytest.mark.parametrize("value", [{"digest": True}, {"digest": {"email": 1}}, {"push": {"sms": 1}}], ids=repr)
async def test_odd_entries_mute_nothing_and_go_with_the_next_change(
    client: Client, database: DB, mail: MailServer, value: Any
) -> None:
    database.users.insert_one({"_id": ObjectId(USER), "email": "a@b.c", "notifier": {"preferences": value}})
    await create(client, key="digest")
    await settled(database)
    assert len(mail.received) == 1
    assert ours(database)["preferences"] == value
    assert await change(client, {"invoice": OFF}) == state(invoice=False)
    assert ours(database)["preferences"] == {"invoice": OFF}


def test_foreign_values_in_preferences_are_ignored() -> None:
    assert wants_email({"digest": {"email": "no"}, "*": OFF}, "digest") is False
    assert wants_email({"digest": None, "*": {"email": 0}}, "digest") is True
    assert wants_email([OFF], "digest") is True


# --- the e-mails ------------------------------------------------------------------------------------


async def one_is_muted(client: Client) -> None:
    """Wait until one e-mail was counted as muted."""
    await counted(client, 'notifier_emails_total{outcome="muted",reason="muted"}', 1)


async def test_i2_i12_an_opt_out_stops_what_is_owed_and_is_counted(
    start: Start, database: DB, mail: MailServer, kinds: Any
) -> None:
    down = await start(smtp_port=free_port(), **kinds)
    for key in ("digest", "invoice", "receipt"):
        await create(down, key=key)
    assert await change(down, {"digest": OFF}) == state(digest=False)
    await down.close()
    client = await start(**kinds)
    await settled(database)
    assert sorted(message["Subject"] for _, message in mail.received) == ["invoice", "receipt"]
    await one_is_muted(client)
    assert database.dead_mail.count_documents({}) == 0
    assert len(user(database)["notifications"]) == 3


async def test_all_off_mutes_what_is_not_required(client: Client, database: DB, mail: MailServer) -> None:
    await change(client, {"*": OFF, "invoice": ON})
    for key in ("digest", "invoice", "receipt"):
        await create(client, key=key)
    await settled(database)
    assert sorted(message["Subject"] for _, message in mail.received) == ["invoice", "receipt"]


async def test_i12_an_opt_out_stops_an_email_that_waits_for_its_turn(
    start: Start, database: DB, mail: MailServer, kinds: Any
) -> None:
    """Its worker had claimed it before; the only connection is busy with another user's e-mail."""
    client = await start(smtp_connections=1, **kinds)
    release, busy = asyncio.Event(), asyncio.Event()

    async def script(stage: str, _recipient: str) -> str | None:
        if stage == "RCPT" and not busy.is_set():
            busy.set()
            await release.wait()
        return None

    mail.script = script
    await create(client, OTHER, key="digest")
    await busy.wait()
    await create(client, USER, key="digest")

    def is_claimed() -> None:
        assert ours(database)["outbox"][0]["token"] != "0" * 24

    await eventually_async(is_claimed)
    assert await change(client, {"digest": OFF}) == state(digest=False)
    release.set()
    await eventually_async(lambda: assert_nothing_owed(database))
    await one_is_muted(client)
    assert len(mail.received) == 1


async def test_i12_an_opt_out_stops_an_email_without_a_connection(
    start: Start, database: DB, mail: MailServer, kinds: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    opening, release = asyncio.Event(), asyncio.Event()
    open_connection = Opener.open

    async def slow(opener: Opener, tries: int = 1) -> Connection:
        opening.set()
        await release.wait()
        return await open_connection(opener, tries)

    monkeypatch.setattr(Opener, "open", slow)
    client = await start(**kinds)
    for user_id in (USER, OTHER):
        await create(client, user_id, key="digest")
    await opening.wait()
    assert await change(client, {"digest": OFF}) == state(digest=False)
    release.set()
    await settled(database)
    await one_is_muted(client)
    assert len(mail.received) == 1
