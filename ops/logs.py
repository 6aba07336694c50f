"""Logs on standard error: text on a terminal, otherwise one JSON object a line."""

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
"""Attributes that are not `extra`."""


class JSONFormatter(logging.Formatter):
    """Formats a record as JSON: time, level, logger, message, its `extra` and its traceback.

    Packages do the same in five times the time, which was a sixth of the CPU with one line a request.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without a newline."""
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
        except TypeError:  # a lone surrogate in an exception's message
            return json.dumps(line, default=str)


class TurnHandler(logging.Handler):
    """Writes the lines of one turn of the event loop together, at its end. Without a loop it writes at once."""

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
        """Write the lines in pieces that a pipe accepts whole, as other workers write to it too (pipe(7))."""
        with self.lock or contextlib.nullcontext():
            lines, self._lines = self._lines, []
        waiting = b""
        with contextlib.suppress(OSError):  # no log line could report it
            for line in lines:
                if len(waiting) + len(line) > PIPE_BUF:
                    os.write(self._file, waiting)
                    waiting = b""
                waiting += line
            os.write(self._file, waiting)


def configure_logging(level: str) -> None:
    """Log records of this level and above."""
    handler = TurnHandler()
    handler.setFormatter(logging.Formatter(TEXT) if sys.stderr.isatty() else JSONFormatter())
    logging.basicConfig(level=level, handlers=[handler])
    logging.getLogger("pymongo").setLevel(logging.WARNING)
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # it logs the contents of malformed requests
    # No line shows the place in the code, the thread or the process (Logging HOWTO, "Optimization").
    logging._srcfile = None  # noqa: SLF001 - the documented name
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
