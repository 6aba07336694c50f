"""How fast to send: `SMTP_RATE`, and what the relay bears, which is found by feedback. Pure: the clock is an argument.

Being refused for speed is no failure. The relay is asked again after a pause, and from then on the pace is what it
took since sending began, the pause included. It grows again while nothing is refused.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from typing import Final

from mail.replies import Outcome, Stage, Verdict
from mail.stops import Mail

SAME: Final = 5
WITHIN: Final = 10.0
ENOUGH: Final = 5
"""So many recipients in a row refused with the same 4xx within so many seconds, after so many acceptances: too fast."""
KNOWN: Final = 2
"""So many if the words are known to be about the pace, after any number of acceptances."""
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 16.0
"""Seconds until the relay is asked again. They double each time that it refuses."""
BACK: Final = 0.9
"""Factor of the pace when it is too fast again."""
SLOWEST: Final = 0.25
"""Messages a second to which feedback slows down. At a slower relay, the pauses suffice."""
STEP: Final = 30
GROWTH: Final = 0.02
"""After each `STEP` acceptances, the pace grows by this part, then by twice as much, and so on."""
CATCH_UP: Final = 0.1
"""Seconds of the pace that a late timer may make up for."""
IDLE: Final = 10.0
"""Seconds without a message after which a new burst begins."""
AGAIN: Final = 3
"""E-mails that are refused once more although others got through meanwhile, and more often than they are accepted:
it was not speed, and the reply is the e-mails' own."""
OWN: Final = 3600.0
"""Seconds for which a reply counts as the e-mails' own, and for which a pace holds that is not refused again."""
PATIENCE: Final = 30.0
"""Seconds to wait for the outcome of the e-mail with which the relay is asked again."""
REPLIES: Final = 100
"""Different replies that are remembered."""


