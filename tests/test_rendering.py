"""The process that renders all templates: what it survives, what ends it, and that nothing else suffers."""

from __future__ import annotations

import asyncio
import math
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession

from cli.environment import SettingsError
from mail import templates as module
from mail.feedback import Feedback
from mail.lease import Lease
from mail.message import Letters
from mail.replies import Verdict
from mail.templates import Content, RenderError, RenderingEnded, Templates, TemplatesError
from mailer import Mailer, Worker
from mongo.owed import NO_TOKEN, OwedEmail
from settings import Settings
from tests.client import DB, OTHER, USER, assert_length, create, owed, settled
from tests.fixtures import Start
from tests.processes import COMPLETE, run, run_here, running_service
from tests.servers import MailServer
from tests.templates import write
from tests.waiting import eventually_async

LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
"""Jinja allows no longer ranges, but one within the other."""
GREEDY = "{% set ns = namespace(x='x') %}{% for i in range(TIMES) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
IF_BAD = "{% if data.bad %}BAD{% endif %}{{ data.n }}"
TOO_LONG, TOO_LARGE = "rendering took more than 2 s", "rendering needed more than 64 MB"
EMAIL = OwedEmail(
    document_id=None,
    user_id="",
    id="1" * 24,
    key="new_login",
    at=datetime.now(UTC),
    tries=0,
    token=NO_TOKEN,
    address="a@example.com",
)


def fields(**data: Any) -> dict[str, Any]:
    return {"id": "1" * 24, "key": "new_login", "timestamp": 1795406836, "user_id": USER, "data": data}


@asynccontextmanager
async def rendering(folder: Path, files: dict[str, str]) -> AsyncIterator[Templates]:
    async with aclosing(Templates(Settings(templates_dir=write(folder, files)))) as templates:
        yield templates


def environment_of(pid: int) -> str:
    return Path(f"/proc/{pid}/environ").read_text()


def pid_of(templates: Templates) -> int:
    process = templates._process
    assert process
    return process.pid


def renderers_of(pid: int) -> list[int]:
    """Return the processes that render for a service."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if b"mail.rendering" in Path(f"/proc/{child}/cmdline").read_bytes()]


def cpu_time(pid: int) -> float:
    """Return the seconds that a process has computed (proc_pid_stat(5), `utime`)."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11]) / os.sysconf("SC_CLK_TCK")


def assert_busy(pid: int, began: float) -> None:
    assert cpu_time(pid) > began + 0.3


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (LOOP, TOO_LONG),
        ("{{ data.huge ** data.huge }}", TOO_LONG),  # one step of Python's
        (GREEDY.replace("TIMES", "40"), TOO_LARGE),
        ("{{ 'x' * data.huge }}", TOO_LARGE),
        ("{{ data.name|center(data.huge) }}", TOO_LARGE),
    ],
)
async def test_a_greedy_email_ends_the_process_but_not_other_emails(tmp_path: Path, bad: str, reason: str) -> None:
    async with rendering(tmp_path, {"new_login.txt": IF_BAD.replace("BAD", bad)}) as templates:
        data = {"items": [0] * 4000, "huge": 10**9, "name": "x"}
        asked = [templates.render(fields(n=n, bad=n == 1, **(data if n == 1 else {}))) for n in range(4)]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert [answers[n] for n in (0, 2, 3)] == [Content("new_login", f"{n}") for n in (0, 2, 3)]
        assert (type(answers[1]), str(answers[1])) == (RenderingEnded, reason)


async def test_an_ordinary_error_keeps_the_process(tmp_path: Path) -> None:
    async with rendering(tmp_path, {"new_login.txt": "\n{{ 1 / data.n }}"}) as templates:
        assert (await templates.render(fields(n=2))).text == "0.5"
        pid = pid_of(templates)
        with pytest.raises(RenderError, match=r"^new_login\.txt, line 2$") as raised:
            await templates.render(fields(n=0))
        assert (raised.value.kind, raised.value.reason) == ("ZeroDivisionError", "division by zero")
        assert pid_of(templates) == pid


