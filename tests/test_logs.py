"""The logs: what is in them, what is not, and how they are written."""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from select import PIPE_BUF
from typing import Any

import pytest
from bson import ObjectId

from api.middleware import log_line
from ops.logs import QUEUE_LIMIT, TEXT, JSONFormatter, LineHandler, TextFormatter, configure_logging
from settings import Settings
from tests.client import DB, USER, Client, assert_length, settled
from tests.faults import scripted
from tests.processes import running_service
from tests.servers import MailServer
from tests.waiting import eventually_async, slow_clock


async def test_logs_trace_an_email_to_its_request_without_an_address(
    client: Client, database: DB, mail: MailServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    mail.script = scripted({"RCPT": ["550 5.1.1 <secret@example.com> no"]})
    database.users.insert_one({"_id": ObjectId(USER), "email": "secret@example.com"})
    headers = {"X-Request-ID": "trace-me"}
    body = {"user_id": USER, "key": "registration", "data": {"password": "hunter2"}}
    await client.post("/create", json=body, headers=headers)
    await settled(database)

    def traced() -> None:
        ours = [record for record in caplog.records if getattr(record, "request_id", "") == "trace-me"]
        assert {record.name for record in ours} == {"notifier.http", "notifier.delivery"}

    await eventually_async(traced)
    text = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("notifier"))
    assert not re.search(r"@|hunter2|correct horse", text)


async def test_malformed_requests_and_hang_ups_are_not_logged(settings: Settings, tmp_path: Path) -> None:
    service = await running_service(settings, tmp_path)
    for request in (
        b"GET /list HTTP/1.1\r\nAuthorization : Bearer hunter2\r\n\r\n",
        b"GET /list?user_id=hunter2 HTTP/9.9\r\n\r\n",
        b"POST /create HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
    ):
        _, writer = await asyncio.open_connection("127.0.0.1", service.port)
        writer.write(request)
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.close()
        await writer.wait_closed()
    await asyncio.sleep(0.3)
    service.kill()
    assert "hunter2" not in service.log()
    assert "unexpected" not in service.log()


