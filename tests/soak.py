"""Break everything at random, wait until nothing is owed, then check every promise for all users.

    python -m tests.soak --seconds 60

Three workers of the service share a MongoDB: a standalone server, then a replica set of one, then one of three. Workers
and MongoDB servers are killed, frozen and cut off, and the mail server misbehaves, while clients create notifications
and users delete them, opt out and are erased.
Some documents are not the service's, some recipients stop their mail server, our account is refused now and then, the
workers' clocks are an hour wrong, and each connection string asks for other concerns.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bson import ObjectId
from pymongo import MongoClient
from pymongo.errors import PyMongoError

from mongo.document import OUTBOX_LIMIT
from tests.client import ROOT
from tests.processes import Service
from tests.proxy import Proxy
from tests.servers import Drop, MailServer, Mongod, Script, initiate, smtp_server
from tests.soak_check import NO_ANSWER, Ledger, check, cluster_faults, logged_exceptions, read_all
from tests.soak_decide import KINDS, Decisions, check_decisions, decide_until
from tests.soak_load import BUSY, USERS, create_until
from tests.soak_poison import (
    CONCERNS,
    LIMITED,
    Account,
    changed,
    clock_of,
    fill_outbox,
    hold_up_indexes,
    insert_odd_documents,
    killed_by_us,
    let_indexes_be_made,
    poison_addresses,
    poisoned,
)
from tests.soak_windows import write_templates
from tests.waiting import eventually

DATABASE: Final = "soak"
EMAIL: Final = "unknown@example.com"
WORKERS: Final = 3
CLIENTS: Final = 24
DECIDERS: Final = 6
SMTP_FAULT_RATE: Final = 0.04
"""Share of the steps of SMTP conversations that go wrong."""
SLOW_BUILD: Final = 0.2
"""Part of the storm during which MongoDB does not get on with the indexes."""
PROGRESS_PERIOD: Final = 2.0
"""Seconds between two lines of progress."""
SETTLE_TIMEOUT: Final = 120.0
"""Seconds within which every e-mail owed must be sent once everything works again."""


# --- the servers -----------------------------------------------------------------------------------


@dataclass
class Setup:
    """The MongoDB servers of one topology, with a proxy in front of a single one."""

    mongods: list[Mongod]
    uri: str
    proxy: Proxy | None = None

    def client(self) -> MongoClient[dict[str, Any]]:
        """Return a client that finds the primary."""
        if len(self.mongods) == 1:
            return self.mongods[0].client()
        return MongoClient([member.address for member in self.mongods], replicaSet=DATABASE, tz_aware=True)


@asynccontextmanager
async def standalone(folder: Path) -> AsyncIterator[Setup]:
    """Run a server that is not a replica set, behind a proxy."""
    async with _single(folder, None) as setup:
        yield setup


@asynccontextmanager
async def one_node(folder: Path) -> AsyncIterator[Setup]:
    """Run a replica set of one, behind a proxy."""
    async with _single(folder, DATABASE) as setup:
        yield setup


@asynccontextmanager
async def _single(folder: Path, replica_set: str | None) -> AsyncIterator[Setup]:
    server = Mongod(folder / "db", replica_set)
    proxy = Proxy(server.port)
    try:
        await asyncio.to_thread(server.start)
        if replica_set:
            await asyncio.to_thread(initiate, [server], replica_set)
        async with proxy.running():
            yield Setup([server], f"mongodb://127.0.0.1:{proxy.port}/{DATABASE}?directConnection=true", proxy)
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
        yield Setup(members, f"mongodb://{hosts}/{DATABASE}?replicaSet={DATABASE}")
    finally:
        for member in members:
            member.kill()


TOPOLOGIES: Final = {"standalone": standalone, "one-node": one_node, "three-node": three_nodes}


def start_worker(folder: Path, setup: Setup, mail: MailServer, number: int) -> Service:
    """Start a worker of the service with short timeouts, early retries, and a clock and concerns of its own."""
    concern = CONCERNS[number % len(CONCERNS)]
    return Service(
        folder,
        *("-c", LIMITED),
        PYTHONPATH=ROOT,
        **clock_of(number),
        DB_URI=f"{setup.uri}&{concern}",
        EMAIL=EMAIL,
        NOTIFICATIONS_LIMIT=5000,
        KINDS_FILE=folder / "kinds.toml",
        TEMPLATES_DIR=folder / "templates",
        SMTP_HOST="127.0.0.1",
        SMTP_PORT=mail.port,
        SMTP_SECURITY="none",
        SMTP_CONNECT_TIMEOUT=1,
        SMTP_COMMAND_TIMEOUT=0.5,
        MAIL_LEASE_SECONDS=6,
        MAIL_RETRY_MINUTES="0.01,0.02,0.05",
    )


def revive(workers: list[Service]) -> None:
    """Restart the workers that have ended, as an orchestrator would. A start without MongoDB fails."""
    for worker in workers:
        if worker.process.poll() is not None:
            worker.restart()


# --- the faults ------------------------------------------------------------------------------------


def misbehave(ledger: Ledger) -> Script:
    """Return the script of a mail server on a bad day."""

    async def script(stage: str, _recipient: str) -> str | None:
        if random.random() > SMTP_FAULT_RATE:
            return None
        fault = random.choice(["451 later", "421 closing", "550 5.1.1 refused", "hang", "drop", "250 OK and drop"])
        if fault == "550 5.1.1 refused" and stage == "MAIL":
            return None  # a refused sender would be a fault of the configuration
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


async def break_until(end: float, ledger: Ledger, setup: Setup, workers: list[Service], account: Account) -> None:
    """Break one thing after another until `end`. Each is repaired before the next one breaks."""

    async def refuse_account(_setup: Setup, _workers: list[Service]) -> str:
        return await account.refuse_for_a_while()

    breakers = [
        refuse_account,
        _kill_worker,
        _kill_mongod,
        *([_break_exchange] * 6 if setup.proxy else [_step_down, _freeze] * 2),
    ]
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
    outcome = {
        "before": "connection cut",
        "after": "connection cut instead of the reply",
        "swallow": "no reply",
    }
    return f"{command}: {outcome[fault]}"


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


# --- the run ---------------------------------------------------------------------------------------


async def soak(topology: str, seconds: float) -> bool:
    """Run one topology and print the report; return whether every promise was kept."""
    ledger, decisions, mail = Ledger(), Decisions(), MailServer()
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        progress(f"{topology}: starting the servers")
        setup = await stack.enter_async_context(TOPOLOGIES[topology](folder))
        await stack.enter_async_context(smtp_server(None, auth=False, mail_server=mail))
        with setup.client() as client:
            addresses = poison_addresses(USERS)
            client[DATABASE].users.insert_many([{"_id": ObjectId(id_), "email": addresses[id_]} for id_ in USERS])
            odd = insert_odd_documents(client, DATABASE)
            ledger.filled = fill_outbox(client, DATABASE, BUSY, seconds)
        (folder / "kinds.toml").write_text(KINDS)
        hold_up_indexes(setup.mongods, "alwaysOn")
        write_templates(folder)
        workers = [start_worker(folder, setup, mail, number) for number in range(WORKERS)]
        try:
            for worker in workers:
                await asyncio.to_thread(eventually, worker.answers, 30)
            account = await storm(ledger, decisions, mail, setup, workers, seconds)
            owed = await settle(setup, workers)
        finally:
            for worker in workers:
                worker.kill()
        with setup.client() as client:
            documents, dead_mail = await asyncio.to_thread(read_all, client[DATABASE])
        users = [document for document in documents if document["_id"] not in odd]
        broken = {
            "I2 users still owed an e-mail": owed,
            **check(ledger, mail, users, dead_mail),
            **check_decisions(decisions, mail, users, dead_mail),
            "I7 e-mails killed by a fault of ours": killed_by_us(account, dead_mail),
            "documents that are not ours and were changed": changed(odd, documents),
            "commands that a sharded cluster would refuse": cluster_faults(folder),
        }
        exceptions = logged_exceptions(folder)
    report(topology, seconds, ledger, decisions, mail, broken)
    for exception, times in exceptions.items():
        print(f"  logged {times} times: {exception}")
    return not any(broken.values())


async def storm(
    ledger: Ledger, decisions: Decisions, mail: MailServer, setup: Setup, workers: list[Service], seconds: float
) -> Account:
    """Break things under load, and repair everything at the end. Return the account at the mail server."""
    started = time.monotonic()
    end = started + seconds
    account = Account()
    mail.script = poisoned(misbehave(ledger), account)
    tasks = [asyncio.create_task(break_until(end, ledger, setup, workers, account))]
    tasks.append(asyncio.create_task(let_indexes_be_made(setup.mongods, started + SLOW_BUILD * seconds, end)))
    tasks += [asyncio.create_task(create_until(end, ledger, workers)) for _ in range(CLIENTS)]
    tasks += [asyncio.create_task(decide_until(end, ledger, decisions, workers)) for _ in range(DECIDERS)]
    pending = set(tasks)
    while pending:
        _, pending = await asyncio.wait(pending, timeout=PROGRESS_PERIOD)
        revive(workers)
        ledger.overfull += await asyncio.to_thread(count_overfull, setup)
        progress(
            f"{time.monotonic() - started:.0f} s: {ledger.requests} requests, {len(ledger.acknowledged)} acknowledged, "
            f"{len(mail.received)} e-mails, {ledger.faults.total()} faults"
        )
    for task in tasks:
        task.result()
    mail.script = None
    return account


def count_overfull(setup: Setup) -> int:
    """Count the users who are owed more e-mails than the limit, if MongoDB answers."""
    with setup.client() as client, contextlib.suppress(PyMongoError):
        return client[DATABASE].users.count_documents({f"notifier.outbox.{OUTBOX_LIMIT}": {"$exists": True}})
    return 0


async def settle(setup: Setup, workers: list[Service]) -> int:
    """Wait until nothing is owed; return how many users are owed an e-mail after `SETTLE_TIMEOUT`."""
    deadline = time.monotonic() + SETTLE_TIMEOUT
    owing = {"notifier.due": {"$exists": True}, "email": {"$exists": True}}  # odd documents have no address
    left = -1  # unknown while the members still elect a primary
    with setup.client() as client:
        while left and time.monotonic() < deadline:
            revive(workers)
            with contextlib.suppress(PyMongoError):
                left = await asyncio.to_thread(client[DATABASE].users.count_documents, owing)
            progress(f"settling: {left} users are still owed an e-mail")
            await asyncio.sleep(1)
    return left


def progress(line: str) -> None:
    """Print a line of progress."""
    print(line, file=sys.stderr, flush=True)


def report(
    topology: str, seconds: float, ledger: Ledger, decisions: Decisions, mail: MailServer, broken: Mapping[str, int]
) -> None:
    """Print what happened, and whether each promise was kept."""
    rows: list[tuple[str, int]] = [
        ("requests", ledger.requests),
        ("notifications asked for", len(ledger.asked)),
        ("acknowledged", len(ledger.acknowledged)),
        ("perhaps without its e-mail, as the answer said", len(ledger.not_owed)),
        *(
            (status if status == NO_ANSWER else f"answered {status}", n)
            for status, n in sorted(ledger.statuses.items())
        ),
        ("notifications deleted", len(decisions.deleted)),
        ("e-mails that users had opted out of", len(decisions.muted)),
        ("users erased", len(decisions.erased)),
        ("suppressions lifted", decisions.lifted),
        ("read or deleted while they might wait for their e-mail", len(decisions.windows.gone)),
        ("rows that collapsed", len(decisions.windows.rows)),
        ("e-mails delivered", len(set(mail.ids))),
        ("delivered again with the same Message-ID", len(mail.ids) - len(set(mail.ids))),
        *((f"fault: {name}", times) for name, times in sorted(ledger.faults.items())),
        *((("BROKEN " if times else "kept   ") + name, times) for name, times in broken.items()),
    ]
    print(f"\n{topology}, {seconds:.0f} s")
    for name, value in rows:
        print(f"  {name:<56} {value:>8}")
    print(flush=True)


def main() -> int:
    """Run the topologies one after another. Return 1 if a promise was broken."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60, help="how long to break things, per topology (default 60)")
    parser.add_argument("--topology", choices=TOPOLOGIES, action="append", help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, help="seed of the random choices")
    options = parser.parse_args()
    random.seed(options.seed)
    kept = [asyncio.run(soak(topology, options.seconds)) for topology in options.topology or TOPOLOGIES]
    print("Every promise was kept." if all(kept) else "A promise was BROKEN.")
    return 0 if all(kept) else 1


if __name__ == "__main__":
    sys.exit(main())
