"""What an e-mail says: the operator's templates turn a notification's fields into subject, text and HTML.

The templates are Jinja's, in a sandbox. Their authors are trusted; what a client sends as `data` is not.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Mapping, Sized
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Final

from jinja2 import ChainableUndefined, FunctionLoader, Template, TemplateSyntaxError, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ops.kinds import Kind, Kinds
from ops.languages import LANGUAGE, forms_of, tag_of

PARTS: Final = ("subject.txt", "txt", "html")
FIELDS: Final = frozenset({"id", "key", "timestamp", "user_id", "target_id", "data"})
VARIABLES: Final = FIELDS | {"notifications", "count", "kind", "language", "unsubscribe_url"}
RENDERED_LIMIT: Final = 256 * 1024
"""Bytes of UTF-8 in one rendered part. Some mailboxes accept no more than a few MiB."""
SUBJECT_LIMIT: Final = 250
"""Characters of a subject. No mailbox shows more."""
REFERENCES: Final[tuple[type[Any], ...]] = (nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport)
CONTROLS: Final = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters but tab and newline. Some servers refuse a message that has them."""


@dataclass(frozen=True, slots=True)
class Content:
    """What an e-mail says. `subject` is one line without encoded words (RFC 2047)."""

    subject: str
    text: str
    html: str | None = None
    unsubscribe_url: str | None = None


class TemplatesError(Exception):
    """Some templates cannot be used. The message has a sentence for each, with its file and line."""


class RenderError(Exception):
    """A template failed on these fields. The message is its file and line, the cause is the reason."""


class Templates:
    """The templates of a directory: `KEY.subject.txt`, `KEY.txt` and `KEY.html`, all optional.

    Files whose names begin with `_` are for these to extend or include; hidden files are ignored. All files are read
    and compiled here, once. Raises `TemplatesError` with every fault.
    """

    def __init__(self, folder: Path | None, kinds: Kinds) -> None:
        sources = _read(folder, kinds) if folder else {}
        # A traceback and an include both use these names. Nothing is read later.
        loader = FunctionLoader(lambda name: (sources[name], name, None) if name in sources else None)
        environment = _Sandbox(
            loader=loader,
            undefined=ChainableUndefined,
            autoescape=lambda name: name is not None and name.endswith(".html"),
            finalize=lambda value: "" if value is None else value,
        )
        if faults := [fault for name in sorted(sources) for fault in _faults(environment, name, sources)]:
            raise TemplatesError(" ".join(faults))
        self._templates = {name: environment.get_template(name) for name in sources}
        self._kinds = kinds
        self._localized = {name.lower(): name for name in sources}

    def render(
        self, fields: Mapping[str, Any], language: str | None = None, unsubscribe_url: str | None = None
    ) -> Content:
        """Return the content of the e-mail about a notification with these fields.

        A field that is missing or null renders as nothing, and so does anything below it: clients forget fields, and
        a gap in a sentence is better than no sentence. A part without a template, or one that renders as nothing, is
        absent; the key replaces an absent subject or text, with the count of what the e-mail tells.

        Each part is that of the language, such as `KEY.de.txt`, else that without one. `de-AT` also takes `de`. Neither
        case nor `_` in place of `-` makes a difference.

        Raises `RenderError`.
        """
        key = fields["key"]
        kind = self._kinds.get(key) or Kind(name=key)
        told = {"name": key, "label": kind.say(language, fields), "required": kind.required}
        given = {**fields, "kind": told, "language": tag_of(language), "unsubscribe_url": unsubscribe_url}
        variables = {"data": {}} | {name: value for name, value in given.items() if value is not None}
        subject, text, html = (self._part(self._name(key, part, language), variables) for part in PARTS)
        return Content(_one_line(subject) or plain(fields), text or plain(fields), html or None, unsubscribe_url)

    def _name(self, key: str, part: str, language: str | None) -> str:
        names = [f"{key}.{tag}.{part}" for tag in forms_of(language)]
        return next((self._localized[name] for name in names if name in self._localized), f"{key}.{part}")

    def _part(self, name: str, variables: Mapping[str, Any]) -> str:
        template = self._templates.get(name)
        if template is None:
            return ""
        try:
            rendered = _bounded(template, variables)
        except Exception as exc:
            places = [
                f"{frame.f_code.co_filename}, line {line}"
                for frame, line in traceback.walk_tb(exc.__traceback__)
                if frame.f_code.co_filename in self._templates
            ]
            raise RenderError(places[-1] if places else name) from exc
        return CONTROLS.sub(" ", re.sub("\r\n?", "\n", rendered)).strip()


def plain(fields: Mapping[str, Any]) -> str:
    """Return what an e-mail says without a template: the key, and the count if it tells of several."""
    return f"{fields['key']} ({count})" if (count := fields.get("count", 1)) > 1 else f"{fields['key']}"


class _Sandbox(ImmutableSandboxedEnvironment):
    """Forbids, beyond what Jinja does, a number from `data` that makes a text too large for memory."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Refuse powers, and repetition beyond the limit of a rendered part."""
        for what, times in ((left, right), (right, left)):
            if isinstance(what, Sized) and isinstance(times, int) and len(what) * times > RENDERED_LIMIT:
                raise SecurityError("it repeats a text too often")
        if operator == "**":
            raise SecurityError("it uses a power")
        return super().call_binop(context, operator, left, right)


def _read(folder: Path, kinds: Kinds) -> dict[str, str]:
    """Return the sources by file name. Raises `TemplatesError`."""
    sources, faults = {}, []
    name = re.compile(rf"(?:{'|'.join(kinds)})(?:\.{LANGUAGE.pattern})?\.(?:subject\.txt|txt|html)|_.*\.(?:txt|html)")
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as exc:
        raise TemplatesError(f"Cannot be read: {exc.strerror}.") from exc
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
        raise TemplatesError(" ".join(faults))
    return sources


def _faults(environment: _Sandbox, name: str, sources: Mapping[str, str]) -> Iterator[str]:
    try:
        tree = environment.parse(sources[name], name, name)
        environment.compile(tree, name, name)
    except TemplateSyntaxError as exc:
        yield f"{name}, line {exc.lineno}: {(exc.message or 'not valid').rstrip('.')}."
        return
    for reference in tree.find_all(REFERENCES):
        # A text is not escaped, so an HTML file must not include one.
        if getattr(reference.template, "value", None) not in {
            other for other in sources if _suffix(other) == _suffix(name)
        }:
            yield f"{name}, line {reference.lineno}: refers to no {_suffix(name)} file of this directory."
    if not name.startswith("_"):  # a layout may use variables that the template sets
        unknown = meta.find_undeclared_variables(tree) - VARIABLES
        for node in tree.find_all(nodes.Name):
            if node.name in unknown:
                yield f"{name}, line {node.lineno}: there is no variable '{node.name}'."


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
