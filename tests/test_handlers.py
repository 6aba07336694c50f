"""The API beyond the specification: selectors, pollers, probes and idempotency keys."""

from __future__ import annotations

import pytest

from tests.client import OTHER, TARGET, USER, Client, create, list_, problem
from tests.faults import failing
from tests.fixtures import Start
from tests.servers import Mongod, free_port


@pytest.mark.parametrize(
    ("query", "left_unread"),
    [
        ({"target_id": TARGET.upper()}, {1, 3}),
        ({"key": "new_post"}, {0, 1}),
        ({"all": "true"}, set()),
        ({"target_id": "f" * 24}, {0, 1, 2, 3}),
        ({"key": "registration"}, {0, 1, 2, 3}),
    ],
)
async def test_read_marks_what_its_selector_matches(
    client: Client, query: dict[str, str], left_unread: set[int]
) -> None:
    for n, (key, target_id) in enumerate(
        [("new_message", TARGET), ("new_message", None), ("new_post", TARGET), ("new_post", OTHER)]
    ):
        await create(client, USER, key, target_id=target_id, data={"n": n})
        await create(client, OTHER, key, target_id=target_id)
    for _ in range(2):
        response = await client.post("/read", params={"user_id": USER, **query})
        assert (response.status, await response.json()) == (200, {"success": True})
    unread = await list_(client, USER, is_new="true")
    assert {item["data"]["n"] for item in unread["list"]} == left_unread
    assert (unread["elements"], unread["new"], unread["request"]["is_new"]) == (4, len(left_unread), True)
    one_read = await list_(client, USER, is_new="false", limit=1)
    assert len(one_read["list"]) == (len(left_unread) < 4)
    assert (await list_(client, OTHER))["new"] == 4


async def test_read_of_an_unknown_user_is_404_only_for_one_id(client: Client) -> None:
    assert (await client.post(f"/read?user_id={USER}&all=true")).status == 200
    assert (await client.post(f"/read?user_id={USER}&notification_id=x")).status == 404


@pytest.mark.parametrize(
    ("query", "errors"),
    [
        ("", {"notification_id"}),
        ("&notification_id=x&all=true", {"notification_id", "all"}),
        ("&target_id=x&key=y", {"target_id", "key"}),
        ("&all=false", {"all"}),
        ("&all=1", {"all"}),
        ("&key=new_post&key=new_post", {"key"}),
        ("&target_id=", {"target_id"}),
    ],
)
async def test_read_takes_exactly_one_selector(client: Client, query: str, errors: set[str]) -> None:
    response = await client.post(f"/read?user_id={USER}{query}")
    assert response.status == 422
    assert (await problem(response))["errors"].keys() == errors


async def test_a_poller_gets_304_until_something_changes(client: Client) -> None:
    await create(client)
    url = f"/list?user_id={USER}"
    first = await client.get(url)
    same = await client.get(url, headers={"If-None-Match": f'"x", {first.headers["ETag"]}'})
    assert (same.status, await same.read(), same.headers["ETag"]) == (304, b"", first.headers["ETag"])
    await client.post(f"/read?user_id={USER}&all=true")
    changed = await client.get(url, headers={"If-None-Match": first.headers["ETag"]})
    assert changed.status == 200
    assert changed.headers["ETag"] != first.headers["ETag"]


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", "ü"])
async def test_a_bad_idempotency_key_is_named_with_every_other_fault(client: Client, key: str) -> None:
    response = await client.post("/create", json={"user_id": USER}, headers={"Idempotency-Key": key})
    assert response.status == 422
    assert (await problem(response))["errors"].keys() == {"key", "Idempotency-Key"}


@pytest.mark.ci
async def test_readiness_depends_on_mongodb_and_liveness_on_nothing(start: Start, mongod: Mongod) -> None:
    client = await start(smtp_port=free_port())
    await create(client, key="new_login")
    assert (await client.get("/readyz")).status == 200
    with failing(mongod, ["ping"], errorCode=91):
        assert (await client.get("/healthz")).status == 200
        response = await client.get("/readyz")
        assert response.status == 503
        await problem(response)
