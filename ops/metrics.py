"""Metrics for Prometheus. No label has a value that a caller chooses."""

import asyncio
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache, partial
from typing import Any, Final, cast

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.values import MultiProcessValue, MutexValue

LAG_INTERVAL: Final = 0.5  # seconds between two measurements of the event loop
DELIVERY_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14_400, 86_400)
STREAM_LAG_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
REPLIES: Final = 100  # at most this many are labels, as each label stays as long as the process lives
FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"  # the variable that names the directory of the workers' metrics
WORKER: Final = "NOTIFIER_WORKER"  # has a worker's number, which names its files; its successor continues them


class Metrics:
    """The instruments of one application, in a registry of its own. Each of several workers shows the sum of all."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        # By default, each process leaves files with its id behind, in any directory that `FOLDER` happens to name.
        shared, worker = cast("Any", MultiProcessValue), os.environ.get(WORKER)
        values.ValueClass = shared(lambda: worker) if worker else MutexValue
        counter, histogram = partial(Counter, registry=self._registry), partial(Histogram, registry=self._registry)
        latest, greatest, total = (
            partial(Gauge, registry=self._registry, multiprocess_mode=mode)
            for mode in ("livemostrecent", "livemax", "livesum")
        )
        requests = histogram(
            "notifier_http_request_duration_seconds",
            "Requests by route (- if there is none), method and status.",
            ["route", "method", "status"],
        )
        self.requests_of = cache(requests.labels)
        self.emails = counter(
            "notifier_emails",
            "Attempts to send an e-mail, by outcome (sent, retried, dead, waiting, muted, read) and reason.",
            ["outcome", "reason"],
        )
        self.not_owed = counter("notifier_emails_not_owed", "E-mails not owed, as their user's outbox was full.")
        self.delivery = histogram(
            "notifier_email_delivery_seconds",
            "From the creation of an e-mail to the server's 250.",
            buckets=DELIVERY_BUCKETS,
        )
        self.owed = latest("notifier_emails_owed", "E-mails owed, in MongoDB.")
        self.oldest = latest("notifier_oldest_email_owed_seconds", "Age of the oldest e-mail owed; 0 if none is owed.")
        self.waiting = latest("notifier_notifications_waiting", "Notifications that wait for their e-mail, in MongoDB.")
        self.dead = latest("notifier_dead_letters", "Dead letters, in MongoDB.")
        self.breaker = greatest("notifier_smtp_breaker_open", "1 while no e-mail gets through.")
        self.connections = total("notifier_smtp_connections", "Open SMTP connections.")
        self.open = greatest("notifier_api_open", "1 if anyone may call, as API_KEYS is not set.")
        self.pace = total(
            "notifier_smtp_pace", "Messages a second that the SMTP server or SMTP_RATE allows; 0: no limit."
        )
        self.stopped = greatest(
            "notifier_mail_stopped_seconds",
            "Since when the line or a kind has stopped, and the server's last reply; 0 once it goes on.",
            ["group", "reply"],
        )
        self.next_probe = greatest(
            "notifier_mail_next_probe_seconds", "Until the next probe of what has stopped.", ["group"]
        )
        self.lag = greatest("notifier_event_loop_lag_seconds", "Delay of the event loop at the last measurement.")
        self.streams = total("notifier_streams_open", "Open streams.")
        self.stream_events = counter("notifier_stream_events", "Events sent on streams.")
        self.streams_dropped = counter("notifier_streams_dropped", "Streams whose client did not read.")
        self.stream_lag = histogram(
            "notifier_stream_lag_seconds",
            "From the write of a change to its event being sent, both by MongoDB's clock.",
            buckets=STREAM_LAG_BUCKETS,
        )
        self._watched: list[tuple[Gauge, Callable[[], float]]] = []
        # What has stopped: its name, the server's reply, and the seconds since then and to the next probe.
        self.stops: Callable[[], Iterable[tuple[str, str, float, float]]] = tuple
        self._shown: set[tuple[str, str]] = set()

    def watch(self, gauge: Gauge, value: Callable[[], float]) -> None:
        """Let a gauge show this value. The client's own `set_function` supports no workers."""
        self._watched.append((gauge, value))

    def _update(self) -> None:
        for gauge, value in self._watched:
            gauge.set(value())
        for group, reply in self._shown:
            self.stopped.labels(group, reply).set(0)
            self.next_probe.labels(group).set(0)
        for group, reply, age, wait in self.stops():
            shown = (group, reply if len(self._shown) < REPLIES else "")
            self._shown.add(shown)
            self.stopped.labels(*shown).set(age)
            self.next_probe.labels(group).set(wait)

    def render(self) -> bytes:
        self._update()
        if WORKER in os.environ:
            with suppress(ValueError, OSError):  # without its directory each worker shows its own
                MultiProcessCollector(registry := CollectorRegistry())  # type: ignore[no-untyped-call]
                return generate_latest(registry)
        return generate_latest(self._registry)

    async def measure_lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_INTERVAL
            await asyncio.sleep(LAG_INTERVAL)
            self.lag.set(max(0.0, loop.time() - due))
            self._update()


METRICS: Final = web.AppKey("METRICS", Metrics)
