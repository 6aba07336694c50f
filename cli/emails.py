"""The commands about e-mails: what is owed and why it waits, and dead letters."""

import json
import math
from argparse import ArgumentTypeError, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from api.auth import status_token
from cli.command import Add, counted, fail, on_store, say
from kinds import seconds
from mongo import backlog
from mongo.errors import Conflict, OutboxFull
from mongo.owed import NO_TOKEN
from settings import Settings
from store import Store

HEAD: Final = (
    "id                        died (UTC)        user_id                   key           tries  address, reason"
)
LETTER: Final = "{_id:24}  {died_at:%Y-%m-%d %H:%M}  {user_id:24}  {key:12}  {tries:>5}  {email}  {error}"
ANSWER_TIMEOUT: Final = aiohttp.ClientTimeout(total=3)


def add_commands(add: Add) -> None:
    status = add("status", "show what is owed and why it waits, and why e-mails died", on_store(show_status))
    status.add_argument("--json", action="store_true", help="one JSON object")
    dead = add("dead", "list the e-mails that could not be delivered, and why", on_store(list_dead))
    dead.add_argument("--json", action="store_true", help="one JSON object a line")
    dead.add_argument("--key", metavar="KIND", help="only those of this kind")
    dead.add_argument(
        "--since", metavar="TIME", type=since, help="only those that died since: 2026-11-25T10:00 (UTC), 30m, 2h or 3d"
    )
    retry = add("retry", "owe the e-mails of dead letters again", on_store(retry_dead))
    discard = add(
        "discard", "delete dead letters, or the e-mails that are owed; nothing brings them back", on_store(discard_dead)
    )
    retried, discarded = (which.add_mutually_exclusive_group(required=True) for which in (retry, discard))
    for letters in (retried, discarded):
        letters.add_argument("ids", metavar="ID", nargs="*", default=[], help="as listed by `dead`")
        letters.add_argument("--all", action="store_true", help="every dead letter")
    discarded.add_argument("--owed", action="store_true", help="every e-mail owed, for example on a copy of production")
    due = add("flush", "try what is owed now, whatever it waits for", on_store(flush))
    due.add_argument("--user", dest="user_id", metavar="USER_ID", help="only what this user is owed")
    mail = add("mail", "show the e-mails that a user is owed, and the user's dead letters", on_store(list_emails))
    mail.add_argument("user_id", metavar="USER_ID")


def since(text: str) -> datetime:
    """Parse a time such as 2026-11-25T10:00, which is UTC unless it says otherwise, or a span until now such as 2h."""
    try:
        if math.isfinite(span := seconds(text)):
            return datetime.now(UTC) - timedelta(seconds=span)
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ArgumentTypeError("not a time such as 2026-11-25T10:00, nor a span such as 30m, 2h or 3d") from None


async def list_emails(store: Store, options: Namespace) -> None:
    user_id = options.user_id
    (owed, waiting), dead = await store.outbox.of_user(user_id), await store.dead_mail.find(user_id=user_id)
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
    if found := await store.suppressions.of_user(user_id):
        until = "" if found.confirmed else ", or an e-mail owed two days later is accepted"
        told = f"{found.at:%F %H:%M} UTC ({found.code}), until `retry` or POST /suppress lifts that{until}"
        say(f"Suppressed: {found.address} gets no e-mails since {told}.")
    if not (owed or waiting or dead):
        say("The user is owed no e-mail and has no dead letter.")


async def flush(store: Store, options: Namespace) -> None:
    users = await backlog.flush(store.outbox, options.user_id)
    say(f"Due now: the e-mails of {counted(users, 'user')}.")


async def list_dead(store: Store, options: Namespace) -> None:
    letters = await store.dead_mail.find(key=options.key, since=options.since)
    if not options.json:
        chosen = "such " if options.key or options.since else ""
        say(HEAD if letters else f"There are no {chosen}dead letters.")
    for letter in letters:
        row = LETTER.format(**letter | {"email": letter["email"] or "-"})
        say(json.dumps(letter, default=str) if options.json else row)


async def retry_dead(store: Store, options: Namespace) -> int:
    failures = {}
    letters = await store.dead_mail.find(None if options.all else options.ids)
    for letter in letters:
        try:
            if not await store.dead_mail.owe_again(letter):
                failures[letter["_id"]] = "its user no longer exists"
        except OutboxFull:
            failures[letter["_id"]] = "its user is owed too many e-mails already; try again later"
        except Conflict as exc:
            failures[letter["_id"]] = f"the users' collection does not admit it: {exc}"
    return _report(f"Owed again: {len(letters) - len(failures)}.", options.ids, letters, failures)


async def discard_dead(store: Store, options: Namespace) -> int:
    if options.owed:
        discarded = await backlog.discard_all_owed(store.outbox)
        say(f"Discarded: {counted(discarded.owed, 'e-mail')} that were owed.")
        if discarded.waiting:
            say(f"Nor will there be e-mails about {counted(discarded.waiting, 'notification')} that waited for theirs.")
        return 0
    letters = await store.dead_mail.discard(None if options.all else options.ids)
    return _report(f"Discarded: {len(letters)}.", options.ids, letters, {})


def _report(done: str, ids: Sequence[str], letters: Sequence[Mapping[str, Any]], failures: Mapping[str, str]) -> int:
    unknown = dict.fromkeys({*ids} - {letter["_id"] for letter in letters}, "there is no such dead letter")
    for id_, reason in sorted({**unknown, **failures}.items()):
        fail(f"{id_}: {reason}.")
    say(done)
    return 1 if unknown or failures else 0


# --- status -----------------------------------------------------------------------------------------


async def show_status(store: Store, options: Namespace) -> None:
    owed, settings = await backlog.owed(store.outbox), store.users.settings
    status = {
        **asdict(owed),
        "next_attempt": owed.next_attempt.isoformat() if owed.next_attempt else None,
        **await backlog.reasons(store.users, store.dead_mail),
        "dead_letters": await store.dead_mail.count(),
        "suppressed_users": await store.suppressions.count(),
        "service": await _ask_service(settings),
    }
    lines = [f"{name:18}{text}" for name, text in _lines(status, settings.port)]
    say(*([json.dumps(status, default=str)] if options.json else lines))


async def _ask_service(settings: Settings) -> Mapping[str, Any] | None:
    """Return what the service on this machine says of the mail server, or `None` if none answers."""
    token = status_token(settings)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        async with (
            aiohttp.ClientSession(timeout=ANSWER_TIMEOUT, headers=headers) as session,
            session.get(f"{settings.url}/metrics", allow_redirects=False) as response,
        ):
            families = {f.name: f.samples for f in text_string_to_metric_families(await response.text())}
        (connections,), (pace,) = families["notifier_smtp_connections"], families["notifier_smtp_pace"]
        probes = {s.labels["group"]: s.value for s in families.get("notifier_mail_next_probe_seconds", ())}
        stops = [s for s in families.get("notifier_mail_stopped_seconds", ()) if s.value]
        stopped = [{**s.labels, "seconds": s.value, "next_probe": probes.get(s.labels["group"], 0.0)} for s in stops]
        return {"connections": int(connections.value), "pace": pace.value, "stopped": stopped}
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
    """Return what has stopped: the service knows since when and why; MongoDB, how many e-mails each stop holds."""
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
