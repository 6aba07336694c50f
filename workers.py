"""Several processes of the service on one port, for machines with cores to use and no orchestrator.

They share nothing but the port (SO_REUSEPORT, socket(7): the kernel spreads the connections) and a directory for the
metrics. Each holds a pipe of which the supervisor has the other end: however the supervisor ends, they drain.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from tempfile import TemporaryDirectory
from typing import Final

from prometheus_client.multiprocess import mark_process_dead

from settings import Settings

log = logging.getLogger("notifier.workers")

RESTART_PAUSE: Final = 1.0
STOP_TIMEOUT: Final = 9.0
"""Seconds that a worker is given to drain: more than it takes, and Docker waits for 10."""
METRICS_FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"
"""Names the directory through which the workers' metrics are one (prometheus_client, "Multiprocess Mode")."""


async def supervise(settings: Settings) -> int:
    """Keep `settings.workers` processes running until SIGTERM or SIGINT, and return the exit code.

    One that dies is started again; one that cannot start at all ends the others. Raises `OSError` if the port is taken.
    """
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    (await loop.create_server(asyncio.Protocol, settings.host, settings.port)).close()  # or they would share it
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with TemporaryDirectory(prefix="notifier-metrics-") as folder:
        environment = {**os.environ, METRICS_FOLDER: folder}
        return max(await asyncio.gather(*(_tend(environment, stop) for _ in range(settings.workers))))


async def _tend(environment: Mapping[str, str], stop: asyncio.Event) -> int:
    """Keep one worker running; return 0 when stopped, or the exit code with which it could not start."""
    stopped = asyncio.create_task(stop.wait())
    started_before = False
    while not stop.is_set():
        worker = await asyncio.create_subprocess_exec(
            *(sys.executable, sys.argv[0], "--worker"),
            stdin=PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C is for us
        )
        ended = asyncio.create_task(worker.wait())
        await asyncio.wait({ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            await _drain(worker, ended)
        mark_process_dead(worker.pid, environment[METRICS_FOLDER])  # type: ignore[no-untyped-call]
        if stop.is_set():
            break
        if ended.result() > 0 and not started_before:  # it has said why
            stop.set()
            return ended.result()
        log.error("a worker ended (%d), and is started again", ended.result())
        started_before = True
        await asyncio.wait({stopped}, timeout=RESTART_PAUSE)
    return 0


async def _drain(worker: Process, ended: asyncio.Task[int]) -> None:
    if worker.stdin:
        worker.stdin.close()
    await asyncio.wait({ended}, timeout=STOP_TIMEOUT)
    if not ended.done():
        log.error("a worker did not stop within %.0f s, and is killed", STOP_TIMEOUT)
        worker.kill()
        await ended
