"""The mailbox of a local run: it takes every e-mail, and keeps each in a file."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from aiosmtpd.smtp import SMTP, Envelope, Session

FOLDER: Final = Path(".notifier")
"""The files of a local run."""
MAILBOX: Final = FOLDER / "mail"


class Email(NamedTuple):
    """An e-mail of the mailbox. `html` is absent from one that is only text."""

    file: Path
    to: str
    subject: str
    text: str
    html: str | None


def newest_emails(count: int = 20) -> list[Email]:
    """Return the newest e-mails, newest first."""
    newest = sorted(MAILBOX.glob("*.eml"), reverse=True)[:count]
    return [email for path in newest if (email := read_email(path.name))]


def read_email(name: str) -> Email | None:
    """Return the e-mail in the file of this name, or `None` if it cannot be read."""
    path = MAILBOX / Path(name).name  # in this folder, whatever the name
    try:
        message = message_from_bytes(path.read_bytes(), _class=EmailMessage, policy=default)
        text, html = (message.get_body((kind,)) for kind in ("plain", "html"))
        return Email(
            path,
            str(message["To"] or ""),
            str(message["Subject"] or ""),
            str(text.get_content()) if text else "",
            str(html.get_content()) if html else None,
        )
    except (OSError, LookupError, ValueError):  # deleted meanwhile, or not written by us
        return None


@asynccontextmanager
async def running_mailbox() -> AsyncIterator[int]:
    """Take e-mails meanwhile; yield the port."""
    from aiosmtpd.smtp import SMTP  # noqa: PLC0415 - only a local run has its package

    loop, handler = asyncio.get_running_loop(), _Handler()
    logging.getLogger("mail.log").setLevel(logging.WARNING)  # aiosmtpd logs addresses

    def protocol() -> SMTP:
        return SMTP(handler, hostname="localhost", enable_SMTPUTF8=True, loop=loop)

    async with await loop.create_server(protocol, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


class _Handler:
    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd's
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}.eml"
        part = MAILBOX / f"{name}.part"  # so that nobody reads half an e-mail
        try:
            part.write_bytes(envelope.original_content or b"")
        except OSError:
            return "452 4.3.1 The mailbox has no room"
        part.rename(MAILBOX / name)
        return "250 OK"
