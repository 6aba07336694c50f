"""The circuit breaker: what opens it, what closes it, and how long it stays open."""

from __future__ import annotations

import time

import pytest

from mail.breaker import LONGEST_PAUSE, LONGEST_SUSPICION, Breaker


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list whose only item is the time."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def breaker(clock: list[float]) -> Breaker:
    """Return a breaker that is closed."""
    breaker = Breaker()
    breaker.succeed(breaker.admit())
    assert (breaker.closed, clock) == (True, [1000.0])
    return breaker


def test_it_lets_one_through_until_the_server_has_let_us_in() -> None:
    breaker = Breaker()
    first = breaker.admit()
    assert first
    assert breaker.admit() is None
    breaker.reach(first)
    assert breaker.admit()
    assert not breaker.tripped


def test_one_email_opens_it_never_and_three_in_a_row_do(breaker: Breaker) -> None:
    for _ in range(64):
        breaker.suspect(breaker.admit(), "one", "421")
    breaker.suspect(breaker.admit(), "two", "421")
    assert breaker.closed
    breaker.suspect(breaker.admit(), "three", "421")
    assert breaker.tripped


def test_an_email_that_gets_through_clears_all_suspicion(breaker: Breaker) -> None:
    for email in ("one", "two", "three", "four"):
        breaker.suspect(breaker.admit(), email, "421")
        breaker.suspect(breaker.admit(), "another", "421")
        breaker.succeed(breaker.admit())
    assert breaker.closed


def test_after_suspicions_an_email_must_get_through_and_the_pause_is_short(
    breaker: Breaker, clock: list[float]
) -> None:
    for n in range(20):
        while not (ticket := breaker.admit()):
            clock[0] += 0.5
        breaker.reach(ticket)
        breaker.suspect(ticket, f"{n}", "550 who knows")
    assert not breaker.closed
    assert breaker.wait() == LONGEST_SUSPICION
    clock[0] += LONGEST_SUSPICION
    breaker.succeed(breaker.admit())
    assert breaker.closed


def test_faults_of_the_server_double_the_pause_to_a_minute(breaker: Breaker, clock: list[float]) -> None:
    pauses = []
    for _ in range(9):
        breaker.fail(breaker.admit(), "refused")
        pauses.append(breaker.wait())
        clock[0] += pauses[-1]
    assert pauses == [1, 2, 4, 8, 16, 32, LONGEST_PAUSE, LONGEST_PAUSE, LONGEST_PAUSE]
    probe = breaker.admit()
    breaker.reach(probe)
    assert breaker.closed


def test_a_probe_that_shows_nothing_makes_room_for_another(breaker: Breaker, clock: list[float]) -> None:
    breaker.fail(breaker.admit(), "refused")
    clock[0] += 1
    probe = breaker.admit()
    assert breaker.admit() is None
    breaker.abandon(probe)
    assert breaker.admit()
