"""The process: its arguments, its exit code, and in a sentence why it cannot run.

The exit code is 0, 1 after a failure, or 2 for a wrong configuration or wrong arguments.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from cli.check import run_check
from cli.commands import parse_arguments, run_command
from cli.environment import read_settings
from cli.output import INTERRUPTED, fail, fail_to_write
from cli.target import NoDatabase
from cli.variables import SettingsError
from mongo.errors import Misconfigured, StoreError, Unavailable
from ops.listening import CannotListen
from ops.logs import configure_logging
from ops.mongod import LocalRunError
from ops.workers import supervise
from settings import Settings

log = logging.getLogger("notifier")

Serve = Callable[[Settings, bool], None]
"""Serves until a signal, in a process that is a worker or is alone. Raises `StoreError` or `CannotListen`."""


def run(serve: Serve) -> NoReturn:
    """Be the process, and end it with all output written."""
    code = main(sys.argv[1:], serve)
    logging.shutdown()
    try:
        if sys.stdout:  # it may be closed
            sys.stdout.flush()
    except OSError as exc:
        code = code or fail_to_write(exc)
    # Not sys.exit: Python would wait for the driver's threads, and those wait for a MongoDB that hangs.
    os._exit(code)


def main(arguments: list[str], serve: Serve) -> int:
    """Serve, or run a command; return the exit code."""
    try:
        options = parse_arguments(arguments)
        if options.command == "check":  # which reports the faults of the configuration itself
            return run_check(options)
        settings, warnings = read_settings()
        configure_logging(settings.log_level)
        if not options.worker:
            for warning in warnings:
                log.warning("%s", warning)
        return run_command(options, settings) if options.command else _serve(options, settings, serve)
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as exc:
        return exc.code if isinstance(exc.code, int) else fail(f"{exc.code}")
    except (SettingsError, NoDatabase, LocalRunError, StoreError, CannotListen, OSError) as exc:
        return explain(exc)


def _serve(options: argparse.Namespace, settings: Settings, serve: Serve) -> int:
    if settings.workers > 1 and not options.worker:
        return asyncio.run(supervise(settings))
    serve(settings, options.worker)
    return 0


def explain(exc: Exception) -> int:
    """Print in one sentence why the service cannot start; return the exit code."""
    logging.shutdown()  # what was logged comes first
    match exc:
        case SettingsError() | NoDatabase() | Misconfigured():
            return fail(f"{exc}", 2)
        case CannotListen():
            return fail(f"{exc}", 1 if exc.is_taken else 2)
        case Unavailable() | LocalRunError():
            return fail(f"{exc}")
    return fail(f"The service cannot start: {exc}.")
