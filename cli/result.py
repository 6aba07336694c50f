"""What a step of `check` found."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Final


@dataclass(frozen=True, slots=True)
class Result:
    """How a step went, its name, and why: what was found, or what is wrong and what to do."""

    state: str
    check: str
    detail: str


ok: Final = partial(Result, "ok")
failed: Final = partial(Result, "failed")
skipped: Final = partial(Result, "skipped")  # not tried
