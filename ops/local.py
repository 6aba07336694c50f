"""The local run, on a real MongoDB and a mailbox on loopback, whose files are under `.notifier/`."""

import asyncio
import importlib.util
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from mongo.errors import Misconfigured
from ops.mongod import DATABASE, FOLDER, running_mongod
from settings import Security, Settings, UnknownUsers

MAILBOX: Final = FOLDER / "mail"
NEWEST: Final = 20  # e-mails that the demo page shows
DB_URI_FILE: Final = FOLDER / "db_uri"  # where commands find the MongoDB of the local run
NOTHING_CONFIGURED: Final = (
    "Nothing is configured: set DB_URI, EMAIL and SMTP_HOST. A local run needs requirements-local.txt."
)
STORE_USER_FIRST: Final = 'UNKNOWN_USERS is refuse, so store that user first: docs/configuration.md, "A test user".\n'


@asynccontextmanager
async def embedded(settings: Settings) -> AsyncIterator[Settings]:
    """Start MongoDB and the mailbox, and yield settings for them. Raises `Misconfigured` or `Unavailable`."""
    if not importlib.util.find_spec("aiosmtpd"):
        raise Misconfigured(NOTHING_CONFIGURED)
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    for folder in (DATABASE, MAILBOX):
        folder.mkdir(exist_ok=True)
    async with running_mongod() as db_uri, _running_mailbox() as smtp_port:
        DB_URI_FILE.write_text(db_uri)
        yield replace(settings, db_uri=db_uri, smtp_host="127.0.0.1", smtp_port=smtp_port, smtp_security=Security.NONE)


def with_database(settings: Settings) -> Settings:
    """Return settings with the database of the local run in this folder if they name none. Raises `Misconfigured`."""
    if not settings.local:
        return settings
    if not DB_URI_FILE.exists():
        raise Misconfigured("There is no local run in this folder. For any other, set DB_URI, EMAIL and SMTP_HOST.")
    return replace(settings, db_uri=DB_URI_FILE.read_text())


def banner(settings: Settings) -> str:
    url, user = settings.url, "638f394d4b7243fc0399ea67"
    kind = max(settings.kinds.values(), key=lambda kind: kind.in_app + kind.email).name
    where = ", where API_KEY is one of API_KEYS" if settings.api_keys else ""
    header = '-H "Authorization: Bearer $API_KEY" ' if settings.api_keys else ""
    return f"""\
This is a LOCAL RUN, on an embedded MongoDB and mailbox under .notifier/; set DB_URI and SMTP_HOST for any other.
Open {url}/ in a browser and see it work, or try it from another terminal{where} (Ctrl-C stops):

  curl {header}-d '{{"user_id": "{user}", "key": "{kind}"}}' {url}/create
  curl {header}'{url}/list?user_id={user}'
  ls .notifier/mail/

{STORE_USER_FIRST if settings.unknown_users is UnknownUsers.REFUSE else ""}"""


class Email(NamedTuple):
    file: Path
    to: str
    subject: str
    text: str
    html: str | None


def newest_emails() -> list[Email]:
    newest = sorted(MAILBOX.glob("*.eml"), reverse=True)[:NEWEST]
    return [email for path in newest if (email := read_email(path.name))]


def read_email(name: str) -> Email | None:
    """Return the e-mail in the file of this name, or `None` if it cannot be read."""
    path = MAILBOX / Path(name).name  # in this folder, whatever the name
    try:
        message = message_from_bytes(path.read_bytes(), _class=EmailMessage, policy=default)
        bodies = [message.get_body((kind,)) for kind in ("plain", "html")]
        text, html = (str(body.get_content()) if body else None for body in bodies)
        return Email(path, str(message["To"] or ""), str(message["Subject"] or ""), text or "", html)
    except (OSError, LookupError, ValueError):  # deleted meanwhile, or not written by us
        return None


@asynccontextmanager
async def _running_mailbox() -> AsyncIterator[int]:
    """Keep each e-mail in a file; yield the port."""
    from aiosmtpd.smtp import SMTP  # noqa: PLC0415 - only a local run has its package

    logging.getLogger("mail.log").setLevel(logging.ERROR)  # aiosmtpd logs addresses
    loop = asyncio.get_running_loop()
    protocol = partial(SMTP, _Handler(), hostname="localhost", enable_SMTPUTF8=True, loop=loop)
    async with await loop.create_server(protocol, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


class _Handler:
    async def handle_DATA(self, _server: object, _session: object, envelope: Any) -> str:  # noqa: N802 - aiosmtpd's
        path = MAILBOX / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}.eml"
        part = path.with_suffix(".part")  # so that nobody reads half an e-mail
        part.write_bytes(envelope.original_content or b"")
        part.rename(path)
        return "250 OK"
