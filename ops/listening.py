"""The service's port: bound, listened on, and closed without losing a connection; and the workers that share it.

Workers are several processes of the service. They share only the port (SO_REUSEPORT, socket(7): the kernel distributes
the connections) and a directory for the metrics. Each drains when the supervisor's end of a pipe to it closes.
"""

import asyncio
import ctypes
import errno
import logging
import os
import signal
import socket
import struct
import sys
from asyncio.subprocess import PIPE
from collections.abc import Callable, Mapping
from contextlib import suppress
from tempfile import TemporaryDirectory
from typing import Final

from prometheus_client.multiprocess import mark_process_dead

from ops.local import banner
from ops.metrics import FOLDER, WORKER
from settings import Settings

log = logging.getLogger("notifier")

LISTEN_BACKLOG: Final = 4096  # connections that may wait to be accepted; a further client tries again after a second
ACCEPTED_AT_ONCE: Final = 16  # connections accepted, and errors of accept(2) met, in one turn of the event loop
HANDSHAKE: Final = 0.01  # seconds in which a handshake that has begun is completed
SO_ATTACH_FILTER: Final = 26  # socket(7), on all processors that Python's packages are built for
DROP_SYN: Final = (  # for the kernel's socket filter ("Linux Socket Filtering aka Berkeley Packet Filter")
    (0x30, 0, 0, 13),  # load the flags of the TCP segment
    (0x54, 0, 0, 0x12),  # of these SYN and ACK
    (0x15, 0, 1, 0x02),  # if there is only SYN,
    (0x06, 0, 0, 0),  # drop it;
    (0x06, 0, 0, 0xFFFFFFFF),  # else take all of it
)
WARNING_INTERVAL: Final = 3600.0  # seconds between two warnings of an open API
RESTART_PAUSE: Final = 2.0  # seconds before a worker that died is started again
STOP_TIMEOUT: Final = 9.0  # seconds for a worker to drain, which takes less; Docker waits for 10
STARTING_PERIOD: Final = 30.0  # seconds beyond `START_TIMEOUT` for which a worker counts as starting
Protocols = Callable[[], asyncio.BaseProtocol]  # makes the protocol of a connection


class CannotListen(Exception):
    """The port is taken and may be free later (`is_taken`), or the address is wrong. The message is a sentence."""

    def __init__(self, host: str, port: int, cause: OSError) -> None:
        self.is_taken = cause.errno == errno.EADDRINUSE
        if isinstance(cause, socket.gaierror):
            reason = f"{cause.strerror}"
        else:  # asyncio adds words of its own to the text of the error, and has no number if no address remains
            reason = os.strerror(cause.errno or errno.EADDRNOTAVAIL)
        super().__init__(f"The service cannot listen on HOST {host}, PORT {port}: {reason}.")


async def bind(protocols: Protocols, host: str, port: int, *, share: bool = False) -> asyncio.Server:
    """Reserve a port, which processes share if they all say so; `listen` comes later. Raises `CannotListen`."""
    loop = asyncio.get_running_loop()
    hosts = ["::", "0.0.0.0"] if host == "::" else host  # noqa: S104 - asyncio's socket for :: refuses IPv4
    try:
        return await loop.create_server(
            protocols, hosts, port, backlog=ACCEPTED_AT_ONCE, reuse_port=share, start_serving=False
        )
    except OSError as exc:
        raise CannotListen(host, port, exc) from exc


async def listen(server: asyncio.Server, host: str, port: int) -> None:
    """Listen on the port that is bound. Raises `CannotListen` if another process was quicker."""
    try:
        await server.start_serving()
        for listener in server.sockets:
            with listener.dup() as own:
                own.listen(LISTEN_BACKLOG)  # in place of asyncio's, which is `ACCEPTED_AT_ONCE`
    except OSError as exc:
        raise CannotListen(host, port, exc) from exc


