"""The worker between outbox and mailer: e-mails that are owed are claimed, sent and settled.

One claimer keeps a window of e-mails that are next. One worker a connection takes them from there, looks whether they
are still wanted, sends them, and goes on while one settler has them removed. What is done for many e-mails at once,
claims, looks and settlements, costs each of them little.

Any number of processes run it and share nothing but MongoDB. When one dies, its leases end and another takes its
e-mails over. Delivery is at least once: a death between the server's 250 and the settling sends the e-mail again,
with the same `Message-ID`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Final

from mail.claimer import Claimer, Looks
from mail.feedback import Feedback
from mail.lease import Lease, Leases
from mail.message import Worker
from mail.replies import Outcome, Stage, Verdict
from mail.settlement import UNSETTLED, Settlements, Settler
from mail.stops import Group, alarm
from mail.templates import Content, RenderError, RenderingEnded, Templates, content_of
from mail.unsubscribe import Links
from mailer import Mailer
from mongo.connection import end
from mongo.owed import OwedEmail
from ops.metrics import Metrics
from settings import Settings
from store import Store

log = logging.getLogger("notifier.delivery")

Record = Callable[[OwedEmail, Outcome, int], None]
"""Takes an e-mail, the outcome of an attempt to send it, and when that began, in ns."""

PROBE_POLL: Final = 0.25
"""Seconds between two looks for a probe."""
AGAIN: Final = frozenset({Verdict.TOO_FAST, Verdict.CONNECTION})
"""What becomes of an e-mail that is sent as soon as the pace, or the number of connections, allows it."""
STOPPED: Final = Outcome(
    verdict=Verdict.CONNECTION, status="stopped", detail="The service was stopped.", stage=Stage.CONNECT
)
STOP_GRACE: Final = 2.5
"""Seconds that conversations are given to end when the process stops."""
SETTLE_GRACE: Final = 1.0
"""Seconds that the e-mails are then given to be settled."""


@asynccontextmanager
async def running_delivery(
    store: Store, settings: Settings, owed: asyncio.Event, metrics: Metrics, record: Record | None = None
) -> AsyncIterator[Delivery]:
    """Deliver in the background. At the end, finish the conversations under way and give the other e-mails back.

    Set `owed` when this process owes an e-mail, so that the worker need not wait for its next poll. `record` is called
    after each attempt.
    """
    delivery = Delivery(store, settings, owed, metrics, record)
    delivery.start()
    try:
        yield delivery
    finally:
        await delivery.stop()


class Delivery(Worker):
    def __init__(
        self,
        store: Store,
        settings: Settings,
        owed: asyncio.Event,
        metrics: Metrics,
        record: Record | None = None,
    ) -> None:
        self._record = record
        self._kinds = settings.kinds
        self._templates = Templates(settings)
        self._links = Links(settings)
        self._owed = owed
        self._news = asyncio.Event()
        self._leases = Leases(store.outbox, settings.mail_lease_seconds)
        self._feedback = Feedback(settings, self._changed, self._lift, self._revive)
        self._evidence = self._feedback.evidence
        self._settlements = Settlements(store, settings, metrics, self._evidence)
        self._limit = settings.smtp_connections
        self._settler = Settler(self._settlements, self._leases, UNSETTLED * self._limit, self._wake_workers)
        parts = (self._leases, self._evidence, self._settlements, self._settler)
        self._claimer = Claimer(store, self._kinds, owed, *parts, self._wake_workers)
        self._window = self._claimer.window
        self._looks = Looks(store.outbox, self._window)
        self._mailer = Mailer(settings, self._feedback, self)
        self._replaced = 0
        self._stopped = False
        self._lifts: dict[Group, float | None] = {}
        """The groups whose e-mails are to fall due, and since when they were tried in vain."""
        self._claiming: asyncio.Task[None] | None = None
        self._workers: set[asyncio.Task[None]] = set()
        self._helpers: set[asyncio.Task[None]] = set()
        pool, pace = self._mailer.pool, self._feedback.pace
        metrics.watch(metrics.connections, lambda: pool.connections)
        metrics.watch(metrics.breaker, lambda: self._evidence.line is not None)
        metrics.watch(metrics.pace, lambda: 0 if pace.rate == math.inf else pace.rate)
        metrics.watch_stops(lambda: self._evidence.shown(time.monotonic()))

    # --- the life of the tasks ---------------------------------------------------------------------

    def start(self) -> None:
        self._claiming = asyncio.create_task(self._claimer.run())
        for _ in range(self._limit):
            self._run(self._work(), self._workers)
        for run in (
            self._looks.run(),
            self._leases.keep(),
            self._mailer.pool.close_idle(),
            alarm(self._evidence.stops),
        ):
            self._run(run, self._helpers)

    def _run(self, run: Coroutine[None, None, None], tasks: set[asyncio.Task[None]]) -> None:
        task = asyncio.create_task(run)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def stop(self) -> None:
        """Stop claiming, give back what is not begun, and let conversations end for a while."""
        self._stopped = True
        self._wake_workers()
        self._claimer.stop()
        tasks = {task for task in (self._claiming, *self._workers) if task}
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_GRACE)
        for task in tasks:
            task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_GRACE):
                await asyncio.gather(*tasks, return_exceptions=True)
                await self._settler.finish()
        await end(*self._helpers)
        await self._mailer.pool.close_all()
        await self._templates.aclose()

    # --- the workers -------------------------------------------------------------------------------

    async def _work(self) -> None:
        """Send one e-mail after another, until stopped or replaced."""
        lease = await self._next()
        while lease:
            started = time.time_ns()
            outcome = self._feedback.judge(lease.mail, await self._deliver(lease), lease.began)
            if self._record and outcome:
                self._record(lease.email, outcome, started)
            self._settle(lease, outcome)
            if lease.replaced:
                self._replaced -= 1
                return
            lease = lease.then or await self._next()

    def _settle(self, lease: Lease, outcome: Outcome | None) -> None:
        if outcome is None:
            self._leases.discard(lease)
        elif outcome.verdict in AGAIN and lease.held and not (self._stopped or self._evidence.line):
            self._claimer.put(lease, self._feedback.pace.place(lease.mail))
        else:
            self._settler.put(lease, outcome)

    async def _next(self) -> Lease | None:
        """Wait for the next e-mail that may be sent; `None` when this process stops."""
        while not self._stopped:
            if (wait := self._wait()) is None or wait:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._news.wait()
            elif lease := self._take():
                if self._may_begin(lease):
                    return lease
            else:
                await asyncio.sleep(PROBE_POLL)
        return None

    def _may_begin(self, lease: Lease) -> bool:
        """Begin an e-mail, or settle it if it must wait."""
        now = time.monotonic()
        if not lease.held:
            self._leases.discard(lease)  # this process was frozen, or MongoDB was
        elif stop := self._evidence.admit(lease.mail, now):
            self._settler.put(lease, self._settlements.hold(stop))
        else:
            self._feedback.pace.take(now)
            lease.began = now
            return True
        return False

    def _wait(self) -> float | None:
        """Return the seconds until an e-mail may be sent; `None` while that depends on something else than time."""
        if not (self._window and self._settler.has_room):
            return None
        room, now = self._mailer.pool.wait(), time.monotonic()
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

    async def _deliver(self, lease: Lease) -> Outcome | None:
        try:
            return await self._mailer.send(lease)
        except RenderingEnded as exc:
            return Outcome(verdict=Verdict.UNRENDERED, status=f"{exc}", detail=f"{exc}", stage=Stage.CONNECT)
        except asyncio.CancelledError:  # a stop of ours, which counts no copy
            return STOPPED
        except Exception:
            # A fault of ours must neither lose the e-mail nor send it for ever.
            log.exception("e-mail %s: unexpected error", lease.email.id)
            return Outcome(verdict=Verdict.TRANSIENT, status="internal error", detail="The service failed to send it.")

    def _wake_workers(self) -> None:
        self._news.set()
        self._news.clear()

    def _changed(self) -> None:
        """Let workers and claimer see what may be sent now."""
        if self._evidence.stops:
            self._owed.set()
        self._wake_workers()

    def _lift(self, group: Group, since: float | None) -> None:
        """Let the e-mails go on that waited for a stop which is over."""
        if not self._lifts:
            self._run(self._lift_all(), self._helpers)
        earlier = self._lifts.get(group)
        self._lifts[group] = since if earlier is None else min(earlier, since or earlier)
        self._owed.set()

    async def _lift_all(self) -> None:
        while self._lifts:
            await self._settler.settled()  # or those under way would be missed
            group, since = self._lifts.popitem()
            await self._settlements.lift(group, since)
            self._owed.set()

    def _revive(self, group: Group) -> None:
        self._run(self._settlements.revive(group), self._helpers)

    async def look(self, lease: Lease) -> None:
        await self._looks(lease)

    async def content(self, lease: Lease) -> Content:
        """Render the templates. If one fails, the e-mail is what it would be without any."""
        email, fields = lease.email, lease.email.fields(lease.told)
        link = self._links.url(email.user_id, email.key)
        try:
            return await self._templates.render(fields, email.language, link)
        except RenderError as exc:
            log.warning("e-mail %s: its template failed, so it is sent without: %s: %s", email.id, exc, exc.kind)
            return content_of(fields, link)
        except (OSError, ValueError) as exc:  # which the mailer would take for a fault of the connection
            raise RuntimeError("templates cannot be rendered") from exc

    def late(self, lease: Lease) -> None:
        """Let another worker go on while one only waits for a late reply, unless as many wait as there are workers."""
        if self._replaced < self._limit and not self._stopped:
            self._replaced += 1
            lease.replaced = True
            self._run(self._work(), self._workers)
        self._feedback.abandon(lease.mail)

    def following(self) -> Lease | None:
        waits = self._stopped or self._evidence.stops or self._feedback.wait(time.monotonic())
        if waits or not (self._window and self._settler.has_room):
            return None
        lease = self._take()
        return lease if lease and self._may_begin(lease) else None

    def give_back(self, lease: Lease) -> None:
        self._feedback.abandon(lease.mail)
        if self._stopped:
            self._settler.put(lease, STOPPED)
        else:
            self._claimer.put(lease, 0)
            self._wake_workers()
