"""What an e-mail says: the operator's templates turn a notification's fields into subject, text and HTML.

They are read here, and rendered by a process of their own (`mail/rendering.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kinds import Kinds
from mail.renderer import Renderer, RenderingEnded
from ops.languages import LANGUAGE


@dataclass(frozen=True, slots=True)
class Content:
    """What an e-mail says. `subject` is one line without encoded words (RFC 2047)."""

    subject: str
    text: str
    html: str | None = None
    unsubscribe_url: str | None = None


class TemplatesError(Exception):
    """Some templates cannot be used. The message has a line for each, with its file and line."""


class RenderError(Exception):
    """A template failed on these fields. The message is its file and line.

    `kind` is the type of the error. `reason` is its message, which may quote data.
    """

    def __init__(self, place: str, kind: str, reason: str) -> None:
        super().__init__(place)
        self.kind = kind
        self.reason = reason


class Templates:
    """The templates of a directory: `KEY.subject.txt`, `KEY.txt` and `KEY.html`, all optional.

    Files whose names begin with `_` are for these to extend or include; hidden files are ignored. All files are read
    here, once. With `user`, there are fields of the user's document. Raises `TemplatesError`.
    """

    def __init__(self, folder: Path | None, kinds: Kinds, *, user: bool = False) -> None:
        self._sources = _read(folder, kinds) if folder else {}
        self._keys = {name.partition(".")[0] for name in self._sources}
        tables = {name: asdict(kind) for name, kind in kinds.items()}
        self._renderer = Renderer({"sources": self._sources, "kinds": tables, "user": user})

    async def test(self) -> None:
        """Compile and try every template, and end the process. Raises `TemplatesError` with every fault."""
        faults: list[str] = []
        for name in sorted(self._sources):
            try:
                faults += await self._renderer.ask({"name": name})
            except RenderingEnded as exc:
                faults.append(f"{name}: {exc}.")
        await self.close()
        if faults:
            raise TemplatesError("\n".join(faults))

    async def render(
        self, fields: Mapping[str, Any], language: str | None = None, unsubscribe_url: str | None = None
    ) -> Content:
        """Return the content of the e-mail about a notification with these fields.

        A field that is missing or null renders as nothing, and so does anything below it: clients forget fields, and
        a gap in a sentence is better than no sentence. A part without a template, or one that renders as nothing, is
        absent. An HTML part makes up for an absent text, and the key for what is absent then, with the count of what
        the e-mail tells.

        Each part is that of the language, such as `KEY.de.txt`, else that without one. `de-AT` also takes `de`. Neither
        case nor `_` in place of `-` makes a difference.

        Raises `RenderError`; `RenderingEnded` if it took too much time or memory; `OSError` if there is no process.
        """
        key: str = fields["key"]
        if key not in self._keys:
            return content_of(fields, unsubscribe_url)
        question = {"fields": fields, "language": language, "unsubscribe_url": unsubscribe_url}
        answer: Mapping[str, Sequence[str]] = await self._renderer.ask(question)
        if "failed" in answer:
            raise RenderError(*answer["failed"])
        return content_of(fields, unsubscribe_url, answer["parts"])

    async def close(self) -> None:
        """End the process, if there is one."""
        await self._renderer.close()


def content_of(fields: Mapping[str, Any], unsubscribe_url: str | None, parts: Sequence[str] = ("", "", "")) -> Content:
    """Return what an e-mail says, with these parts: for an absent subject or text the key, and the count of many."""
    subject, text, html = parts
    count = fields.get("count", 1)
    plain = f"{fields['key']} ({count})" if count > 1 else f"{fields['key']}"
    return Content(subject or plain, text or plain, html or None, unsubscribe_url)


def _read(folder: Path, kinds: Kinds) -> dict[str, str]:
    """Return the sources by file name. Raises `TemplatesError`."""
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
