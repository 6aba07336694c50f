"""The bell reads a stream that arrives in odd pieces, or falls silent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from aiohttp import web
from aiohttp.test_utils import TestServer
from playwright.async_api import BrowserContext

from tests.browser import Site, open_page
from tests.client import ROOT
from tests.waiting import eventually_async


class StreamServer:
    """Stands in for the service. Its stream comes in these pieces; at a "!" it waits until a list is asked for."""

    def __init__(self, site: Site, pieces: list[bytes]) -> None:
        self.lists = 0
        self.streams = 0
        self._site = site
        self._pieces = pieces

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        app = web.Application()
        app.on_response_prepare.append(self._allow_origin)
        app.router.add_get("/inbox.js", self._module)
        app.router.add_get("/inbox/{path:.+}", self._module)
        app.router.add_get("/list", self._list)
        app.router.add_get("/stream", self._stream)
        server = TestServer(app)
        await server.start_server(shutdown_timeout=0.1)  # a stream that waits for a list may wait in vain
        async with server:
            yield str(server.make_url("")).rstrip("/")

    async def _allow_origin(self, _: web.Request, response: web.StreamResponse) -> None:
        response.headers["Access-Control-Allow-Origin"] = self._site.origin

    async def _module(self, request: web.Request) -> web.Response:
        return web.Response(body=(ROOT / f"web{request.path}").read_bytes(), content_type="text/javascript")

    async def _list(self, _: web.Request) -> web.Response:
        self.lists += 1
        return web.json_response({"data": {"elements": 0, "new": 0, "list": []}})

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        self.streams += 1
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in self._pieces:
            expected = self.lists + piece.count(b"!")
            await response.write(piece.replace(b"!", b""))
            await asyncio.sleep(0.01)  # or else two pieces may arrive as one
            await eventually_async(partial(self.assert_lists, expected))
        return response

    def assert_lists(self, count: int) -> None:
        assert self.lists == count

    def assert_streams(self, at_least: int) -> None:
        assert self.streams >= at_least


async def test_a_stream_may_arrive_in_pieces_of_any_size(site: Site, context: BrowserContext) -> None:
    pieces = [b"ret", b"ry: 10", b"0\r", b"\n\r\n", b": keep-alive\r\n\r\n", b": data\n\n"]
    pieces += [b"event: inbox\r\nda", b"ta: {}\r\n\r\n!", b": keep-alive\n\n", b"\n"]
    pieces += [b"event: inbox\ndata: {}\n\nevent: inbox\ndata: {}\n\n!"]
    pieces += [bytes([byte]) for byte in 'event: inbox\ndata: {"": "ö"}'.encode()]
    pieces += [b"\n\n!"]
    service = StreamServer(site, pieces)
    async with service.running() as url:
        site.embed(url)
        await open_page(context, site.origin)
        await eventually_async(lambda: service.assert_streams(5))
        await eventually_async(partial(service.assert_lists, 4 * 5))


async def test_a_silent_stream_is_given_up(site: Site, context: BrowserContext) -> None:
    service = StreamServer(site, [b": hello\n\n", b"!!"])
    async with service.running() as url:
        site.embed(url)
        page = await context.new_page()
        await page.clock.install()
        await page.goto(site.origin)
        await eventually_async(lambda: service.assert_streams(1))
        await page.clock.run_for(44_000)
        await page.evaluate("(url) => fetch(url)", f"{url}/inbox.js")  # comes after a list that the bell asks for
        assert (service.lists, service.streams) == (1, 1)
        await page.clock.run_for(2_000)
        await eventually_async(lambda: service.assert_streams(2))
