"""Tells operators what has stopped: once a minute for an hour, then once an hour."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Final

from mail.evidence import Evidence
from mail.stops import Group, Stop

log = logging.getLogger("notifier.delivery")

INTERVAL: Final = 0.5
"""Seconds between two looks."""
PATIENCE: Final = 5.0
"""Seconds for which a stop may be a passing trouble, unless the server refuses by 5xx."""
OFTEN: Final = 60.0
SELDOM: Final = 3600.0
"""Seconds between two alarms about the same stop, in its first hour and later."""
WAITING: Final = {
    "line": "no e-mail gets through, so all wait, and none is lost; see the SMTP settings and the account",
    "kind": "no e-mail of this kind gets through, so they wait, and none is lost; see its template",
    "domain": "no e-mail to a domain gets through, so those to it wait",
}


class Alarms:
    """Logs an error for each stop."""

    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        self._next: dict[Group, float] = {}

    async def run(self) -> None:
        """Look at the stops, for ever."""
        while True:
            self.tell(time.monotonic())
            await asyncio.sleep(INTERVAL)

    def tell(self, now: float) -> None:
        """Log what is due."""
        self._next = {group: due for group, due in self._next.items() if group in self._evidence.stops}
        for group, stop in self._evidence.stops.items():
            age = now - stop.began
            if now >= self._next.get(group, 0.0) and (age >= PATIENCE or stop.firm):
                self._next[group] = now + (OFTEN if age < SELDOM else SELDOM)
                self._log(stop, age, now)

    def _log(self, stop: Stop, age: float, now: float) -> None:
        log.error(
            "%s stopped %.0f s ago: %s: %s; next probe in %.0f s",
            *("a domain" if stop.group.name == "domain" else stop.group, age, WAITING[stop.group.name]),
            *(stop.reply, stop.wait(now)),
        )
