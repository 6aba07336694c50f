"""E-mails with an operator's templates, from a request to the mailbox, whatever a client puts into `data`."""

from __future__ import annotations

import logging
import re
from datetime import UTC, datetime
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path

import pytest
from bson import ObjectId

from kinds import SPECIFIED
from mail.rendering import SUBJECT_LIMIT
from mongo.creation import Create
from settings import Settings
from store import open_store
from tests.client import DB, TARGET, USER, create, ours, settled, user
from tests.fixtures import Start
from tests.servers import MailServer
from tests.templates import write


def received(mail: MailServer) -> EmailMessage:
    """Return the one e-mail that was received, as a mail program reads it."""
    ((_, message),) = mail.received
    parsed = message_from_bytes(message.as_bytes(), policy=policy.default)
    assert isinstance(parsed, EmailMessage)
    return parsed


def part(message: EmailMessage, kind: str) -> str:
    """Return its text ("plain") or its HTML ("html")."""
    body = message.get_body((kind,))
    assert body is not None
    return str(body.get_content()).replace("\r\n", "\n")


async def test_an_email_has_the_subject_text_and_html_of_its_key(
    start: Start, database: DB, mail: MailServer, tmp_path: Path
) -> None:
    folder = write(
        tmp_path,
        {
            "new_login.subject.txt": "Grüße {{ data.city }}\n",
            "new_login.txt": "{{ id }} {{ key }} {{ timestamp }} {{ user_id }} {{ target_id }} {{ data.city }} ✓\n",
            "new_login.html": "<p>{{ data.city }}</p>",
            "registration.txt": "not this one",
        },
    )
    client = await start(templates_dir=folder)
    await create(client, key="new_login", target_id=TARGET, data={"city": "Malmö & <b>"})
    await settled(database)
    (notification,) = user(database)["notifications"]
    message = received(mail)
    assert message.get_content_type() == "multipart/alternative"
    assert message["Subject"] == "Grüße Malmö & <b>"
    assert message["Message-ID"] == f"<{notification['id']}@example.com>"
    about = f"{notification['id']} new_login {notification['timestamp']} {USER} {TARGET}"
    assert part(message, "plain") == f"{about} Malmö & <b> ✓\n"
    assert part(message, "html") == "<p>Malmö &amp; &lt;b&gt;</p>\n"
    assert mail.received[0][1].as_bytes().isascii()


async def test_a_registration_has_its_fields_although_it_is_not_stored(
    start: Start, database: DB, mail: MailServer, tmp_path: Path
) -> None:
    client = await start(
        templates_dir=write(tmp_path, {"registration.html": "{{ target_id }} {{ data.n }} {{ data['a.b'] }}"})
    )
    await create(client, key="registration", target_id=TARGET, data={"n": 2**62, "a.b": "ü"})
    await settled(database)
    message = received(mail)
    assert (message["Subject"], part(message, "plain")) == ("registration", f"{TARGET} {2**62} ü\n")
    assert part(message, "html") == f"{TARGET} {2**62} ü\n"


@pytest.mark.parametrize("key", ["new_login", "registration"])
async def test_an_email_without_templates_says_the_key(
    start: Start, database: DB, mail: MailServer, tmp_path: Path, key: str
) -> None:
    client = await start(templates_dir=write(tmp_path, {"new_post.txt": "x"}))
    await create(client, key=key, data={"city": "Oslo"})
    await settled(database)
    message = received(mail)
    assert (message["Subject"], message.get_content_type()) == (key, "text/plain")
    assert part(message, "plain") == key + "\n"


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 / data.n }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ data.__init__.__globals__ }}{{ data.update({'n': 1}) }}",
        "{{ data.long.ljust(data.huge) }}",
        "{% for i in range(99999) %}{{ data.long }}{% endfor %}",
        "{% for i in range(data.huge) %}{% endfor %}",
        "{% include '_self.txt' %}",
        "{{ '\\ud800' }}",
    ],
)
async def test_the_email_of_a_failing_template_is_sent_without_it(
    start: Start, database: DB, mail: MailServer, tmp_path: Path, caplog: pytest.LogCaptureFixture, template: str
) -> None:
    files = {"_self.txt": "{% include '_self.txt' %}", "new_login.txt": f"fine\n{template}", "new_login.html": "<p>"}
    client = await start(templates_dir=write(tmp_path, files))
    with caplog.at_level(logging.WARNING, "notifier.delivery"):
        await create(client, key="new_login", data={"n": 0, "huge": 10**9, "long": "secret" * 99})
        await settled(database)
    message = received(mail)
    assert (message["Subject"], message.get_content_type()) == ("new_login", "text/plain")
    assert part(message, "plain") == "new_login\n"
    (line,) = [record.getMessage() for record in caplog.records if record.name == "notifier.delivery"]
    assert user(database)["notifications"][0]["id"] in line
    assert re.search(r" _?\w+\.txt(, line \d)?: \w+$", line)
    assert "secret" not in line
    assert "example.com" not in line


async def test_the_failure_of_one_email_does_not_affect_the_next(
    start: Start, database: DB, mail: MailServer, tmp_path: Path
) -> None:
    client = await start(templates_dir=write(tmp_path, {"new_login.subject.txt": "{{ 6 / data.n }}"}))
    for n in (0, 2):
        await create(client, key="new_login", data={"n": n})
        await settled(database)
    assert [message["Subject"] for _, message in mail.received] == ["new_login", "3.0"]


