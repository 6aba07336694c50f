"""The few refusals that can mean only one thing. All others are judged by what other e-mails get at the same time.

A row is here if no relay uses its words about the sender, the account, its quota or its reputation. "Recipient address
rejected: Access denied" has none: Exchange Online says it about one mailbox, and Postfix to a client that must log in.

Sources: RFC 1870, 3463, 5321, 7293 and 7505, and the replies of Exim, Postfix, Postgrey, SES, Gmail, Yahoo, Yandex,
mail.ru and cPanel.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from mail.verdicts import Stage, Verdict

REPLY: Final = re.compile(r"([245]\d\d)[ -]?(?:([245]\.\d{1,3}\.\d{1,3})\b)?(.*)", re.DOTALL)
NAMES: Final = re.compile(r"<[^>]*>|\S+@\S+|[\w-]+(?:\.[\w-]+)+|\[[\d.:a-f]+\]", re.IGNORECASE)
"""Addresses, hosts and codes. They say nothing about the reason, whatever words they contain."""
ABOUT_US: Final = re.compile(
    r"\bsender|mail from|from address|\byour (?!message)|authenticat|\blog(?:ged )?in\b|\brelay|client host|sending"
    r"|polic(?:y|ies)|reputation|spam|abuse|block|suspicious|rejected by rule|\bquota\b.*\bper\b",
    re.IGNORECASE,
)
"""Words of refusals that may be about the sender, whatever their code."""
FULL: Final = re.compile(
    r"(?:mailbox|recipient|inbox)\b.{0,60}(?:\bfull\b|over ?quota|exceed\w*|out of storage|storage)"
    r"|over ?quota|exceeded storage|insufficient mailbox",
    re.IGNORECASE,
)
"""Words of a full mailbox. Such a mailbox exists, whatever the code."""
ROWS: Final[Mapping[str, Verdict]] = {
    r"4.*(?:too m(?:any|uch) (?:messages|e?mails?)\b|(?:sending|message|maximum) rate"
    r"|rate limit|too fast\b|slow down)": Verdict.TOO_FAST,
    r"4.*(?:gr[ae]y-?list|receiving mail (?:too quickly|at a rate))": Verdict.DEFERRED,
    r"4.. 4\.(?:1\.1|2\.2) ": Verdict.DEFERRED,
    r"5.. 5\.(?:1\.(?:1|2|3|4|6|10)|2\.[12]|7\.1[78]) ": Verdict.PERMANENT,
    r"5.. 5\.(?:3\.4|6\.\d+) ": Verdict.OVERSIZED,
    r"552 (?!5\.[27]).*(?:message.*(?:size|too (?:large|big|long))|size limit)": Verdict.OVERSIZED,
    r"5.. (?!5\.7\.[^1]).*(?:(?:no such|unknown|unrecognized) (?:local )?(?:user|mailbox|recipient|person)\b"
    r"|\b(?:user|mailbox|recipient)\b.{0,60}(?:unknown|not found|n[o']t exist)"
    r"|unrouteable address|doesn't have an? \S* ?account|mailbox\b.{0,20}\b(?:full|over quota))": Verdict.PERMANENT,
}
"""What the beginning of a reply means, written as `CODE ENHANCED_CODE WORDS`. The first row that matches counts."""
AT_MAIL: Final = frozenset({Verdict.TOO_FAST, Verdict.OVERSIZED})
"""What a server can know before it is told the recipient."""
BOUNCES: Final[Mapping[str, tuple[str, str]]] = {
    "5.1.1": ("The mailbox does not exist.", "RFC 3463, section 3.2"),
    "5.1.2": ("The domain does not exist, or takes no mail.", "RFC 3463, section 3.2"),
    "5.1.6": ("The mailbox has moved, and takes no mail any more.", "RFC 3463, section 3.2"),
    "5.1.10": ("The domain says that it takes no mail (null MX).", "RFC 7505, section 4.2"),
}
"""The enhanced codes that suppress an address, what they say, and their sources. `docs/bounces.md` has this table."""


class Reply(NamedTuple):
    """A refusal: its code, its enhanced status code (RFC 3463), and its words without names. Each may be empty."""

    code: str
    enhanced: str
    words: str


def parse(reply: str) -> Reply:
    """Parse a reply such as `550 5.1.1 User unknown`."""
    match = REPLY.match(reply)
    code, enhanced, words = match.groups(default="") if match else ("", "", reply)
    return Reply(code, enhanced, " ".join(NAMES.sub("…", words).split()))


def verdict_of(reply: str, stage: Stage) -> Verdict:
    """Return what a 4xx or 5xx reply means, as far as it can be known from the reply alone."""
    refusal = parse(reply)
    is_final = refusal.code.startswith("5")
    if stage is Stage.CONNECT:
        return Verdict.CONFIGURATION if is_final else Verdict.CONNECTION
    text = " ".join(refusal)
    verdict = next((known for row, known in ROWS.items() if re.match(row, text, re.IGNORECASE)), None)
    is_doubtful = verdict is Verdict.PERMANENT and ABOUT_US.search(refusal.words)
    if verdict and not is_doubtful and (stage is not Stage.MAIL or verdict in AT_MAIL):
        return verdict
    return Verdict.UNCLEAR if is_final else Verdict.TRANSIENT


def bounce_code(verdict: Verdict, reply: str) -> str | None:
    """Return the code of `BOUNCES` for which a refusal suppresses its address, or `None`.

    To go on sending to a mailbox that does not exist costs a sender its reputation. A refusal for policy, reputation,
    size or quota does not say so, even with such a code.
    """
    _, enhanced, words = parse(reply)
    if verdict not in {Verdict.PERMANENT, Verdict.DOUBTED} or enhanced not in BOUNCES:
        return None
    return None if ABOUT_US.search(words) or FULL.search(words) else enhanced
