"""A process that stops: no client and no proxy notices, and it ends in time whatever hangs."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import re
import signal
import socket
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import aiohttp
import pytest

from ops.listening import SO_ATTACH_FILTER, admit_no_more, bind, cease, listen
from settings import Settings
from tests.client import ROOT, USER
from tests.faults import scripted
from tests.processes import Service, ends_within, running_service
from tests.programs import needed
from tests.servers import MailServer, Mongod, free_port, initiate
from tests.waiting import eventually

pytestmark = pytest.mark.ci

CLIENTS = 12
NGINX = """\
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
worker_processes 1;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream notifier {{
        server 127.0.0.1:{ports[0]} max_fails=0;
        server 127.0.0.1:{ports[1]} max_fails=0;
        keepalive 16;
        keepalive_timeout 1s;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://notifier;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
            proxy_next_upstream error timeout;
        }}
    }}
}}
"""


@contextmanager
def nginx(folder: Path, replicas: list[Service]) -> Iterator[int]:
    """Run nginx in front of the replicas; give its port."""
    program = needed("nginx")
    port = free_port()
    configuration = folder / "nginx.conf"
    configuration.write_text(NGINX.format(folder=folder, ports=[replica.port for replica in replicas], port=port))
    with (folder / "nginx.out").open("wb") as output:
        process = subprocess.Popen([program, "-c", str(configuration), "-p", str(folder)], stdout=output, stderr=output)
    try:
        yield port
    finally:
        process.terminate()
        process.wait()


@asynccontextmanager
async def load(port: int) -> AsyncIterator[Counter[str]]:
    """Create and list during the block; count how often each answer came."""
    answers: Counter[str] = Counter()
    stopped = asyncio.Event()

    async def call(session: aiohttp.ClientSession, n: int) -> None:
        body = {"user_id": f"{n:024x}", "key": "new_post"}
        while not stopped.is_set():
            for method, path in (("POST", "/create"), ("GET", f"/list?user_id={n:024x}")):
                try:
                    async with session.request(method, f"http://127.0.0.1:{port}{path}", json=body) as response:
                        await response.read()
                        answers[f"{method} {response.status}"] += 1
                except aiohttp.ClientError as exc:
                    answers[f"{method} {type(exc).__name__}"] += 1
            await asyncio.sleep(0.02)

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as group:
        for n in range(CLIENTS):
            group.create_task(call(session, n))
        yield answers
        stopped.set()


@pytest.mark.parametrize("restarts", [5, pytest.param(20, marks=pytest.mark.ci)])
async def test_no_request_fails_during_rolling_restarts_behind_nginx(
    settings: Settings, tmp_path: Path, restarts: int
) -> None:
    replicas = [await running_service(settings, tmp_path, LOG_LEVEL="WARNING") for _ in range(2)]
    with nginx(tmp_path, replicas) as port:
        await asyncio.sleep(0.5)
        async with load(port) as answers:
            for n in range(restarts):
                replica = replicas[n % 2]
                replica.signal(signal.SIGTERM)
                assert await asyncio.to_thread(replica.process.wait, 10) == 0
                replica.restart()
                await asyncio.to_thread(eventually, replica.answers)
    for replica in replicas:
        replica.kill()
    assert answers.keys() == {"POST 201", "GET 200"}, answers
    assert answers["POST 201"] > 10 * restarts


def test_the_documentation_has_the_settings_of_nginx() -> None:
    documented = (ROOT / "docs/security.md").read_text()
    settings = re.findall(r"(?:max_fails|keepalive|proxy_(?!pass|temp))[^;\n]*;", NGINX)
    assert len(settings) == 8
    assert [setting for setting in settings if setting not in documented] == []


# --- what a client sees ------------------------------------------------------------------------------


class Connection:
    """A connection that is kept."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    def send(self, request: str) -> None:
        self._writer.write(request.replace("\n", "\r\n").encode())

    async def answer(self) -> str:
        """Return the head of the next answer."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        length = int(head.lower().split("content-length: ")[1].split()[0])
        await self._reader.readexactly(length)
        return head

    async def get(self, path: str) -> str:
        self.send(f"GET {path} HTTP/1.1\nHost: x\n\n")
        return await self.answer()

    async def is_closed(self) -> bool:
        """Return whether it is closed within a moment; if so, close this end too."""
        try:
            async with asyncio.timeout(0.2):
                await self._reader.read()
        except TimeoutError:
            return False
        self._writer.close()
        await self._writer.wait_closed()
        return True


async def connect(service: Service) -> Connection:
    return Connection(*await asyncio.open_connection("127.0.0.1", service.port))


async def test_after_sigterm_answers_close_and_idle_connections_wait(settings: Settings, tmp_path: Path) -> None:
    service = await running_service(settings, tmp_path)
    used, unused, never, begun = [await connect(service) for _ in range(4)]
    assert "Connection: close" not in await used.get("/healthz")
    body = f'{{"user_id": "{USER}", "key": "new_post"}}'
    begun.send(f"POST /create HTTP/1.1\nHost: x\nContent-Length: {len(body)}\n\n")
    await asyncio.sleep(0.1)
    service.signal(signal.SIGTERM)
    await asyncio.sleep(0.5)
    begun.send(body)
    for connection, status in ((used, 200), (unused, 200), (await connect(service), 200), (begun, 201)):
        head = await (connection.answer() if connection is begun else connection.get("/healthz"))
        assert head.startswith(f"HTTP/1.1 {status}")
        assert "connection: close" in head.lower()
        assert await connection.is_closed()
    assert not await never.is_closed()
    assert await asyncio.to_thread(service.process.wait, 10) == 0
    assert await never.is_closed()


async def test_connections_waiting_to_be_accepted_are_still_served() -> None:
    class Echo(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            assert isinstance(self.transport, asyncio.Transport)
            self.transport.write(data)

    port = free_port()
    server = await bind(Echo, "127.0.0.1", port)
    await listen(server, "127.0.0.1", port)
    clients = [
        socket.create_connection(("127.0.0.1", port)) for _ in range(200)
    ]  # the event loop has no turn meanwhile
    await cease(server, Echo)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    for client in clients:
        reader, writer = await asyncio.open_connection(sock=client)
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        writer.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can do this")
def has_socket_filters(listener: socket.socket) -> bool:
    """Return whether the kernel takes a program that lets everything pass."""
    program = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0xFFFFFFFF))
    try:
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(program)))
    except OSError:
        return False
    return True


def test_a_listener_that_is_about_to_close_admits_no_more() -> None:
    """A connection made between the last accept(2) and close(2) would be reset, after nginx has sent a POST on it."""
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()) as early:
        if not has_socket_filters(listener):
            pytest.skip("this kernel has no socket filters")
        admit_no_more(listener)
        early.sendall(b"x")
        with listener.accept()[0] as accepted:
            assert accepted.recv(1) == b"x"
        with pytest.raises(TimeoutError):
            socket.create_connection(listener.getsockname(), 0.2)
        listener.settimeout(0)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_sigterm_interrupts_the_start(tmp_path: Path) -> None:
    uri = f"mongodb://127.0.0.1:{free_port()}/x"
    service = Service(tmp_path, DB_URI=uri, EMAIL="a@b.example", SMTP_HOST="x", API_KEYS="k" * 32)

    def catches_sigterm() -> None:
        status = Path(f"/proc/{service.process.pid}/status").read_text()
        assert int(status.split("SigCgt:")[1].split()[0], 16) >> (signal.SIGTERM - 1) & 1

    eventually(catches_sigterm)
    service.signal(signal.SIGTERM)
    assert ends_within(4, service.process) == 0
    assert service.log() == ""


# --- when others hang -------------------------------------------------------------------------------


class Unread(Service):
    """The service, whose output goes into a pipe of 4 KiB that nobody reads."""

    def _spawn(self) -> subprocess.Popen[bytes]:
        self.output, write_end = os.pipe()
        fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)
        process = self._popen(write_end)
        os.close(write_end)
        return process


async def test_unread_output_blocks_neither_requests_nor_sigterm(
    settings: Settings, mail: MailServer, tmp_path: Path
) -> None:
    mail.script = scripted({"MAIL": ["hang"] * 9})
    mongod = Mongod(tmp_path / "db", "frozen")
    mongod.start()
    initiate([mongod], "frozen")
    variables = {"DB_URI": f"mongodb://{mongod.address}/x", "EMAIL": settings.email, "LOG_LEVEL": "DEBUG"}
    variables |= {
        "SMTP_HOST": settings.smtp_host,
        "SMTP_PORT": f"{mail.port}",
        "SMTP_CA_FILE": f"{settings.smtp_ca_file}",
    }
    variables |= {"SMTP_LOGIN": f"{settings.smtp_login}", "SMTP_PASSWORD": f"{settings.smtp_password}"}
    service = Unread(tmp_path, **variables, SMTP_SECURITY="tls")
    await asyncio.to_thread(eventually, service.answers)
    url = f"http://127.0.0.1:{service.port}"
    timeout = aiohttp.ClientTimeout(total=5)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        for _ in range(3000):  # more lines than are kept
            async with session.get(f"{url}/healthz") as response:
                assert response.status == 200
        for n in range(8):
            async with session.post(f"{url}/create", json={"user_id": f"{n:024x}", "key": "registration"}) as response:
                assert response.status == 201
        await asyncio.sleep(0.5)
        mongod.signal(signal.SIGSTOP)
        hanging = [asyncio.create_task(session.get(f"{url}/list?user_id={n:024x}")) for n in range(8)]
        await asyncio.sleep(0.2)
        service.signal(signal.SIGTERM)
        await asyncio.to_thread(ends_within, 8, service.process)
        await asyncio.gather(*hanging, return_exceptions=True)
    mongod.kill()
    os.close(service.output)
