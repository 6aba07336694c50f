"""Lanes: sessions in which shared calls are numbered, so that MongoDB itself lets each take effect at most once.

MongoDB remembers the statements of a session's last number (MongoDB manual, "Retryable Writes" and "Server Sessions"):
sent again under the same number, a statement that took effect is not repeated, even if the first sending arrives late.
A call with a lower number than the last is refused. So a create needs no condition that tells whether it was done
before, and MongoDB finds the document by `_id` alone, which is its fastest way.
"""

import asyncio
import logging
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from bson import Int64, ObjectId
from pymongo import errors as driver

from mongo.connection import Connection, SharedClient, SharedCollection
from mongo.document import SIMPLE, JSONObject
from mongo.errors import DUPLICATE_KEY, RETRY_PAUSE, Patience, Unavailable, means_unavailable, unavailable, within

log = logging.getLogger("notifier.mongo")

PROBE: Final = "notifier_probe"  # the collection in which a start tries whether the server keeps numbers
SERVER_PART: Final = 0.75  # part of a call's timeout that the server is given, so that it ends the call before we do
ONE_TIMEOUT: Final = 0.25  # seconds for each write, once their shared call took too long

Outcome = bool | Exception | None
"""What became of a write: whether its conditions held, its error, or `None` if the reply does not say."""


@dataclass(frozen=True, slots=True)
class Write:
    """A write to one document, if the conditions in `filter` hold.

    One that is `numbered` may be given a number, which makes it safe to repeat. Without one, it needs the conditions in
    `guard`, too. Other writes are safe by themselves.
    """

    filter: JSONObject
    update: Any  # operators or a pipeline
    upsert: bool = False
    guard: JSONObject = field(default_factory=dict)
    numbered: bool = False
    array_filters: Sequence[JSONObject] | None = None

    def statement(self, *, guarded: bool) -> JSONObject:
        q = self.filter | self.guard if guarded else self.filter
        filters = {"arrayFilters": self.array_filters} if self.array_filters else {}
        return {"q": q, "u": self.update, "upsert": self.upsert, "collation": SIMPLE, **filters}


class Lane:
    """A session of its own. It is never ended: the driver would reuse its id, and with it the old numbers."""

    def __init__(self, client: SharedClient) -> None:
        # With causal consistency every update would wait for what the session saw last, and slowly on a new primary.
        self.session = client.start_session(causal_consistency=False)
        self.number = 0

    def advance(self) -> None:
        """Take the next number, which shuts out all earlier calls. It is the time, so higher than any used before."""
        self.number = max(self.number + 1, time.time_ns())


