"""What follows an attempt: the e-mail is sent, tried again, waiting or dead. It is settled, counted and logged.

What was sent is settled together: the e-mails of some milliseconds in one update.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Final

from config.address import envelope_address
from mail.evidence import Evidence
from mail.lease import Lease, Leases
from mail.replies import DONE, Outcome, Stage, Verdict, bounce_code
from mail.stops import COPIES, LINE, Group, Schedule, Stop
from mongo import backlog
from mongo.errors import StoreError, Unavailable
from mongo.owed import OwedEmail
from mongo.suppression import Bounce
from ops.metrics import Metrics
from settings import Settings
from store import Store

log = logging.getLogger("notifier.delivery")

REFUSED: Final = (
    *(Verdict.TRANSIENT, Verdict.DEFERRED, Verdict.TOO_FAST, Verdict.UNCLEAR),
    *(Verdict.OVERSIZED, Verdict.DOUBTED, Verdict.AMBIGUOUS),
)
RESULTS: Final = {
    "sent": (Verdict.SENT,),
    "retried": (*REFUSED, Verdict.UNRENDERED),
    "dead": (Verdict.PERMANENT, Verdict.SUPPRESSED, Verdict.HELD, Verdict.UNRENDERED, *REFUSED),
    "waiting": (Verdict.CONNECTION, Verdict.CONFIGURATION, Verdict.HELD),
    "muted": (Verdict.MUTED,),
    "read": (Verdict.READ,),
}
"""What becomes of an e-mail after an attempt, and by which verdicts."""
MARGIN: Final = 1.0
"""Seconds by which MongoDB's clock may be read late."""
REVIVED: Final = timedelta(days=1)
"""Age of the dead letters that are owed again if their reason turns out to be doubtful."""
SPREAD: Final = (0.8, 1.2)
"""Factors between which a delay is spread: e-mails that failed together must not come back together."""
PAUSE: Final = 0.005
"""Seconds for which what was sent waits for more. After a crash it is sent again."""
UNSETTLED: Final = 13
"""E-mails sent and not settled, per connection, before no other is begun. With two under way on each connection, they
are what a crash sends again."""


