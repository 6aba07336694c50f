"""E-mails that are owed before a worker starts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from kinds import Kind
from mongo.creation import Create
from settings import Settings
from store import Store, open_store

DIGEST = Kind(name="digest", email=True)


@asynccontextmanager
async def owing(settings: Settings, emails: Mapping[str, int], kind: Kind = DIGEST) -> AsyncIterator[Store]:
    """Return a store in which this many e-mails are owed to each of these users."""
    async with open_store(settings) as direct:
        for user_id, count in emails.items():
            for _ in range(count):
                await direct.create(Create(user_id, kind))
        yield direct


def ids(count: int) -> list[str]:
    """Return the ids of this many users."""
    return [f"{n:024x}" for n in range(count)]
