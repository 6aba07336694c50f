"""Several processes of the service on one port, for a machine with several cores and no orchestrator.

They share only the port (SO_REUSEPORT, socket(7): the kernel distributes the connections) and a directory for the
metrics. Each holds one end of a pipe to the supervisor, and drains when the other end closes, however that happens.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping
from contextlib import suppress
from tempfile import TemporaryDirectory
from typing import Final

from prometheus_client.multiprocess import mark_process_dead

from ops.listening import bind
from ops.metrics import FOLDER, WORKER
from settings import Settings

log = logging.getLogger("notifier.workers")

RESTART_PAUSE: Final = 2.0
"""Seconds before a worker that died is started again."""
STARTING_PERIOD: Final = 30.0
"""Seconds beyond `START_TIMEOUT` for which a worker counts as starting."""
STOP_TIMEOUT: Final = 9.0
"""Seconds for a worker to drain. It needs less, and Docker waits for 10."""


async def supervise(settings: Settings) -> int:
    """Keep `settings.workers` processes running until SIGTERM or SIGINT, and return the exit code.

    A worker that dies is started again. If one cannot start at all, the others end. Raises `CannotListen`.
    """
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    (await bind(asyncio.Protocol, settings.host, settings.port)).close()  # else they would share it
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with TemporaryDirectory(prefix="notifier-metrics-", ignore_cleanup_errors=True) as folder:
        environments = [{**os.environ, FOLDER: folder, WORKER: f"{number}"} for number in range(settings.workers)]
        starting = settings.start_timeout + STARTING_PERIOD
        return max(await asyncio.gather(*(_tend(environment, stop, starting) for environment in environments)))


async def _tend(environment: Mapping[str, str], stop: asyncio.Event, starting: float) -> int:
    """Keep one worker running; return 0 once stopped, or the exit code of a worker that never started."""
    loop, stopped, first = asyncio.get_running_loop(), asyncio.create_task(stop.wait()), True
    while not stop.is_set():
        began, code = loop.time(), await _run_worker(environment, stopped)
        if stop.is_set():
            break
        if first and code > 0 and loop.time() - began < starting:  # the worker has said why
            stop.set()
            return code
        first = False
        log.error("a worker ended with exit code %d; it is started again in %.0f s", code, RESTART_PAUSE)
        await asyncio.wait({stopped}, timeout=RESTART_PAUSE)
    return 0


async def _run_worker(environment: Mapping[str, str], stopped: asyncio.Task[bool]) -> int:
    """Run a worker until it ends, or is told to; return its exit code."""
    try:
        worker = await _start(environment)
    except OSError as exc:  # for lack of memory, say
        log.error("a worker cannot be started: %s", exc.strerror)  # noqa: TRY400 - the reason is enough
        return 1
    ended = asyncio.create_task(worker.wait())
    await asyncio.wait({ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if not ended.done():
        worker.terminate()
        await asyncio.wait({ended}, timeout=STOP_TIMEOUT)
    if not ended.done():
        log.error("a worker did not stop within %.0f s and is killed", STOP_TIMEOUT)
        worker.kill()
    code = await ended
    with suppress(OSError):  # somebody may have cleaned /tmp
        mark_process_dead(environment[WORKER], environment[FOLDER])  # type: ignore[no-untyped-call]
    return code


async def _start(environment: Mapping[str, str]) -> Process:
    os.makedirs(environment[FOLDER], mode=0o700, exist_ok=True)  # noqa: PTH103 - as above; not slow in /tmp
    command = [sys.executable, sys.argv[0], "--worker"]
    return await asyncio.create_subprocess_exec(
        *command,
        stdin=PIPE,
        env=environment,
        start_new_session=True,  # Ctrl-C is for the supervisor
    )
