"""The message: its headers, and its text and HTML, as they travel.

Sources: RFC 5322 (the message), RFC 2046 (alternatives), RFC 2369 and RFC 8058 (List-Unsubscribe), RFC 3834
(Auto-Submitted), RFC 6152 and RFC 6531 (servers that take more than ASCII).
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from email import policy
from email.headerregistry import BaseHeader, HeaderRegistry, UniqueUnstructuredHeader
from email.message import EmailMessage
from email.policy import Policy
from email.utils import formataddr
from typing import Any, Final

from bench.frozen.outbox import Email

LINE_LENGTH: Final = 76
"""Characters of a line that has encoded words (RFC 2047, section 2). Others may have 78 (RFC 5322, section 2.1.1)."""
WORD_BYTES: Final = 39
"""Bytes of UTF-8 in one encoded word. As base64 in `=?utf-8?b?...?=` they make 64 characters, so that each fits into
a line, also behind the header's name. 75 are allowed."""


class _Verbatim(UniqueUnstructuredHeader, BaseHeader):  # type: ignore[misc]  # as HeaderRegistry combines them
    """A header that is sent as it is. Python's own would decode in an address what looks like an encoded word."""

    @classmethod
    def parse(cls, value: str, kwds: dict[str, Any]) -> None:
        """Take the value as it is."""
        kwds["parse_tree"] = kwds["decoded"] = value

    def fold(self, *, policy: Policy[Any]) -> str:
        """Return the header as it is sent."""
        return f"{self.name}: {self}{policy.linesep}"


class _Subject(_Verbatim):
    """A subject that reads back as it was, in short lines where it has spaces.

    Python's own folding makes encoded words of 76 characters, of which 75 are allowed (RFC 2047, section 2), and some
    subjects read back with a space more or less.
    """

    def fold(self, *, policy: Policy[Any]) -> str:
        """Return the header as it is sent."""
        text = str(self)
        return _folded(self.name, text.split(" ") if text.isascii() else _encoded_words(text), policy)


class _From(_Verbatim):
    """The sender: a display name, which may be empty, and an address in angle brackets."""

    def fold(self, *, policy: Policy[Any]) -> str:
        """Return the header as it is sent."""
        name, _, address = str(self).removesuffix(">").rpartition(" <")
        plain = name.isascii() and "=?" not in name
        words = [formataddr((name, address))] if plain else [*_encoded_words(name), f"<{address}>"]
        return _folded(self.name, words, policy)


def _folded(name: str, words: Sequence[str], policy: Policy[Any]) -> str:
    lines = [f"{name}: {words[0]}"]
    for word in words[1:]:
        if len(lines[-1]) + len(word) < LINE_LENGTH:
            lines[-1] += f" {word}"
        else:
            lines.append(f" {word}")
    return "".join(f"{line}{policy.linesep}" for line in lines)


def _encoded_words(text: str) -> Sequence[str]:
    """Encode a text (RFC 2047), cut between characters."""
    chunks = [b""]
    for character in text:
        encoded = character.encode()
        if len(chunks[-1]) + len(encoded) > WORD_BYTES:
            chunks.append(b"")
        chunks[-1] += encoded
    return [f"=?utf-8?b?{b64encode(chunk).decode()}?=" for chunk in chunks]


class _CachedHeaderRegistry(HeaderRegistry):
    """Keeps the class of each header. Making it anew each time takes half of `compose`."""

    def __init__(self) -> None:
        super().__init__()
        verbatim = dict.fromkeys(("to", "list-unsubscribe", "list-unsubscribe-post"), _Verbatim)
        for name, kind in {"from": _From, "subject": _Subject, **verbatim}.items():
            self.map_to_type(name, kind)
        self._classes: dict[str, type] = {}

    def __getitem__(self, name: str) -> type:
        if name not in self._classes:
            self._classes[name] = super().__getitem__(name)
        return self._classes[name]


WIRE_POLICY: Final = {False: policy.SMTP, True: policy.SMTPUTF8}
"""How a message is serialised, without and with SMTPUTF8."""
CONTENT_POLICY: Final = policy.default.clone(cte_type="7bit", header_factory=_CachedHeaderRegistry())
"""Encodes every text as ASCII, as not every server takes more (RFC 6152)."""
AUTO_SUBMITTED: Final = CONTENT_POLICY.header_factory("Auto-Submitted", "auto-generated")
ONE_CLICK: Final = CONTENT_POLICY.header_factory("List-Unsubscribe-Post", "List-Unsubscribe=One-Click")


@dataclass(frozen=True, slots=True)
class Content:
    """What an e-mail says."""

    subject: str
    text: str
    html: str | None = None
    unsubscribe_url: str | None = None


class Sender:
    """Who e-mails come from. Its header is made once: making headers is most of the work for a message."""

    def __init__(self, name: str, address: str) -> None:
        self.domain = address.rpartition("@")[2]
        self.address = address
        self.header: Any = CONTENT_POLICY.header_factory("From", f"{name} <{address}>")


def compose(email: Email, sender: Sender, to: str, content: Content) -> EmailMessage:
    """Make the message: a text, or a text and the same in HTML. `Message-ID` and `Date` never change."""
    message = EmailMessage(CONTENT_POLICY)
    message["From"] = sender.header
    message["To"] = to
    message["Subject"] = content.subject
    message["Date"] = email.at
    message["Message-ID"] = f"<{email.id}@{sender.domain}>"
    message["Auto-Submitted"] = AUTO_SUBMITTED
    if content.unsubscribe_url:
        message["List-Unsubscribe"] = f"<{content.unsubscribe_url}>"
        message["List-Unsubscribe-Post"] = ONE_CLICK
    message.set_content(content.text + "\n")
    if content.html:
        message.add_alternative(content.html + "\n", subtype="html")
    return message