class Settlements:
    def __init__(self, store: Store, settings: Settings, metrics: Metrics, evidence: Evidence) -> None:
        self._clock = store.clock
        self._outbox = store.outbox
        self._dead_mail = store.dead_mail
        self._metrics = metrics
        self._evidence = evidence
        self._schedule = Schedule(settings.mail_retry_minutes, settings.mail_give_up_hours, evidence.stops_of)
        for result, verdicts in RESULTS.items():
            for verdict in verdicts:
                metrics.emails.labels(result, verdict.value)  # each series begins at 0, so that a first burst shows

    # --- before an attempt -------------------------------------------------------------------------

    def count(self, email: OwedEmail, now: float) -> OwedEmail:
        """Count the last attempt if somebody else's e-mail was accepted after it. What is not known does not count."""
        return replace(email, tries=email.tries + 1) if self._has_witness(email, now) else email

    def _has_witness(self, email: OwedEmail, now: float) -> bool:
        if email.tried is None:
            return False
        return self._evidence.accepted_since(now - self._clock.seconds_since(email.tried), email.user_id)

    def without_attempt(self, email: OwedEmail, now: float) -> Outcome | None:
        """Return what becomes of an e-mail that must not be sent now; `None` if it may be."""
        if email.dead:  # its worker died before it was buried
            return _without(Verdict.PERMANENT, "dead", email.error or "")
        if reason := self._schedule.too_old(email, self._clock.seconds_since(email.at)):
            return _without(Verdict.PERMANENT, "14 days old", reason)
        if email.copies >= COPIES - 1 and not self._has_witness(email, now):
            return _without(Verdict.HELD, "nobody else's e-mail was accepted yet", email.error or "")
        return None

    def hold(self, stop: Stop) -> Outcome:
        """Return what becomes of an e-mail that must wait for a stop."""
        status = f"{stop.group.name} stopped: {stop.reply}"
        return _without(Verdict.HELD, status, status)

    # --- settling ----------------------------------------------------------------------------------

    async def settle(self, lease: Lease, outcome: Outcome) -> None:
        """Settle until MongoDB confirms it. Token and id make that safe however often and late it happens."""
        email = lease.email
        result, settle = self._settlement(lease, outcome)
        while True:
            try:
                held = await settle()
            except Unavailable:
                log.warning("e-mail %s: MongoDB is unavailable, so it cannot be settled yet", email.id)
            except Exception:
                log.exception("e-mail %s: unexpected error; it stays leased until its lease ends", email.id)
                return
            else:
                self._report(email, outcome, result, held=held)
                return

    async def settle_together(self, leases: Sequence[tuple[Lease, Outcome]]) -> None:
        """Settle what was sent or is not wanted, in shared updates; otherwise as `settle`."""
        while True:
            try:
                held = await self._outbox.remove_together([lease.email for lease, _ in leases])
            except Unavailable:
                log.warning("%d e-mails: MongoDB is unavailable, so they cannot be settled yet", len(leases))
            except Exception:  # noqa: BLE001 - because of one of them
                for lease, outcome in leases:
                    await self.settle(lease, outcome)
                return
            else:
                if not held and len(leases) > 1:  # the reply does not tell which
                    log.info("of %d e-mails, some lost their leases, or were settled before", len(leases))
                for lease, outcome in leases:
                    self._report(lease.email, outcome, outcome.verdict.value, held=held or len(leases) > 1)
                return

    def _settlement(self, lease: Lease, outcome: Outcome) -> tuple[str, Callable[[], Awaitable[bool]]]:
        """Return the result for the e-mail, one of `RESULTS`, and the function that settles it."""
        outbox, email, error = self._outbox, lease.email, outcome.detail
        age = self._clock.seconds_since(email.at)
        match outcome.verdict:
            case Verdict.SENT | Verdict.MUTED | Verdict.READ:
                lift = outcome.verdict is Verdict.SENT and _was_suppressed(email)
                return outcome.verdict.value, lambda: outbox.remove(email, lift=lift)
            case Verdict.PERMANENT | Verdict.SUPPRESSED:
                tries = email.tries + (outcome.verdict is Verdict.PERMANENT)
                return "dead", lambda: self._bury(email, tries, error, _bounce(email, outcome))
            case Verdict.CONNECTION | Verdict.CONFIGURATION | Verdict.TOO_FAST:
                return "waiting", lambda: outbox.put_back(email, error)
            case Verdict.HELD:
                after = self._schedule.hold(lease.mail, email, age, time.monotonic())
            case _:
                after = self._schedule.after_refusal(lease.mail, email, outcome, age, time.monotonic())
        crashes = email.crashes + (outcome.verdict is Verdict.UNRENDERED)
        if after.given_up is not None:
            tries, bounce = max(email.tries + outcome.tried, crashes), _bounce(email, outcome)
            return "dead", lambda: self._bury(email, tries, after.given_up, bounce)
        changes = {"waited": after.waited, "held": after.held, "copies": after.copies, "crashes": crashes}
        if outcome.verdict is Verdict.HELD:
            return "waiting", lambda: outbox.hold(email, after.delay, error, **changes)
        delay = after.delay * random.uniform(*SPREAD)
        return "retried", lambda: outbox.retry(email, delay, error, tries=email.tries, **changes)

    # --- when a stop is over, or a doubt arises ----------------------------------------------------

    async def lift(self, group: Group, since: float | None) -> None:
        """Let the e-mails fall due at once that waited for a stop, and those of its group that were tried since."""
        try:
            tried = None
            if since is not None:
                tried = self._clock.now() - timedelta(seconds=time.monotonic() - since + MARGIN)
            await backlog.lift(self._outbox, f"{group}", tried, group.value or None)
        except StoreError as exc:
            log.warning("e-mails that may be sent again wait until they are due: %s", exc)

    async def revive(self, group: Group) -> None:
        """Owe those e-mails again that died lately as the mailbox was unknown, which is in doubt now."""
        where = "the mail server" if group == LINE else "a domain"
        log.error("%s calls so many mailboxes unknown that it is doubtful: such e-mails wait, and none is lost", where)
        try:
            revived = await self._dead_mail.revive(group.value, self._clock.now() - REVIVED)
        except StoreError as exc:
            log.warning("dead letters cannot be owed again: %s", exc)
        else:
            log.warning("%d dead letters of the last day are owed again", revived)

    def _bury(self, email: OwedEmail, tries: int, error: str | None, bounce: Bounce | None = None) -> Awaitable[bool]:
        return self._dead_mail.bury(email, email.tries if email.dead else tries, error, bounce)

    def _report(self, email: OwedEmail, outcome: Outcome, result: str, *, held: bool) -> None:
        """Count and log an outcome, without the address and the server's words, which may hold one."""
        self._metrics.emails.labels(result, outcome.verdict.value).inc()
        if outcome.verdict is Verdict.SENT:
            self._metrics.delivery.observe(self._clock.seconds_since(email.at))
        if outcome.verdict in {Verdict.CONFIGURATION, Verdict.HELD}:  # which the alarm tells
            return
        log.log(
            logging.INFO if outcome.verdict in DONE else logging.WARNING,
            "e-mail %s %s: %s, %s (%s)%s",
            *(email.id, email.key, result, outcome.verdict.value, outcome.status),
            "" if held else "; the lease was lost, or it was settled before",
            extra={
                "email_id": email.id,
                "outcome": result,
                "reason": outcome.verdict.value,
                **email.origin,
            },
        )


