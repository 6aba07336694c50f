"""E-mails: how fast they are claimed, sent over TLS and settled."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import astuple, dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

import trustme

from bench.figures import Drain, median, median_ratio, ratios
from bench.load import USER, LoadError, Server
from bench.own import BEFORE, Layout
from bench.report import BASELINE, Row
from bench.run import DATABASE, Bench
from bench.tree import CURRENT, Tree
from tests.servers import LOGIN, PASSWORD

NOTE: Final = (
    "From the first e-mail settled to the last, with a login, of a kind that users can opt out of. The mail server is "
    "a process on the same machine that accepts everything and offers PIPELINING. A proxy before it makes the round "
    "trips. CPU and commands are per e-mail."
)
HEADER: Final = (
    *("sent by", "e-mails", "seconds", "e-mails/s", "CPU µs"),
    *("mail server's CPU µs", "MongoDB's CPU µs", "MongoDB commands"),
)
KIND: Final = "news"
KINDS: Final = f"[{KIND}]\nemail = true\n"
CONNECTIONS: Final = (4, 20)
RECONNECT: Final = "a new connection per message, 4 at once"
WITHOUT_MONGODB: Final = "a sender without MongoDB, 4 connections"
ONE_AT_A_TIME: Final = "service, 4 connections, round trips of 50 ms, no PIPELINING"
COMMANDS: Final = ("find", "getMore", "aggregate", "update", "findAndModify", "insert", "delete")
"""MongoDB's commands that are counted. The benchmark itself sends none of them meanwhile."""
PAUSE: Final = 0.02
"""Seconds between two looks at what is owed."""

Start = Callable[[], AbstractContextManager[Server]]
Found = dict[str, list[Drain]]


@dataclass(frozen=True)
class Relay:
    """A mail server, and the settings of a service that sends to it."""

    sink: Server
    settings: Mapping[str, Any]

    def service(self, bench: Bench, connections: int, tree: Tree = CURRENT) -> Start:
        """Return what starts a service."""
        return partial(bench.service, tree, DATABASE, **self.settings, SMTP_CONNECTIONS=connections)


def emails(bench: Bench) -> None:
    """Measure what an e-mail costs, and what connections, processes and a server far away change."""
    found: Found = defaultdict(list)
    certificate = _make_certificate(bench)
    with _relay(bench, certificate) as relay:
        _measure_near(bench, relay, found)
        _measure_many(bench, relay, found)
    for milliseconds in bench.size.round_trips:
        with _relay(bench, certificate, milliseconds) as relay:
            for _ in bench.rounds(bench.size.long_rounds):
                for connections in CONNECTIONS:
                    _measure_distant(bench, relay, _distant(connections, milliseconds), connections, found)
    with _relay(bench, certificate, 50, pipelining="") as relay:
        for _ in bench.rounds(bench.size.long_rounds):
            _measure_distant(bench, relay, ONE_AT_A_TIME, 4, found)
    rows: list[Row] = [(way, *astuple(median(drains))) for way, drains in found.items()]
    bench.report.add("E-mails", NOTE, HEADER, rows)
    _report_targets(bench, found)


def _service(connections: int) -> str:
    return f"service, {connections} connections"


def _distant(connections: int, milliseconds: int) -> str:
    return f"{_service(connections)}, round trips of {milliseconds} ms"


def _processes(name: str, count: int) -> str:
    return f"{name}, {count} process{'es' if count > 1 else ''}"


def _measure_near(bench: Bench, relay: Relay, found: Found) -> None:
    """Measure with a mail server that answers at once."""
    starts = {_service(connections): (CURRENT.layout, relay.service(bench, connections)) for connections in CONNECTIONS}
    if bench.against:
        starts[f"{bench.against.name}, 4 connections"] = bench.against.layout, relay.service(bench, 4, bench.against)
    reconnect = partial(bench.ceiling, "reconnect", listens=False, **relay.settings, CONNECTIONS=4)
    starts[RECONNECT] = BEFORE, reconnect
    for _ in bench.rounds(bench.size.long_rounds):
        for way, (layout, start) in starts.items():
            bench.progress(way)
            found[way].append(_drain(bench, relay.sink, bench.size.emails, layout, [start]))
        bench.progress(WITHOUT_MONGODB)
        found[WITHOUT_MONGODB].append(_send_without_mongodb(bench, relay))


def _measure_many(bench: Bench, relay: Relay, found: Found) -> None:
    """Measure one process and two, which draw from the same e-mails."""
    for _ in bench.rounds(bench.size.long_rounds):
        for tree, processes in ((CURRENT, 1), (CURRENT, 2), *(((bench.against, 1),) if bench.against else ())):
            way = _processes(tree.name, processes)
            bench.progress(f"{bench.size.many_emails:,} e-mails, {way}")
            starts = [relay.service(bench, 4, tree)] * processes
            found[way].append(_drain(bench, relay.sink, bench.size.many_emails, tree.layout, starts))


def _measure_distant(bench: Bench, relay: Relay, way: str, connections: int, found: Found) -> None:
    bench.progress(way)
    emails = connections * bench.size.distant_emails
    start = relay.service(bench, connections)
    found[way].append(_drain(bench, relay.sink, emails, CURRENT.layout, [start]))


