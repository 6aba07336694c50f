"""The load of the soak: clients that create notifications, for one user or for many."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from typing import Final

import aiohttp

from tests.processes import Service
from tests.soak_check import NO_ANSWER, Ledger

USERS: Final = [f"{n:024x}" for n in range(300)]
POISON_PERIOD: Final = 20
POISONED: Final = frozenset(USERS[::POISON_PERIOD])
"""Users whose recipients may refuse throughout the storm, so their outboxes may be full."""
BUSY: Final = USERS[POISON_PERIOD]
"""One of these users, whose outbox is nearly full from the start."""
SHARE_OF_BUSY: Final = 0.15
"""Share of the requests for one user that are for the busy one."""
KEYS: Final = ("registration", "new_message", "new_post", "new_login")
ATTEMPTS: Final = 20
"""Times that a client repeats a request with an Idempotency-Key until it is acknowledged."""
SHARE_OF_MANY: Final = 0.03
"""Share of the requests that are for many users."""
MANY: Final = 40


async def create_until(end: float, ledger: Ledger, workers: list[Service]) -> None:
    """Create notifications until `end`, some of them for many users at once.

    Those, and every other one for a single user, have an Idempotency-Key and are repeated until acknowledged.
    """
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=15)) as session:
        while time.monotonic() < end:
            n, key = next(ledger.numbers), random.choice(KEYS)
            many = random.random() < SHARE_OF_MANY
            users = random.sample(USERS, MANY) if many else [_one_user()]
            ledger.asked |= {(n, user_id): key for user_id in users}
            has_key = many or n % 2 == 0
            headers = {"Idempotency-Key": f"soak-{n}"} if has_key else {}
            body = {"user_ids": users} if many else {"user_id": users[0]}
            for _ in range(ATTEMPTS if has_key else 1):
                ledger.requests += 1
                status, failures, says_not_owed = await _post(
                    session, random.choice(workers), {**body, "key": key, "data": {"n": n}}, headers
                )
                ledger.statuses[status] += 1
                if says_not_owed:
                    ledger.not_owed |= {(n, user_id) for user_id in POISONED.intersection(users)}
                if status == "201" or failures:
                    done = (user_id for index, user_id in enumerate(users) if f"{index}" not in failures)
                    ledger.acknowledged |= {(n, user_id) for user_id in done}
                if status == "201":
                    break
                await asyncio.sleep(0.2)


def _one_user() -> str:
    return BUSY if random.random() < SHARE_OF_BUSY else random.choice(USERS)


async def _post(
    session: aiohttp.ClientSession, worker: Service, body: object, headers: Mapping[str, str]
) -> tuple[str, Mapping[str, object], bool]:
    """Return the status, for many users the failures by index, and whether an e-mail may not be owed.

    It may not if the answer says so, or to a replay of what may have been answered so.
    """
    try:
        async with session.post(f"http://127.0.0.1:{worker.port}/create", json=body, headers=headers) as response:
            answer = await response.json()
            failures = answer.get("errors", {}).get("user_ids", {})
            may_not_be_owed = (
                {"X-Email", "Idempotent-Replayed"} & set(response.headers)
                or answer.get("not_owed")
                or answer.get("replayed")
                or failures
            )
            return str(response.status), failures, bool(may_not_be_owed)
    except (aiohttp.ClientError, TimeoutError):
        return NO_ANSWER, {}, False
