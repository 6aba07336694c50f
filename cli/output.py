"""What a command prints."""

from __future__ import annotations

import sys
from typing import Final

INTERRUPTED: Final = 130
"""The exit code of a program that SIGINT has ended, by the convention of shells."""


class BadInput(Exception):
    """What the operator gave cannot be used. The message names every fault."""


def say(line: str) -> None:
    """Print a line. A server's words in it must not control the terminal."""
    print("".join(c if c.isprintable() or c == "\n" else "?" for c in line))  # noqa: T201 - the output of the command


def fail(message: str, code: int = 1) -> int:
    """Print what went wrong, and return the exit code."""
    print(message, file=sys.stderr)  # noqa: T201 - for the operator
    return code


def fail_to_write(exc: OSError) -> int:
    """Print why the output cannot be written, and return the exit code: 0 if its reader has seen enough."""
    return 0 if isinstance(exc, BrokenPipeError) else fail(f"The output cannot be written: {exc.strerror}.")
