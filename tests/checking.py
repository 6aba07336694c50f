"""The command `check` as a program calls it."""

from __future__ import annotations

import json
from collections.abc import Mapping

from settings import Settings
from tests.processes import command


async def check(settings: Settings, *arguments: str, **variables: object) -> tuple[int, dict[str, tuple[str, str]]]:
    """Run `check --json`; return its exit code, and the state and detail of each step."""
    given = {
        "EMAIL": "a@b.example",
        "SMTP_HOST": settings.smtp_host,
        "SMTP_PORT": settings.smtp_port,
        "SMTP_LOGIN": settings.smtp_login or "",
        "SMTP_PASSWORD": settings.smtp_password or "",
        "SMTP_CA_FILE": settings.smtp_ca_file or "",
        "SMTP_SECURITY": settings.smtp_security.value,
        "SMTP_FROM": settings.smtp_from,
        "SMTP_CONNECT_TIMEOUT": 2,
        **variables,
    }
    code, out, err = await command(
        settings, "check", "--json", *arguments, **{name: f"{value}" for name, value in given.items()}
    )
    assert err == ""
    answer = json.loads(out)
    assert answer["ok"] == (code == 0)
    return code, {step["check"]: (step["state"], step["detail"]) for step in answer["checks"]}


def failures(steps: Mapping[str, tuple[str, str]]) -> dict[str, str]:
    return {name: detail for name, (state, detail) in steps.items() if state == "failed"}


def skipped(steps: Mapping[str, tuple[str, str]]) -> list[str]:
    return [name for name, (state, _) in steps.items() if state == "skipped"]
