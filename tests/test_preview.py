"""The command `preview`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.client import KEY, TARGET
from tests.links import SHOP
from tests.processes import COMPLETE, run_here
from tests.templates import write


@pytest.mark.ci
def test_preview_shows_an_email_and_needs_no_database(tmp_path: Path) -> None:
    folder = write(tmp_path, {"new_login.subject.txt": "Hi {{ data.n }}", "new_login.txt": "{{ target_id }}"})
    arguments = ("preview", "new_login", "--data", '{"n": "é\\r\\n"}', "--target-id", TARGET.upper())
    done = run_here(*arguments, cwd=tmp_path, **COMPLETE, TEMPLATES_DIR=f"{folder}")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"Subject: Hi é\n\n{TARGET}\n", "")
    write(tmp_path, {"new_login.html": "<b>{{ data.n }}</b>"})
    done = run_here(*arguments, cwd=tmp_path, TEMPLATES_DIR=f"{folder}")
    assert done.stdout.endswith("\n--- as HTML ---\n\n<b>é\n</b>\n")
    done = run_here("preview", "new_login", cwd=tmp_path)
    assert done.stdout == "Subject: new_login\n\nnew_login\n"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["new_login", "--data", '{"n": 0}'],
            "new_login.txt, line 2: division by zero; the e-mail would be sent without templates.",
        ),
        (["newlogin"], "key: Must be one of: registration, new_message, new_post, new_login, question_answered."),
        (["new_login", "--data", "{"], "data: not JSON: "),
        (["new_login", "--data", "7"], "data: Not an object."),
        (["new_login", "--data", '{"$a": 1}'], "data: A name must not start with '$' or contain NUL."),
        (["new_login", "--target-id", "7"], "target_id: Not a valid ObjectId."),
    ],
)
def test_preview_says_in_one_sentence_what_is_wrong(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    folder = write(tmp_path, {"new_login.txt": "\n{{ 1 / data.n }}"})
    done = run_here("preview", *arguments, cwd=tmp_path, TEMPLATES_DIR=f"{folder}")
    code = 1 if "division" in sentence else 2  # which is for arguments that cannot be used
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (code, "", 1)
    assert done.stderr.startswith(sentence)


@pytest.mark.parametrize("variables", [{}, {"PUBLIC_URL": "https://x.example/", "API_KEYS": KEY}])
def test_preview_shows_the_language_and_the_link(tmp_path: Path, variables: dict[str, str]) -> None:
    folder = write(tmp_path, {"order_shipped.txt": "{{ language }}: {{ kind.label }} [{{ unsubscribe_url }}]"})
    shop = {"KINDS_FILE": f"{SHOP}", "TEMPLATES_DIR": f"{folder}"}
    arguments = ("order_shipped", "--language", "de_DE", "--data", '{"number": 7}')
    done = run_here("preview", *arguments, cwd=tmp_path, **shop, **variables)
    found = re.search(r"List-Unsubscribe: <(https://x\.example/u/[\w-]{60,})>\n", done.stdout)
    assert bool(found) == bool(variables)
    header, link = (found[0], found[1]) if found else ("", "")
    assert done.stdout == f"Subject: order_shipped\n{header}\nde-DE: Bestellung 7 ist unterwegs [{link}]\n"
