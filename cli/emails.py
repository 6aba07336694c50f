"""The commands about e-mails: what is owed and why it waits, and dead letters."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from api.auth import status_token
from cli.output import counted, fail, say
from kinds import seconds
from mongo import backlog
from mongo.errors import Conflict, OutboxFull
from mongo.owed import NO_TOKEN
from settings import Settings
from store import Store

HEAD: Final = (
    "id                        died (UTC)        user_id                   key           tries  address, reason"
)
ANSWER_TIMEOUT: Final = aiohttp.ClientTimeout(total=3)


def since(text: str) -> datetime:
    """Parse a time such as 2026-11-25T10:00, which is UTC unless it says otherwise, or a span until now such as 2h."""
    try:
        if math.isfinite(span := seconds(text)):
            return datetime.now(UTC) - timedelta(seconds=span)
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            "not a time such as 2026-11-25T10:00, nor a span such as 30m, 2h or 3d"
        ) from None


async def list_emails(store: Store, user_id: str) -> int:
    """Print the e-mails that a user is owed, the user's dead letters, and whether the address is suppressed."""
    (owed, waiting), dead = await store.outbox.of_user(user_id), await store.dead_mail.of_user(user_id)
    suppression = await store.suppressions.of_user(user_id)
    for email in owed:
        state = "leased until" if email["token"] != NO_TOKEN else "next attempt"
        when = "now" if email["next_at"] <= store.clock.now() else f"{email['next_at']:%F %T} UTC"
        row = f"{email['id']}  {email['key']:12}  {email['tries']} tries, {state} {when}"
        say(f"{row}  request {email.get('request_id', '-')}  {email['error'] or ''}".rstrip())
    for item in waiting:
        say(f"{item['id']}  {item['key']:12}  waits until {item['due']:%F %T} UTC for its e-mail")
    for letter in dead:
        row = f"{letter['_id']}  {letter['key']:12}  {letter['tries']} tries, died {letter['died_at']:%F %H:%M} UTC"
        say(f"{row}  request {letter.get('request_id') or '-'}  {letter['error']}")
    if suppression:
        say(
            f"Suppressed: {suppression.address} gets no e-mails since {suppression.at:%F %H:%M} UTC "
            f"({suppression.code}), until `retry` or POST /suppress lifts that"
            f"{'' if suppression.confirmed else ', or an e-mail owed two days later is accepted'}."
        )
    if not (owed or waiting or dead):
        say("The user is owed no e-mail and has no dead letter.")
    return 0


async def flush(store: Store, user_id: str | None) -> int:
    """Let all e-mails fall due, or those of a user. Those that are being sent are left alone."""
    users = await backlog.flush(store.outbox, user_id)
    say(f"Due now: the e-mails of {counted(users, 'user')}.")
    return 0


async def list_dead(store: Store, key: str | None, died_since: datetime | None, *, as_json: bool) -> int:
    """Print the dead letters, oldest first: all, or those of a kind, or those that died since a time."""
    letters = await store.dead_mail.find(key=key, since=died_since)
    if as_json:
        for letter in letters:
            say(json.dumps(letter, default=str))
    elif letters:
        row = "{_id:24}  {died_at:%Y-%m-%d %H:%M}  {user_id:24}  {key:12}  {tries:>5}  {email}  {error}"
        say(HEAD)
        for letter in letters:
            say(row.format(**letter | {"email": letter["email"] or "-"}))
    else:
        say("There are no such dead letters." if key or died_since else "There are no dead letters.")
    return 0


async def retry_dead(store: Store, ids: list[str] | None) -> int:
    """Owe the e-mails of these dead letters again, or of all."""
    letters = await store.dead_mail.find(ids)
    known = {letter["_id"] for letter in letters}
    failures = _unknown(ids, known)
    for letter in letters:
        try:
            if not await store.dead_mail.owe_again(letter):
                failures[letter["_id"]] = "its user no longer exists"
        except OutboxFull:
            failures[letter["_id"]] = "its user is owed too many e-mails already; try again later"
        except Conflict as exc:
            failures[letter["_id"]] = f"the users' collection does not admit it: {exc}"
    _report(failures)
    say(f"Owed again: {len(known - failures.keys())}.")
    return 1 if failures else 0


async def discard_dead(store: Store, ids: list[str] | None) -> int:
    """Delete these dead letters, or all."""
    failures = {}
    if ids is not None:
        failures = _unknown(ids, {letter["_id"] for letter in await store.dead_mail.find(ids)})
    discarded = await store.dead_mail.discard(ids)
    _report(failures)
    say(f"Discarded: {discarded}.")
    return 1 if failures else 0


async def discard_owed(store: Store) -> int:
    """Delete all e-mails that are owed."""
    discarded = await backlog.discard_all_owed(store.outbox)
    say(f"Discarded: {counted(discarded.owed, 'e-mail')} that were owed.")
    if discarded.waiting:
        say(f"Nor will there be e-mails about {counted(discarded.waiting, 'notification')} that waited for theirs.")
    return 0


def _unknown(ids: list[str] | None, known: set[str]) -> dict[str, str]:
    return dict.fromkeys(set(ids or ()) - known, "there is no such dead letter")


def _report(failures: dict[str, str]) -> None:
    for id_, reason in sorted(failures.items()):
        fail(f"{id_}: {reason}.")


# --- status -----------------------------------------------------------------------------------------


async def show_status(store: Store, settings: Settings, *, as_json: bool) -> int:
    """Print the status. Raises `Unavailable`."""
    owed = await backlog.owed(store.outbox)
    status = {
        **asdict(owed),
        "next_attempt": owed.next_attempt.isoformat() if owed.next_attempt else None,
        "errors": await backlog.errors_of_owed(store.users),
        "held": await backlog.held(store.users),
        "dead_letters": await store.dead_mail.count(),
        "dead": await backlog.errors_of_dead(store.dead_mail),
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
