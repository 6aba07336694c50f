"""Streams on the wire: headers, format, clients that do not read, and what is measured."""

from __future__ import annotations

import asyncio
import itertools
import re
import socket

import pytest

from tests.client import KEY, PROTECTED, Client, counted, create, metric
from tests.fixtures import Start
from tests.streams import EMPTY, assert_streams_open, listening, stream_url, unsent_bytes
from tests.waiting import eventually_async

DURATION = 'notifier_http_request_duration_seconds_sum{method="GET",route="/stream",status="200"}'


async def test_a_stream_has_the_headers_and_format_of_events(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    client = await start(cors_origins=("https://app.example.com",))
    monkeypatch.setattr("api.streams.KEEP_ALIVE", 0.05)
    headers = {"X-Request-ID": "trace-me", "Origin": "https://app.example.com"}
    async with listening(client, **headers) as events:
        got = events.response.headers
        assert got["Content-Type"] == "text/event-stream"
        assert (got["Cache-Control"], got["X-Accel-Buffering"]) == ("no-store", "no")
        assert (got["X-Request-ID"], got["Vary"]) == ("trace-me", "Origin")
        assert got["Access-Control-Allow-Origin"] == "https://app.example.com"
        assert "X-Request-ID" in got["Access-Control-Expose-Headers"]
        assert re.fullmatch(r"retry: \d{4}", await events.block())
        assert await events.next() == EMPTY
        async with asyncio.timeout(10):
            assert {await events.block() for _ in range(3)} == {": keep-alive"}
        await create(client)
        assert (await events.next())["elements"] == 1
    protected = await start(**PROTECTED)
    async with listening(protected, Origin="https://evil.example", Authorization=f"Bearer {KEY}") as events:
        assert "Access-Control-Allow-Origin" not in events.response.headers
        assert events.response.headers["Vary"] == "Origin"
    async with listening(client):
        begun = await metric(client, DURATION)
    assert begun > 0
    await eventually_async(lambda: assert_streams_open(client, 0))
    assert await metric(client, DURATION) == begun  # a stream is counted when it begins, and not again at its end
    preflight = {"Origin": "https://app.example.com", "Access-Control-Request-Method": "GET"}
    assert (await client.options(stream_url(), headers=preflight)).status == 200


async def test_a_client_that_does_not_read_is_cheap_and_is_dropped(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.streams.SEND_TIMEOUT", 1.0)
    with socket.socket() as idle:
        idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        idle.connect(("127.0.0.1", client.port))
        idle.sendall(f"GET {stream_url()} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        async with listening(client) as events:
            for n in itertools.count():
                await create(client, data={"n": n, "text": "x" * 15_000})
                await events.catch_up(client)
                assert unsent_bytes(client) < 20_000
                if await metric(client, "notifier_streams_dropped_total"):
                    break
            await create(client)
            await events.catch_up(client)
        await eventually_async(lambda: assert_nothing_unsent(client))
    assert n > 3
    await eventually_async(lambda: assert_streams_open(client, 0))
    await counted(client, "notifier_streams_dropped_total", 1)


def assert_nothing_unsent(client: Client) -> None:
    assert unsent_bytes(client) == 0


async def test_metrics_count_events_and_measure_their_lag(client: Client) -> None:
    async with listening(client) as one, listening(client) as two:
        await create(client)
        await one.catch_up(client)
        await two.catch_up(client)
        assert await metric(client, "notifier_stream_lag_seconds_count") == 2
        assert await metric(client, 'notifier_stream_lag_seconds_bucket{le="60.0"}') == 2
        assert await metric(client, "notifier_stream_events_total") in {3, 4}
