"""Which documents have been judged: their `notifications` is the service's, so that writes need not ask again."""

from __future__ import annotations

import mmap
from typing import Final

ENTRIES: Final = 1 << 20
MASK: Final = (1 << 64) - 1


class Judged:
    """A fixed table of fingerprints of `_id`s. A later entry may take the place of an earlier one.

    The kernel gives the memory only as the table fills, 8 MB at most. That two ids of a process share their 64 bits is
    no likelier than a fault of the memory itself.
    """

    def __init__(self) -> None:
        self._table = memoryview(mmap.mmap(-1, 8 * ENTRIES)).cast("Q")

    def __contains__(self, id_: object) -> bool:
        """Return whether the document with this `_id` has been judged."""
        fingerprint = hash(id_) & MASK
        return self._table[fingerprint % ENTRIES] == fingerprint

    def add(self, id_: object) -> None:
        """Remember a document."""
        fingerprint = hash(id_) & MASK
        self._table[fingerprint % ENTRIES] = fingerprint
