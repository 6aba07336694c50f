"""Group commit: which items leave alone, which share a batch, and the outcome of each."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from mongo.batcher import LATE, LATE_FACTOR, Batcher
from mongo.errors import Busy


class Calls:
    """Batches are in flight until `go` is set. An even item is doubled, an odd one fails, and 666 fails its batch."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = asyncio.Event()

    async def run(self, items: Sequence[int]) -> Sequence[int | Exception]:
        self.batches.append(list(items))
        await self.go.wait()
        if 666 in items:
            raise OSError("the whole batch failed")
        return [ValueError(item) if item % 2 else 2 * item for item in items]


async def turn() -> None:
    """Let the event loop run everything that is ready."""
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def one_call_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mongo.batcher.CALLS_AT_ONCE", 1)


def tasks(batcher: Batcher[int, int], *items: int) -> list[asyncio.Task[int]]:
    return [asyncio.create_task(batcher(item)) for item in items]


async def test_few_items_leave_at_once_and_waiting_ones_share_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls()
    monkeypatch.setattr("mongo.batcher.CALLS_AT_ONCE", 8)
    batcher = Batcher(calls.run, free_items=3, patience=60)
    found = []
    for item in range(0, 20, 2):
        found += tasks(batcher, item)
        await turn()
    assert calls.batches == [[0], [2], [4]]
    calls.go.set()
    assert await asyncio.gather(*found) == [2 * item for item in range(0, 20, 2)]
    assert calls.batches[3:] == [list(range(6, 20, 2))]


async def test_a_late_batch_delays_no_other_up_to_a_limit() -> None:
    calls = Calls()
    batcher = Batcher(calls.run, free_items=2, patience=60)
    found = tasks(batcher, 0, 2, 4)
    await turn()
    found += tasks(batcher, 6, 8)
    await turn()
    assert calls.batches == [[0, 2, 4]]
    for item in range(10, 10 + 2 * LATE_FACTOR, 2):
        await asyncio.sleep(2 * LATE)
        found += tasks(batcher, item)
    assert calls.batches == [[0, 2, 4], [6, 8], [10], [12]]
    calls.go.set()
    assert await asyncio.gather(*found) == [2 * item for item in range(0, 10 + 2 * LATE_FACTOR, 2)]
    assert calls.batches[LATE_FACTOR:] == [[14, 16]]


async def test_concurrent_items_share_batches_of_limited_size(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls()
    calls.go.set()
    monkeypatch.setattr("mongo.batcher.BATCH_LIMIT", 3)
    batcher = Batcher(calls.run, free_items=1, patience=60)
    assert await asyncio.gather(*tasks(batcher, 0, 2, 4, 6, 8)) == [0, 4, 8, 12, 16]
    assert calls.batches == [[0, 2, 4], [6, 8]]


async def test_the_next_batch_leaves_before_callers_go_on() -> None:
    events: list[str] = []
    go = asyncio.Event()

    async def run(items: Sequence[int]) -> Sequence[int | Exception]:
        events.append(f"sent {items}")
        await go.wait()
        return items

    async def call(item: int) -> None:
        events.append(f"answered {await batcher(item)}")

    batcher = Batcher(run, free_items=1, patience=60)
    callers = []
    for item in (1, 2):
        callers.append(asyncio.create_task(call(item)))
        await turn()
    go.set()
    await asyncio.gather(*callers)
    assert events == ["sent [1]", "sent [2]", "answered 1", "answered 2"]


async def test_each_item_has_its_own_outcome_unless_the_batch_fails() -> None:
    calls = Calls()
    calls.go.set()
    batcher = Batcher(calls.run, free_items=1, patience=60)
    two, three = await asyncio.gather(*tasks(batcher, 2, 3), return_exceptions=True)
    assert two == 4
    assert isinstance(three, ValueError)
    found = await asyncio.gather(*tasks(batcher, 2, 666), return_exceptions=True)
    assert [type(outcome) for outcome in found] == [OSError, OSError]
    assert await batcher(4) == 8


async def test_a_cancelled_item_leaves_the_queue_not_a_batch_in_flight() -> None:
    calls = Calls()
    batcher = Batcher(calls.run, free_items=1, patience=60)
    in_flight = tasks(batcher, 0, 2)
    await turn()
    waiting = tasks(batcher, 4, 6)
    await turn()
    in_flight[0].cancel()
    waiting[0].cancel()
    calls.go.set()
    assert list(await asyncio.gather(in_flight[1], waiting[1])) == [4, 12]
    assert calls.batches == [[0, 2], [6]]
    assert in_flight[0].cancelled()


async def test_a_full_queue_refuses_items_until_it_has_room(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls()
    monkeypatch.setattr("mongo.batcher.BATCH_LIMIT", 1)
    monkeypatch.setattr("mongo.batcher.QUEUE_LIMIT", 2)
    batcher = Batcher(calls.run, free_items=1, patience=60)
    found = tasks(batcher, 0)
    await turn()
    found += tasks(batcher, 2, 4)
    await turn()
    with pytest.raises(Busy):
        await batcher(6)
    calls.go.set()
    assert await asyncio.gather(*found) == [0, 4, 8]
    assert await batcher(6) == 12


async def test_a_queue_of_cancelled_items_delays_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls()
    monkeypatch.setattr("mongo.batcher.BATCH_LIMIT", 2)
    monkeypatch.setattr("mongo.batcher.QUEUE_LIMIT", 2)
    batcher = Batcher(calls.run, free_items=1, patience=60)
    first = tasks(batcher, 0)
    await turn()
    cancelled = tasks(batcher, 2, 4)
    for task in cancelled:
        await turn()
        task.cancel()
    calls.go.set()
    await asyncio.gather(*first, *cancelled, return_exceptions=True)
    assert await asyncio.gather(*tasks(batcher, 6, 8)) == [12, 16]
    assert calls.batches == [[0], [6, 8]]


async def test_a_batch_has_items_of_one_kind_and_the_kinds_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls()
    monkeypatch.setattr("mongo.batcher.BATCH_LIMIT", 2)
    batcher = Batcher(calls.run, free_items=1, patience=60, kind=lambda item: item // 100)
    found = tasks(batcher, 0)
    await turn()
    found += tasks(batcher, 100, 102, 104, 200, 106, 202)
    calls.go.set()
    await asyncio.gather(*found)
    assert calls.batches == [[0], [100, 102], [200, 202], [104, 106]]
