"""Firefox by WebDriver BiDi and WebKit by WebDriver, as far as the tests need them: to open a page, and to ask it."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest
from aiohttp import ClientConnectionError, ClientSession, ClientWebSocketResponse

from tests.programs import needed
from tests.servers import free_port
from tests.waiting import eventually, eventually_async

ASK = "(async () => JSON.stringify((await ({})) ?? null))()"
"""An expression, of which only text comes back."""


class Engine(Protocol):
    """A browser with one page."""

    async def open(self, url: str) -> None:
        """Open a page in a profile of its own, and wait until it has loaded."""

    async def ask(self, expression: str) -> Any:
        """Return the value of an expression in the page."""


class Firefox:
    """Firefox. The protocol is WebDriver BiDi, which it speaks itself."""

    def __init__(self, socket: ClientWebSocketResponse) -> None:
        self._socket = socket
        self._calls = 0
        self._page = ""

    async def open(self, url: str) -> None:
        profile = await self.call("browser.createUserContext")
        self._page = (await self.call("browsingContext.create", type="tab", **profile))["context"]
        await self.call("browsingContext.navigate", context=self._page, url=url, wait="complete")

    async def ask(self, expression: str) -> Any:
        target = {"context": self._page}
        reply = await self.call("script.evaluate", expression=ASK.format(expression), target=target, awaitPromise=True)
        assert reply["type"] == "success", reply
        return json.loads(reply["result"]["value"])

    async def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """Call a command, and return its result."""
        self._calls += 1
        await self._socket.send_json({"id": self._calls, "method": method, "params": parameters})
        while (reply := await self._socket.receive_json()).get("id") != self._calls:
            pass  # an event
        assert reply["type"] == "success", reply
        result: dict[str, Any] = reply["result"]
        return result


class WebKit:
    """WebKit of GTK. Each page is in a browser of its own."""

    def __init__(self, driver: ClientSession) -> None:
        self._driver = driver
        self._session = ""

    async def open(self, url: str) -> None:
        self._session = (await self._call("session", capabilities={}))["sessionId"]
        await self._call(f"session/{self._session}/url", url=url)

    async def ask(self, expression: str) -> Any:
        script = f'{ASK.format(expression)}.then(arguments[0], (error) => arguments[0](`{{"error": "${{error}}"}}`))'
        return json.loads(await self._call(f"session/{self._session}/execute/async", script=script, args=[]))

    async def close(self) -> None:
        """Close the browser."""
        async with self._driver.delete(f"/session/{self._session}"):
            pass

    async def _call(self, path: str, **body: object) -> Any:
        async with self._driver.post(f"/{path}", json=body) as response:
            value = (await response.json(content_type=None))["value"]
            assert response.status == 200, value
            return value


@asynccontextmanager
async def running(program: str, *arguments: str, **variables: str) -> AsyncIterator[asyncio.StreamReader]:
    """Run a program until the end of the block. Return its output."""
    process = await asyncio.create_subprocess_exec(
        needed(program),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, **variables},
    )
    assert process.stdout
    try:
        yield process.stdout
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def firefox(profile: Path) -> AsyncIterator[Firefox]:
    """Run Firefox."""
    arguments = "--headless", "--remote-debugging-port=0", "--profile", str(profile)
    async with running("firefox-esr", *arguments, HOME=str(profile)), ClientSession() as session:
        port = int(
            await asyncio.to_thread(written, profile / "WebDriverBiDiServer.json", r'"ws_port":\s*([0-9]+)\s*[,}]')
        )
        async with session.ws_connect(f"ws://127.0.0.1:{port}/session", max_msg_size=0) as socket:
            firefox = Firefox(socket)
            await firefox.call("session.new", capabilities={})
            yield firefox


def written(path: Path, pattern: str) -> str:
    """Wait until this pattern matches in a file, and return the match."""

    def check() -> None:
        assert re.search(pattern, path.read_text())

    eventually(check, 60)
    (found,) = re.findall(pattern, path.read_text())
    return str(found)


@asynccontextmanager
async def webkit_driver(home: Path) -> AsyncIterator[ClientSession]:
    """Run WebKit's driver, and a display for its windows."""
    port = free_port()
    needed("WebKitWebDriver")
    async with running("Xvfb", "-displayfd", "1", "-screen", "0", "1280x900x24", "-nolisten", "tcp") as said:
        variables = {"DISPLAY": f":{(await said.readline()).decode().strip()}", "HOME": str(home), "NO_AT_BRIDGE": "1"}
        if os.geteuid() == 0:  # the sandbox refuses to run as root
            variables["WEBKIT_DISABLE_SANDBOX_THIS_IS_DANGEROUS"] = "1"
        async with (
            running("WebKitWebDriver", f"--port={port}", **variables, LIBGL_ALWAYS_SOFTWARE="1"),
            ClientSession(f"http://127.0.0.1:{port}") as session,
        ):
            await eventually_async(lambda: answers(session), 60)
            yield session


async def answers(driver: ClientSession) -> None:
    """Check that the driver is there."""
    try:
        async with driver.get("/status") as response:
            assert response.status == 200
    except ClientConnectionError as error:
        raise AssertionError from error


@pytest.fixture(scope="session")
async def driver(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Firefox | ClientSession]:
    """Run the driver of the browser of this name, once for all tests of a process."""
    home = tmp_path_factory.mktemp(request.param)
    async with firefox(home) if request.param == "firefox" else webkit_driver(home) as driver:
        yield driver


@pytest.fixture
async def engine(driver: Firefox | ClientSession) -> AsyncIterator[Engine]:
    """Return a browser in which nothing is open yet."""
    if isinstance(driver, Firefox):
        yield driver
        return
    webkit = WebKit(driver)
    yield webkit
    await webkit.close()


OTHERS = [pytest.param(name, marks=pytest.mark.ci) for name in ("firefox", "webkit")]
every_engine = pytest.mark.parametrize("driver", OTHERS, indirect=True, scope="session")
"""Marks a test that each of them runs, in CI and where its file is named."""
