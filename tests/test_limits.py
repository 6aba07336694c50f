"""The limits of a relay, in virtual time: connections, messages on each, messages a second; and a broken machine."""

from __future__ import annotations

import random

import pytest

from mail.limits import MESSAGES, REFUSALS, Limits
from mail.replies import Outcome, Stage
from mail.stops import Mail
from tests.virtual import RTT, SENT, Line, World, broken, delays, refusal

HOUR = 3600.0
START = 1000.0


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(20201214)


def recipient(n: int) -> str:
    """Return one of many recipients at thirty domains."""
    return f"u{n}@d{n % 30}.example"


def accept(_mail: Mail, _now: float, _line: Line) -> None:
    """Accept everything."""


@pytest.mark.parametrize("admitted", [2, 3])
def test_a_limit_of_connections_costs_little(monkeypatch: pytest.MonkeyPatch, admitted: int) -> None:
    def door(_now: float, number: int) -> Outcome | None:
        return refusal(Stage.CONNECT, 421, "4.7.0 quux") if number >= admitted else None

    world = World(monkeypatch, accept, door)
    world.owe_all(recipient(n) for n in range(1000))
    world.run(60)
    ideal = 1000 * 0.02 / admitted
    assert world.last() - START <= 1.3 * ideal
    assert (world.refused, world.stops, world.feedback.limits.allowed) == (0, set(), admitted)


def test_a_limit_of_connections_told_at_data_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    def office(_mail: Mail, _now: float, line: Line) -> Outcome | None:
        older = sum(other.number < line.number for other in world.lines)
        return refusal(Stage.DATA_COMMAND, 432, "4.3.2 quux") if older >= 3 else None

    world = World(monkeypatch, office)
    world.owe_all(recipient(n) for n in range(1000))
    world.run(60)
    assert world.last() - START <= 1.3 * 1000 * 0.02 / 3
    assert world.stops == set()


def test_a_limit_of_messages_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(
        monkeypatch, lambda _, __, line: refusal(Stage.DATA_COMMAND, 452, "4.4.5 blah") if line.messages >= 10 else None
    )
    world.owe_all(recipient(n) for n in range(1000))
    world.run(60)
    assert world.last() - START <= 1.3
    assert (world.refused <= 30, world.feedback.limits.messages) == (True, 10)


def test_refusals_now_and_then_are_no_limit_of_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise each message would need a connection and a login of its own."""
    odd = refusal(Stage.DATA_COMMAND, 451, "4.3.0 quux")
    world = World(monkeypatch, lambda _, __, line: odd if line.messages and random.random() < 0.05 else None)
    world.owe_all(recipient(n) for n in range(3000))
    world.run(60)
    assert (world.last() - START <= 10, world.feedback.limits.messages) == (True, MESSAGES)


class Bucket:
    """A relay that accepts this many messages a second, and `size` at once."""

    def __init__(self, rate: float, size: float) -> None:
        self._rate, self._size, self._left, self._at = rate, size, size, START

    def takes(self, now: float) -> bool:
        """Return whether it takes a message now."""
        self._left, self._at = min(self._size, self._left + (now - self._at) * self._rate), now
        taken = self._left >= 1
        self._left -= taken
        return taken


class Quota:
    """A relay that takes this many messages in so many seconds."""

    def __init__(self, messages: int, seconds: float) -> None:
        self._messages, self._seconds = messages, seconds
        self._began, self._count = START, 0

    def takes(self, now: float) -> bool:
        """Return whether it takes a message now."""
        if now - self._began >= self._seconds:
            self._began, self._count = now, 0
        self._count += 1
        return self._count <= self._messages


@pytest.mark.parametrize("stage", [Stage.MAIL, Stage.RCPT, Stage.DATA])
@pytest.mark.parametrize("words", ["Throttling failure: Maximum sending rate exceeded.", "4.0.0 mumble"])
@pytest.mark.parametrize("number", [300, 1500])
def test_fourteen_a_second_take_their_own_time(
    monkeypatch: pytest.MonkeyPatch, stage: Stage, words: str, number: int
) -> None:
    relay = Bucket(14, 14)
    world = World(monkeypatch, lambda _, now, __: None if relay.takes(now) else refusal(stage, 454, words))
    world.owe_all(recipient(n) for n in range(number))
    world.run(600)
    assert world.last() - START <= 1.3 * (number - 14) / 14
    assert (world.refused <= 105, world.dead, world.stops) == (True, [], set())


@pytest.mark.parametrize("words", ["4.7.1 Error: too much mail from [192.0.2.1]", "4.0.0 mumble"])
def test_thirty_a_minute_take_their_own_time(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    relay = Quota(30, 60)
    world = World(monkeypatch, lambda _, now, __: None if relay.takes(now) else refusal(Stage.MAIL, 450, words))
    world.owe_all(recipient(n) for n in range(1500))
    world.run(2 * HOUR)
    assert world.last() - START <= 1.3 * 49 * 60
    assert (world.refused <= 105, world.dead) == (True, [])


def test_a_quota_of_an_hour_takes_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    relay = Quota(200, HOUR)
    world = World(monkeypatch, lambda _, now, __: None if relay.takes(now) else refusal(Stage.RCPT, 451, "4.0.0 quux"))
    world.owe_all(recipient(n) for n in range(1000))
    world.run(10 * HOUR)
    assert (world.last() - START <= 1.3 * 4 * HOUR, world.dead, world.stops) == (True, [], set())


def test_what_every_other_email_gets_is_not_about_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter greylists for five minutes after the text, in words that could be about the pace."""
    seen: dict[str, float] = {}

    def relay(mail: Mail, now: float, _line: Line) -> Outcome | None:
        known = int(mail.id) % 2 or now - seen.setdefault(mail.id, now) >= 300
        return None if known else refusal(Stage.DATA, 451, "4.7.1 Try again later")

    world = World(monkeypatch, relay)
    for n in range(600):
        world.owe(recipient(n), at=START + n / 2)
    world.run(10 * HOUR)
    assert (max(delays(world.letters)) < HOUR, world.dead) == (True, [])


