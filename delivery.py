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
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import groupby
from typing import Final

from mail.lease import Lease, Leases
from mail.looks import Looks
from mail.replies import Outcome
from mail.settlement import Settlements
from mail.settler import UNSETTLED, Settler
from mail.templates import Content, RenderError, Templates, plain
from mail.unsubscribe import Links
from mail.verdicts import Stage, Verdict
from mail.window import REFILL, Window
from mailer import Mailer
from mongo.errors import StoreError
from mongo.owed import OwedEmail
from ops.metrics import Metrics
from settings import Settings
from store import Store

log = logging.getLogger("notifier.delivery")

Record = Callable[[OwedEmail, Outcome, int], None]
"""Takes an e-mail, the outcome of an attempt to send it, and when that began, in ns."""

POLL: Final = 1.0
"""Seconds between two looks for e-mails that fell due or that another process owes."""
POLL_SPREAD: Final = (0.8, 1.2)
"""Factors between which the polls are spread, so that workers do not look all at once."""
CLAIM_PAUSE: Final = 0.02
"""Seconds between two claims when one found less than it asked for. What is owed meanwhile shares the next."""
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


class Delivery:
    """Delivers what is owed."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        owed: asyncio.Event,
        metrics: Metrics,
        record: Record | None = None,
    ) -> None:
        self._record = record
        self._outbox = store.outbox
        self._kinds = settings.kinds
        self._templates = Templates(settings.templates_dir, self._kinds)
        self._links = Links(settings)
        self._owed = owed
        self._news = asyncio.Event()
        self._window = Window()
        self._leases = Leases(store.outbox, settings.mail_lease_seconds)
        self._looks = Looks(store.outbox, self._window)
        self._mailer = Mailer(settings, self._looks, self._replace, self._breaker_changed)
        self._settler = Settler(
            Settlements(store, settings, metrics),
            self._leases,
            UNSETTLED * settings.smtp_connections,
            self._wake_workers,
        )
        self._limit = settings.smtp_connections
        self._replaced = 0
        self._stopped = False
        self._claimer: asyncio.Task[None] | None = None
        self._workers: set[asyncio.Task[None]] = set()
        self._helpers: set[asyncio.Task[None]] = set()
        metrics.watch(metrics.connections, lambda: self._mailer.connections)
        metrics.watch(metrics.breaker, lambda: self._mailer.breaker.tripped)

    # --- the life of the tasks ---------------------------------------------------------------------

    def start(self) -> None:
        """Begin to deliver."""
        self._claimer = asyncio.create_task(self._claim_until_stopped())
        for _ in range(self._limit):
            self._start_worker()
        runs = (self._looks.run(), self._leases.keep(), self._mailer.close_idle())
        self._helpers = {asyncio.create_task(run) for run in runs}

    def _start_worker(self) -> None:
        worker = asyncio.create_task(self._work())
        self._workers.add(worker)
        worker.add_done_callback(self._workers.discard)

    def _replace(self, lease: Lease) -> None:
        """Let another worker go on while one only waits for a late reply, unless as many wait as there are workers."""
        if self._replaced < self._limit and not self._stopped:
            self._replaced += 1
            lease.replaced = True
            self._start_worker()

    async def stop(self) -> None:
        """Stop claiming, give back what is not begun, and let conversations end for a while."""
        self._stopped = True
        self._wake_workers()
        self._owed.set()
        tasks = {task for task in (self._claimer, *self._workers) if task}
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_GRACE)
        for task in tasks:
            task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_GRACE):
                await asyncio.gather(*tasks, return_exceptions=True)
                await self._settler.finish()
        for task in self._helpers:
            task.cancel()
        await self._mailer.close()

    # --- the claimer -------------------------------------------------------------------------------

    async def _claim_until_stopped(self) -> None:
        while not self._stopped:
            self._owed.clear()
            try:
                pause = await self._claim_if_needed()
            except Exception:
                log.exception("unexpected error: e-mails wait")
                pause = POLL
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._owed.wait()
        await self._give_back()

    async def _claim_if_needed(self) -> float:
        """Claim e-mails if the window has room; return the seconds to wait unless something happens."""
        breaker = self._mailer.breaker
        if wait := breaker.wait():
            await self._give_back()
            return wait
        # As long as it is not known how the server is, one e-mail at a time shows it.
        users = self._window.room() if breaker.closed else int(breaker.admits and not self._window)
        if not users:
            return REFILL
        claimed = await self._claim(users)
        if 0 < claimed < users:
            await asyncio.sleep(CLAIM_PAUSE)
        if claimed and self._window.low:
            self._owed.set()
        return POLL * random.uniform(*POLL_SPREAD)

    async def _claim(self, users: int) -> int:
        """Claim e-mails of so many users; return how many e-mails there were."""
        end = self._leases.end()  # from before the request, so never later than MongoDB's
        try:
            emails = await self._outbox.claim(users, self._leases.seconds)
        except StoreError as exc:
            log.warning("no e-mails can be claimed: %s", exc)
            return 0
        for email in emails:
            self._accept(Lease(email, end))
        self._wake_workers()
        return len(emails)

    def _accept(self, lease: Lease) -> None:
        self._leases.add(lease)
        email, kind = lease.email, self._kinds.get(lease.email.key)
        if email.dead:  # its worker died before it was buried
            self._settler.put(lease, Outcome(verdict=Verdict.PERMANENT, status="dead", detail=email.error or ""))
            return
        lease.known_until, lease.required = 0.0, bool(kind and kind.required)
        self._window.put(lease, urgent=self._rank(email) == "high")

    def _rank(self, email: OwedEmail) -> str:
        kind = self._kinds.get(email.key)
        return kind.rank if kind else "normal"

    async def _give_back(self) -> None:
        """Give back the e-mails that nobody has begun, so that another process can send them."""
        leases = self._window.clear()
        held = sorted((lease.email for lease in leases if lease.held), key=self._rank)
        try:
            for rank, emails in groupby(held, self._rank):
                await self._outbox.release(list(emails), rank)
        except StoreError as exc:
            log.warning("some e-mails could not be given back, so they wait until their leases end: %s", exc)
        finally:
            for lease in leases:
                self._leases.discard(lease)

    # --- the workers -------------------------------------------------------------------------------

    async def _work(self) -> None:
        """Send one e-mail after another, until stopped or replaced."""
        while lease := await self._next():
            started = time.time_ns()
            outcome = await self._deliver(lease)
            if self._record and outcome:
                self._record(lease.email, outcome, started)
            if outcome is None:
                self._leases.discard(lease)
            else:
                self._settler.put(lease, outcome)
            if lease.replaced:
                self._replaced -= 1
                return

    async def _next(self) -> Lease | None:
        """Wait for the next e-mail that may be sent; `None` when this process stops."""
        while not self._stopped:
            if not (self._window and self._settler.has_room and self._mailer.breaker.admits):
                await self._news.wait()
                continue
            lease = self._window.take()
            if self._window.low:
                self._owed.set()
            self._looks.prefetch()
            if lease.held:
                return lease
            self._leases.discard(lease)  # this process was frozen, or MongoDB was
        return None

    async def _deliver(self, lease: Lease) -> Outcome | None:
        try:
            return await self._mailer.send(lease, self._content)
        except asyncio.CancelledError:
            verdict = Verdict.AMBIGUOUS if lease.sending else Verdict.CONNECTION
            return Outcome(verdict=verdict, status="stopped", detail="The service was stopped.", stage=Stage.CONNECT)
        except Exception:
            # A fault of ours must neither lose the e-mail nor send it for ever.
            log.exception("e-mail %s: unexpected error", lease.email.id)
            return Outcome(verdict=Verdict.TRANSIENT, status="internal error", detail="The service failed to send it.")

    def _wake_workers(self) -> None:
        self._news.set()
        self._news.clear()

    def _breaker_changed(self) -> None:
        self._owed.set()
        self._wake_workers()

    async def _content(self, lease: Lease) -> Content:
        """Render the templates. If one fails, the e-mail is what it would be without any."""
        email, fields = lease.email, lease.email.fields(lease.told)
        link = self._links.url(email.user_id, email.key)
        try:
            return self._templates.render(fields, email.language, link)
        except RenderError as exc:
            reason = type(exc.__cause__).__name__  # its message may quote data
            log.warning("e-mail %s: its template failed, so it is sent without: %s: %s", email.id, exc, reason)
            return Content(plain(fields), plain(fields), unsubscribe_url=link)
