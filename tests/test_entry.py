"""The process: how it fails to start, and how it stops."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme
from pymongo import MongoClient

from cli.main import explain
from mongo.errors import StoreError
from settings import Settings
from tests.client import KEY, USER
from tests.fixtures import serving
from tests.processes import ends_within, run, running_service
from tests.servers import Mongod, free_port, localhost
from tests.streams import client_of

pytestmark = pytest.mark.ci


def test_a_wrong_configuration_is_exit_code_2(tmp_path: Path) -> None:
    done = run(cwd=tmp_path, PORT="0", DB_URI="x")
    assert done.returncode == 2
    assert all(name in done.stderr for name in ("PORT", "DB_URI", "EMAIL", "SMTP_HOST"))
    assert "Traceback" not in done.stderr


PASSWORD = "hunter2"  # noqa: S105 - of the accounts below


class TLSMongod(Mongod):
    """A MongoDB that accepts nothing but TLS."""

    def __init__(self, folder: Path, authority: trustme.CA, ca_file: Path, *arguments: str) -> None:
        folder.mkdir()
        self._certificate = folder / "certificate.pem"
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(f"{self._certificate}")
        self._ca_file = ca_file
        tls = (
            "--tlsMode",
            "requireTLS",
            "--tlsCertificateKeyFile",
            f"{self._certificate}",
            "--tlsCAFile",
            f"{ca_file}",
        )
        super().__init__(folder, None, *tls, *arguments)

    def client(self) -> MongoClient[dict[str, Any]]:
        """Return a client with a certificate, which such a server may want."""
        return MongoClient(
            self.address,
            directConnection=True,
            serverSelectionTimeoutMS=500,
            tls=True,
            tlsCAFile=f"{self._ca_file}",
            tlsCertificateKeyFile=f"{self._certificate}",
        )


@contextmanager
def with_accounts(folder: Path) -> Iterator[Mongod]:
    """Run a MongoDB that wants a login, with the accounts `writer`, `reader` and `admin`."""
    server = Mongod(folder)
    server.start()
    with server.client() as client:
        for database, user, role in (("x", "writer", "readWrite"), ("x", "reader", "read"), ("admin", "admin", "root")):
            options: dict[str, Any] = {"pwd": PASSWORD, "roles": [role], "writeConcern": {"w": 1, "j": True}}
            client[database].command("createUser", user, **options)
    server.kill()
    server = Mongod(folder, None, "--auth")
    server.start()
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def not_a_mongod() -> Iterator[int]:
    """Listen like a mail server; yield the port."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Greeter) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


class Greeter(socketserver.StreamRequestHandler):
    """Greets like a mail server."""

    def handle(self) -> None:
        """Greet."""
        self.wfile.write(b"220 mail.example.com ESMTP at your service\r\n")
        with suppress(ConnectionError):
            self.rfile.readline()


async def why_not(settings: Settings) -> Exception:
    """Return the message with which the start ends."""
    with pytest.raises(StoreError) as caught:
        async with serving(settings):
            pass
    return caught.value


