"""Cross-origin requests of pages that may call what a browser may call (Fetch, section 3.2)."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Final

import aiohttp_cors
from aiohttp import web

PREFLIGHT_AGE: Final = 7200
"""Seconds for which a browser may remember the answer. Chrome remembers it no longer than this."""


def allow_cors(app: web.Application, origins: Sequence[str], paths: Container[str]) -> None:
    """Let the pages of these origins call these paths."""
    options = aiohttp_cors.ResourceOptions(
        allow_headers=("Authorization", "Content-Type", "If-None-Match", "X-Request-ID"),
        expose_headers=("ETag", "X-Request-ID"),
        max_age=PREFLIGHT_AGE,
    )
    cors = aiohttp_cors.setup(app, defaults=dict.fromkeys(origins, options))
    for route in list(app.router.routes()):
        if route.resource and route.resource.canonical in paths:
            cors.add(route)
