"""Fixtures: one MongoDB for all tests with a fresh database for each, a certificate authority, and the service."""

from __future__ import annotations

import logging
import os
import shutil
import ssl
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import hypothesis
import pytest
import trustme
from aiohttp.test_utils import TestClient, TestServer
from pymongo import MongoClient
from pymongo.database import Database

import handlers
import mongo.connection
from api.server import OPTIONS
from cli.environment import read_settings
from config.checks import DEAD_MAIL
from mongo.errors import PATIENCE, Patience
from notifier import create_app
from settings import IdType, Security, Settings
from tests.client import Client
from tests.processes import VARIABLES
from tests.servers import LOGIN, PASSWORD, MailServer, Mongod, initiate, localhost, smtp_server

logging.getLogger("mail.log").setLevel(logging.ERROR)
hypothesis.settings.register_profile("busy", deadline=None)  # the time of an example says how busy the machine is
hypothesis.settings.register_profile("quick", deadline=None, max_examples=25)
hypothesis.settings.load_profile("busy")

Start = Callable[..., Awaitable[Client]]
MEMORY: Final = Path("/dev/shm")  # noqa: S108 - Linux's folder in memory
MONGODS: Final = ("standalone", "replica set")
ROOM: Final = 1 << 30
"""Bytes that must be free in memory for each process of tests to keep its databases there."""
SHORT_WAITS: Final = ("--journalCommitInterval", "20")
"""Milliseconds until MongoDB writes its journal unasked. Dropping a database waits for that, by default for 100."""


@pytest.fixture(scope="session")
def fast_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder in memory, or on disk where memory has no room."""
    if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM:
        with TemporaryDirectory(prefix="notifier-tests-", dir=MEMORY) as folder:
            yield Path(folder)
    else:
        yield tmp_path_factory.mktemp("mongodb")


@pytest.fixture(scope="session")
def mongod(fast_folder: Path) -> Iterator[Mongod]:
    """Run MongoDB as a replica set of one member. It looks for expired documents every second."""
    server = Mongod(fast_folder / "mongod", "tests", *SHORT_WAITS, "--setParameter", "ttlMonitorSleepSecs=1")
    server.start()
    initiate([server], "tests")
    yield server
    server.kill()


@pytest.fixture(scope="session")
def standalone(fast_folder: Path) -> Iterator[Mongod]:
    """Run MongoDB as a standalone server: no replica set, so no change streams, and no retryable writes."""
    server = Mongod(fast_folder / "standalone", None, *SHORT_WAITS)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def database(direct: MongoClient[dict[str, Any]]) -> Iterator[Database[dict[str, Any]]]:
    """Return an empty database. At the end, check its outboxes and drop it."""
    name = f"test_{uuid.uuid4().hex}"
    yield direct[name]
    assert_outboxes_consistent(direct[name])
    direct.drop_database(name)


def assert_outboxes_consistent(database: Database[dict[str, Any]]) -> None:
    """Check I9: `due` is when the first e-mail is due or the first window ends; absent if there is neither."""
    for user in database.users.find():
        notifier = user.get("notifier", {})
        due = [item["next_at"] for item in notifier.get("outbox", [])]
        due += [item["due"] for item in notifier.get("waiting", [])]
        assert notifier.get("due") == (min(due) if due else None)


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    """Return a certificate authority."""
    return trustme.CA()


@pytest.fixture(scope="session")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of its certificate, for `SMTP_CA_FILE`."""
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture(scope="session")
def systems_ca_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of an authority that certifies nobody, in place of the system's, whose reading takes 30 ms."""
    path = tmp_path_factory.mktemp("system") / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(path))
    return path


@pytest.fixture(scope="session")
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    """Return the TLS context of a server on this machine that the authority has certified."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(localhost()).configure_cert(context)
    return context


@pytest.fixture
async def mail(server_tls: ssl.SSLContext) -> AsyncIterator[MailServer]:
    """Run an SMTP server over TLS that wants a login."""
    async with smtp_server(server_tls) as server:
        yield server


@pytest.fixture
def id_type() -> IdType:
    """Return the type of the users' ids. A test module may have its own fixture of this name."""
    return IdType.OBJECTID


def settings_for(mongod: Mongod, database: str, smtp_port: int, ca_file: Path) -> Settings:
    """Return settings that work, with short timeouts and retries after less than a second."""
    return Settings(
        email="new-user@example.com",
        db_uri=f"mongodb://{mongod.address}/{database}",
        host="127.0.0.1",
        smtp_host=localhost(),
        smtp_port=smtp_port,
        smtp_login=LOGIN,
        smtp_password=PASSWORD,
        smtp_from="Notifier <noreply@example.com>",
        smtp_security=Security.TLS,
        smtp_ca_file=ca_file,
        smtp_connect_timeout=2.0,
        smtp_command_timeout=2.0,
        mail_retry_minutes=(0.005, 0.01),
    )


