"""What follows an attempt: the e-mail is sent, tried again, waiting or dead. It is settled, counted and logged."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final

from mail.replies import Outcome, Verdict
from mongo.dead_mail import DeadMail
from mongo.errors import Unavailable
from mongo.outbox import Outbox, OwedEmail
from ops.metrics import Metrics
from settings import Settings

log = logging.getLogger("notifier.delivery")

ALARM_INTERVAL: Final = 60.0
"""Seconds between two logged errors about a fault of the configuration."""
SPREAD: Final = (0.8, 1.2)
"""Factors between which a delay is spread: e-mails that failed together must not come back together."""


class Settlements:
    """Settles e-mails after an attempt."""

    def __init__(self, outbox: Outbox, dead_mail: DeadMail, settings: Settings, metrics: Metrics) -> None:
        self._outbox = outbox
        self._dead_mail = dead_mail
        self._settings = settings
        self._metrics = metrics
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

    def _settlement(self, email: OwedEmail, outcome: Outcome) -> tuple[str, Callable[[], Awaitable[bool]]]:
        """Return the result for the e-mail (sent, retried, dead or waiting), and the function that settles it."""
        outbox, tries = self._outbox, email.tries + 1
        match outcome.verdict:
            case Verdict.SENT:
                return "sent", lambda: outbox.remove(email)
            case Verdict.CONNECTION | Verdict.CONFIGURATION:
                return "waiting", lambda: outbox.retry(email, 0, email.tries, outcome.detail)
            case Verdict.PERMANENT:
                return "dead", lambda: self._dead_mail.bury(email, email.tries if email.dead else tries, outcome.detail)
            case Verdict.TRANSIENT | Verdict.AMBIGUOUS:
                delay = self._delay(email.tries)
                if self._waited(email.tries) + delay > 3600 * self._settings.mail_give_up_hours:
                    return "dead", lambda: self._dead_mail.bury(email, tries, f"Given up: {outcome.detail}")
                if outcome.verdict is Verdict.AMBIGUOUS:
                    delay = max(delay, 60 * self._settings.mail_ambiguous_minutes)
                spread = delay * random.uniform(*SPREAD)
                return "retried", lambda: outbox.retry(email, spread, tries, outcome.detail)

    def _delay(self, tries: int) -> float:
        """Return the seconds from the attempt after `tries` others to the next one (RFC 5321, section 4.5.4.1)."""
        schedule = self._settings.mail_retry_minutes
        return 60 * schedule[min(tries, len(schedule) - 1)]

    def _waited(self, tries: int) -> float:
        """Return the seconds for which an e-mail has been tried. An outage of the server does not count."""
        return sum(self._delay(n) for n in range(tries))

    def _report(self, email: OwedEmail, outcome: Outcome, result: str, *, held: bool) -> None:
        """Count and log an outcome, without the address and the server's words, which may hold one."""
        self._metrics.emails.labels(result, outcome.verdict.value).inc()
        if outcome.verdict is Verdict.SENT:
            self._metrics.delivery.observe(max(0.0, time.time() - email.at.timestamp()))
        if outcome.verdict is Verdict.CONFIGURATION:
            if time.monotonic() >= self._next_alarm:
                self._next_alarm = time.monotonic() + ALARM_INTERVAL
                log.error("e-mails wait until the SMTP settings are corrected; none is lost: %s", outcome.status)
            return
        log.log(
            logging.INFO if outcome.verdict is Verdict.SENT else logging.WARNING,
            "e-mail %s %s: %s, %s (%s)%s",
            *(email.id, email.key, result, outcome.verdict.value, outcome.status),
            "" if held else "; the lease was lost, or it was settled before",
            extra={
                "email_id": email.id,
                "outcome": result,
                "reason": outcome.verdict.value,
                "request_id": email.request_id,
            },
        )
