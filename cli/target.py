"""The database that a command works on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from settings import Settings

LOCAL_REQUIREMENTS: Final = Path(__file__).parent.parent / "requirements-local.txt"
"""Neither the container nor the service as one file has it."""


class NoDatabase(Exception):
    """Nothing is configured, and nothing runs here. The message says what to do."""


def nothing_configured() -> NoDatabase:
    """Return the error of a start with no configuration and without the packages of a local run."""
    advice = " To run locally, install requirements-local.txt." if LOCAL_REQUIREMENTS.exists() else ""
    return NoDatabase(f"Nothing is configured: set DB_URI, EMAIL and SMTP_HOST.{advice}")


def with_database(settings: Settings) -> Settings:
    """Return the settings, with the database of the local run in this folder if they name none.

    Raises `NoDatabase`.
    """
    if not settings.local:
        return settings
    try:
        from ops.local import DB_URI_FILE  # noqa: PLC0415 - its packages are optional
    except ModuleNotFoundError:
        raise nothing_configured() from None
    if not DB_URI_FILE.exists():
        raise NoDatabase("There is no local run in this folder. For any other, set DB_URI, EMAIL and SMTP_HOST.")
    return replace(settings, db_uri=DB_URI_FILE.read_text())
