"""One run: how much it measures, its MongoDB and users, and the processes that it starts."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
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
from bench.own import Collection
from bench.report import Report, machine
from bench.size import FULL, Size
from mongo.owed import new_element
from tests.client import ROOT
from tests.processes import Service
from tests.servers import Mongod, free_port, initiate
from tests.waiting import eventually

DATABASE: Final = "bench"
COMPARED_AT: Final = 64
"""Connections at which servers are compared."""
MEMORY: Final = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - the names in it are random
"""Where logs are written. A container's leave it through a pipe; on MongoDB's disk they would delay its commits."""


@contextmanager
def running_bench(size: Size, estimates: Mapping[str, float], command: str) -> Iterator[Bench]:
    """Start MongoDB for a run of these parts, each of which takes about so many seconds."""
    with (
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
                bench = Bench(size, estimates, Path(logs), server, client)
                bench.report.machine = machine(client.server_info()["version"], Path(disk), command)
                yield bench
        finally:
            mongod.kill()


class Bench:
    """A run with its MongoDB. The processes that it starts end with the `with` block that started them."""

    def __init__(
        self,
        size: Size,
        estimates: Mapping[str, float],
        logs: Path,
        mongod: Server,
        client: MongoClient[dict[str, Any]],
    ) -> None:
        self.size = size
        self.logs = logs
        self.mongod = mongod
        self.client = client
        self.report = Report(judged=size is FULL)
        self._estimates = dict(estimates)
        self._part = ""
        self._round = ""
        self._began = self._started = time.monotonic()

    def begin(self, part: str) -> None:
        """Begin a part. The part before, if any, has ended."""
        self._estimates.pop(self._part, None)
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
        later = sum(self._estimates.values()) - self._estimates[self._part]
        left = later + max(0.0, self._estimates[self._part] - (now - self._began))
        line = f"[{_clock(now - self._started)}, about {_clock(left)} left] {self._part}{self._round}: {text}"
        print(line, file=sys.stderr, flush=True)

    def users(self, database: str = DATABASE) -> Collection:
        """Return the collection of the users."""
        return self.client[database]["users"]

    def fill(
        self,
        users: int,
        notifications: int,
        database: str = DATABASE,
        *,
        data: object = DATA,
        due: datetime | None = None,
    ) -> None:
        """Replace all users. If `due` is given, each is owed an e-mail from then on."""
        now = datetime.now(UTC)
        notification = {"timestamp": int(now.timestamp()), "is_new": True, "user_id": USER, "key": "new_post"}
        notification |= {"target_id": TARGET} | ({"data": data} if data else {})
        marker = b"\xff" * 12
        document: dict[str, Any] = {
            "_id": ObjectId(marker),
            "email": EMAIL,
            "notifications": [{"id": f"{n:024x}", **notification} for n in range(notifications)],
        }
        if due:
            email = new_element(USER, "new_login", now, {}, None) | {"next_at": due}
            document |= {"outbox": [email], "mail_due": due}
        raw = bson.encode(document)  # only once: encoding a million of them takes minutes
        collection: Any = self.users(database)
        collection.drop()
        for start in range(0, users, 1000):
            ids = [f"{n:024x}" for n in range(start, min(start + 1000, users))]
            documents = (raw.replace(marker, bytes.fromhex(id_)).replace(USER.encode(), id_.encode()) for id_ in ids)
            collection.insert_many(map(RawBSONDocument, documents), ordered=False)
        self.client.admin.command("fsync")  # or the next measurement would pay for it

    def restore(self, notifications: int) -> None:
        """Give every user the first of their notifications again, and nothing else."""
        grown = [{f"notifications.{notifications}": {"$exists": True}}]
        grown += [{field: {"$exists": True}} for field in ("outbox", "recent")]
        shorten = {"notifications": {"$each": [], "$slice": notifications}}
        remove = dict.fromkeys(("outbox", "mail_due", "recent"), 1)
        self.users().update_many({"$or": grown}, {"$push": shorten, "$unset": remove})
        self.client.admin.command("fsync")

    @contextmanager
    def service(self, database: str = DATABASE, **variables: object) -> Iterator[Server]:
        """Run the service. No mail server listens unless the variables name one."""
        settings: dict[str, object] = {"SMTP_HOST": "127.0.0.1", "SMTP_PORT": free_port(), **variables}
        service = Service(self.logs, DB_URI=self.uri(database), EMAIL=EMAIL, **settings)
        log = self.logs / f"service-{service.port}.log"
        server = Server("service", service.port, psutil.Process(service.process.pid), log)
        with _ended_with(server, service.process):
            _wait_until_it_listens(server, service.process)
            yield server

    @contextmanager
    def ceiling(self, role: str, *, listens: bool = True, **variables: object) -> Iterator[Server]:
        """Run a role of `bench.ceilings`."""
        port = free_port()
        log = self.logs / f"{role}-{port}.log"
        values = {"DB_URI": self.uri(DATABASE), "EMAIL": EMAIL, "PORT": port, **variables}
        with log.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "bench.ceilings", role],
                cwd=ROOT,
                env={**os.environ, **{name: str(value) for name, value in values.items()}},
                stdout=output,
                stderr=output,
            )
        server = Server(role, port, psutil.Process(process.pid), log)
        with _ended_with(server, process):
            if listens:
                _wait_until_it_listens(server, process)
            yield server

    def uri(self, database: str) -> str:
        """Return the connection string of a database."""
        return f"mongodb://127.0.0.1:{self.mongod.port}/{database}?replicaSet={DATABASE}"

    def measure(
        self, server: Server, workload: Workload, connections: int = COMPARED_AT, seconds: int | None = None
    ) -> Sample:
        """Load a server with wrk."""
        return run_wrk(server, self.mongod, workload, connections, seconds or self.size.seconds)


@contextmanager
def _ended_with(server: Server, process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Kill a process and its children at the end of the block."""
    try:
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            for member in family(server.process):
                member.kill()
        process.wait()


def _wait_until_it_listens(server: Server, process: subprocess.Popen[bytes]) -> None:
    """Wait until a process accepts connections. Raises `LoadError` if it ends instead."""

    def check() -> None:
        if process.poll() is not None:
            raise LoadError(f"{server.name} does not start.\n{server.log_tail()}")
        socket.create_connection(("127.0.0.1", server.port), 1).close()

    eventually(check, 30)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"
