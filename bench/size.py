"""How much a run measures: in full, or quickly to check that everything works."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    cache_gb: float
    """MongoDB's cache."""
    rounds: int
    """Rounds of creates, lists and reads. They are many and short, because the machine's speed keeps changing."""
    long_rounds: int
    """Rounds of what takes longer."""
    growth_rounds: int
    """Rounds of growth, whose ratios are close to 1."""
    seconds: int
    """Length of one measurement with wrk."""
    open_seconds: int
    """Length of one open loop."""
    connections: Sequence[int]
    users: int
    notifications: int
    """Notifications of each user."""
    batches: Sequence[int]
    """Operations per command. The best of them is MongoDB's ceiling."""
    loads: Sequence[float]
    """Offered loads, as fractions of the service's highest rate."""
    limits: Sequence[int]
    """Values of `NOTIFICATIONS_LIMIT`."""
    user_counts: Sequence[int]
    owed: int
    """E-mails owed while creates are measured."""
    data_kib: Sequence[int]
    """Sizes of `data`."""
    emails: int
    """E-mails that each way of sending sends in a round."""
    distant_emails: int
    """The same for each connection to a mail server far away."""
    round_trips: Sequence[int]
    """Round trips to it, in milliseconds."""
    many_emails: int
    """E-mails that one process sends, and then two."""
    requests: Sequence[int]
    """Requests after which memory is measured."""
    request_seconds: int
    """Length of each load on the way there."""
    streams: Sequence[int]
    """Streams that are open while notifications are shown on a page."""
    shown: int
    """Notifications shown for each of these."""
    hostile_seconds: float
    """Length of one measurement with a bad client."""


FULL: Final = Size(
    cache_gb=2,
    rounds=6,
    long_rounds=3,
    growth_rounds=5,
    seconds=1,
    open_seconds=4,
    connections=(1, 8, 64, 256),
    users=10_000,
    notifications=25,
    batches=(16, 64, 256),
    loads=(0.1, 0.25, 0.5, 0.7, 0.85, 0.95),
    limits=(20, 100, 1000),
    user_counts=(1_000, 100_000, 1_000_000),
    owed=100_000,
    data_kib=(0, 1, 16),
    emails=3_000,
    distant_emails=100,
    round_trips=(5, 50),
    many_emails=10_000,
    requests=(100_000, 1_000_000),
    request_seconds=10,
    streams=(0, 100, 1_000),
    shown=100,
    hostile_seconds=6.0,
)
QUICK: Final = Size(
    cache_gb=0.25,
    rounds=1,
    long_rounds=1,
    growth_rounds=1,
    seconds=1,
    open_seconds=1,
    connections=(64,),
    users=2_000,  # enough that no outbox fills up
    notifications=25,
    batches=(64,),
    loads=(0.5,),
    limits=(20,),
    user_counts=(100, 1_000),
    owed=100,
    data_kib=(16,),
    emails=300,
    distant_emails=10,
    round_trips=(50,),
    many_emails=300,
    requests=(500, 1_000),
    request_seconds=1,
    streams=(0, 20),
    shown=5,
    hostile_seconds=2.0,
)