class Calls:
    def __init__(self, users: SharedCollection, patience: Patience) -> None:
        self._users = users
        self.patience = patience
        self._free: list[Lane] = []
        self.numbered = False  # until it is known that the server keeps numbers

    async def run(self, writes: Sequence[Write]) -> Sequence[Outcome]:
        """Make writes in one call, or in several until their outcome is known; return one outcome for each.

        Raises `Unavailable` if numbered writes may still take effect, otherwise PyMongo's errors and `TimeoutError`.
        """
        if not (self.numbered and writes[0].numbered):
            return outcomes_of(writes, await self.send(writes))
        deadline = asyncio.get_running_loop().time() + self.patience.operation - self.patience.shared_call
        lane = self._free.pop() if self._free else Lane(self._users.database.client)
        try:
            return await self._numbered(lane, writes, deadline)
        finally:
            self._free.append(lane)

    async def _numbered(self, lane: Lane, writes: Sequence[Write], deadline: float) -> Sequence[Outcome]:
        lane.advance()
        try:
            reply = await self.send(writes, lane)
        except Unavailable:
            return await self._repeat(lane, writes, deadline)
        except driver.ExecutionTimeout:
            return await self._one_by_one(lane, writes, deadline)
        except driver.OperationFailure as exc:
            reply = await self.send(writes, guarded=True)  # conditions in place of the number that was refused
            if self.numbered:
                log.warning("MongoDB no longer takes numbered writes (error %s): every write has conditions", exc.code)
                self.numbered = False
            return outcomes_of(writes, reply)
        if "retriedStmtIds" in reply:  # the number was used before, so nothing of this took effect
            return await self._fenced(lane, writes, deadline)
        outcomes = outcomes_of(writes, reply)
        return await self._repeat(lane, writes, deadline, outcomes) if None in outcomes else outcomes

    async def _repeat(
        self, lane: Lane, writes: Sequence[Write], deadline: float, outcomes: Sequence[Outcome] = ()
    ) -> Sequence[Outcome]:
        """Repeat a call under its number to learn what took effect, and do the rest behind a fence.

        `outcomes` are those of the first sending. If they are unknown, a statement that fails now is not settled:
        MongoDB does not remember it, so the first sending might still do it.
        """
        settled = list(outcomes) or [None] * len(writes)
        try:
            reply = await self.send(writes, lane)
        except (Unavailable, driver.PyMongoError):
            log.debug("a shared call is unclear after its repetition")
        else:
            retried = reply.get("retriedStmtIds", ())
            is_all = reply["n"] == len(retried)  # the others found nothing, at the first sending and at this one
            for n, outcome in enumerate(outcomes_of(writes, reply)):
                if settled[n] is None and (n in retried or outcome is True):
                    settled[n] = True
                elif settled[n] is None and outcomes and is_all:
                    settled[n] = False
        rest = [n for n, outcome in enumerate(settled) if outcome is None]
        if rest:
            for n, outcome in zip(rest, await self._fenced(lane, [writes[n] for n in rest], deadline), strict=True):
                settled[n] = outcome
        return settled

    async def _fenced(self, lane: Lane, writes: Sequence[Write], deadline: float) -> Sequence[Outcome]:
        """Make writes under new numbers and with their conditions, until the outcome is known."""
        while True:
            lane.advance()
            try:
                return outcomes_of(writes, await self.send(writes, lane, guarded=True))
            except Unavailable:
                if asyncio.get_running_loop().time() > deadline:
                    raise
            except driver.ExecutionTimeout:
                return await self._one_by_one(lane, writes, deadline)
            await asyncio.sleep(random.uniform(*RETRY_PAUSE))

    async def _one_by_one(self, lane: Lane, writes: Sequence[Write], deadline: float) -> Sequence[Outcome]:
        """Make writes one at a time, each with a short timeout. None is on its way, so the rest may be dropped."""
        outcomes: list[Outcome] = []
        for write in writes:
            if asyncio.get_running_loop().time() > deadline:
                outcomes.append(TimeoutError())
                continue
            lane.advance()
            try:
                outcomes += outcomes_of([write], await self.send([write], lane, guarded=True, seconds=ONE_TIMEOUT))
            except Unavailable:
                outcomes += await self._fenced(lane, [write], deadline)
            except driver.OperationFailure as exc:
                outcomes.append(exc)
        return outcomes

    async def send(
        self, writes: Sequence[Write], lane: Lane | None = None, *, guarded: bool = False, seconds: float | None = None
    ) -> Mapping[str, Any]:
        """Send one `update` command. Raises `Unavailable` if it has a number, and its outcome is not known."""
        patience = self.patience.shared_call
        number: JSONObject = {"session": lane.session, "txnNumber": Int64(lane.number)} if lane else {}
        try:
            async with within(patience):
                # Not pymongo.timeout, which would have the driver give up before the server.
                reply: Mapping[str, Any] = await self._users.database.command(
                    "update",
                    self._users.name,
                    updates=[write.statement(guarded=guarded or not lane) for write in writes],
                    ordered=False,
                    maxTimeMS=round(1000 * (seconds or SERVER_PART * patience)),
                    writeConcern=self._users.write_concern.document,
                    codec_options=self._users.codec_options,  # a validator's refusal quotes the team's own values
                    **number,
                )
                if concern := reply.get("writeConcernError"):
                    raise driver.WriteConcernError(concern["errmsg"], concern["code"])
        except driver.ExecutionTimeout:  # it has ended on the server; the statements before the slow one are done
            raise
        except (driver.PyMongoError, TimeoutError) as exc:
            if lane and (isinstance(exc, TimeoutError) or means_unavailable(exc)):
                raise unavailable(exc) from exc
            raise
        return reply


def outcomes_of(writes: Sequence[Write], reply: Mapping[str, Any]) -> list[Outcome]:
    errors = reply.get("writeErrors", ())
    outcomes: list[Outcome] = [True] * len(writes)
    for error in errors:
        kind = driver.DuplicateKeyError if error["code"] == DUPLICATE_KEY else driver.WriteError
        outcomes[error["index"]] = kind(error["errmsg"], error["code"], error)
    if reply["n"] + len(errors) < len(writes):
        # Some found nothing, and the reply does not say which. An upsert either finds, inserts or fails.
        for n, write in enumerate(writes):
            if outcomes[n] is True and not write.upsert:
                outcomes[n] = None if len(writes) > 1 else False
    return outcomes


async def keeps_numbers(connection: Connection) -> bool:
    """Return whether the server keeps numbers, so that one `$inc`, sent twice under one, has effect once."""
    probe, key, patience = connection.shared[PROBE], {"_id": ObjectId()}, connection.patience
    lane, calls = Lane(probe.database.client), Calls(probe, replace(patience, shared_call=patience.operation))
    increment = Write(key, {"$inc": {"n": 1}}, upsert=True)
    lane.advance()
    try:
        async with within(patience.operation):
            for _ in range(2):
                await calls.send([increment], lane)
            document = await probe.find_one_and_delete(key, collation=SIMPLE)
    except (Unavailable, driver.PyMongoError, TimeoutError) as exc:
        log.debug("numbered writes cannot be tried: %s", type(exc).__name__)
        return False
    return bool(document and document["n"] == 1)
