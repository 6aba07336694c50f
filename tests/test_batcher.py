"""Group commit: who goes alone, who goes together, and what becomes of each."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from mongo.batcher import LATE, LATE_FACTOR, Batcher, QueueFull


class Calls:
    """Calls that take as long as they are let; doubles what is even, and fails for what is odd."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = asyncio.Event()

    async def run(self, items: Sequence[int]) -> Sequence[int | Exception]:
        self.batches.append(list(items))
        await self.go.wait()
        if 666 in items:
            raise OSError("the call failed")
        return [ValueError(item) if item % 2 else 2 * item for item in items]


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def tasks(batcher: Batcher[int, int], *items: int) -> list[asyncio.Task[int]]:
    return [asyncio.create_task(batcher(item)) for item in items]


async def test_a_few_go_alone_at_once_and_those_who_come_meanwhile_go_together() -> None:
    calls = Calls()
    batcher = Batcher(calls.run, calls_at_once=8, free_items=3, batch_limit=100, queue_limit=100)
    found = []
    for item in range(0, 20, 2):
        found += tasks(batcher, item)
        await turn()
    assert calls.batches == [[0], [2], [4]]
    calls.go.set()
    assert await asyncio.gather(*found) == [2 * item for item in range(0, 20, 2)]
    assert calls.batches[3:] == [list(range(6, 20, 2))]


async def test_many_under_way_are_waited_for_until_they_are_late_and_no_more_go_than_may() -> None:
    calls = Calls()
    batcher = Batcher(calls.run, calls_at_once=1, free_items=2, batch_limit=100, queue_limit=100)
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


async def test_who_come_in_the_same_turn_of_the_event_loop_go_together_and_no_more_than_may() -> None:
    calls = Calls()
    calls.go.set()
    batcher = Batcher(calls.run, calls_at_once=1, free_items=1, batch_limit=3, queue_limit=100)
    assert await asyncio.gather(*tasks(batcher, 0, 2, 4, 6, 8)) == [0, 4, 8, 12, 16]
    assert calls.batches == [[0, 2, 4], [6, 8]]


async def test_each_gets_its_own_outcome_and_a_failed_call_is_everybodys() -> None:
    calls = Calls()
    calls.go.set()
    batcher = Batcher(calls.run, calls_at_once=1, free_items=1, batch_limit=100, queue_limit=100)
    two, three = await asyncio.gather(*tasks(batcher, 2, 3), return_exceptions=True)
    assert two == 4
    assert isinstance(three, ValueError)
    found = await asyncio.gather(*tasks(batcher, 2, 666), return_exceptions=True)
    assert [type(outcome) for outcome in found] == [OSError, OSError]
    assert await batcher(4) == 8


async def test_who_is_cancelled_leaves_the_queue_but_not_a_call_under_way() -> None:
    calls = Calls()
    batcher = Batcher(calls.run, calls_at_once=1, free_items=1, batch_limit=100, queue_limit=100)
    under_way = tasks(batcher, 0, 2)
    await turn()
    waiting = tasks(batcher, 4, 6)
    await turn()
    under_way[0].cancel()
    waiting[0].cancel()
    calls.go.set()
    assert list(await asyncio.gather(under_way[1], waiting[1])) == [4, 12]
    assert calls.batches == [[0, 2], [6]]
    assert under_way[0].cancelled()


async def test_who_finds_the_queue_full_is_told_and_it_empties_again() -> None:
    calls = Calls()
    batcher = Batcher(calls.run, calls_at_once=1, free_items=1, batch_limit=1, queue_limit=2)
    found = tasks(batcher, 0)
    await turn()
    found += tasks(batcher, 2, 4)
    await turn()
    with pytest.raises(QueueFull):
        await batcher(6)
    calls.go.set()
    assert await asyncio.gather(*found) == [0, 4, 8]
    assert await batcher(6) == 12


async def test_a_queue_whose_callers_all_left_holds_nobody_up() -> None:
    calls = Calls()
    batcher = Batcher(calls.run, calls_at_once=1, free_items=1, batch_limit=2, queue_limit=2)
    first = tasks(batcher, 0)
    await turn()
    for task in (left := tasks(batcher, 2, 4)):
        await turn()
        task.cancel()
    calls.go.set()
    await asyncio.gather(*first, *left, return_exceptions=True)
    assert await asyncio.gather(*tasks(batcher, 6, 8)) == [12, 16]
    assert calls.batches == [[0], [6, 8]]


async def test_only_those_of_a_kind_go_together_and_the_kinds_take_turns() -> None:
    calls = Calls()
    batcher = Batcher(
        calls.run, calls_at_once=1, free_items=1, batch_limit=2, queue_limit=100, kind=lambda item: item // 100
    )
    found = tasks(batcher, 0)
    await turn()
    found += tasks(batcher, 100, 102, 104, 200, 106, 202)
    calls.go.set()
    await asyncio.gather(*found)
    assert calls.batches == [[0], [100, 102], [200, 202], [104, 106]]
