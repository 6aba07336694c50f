"""Hostile clients: what they send costs little, and pages of other sites get nothing."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import time
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from settings import Settings
from tests.bad_input import with_, with_data
from tests.client import KEY, PROTECTED, USER, Client, problem
from tests.demo import RunLocally
from tests.fixtures import Start
from tests.processes import running_service
from tests.waiting import slow_clock

BOMB = gzip.compress(b" " * 50_000_000)  # 50 KB
CODINGS = ["gzip", "GZIP", "x-gzip", "deflate", "br", "zstd", "gzip, gzip", "identity, gzip", "unknown", "gzip;q=1"]
SITES = {
    # the headers of a page: whether it is one of the service's own
    "another site": ({"Origin": "https://evil.example"}, False),
    "another site, over HTTP": ({"Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}, False),
    "a sandboxed frame or a file": ({"Origin": "null"}, False),
    "another port of this machine": ({"Origin": "http://127.0.0.1:1", "Sec-Fetch-Site": "same-site"}, False),
    "a name that begins like ours": ({"Origin": "http://{host}.evil.example"}, False),
    "a link or an image of another site": ({"Sec-Fetch-Site": "cross-site"}, False),
    "no origin at all": ({"Origin": ""}, False),
    "its own page": ({"Origin": "http://{host}", "Sec-Fetch-Site": "same-origin"}, True),
    "its own page in an old browser": ({"Origin": "http://{host}"}, True),
    "its own page behind a proxy": ({"Origin": "https://public.example", "Sec-Fetch-Site": "same-origin"}, True),
    "an address typed in": ({"Sec-Fetch-Site": "none"}, True),
    "a configured origin": ({"Origin": "https://app.example.com", "Sec-Fetch-Site": "cross-site"}, True),
    "no browser": ({}, True),
}
FORMS = {"text/plain": "{%s}=", "application/x-www-form-urlencoded": "%s", "multipart/form-data; boundary=x": "%s"}
OPEN = {"cors_origins": ("https://app.example.com",)}
OWN_ROUTES = ["POST /create", "GET /list", "POST /read", "GET /stream", "GET /metrics"]


@pytest.mark.parametrize("coding", CODINGS)
async def test_compressed_bodies_are_refused_and_never_inflated(shared_client: Client, coding: str) -> None:
    body = {"deflate": zlib.compress(with_()), "gzip, gzip": gzip.compress(BOMB)}.get(coding, BOMB)
    started = time.process_time()
    gzip.decompress(BOMB)
    inflating = time.process_time() - started
    started = time.process_time()
    for _ in range(10):
        response = await shared_client.post("/create", data=body, headers={"Content-Encoding": coding})
        assert (response.status, response.headers["Accept-Encoding"]) == (415, "identity")
        await problem(response)
    assert time.process_time() - started < 5 * inflating


async def test_identity_content_coding_is_accepted(client: Client) -> None:
    response = await client.post("/create", data=with_(), headers={"Content-Encoding": "identity"})
    assert response.status == 201


@pytest.mark.parametrize("headers", [{}, {"Content-Encoding": "gzip"}])
async def test_a_caller_without_a_key_is_refused_before_the_body(start: Start, headers: dict[str, str]) -> None:
    client = await start(**PROTECTED)

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 1000
            await asyncio.sleep(0.01)

    async with asyncio.timeout(20):  # not for ever
        response = await client.post("/create", data=endless(), headers=headers)
        assert response.status == 401
        response = await client.post("/create", data=b"", headers={"Content-Length": f"{10**15}", **headers})
        assert response.status == 401


async def test_a_chunked_body_without_end_is_cut_off_at_the_limit(client: Client) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b" " * 10_000

    async with asyncio.timeout(20):
        assert (await client.post("/create", data=endless())).status == 413


async def test_a_client_that_sends_on_gets_the_answer_to_its_body(start: Start) -> None:
    client = await start(**PROTECTED)
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    writer.write(b"POST /create HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n")
    for _ in range(3):
        await asyncio.sleep(0.1)
        writer.write(b" " * 100_000)
        await writer.drain()
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 401")
    assert b"Connection: close" in answer
    writer.close()


async def test_an_endless_body_is_not_read_for_ever(start: Start) -> None:
    client = await start(**PROTECTED)
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port)
    writer.write(b"POST /create HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    with slow_clock() as elapsed, contextlib.suppress(ConnectionError):
        while elapsed() < 5:
            writer.write(b"1000\r\n" + b" " * 4096 + b"\r\n")
            await writer.drain()
    assert elapsed() < 5
    writer.close()
    del reader


@pytest.mark.ci
async def test_a_process_does_not_inflate_either(settings: Settings, tmp_path: Path) -> None:
    service = await running_service(settings, tmp_path, API_KEYS=KEY)
    url = f"http://127.0.0.1:{service.port}/create"
    headers = {"Content-Encoding": "gzip"}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        for key, status in (("", 401), (KEY, 415)):
            given = headers | {"Authorization": f"Bearer {key}"}
            started = time.process_time()
            for _ in range(10):
                gzip.decompress(BOMB)
            inflating = time.process_time() - started
            before = cpu_seconds(service.process.pid)
            for _ in range(20):
                async with session.post(url, data=BOMB, headers=given) as response:
                    assert response.status == status
            assert cpu_seconds(service.process.pid) - before < inflating
    service.kill()


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


async def test_few_of_thousands_of_unknown_names_are_named(client: Client) -> None:
    body = "{" + ",".join(f'"{n:x}":0' for n in range(7000)) + "}"
    started = time.process_time()
    for _ in range(500):
        assert (await client.post("/create", data=b"{}")).status == 422
    usual = time.process_time() - started
    started = time.process_time()
    response = await client.post("/create", data=body)
    assert time.process_time() - started < usual
    assert response.status == 422
    assert len((await problem(response))["errors"]) == 16 + 2  # and those that are missing
    response = await client.post(f"/suppress?user_id={USER}", data=body)
    assert (response.status, len((await problem(response))["errors"])) == (422, 16)
    query = "&".join(f"{n:x}" for n in range(1500))
    started = time.process_time()
    assert (await client.get(f"/list?user_id={USER}&{query}")).status == 200
    assert (await client.post(f"/read?user_id={USER}&all=true&{query}")).status == 200
    assert time.process_time() - started < usual


async def test_a_number_of_5000_digits_is_refused_in_plain_words(client: Client) -> None:
    response = await client.post("/create", data=with_data("9" * 5000))
    assert (await problem(response))["detail"].endswith(": value has 5000 digits.")


# --- pages of other sites ---------------------------------------------------------------------------


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("route", OWN_ROUTES)
async def test_while_there_are_no_keys_only_own_pages_may_call(share: Start, route: str, site: str) -> None:
    client = await share(**OPEN)
    given, is_own = SITES[site]
    headers = {name: value.format(host=f"127.0.0.1:{client.port}") for name, value in given.items()}
    assert (await call(client, route, headers)) == (200 if is_own else 403)
    assert (await call(client, "GET /list", {})) == 200


async def call(client: Client, route: str, headers: dict[str, str]) -> int:
    """Return the status of a good request; 200 for any success."""
    method, path = route.split()
    url = path if path in {"/create", "/metrics"} else f"{path}?user_id={USER}&all=true"
    body = with_() if path == "/create" else None
    async with client.request(method, url, data=body, headers=headers) as response:
        if response.status == 403:
            assert "another site" in (await problem(response))["detail"]
        return 200 if response.ok else response.status


@pytest.mark.parametrize("media_type", FORMS)
async def test_a_form_of_another_site_changes_nothing(client: Client, media_type: str) -> None:
    headers = {"Origin": "https://evil.example", "Content-Type": media_type}
    body = FORMS[media_type] % json.dumps({"user_id": USER, "key": "new_post"})
    for method_and_url in ("/create", f"/read?user_id={USER}&all=true"):
        assert (await client.post(method_and_url, data=body, headers=headers)).status == 403
    body = await (await client.get(f"/list?user_id={USER}")).text()
    assert json.loads(body)["data"]["elements"] == 0


@pytest.mark.parametrize("site", SITES)
async def test_where_there_are_keys_they_decide_alone(share: Start, site: str) -> None:
    client = await share(**PROTECTED)
    headers = {name: value.format(host="x") for name, value in SITES[site][0].items()}
    assert (await client.get(f"/list?user_id={USER}", headers=headers)).status == 401
    headers["Authorization"] = f"Bearer {KEY}"
    assert (await client.get(f"/list?user_id={USER}", headers=headers)).status == 200


async def test_routes_open_to_everyone_stay_open_to_pages(client: Client) -> None:
    for path in ("/healthz", "/readyz", "/openapi.json", "/docs", "/inbox.js"):
        response = await client.get(path, headers={"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"})
        assert response.status == 200


# --- names of the host ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["localhost:abc", "evil.example", "localhost:80:80", "127.0.0.1.evil.example", "[::1", ""]
)
async def test_a_host_that_is_no_name_of_a_local_run_is_421(run_locally: RunLocally, host: str) -> None:
    local = await run_locally()
    assert (await raw(local.port, host)).startswith(b"HTTP/1.1 421")


NAMES = ["Box.local", "192.168.1.5", "fd00:0::5", "bücher.example"]
KNOWN = ["BOX.local", "box.local:1", "192.168.1.5:8080", "[fd00::5]:443", "xn--bcher-kva.example", "[::1]:80"]
FOREIGN = ["local", "x.box.local", "box.local.", "192.168.1.50", "fd00::5", "[fd00::6]", "evil.example:8080"]


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
async def test_a_local_run_answers_to_its_local_names_and_to_no_other(run_locally: RunLocally, host: str) -> None:
    local = await run_locally(local_names=NAMES, host=host)
    for name in KNOWN:
        assert (await raw(local.port, name)).startswith(b"HTTP/1.1 200"), name
    for name in FOREIGN:
        answer = await raw(local.port, name, "X-Forwarded-Host: box.local\r\n")
        assert answer.startswith(b"HTTP/1.1 421"), name
        assert b"LOCAL_NAMES" in answer


FORWARDED = {
    # what a forwarder makes of a page's request to https://x-8080.example
    "all as the browser sent it": {"Host": "x-8080.example", "Origin": "https://x-8080.example"},
    "an Origin of this machine": {"Host": "x-8080.example", "Origin": "http://localhost:8080"},
    "a Host of this machine": {"Host": "localhost:8080", "Origin": "https://x-8080.example"},
    "both of this machine": {"Host": "localhost:8080", "Origin": "http://localhost:8080"},
}


@pytest.mark.parametrize("forwarder", FORWARDED)
async def test_only_the_own_page_behind_a_forwarder_may_call(run_locally: RunLocally, forwarder: str) -> None:
    local = await run_locally(local_names=["x-8080.example"])
    headers = FORWARDED[forwarder] | {"X-Forwarded-Host": "x-8080.example"}
    for site, status in (("same-origin", 201), ("cross-site", 403)):
        headers["Sec-Fetch-Site"] = site
        assert (await local.client.post("/create", data=with_(), headers=headers)).status == status


async def test_a_phone_on_plain_http_sends_only_its_origin(run_locally: RunLocally) -> None:
    local = await run_locally(local_names=["192.168.1.5"], host="0.0.0.0")
    for origin, status in (("192.168.1.5:8080", 201), ("192.168.1.5:3000", 403)):
        headers = {"Host": "192.168.1.5:8080", "Origin": f"http://{origin}"}
        assert (await local.client.post("/create", data=with_(), headers=headers)).status == status


@pytest.mark.parametrize("host", ["localhost:abc", "[::1", "a b", "%", "x" * 5000, "é"])
async def test_any_host_is_answered_elsewhere(shared_client: Client, host: str) -> None:
    assert shared_client.port
    assert (await raw(shared_client.port, host)).startswith(b"HTTP/1.1 200")


async def raw(port: int, host: str, more: str = "") -> bytes:
    """Return the answer to a list for this host."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = f"GET /list?user_id={USER} HTTP/1.1\r\nHost: {host}\r\n{more}Connection: close\r\n\r\n"
    writer.write(request.encode())
    answer = await reader.read()
    writer.close()
    return answer
