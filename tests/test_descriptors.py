"""A process with few file descriptors: it refuses connections before it lacks one for its own work."""

from __future__ import annotations

import asyncio
import re
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest

from settings import Settings
from tests.client import DB, USER, settled
from tests.processes import Service, running_service
from tests.servers import MailServer
from tests.waiting import eventually_async

FEW = 256
LIMITED = (
    "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard})); sys.argv = sys.argv[:1]; "
    "import notifier; notifier.run()"
)
"""The program of a service with these limits."""
IDLE = 300


def limited(soft: int, hard: int) -> tuple[str, str]:
    return "-c", LIMITED.format(soft=soft, hard=hard)


@pytest.fixture
async def service(settings: Settings, tmp_path: Path) -> AsyncIterator[Service]:
    """Run the service with 256 descriptors."""
    service = await running_service(settings, tmp_path, program=limited(FEW, FEW))
    yield service
    service.kill()


async def answer(port: int, path: str = "/healthz") -> tuple[int, str]:
    """Return the status of an answer on a connection of its own, and its `Retry-After`."""
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        text = (await reader.read()).decode()
        writer.close()
    return int(text.split()[1]), "".join(re.findall(r"Retry-After: (\d+)", text))


async def test_the_soft_limit_is_raised_to_the_hard_one(settings: Settings, tmp_path: Path) -> None:
    service = await running_service(settings, tmp_path, program=limited(300, 4000))
    limits = resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE)
    service.kill()
    assert limits == (4000, 4000)


async def test_connections_beyond_the_limit_are_refused(service: Service, database: DB, mail: MailServer) -> None:
    url = f"http://127.0.0.1:{service.port}"
    async with aiohttp.ClientSession(url) as before, AsyncExitStack() as stack:
        async with before.get("/healthz") as response:
            assert response.status == 200
        for _ in range(IDLE):
            stack.enter_context(socket.create_connection(("127.0.0.1", service.port)))
        assert await answer(service.port) == (503, "5")
        async with before.post("/create", json={"user_id": USER, "key": "new_login"}) as response:
            assert response.status == 201
        await settled(database)
        assert len(mail.ids) == 1

    async def recovered() -> None:
        assert await answer(service.port) == (200, "")

    await eventually_async(recovered)
    assert service.log().count("connections are refused, as") == 1
    assert service.log().count("\n") < 50


async def test_streams_leave_descriptors_for_other_requests(service: Service) -> None:
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(
            aiohttp.ClientSession(
                f"http://127.0.0.1:{service.port}", connector=aiohttp.TCPConnector(limit=0), read_bufsize=2**10
            )
        )
        streams = [session.get(f"/stream?user_id={n:024x}") for n in range(150)]
        answers = await asyncio.gather(*(stack.enter_async_context(stream) for stream in streams))
        statuses = [answer.status for answer in answers]
        assert set(statuses) == {200, 503}
        assert {answer.headers.get("Retry-After") for answer in answers if answer.status == 503} == {"5"}

        async def served() -> None:
            assert (await answer(service.port)) == (200, "")

        await eventually_async(served)
        assert (await answer(service.port, f"/list?user_id={USER}")) == (200, "")
