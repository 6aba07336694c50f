"""Spans for OpenTelemetry, as a collector gets them over OTLP."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.client import DB, ROOT, USER, settled
from tests.faults import scripted
from tests.fixtures import Start
from tests.processes import VARIABLES
from tests.servers import MailServer, free_port
from tests.waiting import eventually_async

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
HEADERS = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
ERROR = 2


class Collector:
    """Keeps the spans that it gets."""

    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []
        self.services: set[str] = set()
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        message = ExportTraceServiceRequest()
        message.ParseFromString(await request.read())
        for resource in message.resource_spans:
            self.services |= {a.value.string_value for a in resource.resource.attributes if a.key == "service.name"}
            for span in (span for scope in resource.scope_spans for span in scope.spans):
                values = {a.key: a.value.string_value or a.value.int_value for a in span.attributes}
                ids = {"id": span.span_id.hex(), "trace": span.trace_id.hex(), "parent": span.parent_span_id.hex()}
                self.spans.append({"name": span.name, "status": span.status.code, **ids, **values})
        return web.Response(content_type="application/x-protobuf")


@pytest.fixture
async def collector(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Collector]:
    """Run a collector, to which spans are sent often."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    app, collector = web.Application(), Collector()
    app.router.add_post("/v1/traces", collector.take)
    async with TestServer(app) as server:
        collector.url = str(server.make_url(""))
        yield collector


async def test_a_request_and_its_email_are_spans_of_the_callers_trace(
    start: Start, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "notifier")
    client = await start(otel_exporter_otlp_endpoint=collector.url)
    body = {"user_id": USER, "key": "registration", "data": {"secret": "hunter2"}}
    await client.post("/create", json=body, headers=HEADERS)

    def check() -> None:
        assert {span["name"] for span in collector.spans} == {"POST /create", "send e-mail"}
        request, email = sorted(collector.spans, key=lambda span: str(span["name"]))
        assert (request["trace"], request["parent"], request["status"]) == (TRACE, PARENT, 0)
        assert (request["http.route"], request["http.response.status_code"]) == ("/create", 201)
        assert (email["trace"], email["parent"], email["status"]) == (TRACE, request["id"], 0)
        assert (email["notifier.email.key"], email["notifier.email.outcome"]) == ("registration", "sent")
        traces = {getattr(record, "traceparent", "") for record in caplog.records}
        assert f"00-{TRACE}-{request['id']}-01" in traces

    await eventually_async(check)
    assert collector.services == {"notifier"}
    assert "hunter2" not in str(collector.spans)
    assert "@" not in str(collector.spans)


async def test_spans_say_what_failed_and_never_whose_words(
    start: Start, collector: Collector, mail: MailServer, database: DB
) -> None:
    mail.script = scripted({"RCPT": ["550 5.1.1 <secret@example.com> no"]})
    client = await start(otel_exporter_otlp_endpoint=f"{collector.url}/v1/traces")  # as other programs want it
    await client.post("/create", json={"user_id": USER, "key": "registration"})
    await client.get("/hunter2?user_id=hunter2")

    def check() -> None:
        spans = {span["name"]: span for span in collector.spans}
        assert spans.keys() >= {"send e-mail", "GET -"}
        assert spans["send e-mail"]["status"] == ERROR
        assert spans["GET -"]["http.response.status_code"] == 404
        assert "example.com" not in str(spans)
        assert "hunter2" not in str(spans)

    await eventually_async(check)
    await settled(database)


async def test_a_collector_that_is_gone_fails_no_request(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    client = await start(otel_exporter_otlp_endpoint=f"http://127.0.0.1:{free_port()}")
    for _ in range(20):
        await client.get("/healthz")
    assert (await client.get("/healthz")).status == 200
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


def test_opentelemetry_is_not_loaded_unless_asked_for() -> None:
    code = "import sys, notifier; print([name for name in sys.modules if name.startswith('opentelemetry')])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"


async def test_without_its_packages_the_service_warns_and_serves(
    start: Start, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "api.tracing", None)
    client = await start(otel_exporter_otlp_endpoint="http://127.0.0.1:4318")
    assert (await client.get("/healthz")).status == 200
    assert "requirements-otel.txt" in caplog.text


def test_the_variable_is_one_of_ours() -> None:
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in VARIABLES