@pytest.fixture
def own_logging(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], list[Any]]]:
    """Configure logging as the service does; return a function that returns the lines written since its last call."""
    for name in ("_srcfile", "logThreads", "logProcesses", "logMultiprocessing"):
        monkeypatch.setattr(logging, name, getattr(logging, name))  # undone at the end of the test
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    configure_logging("INFO")
    yield lambda: [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    logging.captureWarnings(capture=False)


async def test_logs_are_json_unless_they_go_to_a_terminal(own_logging: Callable[[], list[Any]]) -> None:
    log = logging.getLogger("notifier")
    log.info("%s", "a\nb", extra={"request_id": "x"})
    log.info("second")
    lines: list[Any] = []

    def both_written() -> None:
        lines.extend(own_logging())
        assert_length(lines, 2)

    await eventually_async(both_written)
    first, second = lines
    assert (first["message"], first["levelname"], first["request_id"]) == ("a\nb", "INFO", "x")
    assert datetime.now(UTC) - datetime.fromisoformat(first["timestamp"]) < timedelta(minutes=1)
    assert second["message"] == "second"


def test_log_text_cannot_control_the_terminal() -> None:
    said = {"msg": "key %s", "args": ("a\x1b[2J\nb",), "levelname": "INFO", "name": "notifier"}
    assert TextFormatter(TEXT).format(logging.makeLogRecord(said)).endswith(" INFO notifier: key a?[2J?b")


def test_warnings_of_libraries_are_lines_of_the_log(own_logging: Callable[[], list[Any]]) -> None:
    with warnings.catch_warnings(action="default"):
        warnings.warn("You appear to be connected to another database.", stacklevel=1)
    logging.getLogger().handlers[0].close()
    (line,) = own_logging()
    assert line["levelname"] == "WARNING"
    assert "You appear to be connected to another database." in line["message"]


def test_closing_writes_the_waiting_lines(own_logging: Callable[[], list[Any]]) -> None:
    logging.getLogger("notifier").warning("now")
    logging.getLogger().handlers[0].close()
    assert [line["message"] for line in own_logging()] == ["now"]


def without_pytest(monkeypatch: pytest.MonkeyPatch) -> logging.Handler:
    """Leave only the handler that the service has, and return it."""
    handler = logging.getLogger().handlers[0]
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    return handler


@pytest.mark.usefixtures("own_logging")
@pytest.mark.parametrize("formatter", [JSONFormatter(), logging.Formatter(TEXT)])
def test_the_line_of_a_request_is_the_one_of_the_logger(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    formatter: logging.Formatter,
) -> None:
    handler = without_pytest(monkeypatch)
    handler.setFormatter(formatter)
    rows: list[dict[str, Any]] = [
        {"method": "GET", "route": "/list", "status": 200, "seconds": 0.00123, "request_id": "0" * 32},
        {"method": "-", "route": '/é"\\%s\t', "status": 500, "seconds": 1e-7, "request_id": "a_B.-"},
        {"method": "\ud800", "route": None, "status": 2**70, "seconds": 1e22, "ids": {1}},
    ]
    for row in rows:
        message = f"{row['method']} {row['route']} {row['status']} {row['seconds'] * 1e3:.1f} ms"
        log_line(logging.INFO, message, row)
        logging.getLogger("notifier.http").info("%s", message, extra=row)
    handler.close()
    timestamp = r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d[.,]\d{3,6}"
    lines = re.sub(timestamp, "NOW", capfd.readouterr().err).splitlines()
    assert [line.count("NOW") for line in lines] == [1] * 2 * len(rows)
    assert lines[::2] == lines[1::2]


@pytest.mark.usefixtures("own_logging")
def test_the_line_of_a_request_needs_no_record_but_the_level(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    handler = without_pytest(monkeypatch)
    monkeypatch.setattr(logging, "_logRecordFactory", None)
    log = logging.getLogger("notifier.http")
    log_line(logging.INFO, "1", {"status": 1})
    log_line(logging.DEBUG, "2", {})
    log.setLevel(logging.WARNING)
    log_line(logging.INFO, "3", {})
    log.setLevel(logging.NOTSET)
    handler.close()
    assert [json.loads(line)["message"] for line in capfd.readouterr().err.splitlines()] == ["1"]


@pytest.mark.usefixtures("own_logging")
def test_logs_are_written_in_pieces_that_a_pipe_accepts_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pieces: list[bytes] = []
    all_wait = threading.Event()

    def write(_: int, piece: bytes) -> None:
        all_wait.wait()
        pieces.append(piece)
        raise BrokenPipeError

    monkeypatch.setattr(os, "write", write)
    for _ in range(2):
        for _ in range(100):
            logging.getLogger("notifier").info("x" * 100)
        logging.getLogger("notifier").info("x" * PIPE_BUF)
    all_wait.set()
    logging.getLogger().handlers[0].close()
    monkeypatch.undo()
    assert sum(piece.count(b"\n") for piece in pieces) == 202  # the failures are not logged
    assert len(pieces) < 20  # few calls
    assert all(len(piece) <= PIPE_BUF or piece.count(b"\n") == 1 for piece in pieces)
    assert all(piece.endswith(b"}\n") for piece in pieces)


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Log into a pipe of 4 KiB; give the end that is to be read."""
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, PIPE_BUF)
    with os.fdopen(write_end, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        handler = LineHandler()
        monkeypatch.undo()
        handler.setFormatter(JSONFormatter())
        log = logging.getLogger("piped")
        log.propagate = False
        log.addHandler(handler)
        yield read_end
        log.removeHandler(handler)
        os.close(read_end)
        handler.close()


async def test_lines_that_nobody_reads_are_dropped_and_counted(pipe: int) -> None:
    log = logging.getLogger("piped")
    for n in range(2 * QUEUE_LIMIT):  # a log that waits would wait for ever
        log.warning("%d %s", n, "x" * 100)
    lines: list[Any] = []
    with os.fdopen(os.dup(pipe), "rb") as reader:
        while len(lines) < QUEUE_LIMIT:
            lines.append(json.loads(await asyncio.to_thread(reader.readline)))
        log.warning("last")
        while lines[-1]["message"] != "last":
            lines.append(json.loads(await asyncio.to_thread(reader.readline)))
    *written, dropped, _ = [line["message"] for line in lines]
    number = int(dropped.removesuffix(" log lines were dropped, as nothing read them"))
    assert number > 0
    assert len(written) + number == 2 * QUEUE_LIMIT
    assert [int(message.split()[0]) for message in written] == sorted(int(message.split()[0]) for message in written)


def test_closing_does_not_wait_for_a_reader_for_ever(pipe: int) -> None:
    for _ in range(2 * QUEUE_LIMIT):
        logging.getLogger("piped").warning("x" * 100)
    with slow_clock() as elapsed:
        logging.getLogger("piped").handlers[0].close()
        assert elapsed() < 2
    assert pipe


@pytest.mark.parametrize("message", ["a\nb", "no \ud800 Unicode"])
def test_logs_contain_any_traceback(message: str) -> None:
    exc = ValueError(message)
    record = logging.makeLogRecord({"msg": "failed", "exc_info": (ValueError, exc, None), "ids": {1, 2}})
    line = json.loads(JSONFormatter().format(record))
    assert (line["message"], line["exc_info"]) == ("failed", f"ValueError: {message}")
