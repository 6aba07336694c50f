"""Which users' e-mails are claimed when more are due: a share of each priority, and of what is due again."""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Iterable
from datetime import datetime
from typing import Final

from mongo.owed import ERAS, ERAS_END

EDGES: Final = (ERAS["normal"], ERAS["low"], ERAS_END)
"""Where the bands of priorities end, and that of e-mails due again begins."""
SHARE: Final = 8
"""One in so many claimed is of each band, as far as there are any, so that none starves."""


def band_of(due: object) -> int:
    """Return the band of what is due then."""
    return bisect(EDGES, due) if isinstance(due, datetime) else 0  # Python has no date for one so long past


def shares(found: Iterable[tuple[object, int]], users: int, share: int) -> list[object]:
    """Choose at random from `_id`s with their bands: a share of each band, and the others from the first bands."""
    bands: list[dict[str, object]] = [{} for _ in range(len(EDGES) + 1)]
    for id_, band in found:
        bands[band][repr(id_)] = id_
    shuffled = [random.sample(list(band.values()), len(band)) for band in bands]
    chosen = [id_ for ids in shuffled for id_ in ids[:share]]
    return [*chosen, *(id_ for ids in shuffled for id_ in ids[share:])][:users]