def _report_targets(bench: Bench, found: Found) -> None:
    target, one = bench.report.target, found[_service(4)]
    target("e-mails/s ÷ with a new connection per message", ratios(one, found[RECONNECT]).rate)
    target("e-mails/s ÷ a sender without MongoDB", ratios(one, found[WITHOUT_MONGODB]).rate)
    target("MongoDB commands per e-mail", median(one).commands)
    processes = (found[_processes(CURRENT.name, count)] for count in (2, 1))
    target("e-mails/s of two processes ÷ one", ratios(*processes).rate)
    target(
        "e-mails/s with round trips of 50 ms ÷ one command at a time",
        ratios(found[_distant(4, 50)], found[ONE_AT_A_TIME]).rate,
    )
    target(
        "e-mails/s at 20 connections, round trips of 50 ms ÷ one per connection and round trip",
        median(found[_distant(20, 50)]).rate / (20 / 0.05),
    )
    if bench.against and bench.against.name == BASELINE:
        quotients = ratios(one, found[f"{BASELINE}, 4 connections"])
        target(f"CPU per e-mail ÷ {BASELINE}", quotients.cpu)
        target(f"MongoDB's CPU per e-mail ÷ {BASELINE}", quotients.db_cpu)
        rates = ([drain.rate for drain in found[_processes(name, 1)]] for name in (BASELINE, CURRENT.name))
        target(f"time to send 10,000 e-mails ÷ {BASELINE}", median_ratio(*rates))


# --- mail servers ----------------------------------------------------------------------------------


@contextmanager
def _relay(bench: Bench, certificate: str, milliseconds: int = 0, pipelining: str = "1") -> Iterator[Relay]:
    """Run a mail server, which is so many milliseconds away, there and back."""
    kinds = bench.logs / "kinds.toml"
    kinds.write_text(KINDS)
    with ExitStack() as stack:
        sink = stack.enter_context(bench.ceiling("sink", CERTIFICATE=certificate, PIPELINING=pipelining))
        nearest = sink
        if milliseconds:
            delay = milliseconds / 2000
            nearest = stack.enter_context(bench.ceiling("distant", SINK=sink.port, DELAY=delay))
        settings = {
            "SMTP_HOST": "127.0.0.1",
            "SMTP_PORT": nearest.port,
            "SMTP_SECURITY": "tls",
            "SMTP_LOGIN": LOGIN,
            "SMTP_PASSWORD": PASSWORD,
            "SMTP_CA_FILE": bench.logs / "authority.pem",
            "KINDS_FILE": kinds,
        }
        yield Relay(sink, settings)


def _make_certificate(bench: Bench) -> str:
    """Make an authority and a certificate of the mail server; return the path of the latter."""
    authority, path = trustme.CA(), bench.logs / "certificate.pem"
    authority.cert_pem.write_to_path(bench.logs / "authority.pem")
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(path)
    return f"{path}"


# --- one measurement -------------------------------------------------------------------------------


def _drain(bench: Bench, sink: Server, emails: int, layout: Layout, starts: Sequence[Start]) -> Drain:
    """Start the senders, let the e-mails fall due, and measure from the first settled to the last.

    Raises `LoadError` if it takes more than a minute and a twentieth of a second per e-mail.
    """
    owed = layout.owing(USER, KIND, datetime.now(UTC) + timedelta(days=1))
    bench.fill(emails, 1, DATABASE, owed=owed)
    bench.users().create_index(layout.due, sparse=True)  # which the service does, and a ceiling does not
    with ExitStack() as stack:
        senders = [stack.enter_context(start()) for start in starts]
        servers = [*senders, sink, bench.mongod]
        deadline = time.monotonic() + 60 + emails / 20
        bench.users().update_many({layout.due: {"$exists": True}}, layout.fall_due(datetime.now(UTC)))
        left = _wait_for_fewer(bench, layout, emails, senders[0], deadline)
        began, before = time.monotonic(), [*(server.cpu() for server in servers), _commands(bench)]
        _wait_for_fewer(bench, layout, 1, senders[0], deadline)
        seconds = time.monotonic() - began
        used = [now - then for now, then in zip([*(s.cpu() for s in servers), _commands(bench)], before, strict=True)]
    if not left:
        raise LoadError(f"{emails} e-mails are too few: they were all sent before the measurement began.")
    *own, of_sink, of_mongod = (cpu / left * 1e6 for cpu in used[:-1])
    return Drain(left, seconds, left / seconds, sum(own), of_sink, of_mongod, used[-1] / left)


def _wait_for_fewer(bench: Bench, layout: Layout, than: int, sender: Server, deadline: float) -> int:
    """Wait until fewer users are owed an e-mail; return how many. The limit makes each look cheap."""
    owing, index = {layout.due: {"$exists": True}}, {layout.due: 1}
    while (left := bench.client[DATABASE].command("count", "users", query=owing, hint=index, limit=than)["n"]) >= than:
        if time.monotonic() > deadline:
            raise LoadError(f"At least {left} e-mails were not sent.\n{sender.log_tail()}")
        time.sleep(PAUSE)
    return int(left)


def _commands(bench: Bench) -> int:
    """Return how many commands MongoDB has received."""
    counted = bench.client.admin.command("serverStatus")["metrics"]["commands"]
    return sum(counted[name]["total"] for name in COMMANDS)


def _send_without_mongodb(bench: Bench, relay: Relay) -> Drain:
    """Send with the sender that has no database. Raises `LoadError` if it fails."""
    before = relay.sink.cpu()
    with bench.ceiling("mailer", listens=False, **relay.settings, EMAILS=bench.size.emails, CONNECTIONS=4) as mailer:
        mailer.process.wait(60 + bench.size.emails / 20)
    try:
        measured = json.loads(mailer.log.read_text())
    except ValueError:
        raise LoadError(mailer.log_tail()) from None
    emails, seconds, sink_cpu = bench.size.emails, measured["seconds"], relay.sink.cpu() - before
    return Drain(emails, seconds, emails / seconds, measured["cpu"] / emails * 1e6, sink_cpu / emails * 1e6)
