"""The process and its command line. The exit code is 0, 1 after a failure, or 2 for wrong settings or arguments."""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from api.auth import sign_token
from api.openapi import VERSION
from cli import emails, send
from cli.check import run_check
from cli.command import INTERRUPTED, BadInput, Run, fail, fail_to_write, say
from cli.environment import SettingsError, read_settings
from cli.health import check_health
from mongo.errors import Misconfigured, StoreError, Unavailable
from ops.listening import CannotListen, supervise
from ops.logs import configure_logging
from settings import SECRETS, Settings, default_of, grouped

log = logging.getLogger("notifier")

Serve = Callable[[Settings, bool], None]  # serves until a signal, perhaps as a worker


def run(serve: Serve) -> NoReturn:
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
    try:
        options = parse_arguments(arguments)
        if options.command == "check":  # which reports the faults of the configuration itself
            return run_check(options.to, as_json=options.json)
        settings, warnings = read_settings()
        configure_logging(settings.log_level)
        for warning in warnings if not options.worker else ():
            log.warning("%s", warning)
        return _run_command(options, settings) if options.command else _serve(options, settings, serve)
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as exc:  # of argparse
        return int(exc.code or 0)
    except (SettingsError, BadInput, StoreError, CannotListen, OSError) as exc:
        return explain(exc)


def _serve(options: argparse.Namespace, settings: Settings, serve: Serve) -> int:
    if settings.workers > 1 and not options.worker:
        return asyncio.run(supervise(settings))
    serve(settings, options.worker)
    return 0


def explain(exc: Exception) -> int:
    logging.shutdown()  # what was logged comes first
    match exc:
        case SettingsError() | Misconfigured() | BadInput():
            return fail(f"{exc}", 2)
        case CannotListen():
            return fail(f"{exc}", 1 if exc.is_taken else 2)
        case Unavailable():
            return fail(f"{exc}")
    return fail(f"The service cannot start: {exc}.")


def _run_command(options: argparse.Namespace, settings: Settings) -> int:
    if getattr(options, "user_id", None) is not None:
        options.user_id = settings.id_type.parse(options.user_id)
        if options.user_id is None:
            raise BadInput(f"USER_ID: {settings.id_type.fault}")
    try:
        return options.run(options, settings) or 0
    except OSError as exc:
        return fail_to_write(exc)


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="notifier.py",
        description="In-app notifications and e-mail for users in MongoDB, over HTTP. Without a command, it serves.",
        epilog="Environment variables, or lines of a file .env:\n"
        f"{describe_settings()}\n\n"
        "With neither DB_URI nor SMTP_HOST it runs on an embedded MongoDB and mailbox, under .notifier/.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"notifier {VERSION}")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)  # for ops/listening.py
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")

    def add(name: str, does: str, run: Run | None = None) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}.")
        command.set_defaults(run=run)
        return command

    check = add("check", "check the configuration, MongoDB, the users and the mail server, step by step")
    check.add_argument("--to", metavar="ADDRESS", help="send one test e-mail to this address")
    check.add_argument("--json", action="store_true", help="one JSON object")
    answers = "say by the exit code, 0 or 1, whether the service on this machine answers"
    add("health", answers, lambda _, settings: check_health(settings.host, settings.port))
    emails.add_commands(add)
    signed = "print a user's token, signed with the first of USER_TOKEN_SECRETS, for trying the API"
    token = add("token", signed, _print_token)
    token.add_argument("user_id", metavar="USER_ID")
    token.add_argument("--ttl", metavar="SECONDS", type=int, default=3600, help="its lifetime (default 3600)")
    send.add_commands(add)
    return parser.parse_args(arguments)


def describe_settings() -> str:
    lines = []
    for heading, variables in grouped().items():
        lines.append(f"\n{heading}:")
        for name, variable in variables.items():
            default = f" (default {shown})" if (shown := default_of(variable)) else ""
            lines.append(f"  {name:<28} {variable.metadata['help']}{default}")
    return "\n".join([*lines, f"\nNAME_FILE names a file that has the value, for: {', '.join(SECRETS)}."])


def _print_token(options: argparse.Namespace, settings: Settings) -> int:
    if not settings.user_token_secrets:
        return fail("USER_TOKEN_SECRETS is not set.")
    say(sign_token(settings.user_token_secrets[0], options.user_id, options.ttl))
    return 0
