"""What the service says once it listens: where, and in a local run commands to paste."""

from __future__ import annotations

import asyncio
import json
import logging
import shlex
import sys
from typing import Any, Final

from config.ids import IdType
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
STORE: Final = """\
from bson import ObjectId; from pymongo import MongoClient; \
MongoClient(open(".notifier/db_uri").read()).get_default_database()[{collection}].insert_one({document})"""
"""Stores a user in the MongoDB of the local run. A bare machine has no other program that can."""


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
    if settings.unknown_users is UnknownUsers.REFUSE:
        commands.insert(0, _store_user(settings))
    return LOCAL_RUN.format(url=settings.url, where=where, commands="\n".join(f"  {line}" for line in commands))


def _store_user(settings: Settings) -> str:
    """Return the command that stores the user, whom the service does not create."""
    id_ = json.dumps(USER)
    if settings.id_type is IdType.OBJECTID:
        id_ = f"ObjectId({id_})"
    address = json.dumps(_nested(settings.email_field, settings.email)).removeprefix("{")
    code = STORE.format(collection=json.dumps(settings.users_collection), document=f'{{"_id": {id_}, {address}')
    return shlex.join([sys.executable, "-c", code])


def _nested(path: str, value: Any) -> Any:
    """Return the document that has the value at a path such as `emails.0.address`."""
    for name in reversed(path.split(".")):
        value = [*([{}] * int(name)), value] if name.isdecimal() else {name: value}
    return value
