"""E-mail addresses: what RFC 5322 and RFC 6531 allow, and what real mailboxes have."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from marshmallow import ValidationError

from config.checks import envelope_address, mailbox


@pytest.mark.parametrize(
    ("stored", "sent"),
    [
        ("a@b.example", "a@b.example"),
        (" a@b.example\n", "a@b.example"),
        ("o'x+y=z{}|~`^#$%&*!?/@b.example", "o'x+y=z{}|~`^#$%&*!?/@b.example"),
        ("a..b.@docomo.example", "a..b.@docomo.example"),
        ('"a b"@c.example', '"a b"@c.example'),
        ('"a@b\\"c"@d.example', '"a@b\\"c"@d.example'),
        ("a@[192.0.2.1]", "a@[192.0.2.1]"),
        ("a@[IPv6:2001:db8::1]", "a@[IPv6:2001:db8::1]"),
        ("a@localhost", "a@localhost"),
        ("a@b.example.", "a@b.example"),
        ("a@my_host.example", "a@my_host.example"),
        ("ann@BÜCHER.example", "ann@xn--bcher-kva.example"),
        ("संपर्क@डाटामेल.भारत", "संपर्क@xn--c2bd4bq1db8d.xn--h2brj9c"),
        ("用户@例子。广告", "用户@xn--fsqu00a.xn--4rr70v"),
        ("क्\u200dष@example.com", "क्\u200dष@example.com"),
        ("re\u0301ne\u0301@b.example", "réné@b.example"),
        ("é" * 350 + "@b.example", "é" * 350 + "@b.example"),  # whose server may take more than 64 octets
    ],
)
def test_an_address_is_normalised(stored: str, sent: str) -> None:
    assert envelope_address(stored) == sent


@pytest.mark.parametrize(
    "stored",
    [
        *(None, 7, True, ["@"], ["a@b.example"], {"@": 1}, b"a@b.example"),
        *(
            "",
            "@",
            "a",
            "a@",
            "@b",
            "a@b@c.example",
            "a b@c.example",
            "a@b c",
            "a@b..c",
            "a@-b.example",
            "a@b-.example",
        ),
        *("a@b.example, c@d.example", "Ann <a@b.example>", "<a@b.example>", "a@b.example\r\nRCPT TO:<c@d.example>"),
        *('"a"b@c.example', '"a@c.example', '"a\r\nb"@c.example', "a\0@b.example", "a\x7f@b.example", "a>@b.example"),
        *(
            "a\u2028b@c.example",
            "a\u202eb@c.example",
            "a\ud800b@c.example",
            "é" * 351 + "@b.example",
            "x" * 701 + "@b.example",
        ),
        *(
            "a@" + "x" * 64 + ".example",
            "a@" + ".".join(["x" * 60] * 5),
            "a@[300]",
            "a@ex\u00adample..com",
            "a" * 1_000_000,
        ),
    ],
)
def test_anything_but_exactly_one_address_is_refused(stored: object) -> None:
    with pytest.raises(ValidationError):
        envelope_address(stored)


@given(st.text())
@example("a@b")
@example("\u037e@b")
def test_whatever_is_accepted_fits_into_a_command(text: str) -> None:
    """Nothing in it can end the address or the line, and it is normalised already."""
    for candidate in (text, f"{text}@b.example", f'"{text}"@b.example', f"a@{text}"):
        try:
            address = envelope_address(candidate)
        except ValidationError:
            continue
        local, _, domain = address.rpartition("@")
        assert domain.isascii()
        assert not any(unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"} for c in address)
        assert local.startswith('"') or not set(local) & set(' <>()[],;:\\"@')
        assert not set(domain) & set(' <>()\\"@,;')
        assert envelope_address(address) == address


@pytest.mark.parametrize(
    ("value", "name", "address"),
    [
        ("a@b.example", "", "a@b.example"),
        ("Notifier <a@b.example>", "Notifier", "a@b.example"),
        (" <a@b.example> ", "", "a@b.example"),
        ('"Müller, GmbH" <a@bücher.example>', "Müller, GmbH", "a@xn--bcher-kva.example"),
        ("Acme, Inc. <a@b.example>", "Acme, Inc.", "a@b.example"),
        ("Acme (EU) Ltd.<a@b.example>", "Acme (EU) Ltd.", "a@b.example"),
        ("Firma: Support <a@b.example>", "Firma: Support", "a@b.example"),
        ("Acme \\ [Team]; <a@b.example>", "Acme \\ [Team];", "a@b.example"),
        ('Acme "The Best" <a@b.example>', 'Acme "The Best"', "a@b.example"),
        (r'"Acme \"The Best\" \\ Ltd." <a@b.example>', r'Acme "The Best" \ Ltd.', "a@b.example"),
        ('"A <B>, c@d" <a@b.example>', "A <B>, c@d", "a@b.example"),
        ("Acme @ Home <a@b.example>", "Acme @ Home", "a@b.example"),
        ("A\u00a0B\u200d <a@b.example>", "A\u00a0B\u200d", "a@b.example"),
        ("=?utf-8?q?x?= <a@b.example>", "=?utf-8?q?x?=", "a@b.example"),
    ],
)
def test_a_sender_has_a_name_and_an_address(value: str, name: str, address: str) -> None:
    assert mailbox(value) == (name, address)


@pytest.mark.parametrize(
    "value",
    [
        *(
            "",
            "Ann",
            "Ann <>",
            "a@b, c@d",
            "Ann <a@b> x",
            "A\nB <a@b>",
            "A\u2028B <a@b>",
            "a@b (Ann)",
            "Ann <a@b",
            "<<a@b>>",
        ),
        *(
            "Ann <a@b>, Bob <c@d>",
            "a@b, Bob <c@d>",
            "Ann, a@b <c@d>",
            "A > B <a@b>",
            " " * 60_000 + "<a@b",
            "<" * 60_000,
        ),
    ],
)
def test_anything_else_is_refused_as_a_sender(value: str) -> None:
    with pytest.raises(ValidationError):
        mailbox(value)
