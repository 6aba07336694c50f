"""What the mail server bears, found by feedback: connections, messages on each, messages a second. Pure."""

import math
from collections import OrderedDict, deque
from typing import Final

from mail.replies import Outcome, Stage, Verdict
from mail.stops import Mail

AT_ONCE: Final = 5  # connections opened without waiting for acceptances, once a first login has worked
REFUSALS: Final = 8  # refused connections in a row, while others are open, that count as the limit
ONE_MORE: Final = (0.5, 60.0)  # seconds until one connection more than the limit is tried; they double up to the second
SPARE: Final = 2  # idle connections kept for long, unless the server admits no more than are open
MESSAGES: Final = 100  # on a connection, unless the server bears fewer

SAME: Final = 5  # recipients in a row refused with the same 4xx: that is speed
WITHIN: Final = 10.0  # seconds between the first and the last of them
ENOUGH: Final = 5  # acceptances that must come before them
KNOWN: Final = 2  # recipients that suffice if the words are known to be about the pace, after any number of acceptances
PAUSE: Final = (1.0, 16.0)  # seconds until the relay is asked again; they double up to the second
BACK: Final = 0.9  # factor of the pace when it is too fast again
SLOWEST: Final = 0.25  # messages a second to which feedback slows down; at a slower relay, the pauses suffice
STEP: Final = 30  # acceptances after which the pace grows
GROWTH: Final = 0.02  # fraction by which it grows at first; twice as much each further time
CATCH_UP: Final = 0.1  # seconds of the pace that a late timer may make up for
IDLE: Final = 10.0  # seconds without a message after which a new burst begins
AGAIN: Final = 3  # e-mails refused again while others got through, which show that it was not speed
OWN: Final = 3600.0  # seconds for which a reply counts as that, and for which a pace holds that is not refused again
PATIENCE: Final = 30.0  # seconds to wait for the outcome of the e-mail with which the relay is asked again
REMEMBERED: Final = 100  # refusals, and e-mails refused for speed