async def warn_if_open(settings: Settings) -> None:
    while settings.openness:
        log.warning("%s", settings.openness)
        await asyncio.sleep(WARNING_INTERVAL)


def announce(settings: Settings) -> None:
    if settings.local:
        print(banner(settings), flush=True)  # noqa: T201 - for the newcomer
    else:
        log.info("listening on %s port %d", settings.host, settings.port)


def admit_no_more(listener: socket.socket) -> None:
    """Let Linux drop every request for a further connection. Its client repeats it after a second."""
    if sys.platform == "linux":
        program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *statement) for statement in DROP_SYN))
        with suppress(OSError):
            filter_ = struct.pack("HP", len(DROP_SYN), ctypes.addressof(program))
            listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, filter_)


async def cease(server: asyncio.Server, protocols: Protocols) -> None:
    """Stop listening. As closing the socket resets connections, those that wait are accepted, and no more come."""
    loop, waiting = asyncio.get_running_loop(), []
    listeners = [own.dup() for own in server.sockets]  # asyncio's own sockets do not let others accept
    for listener in listeners:
        admit_no_more(listener)
    await asyncio.sleep(HANDSHAKE)
    server.close()
    for listener in listeners:
        with listener, suppress(OSError):  # until none is left
            while True:
                waiting.append(listener.accept()[0])
    for connection in waiting:
        with suppress(OSError):  # it was reset meanwhile
            await loop.connect_accepted_socket(protocols, connection)


# --- workers ------------------------------------------------------------------------------------------


async def supervise(settings: Settings) -> int:
    """Keep `settings.workers` processes running until SIGTERM or SIGINT; return the code. Raises `CannotListen`."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    (await bind(asyncio.Protocol, settings.host, settings.port)).close()  # else they would share it
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    with TemporaryDirectory(prefix="notifier-metrics-", ignore_cleanup_errors=True) as folder:
        environments = [{**os.environ, FOLDER: folder, WORKER: f"{number}"} for number in range(settings.workers)]
        started = loop.time() + settings.start_timeout + STARTING_PERIOD
        return max(await asyncio.gather(*(_tend(environment, stop, started) for environment in environments)))


async def _tend(environment: Mapping[str, str], stop: asyncio.Event, started: float) -> int:
    """Keep one worker running; return 0 once stopped, or the code of one that failed before the time `started`."""
    stopped = asyncio.create_task(stop.wait())
    while not stop.is_set():
        try:
            code = await _run_worker(environment, stopped)
        except OSError as exc:  # for lack of memory, say
            log.error("a worker cannot be started: %s", exc.strerror)  # noqa: TRY400 - the reason is enough
            code = 1
        if stop.is_set():
            break
        if code > 0 and asyncio.get_running_loop().time() < started:  # the worker has said why
            stop.set()
            return code
        log.error("a worker ended with exit code %d; it is started again in %.0f s", code, RESTART_PAUSE)
        await asyncio.wait({stopped}, timeout=RESTART_PAUSE)
        started = 0.0  # what one start has done, the next may fail to do for a while
    return 0


async def _run_worker(environment: Mapping[str, str], stopped: asyncio.Task[bool]) -> int:
    """Run a worker until it ends, or is told to; return its exit code. Ctrl-C is for the supervisor alone."""
    os.makedirs(environment[FOLDER], mode=0o700, exist_ok=True)  # noqa: PTH103 - somebody may have cleaned /tmp
    command = [sys.executable, sys.argv[0], "--worker"]
    worker = await asyncio.create_subprocess_exec(*command, stdin=PIPE, env=environment, start_new_session=True)
    ended = asyncio.create_task(worker.wait())
    await asyncio.wait({ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
    if worker.returncode is None:
        worker.terminate()
        await asyncio.wait({ended}, timeout=STOP_TIMEOUT)
    if worker.returncode is None:
        worker.kill()
    code = await ended
    mark_process_dead(environment[WORKER], environment[FOLDER])  # type: ignore[no-untyped-call]
    return code
