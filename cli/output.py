"""What commands print."""

from __future__ import annotations

import sys
from typing import Final

from ops.logs import printable

INTERRUPTED: Final = 130
"""The exit code of a program that SIGINT has ended, by the convention of shells."""


class BadInput(Exception):
    """What the operator gave cannot be used. The message names every fault."""


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: `1 connection`, `2 connections`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def say(line: str) -> None:
    """Print a line. Text from elsewhere must neither control the terminal nor look like another line."""
    print(printable(line))  # noqa: T201 - the output of the command


def fail(message: str, code: int = 1) -> int:
    """Print what went wrong, in one line or several, and return the exit code."""
    print("\n".join(map(printable, message.split("\n"))), file=sys.stderr)  # noqa: T201 - for the operator
    return code


def fail_to_write(exc: OSError) -> int:
    """Print why the output cannot be written, and return the exit code: 0 if its reader has seen enough."""
    return 0 if isinstance(exc, BrokenPipeError) else fail(f"The output cannot be written: {exc.strerror}.")
