"""Documents that MongoDB does not let the service change, such as those that a validator no longer admits."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

from mongo.document import JSONObject

PERIOD: Final = 60.0
"""Seconds for which a document is left alone."""


class Refused:
    """The documents that MongoDB did not let the service change within the last minute.

    They are left alone so that they do not fill the window of documents to claim.
    """

    def __init__(self) -> None:
        self._documents: dict[str, tuple[object, str, float]] = {}

    def add(self, id_: object, reason: str) -> None:
        """Leave the document with this `_id` alone."""
        self._documents[repr(id_)] = id_, reason, time.monotonic() + PERIOD

    def condition(self) -> JSONObject:
        """Return the condition of a document that is none of them."""
        ids = [id_ for id_, _, _ in self._current().values()]
        return {"_id": {"$nin": ids}} if ids else {}

    def reasons(self) -> dict[str, str]:
        """Return their `_id`s as text, each with the reason."""
        return {name: reason for name, (_, reason, _) in self._current().items()}

    def _current(self) -> Mapping[str, tuple[object, str, float]]:
        now = time.monotonic()
        self._documents = {name: found for name, found in self._documents.items() if found[2] > now}
        return self._documents
