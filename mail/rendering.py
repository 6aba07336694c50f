"""The process that renders templates, for `mail/templates.py`: it answers questions. All lines are JSON.

The authors of templates are trusted; the `data` that clients send is not. So the kernel ends the process if a template
takes more time or memory than the limits here. The process has no secrets of the service, and imports little.
"""

import os
import re
import resource
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import orjson
from jinja2 import ChainableUndefined, FunctionLoader, Template, TemplateSyntaxError, Undefined, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from config.languages import forms_of, tag_of
from kinds import Kind
from mail.formats import filters, write

PARTS: Final = ("subject.txt", "txt", "html")
VARIABLES: Final = frozenset({"id", "key", "timestamp", "user_id", "target_id", "data"}) | {
    *("notifications", "count", "kind", "language", "unsubscribe_url")
}
CPU_SECONDS: Final = 2.0  # for one e-mail; time in which the machine runs other programs does not count
MEMORY: Final = 64 * 1024 * 1024  # bytes that the process may need beyond what it has before its first e-mail
OUT_OF_MEMORY: Final = 3  # exit code of a process that needed more
RENDERED_LIMIT: Final = 256 * 1024  # bytes of UTF-8 in one rendered part; some mailboxes accept only a few MiB
SUBJECT_LIMIT: Final = 250  # characters; no mailbox shows more
MESSAGE_LIMIT: Final = 500  # characters of an error message that are reported
REFERENCES: Final[tuple[type[Any], ...]] = (nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)
CONTROLS: Final = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline; some servers refuse them


