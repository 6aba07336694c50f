"""Whose due e-mails are claimed first: a share goes to each priority and to retries, so that none starves.

A document that MongoDB refuses to change, because of a stricter validator for example, is left out for a minute.
"""

from __future__ import annotations

import logging
import random
import time
from bisect import bisect
from collections.abc import Iterable
from datetime import datetime
from typing import Final

from config.ids import named
from mongo.document import JSONObject
from mongo.errors import StoreError
from mongo.owed import ERAS, ERAS_END

log = logging.getLogger("notifier.mongo")

EDGES: Final = (ERAS["normal"], ERAS["low"], ERAS_END)
"""Where the bands of priorities end, and that of e-mails due again begins."""
SHARE: Final = 8
"""Each band gets one in eight of those claimed."""
PERIOD: Final = 60.0
"""Seconds for which a document that cannot be changed is left alone."""


def band_of(due: object) -> int:
    return bisect(EDGES, due) if isinstance(due, datetime) else 0  # Python has no date for one so long past


def shares(due: Iterable[tuple[object, int]], users: int, share: int) -> list[object]:
    """Choose users at random: a share from each band, the rest from the first bands."""
    bands: list[dict[str, object]] = [{} for _ in range(len(EDGES) + 1)]
    for id_, band in due:
        bands[band][repr(id_)] = id_
    shuffled = [random.sample(list(band.values()), len(band)) for band in bands]
    fair = [id_ for ids in shuffled for id_ in ids[:share]]
    return [*fair, *(id_ for ids in shuffled for id_ in ids[share:])][:users]


class Refused:
    """The documents that MongoDB did not let the service change within the last minute.

    They are left alone so that they do not fill the window of documents to claim.
    """

    def __init__(self) -> None:
        self._documents: dict[str, tuple[object, float]] = {}

    def add(self, id_: object, reason: StoreError) -> None:
        """Leave the document with this `_id` alone, and say why in the log."""
        log.error("%s: MongoDB does not let its outbox be changed: %s", named(repr(id_)), reason)
        self._documents[repr(id_)] = id_, time.monotonic() + PERIOD

    def condition(self) -> JSONObject:
        now = time.monotonic()
        self._documents = {name: entry for name, entry in self._documents.items() if entry[1] > now}
        return {"_id": {"$nin": [id_ for id_, _ in self._documents.values()]}} if self._documents else {}
