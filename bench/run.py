"""One run of the bench: how much it measures, its MongoDB, the processes that it starts, and the users it makes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import bson
import psutil
from bson import ObjectId
from bson.raw_bson import RawBSONDocument

from bench.ceilings import EMAIL, Collection
from bench.load import DATA, TARGET, USER, LoadError, Sample, Server, Workload, closed_loop, family
from bench.report import Report, machine
from tests.processes import Service
from tests.servers import Mongod, free_port, initiate
from tests.waiting import eventually


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    rounds: int
    """Of creates, lists and reads: many short ones, as the machine's speed changes from one moment to the next."""
    long_rounds: int
    """Of what takes longer."""
    seconds: int
    """Of one measurement."""
    open_seconds: int
    """Of one open loop."""
    growth_rounds: int
    """Of what grows, as its ratios are near 1."""
    connections: Sequence[int]
    users: int
    items: int
    """Notifications that each user has."""
    batches: Sequence[int]
    """Operations in one command, of which the best is MongoDB's ceiling."""
    loads: Sequence[float]
    """Offered loads, as parts of what the service does at most."""
    limits: Sequence[int]
    crowds: Sequence[int]
    """Numbers of users."""
    owed: int
    """E-mails owed while creates are measured."""
    data: Sequence[int]
    """KiB of `data`."""
    mails: int
    """E-mails sent in a round by each way of sending."""
    drained: int
    requests: Sequence[int]
    """After which memory is looked at."""
    streams: Sequence[int]
    """Streams that others hold while a page is looked at."""
    looks: int


FULL: Final = Size(
    rounds=6,
    long_rounds=3,
    seconds=1,
    open_seconds=4,
    growth_rounds=5,
    connections=(1, 8, 64, 256),
    users=10_000,
    items=25,
    batches=(16, 64, 256),
    loads=(0.1, 0.25, 0.5, 0.7, 0.85, 0.95),
    limits=(20, 100, 1000),
    crowds=(1_000, 100_000, 1_000_000),
    owed=100_000,
    data=(0, 1, 16),
    mails=2_000,
    drained=10_000,
    requests=(100_000, 1_000_000),
    streams=(0, 100, 1_000),
    looks=100,
)
QUICK: Final = Size(
    rounds=1,
    long_rounds=1,
    seconds=1,
    open_seconds=1,
    growth_rounds=1,
    connections=(64,),
    users=2_000,  # so that no outbox fills
    items=25,
    batches=(64,),
    loads=(0.5,),
    limits=(20,),
    crowds=(100, 1_000),
    owed=100,
    data=(16,),
    mails=150,
    drained=150,
    requests=(500, 1_000),
    streams=(0, 20),
    looks=5,
)