class _Sandbox(ImmutableSandboxedEnvironment):
    """Shows a template the fields and items of a value, but not its Python attributes, such as a dict's `items`."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj).__module__.partition(".")[0] == "jinja2":  # such as `loop`
            return super().getattr(obj, attribute)
        return self.getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        with suppress(LookupError, TypeError):
            if isinstance(obj, dict) and argument not in obj:
                return obj[f"{argument}"]  # Jinja reads the `0` in `user.emails.0` as a number
            if isinstance(obj, dict | list | tuple | str | Undefined):
                return obj[argument]
        return self.undefined(obj=obj, name=argument)


class Rendering:
    """Renders templates; `sources` maps their file names to their text. With `user`, they may use that variable."""

    def __init__(self, sources: Mapping[str, str], kinds: Mapping[str, Mapping[str, Any]], *, user: bool) -> None:
        self._sources = sources
        self._names = {name.lower(): name for name in sources}
        self._kinds = {name: Kind(**fields) for name, fields in kinds.items()}
        self._variables = VARIABLES | ({"user"} if user else frozenset())
        self._language: str | None = None
        self._at = ""
        self._environment = _Sandbox(
            # The file name also stands in tracebacks. Nothing is read from a file.
            loader=FunctionLoader(lambda name: (sources[name], name, None) if name in sources else None),
            undefined=ChainableUndefined,
            autoescape=lambda name: name is not None and name.endswith(".html"),
            finalize=lambda value: "" if value is None else value,
            cache_size=-1,
        )
        self._environment.filters |= filters(lambda: self._language)

    def answer(self, request: Mapping[str, Any]) -> Any:
        """Return the faults of a template; or the subject, text and HTML of an e-mail, or why it cannot be rendered."""
        if "name" in request:
            return list(self._faults(request["name"]))
        try:
            return {"parts": self._render(**request)}
        except Exception as exc:  # noqa: BLE001 - a template may raise anything
            lines = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(exc.__traceback__)]
            places = [f"{name}, line {line}" for name, line in lines if name in self._sources]
            message = f"{exc}"[:MESSAGE_LIMIT].encode("utf-8", "replace").decode()
            return {"failed": [[self._at, *places][-1], type(exc).__name__, message]}

    def _render(self, fields: Mapping[str, Any], language: str | None, unsubscribe_url: str | None) -> Sequence[str]:
        key = self._at = fields["key"]
        self._language = language
        kind = self._kinds.get(key) or Kind(name=key)
        about_kind = {"name": key, "label": kind.say(language, fields, write), "required": kind.required}
        values = {**fields, "kind": about_kind, "language": tag_of(language), "unsubscribe_url": unsubscribe_url}
        variables = {"data": {}} | {name: value for name, value in values.items() if value is not None}
        subject, text, html = (self._part(key, part, variables) for part in PARTS)
        return [_one_line(subject), text or (html and _as_text(html)), html]

    def _part(self, key: str, part: str, variables: Mapping[str, Any]) -> str:
        """Render the template of the language, such as `KEY.de.txt` for `de-AT`, or else the one without a language."""
        names = [*(f"{key}.{tag}.{part}" for tag in forms_of(self._language)), f"{key}.{part}"]
        name = next((self._names[name] for name in names if name in self._names), None)
        return self._rendered(name, variables) if name else ""

    def _rendered(self, name: str, variables: Mapping[str, Any]) -> str:
        self._at = name
        try:
            text = _bounded(self._environment.get_template(name), variables)
        except MemoryError:  # not an error of the template, so it must not be reported as one
            os._exit(OUT_OF_MEMORY)
        return CONTROLS.sub(" ", re.sub("\r\n?", "\n", text)).strip()

    def _faults(self, name: str) -> Iterator[str]:
        """Yield what is wrong with a template, and render it once: one that never ends must stop the start."""
        try:
            tree = self._environment.parse(self._sources[name], name, name)
            self._environment.get_template(name)
        except TemplateSyntaxError as exc:
            yield f"{name}, line {exc.lineno}: {(exc.message or 'not valid').rstrip('.')}."
            return
        suffix = name.rpartition(".")[2]
        alike = {other for other in self._sources if other.endswith(f".{suffix}")}
        for reference in tree.find_all(REFERENCES):
            if getattr(reference.template, "value", None) not in alike:  # text is not escaped, and must not be in HTML
                yield f"{name}, line {reference.lineno}: refers to no .{suffix} file of this directory."
        if name.startswith("_"):  # a layout may use variables that the template sets
            return
        unknown = meta.find_undeclared_variables(tree) - self._variables
        for node in tree.find_all(nodes.Name):
            if node.name in unknown:
                yield f"{name}, line {node.lineno}: there is no variable '{node.name}'."
        with suppress(Exception):  # there is no data
            self._rendered(name, {"data": {}, "timestamp": 0})


def _bounded(template: Template, variables: Mapping[str, Any]) -> str:
    pieces, size = [], 0
    for piece in template.generate(variables):
        size += len(piece.encode())
        if size > RENDERED_LIMIT:
            raise SecurityError("it renders too much")
        pieces.append(piece)
    return "".join(pieces)


def _one_line(text: str) -> str:
    """Collapse white space, and break up what looks like an encoded word, which mail programs would decode."""
    line = " ".join(text.replace("=?", "= ?").split())
    return line if len(line) <= SUBJECT_LIMIT else line[: SUBJECT_LIMIT - 1].rstrip() + "…"


def _as_text(html: str) -> str:
    from inscriptis import get_text  # noqa: PLC0415 - it takes much memory, and only some directories need it
    from inscriptis.model.config import ParserConfig  # noqa: PLC0415

    lines = (line.rstrip() for line in get_text(html, ParserConfig(display_links=True)).split("\n"))
    return re.sub("\n{3,}", "\n\n", "\n".join(lines)).strip()


def _memory() -> int:
    """Return the bytes of this process's address space, or 0 where they are unknown, as on macOS."""
    try:
        return int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def main() -> None:
    """Answer questions until the input ends, or until much memory is in use and a fresh process should take over."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # end when the service is gone
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a whole group may get it, and the service still sends some e-mails
    rendering = Rendering(**orjson.loads(sys.stdin.buffer.readline()))
    _say("ready")
    if base := _memory():
        resource.setrlimit(resource.RLIMIT_AS, (base + MEMORY, base + MEMORY))
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # its signal ends the process
        number, question = orjson.loads(line)
        answer = rendering.answer(question)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _say([number, answer])
        if _memory() > base + MEMORY // 2:  # each language that was used stays in memory
            return


def _say(answer: Any) -> None:
    sys.stdout.buffer.write(orjson.dumps(answer) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
