"""Which refusals suppress an address: those that say of the mailbox itself that it does not exist.

Sending on to such an address costs a sender its reputation. A refusal for policy, reputation, size or quota says
nothing of the kind, whatever code it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mail.refusals import ABOUT_US, FULL, REPLY, without_names
from mail.replies import Outcome
from mail.verdicts import Verdict

CODES: Final[Mapping[str, tuple[str, str]]] = {
    "5.1.1": ("The mailbox does not exist.", "RFC 3463, section 3.2"),
    "5.1.2": ("The domain does not exist, or takes no mail.", "RFC 3463, section 3.2"),
    "5.1.6": ("The mailbox has moved, and takes no mail any more.", "RFC 3463, section 3.2"),
    "5.1.10": ("The domain says that it takes no mail (null MX).", "RFC 7505, section 4.2"),
}
"""Enhanced status codes, what they say, and their sources. `docs/bounces.md` has the same table."""


def bounce_code(outcome: Outcome) -> str | None:
    """Return the code of `CODES` for which an outcome suppresses its address, or `None`."""
    found = REPLY.match(outcome.reply)
    if outcome.verdict not in {Verdict.PERMANENT, Verdict.DOUBTED} or not found or found[2] not in CODES:
        return None
    words = without_names(found[3])
    return None if ABOUT_US.search(words) or FULL.search(words) else found[2]
