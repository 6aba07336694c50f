"""Templates that a test writes, and what they render."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kinds import SPECIFIED, Kinds
from mail.rendering import Rendering
from mail.templates import Content, RenderError, content_of


def write(folder: Path, files: Mapping[str, str]) -> Path:
    """Write templates, by file name, to a directory in this folder; return the directory."""
    directory = folder / "templates"
    directory.mkdir(exist_ok=True)
    for name, text in files.items():
        (directory / name).write_text(text)
    return directory


class Rendered:
    """Renders the templates of a directory, without the process that renders them for the service."""

    def __init__(self, folder: Path, kinds: Kinds = SPECIFIED, *, user: bool = False) -> None:
        sources = {path.name: path.read_text() for path in folder.iterdir()}
        self._rendering = Rendering(sources, {name: asdict(kind) for name, kind in kinds.items()}, user=user)

    def render(self, fields: Mapping[str, Any], language: str | None = None, link: str | None = None) -> Content:
        answer = self._rendering.answer({"fields": fields, "language": language, "unsubscribe_url": link})
        if "failed" in answer:
            raise RenderError(*answer["failed"])
        return content_of(fields, link, answer["parts"])

    def faults(self, name: str) -> list[str]:
        found: list[str] = self._rendering.answer({"name": name})
        return found
