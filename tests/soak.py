"""Break everything at random, let it settle, and check every promise over all users: `make soak`."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
from bson import ObjectId
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from tests.processes import Service
from tests.proxy import Proxy
from tests.servers import Drop, MailServer, Mongod, initiate, smtp_server
from tests.waiting import eventually

USERS: Final = [f"{n:024x}" for n in range(300)]
KEYS: Final = ("registration", "new_message", "new_post", "new_login")
WORKERS: Final = 3
CLIENTS: Final = 24
PROGRESS: Final = 5.0
"""Seconds between two lines of progress."""
SETTLE_TIMEOUT: Final = 120.0
EMAIL: Final = "unknown@example.com"
DATABASE: Final = "soak"


@dataclass
class Ledger:
    """What was asked, what was promised, and what was broken meanwhile."""

    requests: int = 0
    asked: dict[int, tuple[str, str]] = field(default_factory=dict)
    acknowledged: set[int] = field(default_factory=set)
    statuses: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)


@dataclass
class Setup:
    """The servers of one topology."""

    mongods: list[Mongod]
    uri: str
    proxy: Proxy | None
    replica_set: bool

    def client(self) -> MongoClient[dict[str, Any]]:
        """Return a client that finds the primary."""
        if self.replica_set:
            return MongoClient([member.address for member in self.mongods], replicaSet=DATABASE, tz_aware=True)
        return self.mongods[0].client()


@asynccontextmanager
async def standalone(folder: Path) -> AsyncIterator[Setup]:
    """Run one server that is no replica set, behind a proxy."""
    async with _one(folder, None) as setup:
        yield setup


@asynccontextmanager
async def one_node(folder: Path) -> AsyncIterator[Setup]:
    """Run a replica set of one, behind a proxy."""
    async with _one(folder, DATABASE) as setup:
        yield setup


@asynccontextmanager
async def _one(folder: Path, replica_set: str | None) -> AsyncIterator[Setup]:
    server = Mongod(folder / "db", replica_set)
    proxy = Proxy(server.port)
    try:
        await asyncio.to_thread(server.start)
        if replica_set:
            await asyncio.to_thread(initiate, [server], replica_set)
        async with proxy.running():
            uri = f"mongodb://127.0.0.1:{proxy.port}/{DATABASE}?directConnection=true"
            yield Setup([server], uri, proxy, replica_set=False)
    finally:
        server.kill()


@asynccontextmanager
async def three_nodes(folder: Path) -> AsyncIterator[Setup]:
    """Run a replica set of three."""
    members = [Mongod(folder / f"db{n}", DATABASE) for n in range(3)]
    try:
        for member in members:
            await asyncio.to_thread(member.start)
        await asyncio.to_thread(initiate, members, DATABASE)
        hosts = ",".join(member.address for member in members)
        yield Setup(members, f"mongodb://{hosts}/{DATABASE}?replicaSet={DATABASE}", None, replica_set=True)
    finally:
        for member in members:
            member.kill()


TOPOLOGIES: Final = {"standalone": standalone, "one-node": one_node, "three-node": three_nodes}


# --- the load -------------------------------------------------------------------------------------


async def load(ledger: Ledger, workers: list[Service], end: float) -> None:
    """Create notifications until the end, half of them with a key and repeated until acknowledged."""
    timeout = aiohttp.ClientTimeout(total=15)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        while time.monotonic() < end:
            n = len(ledger.asked)
            user_id, key = random.choice(USERS), random.choice(KEYS)
            ledger.asked[n] = user_id, key
            keyed = n % 2 == 0
            body = {"user_id": user_id, "key": key, "data": {"n": n}}
            headers = {"Idempotency-Key": f"soak-{n}"} if keyed else {}
            for _ in range(20 if keyed else 1):
                ledger.requests += 1
                status = await _post(session, random.choice(workers), body, headers)
                ledger.statuses[status] += 1
                if status == "201":
                    ledger.acknowledged.add(n)
                    break
                await asyncio.sleep(0.2)


async def _post(session: aiohttp.ClientSession, worker: Service, body: object, headers: dict[str, str]) -> str:
    try:
        async with session.post(f"http://127.0.0.1:{worker.port}/create", json=body, headers=headers) as response:
            return str(response.status)
    except (aiohttp.ClientError, TimeoutError):
        return "no answer"


# --- the faults -----------------------------------------------------------------------------------


def misbehave(ledger: Ledger) -> Callable[[str, str], Awaitable[str | None]]:
    """Return a script of an SMTP server on a bad day."""

    async def script(stage: str, _recipient: str) -> str | None:
        if random.random() > 0.04:
            return None
        fault = random.choice(["451 later", "421 closing", "550 refused", "hang", "drop", "250 OK and drop"])
        if fault == "550 refused" and stage == "MAIL":
            return None  # that would be our configuration
        if fault == "250 OK and drop" and stage != "DATA":
            return None
        ledger.faults[f"SMTP: {fault} at {stage}"] += 1
        if fault == "hang":
            await asyncio.sleep(2)
            return None
        if fault == "drop":
            raise Drop
        return fault

    return script


async def break_things(ledger: Ledger, setup: Setup, workers: list[Service], end: float) -> None:
    """Break one thing after another, and mend it, until the end."""
    breakers = [_kill_worker, _kill_mongod, *([_break_exchange] * 6 if setup.proxy else [_step_down, _freeze] * 2)]
    while time.monotonic() < end:
        await asyncio.sleep(random.uniform(0.3, 1.0))
        ledger.faults[await random.choice(breakers)(setup, workers)] += 1


async def _kill_worker(_setup: Setup, workers: list[Service]) -> str:
    worker = random.choice(workers)
    worker.kill()
    worker.restart()
    return "worker killed"


async def _kill_mongod(setup: Setup, _workers: list[Service]) -> str:
    victim = random.choice(setup.mongods)
    victim.kill()
    await asyncio.sleep(random.uniform(0, 1))
    await asyncio.to_thread(victim.start)
    return "mongod killed"


async def _break_exchange(setup: Setup, _workers: list[Service]) -> str:
    command, fault = random.choice(["findAndModify", "update"]), random.choice(["before", "after", "swallow"])
    if setup.proxy:
        setup.proxy.break_next(command, fault)
    return f"{command}: " + {"before": "cut", "after": "reply lost, cut", "swallow": "reply lost"}[fault]


async def _step_down(setup: Setup, _workers: list[Service]) -> str:
    def step_down() -> None:
        with setup.client() as client, contextlib.suppress(PyMongoError):
            client.admin.command("replSetStepDown", 3, secondaryCatchUpPeriodSecs=1, force=True)

    await asyncio.to_thread(step_down)
    return "primary stepped down"


async def _freeze(setup: Setup, _workers: list[Service]) -> str:
    victims = random.sample(setup.mongods, random.choice([1, 2]))
    for victim in victims:
        victim.signal(signal.SIGSTOP)
    await asyncio.sleep(random.uniform(0.5, 3))
    for victim in victims:
        victim.signal(signal.SIGCONT)
    return f"{len(victims)} of 3 mongods frozen"


# --- the verdict ----------------------------------------------------------------------------------


def check(ledger: Ledger, mail: MailServer, setup: Setup) -> dict[str, int]:
    """Count what was lost, what was doubled, and what is inconsistent."""
    with setup.client() as client:
        users = {str(user["_id"]): user for user in client[DATABASE].users.find()}
        dead = list(client[DATABASE].dead_mail.find())
    stored = Counter(item["data"]["n"] for user in users.values() for item in user.get("notifications", []))
    notification_ids = {
        item["data"]["n"]: item["id"] for user in users.values() for item in user.get("notifications", [])
    }
    delivered = Counter(mail.ids)
    done = delivered.keys() | {letter["_id"] for letter in dead}
    acknowledged = [(n, *ledger.asked[n]) for n in ledger.acknowledged]
    return {
        "I1 notifications lost": sum(stored[n] == 0 for n, _, key in acknowledged if key != "registration"),
        "I1 notifications doubled": sum(times > 1 for times in stored.values()),
        "I2 e-mails lost": sum(notification_ids.get(n) not in done for n, _, key in acknowledged if key == "new_login")
        + _registrations_lost(ledger, mail, dead, notification_ids),
        "I3 e-mails under two Message-IDs or Dates": len({(m["Message-ID"], m["Date"]) for _, m in mail.received})
        - len(delivered),
        "I6 effects beyond the requests": sum(n not in ledger.asked for n in stored),
        "I9 users with a wrong mail_due": sum(
            user.get("mail_due") != min((item["next_at"] for item in user.get("outbox", [])), default=None)
            for user in users.values()
        ),
        "answers that are neither 201 nor 503": sum(
            times for status, times in ledger.statuses.items() if status not in {"201", "503", "no answer"}
        ),
    }


def _registrations_lost(
    ledger: Ledger, mail: MailServer, dead: list[dict[str, Any]], notification_ids: dict[int, str]
) -> int:
    """Count the users with fewer e-mails than were promised: these leave no notification to compare with."""
    promised = Counter(ledger.asked[n][0] for n in ledger.acknowledged if ledger.asked[n][1] == "registration")
    logins = set(notification_ids.values())
    found: defaultdict[str, set[str]] = defaultdict(set)
    for (recipient, _), id_ in zip(mail.received, mail.ids, strict=True):
        found[recipient.split("@")[0]].add(id_)
    for letter in dead:
        found[letter["user_id"]].add(letter["_id"])
    return sum(max(0, times - len(found[user_id] - logins)) for user_id, times in promised.items())


def unexpected_errors(folder: Path) -> Counter[str]:
    """Count what the workers logged with a stack trace, by its last lines."""
    found: Counter[str] = Counter()
    for log in folder.glob("service-*.log"):
        for line in log.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                if trace := json.loads(line).get("exc_info"):
                    found[" <- ".join(reversed(trace.splitlines()[-3:]))[:500]] += 1
    return found


async def soak(topology: str, seconds: float) -> bool:
    """Run one topology; say whether every promise was kept."""
    ledger, mail = Ledger(), MailServer()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        _progress(f"{topology}: starting the servers")
        setup = await stack.enter_async_context(TOPOLOGIES[topology](folder))
        await stack.enter_async_context(smtp_server(None, auth=False, mail_server=mail))
        with setup.client() as client:
            client[DATABASE].users.insert_many([{"_id": ObjectId(id_), "email": f"{id_}@example.com"} for id_ in USERS])
        workers = [_worker(folder, setup, mail) for _ in range(WORKERS)]
        try:
            for worker in workers:
                await asyncio.to_thread(eventually, worker.answers, 30)
            await _storm(ledger, mail, setup, workers, seconds)
            owed = await _settle(setup, workers)
            broken = {"I2 users still owed an e-mail": owed, **check(ledger, mail, setup)}
            failures = unexpected_errors(folder)
        finally:
            for worker in workers:
                worker.kill()
    _report(topology, seconds, ledger, mail, broken)
    for failure, times in failures.items():
        print(f"  {times} times in the logs: {failure}")
    return not any(broken.values())


def _worker(folder: Path, setup: Setup, mail: MailServer) -> Service:
    return Service(
        folder,
        DB_URI=setup.uri,
        EMAIL=EMAIL,
        NOTIFICATIONS_LIMIT=5000,
        SMTP_HOST="127.0.0.1",
        SMTP_PORT=mail.port,
        SMTP_SECURITY="none",
        SMTP_CONNECT_TIMEOUT=1,
        SMTP_COMMAND_TIMEOUT=0.5,
        SMTP_DATA_TIMEOUT=1,
        MAIL_RETRY_MINUTES="0.01,0.02,0.05",
        MAIL_AMBIGUOUS_MINUTES=0.05,
    )


async def _storm(ledger: Ledger, mail: MailServer, setup: Setup, workers: list[Service], seconds: float) -> None:
    """Load the workers and break things; everything is mended when it returns."""
    started = time.monotonic()
    end = started + seconds
    mail.script = misbehave(ledger)
    tasks = [asyncio.create_task(break_things(ledger, setup, workers, end))]
    tasks += [asyncio.create_task(load(ledger, workers, end)) for _ in range(CLIENTS)]
    pending = set(tasks)
    while pending:
        _, pending = await asyncio.wait(pending, timeout=PROGRESS)
        revive(workers)
        _progress(
            f"{time.monotonic() - started:4.0f} s, {ledger.requests} requests, "
            f"{len(ledger.acknowledged)} acknowledged, {len(mail.received)} e-mails, {ledger.faults.total()} faults"
        )
    for task in tasks:
        task.result()
    mail.script = None


def revive(workers: list[Service]) -> None:
    """Start the workers again that gave up, as an orchestrator would: one that finds no MongoDB at its start ends."""
    for worker in workers:
        if worker.process.poll() is not None:
            worker.restart()


async def _settle(setup: Setup, workers: list[Service]) -> int:
    """Wait until nothing is owed; return how many users are owed an e-mail even so."""
    deadline = time.monotonic() + SETTLE_TIMEOUT
    with setup.client() as client:
        while True:
            revive(workers)
            left = await asyncio.to_thread(client[DATABASE].users.count_documents, {"mail_due": {"$exists": True}})
            _progress(f"settling: {left} users are still owed an e-mail")
            if not left or time.monotonic() > deadline:
                return left
            await asyncio.sleep(1)


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _report(topology: str, seconds: float, ledger: Ledger, mail: MailServer, broken: dict[str, int]) -> None:
    rows: list[tuple[str, object]] = [
        ("requests", ledger.requests),
        ("notifications asked for", len(ledger.asked)),
        ("acknowledged", len(ledger.acknowledged)),
        *((f"answered {status}", times) for status, times in sorted(ledger.statuses.items())),
        ("e-mails delivered", len(set(mail.ids))),
        ("delivered again, under the same Message-ID", len(mail.ids) - len(set(mail.ids))),
        *((f"fault: {name}", times) for name, times in sorted(ledger.faults.items())),
        *((("BROKEN " if times else "kept   ") + name, times) for name, times in broken.items()),
    ]
    print(f"\n{topology}, {seconds:.0f} s")
    for name, value in rows:
        print(f"  {name:<52} {value:>8}")
    print(flush=True)


def main() -> int:
    """Run the topologies one after another; return 1 when a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="of faults, on each topology (default 60)")
    parser.add_argument("--topology", choices=TOPOLOGIES, action="append", help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, help="of the random choices")
    options = parser.parse_args()
    random.seed(options.seed)
    kept = [asyncio.run(soak(topology, options.seconds)) for topology in options.topology or TOPOLOGIES]
    print("Every promise was kept." if all(kept) else "A promise was BROKEN.")
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
