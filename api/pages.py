"""What browsers get besides the API: the module of the bell, the documentation in Swagger UI, and the demo page."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from hashlib import blake2b
from hmac import compare_digest
from pathlib import Path
from typing import Final

from aiohttp import web
from swagger_ui_bundle import swagger_ui_path

from api.auth import identify
from api.bodies import json_line
from api.openapi import DOCUMENT
from ops.local import newest_emails, read_email
from settings import Scope, Settings

FOLDER: Final = Path(__file__).parent.parent / "web"

MODULE_HEADERS: Final = {
    "Cache-Control": "public, max-age=300, stale-while-revalidate=86400",  # a page need not wait for it
    "Access-Control-Allow-Origin": "*",  # a module of another origin is fetched with CORS; there is no secret in it
    "Cross-Origin-Resource-Policy": "cross-origin",
}
FOR_EVER: Final = "public, max-age=31536000, immutable"
IMPORT: Final = re.compile(rb"""((?:from|import\() ?["`]\./[^"`]+\.js)(?=["`])""")
OWN_ORIGIN_HEADERS: Final = {"Cache-Control": "no-cache", "Cross-Origin-Resource-Policy": "same-origin"}


def page_headers(*, images: str = "'self'", frames: str = "'none'") -> Mapping[str, str]:
    """Return the headers of a page that loads nothing from elsewhere, and may show these images and frames."""
    policy = (
        f"default-src 'none'; script-src 'self'; style-src 'self'; img-src {images}; connect-src 'self'; "
        f"frame-src {frames}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer", **OWN_ORIGIN_HEADERS}


@dataclass(frozen=True, slots=True)
class File:
    path: Path
    media_type: str
    headers: Mapping[str, str] = field(default_factory=lambda: OWN_ORIGIN_HEADERS)


ICONS: Final = "'self' data:"
"""Where Swagger UI has its icons."""
DOCS_PAGE: Final = File(FOLDER / "docs.html", "text/html", page_headers(images=ICONS))
ASSETS: Final = {
    "/inbox.js": File(FOLDER / "inbox.js", "text/javascript", MODULE_HEADERS),
    "/inbox.d.ts": File(FOLDER / "inbox.d.ts", "text/plain", MODULE_HEADERS),  # types for TypeScript
    "/u/style.css": File(FOLDER / "unsubscribe.css", "text/css"),
    "/docs.js": File(FOLDER / "docs.js", "text/javascript"),
    "/docs.css": File(FOLDER / "docs.css", "text/css"),
    "/swagger-ui-bundle.js": File(swagger_ui_path / "swagger-ui-bundle.js", "text/javascript"),
    "/swagger-ui.css": File(swagger_ui_path / "swagger-ui.css", "text/css"),
}
"""Always served, and open to everyone. They are no part of the API."""


def routes() -> Iterator[web.RouteDef]:
    """Yield the routes of the assets."""
    _read(DOCS_PAGE.path)
    modules = {
        f"/{path.relative_to(FOLDER)}": File(path, "text/javascript", MODULE_HEADERS)
        for path in sorted((FOLDER / "inbox").rglob("*.js"))
    }
    yield from serve_files(ASSETS | modules)


def serve_files(files: Mapping[str, File]) -> Iterator[web.RouteDef]:
    """Yield the routes of these files, which are open to everyone.

    They are read now, so one that is missing stops the start.
    """
    for path, file in files.items():
        _read(file.path)
        yield web.get(path, partial(serve, file=file))


async def docs(request: web.Request) -> web.Response:
    return await serve(request, file=DOCS_PAGE)


async def openapi(request: web.Request) -> web.Response:
    return web.json_response(request.app[DOCUMENT](), dumps=json_line)


async def serve(request: web.Request, *, file: File) -> web.Response:
    """Return a file, or 304 to a client that has it already."""
    body, etag = _read(file.path)
    known = {tag.value for tag in request.if_none_match or ()}
    response = web.Response(status=304) if known & {etag, "*"} else web.Response(body=body)
    if response.status == 200:
        response.content_type, response.charset = file.media_type, "utf-8"
    response.etag = etag
    response.headers.update(file.headers)
    if file.headers is MODULE_HEADERS and request.query.get("v") == _version():
        response.headers["Cache-Control"] = FOR_EVER
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


@cache
def _read(path: Path) -> tuple[bytes, str]:
    """Return the content of a file and its ETag. Files do not change while the service runs.

    The bell's modules import each other with its version, `./inbox/panel.js?v=…`, so browsers keep them for ever.
    """
    body = path.read_bytes()
    if path.suffix == ".js" and path.is_relative_to(FOLDER):
        body = IMPORT.sub(rb"\1?v=" + _version().encode(), body)
    return body, blake2b(body, digest_size=12).hexdigest()


@cache
def _version() -> str:
    """Return a digest of the modules that the bell consists of."""
    digest = blake2b(digest_size=6)
    for path in sorted((FOLDER / "inbox").rglob("*.js")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


# --- the demo page ------------------------------------------------------------------------------------

DEMO_FILES: Final = {
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


def demo_routes(settings: Settings) -> Iterator[web.RouteDef]:
    """Yield the routes of the demo page, and in a local run those of its mailbox, which only a key opens."""
    if not (settings.demo or settings.local):
        return
    frames = "'self'" if settings.local else "'none'"
    page = File(FOLDER / "demo.html", "text/html", page_headers(frames=frames))
    yield from serve_files({"/": page, **DEMO_FILES})
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
        folder, emails = f"demo/mails/{self._secret}", await asyncio.to_thread(newest_emails)
        mails = [
            email._asdict() | {"file": f"{email.file}", "html": email.html and f"{folder}/{email.file.name}"}
            for email in emails
        ]
        return web.json_response({"success": True, "mails": mails}, headers=NO_STORE, dumps=json_line)

    async def html(self, request: web.Request) -> web.Response:
        secret = request.match_info["secret"].encode("utf-8", "surrogateescape")
        email = await asyncio.to_thread(read_email, request.match_info["name"])
        if not compare_digest(secret, self._secret.encode()) or email is None or email.html is None:
            raise web.HTTPNotFound
        return web.Response(text=LINKS_OPEN_NOTHING + email.html, content_type="text/html", headers=EMAIL_HEADERS)
