"""An e-mail ready for the server: to whom it goes, its commands, and the message with its headers, text and HTML.

A message is put together as bytes. Python's `EmailMessage` takes a hundred times as long, mostly for headers that are
the same in every e-mail.

Sources: RFC 5322 (the message), RFC 2045 (encodings), RFC 2046 (alternatives), RFC 2047 (encoded words), RFC 2369 and
RFC 8058 (List-Unsubscribe), RFC 3834 (Auto-Submitted), MS-OXCMAIL (X-Auto-Response-Suppress).
"""

from __future__ import annotations

import re
from base64 import b64encode, encodebytes
from binascii import b2a_qp
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import format_datetime
from hashlib import blake2b
from typing import Final

from marshmallow import ValidationError

from config.checks import envelope_address, mailbox
from mail.connection import Connection
from mail.lease import Lease
from mail.replies import Outcome, SMTPFault, Stage, Verdict
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
MUTED: Final = Outcome(verdict=Verdict.MUTED, status="opted out", stage=Stage.CONNECT)
READ: Final = Outcome(verdict=Verdict.READ, status="nothing to tell", stage=Stage.CONNECT)


class Worker:
    """What the mailer asks while it sends an e-mail. By itself, every e-mail is wanted, and none follows it."""

    async def content(self, lease: Lease) -> Content:
        """Return what an e-mail says, after the look. Errors reach the caller of the mailer: none may be a `FAULTS`."""
        raise NotImplementedError

    async def look(self, lease: Lease) -> None:
        """Look whether the user wants an e-mail. This comes before MAIL, unless it is known."""

    def late(self, lease: Lease) -> None:
        """Note that the reply to the message does not come soon."""

    def following(self) -> Lease | None:
        """Take the next e-mail, if there is one that may be sent at once."""
        return None

    def give_back(self, lease: Lease) -> None:
        """Take an e-mail back that followed, and that the server has not got."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A message and the commands before it, each with its stage and the kind of reply that accepts it."""

    lease: Lease
    commands: Mapping[str, tuple[Stage, int]]
    message: bytes


def letter_of(lease: Lease, sender: Sender, to: str, content: Content, connection: Connection) -> Letter:
    """Make a letter. Raises `SMTPFault` if that cannot be done, or not for this server."""
    option = _option(sender, to, connection)
    try:
        message = compose(lease.email, sender, to, content)
    except ValueError as exc:  # which says nothing about the server
        raise SMTPFault(Verdict.TRANSIENT, f"the message cannot be made: {type(exc).__name__}") from exc
    # If only the recipient needs an option, a refused MAIL concerns this e-mail.
    first = Stage.RCPT if option and sender.is_ascii else Stage.MAIL
    commands = {
        f"MAIL FROM:<{sender.envelope}>{option}": (first, 2),
        f"RCPT TO:<{to}>": (Stage.RCPT, 2),
        "DATA": (Stage.DATA_COMMAND, 3),
    }
    return Letter(lease, commands, message)


def _option(sender: Sender, to: str, connection: Connection) -> str:
    """Ask for SMTPUTF8 if an address needs it. Raises `SMTPFault` if the server lacks it (RFC 6531)."""
    if sender.is_ascii and to.isascii():
        return ""
    if not connection.smtp.supports_extension("smtputf8"):
        verdict = Verdict.PERMANENT if sender.is_ascii else Verdict.CONFIGURATION
        raise SMTPFault(verdict, "the server offers no SMTPUTF8, which the address needs")
    return " SMTPUTF8"


def recipient_of(lease: Lease) -> str | Outcome:
    """Return the address, or the outcome of an e-mail that cannot be sent to one."""
    email = lease.email
    if not email.address:
        return _unsendable("The user's document has no e-mail address.")
    try:
        to = envelope_address(email.address)
    except ValidationError:
        return _unsendable("The e-mail address in the user's document is not valid.")
    if email.suppression and email.suppression.covers(to, email.at):
        detail = f"Suppressed: no e-mail is sent to this address ({email.suppression.code})."
        return Outcome(verdict=Verdict.SUPPRESSED, status="no attempt", detail=detail, stage=Stage.CONNECT)
    return to


def unwanted(lease: Lease) -> Outcome | None:
    """Return the outcome of an e-mail that is not to be sent; `None` if its lease has ended."""
    return (READ if lease.wanted else MUTED) if lease.held else None


def _unsendable(detail: str) -> Outcome:
    return Outcome(verdict=Verdict.PERMANENT, status="no address", detail=detail, stage=Stage.CONNECT)


# --- the message ------------------------------------------------------------------------------------


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
