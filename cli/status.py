"""The command `status`: what is owed, what died, and what the running service says of the mail server."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from itertools import repeat
from typing import Any, Final

import aiohttp

from api.auth import status_token
from cli.output import counted, say
from mongo import overview
from settings import Settings
from store import Store

ANSWER_TIMEOUT: Final = aiohttp.ClientTimeout(total=3)
FROM_METRICS: Final = {
    "breaker_open": "notifier_smtp_breaker_open",
    "sent_last_hour": "notifier_emails_sent_last_hour",
    "smtp_connections": "notifier_smtp_connections",
    "pace": "notifier_smtp_pace",
}


STOPPED: Final = re.compile(
    r'^notifier_mail_stopped_seconds\{group="((?:[^"\\]|\\.)*)",reply="((?:[^"\\]|\\.)*)"\} (\S+)$', re.MULTILINE
)
NEXT_PROBE: Final = "notifier_mail_next_probe_seconds"


async def show_status(store: Store, settings: Settings, *, as_json: bool) -> int:
    """Print the status. Raises `Unavailable`."""
    status = await _gather(store, settings)
    if as_json:
        say(json.dumps(status, default=str))
    else:
        for name, text in _lines(status, settings):
            say(f"{name:18}{text}")
    return 0


async def _gather(store: Store, settings: Settings) -> dict[str, Any]:
    owed = await overview.owed(store.outbox)
    return {
        **asdict(owed),
        "next_attempt": owed.next_attempt.isoformat() if owed.next_attempt else None,
        "errors": [asdict(reason) for reason in await overview.errors_of_owed(store.users)],
        "held": [asdict(reason) for reason in await overview.held(store.users)],
        "dead_letters": await store.dead_mail.count(),
        "dead": [asdict(reason) for reason in await overview.errors_of_dead(store.dead_mail)],
        "suppressed_users": await store.suppressions.count(),
        "service": await _ask_service(settings),
        "kinds": {name: {"in_app": kind.in_app, "email": kind.email} for name, kind in settings.kinds.items()},
        "open": bool(settings.openness),
        "streams": (await overview.topology(store.database)).streams,
    }


async def _ask_service(settings: Settings) -> Mapping[str, Any] | None:
    """Return what the service says that runs on this machine, or `None` if none does."""
    token = status_token(settings)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        async with (
            aiohttp.ClientSession(timeout=ANSWER_TIMEOUT, headers=headers) as session,
            session.get(f"{settings.url}/metrics", allow_redirects=False) as response,
        ):
            text = await response.text()
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return None
    found = {name: re.search(rf"^{metric} (\S+)$", text, re.MULTILINE) for name, metric in FROM_METRICS.items()}
    values = {name: float(match[1]) for name, match in found.items() if match}
    if values.keys() != FROM_METRICS.keys():
        return None
    return values | {"stopped": [stop for stop in map(_stop, STOPPED.finditer(text), repeat(text)) if stop["seconds"]]}


def _stop(found: re.Match[str], metrics: str) -> dict[str, Any]:
    """Return what has stopped, the server's last reply, and the seconds since then and to the next probe."""
    group, reply, seconds = found.groups()
    probe = re.search(rf'^{NEXT_PROBE}{{group="{re.escape(group)}"}} (\S+)$', metrics, re.MULTILINE)
    return {
        "group": group,
        "reply": re.sub(r"\\(.)", r"\1", reply),
        "seconds": float(seconds),
        "next_probe": float(probe[1]) if probe else 0.0,
    }


def _lines(status: Mapping[str, Any], settings: Settings) -> Sequence[tuple[str, str]]:
    age, service, suppressed = status["oldest_seconds"], status["service"], status["suppressed_users"]
    owed = f"{status['owed']}: {status['due']} due now, {status['leased']} being sent" if status["owed"] else "none"
    return [
        ("E-mails owed", owed),
        ("Oldest", "-" if age is None else f"{timedelta(seconds=age)} old"),
        ("Waiting", f"{counted(status['waiting'], 'notification')}, for their e-mail" if status["waiting"] else "none"),
        ("Next attempt", status["next_attempt"] or ("now" if status["due"] else "-")),
        ("Their last errors", _counted(status["errors"])),
        ("Mail server", _mail_server(service, settings.port)),
        ("Stopped", _stopped(status)),
        (
            "Sent, last hour",
            f"{service['sent_last_hour']:.0f}, by the service on port {settings.port}" if service else "?",
        ),
        ("Dead letters", f"{status['dead_letters']}: {_counted(status['dead'])}" if status["dead"] else "none"),
        ("Suppressed", f"{suppressed}; `mail` shows a user's address and why" if suppressed else "none"),
        ("Kinds", ", ".join(f"{name} ({_channels(kind)})" for name, kind in status["kinds"].items())),
        ("Access", settings.openness or ("by API_KEYS" if settings.api_keys else "from this machine only")),
        ("Streams", "possible" if status["streams"] else "not possible: MongoDB is a standalone server"),
    ]


def _mail_server(service: Mapping[str, Any] | None, port: int) -> str:
    if service is None:
        return f"unknown, as no service answers here on port {port}; `check` asks the mail server itself"
    if not service["breaker_open"]:
        pace = f", at most {service['pace']:.3g} messages a second" if service["pace"] else ""
        return f"usable, {counted(int(service['smtp_connections']), 'connection')} open{pace}"
    return "no e-mail gets through"


def _stopped(status: Mapping[str, Any]) -> str:
    """Return what has stopped and why. The service knows the line and the kinds; MongoDB, what else is held."""
    stops = status["service"]["stopped"] if status["service"] else []
    named = {stop["group"] for stop in stops}
    told = [
        f"{stop['group']}, {timedelta(seconds=round(stop['seconds']))} ago: {stop['reply']}; "
        f"next probe in {stop['next_probe']:.0f} s"
        for stop in stops
    ]
    held = [f"{row['reason']} ({row['count']} wait)" for row in status["held"] if row["reason"] not in named]
    return "; ".join([*told, *held]) or "nothing"


def _counted(reasons: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{reason['reason']} ({reason['count']})" for reason in reasons) or "none"


def _channels(kind: Mapping[str, bool]) -> str:
    return " and ".join(words for name, words in (("in_app", "in-app"), ("email", "e-mail")) if kind[name])
