"""An e-mail ready for the server: to whom it goes, its commands, and the message with its headers, text and HTML.

A message is put together as bytes. Python's `EmailMessage` takes a hundred times as long, mostly for headers that are
the same in every e-mail.

Sources: RFC 5322 (the message), RFC 2045 (encodings), RFC 2046 (alternatives), RFC 2047 (encoded words), RFC 2369 and
RFC 8058 (List-Unsubscribe), RFC 3834 (Auto-Submitted), MS-OXCMAIL (X-Auto-Response-Suppress).
"""

import logging
import re
from base64 import b64encode, encodebytes
from binascii import b2a_qp
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from email.utils import format_datetime
from hashlib import blake2b
from typing import Final

from config.checks import envelope_address, mailbox
from mail.connection import Connection
from mail.lease import Lease
from mail.replies import Outcome, SMTPFault, Stage, Verdict
from mail.templates import Content, RenderError, Templates, content_of
from mail.unsubscribe import Links
from mongo.document import OPTIONAL_FIELDS, JSONObject
from mongo.owed import OwedEmail, batch
from settings import Settings

Look = Callable[[Lease], Awaitable[None]]

log = logging.getLogger("notifier.delivery")

CRLF: Final = b"\r\n"
LINE_LIMIT: Final = 998  # octets of a line, without CRLF (RFC 5322, section 2.1.1)
LINE_LENGTH: Final = 76  # characters of a line with encoded words (RFC 2047, section 2)
WORD_BYTES: Final = 39  # bytes of UTF-8 in an encoded word; its 64 characters fit behind a header's name
PLAIN_ID: Final = re.compile(r"[\w.-]{1,200}", re.ASCII)  # fits `Message-ID`; other programs may owe with any id
FIXED: Final = (
    b"Auto-Submitted: auto-generated\r\nX-Auto-Response-Suppress: DR, RN, NRN, OOF, AutoReply\r\nMIME-Version: 1.0\r\n"
)
"""Ask for no automatic answers. The second header is for Exchange, where `All` would suppress bounces too."""
ALTERNATIVES: Final = (
    b'Content-Type: multipart/alternative; boundary="=_part"\r\n\r\n--=_part\r\n%b\r\n--=_part\r\n%b\r\n--=_part--\r\n'
)
"""`=_` cannot occur in quoted-printable or base64 (RFC 2045, section 6.7), and a part that contains it is not sent as
7bit."""


@dataclass(frozen=True, slots=True)
class Letter:
    lease: Lease
    connection: Connection
    commands: Sequence[bytes]  # before the message: MAIL, RCPT and DATA
    concern: Stage  # what a refused MAIL concerns: the sender, or the recipient
    message: bytes


class Letters:
    """Makes letters. `look` finds out whether the user wants an e-mail, if that is not known."""

    def __init__(self, settings: Settings, look: Look | None = None) -> None:
        self.sender = Sender(settings)
        self.templates = Templates(settings)
        self._links = Links(settings)
        self._look = look

    async def is_wanted(self, lease: Lease) -> bool:
        if self._look and not lease.known:
            await self._look(lease)
        return lease.held and lease.wanted and not lease.is_read

    async def write(self, lease: Lease, connection: Connection) -> Letter | None:
        """Render what the last look has brought, and look again if that took long; `None` if nothing is to be sent.

        Raises `SMTPFault` if the server cannot take it, and otherwise nothing that a connection raises.
        """
        told: Sequence[JSONObject] | None = None
        while told is None or not lease.known:
            if not await self.is_wanted(lease):
                return None
            if lease.told != told:
                told = lease.told
                content = await self.content(lease)
        return self._letter(lease, content, connection) if lease.held else None

    async def content(self, lease: Lease) -> Content:
        """Render the templates. If one fails, the e-mail is what it would be without any."""
        email, fields = lease.email, fields_of(lease.email, lease.told)
        link = self._links.url(email.user_id, email.key)
        try:
            return await self.templates.render(fields, email.language, link)
        except RenderError as exc:
            log.warning("e-mail %s: its template failed, so it is sent without: %s: %s", email.id, exc, exc.kind)
            return content_of(fields, link)
        except (OSError, ValueError) as exc:  # which the mailer would take for a fault of the connection
            raise RuntimeError("templates cannot be rendered") from exc

    def _letter(self, lease: Lease, content: Content, connection: Connection) -> Letter:
        sender, to = self.sender, lease.mail.recipient
        option = "" if sender.is_ascii and to.isascii() else " SMTPUTF8"  # RFC 6531
        if option and not connection.smtp.supports_extension("smtputf8"):
            verdict = Verdict.PERMANENT if sender.is_ascii else Verdict.CONFIGURATION
            raise SMTPFault(verdict, "the server offers no SMTPUTF8, which the address needs")
        try:
            message = compose(lease.email, sender, to, content)
        except ValueError as exc:  # which says nothing about the server
            raise SMTPFault(Verdict.TRANSIENT, f"the message cannot be made: {type(exc).__name__}") from exc
        commands = (f"MAIL FROM:<{sender.envelope}>{option}".encode(), f"RCPT TO:<{to}>".encode(), b"DATA")
        # If only the recipient needs the option, a refused MAIL concerns this e-mail.
        concern = Stage.RCPT if option and sender.is_ascii else Stage.MAIL
        return Letter(lease, connection, commands, concern, message)


