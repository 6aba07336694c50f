"""The service as a client on the wire sees it: long headers, what is no HTTP, idle connections, and on any HOST."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ops.listening import bind, listen, warn_if_open
from settings import Settings
from tests.client import KEY, PROTECTED, ROOT, USER, Client, create
from tests.fixtures import Start
from tests.processes import command, run, running_service
from tests.servers import free_port
from tests.waiting import eventually_async


async def asked(port: int, request: str) -> bytes:
    """Send a request; return all that comes until the connection ends."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request.encode())
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    return answer


async def test_a_refusal_without_a_resource_is_a_problem_too(settings: Settings, tmp_path: Path) -> None:
    service = await running_service(settings, tmp_path, KEEP_ALIVE_SECONDS=0.2)
    head = "GET /healthz HTTP/1.1\r\nHost: x\r\nCookie: "
    for request, status in (
        (f"{head}{'x' * 32_000}\r\n\r\n", 200),
        (f"{head}{'x' * 33_000}\r\n\r\n", 431),
        (f"GET /{'x' * 33_000} HTTP/1.1\r\nHost: x\r\n\r\n", 431),
        ("hunter2\r\n\r\n", 400),
    ):
        answer = await asked(service.port, request)  # which also shows that an idle connection is closed in time
        headers, _, body = answer.partition(b"\r\n\r\n")
        assert re.match(rb"HTTP/1\.[01] %d " % status, headers)
        assert not re.search(rb"(?i)python|aiohttp", headers)
        assert body.endswith(b"}" if status == 200 else b"}\n")
        assert b"hunter2" not in answer
        assert status == 200 or json.loads(body).keys() == {"success", "type", "title", "status", "detail"}
    service.kill()


async def test_no_answer_reveals_versions_and_most_end_with_a_newline(start: Start) -> None:
    client = await start(demo=True)
    await create(client)
    specified = ("/healthz", f"/list?user_id={USER}")
    others = (f"/preferences?user_id={USER}", "/kinds", "/openapi.json", "/list", "/nowhere", "/demo/setup", "/metrics")
    for path in (*specified, *others, "/docs", "/inbox.js"):
        response = await client.get(path)
        assert response.headers["Server"] == "notifier"
        assert (await response.read()).endswith(b"}" if path in specified else b"\n"), path
    body = {"user_ids": [USER], "key": "new_post"}
    response = await client.post("/create", json=body, headers={"Idempotency-Key": "x"})
    assert await response.text() == '{"success":true,"created":1,"replayed":0}\n'


async def test_probes_that_succeed_are_logged_for_debugging_only(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    def logged() -> list[str]:
        return [record.getMessage().split(" 200")[0] for record in caplog.records if record.name == "notifier.http"]

    caplog.set_level(logging.INFO)
    for path in ("/healthz", "/readyz", "/kinds"):
        await client.get(path)
    assert logged() == ["GET /kinds"]
    caplog.set_level(logging.DEBUG)
    await client.get("/healthz")
    assert logged() == ["GET /kinds", "GET /healthz"]


# --- whether it answers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "reached"), [("::", {"127.0.0.1", "::1"}), ("0.0.0.0", {"127.0.0.1"}), ("::1", {"::1"})]
)
async def test_every_address_of_the_host_reaches_the_service(host: str, reached: set[str]) -> None:
    port, connected = free_port(), set()

    class Answering(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    server = await bind(Answering, host, port)
    await listen(server, host, port)
    async with server:
        for address in ("127.0.0.1", "::1"):
            try:
                _, writer = await asyncio.open_connection(address, port)
                writer.close()
                connected.add(address)
            except OSError:
                pass
        done = await asyncio.to_thread(health_of_the_image, host, port)
        assert (done.returncode, done.stderr) == (0, "")
    assert connected == reached


def health_of_the_image(host: str, port: int) -> subprocess.CompletedProcess[str]:
    """Run what the image runs as its HEALTHCHECK, where a proxy is set that does not exist."""
    (found,) = re.findall(r"^HEALTHCHECK .*CMD (\[.*\])$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    program, *arguments = json.loads(found)
    assert program == "python"
    gone = dict.fromkeys(("http_proxy", "HTTP_PROXY", "ALL_PROXY"), "http://127.0.0.1:9")
    environment = {**os.environ, **gone, "HOST": host, "PORT": f"{port}", "PYTHONSAFEPATH": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=20, check=False)


async def test_the_exit_code_of_health_says_if_the_service_answers(client: Client, settings: Settings) -> None:
    given = {"HOST": "0.0.0.0", "http_proxy": "http://127.0.0.1:9"}
    assert await command(settings, "health", PORT=f"{client.port}", **given) == (0, "", "")
    port = free_port()
    code, out, err = await command(settings, "health", PORT=f"{port}", **given)
    assert (code, out, err) == (1, "", f"No answer from 127.0.0.1 port {port}: [Errno 111] Connection refused.\n")


def test_modules_are_found_with_pythonsafepath(tmp_path: Path) -> None:
    done = run("--help", cwd=tmp_path, PYTHONSAFEPATH="1")
    assert (done.returncode, done.stderr) == (0, "")


# --- an API that is open ----------------------------------------------------------------------------------------------


async def test_an_open_api_is_warned_about_again_and_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("ops.listening.WARNING_INTERVAL", 0.001)
    task = asyncio.create_task(warn_if_open(Settings(port=81)))

    def warned() -> None:
        assert [record.getMessage() for record in caplog.records][:2] == [
            "API_KEYS is not set: anyone who can reach 0.0.0.0 port 81 has full access"
        ] * 2

    await eventually_async(warned)
    task.cancel()
    await warn_if_open(Settings(api_keys=(KEY,)))  # which ends at once
    await warn_if_open(Settings(host="127.0.0.1"))


async def test_metrics_tell_whether_the_api_is_open(start: Start) -> None:
    for changes, value in (({"host": "0.0.0.0"}, 1), ({"host": "::1"}, 0), ({"host": "0.0.0.0", **PROTECTED}, 0)):
        client = await start(**changes)
        async with client.get("/metrics", headers={"Authorization": f"Bearer {KEY}"}) as response:
            assert f"\nnotifier_api_open {value}.0\n" in await response.text()
