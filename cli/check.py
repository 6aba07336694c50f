"""The command `check`: the configuration, MongoDB and the mail server, step by step, as the service would use them."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict

from cli.check_mail import check_mail
from cli.check_mongodb import check_mongodb
from cli.environment import SettingsError, read_settings
from cli.output import say
from cli.result import Result, failed, ok
from settings import Settings

LOCAL: str = "a local run, as nothing is configured; set DB_URI, EMAIL and SMTP_HOST for any other"


def run_check(options: argparse.Namespace) -> int:
    """Check, and print a line for each step; return 0, 1 if a step failed, or 2 for a wrong configuration."""
    try:
        settings, warnings = read_settings()
    except SettingsError as exc:
        faults = [f"{name}: {text}" for name, texts in sorted(exc.faults.items()) for text in texts]
        return _print([failed("configuration", fault) for fault in faults], 2, as_json=options.json)
    results = asyncio.run(_check(settings, warnings, options.to))
    return _print(results, int(any(result.state == "failed" for result in results)), as_json=options.json)


async def _check(settings: Settings, warnings: Sequence[str], to: str | None) -> Sequence[Result]:
    if settings.openness:
        warnings = [*warnings, settings.openness]
    detail = "; ".join([LOCAL if settings.local else "valid", *warnings])
    mongodb, mail = await asyncio.gather(check_mongodb(settings), check_mail(settings, to))
    return [ok("configuration", detail), *mongodb, *mail]


def _print(results: Sequence[Result], code: int, *, as_json: bool) -> int:
    if as_json:
        say(json.dumps({"ok": not code, "checks": [asdict(result) for result in results]}))
    else:
        for result in results:
            say(f"{result.state:9}{result.check:15}{' '.join(result.detail.split())}")
    return code
