"""What the replies of an SMTP server mean."""

from __future__ import annotations

import socket

import pytest
from aiosmtplib import SMTPException, SMTPReadTimeoutError, SMTPResponseException, SMTPServerDisconnected

from mail.replies import ROWS, Stage, Verdict, judge, verdict_of

LATIN_1 = "5.1.1 Empf\udce4nger unbekannt"
"""A reply that is not UTF-8, as aiosmtplib decodes it."""
UNKNOWN = [
    "450 4.7.1 <no.such.example>: Helo command rejected: Host not found",
    "554 5.7.1 <localhost[127.0.0.1]>: Client host rejected: Access denied",
    "550 5.4.5 Daily user sending quota exceeded. x - gsmtp",
    "550 5.4.5 Daily user sending limit exceeded",
    "550 5.4.6 Daily SMTP relay limit exceeded for customer",
    "550-5.7.1 Daily SMTP relay sending limit exceeded for this user",
    "554 5.2.252 SendAsDenied; a@x not allowed to send as y@x; STOREDRV.Submission.Exception:SendAsDeniedException",
    "554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException; Failed to process message",
    "550 5.2.0 SubmissionQuotaExceededException",
    "550 The from address does not match a verified Sender Identity. Mail cannot be sent until this error is resolved.",
    "553 Relaying disallowed as noreply@x.com",
    "554 5.7.1 Relaying disallowed",
    "550 5.7.0 From address is not one of your addresses",
    "554 Message rejected: Email address is not verified. The following identities failed the check",
    "454 Throttling failure: Daily message quota exceeded.",
    "554 Message rejected: Sending suspended for this account.",
    "451 Authentication failed: Maximum credits exceeded",
    "550 5.7.1 Sender domain not allowed",
    "550 5.7.26 Unauthenticated email from x is not accepted due to domain's DMARC policy.",
    "554 5.7.5 Permanent error evaluating DMARC policy",
    "550 5.7.1 Our system has detected an unusual rate of unsolicited mail originating from your IP address.",
    "554 5.7.1 Service unavailable; Client host [1.2.3.4] blocked using zen.spamhaus.org",
    "550 5.7.1 Recipient address rejected: You have exceeded your Outmail quota",
    "550 5.7.1 Client does not have permissions to send as this sender",
    "550 5.7.60 SMTP; Client does not have permissions to send as this sender",
    "550 5.7.54 SMTP; Unable to relay recipient in non-accepted domain",
    "550 5.7.64 TenantAttribution; Relay Access Denied",
    "550 relay not permitted",
    "550 5.7.1 Unable to relay for a@b",
    "550 5.7.1 a@b... Relaying denied. Proper authentication required.",
    "530 5.7.57 SMTP; Client was not authenticated to send anonymous mail during MAIL FROM",
    "553 5.7.1 <a@b>: Sender address rejected: not owned by user c",
    "550 5.1.0 <a@b> sender rejected",
    "550 Sender verify failed",
    "553 mail from must equal authorized user",
    "501 mail from address must be same as authorization user",
    "550 5.7.1 Domain x has been disabled: unverified",
    "554 5.7.1 You are not allowed to connect.",
    "504 5.5.2 <h>: Helo command rejected: need fully-qualified hostname",
    "550 5.7.1 <h>: Helo command rejected: Host not found",
    "550 5.7.1 <h>: Helo command rejected: I refuse you",
    "550 5.7.501 Service unavailable. Access denied, spam abuse detected",
    "550 5.1.8 Access denied, bad outbound sender",
    "550 5.4.6 Unusual sending activity detected. Please try after sometime",
    "550 Invalid API key / account suspended",
    "525 5.7.1 Unauthorized IP address",
    "550 Domain has exceeded the max emails per hour (150/100) allowed. Message discarded",
    "554 5.7.1 : Sender address rejected: Access denied",
    "550 that IP address is not allowed to send",
    "551 5.7.1 Not authorised to send from this header address",
    "550 5.7.1 [CS] Message blocked. Your account has been blocked for sending",
]
"""About us, or about nobody knows whom. The evidence decides, and not the words."""
THEIRS = [
    "550 5.1.1 <a@b>: Recipient address rejected: User unknown in virtual mailbox table",
    "550-5.1.1 The email account that you tried to reach does not exist. Please try",
    "550 5.1.10 RESOLVER.ADR.RecipientNotFound; Recipient a@b not found by SMTP address lookup",
    "550 No such user here",
    "550 5.2.1 The email account that you tried to reach is disabled.",
    "552 5.2.2 The email account that you tried to reach is over quota",
    "552-5.2.2 The recipient's inbox is out of storage space",
    "554 delivery error: dd This user doesn't have a yahoo.com account (x@yahoo.com) [0]",
    "550 User unknown",
    "550 <a@b>: User not found",
    "550 Unrouteable address",
    "501 5.1.3 Bad recipient address syntax",
    "552 <a@b> mailbox is over quota",
    "550 5.1.2 <a@b>: Recipient address rejected: Domain not found",
    "556 5.1.10 <a@b>: Recipient address rejected: Domain does not accept mail (nullMX)",
    "550 Mailbox does not exist",
    "550 5.7.1 <a@b>: Recipient address rejected: user a@b does not exist",
    "550 non-local recipient unknown user",
    "553 5.1.3 Invalid address format",
]
"""About the recipient or the message: a dead letter."""
NOT_NOW = [
    "450 4.7.1 Client host rejected: Greylisted, see http://postgrey",
    "450 4.2.1 The user you are trying to contact is receiving mail too quickly",
    "452 4.2.2 mailbox full",
    "450 4.1.1 <a@b>: Recipient address rejected: unverified address",
]
"""About the recipient, but not now."""
TOO_FAST = [
    "454 Throttling failure: Maximum sending rate exceeded.",
    "450 4.7.1 Error: too much mail from 192.0.2.1",
    "451 Too many messages, slow down",
]
"""About the pace."""