async def test_the_start_says_in_a_sentence_why_mongodb_cannot_be_used(
    settings: Settings,
    mongod: Mongod,
    authority: trustme.CA,
    ca_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain = mongod.address
    with ExitStack() as stack:
        auth = stack.enter_context(with_accounts(tmp_path / "auth")).address
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
        mail = stack.enter_context(not_a_mongod())
        servers = [
            TLSMongod(tmp_path / "tls", authority, ca_file, "--tlsAllowConnectionsWithoutCertificates"),
            TLSMongod(tmp_path / "certified", authority, ca_file),
            Mongod(tmp_path / "new", "rs"),
        ]
        for server in servers:
            server.start()
            stack.callback(server.kill)
        tls, certified, new = (server.address for server in servers)
        trusted = f"tls=true&tlsCAFile={ca_file}"
        local = tls.replace("127.0.0.1", "localhost")
        no_rights = "the rights it needs: the role readWrite on the database"
        rows = {
            f"mongodb://writer:wrong@{auth}/x": (2, "refuses the user name or password"),
            f"mongodb://admin:{PASSWORD}@{auth}/x": (2, "authSource"),
            f"mongodb://reader:{PASSWORD}@{auth}/x": (2, no_rights),
            f"mongodb://writer:{PASSWORD}@{auth}/other?authSource=x": (2, no_rights),
            f"mongodb://{auth}/x": (2, no_rights),
            f"mongodb://a:{PASSWORD}@{auth}/x?authMechanism=PLAIN&authSource=$external": (2, "authMechanism"),
            f"mongodb://a:hunter2@{plain}/x": (2, "refuses the user name or password"),
            f"mongodb://{plain}/x?tls=true": (1, "SSL handshake failed"),
            f"mongodb://{tls}/x": (1, "connection closed"),
            f"mongodb://{tls}/x?tls=true": (1, "CERTIFICATE_VERIFY_FAILED"),
            f"mongodb://{local}/x?{trusted}": (1, "CERTIFICATE_VERIFY_FAILED"),
            f"mongodb://{certified}/x?{trusted}": (1, "MongoDB cannot be reached"),
            f"mongodb://{plain}/x?replicaSet=other": (1, "replica set"),
            f"mongodb://{plain}/x?replicaSet=other&directConnection=true": (1, "replica set"),
            f"mongodb://{new}/x": (1, "MongoDB cannot"),
            f"mongodb://{new}/x?replicaSet=rs": (1, "replica set"),
            f"mongodb://{plain}/x?loadBalanced=true": (2, "need what is not there"),
            "mongodb://u:hunter2@nowhere.invalid/x": (1, "[Errno -"),
            "mongodb+srv://u:hunter2@nowhere.invalid/x": (1, "DNS"),
            f"mongodb://u:hunter2@127.0.0.1:{free_port()}/x": (1, "Connection refused"),
            f"mongodb://u:hunter2@127.0.0.1:{silent}/x": (1, "MongoDB"),
            f"mongodb://u:hunter2@127.0.0.1:{mail}/x": (1, "MongoDB cannot be reached"),
        }
        if localhost() != "localhost":  # a chroot without /etc/hosts
            del rows[f"mongodb://{local}/x?{trusted}"]
        starts = [
            # Briefly for what never comes, and long for an answer that does on a busy machine.
            why_not(replace(settings, db_uri=uri, start_timeout=8 if code == 1 else 30))
            for uri, (code, _) in rows.items()
        ]
        outcomes = await asyncio.gather(*starts)
        told = caplog.text
        for (uri, (code, part)), exc in zip(rows.items(), outcomes, strict=True):
            assert explain(exc) == code, uri
            told += (sentence := capsys.readouterr().err)
            assert part in sentence, uri
            assert re.fullmatch(r"[A-Z][^\n]*\.\n", sentence), sentence
        assert not re.search(r"Traceback|hunter2|wrong", told), told


async def test_the_log_says_if_rights_are_revoked(settings: Settings, tmp_path: Path) -> None:
    with with_accounts(tmp_path / "auth") as server:
        admin: MongoClient[dict[str, Any]] = MongoClient(f"mongodb://admin:{PASSWORD}@{server.address}")
        uri = f"mongodb://writer:hunter2@{server.address}/x"
        service = await running_service(replace(settings, db_uri=uri), tmp_path)
        body = {"user_id": USER, "key": "new_message"}
        async with client_of(service) as client:
            async with client.post("/create", json=body) as response:
                assert response.status == 201
            admin.x.command("revokeRolesFromUser", "writer", roles=["readWrite"])
            async with client.post("/create", json=body) as response:
                assert (response.status, response.headers["Retry-After"]) == (503, "5")  # after 10 s
            admin.x.command("grantRolesToUser", "writer", roles=["readWrite"])
            async with client.post("/create", json=body) as response:
                assert response.status == 201
        assert "requests fail: MongoDB does not give the user of DB_URI the rights it needs" in service.log()
        assert not re.search(r"hunter2|writer|Traceback", service.log())
        service.kill()
        admin.close()


async def test_sigterm_makes_it_unready_and_end_within_8_seconds(settings: Settings, tmp_path: Path) -> None:
    service = await running_service(settings, tmp_path, API_KEYS=KEY)
    service.signal(signal.SIGTERM)
    ended = asyncio.create_task(asyncio.to_thread(ends_within, 8, service.process))
    await asyncio.sleep(0.3)
    reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
    writer.write(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 503")
    writer.close()
    assert await ended == 0


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("host", ["203.0.113.1", "nowhere.invalid"])
def test_a_host_that_cannot_be_listened_on_is_exit_code_2(
    settings: Settings, tmp_path: Path, workers: str, host: str
) -> None:
    variables = {"DB_URI": settings.db_uri, "EMAIL": "a@b.example", "SMTP_HOST": "x", "WORKERS": workers}
    done = run(cwd=tmp_path, HOST=host, PORT="8080", **variables)
    assert done.returncode == 2
    assert re.fullmatch(rf"The service cannot listen on HOST {host}, PORT 8080: [^.]+\.", done.stderr.splitlines()[-1])
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("configuration", ["local", "configured"])
def test_a_port_in_use_is_reported_before_waiting_for_mongodb(tmp_path: Path, configuration: str) -> None:
    never = {"DB_URI": f"mongodb://127.0.0.1:{free_port()}/x", "EMAIL": "a@b.example", "SMTP_HOST": "x"}
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        variables = never if configuration == "configured" else {}
        done = run(cwd=tmp_path, HOST="127.0.0.1", PORT=f"{port}", START_TIMEOUT="30", **variables)
    assert done.returncode == 1
    assert done.stderr == f"The service cannot listen on HOST 127.0.0.1, PORT {port}: Address already in use.\n"
    assert not (tmp_path / ".notifier").exists()
