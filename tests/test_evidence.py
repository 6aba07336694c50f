"""Mail judged by evidence, in virtual time: outages, limits and refusals in words that the service has never seen."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mail.replies import Outcome, Stage, Verdict, judge, verdict_of
from mail.stops import Mail
from tests.virtual import Letter, Line, World, delays, refusal

HOUR, DAY = 3600.0, 86_400.0
START = 1000.0
AFTER_CONNECT = [stage for stage in Stage if stage is not Stage.CONNECT]


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(20201214)


def recipient(n: int) -> str:
    """Return one of many recipients at thirty domains."""
    return f"u{n}@d{n % 30}.example"


def p95(letters: list[Letter]) -> float:
    found = delays(letters)
    return found[int(0.95 * len(found))]


def accept(_mail: Mail, _now: float, _line: Line) -> None:
    """Accept everything."""


# --- whose fault it is ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "code", "words"),
    [
        (Stage.MAIL, 502, "5.7.0 account not yet activated"),
        (Stage.DATA, 554, "sorry, too many emails"),
        *(
            pytest.param(*reply, marks=pytest.mark.ci)
            for reply in (
                (Stage.DATA, 554, "5.7.0 limit on outgoing messages"),
                (Stage.MAIL, 452, "4.3.1 disk full"),
                (Stage.RCPT, 450, "4.0.0 hm"),
            )
        ),
        (Stage.RCPT, 554, "5.7.1 Recipient address rejected: Access denied"),
    ],
)
def test_no_email_dies_until_somebody_elses_gets_through(
    monkeypatch: pytest.MonkeyPatch, stage: Stage, code: int, words: str
) -> None:
    ends = START + 100 + 3 * DAY
    world = World(monkeypatch, lambda _, now, __: None if not START + 100 < now < ends else refusal(stage, code, words))
    for n in range(300):
        world.owe(recipient(n), at=START + n / 3)
    for n in range(400):
        world.owe(recipient(n), ("new_login", "registration")[n % 2], at=START + 100 + n * 640)
    world.run(ends - START)
    assert world.dead == []
    world.run(30)
    assert world.last() <= ends + 30
    assert world.attempts < 12_000


def test_a_closed_domain_delays_nobody_and_its_emails_die_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def closed(mail: Mail, _now: float, _line: Line) -> Outcome | None:
        return refusal(Stage.RCPT, 550, "5.7.9 nobody here") if mail.domain == "closed.example" else None

    world = World(monkeypatch, closed)
    honest = [world.owe(recipient(n), at=START + n / 2) for n in range(600)]
    lost = world.owe_all((f"c{n}@closed.example" for n in range(1000)), at=START + 50)
    world.run(300)
    assert (world.refused <= 50, p95(honest) < 1, delays(honest)[-1] < 1) == (True, True, True)
    later = [world.owe(recipient(n), at=START + 400 + n * 600) for n in range(500)]
    world.run(1.9 * DAY)
    assert world.dead == []
    world.run(2 * DAY)
    assert {letter.died is not None for letter in lost} == {True}
    assert delays(later)[-1] < 1


@pytest.mark.parametrize("everybody", [False, True])
def test_mailboxes_called_unknown_by_mistake_recover(monkeypatch: pytest.MonkeyPatch, everybody: bool) -> None:
    begins, ends = START + 1000, START + 1000 + 6.7 * HOUR

    def half(mail: Mail, now: float, _line: Line) -> Outcome | None:
        hit = everybody or (mail.domain == "big.example" and int(mail.recipient[1:].split("@")[0]) // 2 % 2)
        return refusal(Stage.RCPT, 550, "5.1.1 The account does not exist") if hit and begins < now < ends else None

    world = World(monkeypatch, half)
    for n in range(2000):
        world.owe(f"u{n}@big.example" if n % 2 else recipient(n), at=START + n * 15)
    world.run(30_000 + 10 * HOUR)
    assert world.doubts
    assert world.dead == []
    assert world.last() < math.inf


def test_one_unknown_mailbox_is_dead_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(
        monkeypatch, lambda m, _, __: refusal(Stage.RCPT, 550, "5.1.1 no") if m.recipient == "x@y.z" else None
    )
    world.owe_all(recipient(n) for n in range(20))
    gone = world.owe("x@y.z")
    world.run(1)
    assert (gone.died is not None, len(world.dead)) == (True, 1)


def test_a_kind_refused_as_spam_waits_alone_for_6_min_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def spam(mail: Mail, now: float, _line: Line) -> Outcome | None:
        refused = mail.kind == "promo" and START + 100 < now < START + 7000
        return refusal(Stage.DATA, 554, "5.7.1 looks like blurb") if refused else None

    world = World(monkeypatch, spam)
    others = [world.owe(recipient(n), at=START + n * 2) for n in range(3500)]
    promo = [world.owe(recipient(n), "promo", at=START + n * 20) for n in range(350)]
    world.run(7000 + 360)
    assert (world.stops, world.dead, delays(others)[-1] < 1) == ({"kind promo"}, [], True)
    assert world.refused <= 50
    assert world.last(promo) <= START + 7000 + 360


def test_a_kind_refused_at_one_domain_does_not_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = refusal(Stage.MAIL, 550, "5.7.9 mumble")
    world = World(monkeypatch, lambda mail, *_: refused if mail.kind == "promo" else None)
    for n in range(100):
        world.owe(f"u{n}@one.example", ("promo", "new_login")[n % 2], at=START + n)
    world.run(200)
    assert "kind promo" not in world.stops


@pytest.mark.parametrize("domains", [1, 30])
def test_greylisting_in_unknown_words_follows_the_schedule(monkeypatch: pytest.MonkeyPatch, domains: int) -> None:
    first: dict[str, float] = {}

    def greylist(mail: Mail, now: float, _line: Line) -> Outcome | None:
        if int(mail.domain[1:].split(".")[0]) >= domains or now - first.setdefault(mail.recipient, now) >= 300:
            return None
        return refusal(Stage.RCPT, 451, "4.0.1 come again friend")

    world = World(monkeypatch, greylist)
    letters = [world.owe(f"v{n}@d{n % 30}.example", at=START + n * 3) for n in range(600)]
    world.run(4 * HOUR)
    grey = [letter for letter in letters if letter.mail.recipient in first]
    assert world.dead == []
    assert p95(grey) < 1.3 * 361 * 1.2  # the schedule's first time after 300 s, and its spread
    assert delays(letter for letter in letters if letter not in grey)[-1:] < [1]


@pytest.mark.parametrize("words", ["5.1.1 no such user", "5.0.9 mumble"])
def test_300_forged_elements_delay_nobody(monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    world = World(monkeypatch, lambda m, _, __: refusal(Stage.RCPT, 550, words) if "fake" in m.domain else None)
    honest = [world.owe(recipient(n), at=START + n / 5) for n in range(1500)]
    for n in range(300):
        world.owe(f"f{n}@fake{n % 60}.example", at=START + 100 + n / 20)
    world.run(320)
    assert (p95(honest) < 1, delays(honest)[-1] < 1) == (True, True)
    assert "line" not in world.stops


@pytest.mark.parametrize("stage", [Stage.MAIL, Stage.DATA])
def test_after_a_2_s_outage_all_emails_are_sent_within_2_s(monkeypatch: pytest.MonkeyPatch, stage: Stage) -> None:
    def down(now: float) -> bool:
        return START + 10 < now < START + 12.3

    refused = judge(ConnectionRefusedError(111, "refused"), Stage.CONNECT)
    world = World(
        monkeypatch,
        lambda _, now, __: judge(ConnectionResetError(104, "reset"), stage) if down(now) else None,
        door=lambda now, _: refused if down(now) else None,
    )
    world.owe_all(recipient(n) for n in range(40))
    world.owe_all((recipient(n) for n in range(40)), at=START + 10.1)
    world.run(60)
    assert world.last() <= START + 12.3 + 2
    assert world.dead == []


def test_a_relay_that_drops_after_every_text_kills_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    mends = START + DAY
    lost = judge(ConnectionResetError(104, "reset"), Stage.DATA)
    world = World(monkeypatch, lambda _, now, __: lost if now < mends else None)
    letters = world.owe_all(recipient(n) for n in range(50))
    world.run(DAY)
    assert {letter.owed.copies for letter in letters} == {2}
    world.owe("another@example.com")  # whose acceptance lets the others have a third copy
    world.run(5 * HOUR)
    assert world.dead == []
    assert world.last() < math.inf


# --- words that nobody has seen ----------------------------------------------------------------------

STAGES = st.sampled_from([Stage.MAIL, Stage.RCPT, Stage.DATA_COMMAND, Stage.DATA])
WORDS = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)
CODES = st.integers(400, 599)
ENHANCED = st.tuples(st.integers(0, 7), st.integers(0, 99))
GIVEN = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def invented(code: int, enhanced: tuple[int, int], words: str) -> str:
    """Return words that begin with an enhanced code of the reply's class."""
    return f"{code // 100}.{enhanced[0]}.{enhanced[1]} {words}"


