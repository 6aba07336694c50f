"""What e-mails say with an operator's templates, whatever a client puts into `data`."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from mail.templates import RENDERED_LIMIT, SUBJECT_LIMIT, Content, RenderError, Templates, TemplatesError
from mongo.outbox import Outbox
from schemas import Create, Key
from settings import Settings, SettingsError
from store import open_store
from tests.client import DB, ROOT, TARGET, USER, create, settled, user
from tests.fixtures import Start
from tests.processes import COMPLETE, run
from tests.servers import MailServer

EXAMPLES = ROOT / "examples/templates"
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return what writes templates, by file name, and gives their directory."""

    def write_files(files: dict[str, str]) -> Path:
        folder = tmp_path / "templates"
        folder.mkdir(exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text)
        return folder

    return write_files


def render(folder: Path, data: Any = None, key: str = "new_login", **fields: Any) -> Content:
    about = {"id": "1" * 24, "key": key, "timestamp": 1795406836, "user_id": USER, "data": data}
    return Templates(folder).render(about | fields)


def received(mail: MailServer) -> EmailMessage:
    """Return the one e-mail that was received, as a mail program reads it."""
    ((_, message),) = mail.received
    parsed = message_from_bytes(message.as_bytes(), policy=policy.default)
    assert isinstance(parsed, EmailMessage)
    return parsed


def part(message: EmailMessage, kind: str) -> str:
    body = message.get_body((kind,))
    assert body is not None
    return str(body.get_content()).replace("\r\n", "\n")


# --- on the way to a mailbox ----------------------------------------------------------------------


async def test_subject_text_and_html_are_those_of_the_key(
    start: Start, database: DB, mail: MailServer, write: Write
) -> None:
    folder = write(
        {
            "new_login.subject.txt": "Grüße {{ data.city }}\n",
            "new_login.txt": "{{ id }} {{ key }} {{ timestamp }} {{ user_id }} {{ target_id }} {{ data.city }} ✓\n",
            "new_login.html": "<p>{{ data.city }}</p>",
            "registration.txt": "not this one",
        }
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


async def test_a_registration_has_its_fields_though_no_notification_is_stored(
    start: Start, database: DB, mail: MailServer, write: Write
) -> None:
    client = await start(templates_dir=write({"registration.html": "{{ target_id }} {{ data.n }} {{ data['a.b'] }}"}))
    await create(client, key="registration", target_id=TARGET, data={"n": 2**62, "a.b": "ü"})
    await settled(database)
    message = received(mail)
    assert (message["Subject"], part(message, "plain")) == ("registration", "registration\n")
    assert part(message, "html") == f"{TARGET} {2**62} ü\n"


@pytest.mark.parametrize("key", ["new_login", "registration"])
async def test_without_files_for_it_the_message_is_the_key(
    start: Start, database: DB, mail: MailServer, write: Write, key: str
) -> None:
    client = await start(templates_dir=write({"new_post.txt": "x"}))
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
        "{{ 'x' * data.huge }}",
        "{{ data.huge ** data.huge }}",
        "{% for i in range(99999) %}{{ data.long }}{% endfor %}",
        "{% for i in range(data.huge) %}{% endfor %}",
        "{% include '_self.txt' %}",
        "{{ '\\ud800' }}",
    ],
)
async def test_a_template_that_fails_is_logged_and_the_mail_is_sent_plainly(
    start: Start, database: DB, mail: MailServer, write: Write, caplog: pytest.LogCaptureFixture, template: str
) -> None:
    files = {"_self.txt": "{% include '_self.txt' %}", "new_login.txt": f"fine\n{template}", "new_login.html": "<p>"}
    client = await start(templates_dir=write(files))
    with caplog.at_level(logging.WARNING, "notifier.delivery"):
        await create(client, key="new_login", data={"n": 0, "huge": 10**9, "long": "secret" * 99})
        await settled(database)
    message = received(mail)
    assert (message["Subject"], message.get_content_type(), part(message, "plain")) == (
        *("new_login", "text/plain"),
        "new_login\n",
    )
    (line,) = [record.getMessage() for record in caplog.records if record.name == "notifier.delivery"]
    assert user(database)["notifications"][0]["id"] in line
    assert re.search(r" _?\w+\.txt(, line \d)?: \w+$", line)
    assert "secret" not in line
    assert "example.com" not in line


