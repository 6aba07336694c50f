"""The database that a command works on."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from ops.mailbox import DB_URI_FILE
from settings import Settings

NOTHING_CONFIGURED: Final = (
    "Nothing is configured: set DB_URI, EMAIL and SMTP_HOST. A local run needs requirements-local.txt."
)
NO_LOCAL_RUN: Final = "There is no local run in this folder. For any other, set DB_URI, EMAIL and SMTP_HOST."


class NoDatabase(Exception):
    """Nothing is configured, and nothing runs here. The message says what to do."""


def with_database(settings: Settings) -> Settings:
    """Return the settings, with the database of the local run in this folder if they name none.

    Raises `NoDatabase`.
    """
    if not settings.local:
        return settings
    if not DB_URI_FILE.exists():
        raise NoDatabase(NO_LOCAL_RUN)
    return replace(settings, db_uri=DB_URI_FILE.read_text())
