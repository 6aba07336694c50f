"""The replies that can mean only one thing. All others are judged by what other e-mails get at the same time.

A row is here if no relay says the same about the sender, the account, its quota or its reputation. "Recipient address
rejected: Access denied" is not: Exchange Online says so of one mailbox, and Postfix to a client that must log in.

Sources: RFC 1870, 3463, 5321, 7293 and 7505, and what Exim, Postfix, Postgrey, SES, Gmail, Yahoo, Yandex, mail.ru and
cPanel say.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from mail.verdicts import AFTER, Stage, Verdict

NAMES: Final = re.compile(r"<[^>]*>|\S+@\S+|[\w-]+(?:\.[\w-]+)+|\[[\d.:a-f]+\]", re.IGNORECASE)
"""Addresses, hosts and codes. Their words say nothing about the reason."""
REPLY: Final = re.compile(r"([245]\d\d)[ -]?(?:([245]\.\d{1,3}\.\d{1,3})\b)?(.*)", re.DOTALL)
"""A reply: its code, its enhanced status code if it has one, and its words."""
ABOUT_US: Final = re.compile(
    r"\bsender|mail from|from address|\byour (?!message)|authenticat|\blog(?:ged )?in\b|\brelay|client host|sending"
    r"|polic(?:y|ies)|reputation|spam|abuse|block|suspicious|rejected by rule|\bquota\b.*\bper\b",
    re.IGNORECASE,
)
"""Words of refusals that may be about us, whatever their code."""
FULL: Final = re.compile(
    r"(?:mailbox|recipient|inbox)\b.{0,60}(?:\bfull\b|over ?quota|exceed\w*|out of storage|storage)"
    r"|over ?quota|exceeded storage|insufficient mailbox",
    re.IGNORECASE,
)
"""A full mailbox. It exists, whatever the code."""


class Row(NamedTuple):
    """A reply and what it means: its code, its enhanced code, and words, each a pattern. `example` is one that fits."""

    stages: frozenset[Stage]
    code: str
    enhanced: str
    words: str
    verdict: Verdict
    example: str


MAIL: Final = frozenset({Stage.MAIL})
ROWS: Final = (
    Row(
        AFTER | MAIL,
        "4..",
        "",
        r"too m(?:any|uch) (?:messages|e?mails?)\b|(?:sending|message|maximum) rate|rate limit|too fast\b|slow down",
        Verdict.TOO_FAST,
        "454 Throttling failure: Maximum sending rate exceeded.",
    ),
    Row(
        AFTER,
        "4..",
        "",
        r"gr[ae]y-?list|receiving mail (?:too quickly|at a rate)",
        Verdict.DEFERRED,
        "450 4.7.1 Client host rejected: Greylisted",
    ),
    Row(AFTER, "4..", r"4\.(?:1\.1|2\.2)", "", Verdict.DEFERRED, "452 4.2.2 The mailbox is full"),
    Row(AFTER, "5..", r"5\.1\.(?:1|2|3|4|6|10)", "", Verdict.PERMANENT, "550 5.1.1 The account does not exist"),
    Row(AFTER, "5..", r"5\.(?:2\.[12]|7\.1[78])", "", Verdict.PERMANENT, "552 5.2.2 The mailbox is full"),
    Row(AFTER | MAIL, "5..", r"5\.3\.4|5\.6\.\d+", "", Verdict.OVERSIZED, "552 5.3.4 Message size exceeds fixed limit"),
    Row(
        AFTER | MAIL,
        "552",
        r"(?!5\.[27])",
        r"message.*(?:size|too (?:large|big|long))|size limit",
        Verdict.OVERSIZED,
        "552 Message exceeds the size limit",
    ),
    Row(
        AFTER,
        "5..",
        r"(?!5\.7\.[^1])",
        r"(?:no such|unknown|unrecognized) (?:local )?(?:user|mailbox|recipient|person)\b"
        r"|\b(?:user|mailbox|recipient)\b.{0,60}(?:unknown|not found|n[o']t exist)"
        r"|unrouteable address|doesn't have an? \S* ?account",
        Verdict.PERMANENT,
        "550 No such user here",
    ),
    Row(
        AFTER, "5..", r"(?!5\.7\.[^1])", r"mailbox\b.{0,20}\b(?:full|over quota)", Verdict.PERMANENT, "550 Mailbox full"
    ),
)
"""The first that fits counts."""


def without_names(text: str) -> str:
    """Return a text without addresses and hosts, on one line."""
    return " ".join(NAMES.sub("…", text).split())


def verdict_of(reply: str, stage: Stage) -> Verdict:
    """Return what a 4xx or 5xx reply means, such as `550 5.1.1 User unknown`, as far as it can be known."""
    found = REPLY.match(reply)
    code, enhanced, words = found.groups(default="") if found else ("", "", "")
    words = without_names(words)
    known = next((row for row in ROWS if stage in row.stages and _fits(row, code, enhanced, words)), None)
    if known and (known.verdict is not Verdict.PERMANENT or not ABOUT_US.search(words)):
        return known.verdict
    return Verdict.UNCLEAR if code.startswith("5") else Verdict.TRANSIENT


def _fits(row: Row, code: str, enhanced: str, words: str) -> bool:
    return bool(
        re.fullmatch(row.code, code)
        and (re.match(row.enhanced + ("" if row.enhanced.startswith("(?!") else r"\Z"), enhanced) or not row.enhanced)
        and (not row.words or re.search(row.words, words, re.IGNORECASE))
    )
