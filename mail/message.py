"""The message as it travels: its headers, its text and its HTML.

A message is put together as bytes. Python's `EmailMessage` takes a hundred times as long, mostly for headers that are
the same in every e-mail.

Sources: RFC 5322 (the message), RFC 2045 (encodings), RFC 2046 (alternatives), RFC 2047 (encoded words), RFC 2369 and
RFC 8058 (List-Unsubscribe), RFC 3834 (Auto-Submitted), MS-OXCMAIL (X-Auto-Response-Suppress).
"""

from __future__ import annotations

import re
from base64 import b64encode, encodebytes
from binascii import b2a_qp
from collections.abc import Sequence
from email.utils import format_datetime
from hashlib import blake2b
from typing import Final

from config.address import envelope_address, mailbox
from mail.templates import Content
from mongo.owed import OwedEmail
from settings import Settings

CRLF: Final = b"\r\n"
LINE_LIMIT: Final = 998
"""Octets of a line, without CRLF (RFC 5322, section 2.1.1)."""
LINE_LENGTH: Final = 76
"""Characters of a line with encoded words (RFC 2047, section 2). Others may have 78 (RFC 5322, section 2.1.1)."""
WORD_BYTES: Final = 39
"""Bytes of UTF-8 in one encoded word. `=?utf-8?b?...?=` then has 64 characters of the 75 allowed, so that it fits into
a line behind the name of its header."""
PLAIN_ID: Final = re.compile(r"[\w.-]{1,200}", re.ASCII)
"""An id that can stand in `Message-ID`. An e-mail that another program owes may have any id."""
FIXED: Final = (
    b"Auto-Submitted: auto-generated\r\nX-Auto-Response-Suppress: DR, RN, NRN, OOF, AutoReply\r\nMIME-Version: 1.0\r\n"
)
"""Ask for no automatic answers. The second header is for Exchange, where `All` would suppress bounces too."""
ALTERNATIVES: Final = (
    b'Content-Type: multipart/alternative; boundary="=_part"\r\n\r\n--=_part\r\n%b\r\n--=_part\r\n%b\r\n--=_part--\r\n'
)
"""`=_` cannot occur in quoted-printable or base64 (RFC 2045, section 6.7), and a part that contains it is not sent as
7bit."""


class Sender:
    """Who e-mails come from. `header` is their `From` and `Reply-To`, folded once.

    `envelope` is the address in MAIL, to which bounces go, by default the one in `From`.
    """

    def __init__(self, name: str, address: str, envelope: str = "", reply_to: tuple[str, str] | None = None) -> None:
        self.domain = address.rpartition("@")[2]
        self.envelope = envelope_address(envelope) if envelope else address
        self.header = _folded("From", _mailbox(name, address))
        self.header += _folded("Reply-To", _mailbox(*reply_to)) if reply_to else ""
        self.is_ascii = (self.header + self.envelope).isascii()


def sender_of(settings: Settings) -> Sender:
    reply_to = mailbox(settings.smtp_reply_to) if settings.smtp_reply_to else None
    return Sender(*mailbox(settings.smtp_from), settings.smtp_envelope_from, reply_to)


def _mailbox(name: str, address: str) -> Sequence[str]:
    """Return the words of a mailbox, with its name in quotes (RFC 5322, section 3.2.4)."""
    escaped = re.sub(r'(["\\])', r"\\\1", name)
    return [*(_words(f'"{escaped}"', name, LINE_LENGTH) if name else ()), f"<{address}>"]


def compose(email: OwedEmail, sender: Sender, to: str, content: Content) -> bytes:
    """Make the message: a text, or a text and the same in HTML. `Message-ID` and `Date` never change.

    Everything is ASCII, as not every server takes more (RFC 6152), except an address that needs SMTPUTF8 (RFC 6531).
    Every line ends with CRLF and has at most 998 octets. `to` must be an `envelope_address`.

    Raises `UnicodeEncodeError` for a lone surrogate.
    """
    subject = " ".join(content.subject.split())
    id_ = email.id if PLAIN_ID.fullmatch(email.id) else blake2b(email.id.encode(), digest_size=16).hexdigest()
    header = (
        f"{sender.header}To: {to}\r\n{_folded('Subject', _words(subject, subject, LINE_LIMIT - LINE_LENGTH))}"
        f"Date: {format_datetime(email.at)}\r\nMessage-ID: <{id_}@{sender.domain}>\r\n"
    )
    if content.unsubscribe_url:
        header += (
            f"List-Unsubscribe: <{content.unsubscribe_url}>\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"
        )
    text = _part(b"plain", content.text)
    body = ALTERNATIVES % (text, _part(b"html", content.html)) if content.html else text
    return header.encode() + FIXED + body


def _part(subtype: bytes, text: str) -> bytes:
    """Return a text with its headers: as 7bit if possible, and otherwise in the shorter encoding."""
    data = f"{text}\n".encode()
    lines = data.splitlines()
    body = CRLF.join(lines) + CRLF
    if text.isascii() and max(map(len, lines)) <= LINE_LIMIT and b"=_" not in data:
        encoding = b"7bit"
    elif 6 * len(text.encode("ascii", "ignore")) > 5 * len(data):
        encoding, body = b"quoted-printable", b2a_qp(body)
    else:
        encoding, body = b"base64", encodebytes(body).replace(b"\n", CRLF)
    header = b'Content-Type: text/%b; charset="utf-8"\r\nContent-Transfer-Encoding: %b\r\n\r\n' % (subtype, encoding)
    return header + body


def _words(written: str, text: str, limit: int) -> Sequence[str]:
    """Return the words as they are written if all are ASCII and shorter than the limit, otherwise encoded (RFC 2047).

    Decoded, they are the same text. Python's own folding makes encoded words of 76 characters where 75 are allowed
    (RFC 2047, section 2), and adds or drops spaces in some texts.
    """
    words = written.split(" ")
    if text.isascii() and "=?" not in text and max(map(len, words)) < limit:
        return words
    chunks = [b""]
    for character in text:
        encoded = character.encode()
        if len(chunks[-1]) + len(encoded) > WORD_BYTES:
            chunks.append(b"")
        chunks[-1] += encoded
    return [f"=?utf-8?b?{b64encode(chunk).decode()}?=" for chunk in chunks]


def _folded(name: str, words: Sequence[str]) -> str:
    lines = [f"{name}: {words[0]}"]
    for word in words[1:]:
        if len(lines[-1]) + len(word) < LINE_LENGTH:
            lines[-1] += f" {word}"
        else:
            lines.append(f" {word}")
    return "".join(f"{line}\r\n" for line in lines)
