"""The rules of a sharded cluster. No `mongos` is available, so every command of the service is checked against them.

The users' collection is sharded by its hashed `_id` (MongoDB manual, "Find Operations" and "update": a single update,
an upsert and `findAndModify` must name the shard key, or `_id`, by equality and under the simple collation).

As a program, it runs the service and writes what breaks the rules to standard error, for the soak.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import pytest
from pymongo.monitoring import (
    CommandFailedEvent,
    CommandListener,
    CommandStartedEvent,
    CommandSucceededEvent,
)

import mongo.connection
from config.checks import DEAD_MAIL
from mongo.lanes import PROBE
from tests.client import DB

BROKEN: Final = "breaks a rule of sharded clusters"
"""The form of a line of the program."""
ANY_SHARD: Final = ("notifier.due", "notifier.suppression.at", "$changeStream", "$currentOp", "$sample")
"""What reads that may ask every shard begin with: what is due, counts, the change stream, how far an index is, and the
sample of `check`."""


class ClusterRules(CommandListener):
    """Collects the commands that a sharded cluster would refuse, or answer by asking every shard."""

    def __init__(self) -> None:
        self.broken: list[str] = []
        self.updated: list[str] = []
        """The database of each update command."""

    def started(self, event: CommandStartedEvent) -> None:
        """Judge a command."""
        name, command = event.command_name, event.command
        if name == "update":
            self.updated.append(event.database_name)
        if fault := fault_of(name, command):
            self.broken.append(f"{name} {BROKEN}: {fault}: {shape(command)}")

    def succeeded(self, event: CommandSucceededEvent) -> None:
        """Do nothing."""

    def failed(self, event: CommandFailedEvent) -> None:
        """Do nothing."""


def shape(command: Mapping[str, Any]) -> str:
    """Return the part of a command that a report shows."""
    return f"{ {name: command[name] for name in command if name not in {'lsid', '$db', '$clusterTime'}} }"[:1000]


def fault_of(name: str, command: Mapping[str, Any]) -> str | None:
    """Return which rule a command breaks."""
    if "startTransaction" in command:
        return "a transaction"
    if command.get(name) in (DEAD_MAIL, PROBE) and name != "findAndModify":
        return None
    judge = JUDGES.get(name)
    return judge(command) if judge else "not a command of the service"


def _of_update(command: Mapping[str, Any]) -> str | None:
    return next((fault for item in command["updates"] if (fault := _of_statement(item))), None)


def _of_statement(item: Mapping[str, Any]) -> str | None:
    if not _is_simple(item):
        return "another collation"
    if item.get("multi"):
        return None if "$in" in item["q"].get("_id", {}) and not item.get("upsert") else "every shard is written to"
    return None if _names_one(item["q"]) else "not one _id"


def _of_find_and_modify(command: Mapping[str, Any]) -> str | None:
    return None if _names_one(command["query"]) and _is_simple(command) else "not one _id"


def _of_find(command: Mapping[str, Any]) -> str | None:
    is_for_any = not command.get("filter") and command.get("limit") == 1  # `check` tries to read some document
    by_index = "hint" in command  # `POST /suppress` by an address alone: no shard looks through its documents
    return None if is_for_any or by_index else _of_read(command.get("filter", {}))


def _of_read(condition: Mapping[str, Any]) -> str | None:
    begins = next(iter(condition), "")
    return None if begins in {"_id", *ANY_SHARD} else f"every shard is asked for {begins or 'everything'}"


def _of_aggregate(command: Mapping[str, Any]) -> str | None:
    first = command["pipeline"][0] if command["pipeline"] else {}
    return _of_read(first.get("$match", first))


def _of_create_indexes(command: Mapping[str, Any]) -> str | None:
    return "a unique index" if any(index.get("unique") for index in command["indexes"]) else None


def _names_one(query: Mapping[str, Any]) -> bool:
    return "_id" in query and not (isinstance(query["_id"], Mapping) and any(n.startswith("$") for n in query["_id"]))


def _is_simple(item: Mapping[str, Any]) -> bool:
    return bool(item.get("collation") == {"locale": "simple"})


def _harmless(_: Mapping[str, Any]) -> None:
    return None


JUDGES: Final[Mapping[str, Callable[[Mapping[str, Any]], str | None]]] = {
    "update": _of_update,
    "findAndModify": _of_find_and_modify,
    "find": _of_find,
    "aggregate": _of_aggregate,
    "createIndexes": _of_create_indexes,
    "count": lambda command: _of_read(command["query"]) if command.get("query") else None,  # else from metadata
    # Nothing about documents, an insert, which names its `_id`, and the cursor of a command above.
    **dict.fromkeys(
        ("hello", "ping", "buildInfo", "connectionStatus", "saslStart", "saslContinue", "endSessions", "insert"),
        _harmless,
    ),
    **dict.fromkeys(("replSetInitiate", "replSetGetConfig", "replSetReconfig"), _harmless),  # of a local run
    **dict.fromkeys(("getMore", "killCursors", "listIndexes", "listCollections", "listDatabases"), _harmless),
}


@pytest.fixture(scope="session")
def cluster_rules() -> Iterator[ClusterRules]:
    """Check every client of the service in this process against the rules."""
    rules = ClusterRules()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mongo.connection.OPTIONS", {**mongo.connection.OPTIONS, "event_listeners": [rules]})
        yield rules


@pytest.fixture(autouse=True)
def _held_to_cluster_rules(cluster_rules: ClusterRules) -> Iterator[None]:
    yield
    broken, cluster_rules.broken, cluster_rules.updated = cluster_rules.broken, [], []
    assert not broken


@pytest.fixture
def updates(cluster_rules: ClusterRules, database: DB) -> Callable[[], int]:
    """Return a function that tells how many update commands the test's services have sent to their database."""
    return lambda: cluster_rules.updated.count(database.name)


class _Reported(ClusterRules):
    def started(self, event: CommandStartedEvent) -> None:
        super().started(event)
        for line in self.broken:
            print(line, file=sys.stderr, flush=True)  # noqa: T201 - for the soak
        self.broken.clear()


if __name__ == "__main__":
    mongo.connection.OPTIONS = {**mongo.connection.OPTIONS, "event_listeners": [_Reported()]}  # type: ignore[misc]

    import notifier

    notifier.run()
