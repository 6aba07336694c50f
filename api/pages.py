"""What browsers get besides the API: the module of the bell, the documentation in Swagger UI, and the demo page."""

import asyncio
import re
import secrets
from collections.abc import Iterator, Mapping
from functools import cache, partial
from hashlib import blake2b
from hmac import compare_digest
from pathlib import Path
from typing import Final

from aiohttp import web
from swagger_ui_bundle import swagger_ui_path

from api.auth import GATE
from api.bodies import json_line, revalidated
from api.openapi import DOCUMENT
from ops.local import newest_emails, read_email
from settings import Scope, Settings

Headers = Mapping[str, str]

FOLDER: Final = Path(__file__).parent.parent / "web"
ASSETS: Final = {
    "/u/style.css": FOLDER / "unsubscribe.css",
    "/docs.js": FOLDER / "docs.js",
    "/docs.css": FOLDER / "docs.css",
    "/swagger-ui-bundle.js": swagger_ui_path / "swagger-ui-bundle.js",
    "/swagger-ui.css": swagger_ui_path / "swagger-ui.css",
}
MEDIA_TYPES: Final = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".ts": "text/plain",  # types for TypeScript
}
IMPORT: Final = re.compile(rb"""((?:from|import\() ?["`]\./[^"`]+\.js)(?=["`])""")
MODULE_HEADERS: Final = {
    "Cache-Control": "public, max-age=300, stale-while-revalidate=86400",  # a page need not wait for it
    "Access-Control-Allow-Origin": "*",  # a module of another origin is fetched with CORS; there is no secret in it
    "Cross-Origin-Resource-Policy": "cross-origin",
    "X-Content-Type-Options": "nosniff",
}
FOR_EVER: Final = "public, max-age=31536000, immutable"
NO_STORE: Final = {"Cache-Control": "no-store"}
OWN_ORIGIN_HEADERS: Final = {
    "Cache-Control": "no-cache",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
# An e-mail runs nothing and loads nothing, and only the demo page shows it.
EMAIL_HEADERS: Final = {
    **OWN_ORIGIN_HEADERS,
    **NO_STORE,
    "Content-Security-Policy": (
        "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-DNS-Prefetch-Control": "off",
}
LINKS_OPEN_NOTHING: Final = "<!DOCTYPE html><base target=_blank>"  # the sandbox opens no window


def page_headers(frames: str = "'none'") -> Headers:
    """Return the headers of a page that loads nothing from elsewhere, and may show these frames."""
    policy = (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        f"frame-src {frames}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer", **OWN_ORIGIN_HEADERS}


def routes() -> Iterator[web.RouteDef]:
    """Yield the routes of the assets, which are always served and no part of the API."""
    bell = [FOLDER / "inbox.js", FOLDER / "inbox.d.ts", *_modules()]
    yield from _open_to_everyone({f"/{path.relative_to(FOLDER)}": path for path in bell}, MODULE_HEADERS)
    yield from _open_to_everyone(ASSETS, OWN_ORIGIN_HEADERS)


def _open_to_everyone(files: Mapping[str, Path], headers: Headers) -> Iterator[web.RouteDef]:
    for path, file in files.items():
        _read(file)  # a file that is missing stops the start
        yield web.get(path, partial(_serve, file=file, headers=headers))


async def docs(request: web.Request) -> web.Response:
    return await _serve(request, file=FOLDER / "docs.html", headers=page_headers())


async def openapi(request: web.Request) -> web.Response:
    return web.json_response(request.app[DOCUMENT](), dumps=json_line)


async def _serve(request: web.Request, *, file: Path, headers: Headers) -> web.Response:
    if headers is MODULE_HEADERS and request.query.get("v") == _version():
        headers = {**headers, "Cache-Control": FOR_EVER}
    return revalidated(request, _read(file), headers, f"{MEDIA_TYPES[file.suffix]}; charset=utf-8")


@cache
def _read(file: Path) -> bytes:
    """Return a file's content. The bell's modules import each other with its version, to be kept for ever."""
    body = file.read_bytes()
    if file.suffix == ".js" and file.is_relative_to(FOLDER):
        body = IMPORT.sub(rb"\1?v=" + _version().encode(), body)
    return body


@cache
def _version() -> str:
    return blake2b(b"".join(path.read_bytes() for path in _modules()), digest_size=6).hexdigest()


def _modules() -> list[Path]:
    return sorted(FOLDER.glob("inbox/**/*.js"))


# --- the demo page ------------------------------------------------------------------------------------


def demo_routes(settings: Settings) -> Iterator[web.RouteDef]:
    """Yield the routes of the demo page, and in a local run those of its mailbox, which only a key opens."""
    if not (settings.demo or settings.local):
        return
    frames = "'self'" if settings.local else "'none'"
    yield from _open_to_everyone({"/": FOLDER / "demo.html"}, page_headers(frames))
    files = {f"/{name}": FOLDER / name for name in ("demo.js", "demo.css", "demo.svg")}
    yield from _open_to_everyone(files, OWN_ORIGIN_HEADERS)
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
        request.app[GATE].identify(request, Scope.CREATE)
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
