"""The rules of sharded clusters: each is seen to be broken. That no command breaks one, every other test checks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from tests.cluster import fault_of

SIMPLE = {"locale": "simple"}


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("update", {"updates": [{"q": {"_id": 1}}]}),
        ("update", {"updates": [{"q": {"_id": 1}, "collation": {"locale": "en"}}]}),
        ("update", {"updates": [{"q": {"_id": {"$in": [1]}}, "collation": SIMPLE}]}),
        ("update", {"updates": [{"q": {"_id": 1}, "collation": SIMPLE}, {"q": {"name": 1}, "collation": SIMPLE}]}),
        ("update", {"updates": [{"q": {"notifier.due": 1}, "collation": SIMPLE, "multi": True}]}),
        ("findAndModify", {"query": {"email": "a"}, "collation": SIMPLE}),
        ("findAndModify", {"query": {"_id": 1}}),
        ("find", {"find": "users", "filter": {"email": "a"}}),
        ("find", {"find": "users"}),
        ("aggregate", {"aggregate": "users", "pipeline": [{"$match": {"email": "a"}}]}),
        ("aggregate", {"aggregate": "users", "pipeline": []}),
        ("createIndexes", {"indexes": [{"key": {"email": 1}, "unique": True}]}),
        ("delete", {"delete": "users"}),
        ("find", {"find": "users", "filter": {"_id": 1}, "startTransaction": True}),
        ("distinct", {"distinct": "users"}),
    ],
    ids=str,
)
def test_commands_that_a_cluster_would_refuse_are_faults(name: str, command: Mapping[str, Any]) -> None:
    assert fault_of(name, command)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("update", {"updates": [{"q": {"_id": 1, "x": 2}, "collation": SIMPLE, "upsert": True}]}),
        ("update", {"updates": [{"q": {"_id": {"$in": [1, 2]}}, "collation": SIMPLE, "multi": True}]}),
        ("findAndModify", {"query": {"_id": 1}, "collation": SIMPLE}),
        ("find", {"find": "users", "filter": {"_id": {"$in": [1]}}}),
        ("find", {"find": "users", "filter": {"notifier.due": {"$exists": True}}}),
        ("aggregate", {"aggregate": "users", "pipeline": [{"$changeStream": {}}]}),
        ("find", {"find": "dead_mail", "filter": {"user_id": "x"}}),
        ("createIndexes", {"indexes": [{"key": {"notifier.due": 1}}]}),
    ],
    ids=str,
)
def test_commands_that_a_cluster_accepts_are_no_faults(name: str, command: Mapping[str, Any]) -> None:
    assert fault_of(name, command) is None
