"""Secrets: from a file, in quotes, and with a scope. The start reports values that are almost right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from cli.environment import SettingsError, read_settings
from settings import ALL_SCOPES, SECRETS, Scope, Settings
from tests.processes import COMPLETE, run_here

KEY = "k" * 32
LOGIN = ("SMTP_LOGIN", "SMTP_PASSWORD")
GOOD = {
    "DB_URI": COMPLETE["DB_URI"],
    "SMTP_PASSWORD": " p$w #1 ",
    "API_KEYS": KEY,
    "USER_TOKEN_SECRETS": "a" * 32,
    "UNSUBSCRIBE_SECRETS": "b" * 32,
}
BY_TOKEN = {name: value for name, value in GOOD.items() if name != "SMTP_PASSWORD"} | {
    "SMTP_OAUTH_CLIENT_SECRET": " c$s #1 ",
    "SMTP_OAUTH_REFRESH_TOKEN": "r",
}
AROUND = {"EMAIL": "a@b.example", "SMTP_HOST": "x", "SMTP_LOGIN": "me", "PUBLIC_URL": "https://x.example"}
OAUTH = {"SMTP_OAUTH_TOKEN_URL": "https://x.example/token", "SMTP_OAUTH_CLIENT_ID": "id"}


def faults_of(load: Callable[..., Settings], env_file: str = "", **variables: str) -> Mapping[str, str]:
    with pytest.raises(SettingsError) as raised:
        load(env_file, **variables)
    assert "hunter2" not in f"{raised.value}"
    return {name: "\n".join(texts) for name, texts in raised.value.faults.items()}


# --- from a file ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
@pytest.mark.parametrize("in_file", [False, True])
@pytest.mark.parametrize(("good", "around"), [(GOOD, AROUND), (BY_TOKEN, AROUND | OAUTH)], ids=["password", "token"])
def test_every_secret_may_stand_in_a_file(
    environment: Callable[..., Settings],
    tmp_path: Path,
    end: str,
    in_file: bool,
    good: Mapping[str, str],
    around: Mapping[str, str],
) -> None:
    for name, value in good.items():
        (tmp_path / name).write_bytes(f"{value}{end}".encode())
    given = {**around, **{f"{name}_FILE": f"{tmp_path / name}" for name in good}}
    settings = environment("".join(f"{n}={v}\n" for n, v in given.items())) if in_file else environment(**given)
    assert settings == environment(**{f"{name}_FILE": "" for name in good}, **around, **good)
    assert settings.smtp_password == good.get("SMTP_PASSWORD")
    assert settings.smtp_oauth_client_secret == good.get("SMTP_OAUTH_CLIENT_SECRET")


def test_the_list_of_secrets_is_complete() -> None:
    assert {*GOOD, *BY_TOKEN} == set(SECRETS)


def test_only_one_newline_is_taken_away_from_a_file(environment: Callable[..., Settings], tmp_path: Path) -> None:
    (tmp_path / "password").write_text("p w\n\n")
    found = faults_of(environment, **COMPLETE, SMTP_LOGIN="me", SMTP_PASSWORD_FILE=f"{tmp_path / 'password'}")
    assert found == {"SMTP_PASSWORD": "Has a control character."}


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "Cannot be read: No such file or directory ({})."),
        ("directory", "Cannot be read: Is a directory ({})."),
        ("loop", "Cannot be read: Too many levels of symbolic links ({})."),
        ("below a file", "Cannot be read: Not a directory ({}/x)."),
        ("not UTF-8", "Cannot be read: not UTF-8 ({})."),
        ("empty", "Is empty ({})."),
        ("relative", "Cannot be read: No such file or directory."),  # it may be the secret itself
    ],
)
def test_a_file_that_cannot_be_read_never_leaves_the_api_open(
    environment: Callable[..., Settings], tmp_path: Path, kind: str, said: str
) -> None:
    path = tmp_path / "key"
    match kind:
        case "directory":  # as Docker makes of a file that is not there
            path.mkdir()
        case "loop":
            path.symlink_to(path)
        case "not UTF-8":
            path.write_bytes(b"\xff" * 40)
        case "below a file" | "empty":
            path.write_bytes(b"\n")
    given = {"below a file": f"{path}/x", "relative": "hunter2"}.get(kind, f"{path}")
    assert faults_of(environment, **COMPLETE, API_KEYS_FILE=given) == {"API_KEYS_FILE": said.format(path)}


def test_a_value_and_a_file_are_one_too_many(environment: Callable[..., Settings], tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    found = faults_of(environment, f"API_KEYS={KEY}", **COMPLETE, API_KEYS_FILE=f"{tmp_path / 'key'}")
    assert found == {"API_KEYS_FILE": "API_KEYS is set as well: set only one of the two."}


def test_a_database_named_in_a_file_is_no_local_run(tmp_path: Path) -> None:
    done = run_here(cwd=tmp_path, DB_URI_FILE="/nowhere")
    assert done.returncode == 2
    assert [line.split(":")[0].strip() for line in done.stderr.splitlines()[1:]] == [
        "DB_URI_FILE",
        "EMAIL",
        "SMTP_HOST",
    ]


# --- a value that another reader takes for another --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("SMTP_PASSWORD=p@ss$word1", "Docker Compose would expand a $ in SMTP_PASSWORD"),
        ('SMTP_PASSWORD="p@ss$word1"', "Docker Compose would expand a $ in SMTP_PASSWORD"),
        (
            "SMTP_PASSWORD=p@ss #word1",
            "Docker Compose would expand a $ in SMTP_PASSWORD, and its value ends before a #",
        ),
        ("SMTP_PASSWORD='p@ss$word #1'", ""),
        ("SMTP_PASSWORD=p@ss#word1", ""),
        ("SMTP_PASSWORD=x\nPORT=8080 # the port", ""),
    ],
)
def test_a_value_that_compose_would_change_is_warned_about(
    environment: Callable[..., Settings], tmp_path: Path, line: str, said: str
) -> None:
    environment(**COMPLETE)
    (tmp_path / ".env").write_text(f"{line}\nSMTP_LOGIN=x")
    warnings = read_settings(tmp_path / ".env")[1]
    assert bool(warnings) == bool(said)
    assert not said or warnings[0].startswith(f"{tmp_path / '.env'}, line 1: {said}")
    assert "p@ss" not in f"{warnings}"


def test_a_line_that_repeats_a_variable_is_warned_about(environment: Callable[..., Settings], tmp_path: Path) -> None:
    environment(**COMPLETE)
    (tmp_path / ".env").write_text(f"API_KEYS={'a' * 32}\n\nAPI_KEYS={'b' * 32}\n")
    settings, warnings = read_settings(tmp_path / ".env")
    assert settings.api_keys == ["b" * 32]
    assert warnings == [f"{tmp_path / '.env'}, line 3: API_KEYS is in line 1, too; the later one counts."]


@pytest.mark.parametrize("quote", ["'", '"'])
@pytest.mark.parametrize("name", ["SMTP_PASSWORD", "DB_URI", "PORT", "API_KEYS_FILE"])
def test_quotes_in_the_environment_are_a_fault(environment: Callable[..., Settings], name: str, quote: str) -> None:
    """`docker run --env-file` and a list of Compose keep the quotes that a shell or `.env` takes away."""
    variables = {**COMPLETE, "SMTP_LOGIN": "me", "SMTP_PASSWORD": "it's", "PORT": "80", "API_KEYS_FILE": __file__}
    assert name not in faults_of(environment, **variables, START_TIMEOUT="x")
    found = faults_of(environment, **{**variables, name: f"{quote}{variables[name]}{quote}"})
    assert found[name].startswith("Is in quotes")


def test_an_empty_variable_hides_that_of_the_file(environment: Callable[..., Settings]) -> None:
    settings = environment("SMTP_LOGIN=me\nSMTP_PASSWORD=x\n", **COMPLETE, **dict.fromkeys(LOGIN, " "))
    assert (settings.smtp_login, settings.smtp_password) == (None, None)


def test_variables_that_kubernetes_sets_for_smtp_are_named(environment: Callable[..., Settings]) -> None:
    found = faults_of(environment, **COMPLETE, SMTP_PORT="tcp://10.0.0.1:25")
    assert "enableServiceLinks: false" in found["SMTP_PORT"]


@pytest.mark.parametrize("scheme", ["mongodb", "mongodb+srv"])
@pytest.mark.parametrize(
    ("rest", "said"),
    [
        ("u:hunter2@more@x/db", "@ as %40"),
        ("u:hunter2/more@x/db", "/ as %2F"),
        ("u:hunter2:more@x/db", ": as %3A"),
        ("u:hunter2%@x/db", "% as %25"),
        ("u:hunter2@x/db?retryWrite=true", "The option retryWrite is"),
        ("u:hunter2@x/db?w=majority&tls=perhaps", "The option tls is"),
        ("u:hunter2@", "Not a valid MongoDB connection string"),
    ],
)
def test_the_fault_of_a_connection_string_is_named(
    environment: Callable[..., Settings], scheme: str, rest: str, said: str
) -> None:
    found = faults_of(environment, **{**COMPLETE, "DB_URI": f"{scheme}://{rest}"})
    assert said in found["DB_URI"]


# --- keys with a scope ------------------------------------------------------------------------------------------------


def test_a_key_has_the_scopes_before_its_colon(environment: Callable[..., Settings]) -> None:
    given = f"{KEY}, metrics:{'m' * 32},create+inbox:{'c' * 32}"
    settings = environment(**COMPLETE, API_KEYS=given, PUBLIC_URL="https://x.example")
    assert settings.scopes == {
        KEY: ALL_SCOPES,
        "m" * 32: {Scope.METRICS},
        "c" * 32: {Scope.CREATE, Scope.INBOX},
    }
    assert settings.link_secrets == [KEY]  # whoever reads the metrics makes no links


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            f"metric:hunter2{KEY}",
            "Item 1: Has no scope before its colon; the scopes are create, inbox, suppress, erase, m",
        ),
        (f"{KEY},hunter2:{KEY}", "Item 2: Has no scope"),
        (f":{KEY}", "Item 1: Has no scope"),
        (f"metrics+:{KEY}", "Item 1: Has no scope"),
        ("metrics:hunter2", "Item 1: Shorter than 32 bytes"),
        (f"{KEY},metrics:{KEY}", "Repeats a key"),
        (f"{KEY}\n{KEY}", "Item 1: Has a control character."),  # a file with a key in each line
    ],
)
def test_a_key_that_is_almost_right_is_a_fault(environment: Callable[..., Settings], keys: str, said: str) -> None:
    found: Mapping[str, Any] = faults_of(environment, **COMPLETE, API_KEYS=keys)
    assert list(found) == ["API_KEYS"]
    assert found["API_KEYS"].startswith(said)


def test_links_need_a_secret_that_opens_everything(environment: Callable[..., Settings]) -> None:
    found = faults_of(environment, **COMPLETE, API_KEYS=f"metrics:{KEY}", PUBLIC_URL="https://x.example")
    assert list(found) == ["UNSUBSCRIBE_SECRETS"]
