"""Numbered calls: each write takes effect once, whatever becomes of a call and of its reply."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import bson
import pytest
from bson import ObjectId
from pymongo.errors import DuplicateKeyError, ExecutionTimeout

from mongo.connection import connected, end
from mongo.document import JSONObject
from mongo.errors import Patience, Unavailable, within
from mongo.lanes import PROBE, Calls, Outcome, Write, keeps_numbers
from settings import Settings
from tests.client import DB, create, user
from tests.faults import failing
from tests.fixtures import Start
from tests.proxy import Proxy
from tests.servers import Mongod, initiate

BRIEF = Patience(operation=6.0, attempt=2.0, shared_call=1.5)
ITEM = {"id": "x", "is_new": True}


def push(n: int, *, upsert: bool = True, **filter_: object) -> Write:
    """Return the write that adds an item to document `n`, unless it is there already."""
    update: JSONObject = {"$push": {"items": ITEM}}
    return Write({"_id": n, **filter_}, update, upsert=upsert, guard={"items.id": {"$ne": "x"}}, numbered=True)


@asynccontextmanager
async def calls(database: DB, port: int | None = None, patience: Patience = BRIEF) -> AsyncIterator[Calls]:
    """Return numbered calls to a collection, through a proxy if its port is given."""
    host, own = database.client.address or ("", 0)
    uri = f"mongodb://{host}:{port or own}/{database.name}?directConnection=true"
    async with connected(uri, patience=patience) as connection:
        found = Calls(connection.shared["lanes"], patience)
        found.numbered = True
        yield found


@pytest.fixture
def counts(database: DB) -> Iterator[Any]:
    """Return a function that returns how many items each document has."""

    def count() -> dict[int, int]:
        return {found["_id"]: len(found.get("items", ())) for found in database.lanes.find()}

    yield count
    database.lanes.drop()


async def _run(found: Calls, writes: Sequence[Write]) -> list[Outcome]:
    return list(await found.run(writes))


@pytest.mark.parametrize("fault", ["before", "after", "swallow", "hold"])
@pytest.mark.parametrize("upsert", [True, False], ids=["upserts", "updates"])
async def test_a_call_whose_reply_is_lost_takes_effect_once(
    database: DB, mongod: Mongod, counts: Any, fault: str, upsert: bool
) -> None:
    if not upsert:
        database.lanes.insert_many([{"_id": n} for n in range(3)])
    proxy = Proxy(mongod.port)
    async with proxy.running(), calls(database, proxy.port) as numbered:
        proxy.break_next("updates", fault)
        assert await _run(numbered, [push(n, upsert=upsert) for n in range(3)]) == [True] * 3
        assert (proxy.faults, counts()) == (1, dict.fromkeys(range(3), 1))
        if fault == "hold":  # it arrives after its repetition
            await proxy.deliver()
            assert counts() == dict.fromkeys(range(3), 1)


async def test_a_call_that_arrives_after_the_next_number_is_shut_out(database: DB, mongod: Mongod, counts: Any) -> None:
    """Its repetition is not confirmed either, so the writes were done behind a fence: with conditions."""
    proxy = Proxy(mongod.port)
    async with proxy.running(), calls(database, proxy.port) as numbered:
        proxy.break_next("updates", "hold")
        concern = {"code": 64, "errmsg": "waiting for replication timed out"}
        with failing(mongod, ["update"], {"times": 1}, writeConcernError=concern):
            assert await _run(numbered, [push(1), push(2)]) == [DuplicateKey, DuplicateKey]
        reply = await proxy.deliver()
        assert b"TransactionTooOld" in reply
    assert counts() == {1: 1, 2: 1}


class _DuplicateKey:
    """Equals the error of an upsert whose condition did not hold."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DuplicateKeyError)

    __hash__ = None  # type: ignore[assignment]


DuplicateKey: Any = _DuplicateKey()


async def test_a_failed_write_is_fenced_before_its_error_is_answered(database: DB, mongod: Mongod, counts: Any) -> None:
    """MongoDB forgets failed statements. A late first sending must not succeed because the condition holds by then."""
    database.lanes.insert_one({"_id": 1, "room": False})
    proxy = Proxy(mongod.port)
    async with proxy.running(), calls(database, proxy.port) as numbered:
        proxy.break_next("updates", "hold")
        assert await _run(numbered, [push(1, room=True), push(2)]) == [DuplicateKey, True]
        database.lanes.update_one({"_id": 1}, {"$set": {"room": True}})
        await proxy.deliver()
    assert counts() == {1: 0, 2: 1}


