"""Large answers: they are taken in time, and a user has few of them in flight."""

from __future__ import annotations

import asyncio
import socket

import pytest
from bson import ObjectId

from api.bodies import ELEMENT, IN_FLIGHT, InFlight, TooMuchInFlight
from tests.client import DB, OTHER, USER, Client
from tests.fixtures import Start
from tests.streams import unsent_bytes
from tests.waiting import eventually_async

LIST = f"/list?user_id={USER}&limit=100"


@pytest.fixture
async def client(start: Start, database: DB) -> Client:
    """Start the service, with a user who has notifications of 1.6 MB."""
    notification = {"is_new": True, "key": "new_post", "user_id": USER, "timestamp": 1, "data": {"x": "x" * 16_000}}
    array = [{"id": f"{n:024x}", **notification} for n in range(100)]
    database.users.insert_one({"_id": ObjectId(USER), "notifications": array})
    return await start()


def deaf(client: Client) -> socket.socket:
    """Ask for the list, and read nothing."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", client.port))
    connection.sendall(f"GET {LIST} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return connection


async def test_clients_that_do_not_read_are_cut_off(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.bodies.SEND_TIMEOUT", 2.0)
    monkeypatch.setattr("api.bodies.ANSWERS_PATIENCE", 0.5)
    connections = [deaf(client) for _ in range(40)]
    held = client.app[IN_FLIGHT].held

    def refused() -> None:
        begun = [beginning(connection) for connection in connections]
        assert sum(b" 503 " in head and b"Retry-After: 5" in head for head in begun) > 30
        assert any(b" 200 OK" in head for head in begun)

    await eventually_async(refused)
    assert max(held[USER], unsent_bytes(client)) <= 8 << 20
    assert (await client.get(f"/list?user_id={OTHER}&limit=100")).status == 200

    def cut_off() -> None:
        assert not held
        assert unsent_bytes(client) == 0

    await eventually_async(cut_off)
    assert len((await (await client.get(LIST)).json())["data"]["list"]) == 100
    for connection in connections:
        connection.close()


def beginning(connection: socket.socket) -> bytes:
    """Return how the answer begins, as far as there is one, and leave it."""
    try:
        return connection.recv(500, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return b""


async def test_an_answer_waits_until_others_of_its_user_are_taken() -> None:
    in_flight = InFlight(longest=100, limit=250 * ELEMENT)
    sizes = [await in_flight.take("ann", 1000) for _ in range(2)]
    assert sizes == [100 * ELEMENT] * 2
    assert await in_flight.take("bob", 100) == 100 * ELEMENT
    third = asyncio.create_task(in_flight.take("ann", 100))
    await asyncio.sleep(0)
    assert not third.done()
    assert in_flight.give("ann", sizes[0], keep=10) == 10
    assert await third == 100 * ELEMENT
    for size in (10, sizes[1], sizes[1]):
        in_flight.give("ann", size)
    assert list(in_flight.held) == ["bob"]


async def test_an_answer_larger_than_all_room_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.bodies.ANSWERS_PATIENCE", 0.01)
    in_flight = InFlight(longest=100, limit=10)
    await in_flight.take("ann", 100)
    with pytest.raises(TooMuchInFlight):
        await in_flight.take("ann", 1)


async def test_equal_lists_at_once_are_all_answered(client: Client) -> None:
    responses = await asyncio.gather(*(client.get(LIST) for _ in range(40)))
    assert {response.status for response in responses} == {200}
    assert all([len((await response.json())["data"]["list"]) == 100 for response in responses])
    assert not client.app[IN_FLIGHT].held
