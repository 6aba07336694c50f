"""The service in a process of its own: configured, as a local run, and as a command."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, redirect_stderr, redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

import settings as settings_module
from cli.main import main
from notifier import serve
from settings import Settings
from tests.client import ROOT
from tests.servers import free_port
from tests.waiting import eventually, slow_clock

COMPLETE = {
    "DB_URI": "mongodb://mongodb-1/dbdata6",
    "EMAIL": "test@example.com",
    "SMTP_HOST": "smtp.example.com",
}
"""The variables that are required, unless it is a local run."""
VARIABLES = frozenset(settings_module.VARIABLES)
"""The names of all variables."""


class Service:
    """The service in a process of its own, configured by these variables."""

    def __init__(self, folder: Path, *program: str, **variables: object) -> None:
        self.port = free_port()
        self._folder = folder
        self._program = program or (str(ROOT / "notifier.py"),)
        given = {name: str(value) for name, value in variables.items()}
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), **given, "HOST": "127.0.0.1", "PORT": str(self.port)}
        self.process = self._spawn()

    def _spawn(self) -> subprocess.Popen[bytes]:
        with (self._folder / f"service-{self.port}.log").open("ab") as output:
            return self._popen(output.fileno())

    def _popen(self, output: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, *self._program],
            cwd=self._folder,
            env=self.environment,
            stdout=output,
            stderr=output,
        )

    def log(self) -> str:
        """Return its output, on standard output and standard error."""
        return (self._folder / f"service-{self.port}.log").read_text()

    def answers(self) -> None:
        """Fail unless it listens."""
        socket.create_connection(("127.0.0.1", self.port), 1).close()

    def restart(self) -> None:
        """Start it again after it has ended."""
        self.process = self._spawn()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        self.process.kill()
        self.process.wait()


async def running_service(
    settings: Settings, folder: Path, program: Sequence[str] = (), **variables: object
) -> Service:
    """Start the service in a process, with these settings and short timeouts, and wait until it listens."""
    service = Service(
        folder,
        *program,
        DB_URI=settings.db_uri,
        EMAIL=settings.email,
        SMTP_HOST=settings.smtp_host,
        SMTP_PORT=settings.smtp_port,
        SMTP_LOGIN=settings.smtp_login,
        SMTP_PASSWORD=settings.smtp_password,
        SMTP_CA_FILE=settings.smtp_ca_file,
        SMTP_SECURITY=settings.smtp_security.value,
        **{
            "SMTP_CONNECT_TIMEOUT": 0.5,
            "SMTP_COMMAND_TIMEOUT": 0.2,
            "MAIL_LEASE_SECONDS": 5,
            "MAIL_RETRY_MINUTES": 0.01,
            **variables,
        },
    )
    await asyncio.to_thread(eventually, service.answers)
    return service


def ends_within(seconds: float, process: subprocess.Popen[bytes]) -> int:
    """Wait until the process ends; return its exit code. Fail if it took longer, by a slow clock."""
    with slow_clock() as elapsed:
        code = process.wait(10 * seconds)
        assert elapsed() < seconds
    return code


def run(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `python notifier.py` with these arguments and variables until it ends."""
    return subprocess.run(
        [sys.executable, str(ROOT / "notifier.py"), *arguments],
        cwd=cwd,
        env=unconfigured() | {"START_TIMEOUT": "5"} | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def run_here(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Do what `run` does in this process, as it would take 0.6 s of CPU to start another: what ends without serving."""
    environment = unconfigured() | {"START_TIMEOUT": "5"} | variables
    with chdir(cwd), ThreadPoolExecutor(1) as thread:  # which has no event loop yet
        code, out, err = thread.submit(_run_here, arguments, environment).result()
    return subprocess.CompletedProcess(arguments, code, out, err)


def unconfigured() -> dict[str, str]:
    """Return the environment without the variables of the service."""
    return {name: value for name, value in os.environ.items() if name not in VARIABLES}


async def command(settings: Settings, *arguments: str, **variables: str) -> tuple[int, str, str]:
    """Run a command on the database of these settings; return its exit code, output and errors, but not its log.

    It runs in this process, as it would take 0.6 s of CPU to start another.
    """
    return await asyncio.to_thread(_run_here, arguments, _configured(settings, variables))


def _run_here(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str, str]:
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name in os.environ:
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr("cli.main.configure_logging", lambda _level: None)  # it would change this process for good
        code = main([*arguments], serve)
    return code, out.getvalue(), err.getvalue()


async def command_process(settings: Settings, *arguments: str, **variables: str) -> tuple[int, str, str]:
    """Do what `command` does in a process of its own. Its log is among its errors."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(ROOT / "notifier.py"), *arguments),
        env=_configured(settings, variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def _configured(settings: Settings, variables: Mapping[str, str]) -> dict[str, str]:
    given = {"DB_URI": settings.db_uri, "EMAIL": settings.email, "SMTP_HOST": settings.smtp_host, **variables}
    return {"SSL_CERT_FILE": os.devnull, **given}


class LocalRun:
    """`python notifier.py` with nothing configured, in a folder of its own."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.folder = folder
        self.port = free_port()
        with (folder / "output").open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "notifier.py")],
                cwd=folder,
                env=unconfigured() | variables | {"PORT": str(self.port)},
                stdout=output,
                stderr=output,
            )
        eventually(lambda: self.get("/healthz"), 30)

    def get(self, path: str, data: bytes | None = None) -> dict[str, Any]:
        """Return the answer to a GET, or to a POST of `data`."""
        with urlopen(f"http://127.0.0.1:{self.port}{path}", data, timeout=20) as response:
            body: dict[str, Any] = json.load(response)
            return body

    def mails(self) -> list[str]:
        """Return the e-mails in its mailbox."""
        return [path.read_text() for path in (self.folder / ".notifier/mail").glob("*.eml")]

    def end(self, number: signal.Signals) -> int:
        """End it with a signal, and within 8 s; return the exit code."""
        self.process.send_signal(number)
        return ends_within(8, self.process)


def mongods_of(folder: Path) -> list[str]:
    """Return the ids of the MongoDB servers that run in this folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cwd").resolve() == folder and b"mongod" in (process / "cmdline").read_bytes():
                found.append(process.name)
    return found
