"""Poison for the soak: what real documents, recipients, accounts, clocks and connection strings may be like."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from bson import ObjectId, encode
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from mail.replies import Stage, Verdict, verdict_of
from mongo.document import OUTBOX_LIMIT
from mongo.owed import new_element
from tests.servers import Drop, Mongod, Script
from tests.soak_load import POISON_PERIOD

Document = Mapping[str, Any]
LIMITED: Final = (
    "import resource, runpy; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)); "
    "runpy.run_module('tests.cluster', run_name='__main__')"
)
"""The program of a worker: it has few descriptors."""
PAST: Final = datetime(2020, 1, 1, tzinfo=UTC)
EMAIL: Final = {"id": "x", "key": "new_login", "token": "0" * 24, "at": PAST, "next_at": PAST, "tries": 0}
ODD_DOCUMENTS: Final[Sequence[Document]] = [
    {"notifier": None},
    {"notifier": "next week"},
    {"notifier": [{"due": PAST, "outbox": [EMAIL]}]},
    {"notifier": {"due": PAST}},
    {"notifier": {"due": PAST, "outbox": None}},
    {"notifier": {"due": PAST, "outbox": "next week"}},
    {"notifier": {"due": PAST, "outbox": {"0": EMAIL}}},
    {"notifier": {"due": PAST, "outbox": [None]}},
    {"notifier": {"due": PAST, "outbox": [1, "x", [EMAIL]]}},
    {"notifier": {"due": PAST, "outbox": [{"to": "ann@example.com", "sent": False}]}},
    *({"notifier": {"due": PAST, "outbox": [EMAIL | {name: None}]}} for name in EMAIL),
    {"notifier": {"due": "soon", "outbox": [EMAIL]}},
    {"notifier": {"due": [PAST], "outbox": [EMAIL]}},
]
"""Documents in which `notifier` is not the service's, or its outbox is damaged. Nothing may be sent or changed."""
ODD_COUNT: Final = 100
"""Odd documents in the collection: more than a worker looks at to claim some."""

RECIPIENTS: Final[Mapping[str, str]] = {
    # what a mail server does at RCPT for a recipient
    "421": "421 4.7.0 closing for this one",
    "451": "451 4.3.0 never now",
    "drop": "drop",
    "hang": "hang",
    "quota": "550 5.4.5 Daily user sending limit exceeded",
}
CLOCKS: Final = ("-3600", "+0", "+3600")
"""By how many seconds the clocks of the workers are wrong."""
CONCERNS: Final = (
    "readConcernLevel=local",
    "readConcernLevel=majority&readPreference=secondaryPreferred",
    "readConcernLevel=linearizable&w=1&journal=false",
    "readConcernLevel=available&w=0",
    "readConcernLevel=snapshot&retryWrites=true",
)


def insert_odd_documents(client: MongoClient[dict[str, Any]], database: str) -> Mapping[object, bytes]:
    """Insert odd documents; return them as stored, by `_id`."""
    documents = [{"_id": ObjectId(), **random.choice(ODD_DOCUMENTS)} for _ in range(ODD_COUNT)]
    client[database].users.insert_many(documents)
    return {document["_id"]: encode(document) for document in documents}


def fill_outbox(client: MongoClient[dict[str, Any]], database: str, user_id: str, seconds: float) -> set[str]:
    """Owe a user nearly as many e-mails as the outbox holds, due once the storm is over; return their ids."""
    due = datetime.now(UTC) + timedelta(seconds=seconds)
    emails = [new_element(str(ObjectId()), "new_login", due, {}, due) for _ in range(OUTBOX_LIMIT - 2)]
    change = {"$set": {"notifier": {"outbox": emails, "due": due}}}
    client[database].users.update_one({"_id": ObjectId(user_id)}, change)
    return {email["id"] for email in emails}


def changed(before: Mapping[object, bytes], users: Sequence[Document]) -> int:
    """Count the odd documents that are not as they were."""
    after = {user["_id"]: encode(user) for user in users}
    return sum(after.get(id_) != document for id_, document in before.items())


def poison_addresses(user_ids: Sequence[str]) -> Mapping[str, str]:
    """Return an address for each user: one in `POISON_PERIOD` makes the mail server behave oddly."""
    oddities = list(RECIPIENTS)
    return {
        id_: f"{id_}@{oddities[n // POISON_PERIOD % len(oddities)]}.example"
        if n % POISON_PERIOD == 0
        else f"{id_}@example.com"
        for n, id_ in enumerate(user_ids)
    }


def invented_reply() -> str:
    """Return a refusal that no server has ever said, and that is not known to be about a recipient."""
    while True:
        kind, words = random.choice("45"), "".join(random.choices("abcdefghij ", k=20))
        reply = f"{kind}{random.randrange(100):02} {kind}.{random.randrange(8)}.{random.randrange(100)} {words.strip()}"
        if verdict_of(reply, Stage.RCPT) in {Verdict.TRANSIENT, Verdict.UNCLEAR} and not reply.startswith("421"):
            return reply


class Account:
    """The service's account at the mail server, which is refused now and then."""

    def __init__(self) -> None:
        self.reply: str | None = None
        self.replies: set[str] = set()

    async def refuse_for_a_while(self) -> str:
        """Refuse every e-mail for some seconds; return what happened."""
        self.reply = invented_reply()
        self.replies.add(self.reply)
        await asyncio.sleep(random.uniform(0.5, 2))
        reply, self.reply = self.reply, None
        return f"account refused: {reply}"


def poisoned(script: Script, account: Account) -> Script:
    """Return the script of a mail server that also has odd recipients and refuses our account now and then."""

    async def answer(stage: str, recipient: str) -> str | None:
        if stage == "RCPT":
            reply = account.reply or RECIPIENTS.get(recipient.partition("@")[2].removesuffix(".example"))
            if reply == "drop":
                raise Drop
            if reply == "hang":
                await asyncio.sleep(2)
                return None
            if reply:
                return reply
        return await script(stage, recipient)

    return answer


def killed_by_us(account: Account, dead_mail: Sequence[Document]) -> int:
    """Count the dead letters whose reason is what everybody got while the account was refused."""
    return sum(any(reply in letter["error"] for reply in account.replies) for letter in dead_mail)


def clock_of(worker: int) -> Mapping[str, str]:
    """Return the variables that give a worker a wrong clock, where Debian's package faketime is installed."""
    libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not libraries:
        return {}
    offset = CLOCKS[worker % len(CLOCKS)]
    return {"LD_PRELOAD": f"{libraries[0]}", "FAKETIME": f"{offset}s", "DONT_FAKE_MONOTONIC": "1"}


def hold_up_indexes(mongods: Sequence[Mongod], mode: str) -> None:
    """Let the servers that answer begin to make indexes and not go on, or ("off") let them."""
    for mongod in mongods:
        with mongod.client() as client, contextlib.suppress(PyMongoError):
            client.admin.command({"configureFailPoint": "hangAfterStartingIndexBuild", "mode": mode})


async def let_indexes_be_made(mongods: Sequence[Mongod], begin: float, end: float) -> None:
    """Let MongoDB get on with the indexes from `begin` on, time and again, as a server may be frozen or killed."""
    await asyncio.sleep(begin - time.monotonic())
    while time.monotonic() < end:
        await asyncio.to_thread(hold_up_indexes, mongods, "off")
        await asyncio.sleep(1)
