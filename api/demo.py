"""The demo page, and what it asks for besides the API: how the service is set up, and the e-mails of a local run."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from hmac import compare_digest
from typing import Final

from aiohttp import web

from api.answers import json_line
from api.auth import identify
from api.pages import FOLDER, OWN_ORIGIN_HEADERS, File, page_headers, serve_files
from ops.mailbox import newest_emails, read_email
from settings import Scope, Settings

FILES: Final = {
    "/demo.js": File(FOLDER / "demo.js", "text/javascript"),
    "/demo.css": File(FOLDER / "demo.css", "text/css"),
    "/demo.svg": File(FOLDER / "demo.svg", "image/svg+xml"),
}
NO_STORE: Final = {"Cache-Control": "no-store"}
EMAIL_HEADERS: Final = {
    **OWN_ORIGIN_HEADERS,
    **NO_STORE,
    "Content-Security-Policy": (
        "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-DNS-Prefetch-Control": "off",
}
"""An e-mail runs nothing and loads nothing, and only the demo page shows it."""
LINKS_OPEN_NOTHING: Final = "<!DOCTYPE html><base target=_blank>"
"""A link opens a window, which the sandbox does not let it."""


def routes(settings: Settings) -> Iterator[web.RouteDef]:
    """Yield the routes of the demo page, and in a local run those of its mailbox; none if there is no demo page.

    All are open to everyone but the mailbox.
    """
    if not (settings.demo or settings.local):
        return
    frames = "'self'" if settings.local else "'none'"
    page = File(FOLDER / "demo.html", "text/html", page_headers(frames=frames))
    yield from serve_files({"/": page, **FILES})
    setup = {
        "keys": bool(settings.api_keys),
        "mailbox": settings.local,
        "examples": settings.local and not settings.templates_dir,
    }

    async def describe_setup(_: web.Request) -> web.Response:
        return web.json_response({"success": True, "data": setup}, headers=NO_STORE, dumps=json_line)

    yield web.get("/demo/setup", describe_setup)
    if settings.local:
        mailbox = _Mailbox()
        yield web.get("/demo/mails", mailbox.list)
        yield web.get("/demo/mails/{secret}/{name}", mailbox.html)


class _Mailbox:
    """Shows the e-mails. A frame cannot send a key, so the path of an e-mail has a secret."""

    def __init__(self) -> None:
        self._secret = secrets.token_urlsafe()

    async def list(self, request: web.Request) -> web.Response:
        """Return the newest e-mails: their text, and the path of their HTML."""
        identify(request, Scope.CREATE)
        mails = [
            {
                "file": f"{email.file}",
                "to": email.to,
                "subject": email.subject,
                "text": email.text,
                "html": None if email.html is None else f"demo/mails/{self._secret}/{email.file.name}",
            }
            for email in await asyncio.to_thread(newest_emails)
        ]
        return web.json_response({"success": True, "mails": mails}, headers=NO_STORE, dumps=json_line)

    async def html(self, request: web.Request) -> web.Response:
        """Return the HTML of an e-mail."""
        given = request.match_info["secret"].encode("utf-8", "surrogateescape")
        email = await asyncio.to_thread(read_email, request.match_info["name"])
        if not compare_digest(given, self._secret.encode()) or email is None or email.html is None:
            raise web.HTTPNotFound
        return web.Response(text=LINKS_OPEN_NOTHING + email.html, content_type="text/html", headers=EMAIL_HEADERS)
