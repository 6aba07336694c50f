"""The examples of the bell in React, Vue, Svelte and a plain page, and its npm package: built, type-checked and run."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from playwright.async_api import BrowserContext, Route, expect

from api.auth import sign_token
from api.openapi import VERSION
from tests.bell import row_of, rows
from tests.browser import Serve, Server, events, open_page
from tests.client import PROTECTED, ROOT, SECRET, TARGET, USER
from tests.programs import needed
from tests.waiting import eventually_async

pytestmark = pytest.mark.ci
EXAMPLES = ROOT / "examples/bell"
EXPECTED = {
    "plain": ("Notifications, 1 new", "Order shipped"),
    "react": ("Уведомления, Новых: 1", "Заказ 1027 отправлен"),
    "svelte": ("Mitteilungen, 1 neu", "Bestellung 1027 ist unterwegs"),
    "vue": ("الإشعارات, الجديدة: 1", "الطلب 1027 في الطريق"),
}
"""For each page, the name of its bell and the text of the row."""


def run(program: str | Path, *arguments: str, folder: Path) -> str:
    """Run a program, which must succeed, and return what it writes."""
    done = subprocess.run([program, *arguments], cwd=folder, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def npm(*arguments: str, folder: Path = EXAMPLES) -> str:
    """Run npm. The packages of the examples are those that `make test` installs."""
    program = needed("npm")
    if not (EXAMPLES / "node_modules").is_dir():
        pytest.fail("The examples have no packages: npm ci --prefix examples/bell", pytrace=False)
    return run(program, *arguments, folder=folder)


def test_the_types_fit_the_examples_and_the_uses_of_an_editor(tmp_path: Path) -> None:
    npm("run", "check")
    shutil.copytree(EXAMPLES / "src", tmp_path / "src")
    shutil.copy(EXAMPLES / "tsconfig.json", tmp_path)
    for path in (*(tmp_path / "src").glob("*.tsx"), tmp_path / "src/vue.ts", tmp_path / "src/svelte.ts"):
        path.unlink()
    (tmp_path / "src/uses.ts").write_text(USES)  # without React: there is no node_modules
    compiler = EXAMPLES / "node_modules/.bin/tsc"
    run(compiler, folder=tmp_path)


USES = """
const inbox = document.createElement("notifier-inbox");
inbox.format = ({ data }) => ({ title: String(data.city), url: null });
inbox.getToken = async () => "token";
inbox.open();
inbox.close();
inbox.refresh();
const unread: number = inbox.unread;
inbox.addEventListener("notification", ({ detail }) => detail.timestamp.toFixed());
inbox.addEventListener("notifier-select", (event) => { event.preventDefault(); event.url?.length; });
inbox.addEventListener("notifier-unauthorized", ({ target }) => target);
inbox.addEventListener("notifier-count", ({ detail: { unread, unseen } }) => unread - unseen);
inbox["onnotifier-select"] = (event) => event.url?.length;
inbox.onnotification = null;
inbox.addEventListener("click", (event) => event.clientX);
// @ts-expect-error - it is read-only
inbox.unread = unread;
// @ts-expect-error - it returns no row
inbox.format = () => 7;
// @ts-expect-error - it is asynchronous
inbox.getToken = () => "token";
// @ts-expect-error - the event has no such field
inbox["onnotifier-count"] = ({ detail }) => detail.read;
// @ts-expect-error - a notification has no such field
inbox.addEventListener("notification", ({ detail }) => detail.colour);
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a project of the examples, with the bell's package as npm packs it."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copytree(EXAMPLES, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules", "dist"))
    shutil.copytree(EXAMPLES / "package", folder, dirs_exist_ok=True)
    (packed,) = json.loads(npm("pack", "--json", "--pack-destination", f"{folder}", folder=ROOT / "web"))
    modules = folder / "node_modules"
    modules.mkdir()
    for installed in (EXAMPLES / "node_modules").glob("[!.]*"):
        (modules / installed.name).symlink_to(installed)
    (modules / ".bin").symlink_to(EXAMPLES / "node_modules/.bin")
    (modules / "@notifier").mkdir()
    subprocess.run(
        ["/usr/bin/env", "tar", "-xzf", packed["filename"], "-C", modules / "@notifier"], cwd=folder, check=True
    )
    (modules / "@notifier/package").rename(modules / "@notifier/inbox")
    return folder


