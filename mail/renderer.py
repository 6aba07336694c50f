"""The service's end of the process that renders templates (`mail/rendering.py`): starts it, asks it, replaces it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from typing import Any, Final

import orjson

ANSWER_LIMIT: Final = 4 * 1024 * 1024
"""Bytes of an answer. Three parts of 256 KiB, written as JSON, have less."""
PATIENCE: Final = 60.0
"""Seconds to wait for an answer. The process ends itself after 2 s of CPU time, unless somebody stops it."""
INHERITED: Final = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME", "PYTHONTZPATH", "PYTHONDONTWRITEBYTECODE")
"""The variables that Python itself may need. The others have secrets."""
ENDS: Final = {-signal.SIGPROF: "rendering took more than 2 s", 3: "rendering needed more than 64 MB"}


class RenderingEnded(Exception):
    """Rendering an e-mail ended the process that renders. The message says why."""


class Renderer:
    """The process, which runs from the first question on. `setup` is told to it first."""

    def __init__(self, setup: object) -> None:
        self._setup = orjson.dumps(setup) + b"\n"
        self._process: Process | None = None
        self._asked = 0
        self._starting = asyncio.Lock()
        self._turn = asyncio.Lock()

    async def ask(self, question: object) -> Any:
        """Return the answer. Questions may be asked at the same time, and are answered in order.

        Raises `RenderingEnded` if the process ended over this one. A new process is then asked the next, and those
        that the old one had not come to. Raises `OSError` if it cannot be started.
        """
        self._asked = number = self._asked + 1
        line = orjson.dumps([number, question], default=str) + b"\n"
        while True:
            process = await self._running()
            process.stdin.write(line)  # type: ignore[union-attr] # it is a pipe
            # Nothing is awaited in between, so the turns come in the order of the questions.
            async with self._turn:
                while process is self._process:
                    answered, answer = await self._answer(process)
                    if answered == number:  # another was given up
                        return answer

    async def close(self) -> None:
        """End the process."""
        if process := self._process:
            await self._end(process, kill=True)

    async def _running(self) -> Process:
        async with self._starting:
            if self._process is None or self._process.returncode is not None:
                self._process = await self._start()
            return self._process

    async def _start(self) -> Process:
        environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
        process = await asyncio.create_subprocess_exec(
            # Neither the working directory (-P) nor a hook in site-packages (-S) decides what is imported.
            *(sys.executable, "-P", "-S", "-m", "mail.rendering"),
            stdin=PIPE,
            stdout=PIPE,
            limit=ANSWER_LIMIT,
            env=environment | {"PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)},
            start_new_session=True,  # Ctrl-C is for the service, which still sends what it has begun
        )
        process.stdin.write(self._setup)  # type: ignore[union-attr]
        try:
            if await self._read(process):
                return process
        except asyncio.CancelledError:
            await self._end(process, kill=True)
            raise
        raise OSError(f"the process that renders templates does not start ({await self._end(process)})")

    async def _answer(self, process: Process) -> tuple[int, Any]:
        """Return the next answer, and the number of its question: 0 if the process ended, but not over a question."""
        if line := await self._read(process):
            number, answer = orjson.loads(line)
            return number, answer
        if code := await self._end(process):
            raise RenderingEnded(ENDS.get(code, f"rendering ended its process ({code})"))
        return 0, None

    async def _read(self, process: Process) -> bytes:
        """Return the next line; nothing if no other comes, or none that ends."""
        try:
            async with asyncio.timeout(PATIENCE):
                line = await process.stdout.readline()  # type: ignore[union-attr]
        except (TimeoutError, ValueError):
            process.kill()
            return b""
        return line if line.endswith(b"\n") else b""

    async def _end(self, process: Process, *, kill: bool = False) -> int:
        """Wait for the end of a process that answers no more; return its exit code."""
        self._process = None
        process.stdin.close()  # type: ignore[union-attr]
        # To kill one that has ended is to take its exit code away from asyncio.
        with suppress(ProcessLookupError):
            if kill:
                process.kill()
        return await process.wait()
