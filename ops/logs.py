"""Logs on standard error: text on a terminal, otherwise one JSON object a line."""

import json
import logging
import math
import os
import queue
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from select import PIPE_BUF
from typing import Final

import orjson

TEXT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
OF_EVERY_RECORD: Final = logging.makeLogRecord({}).__dict__.keys() | {"message", "asctime", "taskName"}  # not `extra`
THROTTLE_INTERVAL: Final = 60.0  # seconds for which a reason is not let through again
QUEUE_LIMIT: Final = 5000  # lines that wait to be written
GATHERING: Final = 0.005  # seconds for which lines gather, as each wake of the thread costs the event loop a switch
END: Final = b""  # ends the writer of lines
CLOSE_TIMEOUT: Final = 0.5  # seconds given to the reader for the last lines when the process ends
DROPPED: Final = "%d log lines were dropped, as nothing read them"


class JSONFormatter(logging.Formatter):
    """Formats a record as JSON, with its `extra` and its traceback, in a fifth of the time that packages take."""

    def format(self, record: logging.LogRecord) -> str:
        extra = {name: value for name, value in record.__dict__.items() if name not in OF_EVERY_RECORD}
        if record.exc_info:
            extra["exc_info"] = self.formatException(record.exc_info)
        return json_line(record.created, record.levelname, record.name, record.getMessage(), extra).decode()


class TextFormatter(logging.Formatter):
    """Formats a record for a terminal, which no character of the message can control."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's
        record.message = printable(record.message)
        return super().formatMessage(record)


def printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def json_line(created: float, level: str, name: str, message: str, extra: Mapping[str, object]) -> bytes:
    timestamp = datetime.fromtimestamp(created, UTC)
    line = {"timestamp": timestamp, "levelname": level, "name": name, "message": message, **extra}
    try:
        return orjson.dumps(line, default=str)
    except TypeError:  # a lone surrogate in an exception's message
        return json.dumps(line, default=str).encode()


class Throttle:
    """Lets each reason through once an interval: a fault of every request must not fill the log."""

    def __init__(self) -> None:
        self._last: dict[str, float] = {}

    def allows(self, reason: str) -> bool:
        now = time.monotonic()
        if now - self._last.get(reason, -math.inf) < THROTTLE_INTERVAL:
            return False
        self._last = {known: at for known, at in self._last.items() if now - at < THROTTLE_INTERVAL} | {reason: now}
        return True


class LineHandler(logging.Handler):
    """Writes lines in a thread, so that a reader that stalls loses lines, which are counted, and delays no request."""

    def __init__(self) -> None:
        super().__init__()
        self._file = sys.stderr.fileno()
        self._dropped = 0
        self._lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="log writer", daemon=True)
        self._writer.start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - as every handler does
            self.handleError(record)
            return
        self.write(line.encode("utf-8", "backslashreplace"))

    def write(self, line: bytes) -> None:
        """Queue a line without its newline, or drop it if too many wait."""
        if self._lines.qsize() >= QUEUE_LIMIT:
            self._dropped += 1
            return
        if self._dropped:
            args, self._dropped = (self._dropped,), 0
            self.emit(logging.LogRecord("notifier", logging.WARNING, "", 0, DROPPED, args, None))
        self._lines.put(line + b"\n")

    def _write(self) -> None:
        """Write what waits in pieces that a pipe accepts whole, as other workers write too (pipe(7))."""
        piece = b""
        while (line := self._lines.get()) != END:
            if len(piece) + len(line) > PIPE_BUF:
                self._write_piece(piece)
                piece = b""
            piece += line
            if self._lines.empty():
                self._write_piece(piece)
                piece = b""
                time.sleep(GATHERING)
        self._write_piece(piece)

    def _write_piece(self, piece: bytes) -> None:
        with suppress(OSError):  # no log line could report it
            os.write(self._file, piece)

    def close(self) -> None:
        """Write the waiting lines, if they are read within `CLOSE_TIMEOUT`."""
        self._lines.put(END)
        self._writer.join(CLOSE_TIMEOUT)
        super().close()


def configure_logging(level: str) -> None:
    handler = LineHandler() if sys.stderr else logging.NullHandler()  # it may be closed
    handler.setFormatter(TextFormatter(TEXT) if sys.stderr and sys.stderr.isatty() else JSONFormatter())
    logging.basicConfig(level=level, handlers=[handler])
    logging.captureWarnings(capture=True)  # those of libraries are lines of the log, too
    logging.getLogger("pymongo").setLevel(logging.WARNING)
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # it logs the contents of malformed requests
    # No line shows the place in the code, the thread or the process (Logging HOWTO, "Optimization").
    logging._srcfile = None  # noqa: SLF001 - the documented name
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