async def test_the_failure_of_one_mail_does_not_touch_the_next(
    start: Start, database: DB, mail: MailServer, write: Write
) -> None:
    client = await start(templates_dir=write({"new_login.subject.txt": "{{ 6 / data.n }}"}))
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
async def test_data_injects_nothing(start: Start, database: DB, mail: MailServer, write: Write, value: str) -> None:
    one = "{{ data.v }}"
    folder = write({"new_login.subject.txt": f"Re {one}", "new_login.txt": f"({one})", "new_login.html": f"<i>{one}"})
    client = await start(templates_dir=folder)
    await create(client, key="new_login", data={"v": value})
    await settled(database)
    message = received(mail)
    assert sorted(message.keys()) == sorted(
        ["From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "MIME-Version", "Content-Type"]
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


async def test_a_dead_letter_keeps_its_fields_and_is_rendered_when_it_is_owed_again(
    start: Start, settings: Settings, database: DB, mail: MailServer, write: Write
) -> None:
    async def refuse(stage: str, _recipient: str) -> str | None:
        return "550 5.1.1 unknown" if stage == "RCPT" else None

    mail.script = refuse
    client = await start(
        templates_dir=write({"registration.txt": "{{ target_id }} {{ data.a['b.c'] }} {{ timestamp }}"})
    )
    data = {"a": {"b.c": [1, None, "é"]}, "": {}, "_id": [1]}
    await create(client, key="registration", target_id=TARGET, data=data)
    await settled(database)
    (letter,) = database.dead_mail.find()
    assert (letter["target_id"], letter["data"]) == (TARGET, data)
    mail.script = None
    async with open_store(settings) as store:
        assert await Outbox(store).owe_again(letter)
    await settled(database)
    assert part(received(mail), "plain") == f"{TARGET} [1, None, 'é'] {int(letter['at'].timestamp())}\n"


async def test_what_is_owed_holds_what_the_request_had_and_no_more(settings: Settings, database: DB) -> None:
    async with open_store(settings) as store:
        await store.create(Create(USER, Key.NEW_LOGIN, TARGET, {}))
        await store.create(Create(USER, Key.REGISTRATION))
    full, bare = user(database)["outbox"]
    assert (full.pop("target_id"), full.pop("data")) == (TARGET, {})
    assert full.keys() == bare.keys() == {"id", "key", "at", "next_at", "tries", "token", "error", "dead"}


async def test_an_e_mail_owed_by_an_older_version_is_still_sent(
    start: Start, settings: Settings, database: DB, mail: MailServer, write: Write
) -> None:
    async with open_store(settings) as store:
        await store.create(Create(USER, Key.NEW_LOGIN, TARGET, {"city": "Oslo"}))
    database.users.update_one({}, {"$unset": {"outbox.0.data": 1, "outbox.0.target_id": 1}})
    await start(templates_dir=write({"new_login.txt": "In {{ data.city.name or 'a city' }}{{ target_id }}."}))
    await settled(database)
    assert part(received(mail), "plain") == "In a city.\n"


# --- what a template may say ----------------------------------------------------------------------


def test_what_is_missing_or_null_is_nothing(write: Write) -> None:
    folder = write({"new_login.txt": "[{{ data.a }}{{ data.b.c.d }}{{ data['x']['y'] }}{{ target_id }}]"})
    for data in (None, {}, {"a": None}):
        assert render(folder, data, target_id=None).text == "[]"
    with pytest.raises(RenderError, match=r"new_login\.txt, line 1$"):
        render(write({"new_login.txt": "{{ data.a + 1 }}"}))


def test_a_part_that_is_blank_counts_as_absent(write: Write) -> None:
    folder = write(dict.fromkeys(["new_login.subject.txt", "new_login.txt", "new_login.html"], " \n{{ data.a }}\n"))
    assert render(folder) == Content("new_login", "new_login")
    assert render(folder, {"a": " x\ny "}) == Content("x y", "x\ny", "x\ny")


def test_only_html_is_escaped_also_through_a_layout(write: Write) -> None:
    folder = write(
        {
            "_layout.html": "<b>{% block body %}{% endblock %}</b>{% include '_foot.html' %}",
            "_foot.html": "{{ data.a }}{{ mood }}",
            "new_login.html": "{% extends '_layout.html' %}{% block body %}{{ data.a }}{% endblock %}",
            "new_login.txt": "{{ data.a }}",
        }
    )
    assert render(folder, {"a": "<&>"}) == Content("new_login", "<&>", "<b>&lt;&amp;&gt;</b>&lt;&amp;&gt;")


def test_as_much_as_the_limit_is_rendered_and_no_more(write: Write) -> None:
    folder = write({"new_login.txt": "{{ 'x' * data.n }}"})
    assert len(render(folder, {"n": RENDERED_LIMIT}).text) == RENDERED_LIMIT
    with pytest.raises(RenderError) as raised:
        render(folder, {"n": RENDERED_LIMIT + 1})
    assert "repeats" in str(raised.value.__cause__)  # not made first, and then found too large


@pytest.mark.parametrize("key", ["registration", "new_message", "new_post", "new_login"])
def test_the_examples_make_do_with_whatever_data_there_is(key: str) -> None:
    for data in (None, {"city": 1, "name": ["x"], "title": {}, "sender": None}, dict.fromkeys(["city", "name"], "<Å>")):
        content = render(EXAMPLES, data, key)
        assert key not in (content.subject, content.text)
        assert content.html is None or "<Å>" not in content.html


# --- at the start ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "source", "fault"),
    [
        ("new_login.txt", "a\n{% if %}", "new_login.txt, line 2: "),
        ("new_login.html", "a\nb\n{{ data.x", "new_login.html, line 3: "),
        (
            "registration.subject.txt",
            "\n{{ data.x|shout }}",
            "registration.subject.txt, line 2: No filter named 'shout'.",
        ),
        ("_part.html", "{% endif %}", "_part.html, line 1: "),
        ("new_login.txt", "\n\n{{ dta.city }}", "new_login.txt, line 3: there is no variable 'dta'."),
        ("new_login.txt", "\n{% include '_footer.txt' %}", "new_login.txt, line 2: refers to "),
        ("new_login.html", "{% extends '_plain.txt' %}", "new_login.html, line 1: refers to "),
        ("new_login.html", "{% include data.file %}", "new_login.html, line 1: refers to "),
        ("new_login.html", "{% from 'x' import y %}", "new_login.html, line 1: refers to "),
        ("newlogin.txt", "", "newlogin.txt: not KEY."),
        ("new_login.htm", "", "new_login.htm: not KEY."),
        ("new_login.subject.html", "", "new_login.subject.html: not KEY."),
        ("README.md", "", "README.md: not KEY."),
    ],
)
def test_a_broken_template_is_named_with_file_and_line(write: Write, name: str, source: str, fault: str) -> None:
    with pytest.raises(TemplatesError) as raised:
        Templates(write({"_plain.txt": "", "new_post.txt": "fine", name: source}))
    assert str(raised.value).startswith(fault)


def test_every_fault_is_named_and_hidden_files_are_none(write: Write) -> None:
    folder = write({"new_login.txt": "{{", "registration.txt": "{% x %}", ".new_login.txt.swp": "{{"})
    with pytest.raises(TemplatesError, match=r"new_login\.txt, line 1: .* registration\.txt, line 1: "):
        Templates(folder)
    (folder / "new_post.txt").write_bytes(b"\xff")
    (folder / "new_post.html").mkdir()
    with pytest.raises(TemplatesError, match=r"new_post\.html: .* new_post\.txt: "):
        Templates(folder)


def test_a_broken_template_stops_the_start_with_every_other_fault(write: Write, tmp_path: Path) -> None:
    folder = write({"new_login.html": "<p>\n{{ data.city }</p>"})
    done = run(cwd=tmp_path, **COMPLETE, TEMPLATES_DIR=f"{folder}", PORT="0")
    assert done.returncode == 2
    assert "TEMPLATES_DIR: new_login.html, line 2: " in done.stderr
    assert "PORT: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_directory_that_is_none_is_a_fault(environment: Callable[..., Settings]) -> None:
    for folder in ("/nothing/here", __file__):
        with pytest.raises(SettingsError, match="TEMPLATES_DIR: Cannot be read: N"):
            environment(**COMPLETE, TEMPLATES_DIR=folder)
    assert environment(TEMPLATES_DIR=f"{EXAMPLES}").templates_dir == EXAMPLES


# --- preview --------------------------------------------------------------------------------------


def test_preview_shows_what_would_be_sent_without_a_database(write: Write, tmp_path: Path) -> None:
    folder = write({"new_login.subject.txt": "Hi {{ data.n }}", "new_login.txt": "{{ target_id }}"})
    arguments = ("preview", "new_login", "--data", '{"n": "é\\r\\n"}', "--target-id", TARGET.upper())
    done = run(*arguments, cwd=tmp_path, **COMPLETE, TEMPLATES_DIR=f"{folder}")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"Subject: Hi é\n\n{TARGET}\n", "")
    write({"new_login.html": "<b>{{ data.n }}</b>"})
    done = run(*arguments, cwd=tmp_path, TEMPLATES_DIR=f"{folder}")
    assert done.stdout.endswith("\n--- as HTML ---\n\n<b>é\n</b>\n")
    done = run("preview", "new_login", cwd=tmp_path)
    assert done.stdout == "Subject: new_login\n\nnew_login\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["new_login", "--data", '{"n": 0}'],
            "new_login.txt, line 2: division by zero; the e-mail would be sent plainly.",
        ),
        (["newlogin"], "key: Must be one of: registration, new_message, new_post, new_login."),
        (["new_login", "--data", "{"], "data: not JSON: "),
        (["new_login", "--data", "7"], "data: Not an object."),
        (["new_login", "--data", '{"$a": 1}'], "data: A name must not start with '$'."),
        (["new_login", "--target-id", "7"], "target_id: Not a valid ObjectId."),
    ],
)
def test_preview_says_in_one_sentence_what_is_wrong(
    write: Write, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    folder = write({"new_login.txt": "\n{{ 1 / data.n }}"})
    done = run("preview", *arguments, cwd=tmp_path, TEMPLATES_DIR=f"{folder}")
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1)
    assert done.stderr.startswith(sentence)