def unsendable(lease: Lease) -> Outcome | None:
    email, to = lease.email, lease.mail.recipient
    if not to:
        return Outcome(Verdict.PERMANENT, "no address", "The user's document has no valid e-mail address.")
    if email.suppression and email.suppression.covers(to, email.at):
        detail = f"Suppressed: no e-mail is sent to this address ({email.suppression.code})."
        return Outcome(Verdict.SUPPRESSED, "no attempt", detail)
    return None


def unwanted(lease: Lease) -> Outcome | None:
    """Return the outcome of an e-mail that the user does not want; `None` if its lease has ended."""
    verdict, status = (Verdict.READ, "nothing to tell") if lease.wanted else (Verdict.MUTED, "opted out")
    return Outcome(verdict, status) if lease.held else None


def fields_of(email: OwedEmail, told: Sequence[JSONObject] = ()) -> JSONObject:
    """Return what templates may read: the fields of its notification, or of those it tells, and of its user."""
    named = {"id": email.id, "user_id": email.user_id, "key": email.key, "timestamp": int(email.at.timestamp())}
    named |= {"user": email.user, **dict.fromkeys(OPTIONAL_FIELDS), **email.optional}
    return named | batch(told) if told else named


class Sender:
    """Who e-mails come from. `header` is `From` and `Reply-To`, folded once; `envelope`, the address in MAIL."""

    def __init__(self, settings: Settings) -> None:
        name, address = mailbox(settings.smtp_from)
        self.domain = address.rpartition("@")[2]
        self.envelope = envelope_address(settings.smtp_envelope_from) if settings.smtp_envelope_from else address
        self.header = _folded("From", _mailbox(name, address))
        if settings.smtp_reply_to:
            self.header += _folded("Reply-To", _mailbox(*mailbox(settings.smtp_reply_to)))
        self.is_ascii = (self.header + self.envelope).isascii()


def _mailbox(name: str, address: str) -> Sequence[str]:
    """Return the words, with the name in quotes (RFC 5322, section 3.2.4)."""
    escaped = re.sub(r'(["\\])', r"\\\1", name)
    return [*(_words(f'"{escaped}"', name, LINE_LENGTH) if name else ()), f"<{address}>"]


def compose(email: OwedEmail, sender: Sender, to: str, content: Content) -> bytes:
    """Make the message: a text, or a text and the same in HTML. `Message-ID` and `Date` never change.

    Everything is ASCII, as not every server takes more (RFC 6152), except an address that needs SMTPUTF8 (RFC 6531).
    Every line ends with CRLF and has at most 998 octets. Raises `UnicodeEncodeError` for a lone surrogate.
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
    """Encode as 7bit if possible, and otherwise in the shorter encoding."""
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
    """Return the words as written if all are ASCII and shorter than the limit, otherwise encoded (RFC 2047)."""
    words = written.split(" ")
    if text.isascii() and "=?" not in text and max(map(len, words)) < limit:
        return words
    chunks = [b""]  # Python's own folding makes encoded words that are too long, and adds or drops spaces
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