async def test_keys_alone_need_no_process(tmp_path: Path) -> None:
    async with rendering(tmp_path, {"new_post.txt": "x"}) as templates:
        assert await templates.render(fields()) == Content("new_login", "new_login")
        assert templates._process is None


async def test_a_process_that_dies_or_hangs_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with rendering(tmp_path, {"new_login.txt": "{{ data.n }}"}) as templates:
        await templates.render(fields(n=1))
        process = templates._process
        assert process
        process.kill()
        await process.wait()
        assert (await templates.render(fields(n=2))).text == "2"  # nobody is to blame
        os.kill(pid_of(templates), signal.SIGSTOP)
        monkeypatch.setattr(module, "PATIENCE", 0.1)
        with pytest.raises(RenderingEnded, match=r"^rendering ended its process \(-9\)$"):
            await templates.render(fields(n=3))
        monkeypatch.undo()
        assert (await templates.render(fields(n=4))).text == "4"


async def test_an_answer_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_LIMIT", 1000)
    async with rendering(tmp_path, {"new_login.txt": "{{ 'x' * data.n }}"}) as templates:
        with pytest.raises(RenderingEnded):
            await templates.render(fields(n=3000))
        assert len((await templates.render(fields(n=500))).text) == 500


async def test_a_sigterm_to_the_group_does_not_end_the_process(tmp_path: Path) -> None:
    async with rendering(tmp_path, {"new_login.txt": "{{ data.n }}"}) as templates:
        await templates.render(fields(n=1))
        pid = pid_of(templates)
        os.kill(pid, signal.SIGTERM)
        assert (await templates.render(fields(n=2))).text == "2"
        assert pid_of(templates) == pid


async def test_a_cancelled_question_leaves_other_answers_in_order(tmp_path: Path) -> None:
    async with rendering(tmp_path, {"new_login.txt": "{{ data.n }}"}) as templates:
        await templates.render(fields(n=0))
        os.kill(pid_of(templates), signal.SIGSTOP)
        tasks = [asyncio.create_task(templates.render(fields(n=n))) for n in range(6)]
        await asyncio.sleep(0)
        for task in (tasks[0], tasks[3]):
            task.cancel()
        os.kill(pid_of(templates), signal.SIGCONT)
        done = await asyncio.gather(*tasks, return_exceptions=True)
        assert [answer.text if isinstance(answer, Content) else "" for answer in done] == ["", "1", "2", "", "4", "5"]


async def test_more_languages_than_memory_holds_cost_no_email(tmp_path: Path) -> None:
    async with rendering(tmp_path, {"new_login.txt": "{{ data.n|number }}"}) as templates:
        pids = set()
        for language in (f"{a}{b}" for a in "abcdefghijklmnopqrstuvwz" for b in "aeiklnorstuvy"):
            assert (await templates.render(fields(n=7), language)).text
            pids.add(pid_of(templates))
        assert len(pids) > 1


async def test_the_process_knows_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMTP_PASSWORD", "open sesame")
    async with rendering(tmp_path, {"new_login.txt": "x"}) as templates:
        await templates.render(fields())
        environ = environment_of(pid_of(templates))
    assert "sesame" not in environ
    assert {line.partition("=")[0] for line in environ.split("\0") if line} <= {"PYTHONPATH", *module.INHERITED}


@pytest.mark.ci
async def test_a_template_that_never_ends_is_named_at_the_start(tmp_path: Path) -> None:
    files = {"new_login.txt": LOOP, "new_post.txt": "fine", "_a.txt": "{{ 9**(9**9) }}"}
    templates = Templates(Settings(templates_dir=write(tmp_path, files)))
    with pytest.raises(TemplatesError) as raised:
        await templates.test()
    assert str(raised.value) == "\n".join(f"{name}: {TOO_LONG}." for name in ("_a.txt", "new_login.txt"))
    assert templates._process is None


def test_a_fault_of_the_start_is_one_of_the_configuration(environment: Callable[..., Settings], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f"TEMPLATES_DIR: new_login.txt: {TOO_LARGE}"):
        environment(**COMPLETE, TEMPLATES_DIR=f"{write(tmp_path, {'new_login.txt': GREEDY.replace('TIMES', '40')})}")


