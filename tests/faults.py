"""Faults that a test asks a real server for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mongo.errors import Patience
from mongo.owed import new_element
from tests.programs import needed
from tests.servers import Drop, Mongod, Script

HEARTBEATS = "heartbeatFrequencyMS=500"
"""An option of the connection string, so that the driver soon sees that a server is back: one that only pretends to
step down does not say so."""

impatient = pytest.mark.parametrize(
    "patience", [Patience(operation=3.5, attempt=1.2, shared_call=0.8)], ids=["impatient"]
)
"""Lets the service give up on MongoDB early. There is time for another attempt."""
hasty = pytest.mark.parametrize("patience", [Patience(operation=1.0, attempt=0.5, shared_call=0.3)], ids=["hasty"])
"""Lets it give up so early that on a busy machine it may do so without a fault."""


@contextmanager
def failing(mongod: Mongod, commands: list[str], mode: object = "alwaysOn", **fault: Any) -> Iterator[None]:
    """Let MongoDB fail these commands of the service (its fail point `failCommand`)."""
    with mongod.client() as client:
        data = {"failCommands": commands, "appName": "notifier", **fault}
        client.admin.command({"configureFailPoint": "failCommand", "mode": mode, "data": data})
        try:
            yield
        finally:
            client.admin.command({"configureFailPoint": "failCommand", "mode": "off"})


def wrong_clock(offset: str) -> dict[str, str]:
    """Return the variables that put a process's clock wrong, by "-3600" seconds for example."""
    prefix = Path(needed("faketime")).parent.parent
    library, *_ = prefix.glob("lib/*/faketime/libfaketime.so.1")
    return {"LD_PRELOAD": f"{library}", "FAKETIME": offset, "DONT_FAKE_MONOTONIC": "1"}


def movable_clock(file: Path) -> dict[str, str]:
    """Return the variables that set a process's clock wrong by the seconds in a file, such as "+3600"."""
    variables = wrong_clock("+0") | {"FAKETIME_TIMESTAMP_FILE": f"{file}", "FAKETIME_NO_CACHE": "1"}
    del variables["FAKETIME"]
    return variables


def scripted(replies: dict[str, list[str | None]]) -> Script:
    """Return a script for a `MailServer` that gives these replies at each stage, one after another, and then accepts.

    `None` accepts; "drop" breaks the connection; "hang" waits for longer than the service does.
    """
    left = {stage: list(found) for stage, found in replies.items()}

    async def script(stage: str, _recipient: str) -> str | None:
        reply = left[stage].pop(0) if left.get(stage) else None
        if reply == "drop":
            raise Drop
        if reply == "hang":
            await asyncio.sleep(30)
        return reply

    return script


def far_from_due(n: int) -> dict[str, Any]:
    """Return an e-mail owed that no worker will claim."""
    email = new_element(f"{n:024x}", "registration", datetime.now(UTC), {})
    return email | {"next_at": datetime(2100, 1, 1, tzinfo=UTC)}
