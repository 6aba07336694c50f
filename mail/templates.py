"""What an e-mail says: the operator's templates turn a notification into subject, text and HTML.

They are read here, and rendered by a process of their own (`mail/rendering.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.languages import LANGUAGE
from mail.renderer import Renderer, RenderingEnded
from settings import Settings


@dataclass(frozen=True, slots=True)
class Content:
    """What an e-mail says. `subject` is one line without encoded words (RFC 2047)."""

    subject: str
    text: str
    html: str | None = None
    unsubscribe_url: str | None = None


class TemplatesError(Exception):
    """Some templates cannot be used. The message has a line for each fault, with its file and line."""


class RenderError(Exception):
    """A template failed on these fields. The message is its file and line.

    `kind` is the type of the error, and `reason` its message, which may quote data.
    """

    def __init__(self, place: str, kind: str, reason: str) -> None:
        super().__init__(place)
        self.kind = kind
        self.reason = reason


class Templates:
    """The templates of `TEMPLATES_DIR`: `KEY.subject.txt`, `KEY.txt` and `KEY.html`, all optional.

    The others can extend or include files whose names begin with `_`. Hidden files are ignored. All files are read
    here, once. Raises `TemplatesError`.
    """

    def __init__(self, settings: Settings) -> None:
        folder, kinds, user = settings.templates_dir, settings.kinds, bool(settings.template_fields)
        self._sources = _read(folder, kinds) if folder else {}
        self._keys = {name.partition(".")[0] for name in self._sources}
        self._renderer = Renderer({"sources": self._sources, "kinds": kinds, "user": user})

    async def test(self) -> None:
        """Compile and try every template, and end the process. Raises `TemplatesError` with every fault."""
        faults: list[str] = []
        for name in sorted(self._sources):
            try:
                faults += await self._renderer.ask({"name": name})
            except RenderingEnded as exc:
                faults.append(f"{name}: {exc}.")
        await self.aclose()
        if faults:
            raise TemplatesError("\n".join(faults))

    async def render(
        self, fields: Mapping[str, Any], language: str | None = None, unsubscribe_url: str | None = None
    ) -> Content:
        """Return the content of the e-mail about a notification with these fields.

        Missing fields render as nothing, for a gap in a sentence is better than no sentence. A part that has no
        template or renders as nothing is absent: `content_of` fills in the subject and the text. Each part is that of
        the language, such as `KEY.de.txt` for `de-AT`, or else the one without a language.

        Raises `RenderError`; `RenderingEnded` if rendering took too much time or memory; `OSError` if there is no
        process.
        """
        key: str = fields["key"]
        if key not in self._keys:
            return content_of(fields, unsubscribe_url)
        question = {"fields": fields, "language": language, "unsubscribe_url": unsubscribe_url}
        answer: Mapping[str, Sequence[str]] = await self._renderer.ask(question)
        if "failed" in answer:
            raise RenderError(*answer["failed"])
        return content_of(fields, unsubscribe_url, answer["parts"])

    async def aclose(self) -> None:
        """End the process, if there is one."""
        await self._renderer.close()


def content_of(fields: Mapping[str, Any], unsubscribe_url: str | None, parts: Sequence[str] = ("", "", "")) -> Content:
    """Return what an e-mail says. The key, with the count if it is about many, replaces an absent subject or text."""
    subject, text, html = parts
    count = fields.get("count", 1)
    plain = f"{fields['key']} ({count})" if count > 1 else f"{fields['key']}"
    return Content(subject or plain, text or plain, html or None, unsubscribe_url)


def _read(folder: Path, kinds: Iterable[str]) -> dict[str, str]:
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