class Settler:
    """Settles the e-mails of all workers. `limit` is how many may be sent and unsettled before `has_room` is false.

    `settled` is called when there is room again.
    """

    def __init__(self, settlements: Settlements, leases: Leases, limit: int, settled: Callable[[], None]) -> None:
        self._settlements = settlements
        self._leases = leases
        self._limit = limit
        self._settled = settled
        self._waiting: list[tuple[Lease, Outcome]] = []
        self._in_flight = 0
        self._together: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def has_room(self) -> bool:
        """Whether another e-mail may be sent."""
        return len(self._waiting) + self._in_flight < self._limit

    def put(self, lease: Lease, outcome: Outcome) -> None:
        """Settle an e-mail soon. Its lease is extended until then."""
        if outcome.verdict not in DONE or lease.email.suppression:
            self._start(self._settle(lease, outcome))
            return
        self._waiting.append((lease, outcome))
        if self._together is None or self._together.done():
            self._together = self._start(self._settle_together())

    def _start(self, settlement: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(settlement)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _settle(self, lease: Lease, outcome: Outcome) -> None:
        try:
            await self._settlements.settle(lease, outcome)
        finally:
            self._leases.discard(lease)

    async def _settle_together(self) -> None:
        while self._waiting:
            await asyncio.sleep(PAUSE)
            batch, self._waiting = self._waiting, []
            self._in_flight = len(batch)
            try:
                await self._settlements.settle_together(batch)
            finally:
                self._in_flight = 0
                for lease, _ in batch:
                    self._leases.discard(lease)
                self._settled()

    async def settled(self) -> None:
        """Wait until what has been put until now is settled."""
        if tasks := set(self._tasks):
            await asyncio.wait(tasks)

    async def finish(self) -> None:
        """Wait until all is settled. If this is cancelled, give up."""
        try:
            while self._tasks:
                await asyncio.wait(self._tasks)
        finally:
            for task in self._tasks:
                task.cancel()


def _bounce(email: OwedEmail, outcome: Outcome) -> Bounce | None:
    code = bounce_code(outcome.verdict, outcome.reply)
    return Bounce(envelope_address(email.address), code) if code else None


def _was_suppressed(email: OwedEmail) -> bool:
    """Return whether an e-mail was sent to an address whose suppression was provisional."""
    return email.suppression is not None and email.suppression.address == envelope_address(email.address)


def _without(verdict: Verdict, status: str, detail: str) -> Outcome:
    return Outcome(verdict=verdict, status=status, detail=detail, stage=Stage.CONNECT)
