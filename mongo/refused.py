"""Documents that MongoDB does not let the service change, such as those that a validator no longer admits."""

from __future__ import annotations

import logging
import time
from typing import Final

from config.ids import named
from mongo.document import JSONObject
from mongo.errors import StoreError

log = logging.getLogger("notifier.mongo")

PERIOD: Final = 60.0
"""Seconds for which a document is left alone."""


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
        """Return the condition of a document that is none of them."""
        now = time.monotonic()
        self._documents = {name: found for name, found in self._documents.items() if found[1] > now}
        return {"_id": {"$nin": [id_ for id_, _ in self._documents.values()]}} if self._documents else {}
