"""Who may call what: keys, tokens and origins."""

from __future__ import annotations

import time

import pytest

from tests.client import KEY, OLD_KEY, OTHER, PROTECTED, SECRET, USER, problem, token
from tests.fixtures import Start

NOW = int(time.time())
CREDENTIALS = {
    "none": None,
    "not bearer": f"Basic {KEY}",
    "empty": "Bearer ",
    "wrong key": "Bearer " + "x" * 32,
    "not ASCII": "Bearer \udcff\udcfe",
    "key": f"Bearer {KEY}",
    "old key": f"bearer {OLD_KEY}",
    "user's token": f"Bearer {token()}",
    "user's token in capitals": f"Bearer {token(sub=USER.upper())}",
    "other user's token": f"Bearer {token(sub=OTHER)}",
    "expired token": f"Bearer {token(exp=NOW - 60)}",
    "token without exp": f"Bearer {token(exp=None)}",
    "token without sub": f"Bearer {token(sub=None)}",
    "token whose sub is not a user": f"Bearer {token(sub='admin')}",
    "token not valid yet": f"Bearer {token(nbf=NOW + 600)}",
    "token signed with another secret": f"Bearer {token(secret='t' * 32)}",
    "alg none": f"Bearer {token(secret='', algorithm='none')}",
    "alg HS512": f"Bearer {token(secret=SECRET * 2, algorithm='HS512')}",
}
BACKEND = {"key", "old key"}
OWN = {"user's token", "user's token in capitals"}
OTHERS = {"other user's token"}
OPEN_ROUTES = ["GET /healthz", "GET /readyz"]


@pytest.mark.filterwarnings("ignore:The HMAC key")
@pytest.mark.parametrize("name", CREDENTIALS)
@pytest.mark.parametrize("route", ["POST /create", "GET /list", "POST /read", "GET /metrics", *OPEN_ROUTES])
async def test_each_route_is_open_to_the_right_callers(share: Start, route: str, name: str) -> None:
    client = await share(**PROTECTED)
    body = {"user_id": USER, "key": "new_message"}
    headers = {"Authorization": value} if (value := CREDENTIALS[name]) is not None else {}
    method, path = route.split()
    if path in {"/list", "/read"}:
        path += f"?user_id={USER}&all=true"
    response = await client.request(method, path, headers=headers, json=body if path == "/create" else None)
    if route in OPEN_ROUTES or name in BACKEND or (name in OWN and "user_id" in path):
        assert response.status in {200, 201}
    elif name in OWN | OTHERS:
        assert response.status == 403
        await problem(response)
    else:
        assert (response.status, response.headers["WWW-Authenticate"][:6]) == (401, "Bearer")
        assert KEY not in str(await problem(response))


async def test_authentication_comes_before_validation(start: Start) -> None:
    client = await start(**PROTECTED)
    assert (await client.post("/create", data=b"nonsense")).status == 401
    assert (await client.get("/list")).status == 401
    two = [("Authorization", f"Bearer {KEY}"), ("Authorization", f"Bearer {KEY}")]
    assert (await client.get(f"/list?user_id={USER}", headers=two)).status == 401


async def test_pages_of_the_configured_origins_may_list_and_read(start: Start) -> None:
    client = await start(**PROTECTED, cors_origins=("https://app.example.com",))
    asked = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
    for origin, allowed in (("https://app.example.com", "https://app.example.com"), ("https://evil.example", None)):
        response = await client.options("/list", headers={"Origin": origin, **asked})
        assert response.headers.get("Access-Control-Allow-Origin") == allowed
        response = await client.get(f"/list?user_id={USER}", headers={"Origin": origin})
        assert response.status == 401
        assert response.headers.get("Access-Control-Allow-Origin") == allowed
        assert response.headers["Vary"] == "Origin"
    response = await client.options("/create", headers={"Origin": "https://app.example.com", **asked})
    assert response.status == 405
