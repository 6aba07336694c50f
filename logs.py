"""What the process says on standard error: for people on a terminal, JSON, a line each, for anything else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
from datetime import UTC, datetime
from select import PIPE_BUF
from typing import Final

import orjson

TEXT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
OF_EVERY_RECORD: Final = logging.makeLogRecord({}).__dict__.keys() | {"message", "asctime", "taskName"}
"""What is no `extra`."""


class JSONFormatter(logging.Formatter):
    """Makes a line of JSON of the time, level, logger and message, whatever `extra` the record has, and its traceback.

    As the packages for this do, in a fifth of the time: with a line a request it was a sixth of the CPU.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        line = {
            "timestamp": datetime.fromtimestamp(record.created, UTC),
            "levelname": record.levelname,
            "name": record.name,
            "message": record.getMessage(),
        }
        line |= {name: value for name, value in record.__dict__.items() if name not in OF_EVERY_RECORD}
        if record.exc_info:
            line["exc_info"] = self.formatException(record.exc_info)
        try:
            return orjson.dumps(line, default=str).decode()
        except TypeError:  # a lone surrogate, in the message of an exception
            return json.dumps(line, default=str)


class TurnHandler(logging.Handler):
    """Writes what is logged in one turn of the event loop at its end, together; without a loop at once."""

    def __init__(self) -> None:
        super().__init__()
        self._file = sys.stderr.fileno()
        self._lines: list[bytes] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the line until the end of the turn."""
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - as every handler does
            self.handleError(record)
            return
        self._lines.append(f"{line}\n".encode("utf-8", "backslashreplace"))
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
            return
        if len(self._lines) == 1:
            loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what is waiting, in pieces that a pipe takes whole, as other workers write to it, too (pipe(7))."""
        with self.lock or contextlib.nullcontext():
            lines, self._lines = self._lines, []
        waiting = b""
        with contextlib.suppress(OSError):  # of which no line could tell
            for line in lines:
                if len(waiting) + len(line) > PIPE_BUF:
                    os.write(self._file, waiting)
                    waiting = b""
                waiting += line
            os.write(self._file, waiting)


def configure_logging(level: str) -> None:
    """Log what is of this level or above."""
    handler = TurnHandler()
    handler.setFormatter(logging.Formatter(TEXT) if sys.stderr.isatty() else JSONFormatter())
    logging.basicConfig(level=level, handlers=[handler])
    logging.getLogger("pymongo").setLevel(logging.WARNING)
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # of malformed requests it logs what they hold
    # Where in the code it was, and in which thread and process, is in no line (Logging HOWTO, "Optimization").
    logging._srcfile = None  # noqa: SLF001 - the documented name
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
