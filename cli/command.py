"""What commands share: what they print, their exit codes, and MongoDB."""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Final

from ops.local import with_database
from ops.logs import printable
from settings import Settings
from store import Store, open_store

Run = Callable[[argparse.Namespace, Settings], int | None]  # returns the exit code; `main.explain` shows what it raises
Add = Callable[[str, str, Run], argparse.ArgumentParser]  # adds a command: its name, its help, and what runs it
INTERRUPTED: Final = 130  # the exit code of a program that SIGINT has ended, by the convention of shells


class BadInput(Exception):
    """What the operator gave cannot be used. The message names every fault."""


def on_store(command: Callable[[Store, argparse.Namespace], Awaitable[int | None]]) -> Run:
    """Run a command on the configured database, or on that of the local run in this folder."""

    async def run(options: argparse.Namespace, settings: Settings) -> int | None:
        async with open_store(with_database(settings)) as store:
            return await command(store, options)

    return lambda options, settings: asyncio.run(run(options, settings))


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def say(*lines: str) -> None:
    """Print lines. Text from elsewhere must neither control the terminal nor look like another line."""
    print(*map(printable, lines), sep="\n")  # noqa: T201 - the output of the command


def fail(message: str, code: int = 1) -> int:
    """Print what went wrong, in one line or several, and return the exit code."""
    print(*map(printable, message.split("\n")), sep="\n", file=sys.stderr)  # noqa: T201 - for the operator
    return code


def fail_to_write(exc: OSError) -> int:
    """Print why the output cannot be written, and return the exit code: 0 if its reader has seen enough."""
    return 0 if isinstance(exc, BrokenPipeError) else fail(f"The output cannot be written: {exc.strerror}.")
