"""What those need who run the service: who may call, what it tells, and the commands."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from select import PIPE_BUF
from typing import Any

import jwt
import pytest
from aiohttp import ClientSession, TCPConnector
from bson import ObjectId
from pymongo.database import Database

from api.auth import sign_token
from mongo.outbox import Outbox
from ops.logs import JSONFormatter, configure_logging
from schemas import Create, Key
from settings import Settings
from store import open_store
from tests.client import (
    KEY,
    OLD_KEY,
    OTHER,
    PROTECTED,
    ROOT,
    SECRET,
    TARGET,
    USER,
    Client,
    create,
    list_,
    metric,
    problem,
    settled,
    token,
)
from tests.faults import failing, scripted
from tests.fixtures import Start
from tests.processes import Service, command, running_service
from tests.servers import MailServer, Mongod, free_port
from tests.waiting import eventually_async

DB = Database[dict[str, Any]]
NOW = int(time.time())
CREDENTIALS = {
    "none": None,
    "not bearer": f"Basic {KEY}",
    "empty": "Bearer ",
    "wrong key": "Bearer " + "x" * 32,
    "not ASCII": "Bearer \udcff\udcfe",
    "key": f"Bearer {KEY}",
    "old key": f"bearer {OLD_KEY}",
    "user's token": f"Bearer {token()}",
    "user's token in capitals": f"Bearer {token(sub=USER.upper())}",
    "other user's token": f"Bearer {token(sub=OTHER)}",
    "expired token": f"Bearer {token(exp=NOW - 60)}",
    "token without exp": f"Bearer {token(exp=None)}",
    "token without sub": f"Bearer {token(sub=None)}",
    "token with a sub that is no user": f"Bearer {token(sub='admin')}",
    "token of the future": f"Bearer {token(nbf=NOW + 600)}",
    "token signed by another": f"Bearer {token(secret='t' * 32)}",
    "alg none": f"Bearer {token(secret='', algorithm='none')}",
    "alg HS512": f"Bearer {token(secret=SECRET * 2, algorithm='HS512')}",
}
BACKEND = {"key", "old key"}
OPEN = ["GET /healthz", "GET /readyz", "GET /openapi.json", "GET /docs"]
ROUTES = ["POST /create", "GET /list", "POST /read", "GET /metrics", *OPEN]
FORBIDDEN = {"other user's token"}
OWN = {"user's token", "user's token in capitals"}


@pytest.mark.filterwarnings("ignore:The HMAC key")
@pytest.mark.parametrize("name", CREDENTIALS)
@pytest.mark.parametrize(
    "route", ["POST /create", "GET /list", "POST /read", "GET /metrics", "GET /healthz", "GET /readyz"]
)
async def test_who_may_call_what(start: Start, route: str, name: str) -> None:
    client = await start(**PROTECTED)
    body = {"user_id": USER, "key": "new_message"}
    headers = {"Authorization": value} if (value := CREDENTIALS[name]) is not None else {}
    method, path = route.split()
    if path in {"/list", "/read"}:
        path += f"?user_id={USER}&all=true"
    response = await client.request(method, path, headers=headers, json=body if path == "/create" else None)
    if route in OPEN or name in BACKEND or (name in OWN and "user_id" in path):
        assert response.status in {200, 201}
    elif name in OWN | FORBIDDEN:
        assert response.status == 403
        await problem(response)
    else:
        assert (response.status, response.headers["WWW-Authenticate"][:6]) == (401, "Bearer")
        assert KEY not in str(await problem(response))


async def test_who_may_not_call_is_told_before_what_is_wrong_with_the_request(start: Start) -> None:
    client = await start(**PROTECTED)
    assert (await client.post("/create", data=b"nonsense")).status == 401
    assert (await client.get("/list")).status == 401
    two = [("Authorization", f"Bearer {KEY}"), ("Authorization", f"Bearer {KEY}")]
    assert (await client.get(f"/list?user_id={USER}", headers=two)).status == 401


async def test_pages_of_other_origins_may_list_and_read(start: Start) -> None:
    client = await start(**PROTECTED, cors_origins=("https://app.example.com",))
    asked = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
    for origin, allowed in (("https://app.example.com", "https://app.example.com"), ("https://evil.example", None)):
        response = await client.options("/list", headers={"Origin": origin, **asked})
        assert response.headers.get("Access-Control-Allow-Origin") == allowed
        response = await client.get(f"/list?user_id={USER}", headers={"Origin": origin})
        assert response.status == 401
        assert response.headers.get("Access-Control-Allow-Origin") == allowed
        assert response.headers["Vary"] == "Origin"
    response = await client.options("/create", headers={"Origin": "https://app.example.com", **asked})
    assert response.status == 405


# --- read more than one, list less ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "left"),
    [
        ({"target_id": TARGET.upper()}, {1, 3}),
        ({"key": "new_post"}, {0, 1}),
        ({"all": "true"}, set()),
        ({"target_id": "f" * 24}, {0, 1, 2, 3}),
        ({"key": "registration"}, {0, 1, 2, 3}),
    ],
)
async def test_read_marks_those_that_are_meant(client: Client, query: dict[str, str], left: set[int]) -> None:
    for n, (key, target_id) in enumerate(
        [("new_message", TARGET), ("new_message", None), ("new_post", TARGET), ("new_post", OTHER)]
    ):
        await create(client, USER, key, target_id=target_id, data={"n": n})
        await create(client, OTHER, key, target_id=target_id)
    left = {0, 1} if query == {"key": "new_post"} else left
    for _ in range(2):
        response = await client.post("/read", params={"user_id": USER, **query})
        assert (response.status, await response.json()) == (200, {"success": True})
    unread = await list_(client, USER, is_new="true")
    assert {item["data"]["n"] for item in unread["list"]} == left
    assert (unread["elements"], unread["new"], unread["request"]["is_new"]) == (4, len(left), True)
    read = await list_(client, USER, is_new="false", limit=1)
    assert len(read["list"]) == (len(left) < 4)
    assert (await list_(client, OTHER))["new"] == 4


async def test_read_of_a_user_without_a_document_is_200_unless_it_names_a_notification(client: Client) -> None:
    assert (await client.post(f"/read?user_id={USER}&all=true")).status == 200
    assert (await client.post(f"/read?user_id={USER}&notification_id=x")).status == 404


@pytest.mark.parametrize(
    ("query", "errors"),
    [
        ("", {"notification_id"}),
        ("&notification_id=x&all=true", {"notification_id", "all"}),
        ("&target_id=x&key=y", {"target_id", "key"}),
        ("&all=false", {"all"}),
        ("&all=1", {"all"}),
        ("&key=new_post&key=new_post", {"key"}),
        ("&target_id=", {"target_id"}),
    ],
)
async def test_read_wants_exactly_one_way_to_say_which(client: Client, query: str, errors: set[str]) -> None:
    response = await client.post(f"/read?user_id={USER}{query}")
    assert response.status == 422
    assert (await problem(response))["errors"].keys() == errors


async def test_a_poller_gets_304_until_something_changes(client: Client) -> None:
    await create(client)
    url = f"/list?user_id={USER}"
    first = await client.get(url)
    same = await client.get(url, headers={"If-None-Match": f'"x", {first.headers["ETag"]}'})
    assert (same.status, await same.read(), same.headers["ETag"]) == (304, b"", first.headers["ETag"])
    await client.post(f"/read?user_id={USER}&all=true")
    changed = await client.get(url, headers={"If-None-Match": first.headers["ETag"]})
    assert changed.status == 200
    assert changed.headers["ETag"] != first.headers["ETag"]


# --- what it tells -----------------------------------------------------------------------------------


async def test_it_is_alive_and_unready_while_mongodb_is_away_and_a_dead_mail_server_changes_nothing(
    start: Start, mongod: Mongod
) -> None:
    client = await start(smtp_port=free_port())
    await create(client, key="new_login")
    assert (await client.get("/readyz")).status == 200
    with failing(mongod, ["ping"], errorCode=91):
        assert (await client.get("/healthz")).status == 200
        response = await client.get("/readyz")
        assert response.status == 503
        await problem(response)


async def test_metrics_count_requests_and_e_mails_and_name_nobody(
    client: Client, database: DB, mail: MailServer
) -> None:
    mail.script = scripted({"RCPT": ["451 later", "550 5.1.1 no"]})
    await create(client, USER, "registration")
    await create(client, OTHER, "registration")
    await settled(database)
    await client.get("/nothing/" + USER)
    await client.request("BREW", "/list")
    assert await metric(client, 'notifier_emails_total{outcome="sent",reason="sent"}') == 1
    assert await metric(client, 'notifier_emails_total{outcome="retried",reason="transient"}') == 1
    assert await metric(client, 'notifier_emails_total{outcome="dead",reason="permanent"}') == 1
    created = 'notifier_http_request_duration_seconds_count{method="POST",route="/create",status="201"}'
    assert await metric(client, created) == 2
    assert await metric(client, "notifier_email_delivery_seconds_count") == 1
    assert await metric(client, "notifier_smtp_breaker_open") == 0
    text = await (await client.get("/metrics")).text()
    assert "BREW" not in text
    assert USER not in text
    assert "@" not in text


async def test_metrics_tell_what_is_owed(start: Start, mongod: Mongod) -> None:
    client = await start(smtp_port=free_port())
    assert await metric(client, "notifier_emails_owed") == 0
    for _ in range(3):
        await create(client, key="registration")
    await asyncio.sleep(1.1)
    assert await metric(client, "notifier_emails_owed") == 3
    assert await metric(client, "notifier_oldest_email_owed_seconds") >= 1
    assert await metric(client, "notifier_smtp_breaker_open") == 1
    with failing(mongod, ["aggregate"], errorCode=91):
        text = await (await client.get("/metrics")).text()
    assert "notifier_emails_owed NaN" in text


@pytest.mark.parametrize(("given", "kept"), [("trace-1.a_B", True), ("x" * 65, False), ("a b", False), ("", False)])
async def test_a_request_id_is_answered_and_kept_with_the_e_mail(
    start: Start, database: DB, given: str, kept: bool
) -> None:
    client = await start(smtp_port=free_port())
    body = {"user_id": USER, "key": "registration"}
    response = await client.post("/create", json=body, headers={"X-Request-ID": given} if given else {})
    answered = response.headers["X-Request-ID"]
    assert (answered == given) == kept
    (owed,) = (database.users.find_one() or {})["outbox"]
    assert owed["request_id"] == answered


async def test_logs_trace_an_e_mail_to_its_request_and_hold_no_address(
    client: Client, database: DB, mail: MailServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    mail.script = scripted({"RCPT": ["550 5.1.1 <secret@example.com> no"]})
    database.users.insert_one({"_id": ObjectId(USER), "email": "secret@example.com"})
    headers = {"X-Request-ID": "trace-me"}
    body = {"user_id": USER, "key": "registration", "data": {"password": "hunter2"}}
    await client.post("/create", json=body, headers=headers)
    await settled(database)

    async def traced() -> None:
        ours = [record for record in caplog.records if getattr(record, "request_id", "") == "trace-me"]
        assert {record.name for record in ours} == {"notifier.http", "notifier.delivery"}

    await eventually_async(traced)
    text = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("notifier"))
    assert not re.search(r"@|hunter2|correct horse", text)


@pytest.fixture
def own_logging(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[Any]]:
    """Configure logging as the service does; give what returns the lines that were written since."""
    for name in ("_srcfile", "logThreads", "logProcesses", "logMultiprocessing"):
        monkeypatch.setattr(logging, name, getattr(logging, name))  # to be undone
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    configure_logging("INFO")
    return lambda: [json.loads(line) for line in capfd.readouterr().err.splitlines()]


async def test_logs_are_json_where_nobody_watches(own_logging: Callable[[], list[Any]]) -> None:
    log = logging.getLogger("notifier")
    log.info("%s", "a\nb", extra={"request_id": "x"})
    log.info("second")
    assert own_logging() == []  # one turn of the event loop writes its lines together
    await asyncio.sleep(0)
    first, second = own_logging()
    assert (first["message"], first["levelname"], first["request_id"]) == ("a\nb", "INFO", "x")
    assert datetime.now(UTC) - datetime.fromisoformat(first["timestamp"]) < timedelta(minutes=1)
    assert second["message"] == "second"


def test_logs_are_written_at_once_where_no_event_loop_runs(own_logging: Callable[[], list[Any]]) -> None:
    logging.getLogger("notifier").warning("now")
    assert [line["message"] for line in own_logging()] == ["now"]


@pytest.mark.usefixtures("own_logging")
async def test_logs_leave_in_pieces_that_a_pipe_takes_whole_and_need_no_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces: list[bytes] = []

    def write(_: int, piece: bytes) -> None:
        pieces.append(piece)
        raise BrokenPipeError

    monkeypatch.setattr(os, "write", write)
    for _ in range(2):
        for _ in range(100):
            logging.getLogger("notifier").info("x" * 100)
        logging.getLogger("notifier").info("x" * PIPE_BUF)
        await asyncio.sleep(0)
    monkeypatch.undo()
    assert len(pieces) == 2  # once a turn, as the rest is given up; and not again for telling of it
    assert max(map(len, pieces)) <= PIPE_BUF
    assert all(piece.endswith(b"}\n") for piece in pieces)


@pytest.mark.parametrize("message", ["a\nb", "no \ud800 Unicode"])
def test_logs_hold_tracebacks_whatever_is_in_them(message: str) -> None:
    exc = ValueError(message)
    record = logging.makeLogRecord({"msg": "failed", "exc_info": (ValueError, exc, None), "ids": {1, 2}})
    line = json.loads(JSONFormatter().format(record))
    assert (line["message"], line["exc_info"]) == ("failed", f"ValueError: {message}")


async def test_sigterm_makes_it_unready_first_and_ends_it_within_8_seconds(settings: Settings, tmp_path: Path) -> None:
    service = await running_service(settings, tmp_path, API_KEYS=KEY)
    started = time.monotonic()
    service.signal(signal.SIGTERM)
    await asyncio.sleep(0.3)
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 503")
    writer.close()
    assert await asyncio.to_thread(service.process.wait, 10) == 0
    assert time.monotonic() - started < 8


# --- several processes on one port ---------------------------------------------------------------------


def children(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            if int(path.read_text().rsplit(")", 1)[1].split()[1]) == pid:
                found.append(int(path.parent.name))
    return found


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


async def fetch(service: Service, path: str) -> str:
    async with (
        ClientSession(connector=TCPConnector(force_close=True)) as session,
        session.get(f"http://127.0.0.1:{service.port}{path}") as response,
    ):
        response.raise_for_status()
        return await response.text()


async def counted(service: Service) -> int:
    found = re.search(
        r"^notifier_http_request_duration_seconds_count{.*/list.*} (\d+)",
        await fetch(service, "/metrics"),
        re.MULTILINE,
    )
    return int(found[1]) if found else 0


async def test_workers_share_the_port_and_their_metrics_and_one_that_dies_is_replaced(
    settings: Settings, tmp_path: Path
) -> None:
    service = await running_service(settings, tmp_path, WORKERS=3)

    async def three() -> None:
        assert len(children(service.process.pid)) == 3
        assert service.log().count("listening on") >= 3

    await eventually_async(three)
    await asyncio.gather(*(fetch(service, f"/list?user_id={USER}") for _ in range(60)))
    assert [await counted(service) for _ in range(5)] == [60] * 5
    before = children(service.process.pid)
    os.kill(before[0], signal.SIGKILL)

    async def replaced() -> None:
        now = children(service.process.pid)
        assert len(now) == 3
        assert before[0] not in now

    await eventually_async(replaced)
    assert await counted(service) == 60
    arguments = [sys.executable, str(ROOT / "notifier.py")]
    run = partial(subprocess.run, arguments, env=service.environment, cwd=tmp_path, capture_output=True, text=True)
    second = await asyncio.to_thread(run)
    assert second.returncode == 1
    assert "cannot start" in second.stderr
    service.signal(signal.SIGTERM)
    assert await asyncio.to_thread(service.process.wait, 10) == 0
    assert not alive(before)


async def test_workers_end_with_their_supervisor(settings: Settings, tmp_path: Path) -> None:
    service = await running_service(settings, tmp_path, WORKERS=2)
    workers = children(service.process.pid)
    service.kill()

    async def gone() -> None:
        assert not alive(workers)

    await eventually_async(gone)


def test_workers_that_cannot_start_end_the_start_with_one_sentence_each(tmp_path: Path) -> None:
    service = Service(
        tmp_path, WORKERS=2, EMAIL="a@example.com", SMTP_HOST="x", DB_URI=f"mongodb://127.0.0.1:{free_port()}"
    )
    assert service.process.wait(30) == 1
    assert set(service.log().splitlines()) == {"MongoDB cannot be reached, or does not confirm a write: see DB_URI."}


# --- commands ----------------------------------------------------------------------------------------


async def test_a_retry_keeps_the_request_id(settings: Settings, database: DB) -> None:
    async with open_store(settings) as direct:
        await direct.create(Create(USER, Key.REGISTRATION), request_id="trace-me")
        outbox = Outbox(direct)
        (claimed,) = await outbox.claim(1, 60)
        await outbox.settle_dead(claimed, 1, "x")
        (letter,) = await outbox.dead_letters()
        assert await outbox.owe_again(letter)
    (owed,) = (database.users.find_one() or {})["outbox"]
    assert owed["request_id"] == "trace-me"


async def test_metrics_survive_a_document_that_another_program_broke(client: Client, database: DB) -> None:
    database.users.insert_many([{"mail_due": datetime.now(UTC) + timedelta(hours=1)}])
    assert (await client.get("/metrics")).status == 200
    database.users.delete_many({})


async def test_malformed_requests_and_hang_ups_leave_nothing_in_the_log(settings: Settings, tmp_path: Path) -> None:
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


async def test_the_mails_of_a_user_are_shown(start: Start, settings: Settings, database: DB, mail: MailServer) -> None:
    client = await start()
    assert (await command(settings, "mail", USER))[1] == "The user is owed no e-mail, and none died.\n"
    mail.script = scripted({"RCPT": ["550 5.1.1 no"]})
    await create(client, key="registration")
    await settled(database)
    await client.close()
    await create(await start(smtp_port=free_port()), key="new_login")
    await asyncio.sleep(0.3)
    code, out, _ = await command(settings, "mail", USER.upper())
    assert code == 0
    owed, dead = out.splitlines()
    assert re.search(r"new_login .* next attempt .* request \w{32}  connect: ", owed)
    assert re.search(r"registration .* died .* request \w{32}  RCPT: 550 5.1.1 no", dead)
    code, _, err = await command(settings, "mail", "nobody")
    assert (code, "24 hex digits" in err) == (2, True)


async def test_a_token_is_printed_for_trying(start: Start, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = await command(settings, "token", USER)
    assert (code, err) == (1, "USER_TOKEN_SECRET is not set.\n")
    client = await start(**PROTECTED)
    monkeypatch.setattr("test_faults.EXTRA", {"API_KEYS": KEY, "USER_TOKEN_SECRET": SECRET})
    code, out, _ = await command(settings, "token", USER, "--ttl", "60")
    assert code == 0
    response = await client.get(f"/list?user_id={USER}", headers={"Authorization": f"Bearer {out.strip()}"})
    assert response.status == 200
    assert jwt.decode(sign_token(SECRET, USER, 5), SECRET, ["HS256"])["sub"] == USER


# --- the clients of the README ------------------------------------------------------------------------


def example(language: str) -> str:
    clients = (ROOT / "README.md").read_text().split("### Clients")[1].split("\n## ")[0]
    found = re.search(rf"```{language}\n(.*?)```", clients, re.DOTALL)
    assert found
    return found[1]


async def run_example(client: Client, program: str, code: str) -> str:
    """Run an example of the README as it stands, but for the address."""
    process = await asyncio.create_subprocess_exec(
        *(*program.split(), code.replace("http://127.0.0.1:8080", str(client.make_url("")).rstrip("/"))),
        env={"PATH": os.environ["PATH"], "API_KEY": KEY, "USER_TOKEN_SECRET": SECRET},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    return out.decode()


@pytest.mark.skipif(not shutil.which("node"), reason="Node.js is not installed")
async def test_the_clients_of_the_readme_work(start: Start) -> None:
    client = await start(**PROTECTED)
    assert json.loads(await run_example(client, "sh -c", example("sh"))) == {"success": True}
    signed = await run_example(client, f"{sys.executable} -c", example("python"))
    code = f"const token = {signed.strip()!r};" + example("js")
    out = await run_example(client, "node --input-type=module -e", code)
    assert out.startswith("2 unread of 2")
    headers = {"Authorization": f"Bearer {KEY}"}
    body = await (await client.get(f"/list?user_id={USER}", headers=headers)).json()
    assert body["data"]["new"] == 0
