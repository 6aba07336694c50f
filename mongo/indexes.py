"""The indexes that the service needs: looked up, or made while it serves, however long MongoDB takes.

An index need not be the service's own: any serves that has the same key and covers every document with the field.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from pymongo.errors import OperationFailure

from mongo.connection import SharedCollection
from mongo.document import SIMPLE, JSONObject
from mongo.errors import REFUSED_US, means_unavailable, name_of, within

log = logging.getLogger("notifier.mongo")

TIMEOUT: Final = 4.0  # seconds to wait for the answer to a question
TELL_AFTER: Final = 3.0  # seconds after which the log says that MongoDB is making an index
DROP: Final = "drop it; the service makes its own."
FAULTS: Final[Mapping[str, str]] = {
    "expireAfterSeconds": f"deletes documents (expireAfterSeconds): {DROP}",
    "unique": f"is unique: {DROP}",
    "hidden": "is hidden: unhide it.",
}
"""Options with which an index is in the way, and what to do; if hidden, only while none serves."""
UNFIT: Final = {*FAULTS, "partialFilterExpression", "collation"}
"""Options with which an index does not serve. Beside the last two, MongoDB admits another with the same key."""


class Index:
    """An ascending index on some fields. `waiting` is a sentence about the consequences while it is missing."""

    def __init__(self, collection: SharedCollection, *fields: str, sparse: bool = False, waiting: str = "") -> None:
        self.collection = collection
        self.hint: str | None = None  # its name, once it is there
        self.is_missing = False  # as far as is known: commands do not check, and work without it
        self._key = dict.fromkeys(fields, 1)
        self._name = "_".join(f"{field}_1" for field in fields)
        self._sparse = {"sparse": True} if sparse else {}
        self._waiting = waiting
        self._told = ""
        self.lost = asyncio.Event()

    def lose(self) -> None:
        log.warning("%s: the index %s was dropped, and is made again", self.collection.name, self.hint)
        self.hint, self.is_missing = None, True
        self.lost.set()

    async def make(self) -> None:
        """Find it, or make it and wait until it is there. Raises PyMongo's errors unless they are refusals."""
        self.lost.clear()
        indexes: list[Mapping[str, Any]] = []
        try:
            async with within(TIMEOUT):
                indexes += await (await self.collection.list_indexes()).to_list()
            indexes.append(await self._find_or_create(indexes))
            fault = self.fault(indexes)
        except OperationFailure as exc:
            if means_unavailable(exc) and exc.code not in REFUSED_US:
                raise
            self.hint, self.is_missing = None, True
            fault = self.fault(indexes) or f"MongoDB refuses the index {self._name}: {name_of(exc)}."
        if fault:
            self._tell(logging.ERROR, fault)
        elif self._told:
            log.info("%s: the index %s is there", self.collection.name, self.hint)
            self._told = ""

    async def _find_or_create(self, indexes: Sequence[Mapping[str, Any]]) -> JSONObject:
        serving, is_taken = self.serving(indexes), any(index["name"] == self._name for index in indexes)
        if self.hint and serving is None:
            self.lose()
        index = serving or {"name": f"{self._name}{'_own' * is_taken}", "key": self._key, **self._sparse}
        await self._create({**index, "collation": SIMPLE})
        self.hint, self.is_missing = index["name"], False
        return index

    def serving(self, indexes: Iterable[Mapping[str, Any]]) -> JSONObject | None:
        usable = [index for index in self._alike(indexes) if not UNFIT & index.keys()]
        best = max(usable, key=lambda index: index.get("sparse", False), default=None)
        return {name: value for name, value in best.items() if name != "ns"} if best else None

    def fault(self, indexes: Sequence[Mapping[str, Any]]) -> str | None:
        """Return a sentence about an index that is in the way or does harm."""
        serves = bool(self.serving(indexes))
        for index in self._alike(indexes):
            for option, words in FAULTS.items():
                if option in index and not (serves and option == "hidden"):
                    return f"The index {index['name']} of {self.collection.name} {words}"
        return None

    def _alike(self, indexes: Iterable[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        return [index for index in indexes if list(index["key"].items()) == list(self._key.items())]

    async def _create(self, index: JSONObject) -> None:
        """Make the index, or wait for one that is being made, which is the same command. It has no timeout."""
        database = self.collection.database
        async with within(TIMEOUT):
            hello = await database.command("hello")
        is_replicated = "setName" in hello or "msg" in hello
        quorum: JSONObject = {"commitQuorum": "majority"} if is_replicated else {}  # a member may be down
        sentence = f"MongoDB is making the index {self._name}."
        telling = asyncio.get_running_loop().call_later(TELL_AFTER, self._tell, logging.WARNING, sentence)
        try:
            await database.command("createIndexes", self.collection.name, indexes=[index], **quorum)
        finally:
            telling.cancel()

    def _tell(self, level: int, sentence: str) -> None:
        """Log a sentence once, until another one is true."""
        if sentence != self._told:
            log.log(level, "%s%s", sentence, f" {self._waiting}" if self.is_missing else "")
        self._told = sentence
