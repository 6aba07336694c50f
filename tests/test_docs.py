"""The commands of the README and of the pages in docs/, each tried in a clone; and the links between the pages."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cli.environment import read_settings
from settings import grouped
from tests.client import ROOT, USER
from tests.processes import COMPLETE, VARIABLES, LocalRun, run_here
from tests.programs import needed_by

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = {"kinds.md", "fewer.md"}
"""Pages whose commands need a configuration of their own, and tests of their own: `test_kinds_docs.py` for example."""
COMMANDS = sorted(
    {
        line[2:]
        for page in PAGES
        if page.name not in OTHERS
        for line in page.read_text().splitlines()
        if line.startswith("$ ")
    }
)
MAKE = [command for command in COMMANDS if re.match(r"(\w+=\S+ )*make ", command)]
DOCKER = [command for command in COMMANDS if command.startswith("docker")]
KUBECTL = [command for command in COMMANDS if command.startswith("kubectl")]
ONE_FILE = [command for command in COMMANDS if " notifier.pyz" in command and command not in MAKE]
LOCAL = [
    command
    for command in COMMANDS
    if re.search(r"curl|ls \.notifier", command) or ("notifier.py " in command and command not in (*DOCKER, *KUBECTL))
]
INSIDE = [command for command in (*DOCKER, *KUBECTL, *ONE_FILE) if "notifier.py" in command]
"""Commands of the service in a container, or in the one file."""
PYTEST = [command for command in COMMANDS if "-m pytest" in command]
CLOSING = """echo "API_KEYS='$(openssl rand -hex 32)'" >> .env"""
REST = {"cp .env.example .env", CLOSING, ".venv/bin/python -m bench hostile"}
EXAMPLE_ID = "6b03bbf4b2edf30b56b0d266"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the project as it would be committed, with the packages of this run installed."""
    folder = tmp_path_factory.mktemp("clone")
    listed = ["/usr/bin/env", "git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


@pytest.fixture(scope="module")
def local(clone: Path) -> Iterator[LocalRun]:
    """Return a local run in the clone, as `make run` starts it."""
    local = LocalRun(clone)
    yield local
    local.end(signal.SIGTERM)


def shell(command: str, folder: Path, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return subprocess.run(
        ["/bin/bash", "-c", needed_by(command)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def test_every_command_is_tried() -> None:
    assert {*MAKE, *DOCKER, *KUBECTL, *ONE_FILE, *LOCAL, *PYTEST, *REST} == set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_says_how_to_install_what_it_uses(page: Path) -> None:
    before, used, _ = page.read_text().partition(".venv/bin/")
    assert not used or "`make install" in before


def test_no_command_needs_an_activated_environment() -> None:
    assert not [command for command in COMMANDS if re.match(r"(\w+=\S+ )*(python|pytest|pip)\b", command)]


@pytest.mark.parametrize(
    "command",
    [pytest.param(command, marks=pytest.mark.ci if "notifier.py" in command else ()) for command in LOCAL],
)
def test_a_command_works_in_a_local_run(command: str, clone: Path, local: LocalRun) -> None:
    local.get("/create", b'{"user_id": "%s", "key": "new_login"}' % USER.encode())
    (newest,) = local.get(f"/list?user_id={USER}&limit=1")["data"]["list"]
    typed = command.replace(EXAMPLE_ID, newest["id"]).replace("127.0.0.1:8080", f"127.0.0.1:{local.port}")
    if " -N " in typed:  # a stream never ends
        typed = f"timeout 2 {typed}; test $? -eq 124"
    done = shell(typed, clone)
    while '"status": 503' in done.stdout:  # to erase has to wait for an e-mail that is just being sent
        done = shell(typed, clone)
    assert done.returncode == 0, done.stderr
    if "curl" in command:
        assert "elements" in done.stdout or '"success":true' in done.stdout.replace(" ", "")


@pytest.mark.parametrize("command", MAKE)
def test_make_knows_the_target(command: str, clone: Path) -> None:
    done = shell(f"{command.partition('#')[0]} --dry-run", clone)
    assert done.returncode == 0, done.stderr
    _, target, _ = re.split(r"make (\S+)", command)
    assert f"{target}:" in (ROOT / "Makefile").read_text()


@pytest.mark.ci
def test_pytest_finds_the_tests(clone: Path) -> None:
    words = re.findall(r"-k (\w+)", "\n".join(PYTEST))
    assert len(words) == len(PYTEST)
    done = shell(f".venv/bin/python -m pytest --collect-only -q -k '{' or '.join(words)}'", clone)
    assert done.returncode == 0, done.stdout[-500:]
    assert all(re.search(rf"::\w*{word}", done.stdout) for word in words)


def test_the_benchmark_has_the_part(clone: Path) -> None:
    assert shell(".venv/bin/python -m bench hostile --help", clone).returncode == 0


@pytest.mark.parametrize("command", DOCKER)
def test_compose_has_the_services_and_profiles(command: str) -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    profiles = {profile for service in services.values() for profile in service.get("profiles", ())}
    assert set(re.findall(r"(?:exec|restart|--scale) (\w+)", command)) <= services.keys()
    assert set(re.findall(r"--profile (\S+)", command)) <= profiles
    assert all((ROOT / name).is_file() for name in re.findall(r"-f (\S+)", command))


@pytest.mark.parametrize("command", KUBECTL)
def test_the_manifest_has_what_kubectl_is_asked_for(command: str) -> None:
    assert all((ROOT / name).is_file() for name in re.findall(r"-f (\S+)", command))
    manifest = yaml.safe_load_all((ROOT / "deploy/kubernetes.yaml").read_text())
    resources = {f"{resource['kind'].lower()}/{resource['metadata']['name']}" for resource in manifest}
    assert set(re.findall(r"\w+/\w+(?= |$)", command)) <= resources


@pytest.mark.parametrize("command", INSIDE)
def test_a_command_in_a_container_or_in_the_one_file_works(command: str, clone: Path, local: LocalRun) -> None:
    assert local.get("/healthz")
    _, program, arguments = re.split(r"(python notifier\.py|notifier\.pyz)", command)
    assert program
    done = shell(f".venv/bin/python notifier.py{arguments}", clone)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_override_of_compose_mounts_what_settings_name() -> None:
    page = (ROOT / "docs/running.md").read_text()
    (block,) = re.findall(r"```yaml\n(services:.*?)```", page, re.DOTALL)
    notifier = yaml.safe_load(block)["services"]["notifier"]
    assert notifier["environment"].keys() <= VARIABLES
    mounted = [volume.split(":")[1] for volume in notifier["volumes"]]
    assert list(notifier["environment"].values()) == mounted


def test_the_example_of_an_env_file_is_a_complete_configuration(tmp_path: Path) -> None:
    shutil.copy(ROOT / ".env.example", tmp_path)
    assert shell("cp .env.example .env", tmp_path).returncode == 0
    done = run_here("preview", "new_login", cwd=tmp_path, **COMPLETE)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_line_of_the_readme_closes_the_api(tmp_path: Path) -> None:
    shutil.copy(ROOT / ".env.example", tmp_path / ".env")
    assert shell(CLOSING, tmp_path).returncode == 0
    with pytest.MonkeyPatch.context() as patch:
        for name in VARIABLES:
            patch.delenv(name, raising=False)
        settings, warnings = read_settings(tmp_path / ".env")
    assert (settings.openness, warnings, len(settings.api_keys[0])) == (None, [], 64)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if not path.startswith("http"):
            other = (page.parent / path).resolve() if path else page
            assert other.exists(), target
            assert not anchor or anchor in anchors(other), target


def test_the_readme_is_short_and_pages_are_linked_both_ways() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 150
    for page in PAGES[2:]:
        assert f"docs/{page.name}" in readme or page.name == "bench.md"
        assert "README.md" in page.read_text() or page.name == "bench.md"


def test_what_the_readme_quotes_is_a_test_of_the_specification() -> None:
    (quoted,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert quoted in (ROOT / "test_notifier.py").read_text()


def test_the_readme_names_the_variables_of_the_specification() -> None:
    readme = (ROOT / "README.md").read_text()
    assert all(f"`{name}`" in readme for name in next(iter(grouped().values())))
