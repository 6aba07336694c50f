"""How an exception is answered: a problem of RFC 9457 with the envelope of a success."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

MEDIA_TYPE: Final = "application/problem+json"
TITLES: Final = {413: "Content Too Large", 422: "Unprocessable Content"}
"""The names of RFC 9110, where Python 3.11 still has those of its predecessor."""


def json_line(value: object) -> str:
    """Return JSON in one line, which ends, so that a shell's prompt begins on a new one."""
    return f"{json.dumps(value)}\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """How an exception is answered.

    `{}` in `detail` stands for the exception's own message, of which `example` is one. `advice` tells the reader of
    the documentation what to do, where the detail does not. `retry_after` is in seconds.
    """

    exception: type[Exception]
    status: int
    detail: str
    advice: str = ""
    example: str = ""
    errors: Mapping[str, Any] | None = None
    retry_after: int | None = None

    @property
    def name(self) -> str:
        """The exception's name, without aiohttp's prefix."""
        return self.exception.__name__.removeprefix("HTTP")

    @property
    def meaning(self) -> str:
        """The detail as the documentation shows it."""
        return self.detail.replace("{}.", "…")

    @property
    def title(self) -> str:
        """The status in words."""
        return TITLES.get(self.status) or HTTPStatus(self.status).phrase

    def document(self) -> dict[str, Any]:
        """Return the body of the answer."""
        document = {
            "success": False,
            "type": "about:blank",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
        }
        return document if self.errors is None else document | {"errors": self.errors}
