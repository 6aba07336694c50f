"""The verdict of the soak: what was asked and acknowledged, against what MongoDB and the mail server have."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pymongo.database import Database

from tests.cluster import BROKEN
from tests.servers import MailServer
from tests.waiting import eventually

Document = Mapping[str, Any]
NO_ANSWER: Final = "no answer"


@dataclass
class Ledger:
    """What was asked, what was acknowledged, and what was broken meanwhile.

    Each request has a number, which its notifications carry in their `data`. Together with the user it tells one.
    """

    requests: int = 0
    numbers: Iterator[int] = field(default_factory=itertools.count)
    asked: dict[tuple[int, str], str] = field(default_factory=dict)
    """The key of each notification."""
    acknowledged: set[tuple[int, str]] = field(default_factory=set)
    not_owed: set[tuple[int, str]] = field(default_factory=set)
    """Acknowledged requests whose answer says that the e-mail may not be owed."""
    filled: set[str] = field(default_factory=set)
    """The ids of the e-mails that were owed to the busy user from the beginning."""
    overfull: int = 0
    """How often a user was seen who was owed more e-mails than the limit."""
    statuses: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)


def read_all(database: Database[dict[str, Any]]) -> tuple[Sequence[Document], Sequence[Document]]:
    """Return the documents of the users and the dead letters, read again when another member becomes the primary."""
    read: list[list[dict[str, Any]]] = []
    eventually(lambda: read.extend([list(database.users.find()), list(database.dead_mail.find())]))
    return read[0], read[1]


def check(
    ledger: Ledger, mail: MailServer, users: Sequence[Document], dead_mail: Sequence[Document]
) -> Mapping[str, int]:
    """Count how often each promise was broken."""
    notifications = [item for user in users for item in user.get("notifications", [])]
    stored = Counter((item["data"]["n"], item["user_id"]) for item in notifications)
    ids = {(item["data"]["n"], item["user_id"]): item["id"] for item in notifications}
    acknowledged = [(n, ledger.asked[n]) for n in ledger.acknowledged]
    delivered = set(mail.ids)
    done = delivered | {letter["_id"] for letter in dead_mail}
    lost_logins = sum(
        ids.get(n) not in done for n, key in acknowledged if key == "new_login" and n not in ledger.not_owed
    )
    identities = {(message["Message-ID"], message["Date"]) for _, message in mail.received}
    return {
        "I1 notifications lost": sum(not stored[n] for n, key in acknowledged if key != "registration"),
        "I1 notifications duplicated": sum(times > 1 for times in stored.values()),
        "I2 e-mails lost": lost_logins
        + len(ledger.filled - done)
        + _lost_registrations(ledger, mail, dead_mail, ledger.filled | set(ids.values())),
        "I3 e-mails with a second Message-ID or Date": len(identities) - len(delivered),
        "I6 notifications that nobody asked for": sum(n not in ledger.asked for n in stored),
        "I8 users owed more e-mails than the limit": ledger.overfull,
        "I9 users with a wrong due": sum(_ours(user).get("due") != _first_due(user) for user in users),
        "answers other than 201 and 503": sum(
            times for status, times in ledger.statuses.items() if status not in {"201", "503", NO_ANSWER}
        ),
    }


def _first_due(user: Document) -> object:
    due = [item["next_at"] for item in _ours(user).get("outbox", [])]
    return min([*due, *(item["due"] for item in _ours(user).get("waiting", []))], default=None)


def _ours(user: Document) -> Document:
    found: Document = user.get("notifier", {})
    return found


def _lost_registrations(ledger: Ledger, mail: MailServer, dead_mail: Iterable[Document], others: set[str]) -> int:
    """Count the registrations that became neither an e-mail nor a dead letter.

    They leave no notification that would tell the id of each. So they are counted per user: all of a user's e-mails,
    without the others: those that belong to a notification, or were owed from the beginning.
    """
    promised = Counter(user_id for n, user_id in ledger.acknowledged if ledger.asked[n, user_id] == "registration")
    found: defaultdict[str, set[str]] = defaultdict(set)
    for (recipient, _), id_ in zip(mail.received, mail.ids, strict=True):
        found[recipient.split("@")[0]].add(id_)
    for letter in dead_mail:
        found[letter["user_id"]].add(letter["_id"])
    return sum(max(0, times - len(found[user_id] - others)) for user_id, times in promised.items())


def cluster_faults(folder: Path) -> int:
    """Count the commands that break a rule of sharded clusters, and show each."""
    lines = [line for log in folder.glob("service-*.log") for line in log.read_text(errors="replace").splitlines()]
    broken = [line for line in lines if BROKEN in line]
    for line in broken:
        print(line)
    return len(broken)


def logged_exceptions(folder: Path) -> Counter[str]:
    """Count the stack traces in the logs of the workers, by their last lines."""
    found: Counter[str] = Counter()
    for log in folder.glob("service-*.log"):
        for line in log.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                if trace := json.loads(line).get("exc_info"):
                    found[" <- ".join(reversed(trace.splitlines()[-3:]))[:500]] += 1
    return found
