"""E-mails: how fast they are claimed, sent over TLS and settled."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import astuple, dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

import trustme

from bench.figures import median_ratio
from bench.load import LoadError, Server
from bench.report import Row
from bench.run import Bench
from tests.servers import LOGIN, PASSWORD

NOTE: Final = (
    "From claim to settle, with a login. The mail server is a process on the same machine that accepts everything and "
    "answers at once, or with round trips of 50 ms. There, each new connection would also cost some of them."
)
HEADER: Final = ("sent by", "e-mails", "seconds", "e-mails/s", "CPU µs", "mail server's CPU µs", "MongoDB's CPU µs")
SERVICE: Final = "service, 4 connections"
RECONNECT: Final = "a new connection per message, 4 at once"
RECONNECT_ALONE: Final = "a new connection per message, one at a time"
DISTANT: Final = "service, 4 connections, round trips of 50 ms"
DISTANT_ONE_AT_A_TIME: Final = "the same, to a server without PIPELINING"
ONE_WAY: Final = 0.025
"""Seconds to the distant server, or back."""
OWING: Final = {"mail_due": {"$exists": True}}

Start = Callable[[], AbstractContextManager[Server]]


@dataclass(frozen=True)
class Drain:
    """What it took to send some e-mails. CPU is in µs per e-mail."""

    emails: int
    seconds: float
    rate: float
    cpu: float
    sink_cpu: float
    db_cpu: float


def emails(bench: Bench) -> None:
    """Measure kept connections against a new one per message, a server far away, and one process against two."""
    size, found = bench.size, defaultdict[str, list[Drain]](list)
    certificate = _make_certificate(bench)
    with bench.ceiling("sink", CERTIFICATE=certificate) as sink:
        settings: dict[str, Any] = {
            "SMTP_HOST": "127.0.0.1",
            "SMTP_PORT": sink.port,
            "SMTP_SECURITY": "tls",
            "SMTP_LOGIN": LOGIN,
            "SMTP_PASSWORD": PASSWORD,
            "SMTP_CA_FILE": bench.logs / "authority.pem",
            "SMTP_CONNECTIONS": 4,
        }
        service = partial(bench.service, **settings)
        reconnect = partial(bench.ceiling, "reconnect", listens=False, **settings)
        ways: dict[str, Start] = {
            SERVICE: service,
            RECONNECT: partial(reconnect, CONNECTIONS=4),
            RECONNECT_ALONE: partial(reconnect, CONNECTIONS=1),
        }
        for _ in bench.rounds(size.long_rounds):
            for way, start in ways.items():
                bench.progress(f"{size.emails:,} e-mails, {way}")
                found[way].append(_drain(bench, sink, size.emails, [start]))
        for way, starts in (("service, 1 process", [service]), ("service, 2 processes", [service, service])):
            bench.progress(f"{size.many_emails:,} e-mails, {way}")
            found[way].append(_drain(bench, sink, size.many_emails, starts))
    for _ in bench.rounds(size.long_rounds):
        for way, offered in ((DISTANT, "1"), (DISTANT_ONE_AT_A_TIME, "")):
            bench.progress(f"{size.distant_emails:,} e-mails, {way}")
            with (
                bench.ceiling("sink", CERTIFICATE=certificate, PIPELINING=offered) as sink,
                bench.ceiling("distant", SINK=sink.port, DELAY=ONE_WAY) as distant,
            ):
                start = partial(bench.service, **settings | {"SMTP_PORT": distant.port})
                found[way].append(_drain(bench, sink, size.distant_emails, [start]))
    rows: list[Row] = [
        (way, *map(statistics.median, zip(*map(astuple, drains), strict=True))) for way, drains in found.items()
    ]
    bench.report.add("E-mails", NOTE, HEADER, rows)
    target = bench.report.target
    target("e-mails/s over TLS ÷ with a new connection per message", _ratio(found, SERVICE, RECONNECT))
    target("e-mails/s with round trips of 50 ms ÷ one command at a time", _ratio(found, DISTANT, DISTANT_ONE_AT_A_TIME))


def _ratio(found: Mapping[str, Sequence[Drain]], one: str, other: str) -> float:
    return median_ratio((drain.rate for drain in found[one]), (drain.rate for drain in found[other]))


def _make_certificate(bench: Bench) -> str:
    """Make an authority and a certificate of the mail server; return the path of the latter."""
    authority, path = trustme.CA(), bench.logs / "certificate.pem"
    authority.cert_pem.write_to_path(bench.logs / "authority.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(path)
    return f"{path}"


def _drain(bench: Bench, sink: Server, emails: int, starts: Sequence[Start]) -> Drain:
    """Start the senders, let the e-mails fall due, and measure from the first settled to the last.

    Raises `LoadError` if it takes more than a minute and a twentieth of a second per e-mail.
    """
    bench.fill(emails, 1, due=datetime.now(UTC) + timedelta(days=1))
    with ExitStack() as stack:
        senders = [stack.enter_context(start()) for start in starts]
        servers = [*senders, sink, bench.mongod]
        now, deadline = datetime.now(UTC), time.monotonic() + 60 + emails / 20
        bench.users().update_many(OWING, {"$set": {"mail_due": now, "outbox.0.next_at": now}})
        left = _wait_for_fewer(bench, emails, emails, senders[0], deadline)
        began, before = time.monotonic(), [server.cpu() for server in servers]
        _wait_for_fewer(bench, 1, emails, senders[0], deadline)
        seconds = time.monotonic() - began
        used = [server.cpu() - cpu for server, cpu in zip(servers, before, strict=True)]
    if not left:
        raise LoadError(f"{emails} e-mails are too few: they were all sent before the measurement began.")
    *own, of_sink, of_mongod = (cpu / left * 1e6 for cpu in used)
    return Drain(left, seconds, left / seconds, sum(own), of_sink, of_mongod)


def _wait_for_fewer(bench: Bench, than: int, emails: int, sender: Server, deadline: float) -> int:
    """Wait until fewer users are owed an e-mail; return how many."""
    while (left := bench.users().count_documents(OWING)) >= than:
        if time.monotonic() > deadline:
            raise LoadError(f"{left} of {emails} e-mails were not sent.\n{sender.log_tail()}")
        time.sleep(min(0.2, emails / 1e4))
    return left
