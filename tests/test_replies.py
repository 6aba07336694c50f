"""What the replies of an SMTP server mean."""

from __future__ import annotations

import pytest
from aiosmtplib import SMTPResponseException

from mail.refusals import VERDICTS
from mail.replies import judge, verdict_of
from mail.verdicts import Row, Stage, Verdict

LATIN_1 = "5.1.1 Empf\udce4nger unbekannt"
"""A reply that is not UTF-8, as aiosmtplib decodes it."""


@pytest.mark.parametrize(
    ("stage", "code", "message", "verdict"),
    [
        (Stage.CONNECT, 421, "busy", Verdict.CONNECTION),
        (Stage.CONNECT, 554, "no service here", Verdict.CONFIGURATION),
        (Stage.CONNECT, 454, "4.7.0 temporary authentication failure", Verdict.CONNECTION),
        (Stage.CONNECT, 535, "5.7.8 authentication failed", Verdict.CONFIGURATION),
        (Stage.MAIL, 451, "later", Verdict.TRANSIENT),
        (Stage.MAIL, 421, "closing", Verdict.CONNECTION),
        (Stage.MAIL, 552, "5.3.4 too large", Verdict.PERMANENT),
        (Stage.MAIL, 550, "sender refused", Verdict.CONFIGURATION),
        (Stage.RCPT, 550, LATIN_1, Verdict.PERMANENT),
        (Stage.RCPT, 503, "5.5.1 authenticate first", Verdict.CONFIGURATION),
        (Stage.RCPT, 553, "5.7.1 <a@b.c>: Sender address rejected: not owned by user x", Verdict.CONFIGURATION),
        (Stage.RCPT, 554, "5.7.1 <a@b.c>: Relay access denied", Verdict.CONFIGURATION),
        (Stage.RCPT, 354, "what", Verdict.TRANSIENT),
        (Stage.DATA, 550, "5.1.8 bad sender\n5.1.8 indeed", Verdict.CONFIGURATION),
        (Stage.DATA, 554, "5.7.1 spam", Verdict.UNCLEAR),
        (Stage.DATA, 200, "taken, in a way", Verdict.AMBIGUOUS),
        (Stage.DATA, -1, "\udcff", Verdict.AMBIGUOUS),
    ],
)
def test_each_reply_means_what_the_table_says(stage: Stage, code: int, message: str, verdict: Verdict) -> None:
    outcome = judge(SMTPResponseException(code, message), stage)
    assert outcome.verdict is verdict
    assert "@" not in outcome.status
    outcome.detail.encode()


@pytest.mark.parametrize("row", VERDICTS, ids=lambda row: row.example)
def test_each_row_fits_its_example_and_no_earlier_row_does(row: Row) -> None:
    stages = [stage for stage in Stage if stage in row.stages]
    for stage in stages[-1:] if len(stages) < len(Stage) else stages:
        first = next(other for other in VERDICTS if stage in other.stages and other.pattern.match(row.example))
        assert first is row
        assert verdict_of(row.example, stage) is row.verdict