async def test_a_number_that_was_used_before_loses_nothing(
    database: DB, counts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The id of a session that was ended is given out again. MongoDB then takes the write for done, and says so."""
    async with calls(database) as numbered:
        assert await _run(numbered, [push(1)]) == [True]
        (lane,) = numbered._free
        numbers = iter([lane.number])
        monkeypatch.setattr(lane, "advance", lambda: setattr(lane, "number", next(numbers, time.time_ns())))
        # The first is taken for done and is not; the second is done, and does not match its condition again.
        assert await _run(numbered, [push(2), push(3)]) == [True, DuplicateKey]
    assert counts() == {1: 1, 2: 1, 3: 1}


async def test_a_lane_is_used_by_one_call_at_a_time_and_never_ended(database: DB, counts: Any) -> None:
    async with calls(database) as numbered:
        for _ in range(2):
            assert await asyncio.gather(*(_run(numbered, [push(n)]) for n in range(10)))
        assert 1 < len(numbered._free) <= 10
        ids = [bytes(lane.session.session_id["id"]) for lane in numbered._free]
        assert len(set(ids)) == len(ids)
        assert not any(lane.session.has_ended for lane in numbered._free)
    assert counts() == dict.fromkeys(range(10), 2)


async def test_one_locked_document_delays_the_others_of_its_call_once(
    database: DB, mongod: Mongod, counts: Any
) -> None:
    database.lanes.insert_many([{"_id": n} for n in range(20)])
    async with calls(database) as numbered:
        with mongod.client() as other, other.start_session() as session, session.start_transaction():
            other[database.name].lanes.update_one({"_id": 7}, {"$set": {"x": 1}}, session=session)
            outcomes = await _run(numbered, [push(n, upsert=False) for n in range(20)])
        hung = outcomes.pop(7)
        assert isinstance(hung, ExecutionTimeout)
        # What stands before the locked one was done by the shared call, and does not match its condition again.
        assert outcomes == [False] * 7 + [True] * 12
    assert counts() == {n: int(n != 7) for n in range(20)}


async def test_a_call_of_locked_documents_ends_in_time(database: DB, mongod: Mongod, counts: Any) -> None:
    database.lanes.insert_many([{"_id": n} for n in range(40)])
    async with calls(database, patience=Patience(operation=2.0, attempt=1.0, shared_call=0.8)) as numbered:
        with mongod.client() as other, other.start_session() as session, session.start_transaction():
            other[database.name].lanes.update_many({}, {"$set": {"x": 1}}, session=session)
            outcomes = await _run(numbered, [push(n, upsert=False) for n in range(40)])
    begun = [outcome for outcome in outcomes if isinstance(outcome, ExecutionTimeout)]
    left = [outcome for outcome in outcomes if isinstance(outcome, TimeoutError)]
    assert (len(begun) + len(left), 0 < len(begun) < 20) == (40, True)
    assert counts() == dict.fromkeys(range(40), 0)


async def test_one_repetition_tells_which_users_of_a_call_are_unknown(
    database: DB, updates: Callable[[], int], counts: Any
) -> None:
    database.lanes.insert_many([{"_id": n} for n in range(0, 64, 2)])
    async with calls(database) as numbered:
        before = updates()
        outcomes = await _run(numbered, [push(n, upsert=False) for n in range(64)])
        assert updates() - before == 2
    assert outcomes == [n % 2 == 0 for n in range(64)]
    assert counts() == dict.fromkeys(range(0, 64, 2), 1)


@pytest.mark.ci
async def test_an_unconfirmed_call_takes_effect_at_most_once(database: DB, mongod: Mongod, counts: Any) -> None:
    async with calls(database) as numbered:
        with failing(mongod, ["update"], closeConnection=True), pytest.raises(Unavailable):
            await numbered.run([push(1)])
        assert await _run(numbered, [push(2)]) == [True]
    assert counts().get(1, 0) <= 1


async def test_a_killed_primary_loses_no_write_and_doubles_none(tmp_path: Path) -> None:
    server = Mongod(tmp_path / "db", "lanes")
    server.start()
    initiate([server], "lanes")
    patience = Patience(operation=20.0, attempt=1.0, shared_call=0.5)
    with server.client() as client:
        async with calls(client["lanes"], patience=patience) as numbered:

            async def write(start: int) -> None:
                for n in range(start, start + 300, 10):
                    outcomes = await _run(numbered, [push(k) for k in range(n, n + 10)])
                    assert all(outcome is True or outcome == DuplicateKey for outcome in outcomes)

            async def kill() -> None:
                await asyncio.sleep(0.1)
                server.kill()
                await asyncio.to_thread(server.start)

            await asyncio.gather(kill(), *(write(start) for start in range(0, 3000, 300)))
        found = {document["_id"]: len(document["items"]) for document in client["lanes"].lanes.find()}
    assert found == dict.fromkeys(range(3000), 1)
    server.kill()


async def test_a_refusal_of_numbers_is_answered_by_conditions(
    database: DB, mongod: Mongod, counts: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with calls(database) as numbered:
        with failing(mongod, ["update"], {"times": 1}, errorCode=20):
            assert await _run(numbered, [push(1), push(2)]) == [True, True]
        assert not numbered.numbered
        assert await _run(numbered, [push(1), push(3)]) == [DuplicateKey, True]
    assert [line.message for line in caplog.records if "number" in line.message] == [
        "MongoDB no longer takes numbered writes (error 20): every write has conditions"
    ]
    assert counts() == {1: 1, 2: 1, 3: 1}


# --- whether a server keeps numbers ---------------------------------------------------------------


def without_numbers(message: bytes) -> bytes:
    """Return a request as a proxy passes it on that ignores sessions."""
    if b"txnNumber\0" not in message:
        return message
    body = bson.decode(message[21:])  # an OP_MSG of one section: header, flags and kind come first
    section = bson.encode({name: value for name, value in body.items() if name not in {"txnNumber", "lsid"}})
    return (21 + len(section)).to_bytes(4, "little") + message[4:21] + section


@pytest.mark.parametrize(("kind", "keeps"), [("replica set", True), ("standalone", False), ("ignorant", False)])
async def test_numbers_are_used_only_where_the_server_keeps_them(
    start: Start, mongod: Mongod, standalone: Mongod, kind: str, keeps: bool
) -> None:
    name = f"numbers_{ObjectId()}"
    server = standalone if kind == "standalone" else mongod
    proxy = Proxy(server.port)
    proxy.rewrite = without_numbers if kind == "ignorant" else proxy.rewrite
    async with proxy.running():
        uri = f"mongodb://127.0.0.1:{proxy.port}/{name}?directConnection=true"
        async with connected(uri) as connection:
            assert await keeps_numbers(connection) == keeps
        client = await start(db_uri=uri)
        with server.client() as direct:
            users = [f"{n:024x}" for n in range(60)]
            await asyncio.gather(*(create(client, user_id, data={"n": n}) for user_id in users for n in range(20)))
            for user_id in users:
                assert sorted(i["data"]["n"] for i in user(direct[name], user_id)["notifications"]) == list(range(20))
            assert direct[name][PROBE].count_documents({}) == 0
            direct.drop_database(name)
        await client.close()


async def test_creates_that_share_a_call_have_no_condition_but_id(
    start: Start, settings: Settings, mongod: Mongod
) -> None:
    client = await start()
    users = [f"{n:024x}" for n in range(40)]
    await asyncio.gather(*(create(client, user_id) for user_id in users))
    name = settings.db_uri.rpartition("/")[2]
    with mongod.client() as direct:
        direct[name].command("profile", 2)
        await asyncio.gather(*(create(client, user_id) for user_id in users))
        direct[name].command("profile", 0)
        shared = [found["command"]["q"] for found in direct[name]["system.profile"].find({"op": "update"})]
        direct[name].drop_collection("system.profile")
    assert len(shared) > 20
    assert all(condition.keys() == {"_id"} for condition in shared)


@pytest.mark.parametrize(("seconds", "error"), [(0.01, TimeoutError), (60.0, RuntimeError)])
async def test_a_drivers_lock_that_breaks_on_cancel_is_a_timeout(seconds: float, error: type[Exception]) -> None:
    async def call() -> None:
        try:
            await asyncio.sleep(0.1)
        finally:
            raise RuntimeError("Lock is not acquired.")

    with pytest.raises(error):
        async with within(seconds):
            await call()


async def test_a_drivers_lock_that_breaks_on_cancel_hides_no_cancel() -> None:
    async def call() -> None:
        async with within(60.0):
            try:
                started.set()
                await asyncio.sleep(60)
            finally:
                raise RuntimeError("Lock is not acquired.")

    started = asyncio.Event()
    task = asyncio.create_task(call())
    await started.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_a_task_that_ignores_a_cancellation_is_ended() -> None:
    ignored = 0

    async def stubborn() -> None:
        nonlocal ignored
        while ignored < 2:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                ignored += 1
        await asyncio.sleep(60)

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await end(task)
    assert (task.cancelled(), ignored) == (True, 2)