def test_preview_says_that_an_email_takes_too_much(tmp_path: Path) -> None:
    folder = write(tmp_path, {"new_login.txt": GREEDY.replace("TIMES", "data.times or 0")})
    done = run_here("preview", "new_login", "--data", '{"times": 40}', cwd=tmp_path, TEMPLATES_DIR=f"{folder}")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"{TOO_LARGE}; the e-mail would become a dead letter.\n"


def test_modules_in_the_working_directory_are_not_imported(tmp_path: Path) -> None:
    (tmp_path / "jinja2.py").write_text("raise SystemExit('not this one')")
    folder = write(tmp_path, {"new_login.txt": "{{ data.n }}"})
    done = run("preview", "new_login", "--data", '{"n": 7}', cwd=tmp_path, TEMPLATES_DIR=f"{folder}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Subject: new_login\n\n7\n", "")


@pytest.mark.ci
async def test_the_third_crash_of_rendering_makes_a_dead_letter(
    start: Start, database: DB, mail: MailServer, tmp_path: Path
) -> None:
    folder = write(tmp_path, {"new_login.txt": IF_BAD.replace("BAD", LOOP)})
    client = await start(templates_dir=folder, mail_give_up_hours=1000.0)
    await create(client, key="new_login", data={"bad": True})

    async def crashed() -> None:
        response = await asyncio.wait_for(client.get("/healthz"), 1)  # while a template loops
        assert response.status == 200
        (item,) = owed(database)
        assert item.get("crashes") == 1

    await eventually_async(crashed)
    await create(client, OTHER, "new_login", data={"n": 7})
    await settled(database, 60)
    (letter,) = database.dead_mail.find()
    assert (letter["user_id"], letter["error"], letter["tries"]) == (USER, f"Given up: {TOO_LONG}", 3)
    ((_, message),) = mail.received
    assert str(message.get_payload()).strip() == "7"


@pytest.mark.parametrize("error", [RenderingEnded("took too long"), RuntimeError(), asyncio.CancelledError()], ids=repr)
async def test_an_error_of_rendering_keeps_the_connection(
    settings: Settings, mail: MailServer, error: BaseException
) -> None:
    class FailsOnce(Letters):
        failed = False

        async def content(self, _: Lease) -> Content:
            if not self.failed:
                self.failed = True
                raise error
            return Content("subject", "text")

    mailer = Mailer(settings, Feedback(settings), FailsOnce(settings), Worker())
    with pytest.raises(type(error)):
        await mailer.send(Lease(EMAIL, math.inf))
    outcome = await mailer.send(Lease(EMAIL, math.inf))
    assert (outcome and outcome.verdict, mail.ids, mail.connections) == (Verdict.SENT, [EMAIL.id], 1)
    await mailer.pool.close_all()


async def test_a_process_that_does_not_start_keeps_the_connection(
    start: Start, database: DB, mail: MailServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await start(templates_dir=write(tmp_path, {"new_login.txt": "text"}))

    def is_told() -> None:
        (item,) = owed(database)
        assert item["error"] == "The service failed to send it."

    with monkeypatch.context() as patched:
        patched.setattr("sys.executable", "/nonexistent")
        await create(client, key="new_login")
        await eventually_async(is_told)
    await settled(database)
    assert (len(mail.received), mail.connections) == (1, 1)


async def test_the_process_ends_when_the_service_is_killed(settings: Settings, tmp_path: Path) -> None:
    folder = write(tmp_path, {"new_login.txt": IF_BAD.replace("BAD", LOOP)})
    service = await running_service(settings, tmp_path, TEMPLATES_DIR=folder)
    async with ClientSession(f"http://127.0.0.1:{service.port}") as session:
        for bad in (False, True):
            body = {"user_id": USER, "key": "new_login", "data": {"bad": bad}}
            async with session.post("/create", json=body) as response:
                assert response.status == 201
            await eventually_async(lambda: assert_length(renderers_of(service.process.pid), 1))
    (pid,) = renderers_of(service.process.pid)
    began = cpu_time(pid)
    await eventually_async(lambda: assert_busy(pid, began))
    service.kill()
    await eventually_async(lambda: assert_length([*Path("/proc").glob(f"{pid}/exe")], 0), 60)
