"""The command `check`: the configuration, MongoDB and the mail server, step by step, as the service would use them."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict

from cli.check_mail import check_mail
from cli.check_mongodb import check_mongodb
from cli.output import say
from cli.result import Result, State
from config.environment import SettingsError, load_settings, warnings_about
from settings import Settings

LOCAL: str = "a local run, as nothing is configured; set DB_URI, EMAIL and SMTP_HOST for any other"


def run_check(options: argparse.Namespace) -> int:
    """Check, and print a line for each step; return 0, 1 if a step failed, or 2 for a wrong configuration."""
    try:
        settings = load_settings()
    except SettingsError as exc:
        faults = [f"{name}: {' '.join(texts)}" for name, texts in sorted(exc.faults.items())]
        return _print([Result("configuration", State.FAILED, fault) for fault in faults], 2, as_json=options.json)
    results = asyncio.run(_check(settings, options.to))
    failed = any(result.state is State.FAILED for result in results)
    return _print(results, int(failed), as_json=options.json)


async def _check(settings: Settings, to: str | None) -> Sequence[Result]:
    detail = "; ".join([LOCAL if settings.local else "valid", *warnings_about(settings)])
    configuration = Result("configuration", State.OK, detail)
    mongodb, mail = await asyncio.gather(check_mongodb(settings), check_mail(settings, to))
    return [configuration, *mongodb, *mail]


def _print(results: Sequence[Result], code: int, *, as_json: bool) -> int:
    if as_json:
        checks = [asdict(result) | {"state": result.state.value} for result in results]
        say(json.dumps({"ok": not code, "checks": checks}))
    else:
        for result in results:
            say(f"{result.state.value:9}{result.check:15}{' '.join(result.detail.split())}")
    return code
