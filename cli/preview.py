"""The command `preview`: the e-mail that the templates make of a notification, without MongoDB or a mail server."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import asdict

from cli.output import BadInput, fail, say
from mail.templates import Content, RenderError, RenderingEnded, Templates
from mail.unsubscribe import Links
from mongo.document import JSONObject
from mongo.owed import batch
from mongo.requests import Create
from settings import Settings


def preview(new: Create, language: str | None, count: int | None, settings: Settings) -> int:
    """Return 0, or 1 if the e-mail cannot be rendered. Raises `BadInput`."""
    kind = new.kind
    if count and not kind.email_batch:
        raise BadInput(f"--count: [{kind.name}] has no email_batch, so each notification has an e-mail of its own.")
    fields = asdict(new) | {"key": kind.name, "id": "0" * 24, "timestamp": int(time.time())}
    if kind.window is not None:
        fields |= batch([{**fields, "is_new": True}] * (count or 1))
    link = Links(settings).url(new.user_id, kind.name)
    try:
        content = asyncio.run(_render(settings, fields, language, link))
    except RenderError as exc:
        return fail(f"{exc}: {exc.reason}; the e-mail would be sent without templates.")
    except RenderingEnded as exc:
        return fail(f"{exc}; the e-mail would become a dead letter.")
    header = f"Subject: {content.subject}\n" + (f"List-Unsubscribe: <{link}>\n" if link else "")
    html = f"\n\n--- as HTML ---\n\n{content.html}" if content.html else ""
    for line in f"{header}\n{content.text}{html}".split("\n"):
        say(line)
    return 0


async def _render(settings: Settings, fields: JSONObject, language: str | None, link: str | None) -> Content:
    async with aclosing(Templates(settings)) as templates:
        return await templates.render(fields, language, link)
