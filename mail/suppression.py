"""Which refusals suppress an address: those that say of the mailbox itself that it does not exist.

Sending on to such an address costs a sender its reputation. A refusal for policy, reputation, size or quota says
nothing of the kind, whatever code it has.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from mail.refusals import ACCOUNT, LOGIN, REPUTATION, RIGHTS
from mail.replies import Outcome
from mail.verdicts import Stage, Verdict

CODES: Final[Mapping[str, tuple[str, str]]] = {
    "5.1.1": ("The mailbox does not exist.", "RFC 3463, section 3.2"),
    "5.1.2": ("The domain does not exist, or takes no mail.", "RFC 3463, section 3.2"),
    "5.1.6": ("The mailbox has moved, and takes no mail any more.", "RFC 3463, section 3.2"),
    "5.1.10": ("The domain says that it takes no mail (null MX).", "RFC 7505, section 4.2"),
}
"""Enhanced status codes, what they say, and their sources. `docs/bounces.md` has the same table."""
REPLY: Final = re.compile(r"RCPT: (5\d\d[ -](5\.\d{1,3}\.\d{1,3})\b.*)", re.DOTALL)
POLICY: Final = re.compile(r"policy|policies|reputation|spam|abuse|block|suspicious|rejected by rule", re.IGNORECASE)
"""Words of refusals that are not about the mailbox, whatever their code."""
NAMES: Final = re.compile(r"<[^>]*>|\S+@\S+|[\w-]+(?:\.[\w-]+)+")
"""Addresses, hosts and codes. Their words say nothing about the reason."""


def bounce_code(outcome: Outcome) -> str | None:
    """Return the code of `CODES` for which an outcome suppresses its address, or `None`."""
    found = REPLY.match(outcome.detail)
    if outcome.verdict is not Verdict.PERMANENT or outcome.stage is not Stage.RCPT or not found:
        return None
    reply, code = NAMES.sub(" ", " ".join(found[1].split())), found[2]
    about_us = any(row.pattern.match(reply) for row in (*LOGIN, *RIGHTS, *ACCOUNT, *REPUTATION))
    return code if code in CODES and not about_us and not POLICY.search(reply) else None
