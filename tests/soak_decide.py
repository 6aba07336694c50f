"""What users decide during the soak: they delete, opt out and are erased, and suppressed addresses are opened again."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import aiohttp

from tests.processes import Service
from tests.servers import MailServer
from tests.soak_check import NO_ANSWER, Ledger
from tests.soak_load import USERS
from tests.soak_windows import KINDS as WINDOW_KINDS
from tests.soak_windows import Windows, check_windows

Document = Mapping[str, Any]
KINDS: Final = (
    """
[registration]
in_app = false
email = true
required = true
[new_message]
[new_post]
[new_login]
email = true
required = true
[digest]
email = true
"""
    + WINDOW_KINDS
)
"""The kinds of the specification, one that users may opt out of, and some with windows."""
TOLERANCE: Final = 1.0
"""Seconds from the last look at a user's preferences to the mail server's notice that a conversation has begun."""
SHARE_OF_WINDOWS: Final = 0.4
"""Share of the decisions about notifications whose e-mail waits. Those go on in the background."""
ATTEMPTS: Final = 60
"""Times that a decision is repeated until it is answered."""


@dataclass
class Decisions:
    """What users decided, and was answered. Each decision is about a user of its own, whom nothing else touches."""

    deleted: set[tuple[int, str]] = field(default_factory=set)
    muted: dict[tuple[int, str], float] = field(default_factory=dict)
    """The e-mails owed then or later, and when the opt-out was answered (monotonic)."""
    erased: set[str] = field(default_factory=set)
    lifted: int = 0
    windows: Windows = field(default_factory=Windows)
    statuses: Counter[str] = field(default_factory=Counter)


class Decider:
    """One user after another who decides something."""

    def __init__(
        self, session: aiohttp.ClientSession, ledger: Ledger, decisions: Decisions, workers: list[Service]
    ) -> None:
        self._session = session
        self._ledger = ledger
        self._decisions = decisions
        self._workers = workers
        self._under_way: set[asyncio.Task[None]] = set()

    async def decide_until(self, end: float) -> None:
        """Decide one thing after another until `end`."""
        while time.monotonic() < end:
            n = next(self._ledger.numbers)
            windows = self._decisions.windows
            if random.random() < SHARE_OF_WINDOWS:
                act = random.choice([windows.collect, windows.collect, windows.collapse, windows.see])
                task = asyncio.create_task(act(self, self._ledger.numbers.__next__, f"{2**41 + n:024x}"))
                self._under_way.add(task)
                task.add_done_callback(self._under_way.discard)
            else:
                await random.choice([self._delete, self._opt_out, self._erase, self._lift])(n, f"{2**40 + n:024x}")
            await asyncio.sleep(random.uniform(0, 0.2))
        await asyncio.gather(*self._under_way)

    async def _delete(self, n: int, user_id: str) -> None:
        """Delete a notification as soon as it is seen, though its create may not have been answered yet."""
        creation = asyncio.create_task(self.create(n, user_id, "new_message"))
        is_seen = False
        while not is_seen and not creation.done():
            is_seen = await self._sees(user_id)
        if (is_seen or await creation == "201") and await self.insist("/delete", user_id, all="true"):
            self._decisions.deleted.add((n, user_id))
        await creation

    async def _opt_out(self, n: int, user_id: str) -> None:
        """Opt out of an e-mail that is owed already, and of one that comes later."""
        later = next(self._ledger.numbers)
        await self.create(n, user_id, "digest")
        if await self.insist("/preferences", user_id, {"digest": {"email": False}}):
            self._decisions.muted |= dict.fromkeys([(n, user_id), (later, user_id)], time.monotonic())
            await self.create(later, user_id, "digest")

    async def _erase(self, n: int, user_id: str) -> None:
        """Erase a user whose creates were all answered, so that none may still take effect."""
        kinds = {n: "new_login", next(self._ledger.numbers): "digest", next(self._ledger.numbers): "registration"}
        answers = [await self.create(number, user_id, key) for number, key in kinds.items()]
        if answers == ["201"] * 3 and await self.insist("/erase", user_id):
            self._decisions.erased.add(user_id)

    async def _lift(self, _: int, __: str) -> None:
        self._decisions.lifted += await self.insist("/suppress", random.choice(USERS), {"suppressed": False})

    async def create(self, n: int, user_id: str, key: str, **fields: str) -> str:
        """Create a notification; return the status."""
        self._ledger.asked[n, user_id] = key
        self._ledger.requests += 1
        status, _ = await self._request(
            "POST", "/create", json={"user_id": user_id, "key": key, "data": {"n": n}, **fields}
        )
        self._ledger.statuses[status] += 1
        return status

    async def insist(self, path: str, user_id: str, body: object = None, **query: str) -> bool:
        """Ask until it is done; return whether it was."""
        for _ in range(ATTEMPTS):
            status, _ = await self._request("POST", path, params={"user_id": user_id, **query}, json=body)
            self._decisions.statuses[status] += 1
            if status == "200":
                return True
            await asyncio.sleep(0.2)
        return False

    async def _sees(self, user_id: str) -> bool:
        page = await self.list(user_id)
        return page is not None and page["elements"] > 0

    async def list(self, user_id: str) -> Document | None:
        """Return the user's inbox, if it is answered."""
        status, answer = await self._request("GET", "/list", params={"user_id": user_id})
        return answer["data"] if status == "200" else None

    async def _request(self, method: str, path: str, **options: Any) -> tuple[str, Any]:
        url = f"http://127.0.0.1:{random.choice(self._workers).port}{path}"
        try:
            async with self._session.request(method, url, **options) as response:
                return str(response.status), await response.json()
        except (aiohttp.ClientError, TimeoutError):
            return NO_ANSWER, None


async def decide_until(end: float, ledger: Ledger, decisions: Decisions, workers: list[Service]) -> None:
    """Let one user after another decide something until `end`."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=15)) as session:
        await Decider(session, ledger, decisions, workers).decide_until(end)


def check_decisions(
    decisions: Decisions, mail: MailServer, users: Sequence[Document], dead_mail: Sequence[Document]
) -> Mapping[str, int]:
    """Count how often a decision was not respected."""
    stored = {
        (item["data"]["n"], item["user_id"]): item["id"] for user in users for item in user.get("notifications", [])
    }
    began = dict(zip(mail.ids, mail.began, strict=True))  # of several copies, the last
    left = {f"{user['_id']}" for user in users if user.keys() - {"_id", "email"}}
    left |= {letter["user_id"] for letter in dead_mail}
    return {
        "I11 deleted notifications that came back": len(decisions.deleted & stored.keys()),
        "I12 e-mails sent against an opt-out": sum(
            began.get(stored.get(n, ""), 0.0) > answered + TOLERANCE for n, answered in decisions.muted.items()
        ),
        "I13 erased users of whom something is left": len(decisions.erased & left),
        **check_windows(decisions.windows, mail, users, dead_mail),
        "answers to decisions other than 200 and 503": sum(
            times for status, times in decisions.statuses.items() if status not in {"200", "503", NO_ANSWER}
        ),
    }