HOSTILE = [
    "a\r\nBcc: victim@example.com",
    "a\nBcc: victim@example.com\n\nbody",
    "a\rBcc: victim@example.com",
    "=?utf-8?q?a=0D=0ABcc:_victim@example.com?=",
    "é =?utf-8?b?YQ0KQmNjOiB2aWN0aW1AZXhhbXBsZS5jb20=?= é",
    "==??utf-8?q?a=0ABcc:_victim@example.com?==",
    "=\0?utf-8?q?a=0ABcc:_victim@example.com?=",
    "\0\x01\x07\x1b[31m\x7f\x85\x9b",
    "a\x0bb\x0cc\x1cd\x1ee\x85f\u2028g\u2029h",
    "\u202eevil\u200b\ufeff",
    "👩‍👩‍👧 " * 300,
    "x" * 16_000,
    "é" * 8_000,
    "日 本" * 2_000,
    "\r\n.\r\nMAIL FROM:<victim@example.com>\r\n.\r\n",
    "{{ 7 * 7 }}{% raw %}",
    "<script>alert(1)</script>\" onload='x'",
    " \t\r\n ",
    "",
]


@pytest.mark.parametrize("value", HOSTILE)
async def test_data_injects_nothing(start: Start, database: DB, mail: MailServer, tmp_path: Path, value: str) -> None:
    one = "{{ data.v }}"
    folder = write(
        tmp_path, {"new_login.subject.txt": f"Re {one}", "new_login.txt": f"({one})", "new_login.html": f"<i>{one}"}
    )
    client = await start(templates_dir=folder)
    await create(client, key="new_login", data={"v": value})
    await settled(database)
    message = received(mail)
    assert sorted(message.keys()) == sorted(
        [
            "From",
            "To",
            "Subject",
            "Date",
            "Message-ID",
            "Auto-Submitted",
            "X-Auto-Response-Suppress",
            "MIME-Version",
            "Content-Type",
        ]
    )
    assert message["To"] == "new-user@example.com"
    assert message["Subject"].startswith("Re")
    assert len(message["Subject"]) <= SUBJECT_LIMIT + 8  # a fold may add a space
    assert all(character.isprintable() or character in "\u200d\u202e\u200b\ufeff" for character in message["Subject"])
    text, html = part(message, "plain"), part(message, "html")
    assert text.startswith("(")
    assert text.endswith(")\n")
    assert not set(map(chr, range(32))) - set("\t\n") & set(text + html)
    assert not set("<>\"'") & set(html[3:])
    assert all(len(line) <= 998 for line in mail.received[0][1].as_bytes().splitlines())


async def test_a_dead_letter_is_rendered_from_the_fields_it_keeps(
    start: Start, settings: Settings, database: DB, mail: MailServer, tmp_path: Path
) -> None:
    async def refuse(stage: str, _recipient: str) -> str | None:
        return "550 5.1.1 unknown" if stage == "RCPT" else None

    mail.script = refuse
    client = await start(
        templates_dir=write(tmp_path, {"registration.txt": "{{ target_id }} {{ data.a['b.c'] }} {{ timestamp }}"})
    )
    data = {"a": {"b.c": [1, None, "é"]}, "": {}, "_id": [1]}
    await create(client, key="registration", target_id=TARGET, data=data)
    await settled(database)
    (letter,) = database.dead_mail.find()
    assert (letter["target_id"], letter["data"]) == (TARGET, data)
    mail.script = None
    async with open_store(settings) as store:
        assert await store.dead_mail.owe_again(letter)
    await settled(database)
    assert part(received(mail), "plain") == f"{TARGET} [1, None, 'é'] {int(letter['at'].timestamp())}\n"


async def test_templates_see_the_fields_of_the_user_that_are_named(
    start: Start, database: DB, mail: MailServer, tmp_path: Path
) -> None:
    profile = {"name": "Ann", "born": datetime(2000, 1, 2, tzinfo=UTC), "id": ObjectId(), "long": "x" * 5000}
    database.users.insert_one({"_id": ObjectId(USER), "email": "ann@example.com", "name": "A", "profile": profile})
    told = "{{ user.name }} {{ user.profile.name }} {{ user.profile.born|date }} {{ user.profile.secret }}"
    odd = "[{{ user.profile.id }}{{ user.profile.long }}{{ user.gone.x }}{{ user.name.x }}]"
    client = await start(
        templates_dir=write(tmp_path, {"registration.txt": told + odd}),
        template_fields=["name", *(f"profile.{name}" for name in ("name", "born", "id", "long")), "gone.x", "name.x"],
    )
    database.users.update_one({}, {"$set": {"profile.secret": "s"}})
    await create(client, key="registration")
    await settled(database)
    assert part(received(mail), "plain") == "A Ann Jan 2, 2000 []\n"


async def test_an_owed_email_has_only_the_fields_of_its_request(settings: Settings, database: DB) -> None:
    async with open_store(settings) as store:
        await store.create(Create(USER, SPECIFIED["new_login"], TARGET, {}))
        await store.create(Create(USER, SPECIFIED["registration"]))
    full, bare = ours(database)["outbox"]
    assert (full.pop("target_id"), full.pop("data")) == (TARGET, {})
    assert full.keys() == bare.keys() == {"id", "key", "at", "next_at", "tries", "token", "error", "dead"}


async def test_an_email_owed_by_an_older_version_is_still_sent(
    start: Start, settings: Settings, database: DB, mail: MailServer, tmp_path: Path
) -> None:
    async with open_store(settings) as store:
        await store.create(Create(USER, SPECIFIED["new_login"], TARGET, {"city": "Oslo"}))
    database.users.update_one({}, {"$unset": {"notifier.outbox.0.data": 1, "notifier.outbox.0.target_id": 1}})
    await start(templates_dir=write(tmp_path, {"new_login.txt": "In {{ data.city.name or 'a city' }}{{ target_id }}."}))
    await settled(database)
    assert part(received(mail), "plain") == "In a city.\n"
