"""Promises I2, I3 and I8: every e-mail owed is delivered or becomes one dead letter, and none is dropped."""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest
from bson import ObjectId, encode

from kinds import SPECIFIED
from mongo.creation import Create
from mongo.document import OUTBOX_LIMIT
from mongo.owed import NO_TOKEN, OwedEmail, new_element
from settings import Settings
from store import open_store
from tests.client import DB, OTHER, USER, Client, assert_length, create, list_, owed, owing, settled, user
from tests.faults import scripted
from tests.fixtures import Start
from tests.processes import running_service
from tests.servers import MailServer, free_port, smtp_server
from tests.waiting import eventually_async

# --- I2, I3: delivered or one dead letter, under one Message-ID and Date -------------------------


@pytest.mark.ci
async def test_i2_i3_killed_after_the_250_it_resends_the_same_email(
    settings: Settings, database: DB, mail: MailServer, tmp_path: Path
) -> None:
    service = await running_service(settings, tmp_path)

    async def script(stage: str, _recipient: str) -> str | None:
        if stage == "DATA" and not mail.received:
            service.kill()
        return None

    mail.script = script
    async with open_store(settings) as direct:
        await direct.create(Create(USER, SPECIFIED["registration"]))
    await eventually_async(lambda: assert_length(mail.received, 1))
    service.restart()
    await eventually_async(lambda: assert_length(mail.received, 2), 30)
    await settled(database)
    service.kill()
    first, second = (message for _, message in mail.received)
    assert first["Message-ID"] == second["Message-ID"]
    assert first["Date"] == second["Date"]
    assert database.dead_mail.count_documents({}) == 0


@pytest.mark.parametrize(
    ("replies", "deliveries"),
    [
        pytest.param({"RCPT": ["451 4.3.0 later"]}, 1, id="451, then 250"),
        pytest.param({"MAIL": [None, None, None, "421 4.7.0 too many"]}, 1, id="421 at the fourth MAIL"),
        pytest.param({"MAIL": ["421 4.3.2 shutting down"] * 2}, 1, id="421 at MAIL"),
        pytest.param({"MAIL": ["drop"]}, 1, id="drop at MAIL"),
        pytest.param({"RCPT": ["hang"]}, 1, id="hang at RCPT"),
        pytest.param({"DATA": ["452 4.3.1 full"]}, 1, id="452 after the dot"),
        pytest.param({"DATA": ["drop"]}, 1, id="drop after the dot"),
        pytest.param({"DATA": ["250 OK and drop"]}, 2, id="taken, and drop before the 250"),
        pytest.param({"MAIL": ["999 what"]}, 1, id="nonsense"),
    ],
)
async def test_i2_i3_a_server_fault_delays_an_email_but_never_kills_it(
    start: Start, database: DB, mail: MailServer, replies: dict[str, list[str | None]], deliveries: int
) -> None:
    mail.script = scripted(replies)
    client = await start(smtp_connections=1, smtp_command_timeout=0.3)
    for n in range(5):
        await create(client, f"{n:024x}", "registration")
        await asyncio.sleep(0.02)
    await settled(database)
    assert database.dead_mail.count_documents({}) == 0
    assert len(set(mail.ids)) == 5
    assert 5 <= len(mail.ids) <= 4 + deliveries
    assert len({(message["Message-ID"], message["Date"]) for _, message in mail.received}) == 5


async def test_i2_an_email_in_a_nearly_full_document_is_delivered(
    client: Client, database: DB, mail: MailServer
) -> None:
    profile = {"email": "ann@example.com", "blob": b"", "notifier": {"outbox": [], "recent": []}}
    database.users.insert_one({"_id": ObjectId(OTHER), **profile})
    before = len(encode(user(database, OTHER)))
    mail.script = scripted({"MAIL": ["451 wait"], "RCPT": ["451 " + "long " * 80]})
    await create(client, OTHER, "registration")
    room = len(encode(user(database, OTHER))) - before  # for what `create` adds, and not a byte more
    await settled(database)
    mail.received.clear()
    mail.script = scripted({"RCPT": ["451 " + "long " * 80]})
    database.users.insert_one({"_id": ObjectId(USER), **profile, "blob": b"x" * (16 * 1024 * 1024 - before - room)})
    response = await client.post("/create", json={"user_id": USER, "key": "registration"})
    assert response.status == 201
    await settled(database)
    assert [recipient for recipient, _ in mail.received] == ["ann@example.com"]


@pytest.mark.parametrize("crashes", [0, 1])
async def test_i2_a_crash_that_cannot_be_counted_is_the_last(settings: Settings, database: DB, crashes: int) -> None:
    element = new_element(f"{ObjectId()}", "registration", datetime.now(UTC), {})
    document = {"_id": ObjectId(USER), "blob": b"", **owing(element)}
    database.users.insert_one({**document, "blob": b"x" * (16 * 1024 * 1024 - len(encode(document)))})
    async with open_store(settings) as store:
        (email,) = await store.outbox.claim(1, 60)
        assert await store.outbox.retry(
            email, 60, "rendering took more than 2 s", tries=0, waited=60.0, crashes=crashes
        )
    (after,) = owed(database)
    assert (after["dead"], after["token"], after.keys()) == (bool(crashes), NO_TOKEN, element.keys())


