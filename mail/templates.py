"""What an e-mail says: the operator's templates, and the process that renders them (`mail/rendering.py`)."""

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import orjson

from config.languages import LANGUAGE
from settings import Settings

ANSWER_LIMIT: Final = 4 * 1024 * 1024  # bytes of an answer; three parts of 256 KiB, written as JSON, have less
PATIENCE: Final = 60.0  # seconds to wait for an answer: a process that was stopped never uses its 2 s of CPU time
INHERITED: Final = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME", "PYTHONTZPATH", "PYTHONDONTWRITEBYTECODE")
"""The variables that Python itself may need. Others may be secrets."""
ENDS: Final = {-signal.SIGPROF: "rendering took more than 2 s", 3: "rendering needed more than 64 MB"}  # by exit code


@dataclass(frozen=True, slots=True)
class Content:
    subject: str  # one line without encoded words (RFC 2047)
    text: str
    html: str | None = None
    unsubscribe_url: str | None = None


class TemplatesError(Exception):
    """Some templates cannot be used. The message has a line for each fault, with its file and line."""


class RenderError(Exception):
    """A template failed on these fields, in this file and line. `kind` is the error's type; `reason` may quote data."""

    def __init__(self, place: str, kind: str, reason: str) -> None:
        super().__init__(place)
        self.kind = kind
        self.reason = reason


class RenderingEnded(Exception):
    """Rendering an e-mail ended the process that renders. The message says why."""


class Templates:
    """The templates of `TEMPLATES_DIR`: `KEY.subject.txt`, `KEY.txt` and `KEY.html`, all optional.

    They can extend or include files that begin with `_`. Hidden files are ignored. All are read once, here.
    The process that renders them starts with the first question. Raises `TemplatesError`.
    """

    def __init__(self, settings: Settings) -> None:
        folder, user = settings.templates_dir, bool(settings.template_fields)
        kinds = {name: asdict(kind) for name, kind in settings.kinds.items()}
        self._sources = _read(folder, kinds) if folder else {}
        self._keys = {name.partition(".")[0] for name in self._sources}
        self._setup = orjson.dumps({"sources": self._sources, "kinds": kinds, "user": user}) + b"\n"
        self._process: Process | None = None
        self._asked = 0
        self._starting = asyncio.Lock()
        self._turn = asyncio.Lock()

    async def test(self) -> None:
        """Try every template, and end the process. Raises `TemplatesError` with every fault."""
        faults: list[str] = []
        for name in sorted(self._sources):
            try:
                faults += await self._ask({"name": name})
            except RenderingEnded as exc:
                faults.append(f"{name}: {exc}.")
        await self.aclose()
        if faults:
            raise TemplatesError("\n".join(faults))

    async def render(self, fields: Mapping[str, Any], language: str | None = None, link: str | None = None) -> Content:
        """Return the e-mail about a notification. Raises `RenderError`, `RenderingEnded` or `OSError`."""
        key: str = fields["key"]
        if key not in self._keys:
            return content_of(fields, link)
        question = {"fields": fields, "language": language, "unsubscribe_url": link}
        answer: Mapping[str, Sequence[str]] = await self._ask(question)
        if "failed" in answer:
            raise RenderError(*answer["failed"])
        return content_of(fields, link, answer["parts"])

    async def aclose(self) -> None:
        if process := self._process:
            await self._end(process, kill=True)

    async def _ask(self, question: object) -> Any:
        """Ask, perhaps while others do. Raises `RenderingEnded` if this question, and not another, ends the process."""
        self._asked = number = self._asked + 1
        line = orjson.dumps([number, question], default=str) + b"\n"
        while True:
            process = await self._running()
            process.stdin.write(line)  # type: ignore[union-attr] # it is a pipe
            # Nothing is awaited in between, so the turns come in the order of the questions.
            async with self._turn:
                while process is self._process:
                    answered, answer = await self._answer(process)
                    if answered == number:  # other answers belong to tasks that were cancelled
                        return answer

    async def _running(self) -> Process:
        async with self._starting:
            if self._process is None or self._process.returncode is not None:
                self._process = await self._start()
            return self._process

    async def _start(self) -> Process:
        environment = {name: os.environ[name] for name in INHERITED if name in os.environ}
        process = await asyncio.create_subprocess_exec(
            # Neither the working directory (-P) nor a hook in site-packages (-S) decides what is imported.
            *(sys.executable, "-P", "-S", "-m", "mail.rendering"),
            stdin=PIPE,
            stdout=PIPE,
            limit=ANSWER_LIMIT,
            env=environment | {"PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)},
            start_new_session=True,  # Ctrl-C is for the service, which still sends what it has begun
        )
        process.stdin.write(self._setup)  # type: ignore[union-attr]
        try:
            if await self._read_line(process):
                return process
        except asyncio.CancelledError:
            await self._end(process, kill=True)
            raise
        raise OSError(f"the process that renders templates does not start ({await self._end(process)})")

    async def _answer(self, process: Process) -> tuple[int, Any]:
        """Return a question's number and its answer, or 0 if the process has ended between questions."""
        if line := await self._read_line(process):
            number, answer = orjson.loads(line)
            return number, answer
        if code := await self._end(process):
            raise RenderingEnded(ENDS.get(code, f"rendering ended its process ({code})"))
        return 0, None

    async def _read_line(self, process: Process) -> bytes:
        try:
            async with asyncio.timeout(PATIENCE):
                line = await process.stdout.readline()  # type: ignore[union-attr]
        except (TimeoutError, ValueError):
            process.kill()
            return b""
        return line if line.endswith(b"\n") else b""

    async def _end(self, process: Process, *, kill: bool = False) -> int:
        self._process = None
        process.stdin.close()  # type: ignore[union-attr]
        if kill:
            # To kill one that has ended would take its exit code away from asyncio.
            with suppress(ProcessLookupError):
                process.kill()
        return await process.wait()


def content_of(fields: Mapping[str, Any], link: str | None, parts: Sequence[str] = ("", "", "")) -> Content:
    """Return what an e-mail says. The key replaces an absent subject or text, with the count if there are several."""
    subject, text, html = parts
    count = fields.get("count", 1)
    plain = f"{fields['key']} ({count})" if count > 1 else f"{fields['key']}"
    return Content(subject or plain, text or plain, html or None, link)


def _read(folder: Path, kinds: Iterable[str]) -> dict[str, str]:
    sources, faults = {}, []
    name = re.compile(rf"(?:{'|'.join(kinds)})(?:\.{LANGUAGE.pattern})?\.(?:subject\.txt|txt|html)|_.*\.(?:txt|html)")
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as exc:
        raise TemplatesError(f"Cannot be read: {folder}: {exc.strerror}.") from exc
    for path in paths:
        if not name.fullmatch(path.name):
            faults.append(
                f"{path.name}: not KEY.subject.txt, KEY.txt or KEY.html of a kind, with or without a language as in "
                "KEY.de.txt, nor _*.txt or _*.html."
            )
            continue
        try:
            sources[path.name] = path.read_text("utf-8-sig")
        except (OSError, UnicodeDecodeError) as exc:
            faults.append(f"{path.name}: cannot be read as UTF-8: {getattr(exc, 'strerror', None) or exc}.")
    if faults:
        raise TemplatesError("\n".join(faults))
    return sources
