"""E-mails about what is still unread, and about many notifications at once, from the request to the mail server."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId

import handlers
from mail.lease import VALID, Lease
from mail.message import Letters
from mail.templates import Content
from settings import Settings
from tests.client import DB, OTHER, TARGET, USER, Client, assert_length, counted, create, list_, metric, ours, settled
from tests.faults import scripted
from tests.fixtures import Start
from tests.processes import command
from tests.servers import MailServer, free_port
from tests.templates import write
from tests.waiting import eventually_async
from tests.windows import end_windows, kinds, told

READ = 'notifier_emails_total{outcome="read",reason="read"}'
TEXT = "{% for item in notifications %}{{ item.data.n }}{{ '' if item.is_new else '!' }} {% endfor %}of {{ count }}"
TEMPLATES = {
    "answer.subject.txt": "{{ count }} answers, the last from {{ data.name }}",
    "answer.txt": "{{ target_id }}: " + TEXT,
    "digest.txt": TEXT,
    "price.txt": TEXT,
}


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    """Return the settings of a service with kinds and templates, and with one connection."""
    return {**kinds(tmp_path), "templates_dir": write(tmp_path, TEMPLATES), "smtp_connections": 1}


@pytest.fixture
async def client(start: Start, options: dict[str, Any]) -> Client:
    return await start(**options)


def end(client: Client, database: DB) -> None:
    """Let all windows have ended, and the worker look."""
    end_windows(database)
    client.app[handlers.EMAIL_OWED].set()


async def read(client: Client, **selector: str) -> None:
    assert (await client.post("/read", params={"user_id": USER, **selector})).status == 200


async def count_read(client: Client, count: int) -> None:
    """Wait until this many e-mails ended as read."""
    await counted(client, READ, count)


def said(mail: MailServer) -> list[tuple[str, str]]:
    return [(message["Subject"], f"{message.get_payload()}".strip()) for _, message in mail.received]


async def test_an_email_tells_all_that_is_unread_of_a_target_once(
    client: Client, database: DB, mail: MailServer
) -> None:
    ids = [await told(client, "answer", target_id=TARGET, data={"n": n, "name": f"Ann{n}"}) for n in range(4)]
    await read(client, notification_id=ids[1])
    await client.post("/delete", params={"user_id": USER, "notification_id": ids[2]})
    end(client, database)
    await settled(database)
    assert said(mail) == [("2 answers, the last from Ann3", f"{TARGET}: 0 3 of 2")]
    await told(client, "answer", target_id=TARGET, data={"n": 9, "name": "Bob"})
    end(client, database)
    await settled(database)
    assert said(mail)[1:] == [("1 answers, the last from Bob", f"{TARGET}: 9 of 1")]


async def test_without_a_template_it_says_the_key_and_the_count(
    start: Start, tmp_path: Path, database: DB, mail: MailServer
) -> None:
    client = await start(**kinds(tmp_path))
    for _ in range(3):
        await told(client, "digest")
    await told(client, "comment")
    end(client, database)
    await settled(database)
    assert sorted(said(mail)) == [("comment", "comment"), ("digest (3)", "digest (3)")]


async def test_before_its_time_nothing_is_sent(client: Client, database: DB, mail: MailServer) -> None:
    await told(client, "comment")
    receipt = await told(client, "receipt")
    await eventually_async(lambda: assert_length(ours(database)["outbox"], 0))
    assert (len(ours(database)["waiting"]), mail.ids) == (1, [receipt])


@pytest.mark.parametrize("path", ["/read", "/delete"])
async def test_notifications_read_or_deleted_in_time_end_as_read(
    client: Client, database: DB, mail: MailServer, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for key in ("comment", "digest", "digest"):
        await told(client, key)
    assert (await client.post(path, params={"user_id": USER, "all": "true"})).status == 200
    end(client, database)
    await settled(database)
    await count_read(client, 2)
    assert (mail.received, database.dead_mail.count_documents({})) == ([], 0)
    assert "comment: read, read (nothing to tell)" in caplog.text


async def test_notifications_pushed_out_of_the_inbox_end_as_read(
    start: Start, options: dict[str, Any], database: DB, mail: MailServer
) -> None:
    client = await start(notifications_limit=1, **options)
    await told(client, "comment")
    await told(client, "message")
    end(client, database)
    await settled(database)
    await count_read(client, 1)
    assert mail.received == []


async def test_a_notification_read_after_the_claim_is_not_e_mailed(
    client: Client, database: DB, mail: MailServer
) -> None:
    """The only connection is busy with another user's e-mail."""
    release, busy = asyncio.Event(), asyncio.Event()

    async def script(stage: str, _recipient: str) -> str | None:
        if stage == "RCPT" and not busy.is_set():
            busy.set()
            await release.wait()
        return None

    mail.script = script
    await create(client, OTHER, key="receipt")
    await busy.wait()
    await told(client, "comment")
    for n in range(2):
        await told(client, "digest", data={"n": n})
    end(client, database)
    await eventually_async(lambda: assert_length(ours(database).get("outbox", []), 2))
    page = (await list_(client))["list"]
    for item in page[1:]:
        await read(client, notification_id=item["id"])
    release.set()
    await settled(database)
    await count_read(client, 1)
    assert said(mail)[1:] == [("digest", "1 of 1")]


