"""Faults that a test asks of a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.servers import Drop, Mongod

Script = Callable[[str, str], Awaitable[str | None]]

HEARTBEATS = "heartbeatFrequencyMS=500"
"""A server that only pretends to step down does not tell its clients when it is back: they must look."""


@contextmanager
def failing(mongod: Mongod, commands: list[str], mode: object = "alwaysOn", **fault: Any) -> Iterator[None]:
    """Let the server fail these commands of the service."""
    with mongod.client() as client:
        data = {"failCommands": commands, "appName": "notifier", **fault}
        client.admin.command({"configureFailPoint": "failCommand", "mode": mode, "data": data})
        try:
            yield
        finally:
            client.admin.command({"configureFailPoint": "failCommand", "mode": "off"})


def scripted(replies: dict[str, list[str | None]]) -> Script:
    """Give these replies at each stage, one after another, and then accept."""
    left = {stage: list(found) for stage, found in replies.items()}

    async def script(stage: str, _recipient: str) -> str | None:
        reply = left[stage].pop(0) if left.get(stage) else None
        if reply == "drop":
            raise Drop
        if reply == "hang":
            await asyncio.sleep(30)
        return reply

    return script