class Limits:
    """The limits of connections and of messages on each. The pool counts how many are `open` and `opening`.

    A connection proves itself by its first message. One that is refused before that is one too many, or leads to a
    broken machine. Several in a row show a limit. If a later one proves itself all the same, it was a machine.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.open = self.opening = 0
        self.allowed = 1  # open at once: one until the first login has worked
        self.found = False  # whether the server has refused a further one
        self.messages = MESSAGES
        self._most_borne = self._borne = 0
        self._refused = 0
        self._too_many = math.inf
        self._pause = self._retry_at = 0.0
        self._one_more = False

    def wait(self, now: float) -> float | None:
        """Return the seconds until another connection may be opened; `None` if that depends on those that are open."""
        total = self.open + self.opening
        if total < self.allowed:
            return 0.0
        if self.found and total < self._most and not self.opening:
            return max(0.0, self._retry_at - now)
        return None

    @property
    def growing(self) -> bool:
        """Whether an acceptance lets another connection be opened."""
        return not self.found and self.allowed < self._most

    def spare(self, idle: int) -> int:
        """Return how many of the idle connections other processes may need more than this one."""
        return idle if self.found else max(0, idle - SPARE)

    def opened(self, now: float) -> None:
        if not self.found:
            self.allowed = max(self.allowed, min(AT_ONCE, self._most))
        if self.open > self.allowed:
            self._one_more, self._retry_at = True, now + self._pause

    def accepted(self) -> None:
        if not self.found:
            self.allowed = min(self.allowed + 1, self._most)

    def proved(self, number: int) -> None:
        """Note that the first message on a connection was accepted; `number` connections have delivered now."""
        self._refused = 0
        if number >= self._too_many:  # it was no limit
            self.found, self._pause, self._too_many = False, 0.0, math.inf
        elif number > self.allowed:
            self.allowed, self._pause = number, 0.0

    def refused(self, number: int, now: float) -> None:
        """Note that a connection, the `number`-th, was refused before it had proved itself."""
        self._refused += 1
        self._too_many = min(self._too_many, number)
        if not self.found and self._refused < REFUSALS:
            return
        self.found, self.allowed = True, max(1, number - 1)
        if now >= self._retry_at or self._one_more:  # else it was under way already
            self._one_more = False
            self._pause = _doubled(self._pause, *ONE_MORE)
            self._retry_at = now + self._pause

    def forget(self) -> None:
        """Begin anew, as the server cannot be reached at all: what looked like its limit was an outage."""
        if self.found:
            self.found, self.allowed = False, min(AT_ONCE, self._most)
        self._refused, self._pause, self._too_many = 0, 0.0, math.inf

    def bore(self, messages: int) -> None:
        self._most_borne = max(self._most_borne, messages)

    def worn_out(self, messages: int) -> None:
        """Note that a connection refused, after `messages`, one that another took. Twice in a row, it is a limit."""
        if messages == self._borne == self._most_borne:
            self.messages = messages
        self._borne = messages


class Pace:
    """A token bucket whose `rate` follows the relay: messages a second, `math.inf` while nothing limits them.

    A relay that refuses for speed is asked again after a pause. From then on the pace is what it took since sending
    began, the pause included. It grows again while nothing is refused.
    """

    def __init__(self, limit: float | None = None) -> None:
        self._limit = self.rate = limit or math.inf
        self._reply = ""  # the one that limits the pace
        self._next = self._last = -math.inf
        self._burst_began = 0.0
        self._accepted = self._at_first = 0  # in this burst, and of these at the first attempt
        self._since_growth, self._growth = 0, GROWTH
        self._pause = 0.0
        self._paused_at = self._asked_until = -math.inf
        self._refusals: deque[tuple[str, float, Mail]] = deque(maxlen=REMEMBERED)  # since the last acceptance
        self._own: dict[str, float] = {}
        self._suspects: OrderedDict[str, int] = OrderedDict()
        self._suspect = ""
        self._taken = self._again_refused = self._again_accepted = 0

    @property
    def limited(self) -> bool:
        return self.rate < self._limit

    @property
    def paused(self) -> bool:
        return self._pause > 0

    def knows(self, reply: str) -> bool:
        return reply == self._reply and (self.paused or self.limited)

    def place(self, mail: Mail) -> int | None:
        """Return the place in the queue of an e-mail refused for speed; `None`, the last. The reply may be its own."""
        return int(self._has_paused_long) if mail.id == self._suspect else None

    @property
    def _has_paused_long(self) -> bool:
        return self._pause > 2 * PAUSE[0]

    def wait(self, now: float) -> float:
        return max(0.0, self._next - now, self._paused_at + self._pause - now, self._asked_until - now)

    def take(self, now: float) -> None:
        if now - self._last > IDLE and not self._pause:
            self._begin_burst(now)
        self._last = now
        if self.limited and now - self._paused_at > OWN:
            self._forget()
        if self._pause:
            self._asked_until = now + PATIENCE
        self._next = max(self._next, now - CATCH_UP) + 1 / self.rate

    def _begin_burst(self, now: float) -> None:
        self._burst_began, self._accepted, self._at_first = now, 0, 0

    def finish(self) -> None:
        """Note that a message ended without saying anything about the pace."""
        self._asked_until = -math.inf

    def accepted(self, mail: Mail, began: float, now: float) -> None:
        self.finish()
        self._accepted += 1
        self._at_first += mail.fresh
        self._taken += 1
        self._refusals.clear()
        self._again_accepted += self._suspects.pop(mail.id, None) is not None
        if self._pause and began > self._paused_at:
            self._go_on(now)
        elif self.limited and not self._pause:
            self._grow()

    def _go_on(self, now: float) -> None:
        """Set the pace to what was accepted in the burst, the first time and after long pauses; else slow it down."""
        measured = self._accepted / max(now - self._burst_began, 0.001)
        if self.limited:
            measured = min(BACK * self.rate, measured) if self._has_paused_long else BACK * self.rate
        self.rate = min(self._limit, max(measured, SLOWEST))
        self._begin_burst(now)
        self._pause, self._since_growth, self._growth, self._next = 0.0, 0, GROWTH, now + 1 / self.rate

    def _grow(self) -> None:
        self._since_growth += 1
        if self._since_growth >= STEP:
            self.rate = min(self._limit, self.rate * (1 + self._growth))
            self._since_growth, self._growth = 0, min(1.0, 2 * self._growth)

    def refused(self, mail: Mail, outcome: Outcome, began: float, now: float) -> bool:
        """Note a 4xx; return whether it was for speed."""
        self.finish()
        reply = outcome.status
        if not self.knows(reply) and not self._is_speed(mail, outcome, now):
            return False
        if began <= self._paused_at:  # it was under way already
            return True
        if self._is_its_own(mail, reply, now):
            return False
        self._reply = reply
        self._suspect = self._suspect if self._pause else mail.id
        self._pause = _doubled(self._pause, *PAUSE)
        self._paused_at = now
        return True

    def _is_speed(self, mail: Mail, outcome: Outcome, now: float) -> bool:
        """Return whether others got the same reply after many were accepted, or one other if its words say so."""
        if self._own.get(outcome.status, -math.inf) > now:
            return False
        self._refusals.append((outcome.status, now, mail))
        same = [other for reply, at, other in self._refusals if reply == outcome.status and now - at <= WITHIN]
        known, at_rcpt = outcome.verdict is Verdict.TOO_FAST, outcome.stage is Stage.RCPT
        if at_rcpt and len({other.domain for other in same}) == 1:  # it may be greylisting by a domain
            return False
        # At RCPT it may be greylisting of all first attempts.
        enough = known or (self._at_first if at_rcpt else self._accepted) >= ENOUGH
        return enough and len({other.user for other in same}) >= (KNOWN if known else SAME)

    def _is_its_own(self, mail: Mail, reply: str, now: float) -> bool:
        """Return whether a reply is not for speed, as too many e-mails get it again although others got through."""
        if self._suspects.get(mail.id, self._taken) < self._taken:
            self._again_refused += 1
        self._suspects[mail.id] = self._taken
        if len(self._suspects) > REMEMBERED:
            self._suspects.popitem(last=False)
        if self._again_refused < max(AGAIN, self._again_accepted + 1):
            return False
        self._own = {other: until for other, until in self._own.items() if until > now} | {reply: now + OWN}
        self._forget()
        return True

    def _forget(self) -> None:
        self.rate, self._pause, self._next = self._limit, 0.0, -math.inf
        self._again_refused = self._again_accepted = 0
        self._suspects.clear()


def _doubled(pause: float, first: float, longest: float) -> float:
    return min(max(first, 2 * pause), longest)
