"""What the service tells Prometheus. No label can take a value that a caller chooses."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector

LAG_INTERVAL: Final = 0.5
DELIVERY_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14_400, 86_400)
STREAM_LAG_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
CONTENT_TYPE: Final = CONTENT_TYPE_LATEST


class Metrics:
    """The instruments of one application, in a registry of its own. Times are in seconds.

    Those of several workers (`PROMETHEUS_MULTIPROC_DIR`) are shown as one, whichever is asked.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._watched: list[tuple[Gauge, Callable[[], float]]] = []
        self.requests = Histogram(
            "notifier_http_request_duration_seconds",
            "Requests, by route (- for none), method and status.",
            ["route", "method", "status"],
            registry=self._registry,
        )
        self.emails = Counter(
            "notifier_emails",
            "What became of attempts to send an e-mail: sent, retried, dead or waiting; and why.",
            ["outcome", "reason"],
            registry=self._registry,
        )
        self.delivery = Histogram(
            "notifier_email_delivery_seconds",
            "From the creation of an e-mail to the server's 250.",
            buckets=DELIVERY_BUCKETS,
            registry=self._registry,
        )
        self.owed = self._gauge("notifier_emails_owed", "E-mails owed, by all processes together.", "livemostrecent")
        self.oldest = self._gauge(
            "notifier_oldest_email_owed_seconds", "Age of the oldest e-mail owed; 0 when none is.", "livemostrecent"
        )
        self.breaker = self._gauge(
            "notifier_smtp_breaker_open", "1 while the SMTP server cannot be worked with.", "livemax"
        )
        self.connections = self._gauge("notifier_smtp_connections", "Open SMTP connections.", "livesum")
        self.lag = self._gauge(
            "notifier_event_loop_lag_seconds", "How late the event loop was at the last look.", "livemax"
        )
        self.streams = self._gauge("notifier_streams_open", "Open streams of inboxes.", "livesum")
        self.stream_events = self._counter("notifier_stream_events", "Events sent on streams.")
        self.streams_dropped = self._counter("notifier_streams_dropped", "Streams broken off as nobody read them.")
        self.stream_lag = Histogram(
            "notifier_stream_lag_seconds",
            "From the write of a change, by MongoDB's clock, to its event being sent, by ours.",
            buckets=STREAM_LAG_BUCKETS,
            registry=self._registry,
        )

    def _gauge(self, name: str, text: str, of_workers: Literal["livemostrecent", "livemax", "livesum"]) -> Gauge:
        return Gauge(name, text, registry=self._registry, multiprocess_mode=of_workers)

    def watch(self, gauge: Gauge, value: Callable[[], float]) -> None:
        """Let a gauge show this; the client's own `set_function` knows nothing of workers."""
        self._watched.append((gauge, value))

    def _look(self) -> None:
        for gauge, value in self._watched:
            gauge.set(value())

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(name, text, registry=self._registry)

    def render(self) -> bytes:
        """Return all of them in the text format of Prometheus."""
        self._look()
        registry = self._registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            MultiProcessCollector(registry := CollectorRegistry())  # type: ignore[no-untyped-call]
        return generate_latest(registry)

    @asynccontextmanager
    async def measuring_lag(self) -> AsyncIterator[None]:
        """Look after the event loop."""
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
            self._look()