@pytest.fixture
def settings(
    mongod: Mongod,
    database: Database[dict[str, Any]],
    ca_file: Path,
    mail: MailServer,
    id_type: IdType,
    systems_ca_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Settings:
    """Return the settings of a service with an empty database and a mail server of its own."""
    monkeypatch.setenv("SSL_CERT_FILE", f"{systems_ca_file}")
    return replace(settings_for(mongod, database.name, mail.port, ca_file), id_type=id_type)


@asynccontextmanager
async def serving(settings: Settings, patience: Patience = PATIENCE) -> AsyncIterator[Client]:
    """Run the service and return a client of it."""
    server = TestServer(create_app(settings, patience))
    await server.start_server(**OPTIONS, access_log=None)
    async with TestClient(server) as client:
        yield client


@pytest.fixture
async def start(settings: Settings, patience: Patience) -> AsyncIterator[Start]:
    """Return a function that starts the service, with some settings changed, and returns a client of it."""
    async with AsyncExitStack() as stack:

        async def start_service(**changes: Any) -> Client:
            return await stack.enter_async_context(serving(replace(settings, **changes), patience))

        yield start_service


@pytest.fixture(scope="session")
async def shared_service(mongod: Mongod, server_tls: ssl.SSLContext, ca_file: Path) -> AsyncIterator[Start]:
    """Return a function that returns a client of a service with some settings changed, which runs to the end.

    To MongoDB it has a name of its own, so that a fault for a test's own service is not spent on it.
    """
    clients: dict[str, Client] = {}
    async with AsyncExitStack() as stack:
        mail = await stack.enter_async_context(smtp_server(server_tls))

        async def client_of(**changes: Any) -> Client:
            if (key := repr(changes)) not in clients:
                settings = settings_for(mongod, f"shared_{len(clients)}", mail.port, ca_file)
                with pytest.MonkeyPatch.context() as patch:
                    patch.setitem(mongo.connection.OPTIONS, "appname", "shared")
                    clients[key] = await stack.enter_async_context(serving(replace(settings, **changes)))
            return clients[key]

        yield client_of


@pytest.fixture(scope="session")
def direct(mongod: Mongod) -> Iterator[MongoClient[dict[str, Any]]]:
    """Return a client of MongoDB that tests share."""
    with mongod.client() as client:
        yield client


@pytest.fixture
async def share(
    shared_service: Start, direct: MongoClient[dict[str, Any]], systems_ca_file: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Start]:
    """Return a function like that of `start`, for tests that change nothing in the service but its database.

    Tests with equal settings share a service. At the end, its database is emptied.
    """
    monkeypatch.setenv("SSL_CERT_FILE", f"{systems_ca_file}")
    clients = []

    async def client_of(**changes: Any) -> Client:
        clients.append(client := await shared_service(**changes))
        return client

    yield client_of
    for client in clients:
        database = direct[client.app[handlers.STORE].database.name]
        for name in ("users", DEAD_MAIL):
            database[name].delete_many({})


@pytest.fixture
async def shared_client(share: Start) -> Client:
    """Return a client of the service with the usual settings that tests share."""
    return await share()


@pytest.fixture
async def client(start: Start) -> Client:
    """Start the service and return a client of it."""
    return await start()


@pytest.fixture(params=MONGODS)
def any_mongod(request: pytest.FixtureRequest) -> Mongod:
    """Return a standalone server, then a replica set."""
    server: Mongod = request.getfixturevalue("standalone" if request.param == "standalone" else "mongod")
    return server


@pytest.fixture
def patience() -> Patience:
    """Return how long the service waits for MongoDB. A test of giving up has a shorter one."""
    return PATIENCE


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Settings]:
    """Return a function that loads the settings from a file's text and from these variables alone."""
    for name in os.environ:
        if name in VARIABLES:
            monkeypatch.delenv(name)

    def load(env_file: str = "", **variables: str) -> Settings:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        (tmp_path / ".env").write_text(env_file)
        return read_settings(tmp_path / ".env")[0]

    return load


@pytest.fixture
def nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the service send e-mails of unknown kinds itself, instead of leaving them to other processes."""
    monkeypatch.setattr("mongo.owed.LEFT_TO_OTHERS", 0.0)
