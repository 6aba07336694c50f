"""What a step of `check` found."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class State(enum.Enum):
    """How a step went."""

    OK = "ok"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Result:
    """A step, how it went, and why: what was found, or what is wrong and what to do."""

    check: str
    state: State
    detail: str


def ok(check: str, detail: str) -> Result:
    """Return the result of a step that went well."""
    return Result(check, State.OK, detail)


def failed(check: str, detail: str) -> Result:
    """Return the result of a step that failed."""
    return Result(check, State.FAILED, detail)


def skipped(check: str, detail: str) -> Result:
    """Return the result of a step that was not tried."""
    return Result(check, State.SKIPPED, detail)
