"""What a real nginx in front does with the configurations of `deploy/` and of the documentation, and below a path."""

from __future__ import annotations

import json
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest
import trustme

from tests.client import ROOT, Client
from tests.fixtures import Start
from tests.programs import needed
from tests.servers import free_port
from tests.waiting import eventually

AROUND = """\
daemon off;
pid {folder}/pid;
error_log {folder}/error.log info;
events {{}}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {http}
}}
"""
PAGE = (ROOT / "docs/security.md").read_text()
TLS, BELOW_A_PATH = re.findall(r"```nginx\n(.*?)```", PAGE, re.DOTALL)
TOKEN = "a-token-of-hunter2"  # noqa: S105 - of a link to unsubscribe


@contextmanager
def nginx(folder: Path, port: int, http: str) -> Iterator[None]:
    """Run nginx meanwhile, once it listens on this port."""
    (folder / "nginx.conf").write_text(AROUND.format(folder=folder, http=http))
    process = subprocess.Popen([needed("nginx"), "-c", f"{folder}/nginx.conf", "-p", f"{folder}"])
    try:
        eventually(lambda: socket.create_connection(("127.0.0.1", port), 1).close())
        yield
    finally:
        process.terminate()
        process.wait()


def deployed(port: int, upstream: int) -> str:
    """Return the configuration in `deploy/`, for these ports."""
    text = (ROOT / "deploy/nginx.conf").read_text()
    return text.replace("listen 80;", f"listen 127.0.0.1:{port};").replace("notifier:8080", f"127.0.0.1:{upstream}")


def documented(port: int, upstream: int, folder: Path, authority: trustme.CA) -> str:
    """Return the configuration in the documentation, for these ports and with a certificate."""
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(f"{folder}/all.pem")
    text = re.sub("/etc/ssl/notifications.(pem|key)", f"{folder}/all.pem", TLS)
    text = text.replace("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;")
    return re.sub(r"10\.0\.0\.\d:8080", f"127.0.0.1:{upstream}", text)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_nginx_logs_no_link_token_and_sends_no_version(
    tmp_path: Path, authority: trustme.CA, scheme: str
) -> None:
    port, gone = free_port(), free_port()
    http = deployed(port, gone) if scheme == "http" else documented(port, gone, tmp_path, authority)
    with nginx(tmp_path, port, http):
        async with aiohttp.ClientSession(f"{scheme}://127.0.0.1:{port}") as session:
            statuses = set()
            for _ in range(80):
                async with session.get(f"/u/{TOKEN}", ssl=False) as response:
                    statuses.add(response.status)
                    assert response.headers["Server"] == "nginx"
            assert statuses == {502, 429}  # nothing is behind it, and then it is too often
            async with session.get("/list", ssl=False) as response:
                assert response.status == 502
                assert (scheme == "https") == ("Strict-Transport-Security" in response.headers)
    logs = {name: (tmp_path / f"{name}.log").read_text() for name in ("error", "access")}
    assert all("/list" in text and TOKEN not in text for text in logs.values())


async def test_a_cookie_of_15_kb_reaches_the_service(client: Client, tmp_path: Path) -> None:
    port, headers = free_port(), {"Cookie": "c=" + "x" * 15_000}
    with nginx(tmp_path, port, deployed(port, client.port or 0)):
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{port}/healthz", headers=headers) as response,
        ):
            assert (response.status, await response.json()) == (200, {"success": True})


async def test_below_a_path_every_page_finds_what_it_names(start: Start, tmp_path: Path) -> None:
    client, port = await start(demo=True), free_port()
    upstream = f"upstream notifier {{ server 127.0.0.1:{client.port}; }}"
    with nginx(tmp_path, port, f"{upstream} server {{ listen 127.0.0.1:{port}; {BELOW_A_PATH} }}"):
        async with aiohttp.ClientSession() as session:

            async def found(path: str) -> str:
                async with session.get(f"http://127.0.0.1:{port}/notifications/{path}") as response:
                    assert response.status == 200, path
                    return await response.text()

            for page in ("", "docs"):
                for name in re.findall(r'(?:href|src)="([^":]*)"', await found(page)):
                    assert not name.startswith("/")
                    await found(name)
            assert json.loads(await found("openapi.json"))["servers"] == [{"url": "./"}]
            scripts = await found("demo.js") + await found("docs.js")
    assert not re.findall(r"""(?:ask\(|url: |\[)["`]/""", scripts)
