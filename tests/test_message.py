"""The message: it reads back as it was, by Python's parser and, its headers, by one written for RFC 2047 alone."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from datetime import UTC, datetime
from email import message_from_bytes, message_from_string, policy
from email.message import EmailMessage
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from marshmallow import ValidationError

from config.checks import envelope_address
from mail.message import Sender, compose
from mail.templates import Content
from mongo.owed import OwedEmail
from settings import Settings

EMAIL = OwedEmail(
    document_id=1,
    user_id="1",
    id="a" * 24,
    key="registration",
    at=datetime(2026, 1, 1, tzinfo=UTC),
    tries=0,
    token="0" * 24,
)
SUBJECTS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=250).map(
    lambda text: " ".join(text.replace("=?", "= ?").split()) or "x"
)
"""The subjects that `mail/templates.py` allows."""

PIECES = st.sampled_from(
    [
        *(
            "Hello, ",
            "Grüße ",
            "Здравствуйте ",
            "通知があります",
            "नमस्ते ",
            "مرحبا ",
            "😀",
            "<b>1 &lt; 2</b>",
            "<p>é</p>",
        ),
        *("\n", "\r\n", "\r", "\n\n", ".", "\n.\n", "\n..", "\nFrom me", "=", "=\n", "=20", "=_part", "\n--=_part\n"),
        *("\n--=_part--", " \n", "\t\n", "a" * 75, "x" * 998, "y" * 1000, "word " * 300, "é" * 500, "\x85", "\u2028"),
    ]
)
TEXTS = st.lists(st.one_of(PIECES, st.text(st.characters(exclude_categories=["Cs"]))), max_size=12).map("".join)
LINK = "https://shop.example/notifications/u/" + "x" * 300


def expected(to: str, content: Content) -> EmailMessage:
    """Return the message as Python's own library makes it."""
    message = EmailMessage(policy.default)
    message["From"] = "Müller, GmbH & Co <noreply@example.com>"
    message["To"] = to
    message["Subject"] = content.subject
    message["Date"] = EMAIL.at
    message["Message-ID"] = f"<{EMAIL.id}@example.com>"
    message["Auto-Submitted"] = "auto-generated"
    message["X-Auto-Response-Suppress"] = "DR, RN, NRN, OOF, AutoReply"
    if content.unsubscribe_url:
        message["List-Unsubscribe"] = f"<{content.unsubscribe_url}>"
        message["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
    message.set_content(content.text + "\n")
    if content.html:
        message.add_alternative(content.html + "\n", subtype="html")
    return message


def mailbox_of(name: str, address: str) -> str:
    escaped = re.sub(r'(["\\])', r"\\\1", name)
    return f'"{escaped}" <{address}>' if name else address


def sender_of(name: str = "", address: str = "noreply@example.com", **settings: Any) -> Sender:
    return Sender(Settings(smtp_from=mailbox_of(name, address), **settings))


def wire(to: str = "a@b.example", subject: str = "s", sender: str = "") -> str:
    """Return the header of a message as it travels."""
    message = compose(EMAIL, sender_of(sender), to, Content(subject, "text"))
    return message.decode().partition("\r\n\r\n")[0] + "\r\n\r\n"


def field(header: str, name: str) -> str:
    """Return a field with its line breaks, without its name."""
    found = re.search(rf"^{name}: (.*?)\r\n(?! )", header, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def decode(text: str) -> str:
    """Decode as in RFC 2047: ignore white space between encoded words, and decode each word separately."""
    joined = re.sub(r"(\?=)\s+(?==\?)", r"\1", text.replace("\r\n", ""))
    return re.sub(r"=\?utf-8\?b\?([A-Za-z0-9+/=]*)\?=", lambda word: base64.b64decode(word[1]).decode(), joined)


@given(SUBJECTS)
@example("Bestätigung: " + "ü" * 100)
@example("Sicherheitswarnung: neue Anmeldung aus São Tomé und Príncipe, bitte prüfen Sie das")
@example("a" * 250)
@example("x " * 100 + "é")
@example("é = ?utf-8?q?x?= é")
@example("😀" * 100)
def test_a_subject_reads_back_as_it_was(subject: str) -> None:
    header = wire(subject=subject)
    assert message_from_string(header, policy=policy.default)["Subject"] == subject
    assert decode(field(header, "Subject")) == subject


@given(SUBJECTS)
@example("Sicherheitswarnung: neue Anmeldung aus São Tomé und Príncipe, bitte prüfen Sie das")
@example("é" + "a" * 249)
def test_encoded_words_and_their_lines_are_short(subject: str) -> None:
    header = wire(subject=subject, sender=subject.replace("\\", "").replace('"', ""))
    for line in re.findall(r".*=\?utf-8\?b\?.*", header):
        assert len(line.rstrip()) <= 76
    for word in re.findall(r"=\?\S*\?=", header) if not subject.isascii() else []:
        assert len(word) <= 75


@given(SUBJECTS)
@example("Ünï " * 20)
@example("a" * 100 + "é")
@example("Müller, GmbH & Co")
@example("=?utf-8?q?x?= y")
@example('He said "hi" \\')
def test_a_sender_reads_back_as_it_was(name: str) -> None:
    value = field(wire(sender=name), "From")
    assert value.endswith("noreply@example.com" if not name else "<noreply@example.com>")
    shown = decode(value.removesuffix("<noreply@example.com>").rstrip())
    assert re.sub(r"\\(.)", r"\1", shown[1:-1]) == name if shown.startswith('"') and shown != name else shown == name


@pytest.mark.parametrize(
    "address",
    [
        *(
            "a@b.example",
            '"a b"@c.example',
            '"a\\"b,c"@d.example',
            '"a@b"@c.example',
            "a..b@c.example",
            "a@[192.0.2.1]",
        ),
        *("संपर्क@डाटामेल.भारत", "é" * 32 + "@bücher.example", "x" * 64 + "@" + ".".join(["y" * 60] * 4)),
    ],
)
def test_the_recipient_reads_back_as_the_one_address(address: str) -> None:
    to = envelope_address(address)
    assert [found.addr_spec for found in message_from_string(wire(to), policy=policy.default)["To"].addresses] == [to]


@given(st.text(), st.sampled_from(["{}@b.example", '"{}"@b.example', "{}"]))
@example("=?utf-8?b?YQ==?=", "{}@b.example")
@example("a,b", '"{}"@b.example')
def test_any_recipient_is_in_the_header_as_in_the_envelope(text: str, form: str) -> None:
    try:
        to = envelope_address(form.format(text))
    except ValidationError:
        return
    assert field(wire(to), "To") == to


# --- the whole message ------------------------------------------------------------------------------


@given(
    SUBJECTS,
    TEXTS,
    st.one_of(st.none(), TEXTS),
    st.one_of(st.none(), st.just(LINK)),
    st.sampled_from(["a@b.example", "é@b.example"]),
)
@example("s", ".", ".", None, "a@b.example")
@example("s", "", "", None, "a@b.example")
@example("s", "a\n--=_part\nContent-Type: text/html\n\n<b>forged</b>", "html", None, "a@b.example")
def test_a_message_reads_back_as_one_that_pythons_library_makes(
    subject: str, text: str, html: str | None, link: str | None, to: str
) -> None:
    content = Content(subject, text, html or None, link)
    sent = compose(EMAIL, sender_of("Müller, GmbH & Co"), to, content)
    read, made = message_from_bytes(sent, policy=policy.default), expected(to, content)
    assert not read.defects
    assert {name for name in read if not name.startswith("Content")} == {
        name for name in made if not name.startswith("Content")
    }
    for name in set(made.keys()) - {"From", "Content-Type", "Content-Transfer-Encoding"}:
        assert str(read[name]) == str(made[name])
    assert [part.get_content_type() for part in read.walk()] == [part.get_content_type() for part in made.walk()]
    for ours, theirs in zip(read.walk(), made.walk(), strict=True):
        if not theirs.is_multipart():
            assert _lines(ours.get_content()) == _lines(theirs.get_content())


@given(TEXTS, TEXTS)
@example("a" * 998, "a" * 999)
def test_every_line_is_ascii_ends_with_crlf_and_is_short(text: str, html: str) -> None:
    message = compose(EMAIL, sender_of(), "a@b.example", Content("s", text, html))
    assert message.isascii()
    assert message.endswith(b"\r\n")
    lines = message.split(b"\r\n")
    assert not [line for line in lines if b"\r" in line or b"\n" in line or len(line) > 998]


@pytest.mark.parametrize("text", ["plain", "x" * 998])
def test_text_that_any_server_takes_travels_as_it_is(text: str) -> None:
    message = compose(EMAIL, sender_of(), "a@b.example", Content("s", text))
    assert message.endswith(b"Content-Transfer-Encoding: 7bit\r\n\r\n" + text.encode() + b"\r\n")


@given(st.one_of(st.text(), st.sampled_from(["\n", "a\r\nBcc: x@y.example", "<>", "x" * 2000, ""])))
def test_no_id_or_subject_breaks_a_header(text: str) -> None:
    email = replace(EMAIL, id=text)
    message = compose(email, sender_of(), "a@b.example", Content(text, "text"))
    assert message == compose(email, sender_of(), "a@b.example", Content(text, "text"))
    read = message_from_bytes(message, policy=policy.default)
    assert "Bcc" not in read
    assert re.fullmatch(r"<[\w.-]+@example\.com>", str(read["Message-ID"]), re.ASCII)
    assert str(read["Subject"]) == " ".join(text.split())
    assert max(map(len, message.split(b"\r\n"))) <= 998


def _lines(text: str) -> list[bytes]:
    """Return lines without the kind of their ends."""
    return text.encode().splitlines()


@given(SUBJECTS, st.sampled_from(["a@b.example", "jörg@b.example"]))
@example("Acme, Inc.", "a@b.example")
@example("Acme (EU) Ltd.", "a@b.example")
@example("Firma: Support", "a@b.example")
@example('"The  Best" \\ of <a> @b; [c]', "a@b.example")
@example("x" * 250, "a@b.example")
@example("a, " * 80 + "b", "a@b.example")
def test_the_name_of_a_sender_reads_back_as_it_was(name: str, address: str) -> None:
    sender = sender_of(name, address, smtp_envelope_from="bounces@b.example", smtp_reply_to=mailbox_of(name, address))
    message = compose(EMAIL, sender, "c@d.example", Content("s", "text"))
    assert max(map(len, message.split(b"\r\n"))) <= 998
    header = message_from_bytes(message, policy=policy.default)
    for field_ in ("From", "Reply-To"):
        wire_ = field(message.decode(), field_)
        if "=?" in wire_:  # which Python's parser reads with more spaces than RFC 2047 says
            assert decode(wire_) == f"{name} <{address}>"
        else:
            assert [found.display_name for found in header[field_].addresses] == [name]
    assert sender.is_ascii == address.isascii()