@pytest.mark.parametrize(
    ("stage", "code", "message", "verdict"),
    [
        (Stage.CONNECT, 421, "busy", Verdict.CONNECTION),
        (Stage.CONNECT, 554, "no service here", Verdict.CONFIGURATION),
        (Stage.CONNECT, 454, "4.7.0 temporary authentication failure", Verdict.CONNECTION),
        (Stage.CONNECT, 535, "5.7.8 authentication failed", Verdict.CONFIGURATION),
        (Stage.MAIL, 451, "later", Verdict.TRANSIENT),
        (Stage.MAIL, 421, "closing", Verdict.TRANSIENT),
        (Stage.MAIL, 552, "5.3.4 too large", Verdict.OVERSIZED),
        (Stage.MAIL, 550, "sender refused", Verdict.UNCLEAR),
        (Stage.RCPT, 550, LATIN_1, Verdict.PERMANENT),
        (Stage.RCPT, 503, "5.5.1 authenticate first", Verdict.UNCLEAR),
        (Stage.RCPT, 553, "5.7.1 <a@b.c>: Sender address rejected: not owned by user x", Verdict.UNCLEAR),
        (Stage.RCPT, 554, "5.7.1 <a@b.c>: Relay access denied", Verdict.UNCLEAR),
        (Stage.RCPT, 354, "what", Verdict.TRANSIENT),
        (Stage.DATA, 550, "5.1.8 bad sender\n5.1.8 indeed", Verdict.UNCLEAR),
        (Stage.DATA, 554, "5.7.1 spam", Verdict.UNCLEAR),
        (Stage.DATA_COMMAND, 250, "taken before it was sent", Verdict.TRANSIENT),
        (Stage.DATA, 354, "once more", Verdict.AMBIGUOUS),
        (Stage.DATA, -1, "\udcff", Verdict.AMBIGUOUS),
    ],
)
def test_each_reply_means_what_the_table_says(stage: Stage, code: int, message: str, verdict: Verdict) -> None:
    outcome = judge(SMTPResponseException(code, message), stage)
    assert outcome.verdict is verdict
    assert "@" not in outcome.status
    outcome.detail.encode()


