"""Windows, batches, collapsed rows and seen marks in the soak: what was asked, and whether each promise was kept."""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from tests.servers import MailServer

Document = Mapping[str, Any]
KINDS: Final = """
[comment]
email = true
email_after = "30s"
[answer]
email = true
email_after = "30s"
email_batch = "target"
[daily]
email = true
email_after = "30s"
email_batch = "kind"
[price]
collapse = true
email = true
email_after = "30s"
email_batch = "target"
"""
WINDOWS: Final = ("comment", "answer", "daily", "price")
TEMPLATE: Final = "numbers{% for item in notifications %} {{ item.data.n }}{% endfor %}"
TARGETS: Final = ("a" * 24, "b" * 24)
TOLERANCE: Final = 1.0
"""Seconds from the last look to the mail server's notice that a conversation has begun."""


def write_templates(folder: Path) -> None:
    """Let e-mails name the notifications that they tell."""
    (folder / "templates").mkdir()
    for key in WINDOWS:
        (folder / "templates" / f"{key}.txt").write_text(TEMPLATE)


class Asks(Protocol):
    """The requests that a decider can make."""

    async def create(self, n: int, user_id: str, key: str, **fields: str) -> str: ...
    async def insist(self, path: str, user_id: str, body: object = None, **query: str) -> bool: ...
    async def list(self, user_id: str) -> Document | None: ...


@dataclass
class Windows:
    """What was decided about notifications whose e-mail waits. Each user has them for nothing else."""

    gone: dict[int, float] = field(default_factory=dict)
    """The notifications read or deleted, and when that was answered (monotonic)."""
    rows: dict[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    """By user and target of rows that collapse: how many were acknowledged, and how many asked for."""
    seen_wrongly: int = 0

    async def collect(self, asks: Asks, number: Callable[[], int], user_id: str) -> None:
        """Create some, and read or delete some of them, all of it at random and partly at the same time."""
        key = random.choice(WINDOWS[:3])
        numbers = [number() for _ in range(random.randint(1, 6))]
        creates: list[Awaitable[str]] = [
            asks.create(n, user_id, key, target_id=random.choice(TARGETS)) for n in numbers
        ]
        await asyncio.gather(*creates)
        await asyncio.sleep(random.choice([0, 0, 27, 30, 32]) * random.random())
        page = await asks.list(user_id)
        for item in page["list"] if page else ():
            path = random.choice(["/read", "/delete", None, None])
            if path and await asks.insist(path, user_id, notification_id=item["id"]):
                self.gone[item["data"]["n"]] = time.monotonic()

    async def collapse(self, asks: Asks, number: Callable[[], int], user_id: str) -> None:
        """Create several that collapse, at the same time."""
        targets = [random.choice(TARGETS) for _ in range(6)]
        numbers = [number() for _ in targets]
        each = zip(numbers, targets, strict=True)
        answers = await asyncio.gather(*(asks.create(n, user_id, "price", target_id=target) for n, target in each))
        for target in set(targets):
            of_target = [answer for answer, other in zip(answers, targets, strict=True) if other == target]
            self.rows[user_id, target] = of_target.count("201"), len(of_target)

    async def see(self, asks: Asks, number: Callable[[], int], user_id: str) -> None:
        """Create some, see them, and look whether any counts as unseen, whatever the clocks of the workers show."""
        answers = [await asks.create(number(), user_id, "new_message") for _ in range(3)]
        if answers == ["201"] * 3 and await asks.insist("/seen", user_id) and (page := await asks.list(user_id)):
            self.seen_wrongly += page.get("unseen") != 0


def check_windows(
    windows: Windows, mail: MailServer, users: Sequence[Document], dead_mail: Sequence[Document]
) -> Mapping[str, int]:
    """Count how often each promise was broken."""
    told: defaultdict[int, dict[str, float]] = defaultdict(dict)  # by id of the e-mail, when its conversation began
    for (_, message), id_, began in zip(mail.received, mail.ids, mail.began, strict=True):
        words = f"{message.get_payload()}".split()
        for n in map(int, words[1:] if words[:1] == ["numbers"] else ()):
            told[n][id_] = began
    buried = {id_ for letter in dead_mail for id_ in letter.get("ids", ())}
    stored = [item for user in users for item in user.get("notifications", ()) if item["key"] in WINDOWS]
    untold = [item for item in stored if item["is_new"] and not told[item["data"]["n"]] and item["id"] not in buried]
    counts: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for item in stored:
        if item["key"] == "price":
            counts[item["user_id"], item["target_id"]].append(item["count"])
    return {
        "I14 notifications told although they were read or deleted": sum(
            began > answered + TOLERANCE for n, answered in windows.gone.items() for began in told[n].values()
        ),
        "I15 unread notifications that no e-mail told": len(untold),
        "I15 notifications told by several e-mails": sum(len(emails) > 1 for emails in told.values()),
        "I16 rows that collapsed wrongly": sum(
            not (least <= sum(counts[row]) <= most and len(counts[row]) <= 1)
            for row, (least, most) in windows.rows.items()
        ),
        "unseen after /seen": windows.seen_wrongly,
    }
