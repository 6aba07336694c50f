"""The worker between outbox and mailer: e-mails that are owed are claimed, sent and settled.

One claimer keeps a window of e-mails that are next. One worker a connection takes them from there, checks whether they
are still wanted, sends them, and goes on while one settler has them removed: what is shared costs each of them little.

Any number of processes run it and share nothing but MongoDB. When one dies, its leases end and another takes its
e-mails over. Delivery is at least once: a death between the server's 250 and the settling sends the e-mail again,
with the same `Message-ID`.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Final, Self

from mail.claimer import Claimer
from mail.feedback import Feedback
from mail.lease import Lease, Leases, Looks
from mail.message import Letters
from mail.replies import Outcome, Stage, Verdict
from mail.settlement import Settler
from mail.stops import Group, alarm
from mail.templates import RenderingEnded
from mailer import Mailer, Worker
from mongo.connection import end
from mongo.owed import OwedEmail
from ops.metrics import Metrics
from settings import Settings
from store import Store

log = logging.getLogger("notifier.delivery")

Record = Callable[[OwedEmail, Outcome, int], None]  # of an attempt; the last argument is its begin in Unix ns

PROBE_POLL: Final = 0.25  # seconds between two looks for a probe
STOP_GRACE: Final = 2.5  # seconds that conversations are given to end when the process stops
SETTLE_GRACE: Final = 1.0  # seconds that the e-mails are then given to be settled
AGAIN: Final = frozenset({Verdict.TOO_FAST, Verdict.CONNECTION})  # sent as soon as pace or connections allow it
STOPPED: Final = Outcome(Verdict.CONNECTION, "stopped", "The service was stopped.")


class Delivery(Worker):
    """Delivers in the background while it is entered, then ends the conversations and gives the other e-mails back.

    Set `owed` when this process owes an e-mail, which then waits for no poll. `record` is called after each attempt.
    """

    def __init__(
        self, store: Store, settings: Settings, owed: asyncio.Event, metrics: Metrics, record: Record | None = None
    ) -> None:
        self._owed = owed
        self._record = record
        self._news = asyncio.Event()
        self._limit = settings.smtp_connections
        self._leases = Leases(store.outbox, settings.mail_lease_seconds)
        self._feedback = Feedback(settings, self._changed, self._lift, self._revive)
        self._evidence = self._feedback.evidence
        self._settler = Settler(store, settings, metrics, self._evidence, self._leases, self._wake_workers)
        self._claimer = Claimer(self._settler, owed)
        self._window = self._claimer.window
        self._looks = Looks(store.outbox, self._window)
        self._letters = Letters(settings, self._looks)
        self._mailer = Mailer(settings, self._feedback, self._letters, self)
        self._pool = self._mailer.pool
        self._lifts: dict[Group, float | None] = {}  # groups whose e-mails are to fall due, and since when tried
        self._workers: set[asyncio.Task[None]] = set()
        self._helpers: set[asyncio.Task[None]] = set()
        limits, pace = self._feedback.limits, self._feedback.pace
        metrics.watch(metrics.connections, lambda: limits.open + limits.opening)
        metrics.watch(metrics.breaker, lambda: self._evidence.line is not None)
        metrics.watch(metrics.pace, lambda: 0 if pace.rate == math.inf else pace.rate)
        metrics.stops = lambda: self._evidence.shown(time.monotonic())

    async def __aenter__(self) -> Self:
        for run in (self._claimer.run(), *(self._work() for _ in range(self._limit))):
            self._run(run, self._workers)
        for run in (self._looks.run(), self._leases.keep(), self._pool.close_idle(), alarm(self._evidence.stops)):
            self._run(run, self._helpers)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._claimer.stop()
        self._wake_workers()
        _ended, late = await asyncio.wait(self._workers, timeout=STOP_GRACE)
        for task in late:
            task.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_GRACE):
                await asyncio.gather(*late, return_exceptions=True)
                await self._settler.finish()
        await end(*self._helpers)
        await self._pool.close_all()
        await self._letters.templates.aclose()

    def _run(self, run: Coroutine[None, None, None], tasks: set[asyncio.Task[None]]) -> None:
        task = asyncio.create_task(run)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def _work(self) -> None:
        lease = await self._next()
        while lease:
            started = time.time_ns()
            outcome = self._feedback.judge(lease.mail, await self._send(lease), lease.began)
            if self._record and outcome:
                self._record(lease.email, outcome, started)
            self._settle(lease, outcome)
            if lease.replaced:
                return
            lease = lease.then or await self._next()

    async def _next(self) -> Lease | None:
        while not self._claimer.stopped:
            wait = self._wait()
            lease = self._take() if wait == 0 else None
            if lease and self._may_begin(lease):
                return lease
            if lease is None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(PROBE_POLL if wait == 0 else wait):
                        await self._news.wait()
        return None

    def _wait(self) -> float | None:
        """Return the seconds until an e-mail may be sent; `None` while that depends on something other than time."""
        if not (self._window and self._settler.has_room):
            return None
        room, now = self._pool.wait(), time.monotonic()
        return None if room is None else max(room, self._feedback.wait(now))

    def _take(self) -> Lease | None:
        """Take the next e-mail from the window; while the line has stopped, the best one for a probe, if any."""
        if self._evidence.line:
            return self._window.take_best(lambda lease: self._evidence.suitability(lease.mail, time.monotonic()))
        lease = self._window.take()
        if self._window.low:
            self._owed.set()
        self._looks.prefetch()
        return lease

    def _may_begin(self, lease: Lease) -> bool:
        """Begin an e-mail, or settle it if it must wait."""
        now = time.monotonic()
        if not lease.held:
            self._leases.discard(lease)  # this process was frozen, or MongoDB was
        elif stop := self._evidence.admit(lease.mail, now):
            status = f"{stop.group.name} stopped: {stop.reply}"
            self._settler.put(lease, Outcome(Verdict.HELD, status, status))
        else:
            self._feedback.pace.take(now)
            lease.began = now
            return True
        return False

    async def _send(self, lease: Lease) -> Outcome | None:
        try:
            return await self._mailer.send(lease)
        except RenderingEnded as exc:
            return Outcome(Verdict.UNRENDERED, f"{exc}", f"{exc}")
        except asyncio.CancelledError:  # a stop of ours, which counts no copy
            return STOPPED
        except Exception:
            # A fault of ours must neither lose the e-mail nor send it for ever.
            log.exception("e-mail %s: unexpected error", lease.email.id)
            return Outcome(Verdict.TRANSIENT, "internal error", "The service failed to send it.", Stage.DATA)

    def _settle(self, lease: Lease, outcome: Outcome | None) -> None:
        if outcome is None:
            self._leases.discard(lease)
        elif outcome.verdict in AGAIN and lease.held and not (self._claimer.stopped or self._evidence.line):
            self._claimer.put(lease, self._feedback.pace.place(lease.mail))
        else:
            self._settler.put(lease, outcome)

    def late(self, lease: Lease) -> None:
        """Start another worker meanwhile, unless as many wait already as there are connections."""
        if len(self._workers) <= 2 * self._limit and not self._claimer.stopped:  # the claimer is one of these tasks
            lease.replaced = True
            self._run(self._work(), self._workers)
        self._feedback.abandon(lease.mail)

    def following(self) -> Lease | None:
        waits = self._claimer.stopped or self._evidence.stops or self._feedback.wait(time.monotonic())
        if waits or not (self._window and self._settler.has_room):
            return None
        lease = self._take()
        return lease if lease and self._may_begin(lease) else None

    def give_back(self, lease: Lease) -> None:
        self._feedback.abandon(lease.mail)
        if self._claimer.stopped:
            self._settler.put(lease, STOPPED)
        else:
            self._claimer.put(lease, 0)
            self._wake_workers()

    def _wake_workers(self) -> None:
        self._news.set()
        self._news.clear()

    def _changed(self) -> None:
        if self._evidence.stops:
            self._owed.set()
        self._wake_workers()

    def _lift(self, group: Group, since: float | None) -> None:
        if not self._lifts:
            self._run(self._lift_all(), self._helpers)
        earlier = self._lifts.get(group)
        self._lifts[group] = since if earlier is None else min(earlier, since or earlier)
        self._owed.set()

    async def _lift_all(self) -> None:
        while self._lifts:
            await self._settler.settled()  # or those under way would be missed
            group, since = self._lifts.popitem()
            await self._settler.lift(group, since)
            self._owed.set()

    def _revive(self, group: Group) -> None:
        self._run(self._settler.revive(group), self._helpers)