class Bench:
    """One run. Whatever it starts has ended when what started it is left."""

    def __init__(self, size: Size, folder: Path, logs: Path, estimates: Sequence[float], command: str) -> None:
        """Keep the database in `folder`, all else in `logs`; `estimates` are the seconds that each part will take."""
        self.size = size
        self.folder = logs
        self._disk = folder
        self._estimates = list(estimates)
        self._part = ""
        self._began = self._started = time.monotonic()
        self._mongod = Mongod(folder / "db", "bench", cache_gb=2 if size is FULL else 0.25, oplog_mb=1024)
        self.client = self._mongod.client()
        self.report = Report(judged=size is FULL)
        self._command = command

    def start(self) -> None:
        """Start MongoDB."""
        self._mongod.start()
        initiate([self._mongod], "bench")
        self.mongod = Server(
            "mongod", self._mongod.port, psutil.Process(self._mongod.pid), self._disk / "db/mongod.out"
        )
        self.report.machine = machine(self.client.server_info()["version"], self._disk, self._command)

    def close(self) -> None:
        """End MongoDB."""
        self.client.close()
        self._mongod.kill()

    def begin(self, part: str) -> None:
        """Note that a part begins, and with it that the one before has ended."""
        if self._part:
            self._estimates.pop(0)
        self._part, self._began = part, time.monotonic()

    def say(self, text: str, turn: int | None = None) -> None:
        """Tell how far it has come."""
        now = time.monotonic()
        left = max(0.0, self._estimates[0] - (now - self._began)) + sum(self._estimates[1:])
        part = self._part if turn is None else f"{self._part}, round {turn + 1}"
        sys.stderr.write(f"[{_clock(now - self._started)}, about {_clock(left)} left] {part}: {text}\n")
        sys.stderr.flush()

    def users(self, database: str = "bench") -> Collection:
        """Return the collection of the users."""
        return self.client[database]["users"]

    def fill(
        self, users: int, items: int, database: str = "bench", *, data: object = DATA, due: datetime | None = None
    ) -> None:
        """Make so many users with so many notifications each; `due` is when each is owed an e-mail, if at all."""
        now = datetime.now(UTC)
        item = {"timestamp": int(now.timestamp()), "is_new": True, "user_id": USER, "key": "new_post"}
        item |= {"target_id": TARGET} | ({"data": data} if data else {})
        marker = b"\xff" * 12
        document: dict[str, Any] = {
            "_id": ObjectId(marker),
            "email": EMAIL,
            "notifications": [{"id": f"{n:024x}", **item} for n in range(items)],
        }
        if due:
            document |= {"outbox": [owed_mail(USER, "new_login", now, {}) | {"next_at": due}], "mail_due": due}
        raw = bson.encode(document)  # once: a million of them take half a minute so, and several otherwise
        collection: Any = self.users(database)
        collection.drop()
        for start in range(0, users, 1000):
            ids = [f"{n:024x}" for n in range(start, min(start + 1000, users))]
            made = (raw.replace(marker, bytes.fromhex(id_)).replace(USER.encode(), id_.encode()) for id_ in ids)
            collection.insert_many(map(RawBSONDocument, made), ordered=False)
        self.client.admin.command("fsync")  # else the next measurement pays for it

    @contextmanager
    def service(self, database: str = "bench", name: str = "service", **variables: object) -> Iterator[Server]:
        """Run the service until it is left; no mail server listens unless the variables say so."""
        settings: dict[str, object] = {"SMTP_HOST": "127.0.0.1", "SMTP_PORT": free_port(), **variables}
        service = Service(self.folder, DB_URI=self.uri(database), EMAIL=EMAIL, **settings)
        log = self.folder / f"service-{service.port}.log"
        with _running(Server(name, service.port, psutil.Process(service.process.pid), log), service.process) as server:
            _serves(server, service.process)
            yield server

    @contextmanager
    def ceiling(self, role: str, database: str = "bench", **variables: object) -> Iterator[Server]:
        """Run a role of `bench_ceilings.py` until it is left."""
        port = free_port()
        log = self.folder / f"{role}-{port}.log"
        values = {"DB_URI": self.uri(database), "EMAIL": EMAIL, "PORT": port, **variables}
        with log.open("ab") as output:
            process = subprocess.Popen(  # noqa: S603 - our own words
                [sys.executable, str(Path(__file__).with_name("bench_ceilings.py")), role],
                env={**os.environ, **{name: str(value) for name, value in values.items()}},
                stdout=output,
                stderr=output,
            )
        with _running(Server(role, port, psutil.Process(process.pid), log), process) as server:
            if role != "letters":  # which is nobody's server
                _serves(server, process)
            yield server

    def uri(self, database: str) -> str:
        """Return the connection string of a database."""
        return f"mongodb://{self._mongod.address}/{database}?replicaSet=bench"

    def measure(self, server: Server, workload: Workload, connections: int, seconds: int | None = None) -> Sample:
        """Load a server with wrk."""
        return closed_loop(server, self.mongod, workload, connections, seconds or self.size.seconds)


@contextmanager
def _running(server: Server, process: subprocess.Popen[bytes]) -> Iterator[Server]:
    """End a process and its children when it is left."""
    try:
        yield server
    finally:
        if process.poll() is None:
            for member in family(server.process):
                member.kill()
        process.wait()


def _serves(server: Server, process: subprocess.Popen[bytes]) -> None:
    """Wait until a process serves; raises `LoadError` when it has ended."""

    def check() -> None:
        if process.poll() is not None:
            raise LoadError(f"{server.name} does not start: {server.log.read_text()[-2000:]}")
        socket.create_connection(("127.0.0.1", server.port), 1).close()

    eventually(check, 30)


def _clock(seconds: float) -> str:
    return f"{seconds // 60:.0f}:{seconds % 60:02.0f}"