class Pace:
    """A token bucket whose `rate` follows the relay: messages a second, `math.inf` while nothing limits them."""

    def __init__(self, limit: float | None = None) -> None:
        self._limit = limit or math.inf
        self.rate = self._limit
        self.reply = ""
        """The reply that limits the pace."""
        self.misjudged_since: float | None = None
        """Since when refusals were taken for the e-mails' own that turned out to be about the pace."""
        self._next = -math.inf
        self._last = -math.inf
        self._burst_began = 0.0
        self._accepted = 0
        self._at_first = 0
        self._since_growth = 0
        self._growth = GROWTH
        self._pause = 0.0
        self._paused_at = -math.inf
        self._resume_at = -math.inf
        self._asked_until = -math.inf
        self._same: OrderedDict[str, deque[tuple[float, int, str]]] = OrderedDict()
        self._own: OrderedDict[str, float] = OrderedDict()
        self._suspects: OrderedDict[str, int] = OrderedDict()
        self._suspect = ""
        self._taken = 0
        self._again_refused = 0
        self._again_accepted = 0

    @property
    def limited(self) -> bool:
        """Whether the relay has been refusing for speed."""
        return self.rate < self._limit

    def explains(self, reply: str) -> bool:
        """Return whether a refusal is no surprise: the relay is being asked again, or said so before of the pace."""
        return self._pause > 0 or (self.limited and reply == self.reply)

    def place(self, mail: Mail) -> int | None:
        """Return the place in the queue of an e-mail that was refused for speed; `None`, the last.

        The one that began a pause is tried again first: if it was speed, it is accepted now. If it is not, it follows
        the next one: if that is accepted, and it is refused once more, the reply is its own.
        """
        if mail.id != self._suspect:
            return None
        return int(self._pause > 2 * FIRST_PAUSE)

    def wait(self, now: float) -> float:
        """Return the seconds until the next message may begin."""
        return max(0.0, self._next - now, self._resume_at - now, self._asked_until - now)

    def take(self, now: float) -> None:
        """Begin a message."""
        if now - self._last > IDLE and not self._pause:
            self._burst_began, self._accepted, self._at_first = now, 0, 0
        self._last = now
        if self.limited and now - self._paused_at > OWN:
            self._forget()
        if self._pause:
            self._asked_until = now + PATIENCE
        if self.rate < math.inf:
            self._next = max(self._next, now - CATCH_UP) + 1 / self.rate

    def finish(self) -> None:
        """Note that a message ended without saying anything about the pace."""
        self._asked_until = -math.inf

    def accepted(self, mail: Mail, began: float, now: float) -> None:
        """Note that an e-mail whose sending began then was accepted."""
        self.finish()
        self._accepted += 1
        self._at_first += mail.fresh
        self._taken += 1
        self._same.clear()
        self._again_accepted += self._suspects.pop(mail.id, None) is not None
        if self._pause and began > self._paused_at:
            self._go_on(now)
        elif self.limited and not self._pause:
            self._grow()

    def _go_on(self, now: float) -> None:
        """Set the pace to what was accepted in the burst, the first time and after long pauses; else slow it down."""
        measured = self._accepted / max(now - self._burst_began, 0.001)
        if self.limited:
            measured = min(BACK * self.rate, measured) if self._pause > 2 * FIRST_PAUSE else BACK * self.rate
        self.rate = min(self._limit, max(measured, SLOWEST))
        self._pause, self._burst_began, self._accepted, self._at_first = 0.0, now, 0, 0
        self._since_growth, self._growth, self._next = 0, GROWTH, now + 1 / self.rate

    def _grow(self) -> None:
        self._since_growth += 1
        if self._since_growth >= STEP:
            self.rate = min(self._limit, self.rate * (1 + self._growth))
            self._since_growth, self._growth = 0, min(1.0, 2 * self._growth)

    def refused(self, mail: Mail, outcome: Outcome, began: float, now: float) -> bool:
        """Note a 4xx; return whether it was for speed."""
        self.finish()
        reply = outcome.status
        if not self._is_speed(mail, outcome, now):
            return False
        if began <= self._paused_at:  # it was under way already
            return True
        if self._is_its_own(mail, reply, now):
            return False
        self.reply = reply
        self._suspect = self._suspect if self._pause else mail.id
        self._pause = min(max(FIRST_PAUSE, 2 * self._pause), LONGEST_PAUSE)
        self._paused_at, self._resume_at = now, now + self._pause
        return True

    def _is_speed(self, mail: Mail, outcome: Outcome, now: float) -> bool:
        """Return whether others got the same reply, after many were accepted; or one other, if the words say so.

        At RCPT it may be greylisting: of all first attempts, or of those to a domain. One recipient alone may get any
        words from its own server.
        """
        at_rcpt, reply = outcome.stage is Stage.RCPT, outcome.status
        known = outcome.verdict is Verdict.TOO_FAST
        if self._own.get(reply, -math.inf) > now:
            return False
        if self.explains(reply) and reply == self.reply:
            return True
        seen = self._same.setdefault(reply, deque(maxlen=4 * SAME))
        seen.append((now, hash(mail.user), mail.domain))
        for memory in (self._same, self._own):
            while len(memory) > REPLIES:
                memory.popitem(last=False)
        recent = [(who, domain) for at, who, domain in seen if now - at <= WITHIN]
        if at_rcpt and len({domain for _, domain in recent}) == 1:
            return False
        enough = known or (self._at_first if at_rcpt else self._accepted) >= ENOUGH
        if not enough or len({who for who, _ in recent}) < (KNOWN if known else SAME):
            return False
        self.misjudged_since = now - WITHIN
        return True

    def _is_its_own(self, mail: Mail, reply: str, now: float) -> bool:
        """Return whether a reply is not for speed, as too many e-mails get it again although others got through."""
        if self._suspects.get(mail.id, self._taken) < self._taken:
            self._again_refused += 1
        self._suspects[mail.id] = self._taken
        if len(self._suspects) > REPLIES:
            self._suspects.popitem(last=False)
        if self._again_refused < max(AGAIN, self._again_accepted + 1):
            return False
        self._own[reply] = now + OWN
        self._forget()
        return True

    def _forget(self) -> None:
        """Go on as before the first refusal."""
        self.rate, self._pause, self._resume_at, self._next = self._limit, 0.0, -math.inf, -math.inf
        self._again_refused = self._again_accepted = 0
        self._suspects.clear()
