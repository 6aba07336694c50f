"""What the service says once it listens: where, and in a local run commands to paste."""

from __future__ import annotations

import asyncio
import logging
from typing import Final

from settings import Settings, UnknownUsers

log = logging.getLogger("notifier")

LOCAL_RUN: Final = """\
This is a LOCAL RUN, on an embedded MongoDB and mailbox under .notifier/; set DB_URI and SMTP_HOST for any other.
Open {url}/ in a browser and see it work, or try it from another terminal{where} (Ctrl-C stops):

{commands}
"""
WITH_KEYS: Final = ", where API_KEY is one of API_KEYS"
HEADER: Final = '-H "Authorization: Bearer $API_KEY" '
USER: Final = "638f394d4b7243fc0399ea67"
"""The user of the commands."""
REMINDER_INTERVAL: Final = 3600.0
"""Seconds."""
REFUSED: Final = 'UNKNOWN_USERS is refuse, so store that user first: docs/configuration.md, "A test user".\n'


def announce(settings: Settings) -> None:
    """Tell where the service listens, and warn if it is open to anyone."""
    if settings.local:
        print(_banner(settings), flush=True)  # noqa: T201 - for the newcomer
    else:
        log.info("listening on %s port %d", settings.host, settings.port)
    if settings.openness:
        log.warning("%s", settings.openness)


async def remind(settings: Settings) -> None:
    """Warn once an hour if the API is open to anyone."""
    while settings.openness:
        await asyncio.sleep(REMINDER_INTERVAL)
        log.warning("%s", settings.openness)


def _banner(settings: Settings) -> str:
    header, where = (HEADER, WITH_KEYS) if settings.api_keys else ("", "")
    kind = max(settings.kinds.values(), key=lambda kind: kind.in_app + kind.email).name
    commands = [
        f'curl {header}-d \'{{"user_id": "{USER}", "key": "{kind}"}}\' {settings.url}/create',
        f"curl {header}'{settings.url}/list?user_id={USER}'",
        "ls .notifier/mail/",
    ]
    lines = "\n".join(f"  {line}" for line in commands)
    refused = REFUSED if settings.unknown_users is UnknownUsers.REFUSE else ""
    return LOCAL_RUN.format(url=settings.url, where=where, commands=lines) + refused
