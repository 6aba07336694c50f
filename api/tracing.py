"""Spans for OpenTelemetry: one for each request and one for each attempt to send an e-mail, in the same trace.

Imported only if OTEL_EXPORTER_OTLP_ENDPOINT is set, as its packages are those of `requirements-otel.txt`. The SDK reads
its other variables, such as OTEL_SERVICE_NAME and OTEL_TRACES_SAMPLER, from the environment. Attributes have the names
of OpenTelemetry's semantic conventions; no address, body or query is among them.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final

from aiohttp import web
from aiohttp.typedefs import Handler
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from api.middleware import SPAN, route_of
from mail.replies import DONE, Outcome
from mongo.owed import OwedEmail

PROPAGATOR: Final = TraceContextTextMapPropagator()
CLOSE_TIMEOUT: Final = 1.0  # seconds given to the last spans when the service stops


class Tracing:
    """Makes spans, and sends them to a collector from a thread of its own. A collector that fails delays nothing."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        logging.getLogger("opentelemetry").setLevel(logging.ERROR)  # it warns before each of its retries
        resource = Resource.create()
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "notifier"}))
        self._provider = TracerProvider(resource=resource)
        self._tracer = self._provider.get_tracer("notifier")

    async def sending(self, _: web.Application) -> AsyncIterator[None]:
        """Send spans while the application runs. At its end, send what is left if that is quick."""
        exporter = OTLPSpanExporter(f"{self._endpoint.rstrip('/').removesuffix('/v1/traces')}/v1/traces")
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        yield
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await asyncio.to_thread(self._provider.shutdown)

    @web.middleware
    async def request(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Make the span of a request. What the request owes and logs belongs to it."""
        method, route = route_of(request)
        span = self._tracer.start_span(
            f"{method} {route}",
            PROPAGATOR.extract(request.headers),
            SpanKind.SERVER,
            {"http.request.method": method, "http.route": route},
        )
        carrier: dict[str, str] = {}
        PROPAGATOR.inject(carrier, set_span_in_context(span))
        request[SPAN] = carrier["traceparent"]
        try:
            response = await handler(request)
            span.set_attribute("http.response.status_code", response.status)
            if response.status >= 500:
                span.set_status(StatusCode.ERROR)
        finally:
            span.end()
        return response

    def record(self, email: OwedEmail, outcome: Outcome, started: int) -> None:
        """Make the span of an attempt that has ended; `started` is in Unix nanoseconds."""
        attributes = {
            "notifier.email.id": email.id,
            "notifier.email.key": email.key,
            "notifier.email.outcome": outcome.verdict.value,
        }
        context = PROPAGATOR.extract(email.origin)
        span = self._tracer.start_span("send e-mail", context, SpanKind.CLIENT, attributes, start_time=started)
        if outcome.verdict not in DONE:
            span.set_status(StatusCode.ERROR, outcome.status)
        span.end()
