"""What follows an attempt: the e-mail is sent, tried again, waiting or dead. It is settled, counted and logged."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Final

from mail.evidence import Evidence
from mail.lease import Lease, Leases
from mail.replies import DONE, Outcome, Verdict, bounce_code
from mail.stops import COPIES, LINE, Group, Next, Schedule
from mongo import backlog
from mongo.errors import StoreError, Unavailable
from mongo.owed import OwedEmail
from ops.metrics import Metrics
from settings import Settings
from store import Store

log = logging.getLogger("notifier.delivery")

PUT_BACK: Final = frozenset({Verdict.CONNECTION, Verdict.CONFIGURATION, Verdict.TOO_FAST})  # as though never claimed
FATAL: Final = frozenset({Verdict.PERMANENT, Verdict.SUPPRESSED})
RESULTS: Final = {
    **{verdict.value: {verdict} for verdict in DONE},
    "waiting": PUT_BACK | {Verdict.HELD},
    "retried": frozenset(Verdict) - DONE - PUT_BACK - FATAL - {Verdict.HELD},
    "dead": frozenset(Verdict) - DONE - PUT_BACK,
}
"""What becomes of an e-mail after an attempt, and by which verdicts."""
MARGIN: Final = 1.0  # seconds by which MongoDB's clock may be read late
REVIVED: Final = timedelta(days=1)  # age of the dead letters that are owed again if their reason proves doubtful
SPREAD: Final = (0.8, 1.2)  # factors of a delay: e-mails that failed together must not come back together
PAUSE: Final = 0.005  # seconds for which what was sent waits for more; after a crash it is sent again
UNSETTLED: Final = 13  # most e-mails per connection that are sent and not yet settled: a crash repeats them


@dataclass(eq=False)
class Settler:
    """Settles the e-mails of all workers. `wake_workers` is called when more may be sent."""

    store: Store
    settings: Settings
    metrics: Metrics
    evidence: Evidence
    leases: Leases
    wake_workers: Callable[[], None]
    _waiting: list[tuple[Lease, Outcome]] = field(default_factory=list)
    _in_flight: int = 0
    _together: asyncio.Task[None] | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def __post_init__(self) -> None:
        settings = self.settings
        self._schedule = Schedule(settings.mail_retry_minutes, settings.mail_give_up_hours)
        for result, verdicts in RESULTS.items():
            for verdict in verdicts:
                self.metrics.emails.labels(result, verdict.value)  # each series begins at 0: a first burst shows

    def count(self, email: OwedEmail, now: float) -> OwedEmail:
        """Count the last attempt if somebody else's e-mail was accepted after it."""
        return replace(email, tries=email.tries + 1) if self._has_witness(email, now) else email

    def _has_witness(self, email: OwedEmail, now: float) -> bool:
        if email.tried is None:
            return False
        return self.evidence.accepted_since(now - self.store.clock.seconds_since(email.tried), email.user_id)

    def without_attempt(self, email: OwedEmail, now: float) -> Outcome | None:
        """Return what becomes of an e-mail that must not be sent now; `None` if it may be."""
        if email.dead:  # its worker died before it was buried
            return Outcome(Verdict.PERMANENT, "dead", email.error or "")
        if reason := self._schedule.too_old(email, self.store.clock.seconds_since(email.at)):
            return Outcome(Verdict.PERMANENT, "14 days old", reason)
        if email.copies >= COPIES - 1 and not self._has_witness(email, now):
            status = "nobody else's e-mail was accepted yet"
            return Outcome(Verdict.HELD, status, email.error or "")
        return None

    @property
    def has_room(self) -> bool:
        return len(self._waiting) + self._in_flight < UNSETTLED * self.settings.smtp_connections

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
        """Settle until MongoDB confirms it, which token and id make safe however often and late it happens."""
        email = lease.email
        try:
            result, settle = self._settlement(lease, outcome)
            self._report(email, outcome, result, held=await _confirmed(settle, f"e-mail {email.id}"))
        except Exception:
            log.exception("e-mail %s: unexpected error; it stays leased until its lease ends", email.id)
        finally:
            self.leases.discard(lease)

    async def _settle_together(self) -> None:
        while self._waiting:
            await asyncio.sleep(PAUSE)
            batch, self._waiting = self._waiting, []
            self._in_flight = len(batch)
            try:
                await self._remove(batch)
            finally:
                self._in_flight = 0
                self.leases.difference_update(lease for lease, _ in batch)
                self.wake_workers()

    async def _remove(self, batch: Sequence[tuple[Lease, Outcome]]) -> None:
        emails = [lease.email for lease, _ in batch]
        try:
            held = await _confirmed(lambda: self.store.outbox.remove_together(emails), f"{len(batch)} e-mails")
        except Exception:  # noqa: BLE001 - because of one of them
            for lease, outcome in batch:
                await self._settle(lease, outcome)
            return
        if not held and len(batch) > 1:  # the reply does not tell which
            log.info("of %d e-mails, some lost their leases, or were settled before", len(batch))
        for lease, outcome in batch:
            self._report(lease.email, outcome, outcome.verdict.value, held=held or len(batch) > 1)

    async def settled(self) -> None:
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

    def _settlement(self, lease: Lease, outcome: Outcome) -> tuple[str, Callable[[], Awaitable[bool]]]:
        """Return the result for the e-mail, one of `RESULTS`, and the function that settles it."""
        outbox, email, verdict, error = self.store.outbox, lease.email, outcome.verdict, outcome.detail
        if verdict in DONE:  # one sent to a suppressed address shows that it takes mail
            lifts = email.suppression is not None and email.suppression.address == lease.mail.recipient
            return verdict.value, lambda: outbox.remove(email, lift=lifts and verdict is Verdict.SENT)
        if verdict in PUT_BACK:
            return "waiting", lambda: outbox.hold(email, None, error)
        after = self._after(lease, outcome)
        crashes = email.crashes + (verdict is Verdict.UNRENDERED)
        if after.given_up is not None:
            tried = outcome.tried or verdict is Verdict.PERMANENT
            tries = email.tries if email.dead else max(email.tries + tried, crashes)
            bounce = bounce_code(verdict, outcome.reply)
            return "dead", lambda: self.store.dead_mail.bury(email, tries, after.given_up, bounce)
        changes = {"waited": after.waited, "held": after.held, "copies": after.copies, "crashes": crashes}
        if verdict is Verdict.HELD:
            return "waiting", lambda: outbox.hold(email, after.delay, error, **changes)
        delay = after.delay * random.uniform(*SPREAD)
        return "retried", lambda: outbox.retry(email, delay, error, **changes)

    def _after(self, lease: Lease, outcome: Outcome) -> Next:
        email, age, now = lease.email, self.store.clock.seconds_since(lease.email.at), time.monotonic()
        stop = next(iter(self.evidence.stops_of(lease.mail)), None)
        match outcome.verdict:
            case Verdict.PERMANENT | Verdict.SUPPRESSED:
                return Next(given_up=outcome.detail)
            case Verdict.HELD:
                return self._schedule.hold(stop, email, age, now)
        return self._schedule.after_refusal(stop, email, outcome, age, now)

    def _report(self, email: OwedEmail, outcome: Outcome, result: str, *, held: bool) -> None:
        """Count and log an outcome, without the address and the server's words, which may hold one."""
        reason = outcome.verdict.value
        self.metrics.emails.labels(result, reason).inc()
        if outcome.verdict is Verdict.SENT:
            self.metrics.delivery.observe(self.store.clock.seconds_since(email.at))
        if outcome.verdict in {Verdict.CONFIGURATION, Verdict.HELD}:  # which the alarm reports
            return
        level = logging.INFO if outcome.verdict in DONE else logging.WARNING
        lost = "" if held else "; the lease was lost, or it was settled before"
        extra = {"email_id": email.id, "outcome": result, "reason": reason, **email.origin}
        words = email.id, email.key, result, reason, outcome.status, lost
        log.log(level, "e-mail %s %s: %s, %s (%s)%s", *words, extra=extra)

    async def lift(self, group: Group, since: float | None) -> None:
        """Let the e-mails fall due at once that waited for a stop, and those of its group tried since."""
        now, clock = time.monotonic(), self.store.clock.now()
        tried = None if since is None else clock - timedelta(seconds=now - since + MARGIN)
        try:
            await backlog.lift(self.store.outbox, f"{group}", tried, group.value or None)
        except StoreError as exc:
            log.warning("e-mails that may be sent again wait until they are due: %s", exc)

    async def revive(self, group: Group) -> None:
        """Owe those e-mails again that died lately as the mailbox was unknown, which is in doubt now."""
        where = "the mail server" if group == LINE else "a domain"
        log.error("%s calls so many mailboxes unknown that it is doubtful: such e-mails wait, and none is lost", where)
        try:
            revived = await self.store.dead_mail.revive(group.value, self.store.clock.now() - REVIVED)
        except StoreError as exc:
            log.warning("dead letters cannot be owed again: %s", exc)
        else:
            log.warning("%d dead letters of the last day are owed again", revived)


async def _confirmed(settle: Callable[[], Awaitable[bool]], what: str) -> bool:
    while True:
        try:
            return await settle()
        except Unavailable:
            log.warning("%s: MongoDB is unavailable, so it cannot be settled yet", what)
