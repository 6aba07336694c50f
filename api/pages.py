"""What browsers are given besides the API: the module of the inbox, always, and the demo page that shows it at work."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

from aiohttp import web
from aiohttp.typedefs import Handler

from api import docs as docs_page
from api.auth import identify
from api.openapi import DOCUMENT

FOLDER: Final = Path(__file__).parent.parent / "web"
READ_MAILBOX: Final[web.AppKey[Callable[[], list[dict[str, Any]]]]] = web.AppKey("READ_MAILBOX")
"""Returns the newest e-mails of a local run; absent in any other."""

MODULE_HEADERS: Final = {
    "Cache-Control": "public, max-age=300, stale-while-revalidate=86400",  # a page need not wait for it
    "Access-Control-Allow-Origin": "*",  # a module of another origin is fetched with CORS; there is no secret in it
    "Cross-Origin-Resource-Policy": "cross-origin",
}
DEMO_HEADERS: Final = {"Cache-Control": "no-cache", "Cross-Origin-Resource-Policy": "same-origin"}
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGE_HEADERS: Final = {"Content-Security-Policy": POLICY, "Referrer-Policy": "no-referrer", **DEMO_HEADERS}


@dataclass(frozen=True, slots=True)
class File:
    """A file of `FOLDER` as it is served."""

    name: str
    media_type: str
    headers: Mapping[str, str] = field(default_factory=lambda: DEMO_HEADERS)


MODULE: Final = {"/inbox.js": File("inbox.js", "text/javascript", MODULE_HEADERS)}
DEMO: Final = {
    "/": File("demo.html", "text/html", PAGE_HEADERS),
    "/demo.js": File("demo.js", "text/javascript"),
    "/demo.css": File("demo.css", "text/css"),
    "/demo.svg": File("demo.svg", "image/svg+xml"),
}


def routes(*, demo: bool, mailbox: bool) -> Iterator[web.RouteDef]:
    """Return the routes: of the module, of the demo page, and of the mailbox that the page shows in a local run.

    The files are read now. They are no part of the API, and open to everybody; the mailbox is not.
    """
    for path, file in {**MODULE, **(DEMO if demo else {})}.items():
        yield web.get(path, _serving(file))
    if mailbox:
        yield web.get("/demo/mails", mails)


async def mails(request: web.Request) -> web.Response:
    """Return the newest e-mails of the local mailbox, as text."""
    identify(request).must_be_backend()
    found = await asyncio.to_thread(request.app[READ_MAILBOX])
    return web.json_response({"success": True, "mails": found}, headers={"Cache-Control": "no-store"})


def _serving(file: File) -> Handler:
    body = (FOLDER / file.name).read_bytes()
    etag = blake2b(body, digest_size=12).hexdigest()

    async def serve(request: web.Request) -> web.Response:
        known = {tag.value for tag in request.if_none_match or ()}
        response = web.Response(status=304) if known & {etag, "*"} else web.Response(body=body)
        if response.status == 200:
            response.content_type, response.charset = file.media_type, "utf-8"
        response.etag = etag
        response.headers.update(file.headers)
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    return serve


async def docs(request: web.Request) -> web.Response:
    """Return the OpenAPI document as a page."""
    text = docs_page.page(request.app[DOCUMENT])
    return web.Response(text=text, content_type="text/html", headers={"Content-Security-Policy": docs_page.POLICY})


async def openapi(request: web.Request) -> web.Response:
    """Return the OpenAPI document."""
    return web.json_response(request.app[DOCUMENT])
