"""One run: how much it measures, its MongoDB and users, and the processes that it starts."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import bson
import psutil
from bson import ObjectId
from bson.raw_bson import RawBSONDocument
from pymongo import MongoClient

from bench.figures import Sample
from bench.frozen.writes import EMAIL
from bench.load import DATA, TARGET, USER, LoadError, Server, Workload, family, run_wrk
from bench.own import BEFORE, Collection
from bench.report import Report, machine
from bench.size import FULL, Size
from bench.tree import CURRENT, Tree, tree_of
from tests.client import ROOT
from tests.servers import Mongod, free_port, initiate
from tests.waiting import eventually

DATABASE: Final = CURRENT.database
COMPARED_AT: Final = 64
"""Connections at which servers are compared."""
MEMORY: Final = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - the names in it are random
"""Where logs are written. A container's leave it through a pipe; on MongoDB's disk they would delay its commits."""


@contextmanager
def running_bench(
    size: Size, estimates: Mapping[str, float], command: str, against: str | None = None
) -> Iterator[Bench]:
    """Start MongoDB for a run of these parts, each of which takes about so many seconds, beside a commit if given.

    Raises `LoadError` if there is no such commit.
    """
    with (
        tree_of(against) if against else contextlib.nullcontext() as other,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as disk,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True, dir=MEMORY) as logs,
    ):
        data = Path(disk) / "db"
        mongod = Mongod(data, DATABASE, cache_gb=size.cache_gb, oplog_mb=1024)
        try:
            mongod.start()
            initiate([mongod], DATABASE)
            server = Server("mongod", mongod.port, psutil.Process(mongod.pid), data / "mongod.out")
            with mongod.client() as client:
                bench = Bench(size, dict(estimates), Path(logs), server, client, other)
                bench.report.machine = machine(client.server_info()["version"], Path(disk), command)
                yield bench
        finally:
            mongod.kill()


@dataclass(eq=False)
class Bench:
    """A run with its MongoDB. The processes that it starts end with the `with` block that started them."""

    size: Size
    estimates: dict[str, float]
    """About how many seconds each part takes that has not ended."""
    logs: Path
    mongod: Server
    client: MongoClient[dict[str, Any]]
    against: Tree | None = None
    """A commit that is measured beside the current tree."""

    def __post_init__(self) -> None:
        """Start the report and the clock."""
        self.trees = [CURRENT, *([self.against] if self.against else ())]
        self.report = Report(judged=self.size is FULL)
        self._part = ""
        self._round = ""
        self._began = self._started = time.monotonic()

    def begin(self, part: str) -> None:
        """Begin a part. The part before, if any, has ended."""
        self.estimates.pop(self._part, None)
        self._part, self._round, self._began = part, "", time.monotonic()

    def rounds(self, number: int) -> Iterator[int]:
        """Count rounds from 0. The lines of progress name the current one."""
        for n in range(number):
            self._round = f", round {n + 1} of {number}"
            yield n
        self._round = ""

    def progress(self, text: str) -> None:
        """Print what happens now, the time since the start and about how much is left."""
        now = time.monotonic()
        later = sum(self.estimates.values()) - self.estimates[self._part]
        left = later + max(0.0, self.estimates[self._part] - (now - self._began))
        line = f"[{_clock(now - self._started)}, about {_clock(left)} left] {self._part}{self._round}: {text}"
        print(line, file=sys.stderr, flush=True)

    def users(self, database: str = DATABASE) -> Collection:
        """Return the collection of the users."""
        return self.client[database]["users"]

    def fill(
        self,
        users: int,
        notifications: int,
        *databases: str,
        data: object = DATA,
        owed: Mapping[str, Any] | None = None,
    ) -> None:
        """Replace all users of these databases, or else of each tree's. `owed` is what their documents have besides."""
        notification = {"timestamp": int(time.time()), "is_new": True, "user_id": USER, "key": "new_post"}
        notification |= {"target_id": TARGET} | ({"data": data} if data else {})
        marker = b"\xff" * 12
        document: dict[str, Any] = {
            "_id": ObjectId(marker),
            "email": EMAIL,
            "notifications": [{"id": f"{n:024x}", **notification} for n in range(notifications)],
            **(owed or {}),
        }
        raw = bson.encode(document)  # only once: encoding a million of them takes minutes
        for database in databases or [tree.database for tree in self.trees]:
            collection: Any = self.users(database)
            collection.drop()
            for start in range(0, users, 1000):
                ids = [f"{n:024x}" for n in range(start, min(start + 1000, users))]
                documents = (
                    raw.replace(marker, bytes.fromhex(id_)).replace(USER.encode(), id_.encode()) for id_ in ids
                )
                collection.insert_many(map(RawBSONDocument, documents), ordered=False)
        self.client.admin.command("fsync")  # or the next measurement would pay for it

    def restore(self, notifications: int) -> None:
        """Give every user the first of their notifications again, and nothing else."""
        shorten = {"notifications": {"$each": [], "$slice": notifications}}
        for tree in self.trees:
            # bare, which writes to the same database as the current tree, has the layout of before
            own = {*tree.layout.own, *BEFORE.own}
            grown = [{f"notifications.{notifications}": {"$exists": True}}]
            grown += [{field: {"$exists": True}} for field in own]
            self.users(tree.database).update_many({"$or": grown}, {"$push": shorten, "$unset": dict.fromkeys(own, 1)})
        self.client.admin.command("fsync")

    @contextmanager
    def service(self, tree: Tree = CURRENT, database: str | None = None, **variables: object) -> Iterator[Server]:
        """Run the service. No mail server listens unless the variables name one."""
        command = [sys.executable, str(tree.folder / "notifier.py")]
        settings = {"HOST": "127.0.0.1", "SMTP_HOST": "127.0.0.1", "SMTP_PORT": free_port(), **variables}
        with self._running(tree.name, command, self.logs, database or tree.database, settings) as server:
            _wait_until_it_listens(server)
            yield server

    @contextmanager
    def ceiling(self, role: str, *, listens: bool = True, **variables: object) -> Iterator[Server]:
        """Run a role of `bench.ceilings`."""
        command = [sys.executable, "-m", "bench.ceilings", role]
        with self._running(role, command, ROOT, DATABASE, variables) as server:
            if listens:
                _wait_until_it_listens(server)
            yield server

    @contextmanager
    def _running(
        self, name: str, command: Sequence[str], folder: Path, database: str, variables: Mapping[str, object]
    ) -> Iterator[Server]:
        """Run a program, and kill it and its children at the end."""
        port = free_port()
        log = self.logs / f"{name}-{port}.log"
        values = {"DB_URI": self.uri(database), "EMAIL": EMAIL, "PORT": port, **variables}
        environment = {**os.environ, **{name: str(value) for name, value in values.items()}}
        with log.open("ab") as output:
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
        server = Server(name, port, psutil.Process(process.pid), log)
        try:
            yield server
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                for member in family(server.process):
                    member.kill()
            process.wait()

    def uri(self, database: str) -> str:
        """Return the connection string of a database."""
        return f"mongodb://127.0.0.1:{self.mongod.port}/{database}?replicaSet={DATABASE}"

    def measure(
        self, server: Server, workload: Workload, connections: int = COMPARED_AT, seconds: int | None = None
    ) -> Sample:
        """Load a server with wrk."""
        return run_wrk(server, self.mongod, workload, connections, seconds or self.size.seconds)


def _wait_until_it_listens(server: Server) -> None:
    """Wait until a process accepts connections. Raises `LoadError` if it ends instead."""

    def check() -> None:
        if not server.process.is_running() or server.process.status() == psutil.STATUS_ZOMBIE:
            raise LoadError(f"{server.name} does not start.\n{server.log_tail()}")
        socket.create_connection(("127.0.0.1", server.port), 1).close()

    eventually(check, 30)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"