@pytest.mark.parametrize(
    ("stage", "reply"),
    [
        ("RCPT", "550 5.1.1 unknown"),
        ("RCPT", "552 5.2.2 full"),
        ("DATA", "550 No such user"),
    ],
)
async def test_i2_a_permanent_refusal_makes_one_dead_letter_at_once(
    client: Client, database: DB, mail: MailServer, stage: str, reply: str
) -> None:
    mail.script = scripted({stage: [reply]})
    await create(client, key="registration")
    await settled(database)
    (letter,) = database.dead_mail.find()
    assert (letter["error"], letter["tries"], mail.received) == (f"{stage}: {reply}", 1, [])


async def test_i2_a_refusal_counts_even_if_the_server_then_hangs(
    start: Start, database: DB, mail: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await start(smtp_command_timeout=60.0)

    async def hang(*_: object) -> str:
        await asyncio.sleep(30)
        return "250 OK"

    monkeypatch.setattr(MailServer, "handle_RSET", hang, raising=False)
    mail.script = scripted({"RCPT": ["550 5.1.1 unknown"]})
    await create(client, key="registration")
    await settled(database)
    assert database.dead_mail.count_documents({}) == 1


async def test_i2_an_email_is_given_up_in_time_if_others_get_through(
    start: Start, database: DB, mail: MailServer
) -> None:
    async def script(stage: str, recipient: str) -> str | None:
        return "451 4.2.0 later" if stage == "RCPT" and recipient == "ann@example.com" else None

    mail.script = script
    database.users.insert_one({"_id": ObjectId(USER), "email": "ann@example.com"})
    client = await start(mail_retry_minutes=(0.003, 0.004), mail_give_up_hours=0.0066 / 60)
    await create(client, key="registration")

    async def others_get_through_until_it_dies() -> None:
        await create(client, OTHER, "registration")
        assert database.dead_mail.count_documents({}) == 1

    await eventually_async(others_get_through_until_it_dies)
    (letter,) = database.dead_mail.find()
    assert letter["tries"] >= 4
    assert letter["error"] == "Given up: RCPT: 451 4.2.0 later"


@pytest.mark.ci
async def test_i2_an_email_that_is_refused_alone_is_not_given_up(start: Start, database: DB, mail: MailServer) -> None:
    mail.script = scripted({"RCPT": ["451 4.2.0 later"] * 12})
    client = await start(mail_retry_minutes=(0.001, 0.002), mail_give_up_hours=0.0066 / 60)
    await create(client, key="registration")
    await settled(database)
    assert (len(mail.received), database.dead_mail.count_documents({})) == (1, 0)


async def test_i2_a_worker_that_dies_after_a_dead_letter_leaves_one(
    settings: Settings, database: DB, start: Start, mail: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store(settings) as direct:
        await direct.create(Create(USER, SPECIFIED["registration"]))
        (claimed,) = await direct.outbox.claim(1, 0.1)

        async def die(_: OwedEmail) -> bool:
            raise asyncio.CancelledError

        monkeypatch.setattr(direct.outbox, "remove", die)  # the last step
        with pytest.raises(asyncio.CancelledError):
            await direct.dead_mail.bury(claimed, 1, "RCPT: 550")
    assert (database.dead_mail.count_documents({}), len(owed(database))) == (1, 1)
    await start()
    await settled(database)
    (letter,) = database.dead_mail.find()
    assert (letter["error"], mail.received) == ("RCPT: 550", [])


# --- I8: the outbox is limited without silent loss -----------------------------------------------


async def test_i8_without_a_mail_server_at_most_100_emails_are_owed(
    start: Start, database: DB, server_tls: ssl.SSLContext
) -> None:
    port = free_port()
    client = await start(smtp_port=port, notifications_limit=1000)
    bodies = [{"user_id": USER, "key": key} for key in ("new_login", "registration") for _ in range(80)]
    responses = await asyncio.gather(*(client.post("/create", json=body) for body in bodies))
    logins, registrations = responses[:80], responses[80:]
    assert Counter(response.status for response in logins) == {201: 80}
    said = Counter(response.headers.get("X-Email") for response in logins)
    answers = Counter((response.status, response.headers.get("Retry-After")) for response in registrations)
    assert said.keys() <= {None, "not-owed"}
    assert answers.keys() <= {(201, None), (503, "60")}
    assert said[None] + answers[201, None] == OUTBOX_LIMIT == len(owed(database))
    assert (await list_(client))["elements"] == 80
    told = [response.headers["X-Notification-ID"] for response in logins if "X-Email" not in response.headers]
    async with smtp_server(server_tls, port=port) as mail:
        await settled(database, 60)
        assert len(set(mail.ids)) == len(mail.ids) == OUTBOX_LIMIT
        assert set(told) <= set(mail.ids)
    await create(client, key="new_login")
