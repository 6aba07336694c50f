"""Reading the configuration: whatever could be misread ends the start, and says where it is."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from cli.environment import SettingsError, read_settings
from settings import Settings
from tests.processes import COMPLETE, run, run_here

FILE = "".join(f"{name}={value}\n" for name, value in COMPLETE.items())


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("\ufeff" + FILE, id="a byte order mark"),
        pytest.param(FILE.replace("\n", "\r\n"), id="Windows' line ends"),
        pytest.param("\n\n# a comment\n" + FILE.replace("=", " = "), id="comments and spaces"),
        pytest.param("".join(f"export {line}\n" for line in FILE.splitlines()), id="export"),
        pytest.param("COMPOSE_PROJECT_NAME=x\n" + FILE.replace("mongodb://", "'mongodb://").replace("6\n", "6'\n", 1)),
    ],
)
def test_a_file_is_read_whoever_wrote_it(environment: Callable[..., Settings], tmp_path: Path, text: str) -> None:
    environment()  # clears the variables
    (tmp_path / "file").write_bytes(text.encode())
    settings = read_settings(tmp_path / "file")[0]
    assert {name: getattr(settings, name.lower()) for name in COMPLETE} == COMPLETE


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_the_line_end_of_a_value_is_stripped(environment: Callable[..., Settings], end: str) -> None:
    values = {**COMPLETE, "SMTP_LOGIN": "me", "SMTP_PASSWORD": " p w ", "API_KEYS": "k" * 32, "PORT": "81"}
    settings = environment(**{name: value + end for name, value in values.items()})
    assert {name: getattr(settings, name.lower()) for name in COMPLETE} == COMPLETE
    assert (settings.smtp_password, settings.api_keys, settings.port) == (" p w ", ["k" * 32], 81)


@pytest.mark.parametrize(
    ("env_file", "variables", "faults"),
    [
        # --- lines that say nothing: the line is named
        ("PORT 80\n", {}, {".env, line 1": "Is not NAME=VALUE."}),
        ("\n# c\n\nPORT=80\n\n\nSMTP_PASSWORD\n", COMPLETE, {".env, line 7": "Is not NAME=VALUE."}),
        ("SMTP_PASSWORD='hunter2\n", COMPLETE, {".env, line 1": "Is not NAME=VALUE."}),
        ("DB_URI: mongodb://x\nEMAIL: a@b.example\n", {}, {".env, line 1": "NAME=VALUE", ".env, line 2": "NAME="}),
        # --- names that mean one of ours
        ("\nDB_URL=mongodb://x\n", {}, {"DB_URL": r"is DB_URI meant\? \(in line 2 of .*\.env\)"}),
        ("SMTP_SERVER=x", COMPLETE, {"SMTP_SERVER": "No variable of the service has this name"}),
        ("SMTP_USER=x", COMPLETE, {"SMTP_USER": "No variable of the service has this name"}),
        ("SMTP_LOGIN_FILE=x", COMPLETE, {"SMTP_LOGIN_FILE": "a file is read only for DB_URI, SMTP_PASSWORD, "}),
        ("API_KEY_FILE=x", COMPLETE, {"API_KEY_FILE": "is API_KEYS_FILE meant"}),
        ("SMTP_PASSWROD=hunter2", COMPLETE, {"SMTP_PASSWROD": "is SMTP_PASSWORD meant"}),
        (f"API_KEY={'x' * 32}", COMPLETE, {"API_KEY": "is API_KEYS meant"}),
        ("NOTIFICATION_LIMIT=5", COMPLETE, {"NOTIFICATION_LIMIT": "is NOTIFICATIONS_LIMIT meant"}),
        ("smtp_login=x", COMPLETE, {"smtp_login": "is SMTP_LOGIN meant"}),
        ("SMTP_USER=x", {**COMPLETE, "SMTP_USER": "y"}, {"SMTP_USER": r"\(in line 1"}),
        # --- in the environment only where something else is wrong, which they may explain
        (
            "",
            {"EMAIL": "a@b.example", "SMTP_SERVER": "x"},
            {"DB_URI": "", "SMTP_HOST": "", "SMTP_SERVER": "No variable"},
        ),
        # --- half a configuration is never a local run
        ("EMAIL=a@b.example", {}, {"DB_URI": "Missing.* as EMAIL is set", "SMTP_HOST": "Missing"}),
        ("", {"SMTP_PORT": "25"}, {"DB_URI": "Missing.* as SMTP_PORT is set", "SMTP_HOST": "", "EMAIL": ""}),
        (
            "",
            {"SMTP_AUTH": "1"},
            {"DB_URI": "Missing.* as SMTP_AUTH is set", "SMTP_HOST": "", "EMAIL": "", "SMTP_AUTH": ""},
        ),
        ("SMTP_HOST=x", {"EMAIL": "a@b.example"}, {"DB_URI": "Missing"}),
        # --- hosts
        *(
            ("", {**COMPLETE, "SMTP_HOST": host}, {"SMTP_HOST": "Not a host name or an address."})
            for host in (
                *(
                    "smtp://x",
                    "smtps://x.example",
                    "x:587",
                    "x/y",
                    "a\nb",
                    "a b",
                    " x",
                    "mail..example",
                    ".x",
                    "-x.example",
                ),
                *("-x.example", "user@x", "[::1]", "::g", "x" * 64, f"{'x.' * 127}xx", "\udcff", ".", "x\x00"),
            )
        ),
        ("", {**COMPLETE, "HOST": "http://0.0.0.0"}, {"HOST": "Not a host name or an address."}),
        *(
            ("", {"LOCAL_NAMES": names}, {"LOCAL_NAMES": "Not a host name or an address."})
            for names in ("*", "*.example", "x,", "a.example:80", "http://a.example", "[::1]", "a b")
        ),
        ("", {**COMPLETE, "LOCAL_NAMES": "x"}, {"LOCAL_NAMES": "Is for local runs only"}),
        # --- what cannot be sent
        ("", {**COMPLETE, "SMTP_LOGIN": "x", "SMTP_PASSWORD": "hunter2\udcff"}, {"SMTP_PASSWORD": "Not UTF-8."}),
        ("", {**COMPLETE, "SMTP_LOGIN": "x\ty", "SMTP_PASSWORD": "x"}, {"SMTP_LOGIN": "control character"}),
        ("", {**COMPLETE, "DB_URI": "mongodb://u:hunter2\udcff@x"}, {"DB_URI": "Not UTF-8."}),
        ("", {**COMPLETE, "DB_URI": "mongodb-1"}, {"DB_URI": "Not a valid MongoDB"}),
        ("", {**COMPLETE, "START_TIMEOUT": "0"}, {"START_TIMEOUT": "greater than 0"}),
        (
            "",
            {**COMPLETE, "API_KEYS": "x" * 32, "USER_TOKEN_SECRETS": "x" * 32 + "\udcff"},
            {"USER_TOKEN_SECRETS": "UTF-8"},
        ),
    ],
)
def test_what_could_be_misread_is_a_fault(
    environment: Callable[..., Settings], env_file: str, variables: Mapping[str, str], faults: Mapping[str, str]
) -> None:
    if any("\x00" in value for value in variables.values()):  # no environment can hold it; a file can
        env_file, variables = "".join(f"{name}={value}\n" for name, value in variables.items()), {}
    with pytest.raises(SettingsError) as raised:
        environment(env_file, **variables)
    found = {re.sub(r"^/.*/", "", name): " ".join(texts) for name, texts in raised.value.faults.items()}
    assert found.keys() == faults.keys()
    assert all(re.search(faults[name], text) for name, text in found.items()), found
    assert "hunter2" not in f"{raised.value}"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("DB_URL", "; is DB_URI meant?"),
        ("SMTP_PASSWROD", "; is SMTP_PASSWORD meant?"),
        ("API_KEY", "; is API_KEYS meant?"),
        ("NOTIFICATION_LIMIT", "; is NOTIFICATIONS_LIMIT meant?"),
        ("SMTP_SERVER", "."),
        ("SMTP_USER", "."),
    ],
)
def test_a_similar_name_in_the_environment_is_a_warning(
    environment: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, said: str
) -> None:
    environment(**({} if name == "DB_URL" else COMPLETE))
    monkeypatch.setenv(name, "hunter2")
    assert read_settings(tmp_path / ".env")[1] == [f"{name}: No variable of the service has this name{said}"]


def test_a_name_like_one_that_is_given_is_no_warning(
    environment: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    environment()
    (tmp_path / ".env").write_text(f"{FILE}API_KEYS={'k' * 32}\n")
    for name in ("DB_URL", "MONGO_URL", "API_KEY"):
        monkeypatch.setenv(name, "mongodb://x")
    assert read_settings(tmp_path / ".env")[1] == []


def test_the_api_key_of_a_client_stops_no_command(tmp_path: Path) -> None:
    preview = ("preview", "new_login")
    for variables, warned in (({}, True), ({"API_KEYS": "k" * 32}, False)):
        done = run(*preview, cwd=tmp_path, API_KEY="hunter2", **COMPLETE, **variables)
        assert (done.returncode, "is API_KEYS meant?" in done.stderr) == (0, warned)
        assert "hunter2" not in done.stderr
    done = run_here("check", cwd=tmp_path, API_KEY="hunter2")
    assert re.search("^ok +configuration +a local run.*API_KEY: .* is API_KEYS meant", done.stdout)


def test_each_fault_of_templates_and_kinds_has_its_own_line(
    environment: Callable[..., Settings], tmp_path: Path
) -> None:
    templates = tmp_path / "templates"
    templates.mkdir()
    for name in ("a.txt", "b.txt", "new_login.txt"):
        (templates / name).write_text("{{ oops }}")
    (tmp_path / "kinds.toml").write_text("[A]\n[b]\nlabel = 5\n")
    with pytest.raises(SettingsError) as raised:
        environment(**COMPLETE, TEMPLATES_DIR=f"{templates}")
    assert [line[:24] for line in f"{raised.value}".splitlines()[1:]] == [
        "  TEMPLATES_DIR: a.txt: ",
        "  TEMPLATES_DIR: b.txt: ",
    ]
    with pytest.raises(SettingsError) as raised:
        environment(**COMPLETE, KINDS_FILE=f"{tmp_path / 'kinds.toml'}", TEMPLATES_DIR="")
    assert [line.split("]")[0] for line in f"{raised.value}".splitlines()[1:]] == [
        "  KINDS_FILE: [A",
        "  KINDS_FILE: [b",
    ]
    gone = {"KINDS_FILE": "/no/kinds", "TEMPLATES_DIR": "/no/templates", "SMTP_CA_FILE": "/no/ca"}
    for name, path in gone.items():
        with pytest.raises(SettingsError) as raised:
            environment(**COMPLETE, **dict.fromkeys(gone, "") | {name: path})
        assert re.match(f"Cannot be read.*: {path}: No such file or directory.$", raised.value.faults[name][0])


def test_an_email_that_a_shell_exports_leaves_a_local_run_local(environment: Callable[..., Settings]) -> None:
    settings = environment(EMAIL="me@example.com")
    assert (settings.local, settings.email) == (True, "me@example.com")


@pytest.mark.parametrize(
    "variables",
    [
        {"SMTP_SERVICE_HOST": "10.0.0.1", "SMTP_SERVICE_PORT": "25", "SMTP_PORT_25_TCP_ADDR": "10.0.0.1"},  # Kubernetes
        {"MONGODB_URI": "mongodb://x", "DATABASE_URL": "postgres://x"},  # of another program, as DB_URI is set
        {
            "HOSTNAME": "web-1",
            "EMAILS": "",
            "LANG": "C",
            "HOSTTYPE": "x86_64",
            "USER": "root",
            "MAIL": "/var/mail/root",
        },
    ],
)
def test_what_a_platform_sets_is_no_fault(
    environment: Callable[..., Settings], tmp_path: Path, variables: dict[str, str]
) -> None:
    environment(**COMPLETE, **variables)
    settings, warnings = read_settings(tmp_path / ".env")
    assert (settings.db_uri, warnings) == (COMPLETE["DB_URI"], [])


@pytest.mark.parametrize("host", ["smtp.example.com", "a_b", "127.0.0.1", "::1", "fe80::1%eth0", "ö.example", "x."])
def test_host_names_and_addresses_are_accepted(environment: Callable[..., Settings], host: str) -> None:
    assert environment(**{**COMPLETE, "SMTP_HOST": host}).smtp_host == host


def test_names_of_a_local_run_are_names_and_addresses(environment: Callable[..., Settings]) -> None:
    settings = environment(LOCAL_NAMES="box.local, 192.168.1.5,fe80::1")
    assert (settings.local, settings.local_names) == (True, ["box.local", "192.168.1.5", "fe80::1"])


@pytest.mark.parametrize("kind", ["directory", "link to itself", "link to nothing", "not UTF-8", "under a file"])
def test_an_unreadable_file_is_a_fault_not_a_local_run(
    environment: Callable[..., Settings], tmp_path: Path, kind: str
) -> None:
    environment()  # clears the variables
    path = tmp_path / "file"
    match kind:
        case "directory":  # as Docker makes of a file that is not there
            path.mkdir()
        case "link to itself":
            path.symlink_to(path)
        case "link to nothing":
            path.symlink_to(tmp_path / "nothing")
        case "not UTF-8":
            path.write_bytes("EMAIL=ö@b.example".encode("latin-1"))
        case "under a file":
            path.write_text("")
            path /= "file"
    with pytest.raises(SettingsError) as raised:
        read_settings(path)
    assert list(raised.value.faults) == [f"{path}"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_without_permission_is_a_fault(environment: Callable[..., Settings], tmp_path: Path) -> None:
    environment()
    (tmp_path / ".env").chmod(0)
    with pytest.raises(SettingsError, match="Permission denied"):
        read_settings(tmp_path / ".env")


def test_a_pipe_is_read_as_a_file_is(environment: Callable[..., Settings]) -> None:
    environment()
    reader, writer = os.pipe()
    os.write(writer, FILE.encode())
    os.close(writer)
    assert read_settings(Path(f"/dev/fd/{reader}"))[0].email == COMPLETE["EMAIL"]
    os.close(reader)


def test_the_process_ends_with_code_2_and_every_fault_at_once(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("EMAIL=a@b.example\nthis is no line\nDB_URL=mongodb://user:hunter2@x\n")
    done = run(cwd=tmp_path)
    assert done.returncode == 2
    assert [line.split(":")[0].strip() for line in done.stderr.splitlines()] == [
        "The configuration is not valid",
        ".env, line 2",
        "DB_URI",
        "DB_URL",
        "SMTP_HOST",
    ]
    assert "hunter2" not in done.stderr
    assert not (tmp_path / ".notifier").exists()