@pytest.mark.parametrize("stage", [Stage.RCPT, Stage.DATA])
def test_a_limit_of_one_recipient_slows_nobody_else(monkeypatch: pytest.MonkeyPatch, stage: Stage) -> None:
    """A relay may pass on what the recipient's own server says."""
    flooded = "flooded@d1.example"
    reply = refusal(stage, 450, "4.7.1 rate limit exceeded")
    world = World(monkeypatch, lambda mail, *_: reply if mail.user == flooded else None)
    for n in range(600):
        world.owe(recipient(n) if n % 10 else flooded, at=START + n / 5)
    world.run(HOUR)
    late = delays(letter for letter in world.letters if letter.owed.address != flooded)
    assert (late[-1] < 1, world.dead, world.stops) == (True, [], set())


def test_a_pace_that_is_set_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, accept, rate=14)
    world.owe_all(recipient(n) for n in range(280))
    world.run(60)
    assert 280 / 14 - 1 <= world.last() - START <= 280 / 14 * 1.05


# --- one of two machines behind a name is broken ---------------------------------------------------

BREAKS = {
    "MAIL": refusal(Stage.MAIL, 451, "4.3.0 quux"),
    "DATA": refusal(Stage.DATA_COMMAND, 451, "4.3.0 quux"),
    "text": refusal(Stage.DATA, 554, "5.3.0 quux"),
    "drop at MAIL": broken(Stage.MAIL),
    "drop at DATA": broken(Stage.DATA_COMMAND),
    "text lost": broken(Stage.DATA),
}


def assert_little_is_lost(world: World) -> None:
    """Send a thousand e-mails: it takes hardly longer than over twenty sound connections, and none is tried later."""
    letters = world.owe_all(recipient(n) for n in range(1000))
    world.run(600)
    late = delays(letters)
    ideal = 1000 * RTT / 20
    assert (late[949] <= 1.3 * ideal, late[-1] < 10, world.dead) == (True, True, [])


@pytest.mark.parametrize("name", BREAKS)
@pytest.mark.parametrize("begins", [START, START + 0.5])
def test_a_machine_that_breaks_costs_little(monkeypatch: pytest.MonkeyPatch, name: str, begins: float) -> None:
    random.seed(0)  # so that the first two connections lead to the broken one
    if name == "text lost":  # what it had in hand when it broke may be delivered, and would be sent again later
        begins = START
    world = World(monkeypatch, lambda _, now, line: BREAKS[name] if line.machine and now >= begins else None)
    assert_little_is_lost(world)


def test_a_machine_that_refuses_connections_costs_little(monkeypatch: pytest.MonkeyPatch) -> None:
    random.seed(0)
    refused = refusal(Stage.CONNECT, 421, "4.3.2 quux")
    assert_little_is_lost(World(monkeypatch, accept, lambda _, __: refused if random.random() < 0.5 else None))


def found_after(limits: Limits, refusals: int) -> bool:
    """Refuse a second connection so often; return whether that is a limit now."""
    for _ in range(refusals):
        limits.refused(2, START)
    return limits.found


def test_a_limit_is_dropped_once_one_more_connection_delivers() -> None:
    limits = Limits(20)
    limits.open = 1
    limits.opened(START)
    limits.proved(1)
    assert [found_after(limits, n) for n in (REFUSALS - 1, 1)] == [False, True]
    assert (limits.allowed, limits.wait(START)) == (1, 0.5)
    limits.proved(1)  # in the place of another: the limit stands
    assert found_after(limits, 0)
    limits.proved(2)
    assert [found_after(limits, n) for n in (REFUSALS - 1, 1)] == [False, True]


@pytest.mark.parametrize(("is_meanwhile", "lifted"), [(True, 1), (False, 0)])
def test_an_acceptance_lifts_what_unproven_connections_refused(
    monkeypatch: pytest.MonkeyPatch, is_meanwhile: bool, lifted: int
) -> None:
    """Both may be silent for so long that all other e-mails were accepted before they are given up."""
    world, groups = World(monkeypatch, accept), list[str]()
    world.feedback._again = lambda group, _since: groups.append(group.name)
    accepted, refused = world.owe("a@a.example"), world.owe("b@b.example")
    began = world.now
    world.now += 1
    if is_meanwhile:
        world.feedback.judge(accepted.mail, SENT, began)
    world.feedback.refused_by_unproven(refused.mail, began)
    assert len(groups) == lifted
    world.feedback.judge(accepted.mail, SENT, world.now)
    assert len(groups) == 1
