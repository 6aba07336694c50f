"""The worker between outbox and mailer: it claims e-mails, sends them and has them settled.

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
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from mail.lease import Lease
from mail.replies import Outcome
from mail.settlement import Settlements
from mail.slots import Slots
from mail.templates import Content, RenderError, Templates
from mail.unsubscribe import Links
from mail.verdicts import Stage, Verdict
from mailer import Mailer
from mongo.errors import StoreError, Unavailable
from mongo.owed import OwedEmail
from ops.metrics import Metrics
from settings import Settings
from store import Store

log = logging.getLogger("notifier.delivery")

CLAIM_USERS: Final = 16
"""Users whose e-mails are claimed at once. As many e-mails may wait for a connection, so that none is ever idle."""
POLL: Final = 1.0
"""Seconds between two looks for e-mails that fell due or that another process owes."""
POLL_SPREAD: Final = (0.8, 1.2)
"""Factors between which the polls are spread, so that workers do not look all at once."""
STOP_GRACE: Final = 2.5
"""Seconds that conversations are given to end when the process stops."""
SETTLE_GRACE: Final = 1.0
"""Seconds that the other e-mails are then given to be settled."""
LEASE_PART: Final = 0.8
"""Part of a lease in which a message may be begun."""
EXTENSION_PAUSE: Final = 0.03
"""Part of a lease to wait after a failed extension."""


@asynccontextmanager
async def running_delivery(
    store: Store, settings: Settings, owed: asyncio.Event, metrics: Metrics
) -> AsyncIterator[Delivery]:
    """Deliver in the background. At the end, finish the conversations under way and give the other e-mails back.

    Set `owed` when this process owes an e-mail, so that the worker need not wait for its next poll.
    """
    mailer = Mailer(settings)
    metrics.watch(metrics.connections, lambda: mailer.connections)
    metrics.watch(metrics.breaker, lambda: mailer.breaker.tripped)
    delivery = Delivery(store, mailer, settings, owed, metrics)
    run = asyncio.create_task(delivery.run())
    helpers = {asyncio.create_task(delivery.keep_leases())}
    try:
        yield delivery
    finally:
        await delivery.stop(run, helpers)
        await mailer.close()


class Delivery:
    """Delivers what is owed."""

    def __init__(self, store: Store, mailer: Mailer, settings: Settings, owed: asyncio.Event, metrics: Metrics) -> None:
        self._outbox = store.outbox
        self._mailer = mailer
        self._settlements = Settlements(store, settings, metrics)
        self._kinds = settings.kinds
        self._templates = Templates(settings.templates_dir, self._kinds)
        self._links = Links(settings)
        self._metrics = metrics
        self._lease_seconds = settings.mail_lease_seconds
        self._owed = owed
        self._slots = Slots(settings.smtp_connections)
        self._stopped = asyncio.Event()
        self._leases: dict[asyncio.Task[None], Lease] = {}

    async def run(self) -> None:
        """Claim and deliver until stopped."""
        while not self._stopped.is_set():
            try:
                await self._turn()
            except Exception:
                log.exception("unexpected error: e-mails wait")
                await self._sleep(POLL)

    async def _turn(self) -> None:
        busy = sum(not lease.waiting for lease in self._leases.values())
        if busy >= (CLAIM_USERS if self._mailer.breaker.closed else 1):
            # A conversation may also begin to wait for its reply, or show that the server works.
            await asyncio.wait(self._leases, timeout=POLL, return_when=asyncio.FIRST_COMPLETED)
        elif wait := self._mailer.breaker.wait():
            await self._sleep(wait)
        elif not await self._claim():
            await self._pause()

    async def keep_leases(self) -> None:
        """Extend the leases long before they end, for ever."""
        pause = self._lease_seconds / 3
        while True:
            await asyncio.sleep(pause)
            # A lease that has ended may be another worker's, and must not be taken back.
            leases = [lease for lease in self._leases.values() if lease.held]
            if not leases:
                continue
            ends = self._ends()
            try:
                async with asyncio.timeout(pause := self._lease_seconds / 3):
                    await self._outbox.extend([lease.email for lease in leases], self._lease_seconds)
            except Exception as exc:  # noqa: BLE001 - there is time for another attempt
                log.warning("leases could not be extended: %s", type(exc).__name__)
                pause = EXTENSION_PAUSE * self._lease_seconds
            else:
                for lease in leases:
                    lease.ends = ends

    def _ends(self) -> float:
        """Return when a lease taken now ends for us, which is sooner than for others: a message takes its time."""
        return time.monotonic() + LEASE_PART * self._lease_seconds

    async def stop(self, run: asyncio.Task[None], helpers: set[asyncio.Task[None]]) -> None:
        """Stop claiming, let conversations end for a while, and give everything else back."""
        self._stopped.set()
        self._owed.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_GRACE):
                # A claim under way starts new deliveries. One cancelled before it began would give nothing back.
                while pending := {task for task in (run, *self._leases) if not task.done()}:
                    await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in {run, *helpers, *self._leases}:
            task.cancel()
        await asyncio.wait({run, *helpers, *self._leases}, timeout=SETTLE_GRACE)

    async def _claim(self) -> bool:
        """Claim what is due and start to deliver it; return whether there was anything."""
        self._owed.clear()
        users = CLAIM_USERS if self._mailer.breaker.closed else 1
        ends = self._ends()  # from before the request, so never later than MongoDB's
        try:
            emails = await self._outbox.claim(users, self._lease_seconds)
        except Unavailable as exc:
            log.warning("no e-mails can be claimed: %s", exc)
            return False
        except Exception:
            log.exception("unexpected error: no e-mails can be claimed")
            return False
        for email in emails:
            lease = Lease(email, ends)
            task = asyncio.create_task(self._deliver(lease))
            self._leases[task] = lease
            task.add_done_callback(self._leases.pop)
        return bool(emails)

    async def _pause(self) -> None:
        """Wait until the next poll or until an e-mail is owed. Meanwhile close idle connections."""
        await self._mailer.close_idle()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL * random.uniform(*POLL_SPREAD)):
                await self._owed.wait()

    async def _sleep(self, seconds: float) -> None:
        """Sleep, but wake up to stop."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopped.wait()

    async def _deliver(self, lease: Lease) -> None:
        try:
            outcome = await self._send(lease)
        except asyncio.CancelledError:
            outcome = _stopped(Verdict.AMBIGUOUS if lease.sending else Verdict.CONNECTION)
        except Exception:
            # A fault of ours must neither lose the e-mail nor send it for ever.
            log.exception("e-mail %s: unexpected error", lease.email.id)
            outcome = Outcome(
                verdict=Verdict.TRANSIENT, status="internal error", detail="The service failed to send it."
            )
        if outcome is not None:
            await self._settlements.settle(lease.email, outcome)

    async def _send(self, lease: Lease) -> Outcome | None:
        email = lease.email
        if email.dead:  # its worker died before it was buried
            return Outcome(verdict=Verdict.PERMANENT, status="dead", detail=email.error or "")
        async with self._slots.taken() as slot:
            if self._stopped.is_set():
                return _stopped(Verdict.CONNECTION)
            if not lease.held:  # this process was frozen, or MongoDB was
                return None
            lease.on_wait = slot.give_up
            lease.is_wanted = lambda: self._is_wanted(email)
            return await self._mailer.send(lease, self._content(email))

    async def _is_wanted(self, email: OwedEmail) -> bool | None:
        """Return whether the user wants the e-mail; `None` if the lease was lost, or MongoDB does not answer."""
        kind = self._kinds.get(email.key)
        if kind and kind.required:
            return True
        try:
            return await self._outbox.is_wanted(email)
        except StoreError as exc:
            log.warning("e-mail %s: its user's preferences cannot be read: %s", email.id, exc)
            return None

    def _content(self, email: OwedEmail) -> Content:
        """Render the templates. If one fails, the e-mail is what it would be without any."""
        link = self._links.url(email.user_id, email.key)
        try:
            return self._templates.render(email.fields(), email.language, link)
        except RenderError as exc:
            reason = type(exc.__cause__).__name__  # its message may quote data
            log.warning("e-mail %s: its template failed, so it is sent without: %s: %s", email.id, exc, reason)
            return Content(email.key, email.key, unsubscribe_url=link)


def _stopped(verdict: Verdict) -> Outcome:
    return Outcome(verdict=verdict, status="stopped", detail="The service was stopped.", stage=Stage.CONNECT)
