"""Who may call what: keys, tokens and origins."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from hashlib import sha256

import pytest

from api.auth import BadCredential, OutOfScope, status_token
from api.problems import BY_EXCEPTION
from settings import Scope, Settings
from tests.client import (
    KEY,
    METRICS_KEY,
    OLD_KEY,
    OLD_SECRET,
    OTHER,
    PROTECTED,
    SECRET,
    SUPPRESS_KEY,
    USER,
    problem,
    token,
)
from tests.fixtures import Start

NOW = int(time.time())
CREDENTIALS: dict[str, str | Callable[[], str] | None] = {
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
    "token signed with the older secret": f"Bearer {token(secret=OLD_SECRET)}",
    "token that ends after a number without end": f"Bearer {token(exp=int('9' * 400))}",
    "token that ends in milliseconds": f"Bearer {token(exp=(NOW + 600) * 1000)}",
    "key for the metrics": f"Bearer {METRICS_KEY}",
    "token of `status`": lambda: f"Bearer {status_token(Settings(api_keys=PROTECTED['api_keys']))}",  # for a minute
    "token of `status` made with another key": lambda: f"Bearer {status_token(Settings(api_keys=(SUPPRESS_KEY,)))}",
    "token signed with the key of the metrics": f"Bearer {token(secret=METRICS_KEY)}",
    "alg none": f"Bearer {token(secret='', algorithm='none')}",
    "alg HS512": f"Bearer {token(secret=SECRET * 2, algorithm='HS512')}",
}
BACKEND = {"key", "old key"}
OWN = {"user's token", "user's token in capitals", "token signed with the older secret"}
METRICS = {"key for the metrics", "token of `status`"}
OTHERS = {"other user's token"}
OPEN_ROUTES = ["GET /healthz", "GET /readyz"]


@pytest.mark.filterwarnings("ignore:The HMAC key")
@pytest.mark.parametrize("name", CREDENTIALS)
@pytest.mark.parametrize("route", ["POST /create", "GET /list", "POST /read", "GET /metrics", *OPEN_ROUTES])
async def test_each_route_is_open_to_the_right_callers(share: Start, route: str, name: str) -> None:
    client = await share(**PROTECTED)
    body = {"user_id": USER, "key": "new_message"}
    value = CREDENTIALS[name]
    headers = {"Authorization": value() if callable(value) else value} if value else {}
    method, path = route.split()
    if path in {"/list", "/read"}:
        path += f"?user_id={USER}&all=true"
    response = await client.request(method, path, headers=headers, json=body if path == "/create" else None)
    of_metrics = name in METRICS and path == "/metrics"
    if route in OPEN_ROUTES or name in BACKEND or (name in OWN and "user_id" in path) or of_metrics:
        assert response.status in {200, 201}
    elif name in OWN | OTHERS | METRICS:
        assert response.status == 403
        await problem(response)
    else:
        assert (response.status, response.headers["WWW-Authenticate"][:6]) == (401, "Bearer")
        assert KEY not in str(await problem(response))


OPENED = {
    Scope.CREATE: {"POST /create"},
    Scope.INBOX: {"GET /list", "POST /read", "POST /unread", "POST /delete", "POST /seen", "GET /preferences"},
    Scope.SUPPRESS: {"POST /suppress"},
    Scope.ERASE: {"POST /erase"},
    Scope.METRICS: {"GET /metrics"},
}


@pytest.mark.parametrize(
    "scopes",
    [*({scope} for scope in Scope), {Scope.CREATE, Scope.INBOX}],
    ids=lambda scopes: "+".join(sorted(scope.value for scope in scopes)),
)
async def test_a_key_opens_what_its_scopes_say(share: Start, scopes: set[Scope]) -> None:
    keys = [f"{scope.value}:{scope.value * 32}" for scope in Scope] + [f"create+inbox:{'x' * 32}"]
    client = await share(api_keys=tuple(keys))
    key = "x" * 32 if len(scopes) > 1 else next(iter(scopes)).value * 32
    for route in sorted(set().union(*OPENED.values())):
        method, path = route.split()
        query = {"user_id": USER, "all": "true"} if path not in {"/create", "/metrics"} else {}
        body = {"user_id": USER, "key": "new_message"} if path == "/create" else None
        headers = {"Authorization": f"Bearer {key}"}
        response = await client.request(method, path, params=query, json=body, headers=headers)
        refused = (
            (await problem(response))["detail"] == BY_EXCEPTION[OutOfScope].detail if response.status == 403 else False
        )
        assert refused == all(route not in OPENED[scope] for scope in scopes), route


async def test_who_erases_a_user_and_who_is_refused_is_in_the_log(
    share: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    client = await share(**PROTECTED)
    for key in (KEY, "hunter2", METRICS_KEY):
        await client.post(f"/erase?user_id={USER}", headers={"Authorization": f"Bearer {key}"})
    names = [
        f"the caller with credential {sha256(key.encode()).hexdigest()[:8]}" for key in (KEY, "hunter2", METRICS_KEY)
    ]
    assert [record.getMessage() for record in caplog.records if record.name == "notifier.audit"] == [
        f"{names[0]} has erased document {USER}",
        f"{names[1]} is refused: {BY_EXCEPTION[BadCredential].detail}",
        f"{names[2]} is refused: {BY_EXCEPTION[OutOfScope].detail}",
    ]


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
        assert response.headers.get("Access-Control-Max-Age") == (allowed and "7200")  # one question a page, not a call
        response = await client.get(f"/list?user_id={USER}", headers={"Origin": origin})
        assert response.status == 401
        assert response.headers.get("Access-Control-Allow-Origin") == allowed
        assert response.headers["Vary"] == "Origin"
    response = await client.options("/create", headers={"Origin": "https://app.example.com", **asked})
    assert response.status == 405