EXAMPLES = [
    ("454 Throttling failure: Maximum sending rate exceeded.", Verdict.TOO_FAST),
    ("450 4.7.1 Client host rejected: Greylisted", Verdict.DEFERRED),
    ("452 4.2.2 The mailbox is full", Verdict.DEFERRED),
    ("550 5.1.1 The account does not exist", Verdict.PERMANENT),
    ("552 5.3.4 Message size exceeds fixed limit", Verdict.OVERSIZED),
    ("552 Message exceeds the size limit", Verdict.OVERSIZED),
    ("550 No such user here", Verdict.PERMANENT),
]
"""One for each row of the table, in its order."""


@pytest.mark.parametrize(("row", "example"), [*zip(ROWS, EXAMPLES, strict=True)])
def test_each_row_fits_its_example(row: str, example: tuple[str, Verdict]) -> None:
    reply, verdict = example
    assert ROWS[row] is verdict
    assert {verdict_of(reply, stage) for stage in (Stage.RCPT, Stage.DATA_COMMAND, Stage.DATA)} == {verdict}


@pytest.mark.parametrize("stage", [Stage.RCPT, Stage.DATA_COMMAND, Stage.DATA])
@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        *((reply, Verdict.UNCLEAR if reply[0] == "5" else Verdict.TRANSIENT) for reply in UNKNOWN),
        *((reply, Verdict.PERMANENT) for reply in THEIRS),
        *((reply, Verdict.DEFERRED) for reply in NOT_NOW),
        *((reply, Verdict.TOO_FAST) for reply in TOO_FAST),
    ],
)
def test_unambiguous_replies_of_real_servers_are_understood(reply: str, verdict: Verdict, stage: Stage) -> None:
    assert verdict_of(reply, stage) is verdict


@pytest.mark.parametrize("reply", ["552 5.3.4 Message size exceeds fixed limit", "552 message size limit exceeded"])
def test_a_message_that_is_too_large_is_that_at_every_stage(reply: str) -> None:
    assert {verdict_of(reply, stage) for stage in (Stage.MAIL, Stage.RCPT, Stage.DATA)} == {Verdict.OVERSIZED}


@pytest.mark.parametrize("code", range(500, 560))
@pytest.mark.parametrize("text", ["", "5.7.1 no", "5.0.0 no", "5.3.0 no", "5.5.1 no", "no", "5.7.0 policy"])
def test_unknown_replies_are_not_permanent(code: int, text: str) -> None:
    found = {verdict_of(f"{code} {text}".strip(), stage) for stage in Stage if stage is not Stage.CONNECT}
    assert found == {Verdict.UNCLEAR}


@pytest.mark.parametrize(
    ("exc", "status"),
    [
        (ConnectionRefusedError(111, "Connect call failed ('192.0.2.1', 25)"), "Connection refused"),
        (SMTPReadTimeoutError("Timed out"), "no reply in time"),
        (SMTPServerDisconnected("Connection lost"), "SMTPServerDisconnected"),
        (socket.gaierror(-2, "Name or service not known"), "Name or service not known"),
    ],
)
def test_the_log_says_what_broke_and_names_no_host(exc: Exception, status: str) -> None:
    outcome = judge(exc, Stage.CONNECT)
    assert status in outcome.status
    assert "192.0.2.1" not in outcome.status
    assert "example" not in outcome.status


@pytest.mark.parametrize("stage", [Stage.CONNECT, Stage.MAIL, Stage.RCPT, Stage.DATA_COMMAND])
@pytest.mark.parametrize(
    "exc", [ValueError("label too long"), UnicodeError("surrogates"), OSError("odd"), SMTPException("odd")]
)
def test_nothing_that_is_raised_before_the_message_is_permanent(exc: Exception, stage: Stage) -> None:
    assert judge(exc, stage).verdict is not Verdict.PERMANENT
