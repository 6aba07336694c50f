"""The command `status`: what is owed and why it waits, and why e-mails died. It asks MongoDB, not the service."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from cli.output import counted, say
from mongo import overview
from store import Store


async def show_status(store: Store, *, as_json: bool) -> int:
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
    }
    if as_json:
        say(json.dumps(status, default=str))
    else:
        for name, text in _lines(status):
            say(f"{name:18}{text}")
    return 0


def _lines(status: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    age, suppressed = status["oldest_seconds"], status["suppressed_users"]
    owed = f"{status['owed']}: {status['due']} due now, {status['leased']} being sent" if status["owed"] else "none"
    return [
        ("E-mails owed", owed),
        ("Oldest", "-" if age is None else f"{timedelta(seconds=age)} old"),
        ("Waiting", f"{counted(status['waiting'], 'notification')}, for their e-mail" if status["waiting"] else "none"),
        ("Next attempt", status["next_attempt"] or ("now" if status["due"] else "-")),
        ("Their last errors", _reasons(status["errors"]) or "none"),
        ("Stopped", _reasons(status["held"]) or "nothing"),
        ("Dead letters", f"{status['dead_letters']}: {_reasons(status['dead'])}" if status["dead"] else "none"),
        ("Suppressed", f"{suppressed}; `mail` shows a user's address and why" if suppressed else "none"),
    ]


def _reasons(counts: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{each['reason']} ({each['count']})" for each in counts)
