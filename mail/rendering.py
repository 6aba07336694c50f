"""The process that renders templates, for `mail/renderer.py`.

It reads questions and writes an answer to each, as lines of JSON. The first line that it reads has the templates.

The templates are Jinja's. Their authors are trusted; what a client sends as `data` is not. Nothing that a template
does can be slow or large beyond the limits here, as the kernel ends the process then. It knows no secret of the
service, and imports little.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePath
from typing import Any, Final

import orjson
from jinja2 import ChainableUndefined, FunctionLoader, Template, TemplateSyntaxError, Undefined, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from kinds import Kind
from mail.formats import filters, write
from ops.languages import forms_of, tag_of

PARTS: Final = ("subject.txt", "txt", "html")
VARIABLES: Final = frozenset({"id", "key", "timestamp", "user_id", "target_id", "data"}) | {
    *("notifications", "count", "kind", "language", "unsubscribe_url")
}
CPU_SECONDS: Final = 2.0
"""Of one e-mail. What the machine does meanwhile for others does not count."""
MEMORY: Final = 64 * 1024 * 1024
"""Bytes beyond those of the process before its first e-mail."""
OUT_OF_MEMORY: Final = 3
"""Exit code."""
READY: Final = "ready"
RENDERED_LIMIT: Final = 256 * 1024
"""Bytes of UTF-8 in one rendered part. Some mailboxes accept no more than a few MiB."""
SUBJECT_LIMIT: Final = 250
"""Characters of a subject. No mailbox shows more."""
MESSAGE_LIMIT: Final = 500
"""Characters of an error's message."""
REFERENCES: Final[tuple[type[Any], ...]] = (nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)
CONTROLS: Final = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters but tab and newline. Some servers refuse a message that has them."""


class _Sandbox(ImmutableSandboxedEnvironment):
    """Of a value, a template sees the fields and items, and no attribute that Python gives it.

    So `data.items` is a client's field or nothing, never the method of Python's dicts.
    """

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Return a field, or an attribute of what Jinja itself made, such as `loop.index`."""
        if type(obj).__module__.partition(".")[0] == "jinja2":
            return super().getattr(obj, attribute)
        return self.getitem(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Return an item, or what renders as nothing."""
        with suppress(LookupError, TypeError):
            if isinstance(obj, dict) and argument not in obj:
                return obj[f"{argument}"]  # Jinja takes the `0` in `user.emails.0` for a number
            if isinstance(obj, dict | list | tuple | str | Undefined):
                return obj[argument]
        return self.undefined(obj=obj, name=argument)


class Rendering:
    """Renders the templates with these sources, by file name."""

    def __init__(self, sources: Mapping[str, str], kinds: Mapping[str, Mapping[str, Any]], *, user: bool) -> None:
        self._sources = sources
        self._localized = {name.lower(): name for name in sources}
        self._kinds = {name: Kind(**table) for name, table in kinds.items()}
        self._variables = VARIABLES | ({"user"} if user else frozenset())
        self._language: str | None = None
        self._at = ""
        # A traceback and an include both use these names. Nothing is read later.
        loader = FunctionLoader(lambda name: (sources[name], name, None) if name in sources else None)
        self._environment = _Sandbox(
            loader=loader,
            undefined=ChainableUndefined,
            autoescape=lambda name: name is not None and name.endswith(".html"),
            finalize=lambda value: "" if value is None else value,
            cache_size=-1,
        )
        self._environment.filters |= filters(lambda: self._language)

    def answer(self, request: Mapping[str, Any]) -> Any:
        """Return the faults of the template with a name; or subject, text and HTML of an e-mail, or what failed."""
        if "name" in request:
            return list(self._faults(request["name"]))
        try:
            return {"parts": self._render(**request)}
        except Exception as exc:  # noqa: BLE001 - a template may raise anything
            frames = traceback.walk_tb(exc.__traceback__)
            places = [(frame.f_code.co_filename, line) for frame, line in frames]
            inside = [f"{name}, line {line}" for name, line in places if name in self._sources]
            message = f"{exc}"[:MESSAGE_LIMIT].encode("utf-8", "replace").decode()
            return {"failed": [[self._at, *inside][-1], type(exc).__name__, message]}

    def _render(self, fields: Mapping[str, Any], language: str | None, unsubscribe_url: str | None) -> Sequence[str]:
        key = self._at = fields["key"]
        self._language = language
        kind = self._kinds.get(key) or Kind(name=key)
        told = {"name": key, "label": kind.say(language, fields, write), "required": kind.required}
        given = {**fields, "kind": told, "language": tag_of(language), "unsubscribe_url": unsubscribe_url}
        variables = {"data": {}} | {name: value for name, value in given.items() if value is not None}
        subject, text, html = (self._part(self._name(key, part, language), variables) for part in PARTS)
        return [_one_line(subject), text or _as_text(html), html]

    def _name(self, key: str, part: str, language: str | None) -> str:
        names = [f"{key}.{tag}.{part}" for tag in forms_of(language)]
        return next((self._localized[name] for name in names if name in self._localized), f"{key}.{part}")

    def _part(self, name: str, variables: Mapping[str, Any]) -> str:
        if name not in self._sources:
            return ""
        self._at = name
        try:
            rendered = _bounded(self._environment.get_template(name), variables)
        except MemoryError:  # which is no error of the template
            os._exit(OUT_OF_MEMORY)
        return CONTROLS.sub(" ", re.sub("\r\n?", "\n", rendered)).strip()

    def _faults(self, name: str) -> Iterator[str]:
        """Yield what is wrong with a template, and try it: one that never ends must not wait for the first e-mail."""
        try:
            tree = self._environment.parse(self._sources[name], name, name)
            self._environment.compile(tree, name, name)
        except TemplateSyntaxError as exc:
            yield f"{name}, line {exc.lineno}: {(exc.message or 'not valid').rstrip('.')}."
            return
        for reference in tree.find_all(REFERENCES):
            # A text is not escaped, so an HTML file must not include one.
            if getattr(reference.template, "value", None) not in {
                other for other in self._sources if _suffix(other) == _suffix(name)
            }:
                yield f"{name}, line {reference.lineno}: refers to no {_suffix(name)} file of this directory."
        if name.startswith("_"):  # a layout may use variables that the template sets
            return
        unknown = meta.find_undeclared_variables(tree) - self._variables
        for node in tree.find_all(nodes.Name):
            if node.name in unknown:
                yield f"{name}, line {node.lineno}: there is no variable '{node.name}'."
        with suppress(Exception):  # for lack of data
            self._part(name, {"data": {}, "timestamp": 0})


def _suffix(name: str) -> str:
    return PurePath(name).suffix


def _bounded(template: Template, variables: Mapping[str, Any]) -> str:
    pieces, size = [], 0
    for piece in template.generate(variables):
        size += len(piece.encode())
        if size > RENDERED_LIMIT:
            raise SecurityError("it renders too much")
        pieces.append(piece)
    return "".join(pieces)


def _one_line(text: str) -> str:
    """Collapse white space, and break up encoded words: a mail program would decode what a client wrote."""
    line = " ".join(text.replace("=?", "= ?").split())
    return line if len(line) <= SUBJECT_LIMIT else line[: SUBJECT_LIMIT - 1].rstrip() + "…"


def _as_text(html: str) -> str:
    """Return what an HTML part says, its links behind their words."""
    if not html:
        return ""
    from inscriptis import get_text  # noqa: PLC0415 - only some directories need it, and its memory
    from inscriptis.model.config import ParserConfig  # noqa: PLC0415

    lines = (line.rstrip() for line in get_text(html, ParserConfig(display_links=True)).split("\n"))
    return re.sub("\n{3,}", "\n\n", "\n".join(lines)).strip()


def _memory() -> int:
    """Return the bytes of address space that this process has; 0 where that cannot be told, as on macOS."""
    try:
        return int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    except OSError:
        return 0


def main() -> None:
    """Answer questions until there are no more, or a fresh process should take over."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # which says that the service has gone
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent to a whole group, it lets the service send what it has begun
    rendering = Rendering(**orjson.loads(sys.stdin.buffer.readline()))
    _say(READY)
    if base := _memory():
        resource.setrlimit(resource.RLIMIT_AS, (base + MEMORY, base + MEMORY))
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # whose signal ends the process, whatever it does
        try:
            number, question = orjson.loads(line)
            answer = rendering.answer(question)
        except MemoryError:
            os._exit(OUT_OF_MEMORY)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _say([number, answer])
        if _memory() > base + MEMORY // 2:  # each language that was used stays in memory
            return


def _say(answer: Any) -> None:
    sys.stdout.buffer.write(orjson.dumps(answer) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
