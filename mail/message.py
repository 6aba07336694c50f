"""The message: its headers, and its text and HTML, as they travel.

Sources: RFC 5322 (the message), RFC 2046 (alternatives), RFC 3834 (Auto-Submitted), RFC 6152 and RFC 6531 (servers
that take more than ASCII).
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from email import policy
from email.headerregistry import Address, BaseHeader, HeaderRegistry, UniqueUnstructuredHeader
from email.message import EmailMessage
from email.policy import Policy
from typing import Any, Final

from mail.templates import Content
from mongo.outbox import OwedEmail

LINE_LENGTH: Final = 78
"""Characters of a header's line (RFC 5322, section 2.1.1)."""
WORD_BYTES: Final = 45
"""Bytes of UTF-8 in one encoded word. As base64 in `=?utf-8?b?...?=` they make 72 of the 75 characters allowed."""


class _Subject(UniqueUnstructuredHeader, BaseHeader):  # type: ignore[misc]  # as HeaderRegistry combines them
    """A subject that reads back as it was, in lines of at most 78 characters where it has spaces (RFC 5322).

    Python's own folding makes encoded words of 76 characters, of which 75 are allowed (RFC 2047, section 2), and some
    subjects read back with a space more or less.
    """

    def fold(self, *, policy: Policy[Any]) -> str:
        """Return the header as it is sent."""
        text = str(self)
        words = text.split(" ") if text.isascii() else [_encoded_word(chunk) for chunk in _chunks(text)]
        lines = [f"{self.name}: {words[0]}"]
        for word in words[1:]:
            if len(lines[-1]) + len(word) < LINE_LENGTH:
                lines[-1] += f" {word}"
            else:
                lines.append(f" {word}")
        return "".join(f"{line}{policy.linesep}" for line in lines)


def _encoded_word(chunk: bytes) -> str:
    return f"=?utf-8?b?{b64encode(chunk).decode()}?="


def _chunks(text: str) -> Iterator[bytes]:
    """Cut a text into pieces for encoded words, between characters."""
    chunk = b""
    for character in text:
        encoded = character.encode()
        if len(chunk) + len(encoded) > WORD_BYTES:
            yield chunk
            chunk = b""
        chunk += encoded
    yield chunk


class _CachedHeaderRegistry(HeaderRegistry):
    """Keeps the class of each header. Making it anew each time takes half of `compose`."""

    def __init__(self) -> None:
        super().__init__()
        self.map_to_type("subject", _Subject)
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


class Sender:
    """Who e-mails come from. Its header is made once: making headers is most of the work for a message."""

    def __init__(self, name: str, address: str) -> None:
        local, self.domain = address.rsplit("@", 1)
        self.address = address
        self.header: Any = CONTENT_POLICY.header_factory("From", (Address(name, local, self.domain),))


def compose(email: OwedEmail, sender: Sender, to: str, content: Content) -> EmailMessage:
    """Make the message: a text, or a text and the same in HTML. `Message-ID` and `Date` never change."""
    message = EmailMessage(CONTENT_POLICY)
    message["From"] = sender.header
    message["To"] = to
    message["Subject"] = content.subject
    message["Date"] = email.at
    message["Message-ID"] = f"<{email.id}@{sender.domain}>"
    message["Auto-Submitted"] = AUTO_SUBMITTED
    message.set_content(content.text + "\n")
    if content.html:
        message.add_alternative(content.html + "\n", subtype="html")
    return message
