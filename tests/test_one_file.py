"""`make notifier.pyz`: the service as one file, on a Python that has none of its packages."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiohttp import ClientSession

from ops.local import NOTHING_CONFIGURED
from settings import Settings
from tests.client import DB, ROOT, USER, settled, user
from tests.servers import MailServer, free_port
from tests.waiting import eventually

LEFT_OUT = ("bench", "tests", "conftest.py", "test_notifier.py")
pytestmark = [pytest.mark.ci, pytest.mark.timeout(400)]  # pip installs the service's packages


@dataclass
class OneFile:
    """The file, the folder that holds it, and a Python to run it, in a working directory of its own."""

    path: Path
    python: Path
    folder: Path

    def environment(self, **variables: object) -> dict[str, str]:
        """Return these variables, and where the file unpacks itself. There is no HOME, and nothing else."""
        return {"SHIV_ROOT": str(self.path.parent / "tmp"), **{name: str(value) for name, value in variables.items()}}

    def run(self, *arguments: str, **variables: object) -> subprocess.CompletedProcess[str]:
        """Run it with these arguments and variables until it ends."""
        command = [str(self.python), str(self.path), *arguments]
        environment = self.environment(**variables)
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    @contextmanager
    def serving(self, settings: Settings, **variables: object) -> Iterator[str]:
        """Start it, wait until it listens, and yield its address. At the end, check that SIGTERM ends it."""
        port = free_port()
        environment = self.environment(
            HOST="127.0.0.1",
            PORT=port,
            DB_URI=settings.db_uri,
            EMAIL=settings.email,
            SMTP_HOST=settings.smtp_host,
            SMTP_PORT=settings.smtp_port,
            SMTP_LOGIN=settings.smtp_login,
            SMTP_PASSWORD=settings.smtp_password,
            SMTP_CA_FILE=settings.smtp_ca_file,
            SMTP_SECURITY=settings.smtp_security.value,
            **variables,
        )
        process = subprocess.Popen([str(self.python), str(self.path)], cwd=self.folder, env=environment)
        try:
            eventually(lambda: socket.create_connection(("127.0.0.1", port), 1).close(), 60)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            code = process.wait(20)
        assert code == 0


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the file in a copy of the project."""
    folder = tmp_path_factory.mktemp("pyz")
    for path in ROOT.iterdir():
        if path.is_dir() and not path.name.startswith((".", "_")):
            shutil.copytree(path, folder / path.name)
        elif path.suffix in {".py", ".txt"} or path.name == "Makefile":
            shutil.copy(path, folder)
    (folder / ".venv").symlink_to(sys.prefix)
    command = ["/usr/bin/env", "make", "--old-file=.venv/dev", "notifier.pyz"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=380, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "notifier.pyz"


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Python without any package."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder)
    return folder / "bin/python"


@pytest.fixture
def one_file(built: Path, bare_python: Path, tmp_path: Path) -> Iterator[OneFile]:
    """Return the file, to be run where nothing can be written."""
    folder = tmp_path / "read-only"
    folder.mkdir(mode=0o555)
    yield OneFile(built, bare_python, folder)
    assert not any(folder.iterdir())  # root may write there nevertheless


def test_it_has_all_of_the_service_and_no_tests(built: Path) -> None:
    with zipfile.ZipFile(built) as archive:
        held = {name.removeprefix("site-packages/") for name in archive.namelist()}
    command = ["/usr/bin/env", "git", "ls-files", "--", "*.py", "api", "web"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert {name for name in listed.stdout.splitlines() if not name.startswith((*LEFT_OUT, "docs"))} <= held
    assert {"swagger_ui_bundle", "aiohttp", "pymongo"} <= {name.split("/")[0] for name in held}
    assert not {name.split("/")[0] for name in held} & {*LEFT_OUT, "__pycache__"}


@pytest.mark.parametrize("workers", [1, 2])
async def test_one_file_works_where_only_tmp_can_be_written(
    one_file: OneFile, settings: Settings, database: DB, mail: MailServer, workers: int
) -> None:
    with one_file.serving(settings, WORKERS=workers) as address:
        async with ClientSession(address) as session:
            async with session.post("/create", json={"user_id": USER, "key": "new_login"}) as response:
                assert (response.status, await response.json()) == (201, {"success": True})
            await settled(database)
            for path in ("/inbox.js", "/docs", "/swagger-ui-bundle.js", "/openapi.json", "/metrics"):
                async with session.get(path) as response:
                    assert response.status == 200, path
    assert [item["key"] for item in user(database)["notifications"]] == ["new_login"]
    assert len(mail.received) == 1


@pytest.mark.parametrize("arguments", [["--help"], ["preview", "new_login"], ["dead"], ["mail", USER]])
def test_its_commands_work(one_file: OneFile, settings: Settings, arguments: list[str]) -> None:
    done = one_file.run(*arguments, DB_URI=settings.db_uri, EMAIL=settings.email, SMTP_HOST=settings.smtp_host)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_it_renders_templates(one_file: OneFile) -> None:
    examples = {"KINDS_FILE": ROOT / "examples/kinds.toml", "TEMPLATES_DIR": ROOT / "examples/templates"}
    done = one_file.run("preview", "order_shipped", "--language", "de", "--data", '{"number": 7}', **examples)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Subject: Bestellung 7 ist unterwegs\n")


def test_with_nothing_configured_it_says_so(one_file: OneFile) -> None:
    done = one_file.run(PORT=free_port())
    assert (done.returncode, done.stderr) == (2, f"{NOTHING_CONFIGURED}\n")


def test_a_wrong_configuration_is_exit_code_2(one_file: OneFile) -> None:
    assert one_file.run(DB_URI="x").returncode == 2
