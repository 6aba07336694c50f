"""The worker that joins the store and the mailer: claim, send, settle, and when to try again.

Any number of processes run it. What they share lies in MongoDB; a process that dies lets its leases run out, and
another takes its e-mails over. Delivery is at least once: between the server's 250 and the settling, a death
sends an e-mail again, with the same `Message-ID`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, cast

from mailer import Letter, Mailer, Outcome, Verdict
from metrics import Metrics
from outbox import Mail, Outbox
from settings import Settings
from store import Unavailable
from templates import Content, RenderError, Templates

log = logging.getLogger("notifier.delivery")

CLAIM_USERS: Final = 16
"""Users whose e-mails are claimed at once; as many again may be waiting, so that the connections never idle."""
POLL: Final = 1.0
"""Seconds between two looks for what falls due, or was owed by another process; a fifth more or less each time."""
STOP_GRACE: Final = 2.5
SETTLE_GRACE: Final = 1.0
"""Seconds that conversations under way are given when the process stops, and then the settling of the others."""
ALARM_INTERVAL: Final = 60.0
"""Seconds between two logged errors about one fault of the configuration."""


@asynccontextmanager
async def running_delivery(
    outbox: Outbox, settings: Settings, owed: asyncio.Event, metrics: Metrics
) -> AsyncIterator[Delivery]:
    """Deliver in the background; at the end, finish or give back what is under way."""
    mailer = Mailer(settings)
    metrics.watch(metrics.connections, lambda: mailer.connections)
    metrics.watch(metrics.breaker, lambda: bool(mailer.breaker.fault) and not mailer.breaker.closed)
    delivery = Delivery(outbox, mailer, settings, owed, metrics)
    run, keeper = asyncio.create_task(delivery.run()), asyncio.create_task(delivery.keep_leases())
    try:
        yield delivery
    finally:
        await delivery.stop(run, keeper)
        await mailer.close()


class Delivery:
    """Delivers what is owed. `owed` is set by whoever owes an e-mail in this process."""

    def __init__(
        self, outbox: Outbox, mailer: Mailer, settings: Settings, owed: asyncio.Event, metrics: Metrics
    ) -> None:
        self._metrics = metrics
        self._outbox = outbox
        self._mailer = mailer
        self._templates = Templates(settings.templates_dir)
        self._settings = settings
        self._owed = owed
        self._slots = asyncio.Semaphore(settings.smtp_connections)
        self._stopped = asyncio.Event()
        self._held: dict[asyncio.Task[None], Mail] = {}
        self._talking: set[asyncio.Task[None]] = set()
        self._lease_ends: dict[str, float] = {}
        self._next_alarm = 0.0

    async def run(self) -> None:
        """Claim and deliver, until stopped."""
        while not self._stopped.is_set():
            try:
                await self._turn()
            except Exception:
                log.exception("unexpected error: e-mails wait")
                await self._sleep(POLL)

    async def _turn(self) -> None:
        busy = len(self._held) >= CLAIM_USERS or not self._mailer.breaker.closed
        if self._held and busy:
            await asyncio.wait(self._held, return_when=asyncio.FIRST_COMPLETED)
        elif wait := self._mailer.breaker.wait():
            await self._sleep(wait)
        elif not await self._claim():
            await self._pause()

    async def keep_leases(self) -> None:
        """Extend what is held long before it runs out, for ever."""
        while True:
            await asyncio.sleep(self._settings.lease / 3)
            now = time.monotonic()
            # What has run out may be another's by now, and must not look as if it were ours.
            mails = [mail for mail in self._held.values() if self._lease_ends[mail.id] > now]
            if not mails:
                continue
            try:
                await self._outbox.extend(mails, self._settings.lease)
            except Exception as exc:  # noqa: BLE001 - the lease is still long: the next turn may succeed
                log.warning("the leases could not be extended: %s", type(exc).__name__)
            else:
                ends = dict.fromkeys((mail.id for mail in mails), now + self._settings.lease)
                self._lease_ends.update((id_, end) for id_, end in ends.items() if id_ in self._lease_ends)

    async def stop(self, run: asyncio.Task[None], keeper: asyncio.Task[None]) -> None:
        """Stop claiming; let the conversations under way end, for a while; give everything else back."""
        self._stopped.set()
        self._owed.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_GRACE):
                # A claim under way brings new tasks; one that is cancelled before it began would give nothing back.
                while pending := {task for task in (run, *self._held) if not task.done()}:
                    await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in {run, keeper, *self._held}:
            task.cancel()
        await asyncio.wait({run, keeper, *self._held}, timeout=SETTLE_GRACE)

    async def _claim(self) -> bool:
        """Claim what is due, if anything, and start to deliver it."""
        self._owed.clear()
        users = CLAIM_USERS if self._mailer.breaker.closed else 1
        ends = time.monotonic() + self._settings.lease  # counted from before the request: never later than the store's
        try:
            mails = await self._outbox.claim(users, self._settings.lease)
        except Unavailable:
            log.warning("MongoDB is unavailable: no e-mails can be claimed")
            return False
        except Exception:
            log.exception("unexpected error: no e-mails can be claimed")
            return False
        for mail in mails:
            self._lease_ends[mail.id] = ends
            task = asyncio.create_task(self._deliver(mail))
            self._held[task] = mail
            task.add_done_callback(self._forget)
        return bool(mails)

    def _forget(self, task: asyncio.Task[None]) -> None:
        mail = self._held.pop(task)
        self._talking.discard(task)
        self._lease_ends.pop(mail.id, None)

    async def _pause(self) -> None:
        """Wait for the next poll, or until something is owed; meanwhile let go of idle connections."""
        await self._mailer.close_idle()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(POLL * random.uniform(0.8, 1.2)):
                await self._owed.wait()

    async def _sleep(self, seconds: float) -> None:
        """Sleep, but wake up to stop."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopped.wait()

    async def _deliver(self, mail: Mail) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        try:
            outcome = await self._send(mail, task)
        except asyncio.CancelledError:
            verdict = Verdict.AMBIGUOUS if task in self._talking else Verdict.CONNECTION
            outcome = Outcome(verdict, "stopped", "The service was stopped.")
        except Exception:
            # A fault of ours must neither lose the e-mail nor send it for ever.
            log.exception("e-mail %s: unexpected error", mail.id)
            outcome = Outcome(Verdict.TRANSIENT, "internal error", "The service failed to send it.")
        if outcome is not None:
            await self._settle(mail, outcome)

    async def _send(self, mail: Mail, task: asyncio.Task[None]) -> Outcome | None:
        if mail.dead:  # by a worker that died before it was buried
            return Outcome(Verdict.PERMANENT, "dead", mail.error or "")
        async with self._slots:
            if self._stopped.is_set():
                return Outcome(Verdict.CONNECTION, "stopped", "The service was stopped.")
            if time.monotonic() >= self._lease_ends[mail.id]:  # we were frozen, or MongoDB was: it is another's now
                return None
            self._talking.add(task)
            return await self._mailer.send(Letter(mail.id, mail.at, mail.email, self._content(mail)))

    def _content(self, mail: Mail) -> Content:
        """Say what the templates make of it; where they fail, what it says without any."""
        try:
            return self._templates.render(mail.fields())
        except RenderError as exc:
            reason = type(exc.__cause__).__name__  # its message may hold data
            log.warning("e-mail %s: its template failed, it is sent plainly: %s: %s", mail.id, exc, reason)
            return Content(mail.key, mail.key)

    async def _settle(self, mail: Mail, outcome: Outcome) -> None:
        """Settle until MongoDB confirms it. Token and id make it safe however often and late it is done."""
        what, settle = self._settlement(mail, outcome)
        while True:
            try:
                held = await settle()
            except Unavailable:
                log.warning("e-mail %s: MongoDB is unavailable, it cannot be settled yet", mail.id)
            except Exception:
                log.exception("e-mail %s: unexpected error, it is left to its lease", mail.id)
                return
            else:
                self._report(mail, outcome, what, held=held)
                return

    def _settlement(self, mail: Mail, outcome: Outcome) -> tuple[str, Callable[[], Awaitable[bool]]]:
        """Return what this outcome makes of the e-mail (sent, retried, dead or waiting), and how it is settled."""
        outbox, tries = self._outbox, mail.tries + 1
        match outcome.verdict:
            case Verdict.SENT:
                return "sent", lambda: outbox.settle_sent(mail)
            case Verdict.CONNECTION | Verdict.CONFIGURATION:
                return "waiting", lambda: outbox.settle_retry(mail, 0, mail.tries, outcome.detail)
            case Verdict.PERMANENT:
                return "dead", lambda: outbox.settle_dead(mail, mail.tries if mail.dead else tries, outcome.detail)
            case Verdict.TRANSIENT | Verdict.AMBIGUOUS:
                delay = self._delay(mail.tries)
                if self._waited(mail.tries) + delay > 3600 * self._settings.mail_give_up_hours:
                    return "dead", lambda: outbox.settle_dead(mail, tries, f"Given up: {outcome.detail}")
                if outcome.verdict is Verdict.AMBIGUOUS:
                    delay = max(delay, 60 * self._settings.mail_ambiguous_minutes)
                spread = delay * random.uniform(0.8, 1.2)  # what failed together must not come back together
                return "retried", lambda: outbox.settle_retry(mail, spread, tries, outcome.detail)

    def _delay(self, tries: int) -> float:
        """Return the seconds from the attempt after `tries` others to the next (RFC 5321, section 4.5.4.1)."""
        schedule = self._settings.mail_retry_minutes
        return 60 * schedule[min(tries, len(schedule) - 1)]

    def _waited(self, tries: int) -> float:
        """Return the seconds that an e-mail has been tried for; an outage of the server does not count."""
        return sum(self._delay(n) for n in range(tries))

    def _report(self, mail: Mail, outcome: Outcome, what: str, *, held: bool) -> None:
        """Count and log an outcome: no address, and nothing of the server's text, which may hold one."""
        self._metrics.emails.labels(what, outcome.verdict.value).inc()
        if outcome.verdict is Verdict.SENT:
            self._metrics.delivery.observe(max(0.0, time.time() - mail.at.timestamp()))
        if outcome.verdict is Verdict.CONFIGURATION:
            if time.monotonic() < self._next_alarm:
                return
            self._next_alarm = time.monotonic() + ALARM_INTERVAL
            log.error("no e-mail is sent until the SMTP settings are mended, and none is lost: %s", outcome.status)
            return
        log.log(
            logging.INFO if outcome.verdict is Verdict.SENT else logging.WARNING,
            "e-mail %s %s: %s, %s (%s)%s",
            *(mail.id, mail.key, what, outcome.verdict.value, outcome.status),
            "" if held else "; it was settled before, or is another's now",
            extra={
                "email_id": mail.id,
                "outcome": what,
                "reason": outcome.verdict.value,
                "request_id": mail.request_id,
            },
        )
