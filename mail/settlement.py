"""What follows an attempt: the e-mail is sent, tried again, waiting or dead. It is settled, counted and logged."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from config.address import envelope_address
from mail.replies import Outcome
from mail.suppression import bounce_code
from mail.verdicts import AFTER, Verdict
from mongo.errors import Unavailable
from mongo.owed import OwedEmail
from mongo.suppression import Bounce
from ops.metrics import Metrics
from settings import Settings
from store import Store

log = logging.getLogger("notifier.delivery")

ALARM_INTERVAL: Final = 60.0
"""Seconds between two logged errors about a fault of the configuration."""
ALARMS: Final = {
    Verdict.CONFIGURATION: "e-mails wait until the SMTP settings or the account are corrected; none is lost: %s",
    Verdict.UNCLEAR: "the mail server refuses e-mails for a reason that may be ours; see `dead` and `mail`: %s",
}
RESULTS: Final = {
    "sent": (Verdict.SENT,),
    "retried": (Verdict.TRANSIENT, Verdict.UNCLEAR, Verdict.AMBIGUOUS),
    "dead": (Verdict.PERMANENT, Verdict.SUPPRESSED, Verdict.TRANSIENT, Verdict.UNCLEAR, Verdict.AMBIGUOUS),
    "waiting": (Verdict.CONNECTION, Verdict.CONFIGURATION),
    "muted": (Verdict.MUTED,),
    "read": (Verdict.READ,),
}
"""What becomes of an e-mail after an attempt, and by which verdicts."""
COPIES: Final = 3
"""Messages at the most that the server may have accepted of one e-mail, without having said so."""
SPREAD: Final = (0.8, 1.2)
"""Factors between which a delay is spread: e-mails that failed together must not come back together."""


class Settlements:
    """Settles e-mails after an attempt."""

    def __init__(self, store: Store, settings: Settings, metrics: Metrics) -> None:
        self._clock = store.clock
        self._outbox = store.outbox
        self._dead_mail = store.dead_mail
        self._settings = settings
        self._metrics = metrics
        for result, verdicts in RESULTS.items():
            for verdict in verdicts:
                metrics.emails.labels(result, verdict.value)  # each series begins at 0, so that a first burst shows
        self._next_alarm = 0.0

    async def settle(self, email: OwedEmail, outcome: Outcome) -> None:
        """Settle until MongoDB confirms it. Token and id make that safe however often and late it happens."""
        result, settle = self._settlement(email, outcome)
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

    async def settle_together(self, emails: Sequence[tuple[OwedEmail, Outcome]]) -> None:
        """Settle what was sent or is not wanted, in shared updates; otherwise as `settle`."""
        while True:
            try:
                held = await self._outbox.remove_together([email for email, _ in emails])
            except Unavailable:
                log.warning("%d e-mails: MongoDB is unavailable, so they cannot be settled yet", len(emails))
            except Exception:  # noqa: BLE001 - because of one of them
                for email, outcome in emails:
                    await self.settle(email, outcome)
                return
            else:
                for email, outcome in emails:
                    self._report(email, outcome, outcome.verdict.value, held=held)
                return

    def _settlement(self, email: OwedEmail, outcome: Outcome) -> tuple[str, Callable[[], Awaitable[bool]]]:
        """Return the result for the e-mail, one of `RESULTS`, and the function that settles it."""
        outbox, tries, copies = self._outbox, email.tries + 1, email.copies
        error, spread = outcome.detail, random.uniform(*SPREAD)
        if outcome.verdict is Verdict.AMBIGUOUS:
            copies += 1
        delay = self._delay(email.tries)
        match outcome.verdict:
            case Verdict.SENT | Verdict.MUTED | Verdict.READ:
                return outcome.verdict.value, lambda: outbox.remove(email)
            case Verdict.PERMANENT | Verdict.SUPPRESSED:
                if outcome.verdict is Verdict.SUPPRESSED:
                    tries = email.tries  # this was no attempt
                return "dead", lambda: self._bury(email, tries, error, _bounce(email, outcome))
            case Verdict.CONNECTION | Verdict.CONFIGURATION:
                # A refusal after MAIL may be for the sake of this e-mail, which must not be the next probe again.
                wait = self._delay(0) * spread if outcome.stage in AFTER else 0.0
                return "waiting", lambda: outbox.retry(email, wait, error, tries=email.tries, copies=copies)
            case Verdict.AMBIGUOUS if copies >= COPIES:
                return "dead", lambda: self._bury(email, tries, _probably(copies, error))
            case Verdict.AMBIGUOUS:
                delay = max(delay, 60 * self._settings.mail_ambiguous_minutes)
        if self._waited(email.tries) + delay > 3600 * self._settings.mail_give_up_hours:
            return "dead", lambda: self._bury(
                email, tries, _probably(copies, error) if copies else f"Given up: {error}"
            )
        return "retried", lambda: outbox.retry(email, delay * spread, error, tries=tries, copies=copies)

    def _bury(self, email: OwedEmail, tries: int, error: str, bounce: Bounce | None = None) -> Awaitable[bool]:
        return self._dead_mail.bury(email, email.tries if email.dead else tries, error, bounce)

    def _delay(self, tries: int) -> float:
        """Return the seconds from the attempt after `tries` others to the next one (RFC 5321, section 4.5.4.1)."""
        schedule = self._settings.mail_retry_minutes
        return 60 * schedule[min(tries, len(schedule) - 1)]

    def _waited(self, tries: int) -> float:
        """Return the seconds for which an e-mail has been tried. An outage of the server does not count."""
        schedule = self._settings.mail_retry_minutes
        beyond = max(0, tries - len(schedule))  # somebody may have set `tries` to millions
        return 60 * (sum(schedule[:tries]) + beyond * schedule[-1])

    def _report(self, email: OwedEmail, outcome: Outcome, result: str, *, held: bool) -> None:
        """Count and log an outcome, without the address and the server's words, which may hold one."""
        self._metrics.emails.labels(result, outcome.verdict.value).inc()
        if outcome.verdict is Verdict.SENT:
            self._metrics.delivery.observe(self._clock.seconds_since(email.at))
        if outcome.verdict in ALARMS and time.monotonic() >= self._next_alarm:
            self._next_alarm = time.monotonic() + ALARM_INTERVAL
            log.error(ALARMS[outcome.verdict], outcome.status)
        if outcome.verdict is Verdict.CONFIGURATION:
            return
        log.log(
            logging.INFO if outcome.verdict in {Verdict.SENT, Verdict.MUTED, Verdict.READ} else logging.WARNING,
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


def _bounce(email: OwedEmail, outcome: Outcome) -> Bounce | None:
    code = bounce_code(outcome)
    return Bounce(envelope_address(email.address), code) if code else None


def _probably(copies: int, error: str) -> str:
    times = f"{copies} times" if copies > 1 else "once"
    return f"Probably delivered: the server had the message {times}, and did not say that it accepted it. {error}"