def test_the_package_has_what_the_service_serves(project: Path) -> None:
    package, web_folder = project / "node_modules/@notifier/inbox", ROOT / "web"
    files = {f"{path.relative_to(package)}" for path in package.rglob("*") if path.is_file()}
    wrappers = {f"{name}.{suffix}" for name in ("react", "vue", "inbox") for suffix in ("js", "d.ts")}
    modules = {f"{path.relative_to(web_folder)}" for path in web_folder.glob("inbox/**/*") if path.is_file()}
    assert files == {"package.json", *wrappers, *modules}
    assert json.loads((package / "package.json").read_text())["version"] == VERSION


def test_the_package_and_its_types_fit_each_other(project: Path) -> None:
    files = ["src/react-package.tsx", "src/vue-package.ts", "uses.tsx"]
    files += [f"node_modules/@notifier/inbox/{name}.js" for name in ("react", "vue")]
    options = {"allowJs": True, "checkJs": True}
    settings = {"extends": "./tsconfig.json", "compilerOptions": options, "files": files, "include": []}
    (project / "tsconfig.package.json").write_text(json.dumps(settings))
    (project / "uses.tsx").write_text(USES_OF_THE_PACKAGE)
    run(project / "node_modules/.bin/tsc", "-p", "tsconfig.package.json", folder=project)


USES_OF_THE_PACKAGE = """
import "@notifier/inbox";
import { createInbox } from "@notifier/inbox/client";
import { NotifierInbox } from "@notifier/inbox/react";
import { NotifierInbox as VueInbox } from "@notifier/inbox/vue";
import { createRef } from "react";
import { h } from "vue";

const element = document.createElement("notifier-inbox");
const inbox = createRef<typeof element>();
const getToken = async () => "token";
createInbox({ userId: "7", getToken }).addEventListener("count", ({ detail }) => detail.unread.toFixed());
<NotifierInbox src="/" ref={inbox} settings text-title="News" label-order="An order" className="bell" />;
<NotifierInbox src="/" getToken={getToken} onSelect={({ url }) => url?.length}><i>!</i></NotifierInbox>;
// @ts-expect-error - a package does not know where the service is
<NotifierInbox userId="7" />;
// @ts-expect-error - the event has no such field
<NotifierInbox src="/" onCount={({ detail }) => detail.read} />;
h(VueInbox, { src: "/", userId: "7", getToken, "text-title": "News", onSelect: (event) => event.url?.length });
// @ts-expect-error - the event has no such field
h(VueInbox, { src: "/", onCount: ({ detail }) => detail.read });
"""


class Pages:
    """Serves the built pages as another origin than the service, with a strict Content-Security-Policy and tokens."""

    def __init__(self, folder: Path) -> None:
        self.service = self.origin = ""
        self.rendered = ""
        """What the server has rendered of the React page."""
        self._folder = folder

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_get("/notifier-token", self._token)
        app.router.add_get("/assets/{name}", self._asset)
        app.router.add_get("/{name:[a-z-]+}.html", self._page)
        async with TestServer(app) as server:
            yield str(server.make_url("")).rstrip("/")

    async def _page(self, request: web.Request) -> web.Response:
        html = (self._folder / f"{request.match_info['name']}.html").read_text()
        if request.match_info["name"] == "react":
            html = html.replace('<div id="app">', f'<div id="app">{self.rendered}')
        policy = f"default-src 'none'; script-src 'self' {self.service}; connect-src 'self' {self.service}"
        headers = {"Content-Security-Policy": policy}
        return web.Response(text=self._with_service(html), content_type="text/html", headers=headers)

    async def _asset(self, request: web.Request) -> web.Response:
        text = (self._folder / "assets" / request.match_info["name"]).read_text()
        return web.Response(text=self._with_service(text), content_type="text/javascript")

    def _with_service(self, text: str) -> str:
        return text.replace("https://notifications.example.com", self.service)

    async def _token(self, _: web.Request) -> web.Response:
        return web.Response(text=sign_token(SECRET, USER, 3600))


