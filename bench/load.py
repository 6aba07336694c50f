"""The load on a server: its requests, and wrk, whose connections send the next request when the last is answered."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from bench.figures import Sample

USER: Final = "U" * 24
"""Stands for the id of a user in a request or a document."""
NOTIFICATION: Final = "N" * 24
"""Stands for the id of one of the user's notifications."""
TARGET: Final = "0399ea67638f394d4b7243fc"
DATA: Final = {"post": "638f394d4b7243fc0399ea67", "by": "Ann"}
WRK_GRACE: Final = 30.0
"""Seconds that wrk may take longer than the load that it makes."""

WRK_SCRIPT: Final = f"""
function request()
  local text = templates[math.random(#templates)]
  text = text:gsub("{USER}", string.format("%024x", math.random(0, users - 1)))
  return (text:gsub("{NOTIFICATION}", string.format("%024x", math.random(0, notifications - 1))))
end
function done(summary, latency)
  local e = summary.errors
  io.write(string.format('\\n{{"requests": %d, "us": %d, "p50": %d, "p99": %d, "failed": [%d, %d, %d, %d, %d]}}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect, e.read, e.write, e.timeout, e.status))
end
"""
FAILURES: Final = ("could not connect", "read failed", "write failed", "timed out", "status other than 2xx")
"""What wrk counts as `failed`, in this order."""


class LoadError(Exception):
    """A measurement is not possible, or an answer was wrong, so that the figures would mean nothing."""


@dataclass(frozen=True)
class Workload:
    """Requests as they go over the wire. Each is drawn at random, for a random user and notification."""

    name: str
    templates: Sequence[str]
    users: int
    """Number of users."""
    notifications: int = 1
    """Number of notifications of each user."""

    def draw(self) -> bytes:
        """Return a request."""
        text = random.choice(self.templates).replace(USER, f"{random.randrange(self.users):024x}")
        return text.replace(NOTIFICATION, f"{random.randrange(self.notifications):024x}").encode()


def post(**body: object) -> str:
    """Return a `POST /create` for a random user."""
    text = json.dumps({"user_id": USER, "target_id": TARGET, **body})
    return f"POST /create HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(text)}\r\n\r\n{text}"


CREATE: Final = post(key="new_post", data=DATA)
LIST: Final = f"GET /list?user_id={USER}&skip=0&limit=10 HTTP/1.1\r\nHost: bench\r\n\r\n"
READ: Final = (
    f"POST /read?user_id={USER}&notification_id={NOTIFICATION} HTTP/1.1\r\nHost: bench\r\nContent-Length: 0\r\n\r\n"
)


@dataclass(frozen=True)
class Server:
    """A process under load, together with its child processes."""

    name: str
    port: int
    process: psutil.Process
    log: Path

    def cpu(self) -> float:
        """Return the seconds of CPU that it has used."""
        times = [process.cpu_times() for process in family(self.process)]
        return sum(float(t.user + t.system) for t in times)

    def rss(self) -> float:
        """Return its resident memory in MB."""
        return sum(float(process.memory_info().rss) for process in family(self.process)) / 1e6

    def log_tail(self) -> str:
        """Return the end of its log, for an error message."""
        return f"The end of the log of {self.name}:\n{self.log.read_text(errors='replace')[-2000:]}"


def family(process: psutil.Process) -> list[psutil.Process]:
    """Return a process and its descendants."""
    return [process, *process.children(recursive=True)]


def find_wrk() -> str:
    """Return the path of wrk. Raises `LoadError` if it is not installed."""
    if path := shutil.which("wrk"):
        return path
    raise LoadError("wrk, which makes the load, is not installed: apt-get install wrk")


def run_wrk(server: Server, mongod: Server, workload: Workload, connections: int, seconds: int) -> Sample:
    """Load a server for some seconds. Raises `LoadError` if an answer is missing or its status is not 2xx."""
    cpu_before, db_cpu_before = server.cpu(), mongod.cpu()
    summary = _summary_of_wrk(server, workload, connections, seconds)
    cpu, db_cpu = server.cpu() - cpu_before, mongod.cpu() - db_cpu_before
    requests = summary["requests"]
    if any(summary["failed"]) or not requests:
        failed = ", ".join(f"{what}: {times}" for what, times in zip(FAILURES, summary["failed"], strict=True) if times)
        raise LoadError(
            f"{workload.name} on {server.name} with {connections} connections: {requests} requests, of which failed: "
            f"{failed or 'none'}.\n{server.log_tail()}"
        )
    return Sample(
        rps=requests / summary["us"] * 1e6,
        p50=summary["p50"] / 1e3,
        p99=summary["p99"] / 1e3,
        cpu=cpu / requests * 1e6,
        db_cpu=db_cpu / requests * 1e6,
    )


def _summary_of_wrk(server: Server, workload: Workload, connections: int, seconds: int) -> dict[str, Any]:
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(_script(workload))
        script.flush()
        command = [find_wrk(), "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", script.name]
        url = f"http://127.0.0.1:{server.port}"
        try:
            result = subprocess.run(
                [*command, url], capture_output=True, text=True, timeout=seconds + WRK_GRACE, check=False
            )
        except subprocess.TimeoutExpired as exc:
            raise LoadError(f"wrk did not end while it loaded {server.name}.\n{server.log_tail()}") from exc
    if result.returncode:
        raise LoadError(f"wrk failed on {server.name}: {result.stdout}{result.stderr}\n{server.log_tail()}")
    summary: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return summary


def _script(workload: Workload) -> str:
    templates = ", ".join(map(json.dumps, workload.templates))  # ASCII, which Lua quotes as JSON does
    values = f"{{{templates}}}, {workload.users}, {workload.notifications}"
    seed = random.randrange(2**31)
    return f"local templates, users, notifications = {values}\nmath.randomseed({seed})\n{WRK_SCRIPT}"
