"""Metrics for Prometheus. No label has a value that a caller chooses."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from functools import cache
from typing import Final, Literal

from aiohttp import web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector

LAG_INTERVAL: Final = 0.5
"""Seconds between two measurements of the event loop."""
DELIVERY_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14_400, 86_400)
SENT_PERIOD: Final = 3600.0
SENT_INTERVAL: Final = 60.0
"""Seconds, and seconds between two readings."""
STREAM_LAG_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
REPLIES: Final = 100
"""Different replies shown as labels, which stay as long as the process lives."""
CONTENT_TYPE: Final = CONTENT_TYPE_LATEST


class Metrics:
    """The instruments of one application, in a registry of its own. Times are in seconds.

    With several workers (`PROMETHEUS_MULTIPROC_DIR`) each of them shows the sum of all.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._watched: list[tuple[Gauge, Callable[[], float]]] = []
        self.requests = Histogram(
            "notifier_http_request_duration_seconds",
            "Requests by route (- if there is none), method and status.",
            ["route", "method", "status"],
            registry=self._registry,
        )
        self.requests_of = cache(self.requests.labels)
        self.emails = Counter(
            "notifier_emails",
            "Attempts to send an e-mail, by outcome (sent, retried, dead, waiting, muted, read) and reason.",
            ["outcome", "reason"],
            registry=self._registry,
        )
        self.not_owed = self._counter("notifier_emails_not_owed", "E-mails not owed, as their user's outbox was full.")
        self.delivery = Histogram(
            "notifier_email_delivery_seconds",
            "From the creation of an e-mail to the server's 250.",
            buckets=DELIVERY_BUCKETS,
            registry=self._registry,
        )
        self.owed = self._gauge("notifier_emails_owed", "E-mails owed, in MongoDB.", "livemostrecent")
        self.oldest = self._gauge(
            "notifier_oldest_email_owed_seconds", "Age of the oldest e-mail owed; 0 if none is owed.", "livemostrecent"
        )
        self.waiting = self._gauge(
            "notifier_notifications_waiting", "Notifications that wait for their e-mail, in MongoDB.", "livemostrecent"
        )
        self.dead = self._gauge("notifier_dead_letters", "Dead letters, in MongoDB.", "livemostrecent")
        self.sent = self._gauge(
            "notifier_emails_sent_last_hour", "E-mails sent in the last hour, for `status`.", "livesum"
        )
        self._sent = deque([(time.monotonic(), 0.0)])
        self.breaker = self._gauge("notifier_smtp_breaker_open", "1 while no e-mail gets through.", "livemax")
        self.connections = self._gauge("notifier_smtp_connections", "Open SMTP connections.", "livesum")
        self.open = self._gauge("notifier_api_open", "1 if anyone may call, as API_KEYS is not set.", "livemax")
        self.pace = self._gauge(
            "notifier_smtp_pace", "Messages a second that the SMTP server or SMTP_RATE allows; 0: no limit.", "livesum"
        )
        self.stopped = Gauge(
            "notifier_mail_stopped_seconds",
            "Since when the line or a kind has stopped, and the server's last reply; 0 once it goes on.",
            ["group", "reply"],
            registry=self._registry,
            multiprocess_mode="livemax",
        )
        self.next_probe = Gauge(
            "notifier_mail_next_probe_seconds",
            "Until the next probe of what has stopped.",
            ["group"],
            registry=self._registry,
            multiprocess_mode="livemax",
        )
        self._stops: Callable[[], Iterable[tuple[str, str, float, float]]] = tuple
        self._shown: set[tuple[str, str]] = set()
        self.lag = self._gauge(
            "notifier_event_loop_lag_seconds", "Delay of the event loop at the last measurement.", "livemax"
        )
        self.streams = self._gauge("notifier_streams_open", "Open streams.", "livesum")
        self.stream_events = self._counter("notifier_stream_events", "Events sent on streams.")
        self.streams_dropped = self._counter("notifier_streams_dropped", "Streams whose client did not read.")
        self.stream_lag = Histogram(
            "notifier_stream_lag_seconds",
            "From the write of a change to its event being sent, both by MongoDB's clock.",
            buckets=STREAM_LAG_BUCKETS,
            registry=self._registry,
        )

    def _gauge(self, name: str, text: str, of_workers: Literal["livemostrecent", "livemax", "livesum"]) -> Gauge:
        return Gauge(name, text, registry=self._registry, multiprocess_mode=of_workers)

    def watch(self, gauge: Gauge, value: Callable[[], float]) -> None:
        """Let a gauge show this value. The client's own `set_function` supports no workers."""
        self._watched.append((gauge, value))

    def watch_stops(self, stops: Callable[[], Iterable[tuple[str, str, float, float]]]) -> None:
        """Show what has stopped: its name, the server's reply, and the seconds since then and to the next probe."""
        self._stops = stops

    def _update_stops(self) -> None:
        for group, reply in self._shown:
            self.stopped.labels(group, reply).set(0)
            self.next_probe.labels(group).set(0)
        for group, reply, age, wait in self._stops():
            shown = (group, reply if len(self._shown) < REPLIES else "")
            self._shown.add(shown)
            self.stopped.labels(*shown).set(age)
            self.next_probe.labels(group).set(wait)

    def _update_watched(self) -> None:
        self._update_stops()
        for gauge, value in self._watched:
            gauge.set(value())
        self.sent.set(self._sent_last_hour(time.monotonic()))

    def _sent_last_hour(self, now: float) -> float:
        """Return how many e-mails this process sent in the last hour. A reading a minute is kept for that."""
        samples = (sample for metric in self.emails.collect() for sample in metric.samples)
        sent = sum(s.value for s in samples if s.name.endswith("_total") and s.labels["outcome"] == "sent")
        if now - self._sent[-1][0] >= SENT_INTERVAL:
            self._sent.append((now, sent))
        while now - self._sent[0][0] > SENT_PERIOD and len(self._sent) > 1:
            self._sent.popleft()
        return sent - self._sent[0][1]

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, registry=self._registry)

    def render(self) -> bytes:
        """Return all metrics in the text format of Prometheus."""
        self._update_watched()
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            with suppress(ValueError, OSError):  # without its directory each worker shows what it knows itself
                MultiProcessCollector(registry := CollectorRegistry())  # type: ignore[no-untyped-call]
                return generate_latest(registry)
        return generate_latest(self._registry)

    @asynccontextmanager
    async def measuring_lag(self) -> AsyncIterator[None]:
        """Measure the delay of the event loop meanwhile."""
        task = asyncio.create_task(self._measure_lag())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _measure_lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_INTERVAL
            await asyncio.sleep(LAG_INTERVAL)
            self.lag.set(max(0.0, loop.time() - due))
            self._update_watched()


METRICS: Final = web.AppKey("METRICS", Metrics)