@pytest.fixture(scope="module")
def built(project: Path) -> Path:
    """Build the pages, and what renders the React page on a server."""
    npm("run", "build", "--", "--outDir", "dist", "--logLevel", "warn", folder=project)
    npm("run", "build", "--", "--outDir", "server", "--logLevel", "warn", "--ssr", "src/server.tsx", folder=project)
    return project


@pytest.fixture
async def pages(built: Path, serve: Serve) -> AsyncIterator[tuple[Pages, Server]]:
    """Serve the built pages, and the service that they call."""
    (built / "kinds.toml").write_text("[order_shipped]")
    pages = Pages(built / "dist")
    async with pages.running() as pages.origin:
        service = await serve(kinds_file=built / "kinds.toml", cors_origins=(pages.origin,), **PROTECTED)
        pages.service = service.url
        (program,) = (built / "server").glob("server.*js")
        process = await asyncio.create_subprocess_exec(needed("node"), program, stdout=asyncio.subprocess.PIPE)
        pages.rendered = (await process.communicate())[0].decode().strip()
        assert pages.rendered.startswith("<notifier-inbox")
        yield pages, service


@pytest.mark.ci
async def test_the_examples_are_built_and_work(pages: tuple[Pages, Server], context: BrowserContext) -> None:
    site, service = pages
    await service.create("order_shipped", target_id=TARGET, data={"number": 1027})
    opened = {name: await open_page(context, f"{site.origin}/{name}.html") for name in EXPECTED}
    for name, page in opened.items():  # before any panel is opened, or else nothing is new
        await expect(page.get_by_role("button", name=EXPECTED[name][0], exact=True)).to_be_visible()
    for name, page in opened.items():
        await page.locator("#bell").click()
        await expect(rows(page).locator("b")).to_have_text(EXPECTED[name][1])
        if name != "plain":  # the others route links
            await row_of(page, 0).click()
            await expect(page.locator("#page")).to_have_text(f"/orders/{TARGET}")
        assert [event for event in await events(page) if event[0] in {"CSP", "notifier-unauthorized"}] == []
    assert await service.count(401) == 0


@pytest.mark.parametrize("first", ["the bell", "React"])
async def test_a_page_that_react_hydrates_hears_the_bell(
    pages: tuple[Pages, Server], context: BrowserContext, first: str
) -> None:
    site, service = pages
    page = await context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    ready = {
        "React": ("**/inbox.js", "!!document.querySelector('notifier-inbox').onnotification"),
        "the bell": ("**/assets/react*.js", "!!customElements.get('notifier-inbox')"),
    }
    pattern, condition = ready[first]
    released = asyncio.Event()

    async def hold(route: Route) -> None:
        await released.wait()
        await route.continue_()

    await page.route(pattern, hold)
    await page.goto(f"{site.origin}/react.html", wait_until="commit")

    async def is_ready() -> None:
        assert await page.evaluate(condition)

    await eventually_async(is_ready)
    released.set()
    await page.locator("#bell").click()
    await expect(page.get_by_text("Тихо.")).to_be_visible()
    await service.create("order_shipped", target_id=TARGET, data={"number": 1027})
    await expect(rows(page).locator("b")).to_have_text("Заказ 1027 отправлен")
    await row_of(page, 0).click()
    await expect(page.locator("#page")).to_have_text(f"/orders/{TARGET}")
    assert said == ["new: order_shipped"]  # and neither React nor the service complains


@pytest.mark.parametrize(
    ("name", "title"),
    [("react-package", "Order 1027 has left"), ("vue-package", "Bestellung 1027 ist unterwegs")],
)
async def test_a_component_of_the_package_works(
    pages: tuple[Pages, Server], context: BrowserContext, name: str, title: str
) -> None:
    site, service = pages
    page = await context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    await page.goto(f"{site.origin}/{name}.html")
    await eventually_async(lambda: service.assert_streams_open(1))
    await page.locator("#bell").click()
    await service.create("order_shipped", target_id=TARGET, data={"number": 1027})
    await expect(rows(page).locator("b")).to_have_text(title)
    await row_of(page, 0).click()
    await expect(page.locator("#page")).to_have_text(f"/orders/{TARGET}")
    assert said.count("new: order_shipped") == 1