@GIVEN
@given(stage=STAGES, code=CODES, enhanced=ENHANCED, words=WORDS)
def test_no_fault_of_the_account_kills_an_email(
    monkeypatch: pytest.MonkeyPatch, stage: Stage, code: int, enhanced: tuple[int, int], words: str
) -> None:
    said = refusal(stage, code, invented(code, enhanced, words))
    ends = START + 60 + 3 * HOUR
    world = World(monkeypatch, lambda _, now, __: None if not START + 60 < now < ends else said)
    for n in range(180):
        world.owe(recipient(n), ("new_login", "registration")[n % 2], at=START + n)
    world.run(ends - START)
    if said.verdict is not Verdict.PERMANENT:
        assert world.dead == []
    world.run(6 * HOUR)
    assert world.dead == []
    assert world.last() < math.inf


@GIVEN
@given(stage=STAGES, code=CODES, enhanced=ENHANCED, words=WORDS)
@example(stage=Stage.RCPT, code=421, enhanced=(0, 0), words="")  # which also breaks the connection
@example(stage=Stage.DATA, code=421, enhanced=(0, 0), words="")
def test_no_fault_of_recipients_delays_others(
    monkeypatch: pytest.MonkeyPatch, stage: Stage, code: int, enhanced: tuple[int, int], words: str
) -> None:
    said = refusal(Stage.RCPT if stage is Stage.MAIL else stage, code, invented(code, enhanced, words))
    world = World(monkeypatch, lambda mail, _, __: said if mail.domain.startswith("bad") else None)
    honest = [world.owe(recipient(n), at=START + n / 5) for n in range(600)]
    bad = [world.owe(f"b{n}@bad{n % 7}.example", at=START + 20 + n) for n in range(60)]
    world.run(130)
    assert "line" not in world.stops
    assert delays(honest)[int(0.95 * len(honest))] < 1
    assert not any(letter.delivered for letter in bad)


@pytest.mark.parametrize("code", [550, 552, 554, 450, 451])
@pytest.mark.parametrize("words", ["5.7.133 RESOLVER.RST.AuthRequired", "members only", "you are on my block list"])
def test_a_refusal_blaming_us_concerns_one_if_others_get_through(
    monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    said = refusal(Stage.RCPT, code, words)
    world = World(monkeypatch, lambda mail, _, __: said if mail.recipient == "list@corp.example" else None)
    honest = [world.owe(recipient(n), at=START + n * 60) for n in range(4800)]
    lost = world.owe("list@corp.example", at=START + 30)
    world.run(3.4 * DAY)
    assert (lost.died or "").startswith("Given up")
    assert delays(honest)[-1] < 1
    assert lost.owed.tries >= 3


def test_words_decide_only_what_they_can_mean() -> None:
    assert verdict_of("554 5.7.1 Recipient address rejected: Access denied", Stage.RCPT) is Verdict.UNCLEAR
    assert verdict_of("550 5.4.1 Recipient address rejected: Access denied", Stage.RCPT) is Verdict.UNCLEAR
    assert {verdict_of("550 5.1.1 sender rejected", stage) for stage in AFTER_CONNECT} == {Verdict.UNCLEAR}
