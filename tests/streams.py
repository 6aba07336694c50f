"""Clients of `GET /stream`, and a MongoDB of their own to break."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp

from tests.client import USER, Client, list_, metric
from tests.processes import Service
from tests.servers import Mongod, initiate

EMPTY = {"elements": 0, "new": 0, "latest": None}
"""The event of an inbox without notifications."""


class Events:
    """The events of a stream."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.last: dict[str, Any] | None = None

    async def block(self) -> str:
        """Return the lines up to the next empty one; at the end of the stream, nothing."""
        return (await self.response.content.readuntil(b"\n\n")).decode().removesuffix("\n\n")

    async def next(self) -> dict[str, Any]:
        """Return the data of the next event."""
        async with asyncio.timeout(20):
            while not (found := re.fullmatch("event: inbox\ndata: (.*)", block := await self.block())):
                assert re.match("retry: |: ", block)
        data: dict[str, Any] = json.loads(found[1])
        self.last = data
        return data

    async def catch_up(self, client: Client, user_id: str = USER) -> None:
        """Read events until one agrees with `GET /list`."""
        page = await list_(client, user_id, limit=1)
        truth = {"elements": page["elements"], "new": page["new"], "latest": (page["list"] or [None])[0]}
        while self.last != truth:
            await self.next()

    async def end(self) -> None:
        """Read up to the end of the stream, which must be a proper one."""
        async with asyncio.timeout(20):
            while await self.block():
                pass


def stream_url(user_id: str = USER) -> str:
    return f"/stream?user_id={quote(user_id, safe='')}"


@asynccontextmanager
async def listening(client: Client, user_id: str = USER, **headers: str) -> AsyncIterator[Events]:
    """Open a stream."""
    async with asyncio.timeout(60):  # for the response, which begins with the first event
        response = await client.get(stream_url(user_id), headers=headers, timeout=aiohttp.ClientTimeout(None))
    async with response:
        assert response.status == 200, await response.text()
        yield Events(response)


@asynccontextmanager
async def client_of(service: Service) -> AsyncIterator[Any]:
    """Return a client of the service in another process, with any number of connections."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{service.port}", connector=connector) as client:
        yield client


async def assert_streams_open(client: Client, count: int) -> None:
    assert await metric(client, "notifier_streams_open") == count


@contextmanager
def replica_set_of_one(folder: Path) -> Iterator[Mongod]:
    """Run a MongoDB for one test. It keeps its oplog only from the last checkpoint on, and makes one each second."""
    server = Mongod(folder / "one", "one", "--syncdelay", "1")
    server.start()
    try:
        initiate([server], "one")
        yield server
    finally:
        server.kill()


def unsent_bytes(client: Client) -> int:
    """Return how many bytes the process, not the kernel, holds for its clients."""
    runner = client.server.runner
    assert runner
    assert runner.server
    return sum(one.transport.get_write_buffer_size() for one in runner.server.connections if one.transport)
