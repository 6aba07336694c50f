"""The message: its headers read back as they were, by Python's parser and by one written for RFC 2047 alone."""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime
from email import message_from_string, policy

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from marshmallow import ValidationError

from config.address import envelope_address
from mail.message import WIRE_POLICY, Sender, compose
from mail.templates import Content
from mongo.owed import OwedEmail

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
"""What `mail/templates.py` lets a subject be."""


def wire(to: str = "a@b.example", subject: str = "s", sender: str = "") -> str:
    """Return the header of a message as it travels."""
    message = compose(EMAIL, Sender(sender, "noreply@example.com"), to, Content(subject, "text"))
    return message.as_bytes(policy=WIRE_POLICY[not to.isascii()]).decode().partition("\r\n\r\n")[0] + "\r\n\r\n"


def field(header: str, name: str) -> str:
    """Return a field with its line breaks, without its name."""
    found = re.search(rf"^{name}: (.*?)\r\n(?! )", header, re.MULTILINE | re.DOTALL)
    assert found
    return found[1]


def decode(text: str) -> str:
    """Decode as RFC 2047 says: white space between encoded words is none, and each word is decoded for itself."""
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
