"""The files of a local run that others read: a file for each e-mail, and the address of its MongoDB."""

from __future__ import annotations

from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Final, NamedTuple

FOLDER: Final = Path(".notifier")
MAILBOX: Final = FOLDER / "mail"
DB_URI_FILE: Final = FOLDER / "db_uri"


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
