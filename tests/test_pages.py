"""How the files of the bell and the demo are served, and the mailbox of a local run."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.client import KEY, ROOT, Client
from tests.demo import RunLocally
from tests.fixtures import Start
from tests.programs import needed

MODULES = [ROOT / "web/inbox.js", *sorted((ROOT / "web").glob("inbox/**/*.js"))]
ON_DEMAND = re.compile("inbox/(languages/.*|preferences).js$")
"""Modules that a page loads only when it needs them: a language, and the settings."""
BROTLI = """
const { brotliCompressSync } = require("node:zlib"), { readFileSync } = require("node:fs");
console.log(JSON.stringify(process.argv.slice(1).map((path) => brotliCompressSync(readFileSync(path)).length)));
"""
"""A program that prints the sizes of files compressed by brotli, at its default quality of 11."""
PANEL = re.compile("inbox/(describe|list|look).js$")
"""Modules that come when the panel is opened, or something arrives."""


def test_modules_are_small_need_nothing_and_parse_no_markup() -> None:
    program = [needed("node"), "-e", BROTLI, *map(str, MODULES)]
    sizes = dict(zip(map(str, MODULES), json.loads(subprocess.check_output(program)), strict=True))
    later = {name for name in sizes if ON_DEMAND.search(name) or PANEL.search(name)}
    assert sum(size for name, size in sizes.items() if name not in later) <= 12 * 1024
    assert sum(size for name, size in sizes.items() if PANEL.search(name)) < 8200
    assert all(size < 1300 for name, size in sizes.items() if ON_DEMAND.search(name))
    text = "".join(path.read_text() for path in MODULES)
    assert not re.search(r"require\(|eval|insertAdjacent|(outer|inner)HTML|https?://(?!www.w3.org/)", text)
    assert all(name.startswith("./") for name in re.findall(r"(?:from|import\() ?[\"`](.*?)[\"`]", text))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_a_module_is_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300


async def test_the_modules_and_their_types_are_public_and_cacheable(client: Client) -> None:
    for path in (*MODULES, ROOT / "web/inbox.d.ts"):
        response = await client.get(
            f"/{path.relative_to(ROOT / 'web')}", headers={"Origin": "https://anything.example"}
        )
        media_type = "text/javascript" if path.suffix == ".js" else "text/plain"
        assert (response.status, response.content_type, response.charset) == (200, media_type, "utf-8")
        assert re.sub(rb"\?v=[0-9a-f]{12}", b"", await response.read()) == path.read_bytes()
        assert response.headers["Access-Control-Allow-Origin"] == "*"
        assert response.headers["Cache-Control"].startswith("public, max-age=")


async def test_modules_import_others_by_a_version_and_keep_for_ever(client: Client) -> None:
    imports = re.compile(r"""(?:from|import\() ?["`]\./([\w/-]+\.js)(\?v=[0-9a-f]{12})["`]""")
    versions = set()
    for path in MODULES:
        served = await (await client.get(f"/{path.relative_to(ROOT / 'web')}")).text()
        found = imports.findall(served)
        assert len(found) == len(re.findall(r"(?:from|import\() ?[\"`]\./", path.read_text()))
        for name, version in found:
            versions.add(version)
            folder = "/inbox/" if path.parent.name == "inbox" else "/"
            response = await client.get(f"{folder}{name}{version}")
            assert (response.status, response.headers["Cache-Control"]) == (200, "public, max-age=31536000, immutable")
    assert len(versions) == 1
    assert "immutable" not in (await client.get("/inbox/words.js?v=other")).headers["Cache-Control"]


async def test_the_module_has_an_etag_and_there_is_no_demo(client: Client) -> None:
    response = await client.get("/inbox.js")
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    etag = response.headers["ETag"]
    assert re.fullmatch('"[0-9a-f]{24}"', etag)
    for known in (etag, f'W/{etag}, "x"', "*"):
        again = await client.get("/inbox.js", headers={"If-None-Match": known})
        assert (again.status, await again.read(), again.headers["ETag"]) == (304, b"", etag)
        assert again.headers["Cache-Control"] == response.headers["Cache-Control"]
    assert (await client.get("/inbox.js", headers={"If-None-Match": '"x"'})).status == 200
    assert (await client.head("/inbox.js")).status == 200
    assert (await client.post("/inbox.js")).status == 405
    for path in ("/", "/demo.js", "/demo.css", "/demo.svg", "/demo/setup", "/demo/mails", "/web/inbox.js"):
        assert (await client.get(path)).status == 404


async def test_the_demo_has_strict_headers_and_no_mailbox(start: Start) -> None:
    client = await start(demo=True, api_keys=(KEY,))
    for path, media_type in (("/", "text/html"), ("/demo.js", "text/javascript"), ("/demo.css", "text/css")):
        response = await client.get(path)
        assert (response.status, response.content_type) == (200, media_type)
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Cache-Control"] == "no-cache"
    headers = (await client.get("/")).headers
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert {"default-src 'none'", "frame-ancestors 'none'"} <= set(headers["Content-Security-Policy"].split("; "))
    assert headers["Referrer-Policy"] == "no-referrer"
    assert "frame-src 'none'" in headers["Content-Security-Policy"]
    assert (await client.get("/demo/mails")).status == 404
    setup = (await (await client.get("/demo/setup")).json())["data"]
    assert setup == {"keys": True, "mailbox": False, "examples": False}


async def test_the_mailbox_is_for_backends_only_and_survives_odd_files(run_locally: RunLocally) -> None:
    local = await run_locally(api_keys=(KEY,))
    (local.mailbox / "1.eml").write_bytes(
        b"Subject: =?utf-8?q?=F0?=\r\nContent-Type: text/plain; charset=nonsense\r\n\r\n\xff"
    )
    (local.mailbox / "2.eml").write_bytes(b"")
    (local.mailbox / "3.eml").mkdir()
    (local.mailbox / "4.eml").write_bytes(b"Subject: a\r\nTo: b@c.example\r\nContent-Type: text/html\r\n\r\n<b>c</b>")
    assert (await local.client.get("/demo/mails")).status == 401
    response = await local.client.get("/demo/mails", headers={"Authorization": f"Bearer {KEY}"})
    assert response.status == 200
    mails = (await response.json())["mails"]
    html = {"file": ".notifier/mail/4.eml", "to": "b@c.example", "subject": "a", "text": ""}
    assert mails[0].pop("html").endswith("/4.eml")
    assert mails[0] == html
