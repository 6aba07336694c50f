"""The message: its headers, and its text and HTML, as they travel.

Sources: RFC 5322 (the message), RFC 2046 (alternatives), RFC 3834 (Auto-Submitted), RFC 6152 and RFC 6531 (servers
that take more than ASCII).
"""

from __future__ import annotations

from datetime import datetime
from email import policy
from email.headerregistry import Address, HeaderRegistry
from email.message import EmailMessage
from typing import Any, Final

from mail.templates import Content


class _CachedHeaderRegistry(HeaderRegistry):
    """Keeps the class of each header. Making it anew each time takes half of `compose`."""

    def __init__(self) -> None:
        super().__init__()
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


def compose(id_: str, at: datetime, sender: Sender, to: str, content: Content) -> EmailMessage:
    """Make the message: a text, or a text and the same in HTML. `id_` and `at` make `Message-ID` and `Date`."""
    message = EmailMessage(CONTENT_POLICY)
    message["From"] = sender.header
    message["To"] = to
    message["Subject"] = content.subject
    message["Date"] = at
    message["Message-ID"] = f"<{id_}@{sender.domain}>"
    message["Auto-Submitted"] = AUTO_SUBMITTED
    message.set_content(content.text + "\n")
    if content.html:
        message.add_alternative(content.html + "\n", subtype="html")
    return message
