"""Which e-mails go first: by the priority of their kind, then by age, and none starves."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId

from kinds import Kind
from mail.lease import Lease, Window
from mongo.creation import Create
from mongo.owed import OwedEmail
from settings import Settings
from store import Store, open_store
from tests.client import DB, USER, create, owed, settled
from tests.fixtures import Start
from tests.servers import MailServer
from tests.waiting import eventually_async

KINDS = {
    kind.name: kind
    for kind in (
        Kind(name="high", email=True, in_app=False, priority="high"),
        Kind(name="required", email=True, in_app=False, required=True),
        Kind(name="low_but_required", email=True, in_app=False, required=True, priority="low"),
        Kind(name="normal", email=True, in_app=False),
        Kind(name="low", email=True, in_app=False, priority="low"),
    )
}


def ids(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{n:023x}" for n in range(count)]


async def owe(store: Store, kind: str, users: Sequence[str]) -> None:
    await asyncio.gather(*(store.create(Create(user_id, KINDS[kind])) for user_id in users))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("high", "normal"),
        ("normal", "low"),
        ("required", "normal"),
        ("normal", "low_but_required"),
    ],
)
async def test_a_higher_priority_goes_before_a_lower_one_that_is_older(
    settings: Settings, database: DB, first: str, second: str
) -> None:
    async with open_store(settings) as direct:
        await owe(direct, second, ids("a", 1))
        await owe(direct, first, ids("b", 1))
        assert [item["key"] for item in sorted(owed(database), key=lambda item: item["next_at"])] == [first, second]


async def test_emails_of_fan_outs_come_after_those_of_single_requests(settings: Settings, database: DB) -> None:
    async with open_store(settings) as direct:
        for kind in ("low", "normal"):
            await direct.create_many(ids("a", 2), Create(USER, KINDS[kind], idempotency_key=kind))
            await owe(direct, kind, ids("b", 2))
        by_age = [user["_id"] for user in database.users.aggregate(IN_ORDER)]
    assert [f"{id_}"[0] for id_ in by_age] == ["b", "b", "a", "a"] * 2


IN_ORDER: list[dict[str, Any]] = [{"$unwind": "$notifier.outbox"}, {"$sort": {"notifier.outbox.next_at": 1}}]


@pytest.mark.usefixtures("database", "nobody_else")
async def test_a_claim_includes_every_priority_and_retries(settings: Settings) -> None:
    async with open_store(settings) as direct:
        for kind, count in {"low": 60, "normal": 60, "high": 40}.items():
            await owe(direct, kind, ids(kind[0].translate({104: "b", 108: "c", 110: "d"}), count))
        again = await direct.outbox.claim(8, 60)
        for email in again:
            await direct.outbox.retry(email, 0, "later", tries=1, copies=0)
        claimed = await direct.outbox.claim(32, 60)
    found = Counter("again" if email.tries else email.key for email in claimed)
    assert found.total() == 32
    assert min(found[name] for name in ("high", "normal", "low", "again")) >= 4
    assert found["high"] == max(found.values())


@pytest.mark.usefixtures("nobody_else")
async def test_emails_given_back_untried_keep_their_place(settings: Settings, database: DB, tmp_path: Path) -> None:
    kinds_file = tmp_path / "ranked.toml"
    kinds_file.write_text("".join(f'[{rank}]\nemail = true\npriority = "{rank}"\n' for rank in ("low", "high")))
    async with open_store(replace(settings, kinds_file=kinds_file)) as direct:
        for kind in ("low", "high"):
            await owe(direct, kind, ids(kind[0].translate({104: "b", 108: "c"}), 2))
        before = {item["id"]: item["next_at"] for item in owed(database)}
        emails = await direct.outbox.claim(4, 60)
        await direct.outbox.release(emails)
        for item in owed(database):
            assert abs((item["next_at"] - before[item["id"]]).total_seconds()) < 1
        assert len(await direct.outbox.claim(4, 60)) == 4


@pytest.fixture
def kinds_file(tmp_path: Path) -> Path:
    path = tmp_path / "kinds.toml"
    path.write_text('[low]\nin_app = false\nemail = true\npriority = "low"\n[code]\nemail = true\nrequired = true\n')
    return path


@pytest.mark.ci
async def test_required_and_retried_emails_overtake_many_waiting_ones(
    start: Start, settings: Settings, database: DB, mail: MailServer, kinds_file: Path
) -> None:
    """A message takes 50 ms, so the others would take 10 s. One of the first is asked to come back."""
    greylisted: list[str] = []

    async def script(stage: str, recipient: str) -> str | None:
        if stage == "RCPT" and len(mail.received) == 10 and not greylisted:
            greylisted.append(recipient)
            return "451 4.7.1 greylisted"
        await asyncio.sleep(0.05 if stage == "DATA" else 0)
        return None

    async with open_store(settings) as direct:
        await owe(direct, "low", users := ids("a", 200))
    for user_id in [*users, USER]:
        database.users.update_one({"_id": ObjectId(user_id)}, {"$set": {"email": f"{user_id}@b.example"}}, upsert=True)
    mail.script = script
    client = await start(smtp_connections=1, kinds_file=kinds_file)

    def refused() -> None:
        assert greylisted

    await eventually_async(refused)
    before = len(mail.received)
    await create(client, USER, "code")
    await settled(database, 60)
    recipients = [to for to, _ in mail.received]
    assert recipients.index(f"{USER}@b.example") - before < 30
    assert recipients.index(greylisted[0]) < 10 + 70  # due after 0.3 s


def test_of_four_that_are_taken_one_is_not_urgent() -> None:
    window = Window()
    for n in range(40):
        email = OwedEmail(document_id=n, user_id="", id="", key="", at=None, tries=0, token="")  # type: ignore[arg-type]
        window.put(Lease(email, 0.0), urgent=n >= 20)
    taken = [window.take().email.document_id for _ in range(40)]
    assert taken[:8] == [20, 21, 22, 0, 23, 24, 25, 1]
    assert sorted(taken) == list(range(40))  # type: ignore[type-var]
