"""The command `status`: what is owed and why it waits, why e-mails died, and what the mail server bears."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any, Final

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from api.auth import status_token
from cli.output import counted, say
from mongo import overview
from settings import Settings
from store import Store

ANSWER_TIMEOUT: Final = aiohttp.ClientTimeout(total=3)


async def show_status(store: Store, settings: Settings, *, as_json: bool) -> int:
    """Print the status. Raises `Unavailable`."""
    owed = await overview.owed(store.outbox)
    status = {
        **asdict(owed),
        "next_attempt": owed.next_attempt.isoformat() if owed.next_attempt else None,
        "errors": [asdict(reason) for reason in await overview.errors_of_owed(store.users)],
        "held": [asdict(reason) for reason in await overview.held(store.users)],
        "dead_letters": await store.dead_mail.count(),
        "dead": [asdict(reason) for reason in await overview.errors_of_dead(store.dead_mail)],
        "suppressed_users": await store.suppressions.count(),
        "service": await _ask_service(settings),
    }
    if as_json:
        say(json.dumps(status, default=str))
    else:
        for name, text in _lines(status, settings.port):
            say(f"{name:18}{text}")
    return 0


async def _ask_service(settings: Settings) -> Mapping[str, Any] | None:
    """Return what the service on this machine says of the mail server, or `None` if none answers."""
    token = status_token(settings)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        async with (
            aiohttp.ClientSession(timeout=ANSWER_TIMEOUT, headers=headers) as session,
            session.get(f"{settings.url}/metrics", allow_redirects=False) as response,
        ):
            families = text_string_to_metric_families(await response.text())
            samples = {(s.name, *s.labels.values()): s.value for family in families for s in family.samples}
        return {
            "connections": int(samples["notifier_smtp_connections",]),
            "pace": samples["notifier_smtp_pace",],
            "stopped": [
                {
                    "group": labels[0],
                    "reply": labels[1],
                    "seconds": seconds,
                    "next_probe": samples.get(("notifier_mail_next_probe_seconds", labels[0]), 0.0),
                }
                for (name, *labels), seconds in samples.items()
                if name == "notifier_mail_stopped_seconds" and seconds
            ],
        }
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError):  # another program may have the port
        return None


def _lines(status: Mapping[str, Any], port: int) -> Sequence[tuple[str, str]]:
    age, suppressed = status["oldest_seconds"], status["suppressed_users"]
    owed = f"{status['owed']}: {status['due']} due now, {status['leased']} being sent" if status["owed"] else "none"
    return [
        ("E-mails owed", owed),
        ("Oldest", "-" if age is None else f"{timedelta(seconds=age)} old"),
        ("Waiting", f"{counted(status['waiting'], 'notification')}, for their e-mail" if status["waiting"] else "none"),
        ("Next attempt", status["next_attempt"] or ("now" if status["due"] else "-")),
        ("Their last errors", _reasons(status["errors"]) or "none"),
        ("Mail server", _mail_server(status["service"], port)),
        ("Stopped", _stopped(status) or "nothing"),
        ("Dead letters", f"{status['dead_letters']}: {_reasons(status['dead'])}" if status["dead"] else "none"),
        ("Suppressed", f"{suppressed}; `mail` shows a user's address and why" if suppressed else "none"),
    ]


def _mail_server(service: Mapping[str, Any] | None, port: int) -> str:
    if service is None:
        return f"unknown, as no service answers here on port {port}; `check` asks the mail server itself"
    pace = f", at most {service['pace']:.3g} messages a second" if service["pace"] else ""
    return f"{counted(service['connections'], 'connection')} open{pace}"


def _stopped(status: Mapping[str, Any]) -> str:
    """Return what has stopped. The service knows since when and why; MongoDB, how many e-mails each stop holds."""
    held = {row["reason"]: row["count"] for row in status["held"]}
    stops = {stop["group"]: stop for stop in status["service"]["stopped"]} if status["service"] else {}
    told = [
        f"{group}, {timedelta(seconds=round(stop['seconds']))} ago: {stop['reply']}; next probe in "
        f"{stop['next_probe']:.0f} s ({held.pop(group, 0)} wait)"
        for group, stop in stops.items()
    ]
    return "; ".join([*told, *(f"{group} ({count} wait)" for group, count in held.items())])


def _reasons(counts: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{each['reason']} ({each['count']})" for each in counts)