async def test_an_arrival_during_a_conversation_opens_a_new_window(
    client: Client, database: DB, mail: MailServer
) -> None:
    release, busy = asyncio.Event(), asyncio.Event()

    async def script(stage: str, _recipient: str) -> str | None:
        if stage == "DATA" and not busy.is_set():
            busy.set()
            await release.wait()
        return None

    mail.script = script
    for key in ("digest", "price"):
        await told(client, key, data={"n": 1})
    end_windows(database, "digest")
    end(client, database)
    await busy.wait()
    await told(client, "digest", data={"n": 2})
    release.set()
    await eventually_async(lambda: assert_length(mail.received, 2))
    end(client, database)
    await settled(database)
    assert sorted(text for _, text in said(mail)) == ["1 of 1", "1 of 1", "2 of 1"]


async def test_a_notification_read_during_rendering_is_not_e_mailed(
    client: Client, database: DB, mail: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look is valid for 50 ms. If the templates take longer, another look is made, and its result is rendered."""
    render, times = Letters.content, 0

    async def slow(letters: Letters, lease: Lease) -> Content:
        nonlocal times
        times += 1
        content = await render(letters, lease)
        if times == 1:
            await read(client, notification_id=(await list_(client))["list"][0]["id"])
            await asyncio.sleep(2 * VALID)
        return content

    monkeypatch.setattr(Letters, "content", slow)
    for n in range(2):
        await told(client, "digest", data={"n": n})
    end(client, database)
    await settled(database)
    assert said(mail) == [("digest", "0 of 1")]


async def test_an_email_sent_twice_has_the_same_message_id(client: Client, database: DB, mail: MailServer) -> None:
    mail.script = scripted({"DATA": ["250 OK and drop"]})
    ids = [await told(client, "digest", data={"n": n}) for n in range(3)]
    end(client, database)
    await settled(database)
    assert mail.ids == [ids[0]] * 2


async def test_a_window_outlives_the_process_that_opened_it(
    start: Start, options: dict[str, Any], database: DB, mail: MailServer
) -> None:
    first = await start(**options)
    await told(first, "digest", data={"n": 1})
    await first.close()
    end_windows(database)
    await start(**options)
    await settled(database)
    assert said(mail) == [("digest", "1 of 1")]


async def test_two_replicas_send_one_email_for_a_window(
    start: Start, options: dict[str, Any], database: DB, mail: MailServer
) -> None:
    replicas = [await start(**options) for _ in range(2)]
    for n in range(20):
        await told(replicas[n % 2], "digest", f"{n % 5:024x}", data={"n": n})
    end_windows(database)
    for replica in replicas:
        replica.app[handlers.EMAIL_OWED].set()
    await settled(database)
    assert len(mail.ids) == len(set(mail.ids)) == 5


async def test_a_revived_letter_of_many_tells_what_is_unread_then(
    client: Client, settings: Settings, database: DB, mail: MailServer, options: dict[str, Any]
) -> None:
    mail.script = scripted({"RCPT": ["550 5.1.1 unknown"]})
    ids = [await told(client, "digest", data={"n": n}) for n in range(3)]
    end(client, database)
    await settled(database)
    (letter,) = database.dead_mail.find()
    assert (letter["_id"], letter["ids"], mail.received) == (ids[0], ids, [])
    await read(client, notification_id=ids[0])
    assert (await command(settings, "retry", "--all", KINDS_FILE=f"{options['kinds_file']}"))[:2] == (
        0,
        "Owed again: 1.\n",
    )
    await settled(database)
    assert said(mail) == [("digest (2)", "1 2 of 2")]


async def test_an_email_about_many_obeys_opt_outs_and_suppression(
    client: Client, database: DB, mail: MailServer
) -> None:
    await told(client, "digest")
    await client.post("/preferences", params={"user_id": USER}, json={"digest": {"email": False}})
    end(client, database)
    await settled(database)
    await counted(client, 'notifier_emails_total{outcome="muted",reason="muted"}', 1)
    await client.post("/suppress", params={"user_id": USER})
    await told(client, "comment")
    await read(client, all="true")
    await told(client, "answer")
    end(client, database)
    await settled(database)
    await count_read(client, 1)
    assert ([letter["key"] for letter in database.dead_mail.find()], mail.received) == (["answer"], [])


async def test_a_row_that_collapsed_is_one_email_with_its_count(client: Client, database: DB, mail: MailServer) -> None:
    for n in range(3):
        await told(client, "price", target_id=TARGET, data={"n": n})
    end(client, database)
    await settled(database)
    assert (said(mail), (await list_(client))["elements"]) == ([("price (3)", "2 of 3")], 1)


async def test_commands_and_metrics_tell_what_waits(
    start: Start, options: dict[str, Any], settings: Settings, database: DB
) -> None:
    client = await start(**options)
    ids = [await told(client, key) for key in ("digest", "comment")]
    await create(client, OTHER, key="message")
    assert await metric(client, "notifier_notifications_waiting") == 2
    assert await metric(client, "notifier_emails_owed") == 0
    file = f"{options['kinds_file']}"
    code, out, _ = await command(settings, "mail", USER, KINDS_FILE=file)
    due = ours(database)["waiting"][0]["due"]
    assert (code, out.splitlines()[0]) == (0, f"{ids[0]}  digest        waits until {due:%F %T} UTC for its e-mail")
    found = json.loads((await command(settings, "status", "--json", KINDS_FILE=file))[1])
    assert (found["waiting"], found["owed"]) == (2, 0)
    assert (
        "\nWaiting           2 notifications, for their e-mail\n"
        in (await command(settings, "status", KINDS_FILE=file))[1]
    )


async def test_an_erasure_takes_windows_along(start: Start, options: dict[str, Any], database: DB) -> None:
    client = await start(**options | {"smtp_port": free_port()})
    await told(client, "digest")
    assert (await client.post("/erase", params={"user_id": USER})).status == 200
    assert database.users.find_one({"_id": ObjectId(USER)}, {"email": 0}) == {"_id": ObjectId(USER)}


async def test_a_preview_shows_an_email_about_many(settings: Settings, options: dict[str, Any]) -> None:
    given = {"KINDS_FILE": f"{options['kinds_file']}", "TEMPLATES_DIR": f"{options['templates_dir']}"}

    async def preview(key: str, *arguments: str) -> tuple[int, str, str]:
        return await command(settings, "preview", key, "--data", '{"n": 7, "name": "Ann"}', *arguments, **given)

    assert await preview("answer", "--target-id", TARGET, "--count", "3") == (
        0,
        f"Subject: 3 answers, the last from Ann\n\n{TARGET}: 7 7 7 of 3\n",
        "",
    )
    assert (await preview("digest"))[1] == "Subject: digest\n\n7 of 1\n"
    code, _, err = await preview("message", "--count", "2")
    assert (code, err) == (2, "--count: [message] has no email_batch, so each notification has an e-mail of its own.\n")
