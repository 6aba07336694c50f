"""The page to unsubscribe, as mail programs and browsers ask for it: what it does, and what it answers."""

from __future__ import annotations

import asyncio
import logging
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from bson import ObjectId
from pymongo import MongoClient

import handlers
from api import unsubscribe
from api.problems import BY_EXCEPTION
from api.unsubscribe import View, masked
from mail.unsubscribe import NoSuchLink
from mongo.errors import Unavailable
from settings import Settings
from tests.client import DB, KEY, OTHER, PROTECTED, ROOT, USER, Client, ours, problem, user
from tests.faults import failing, hasty
from tests.fixtures import Start
from tests.links import BROWSER, LINKED, link_path
from tests.programs import needed_by
from tests.servers import Mongod
from tests.waiting import eventually_async

OFF = {"email": False}
VIEWS = [view for view in vars(unsubscribe).values() if isinstance(view, View)]
BODIES: Mapping[str, tuple[str, bytes]] = {
    "urlencoded": ("application/x-www-form-urlencoded", b"List-Unsubscribe=One-Click"),
    "multipart": (
        "multipart/form-data; boundary=b",
        b'--b\r\nContent-Disposition: form-data; name="List-Unsubscribe"\r\n\r\nOne-Click\r\n--b--\r\n',
    ),
    "garbage": ("application/json; charset=nonsense", b"\xff\0{"),
    "a broken multipart": ("multipart/form-data", b"--"),
    "nothing": ("", b""),
    "a large body": ("text/plain", b"x" * 300_000),
}


@pytest.fixture
def linked() -> Settings:
    """Return settings of a service whose e-mails have links."""
    return Settings(**LINKED)


@pytest.fixture
async def client(share: Start) -> Client:
    """Return a client of a service with a key and links."""
    return await share(**LINKED, **PROTECTED)


@pytest.fixture
def database(client: Client, direct: MongoClient[dict[str, Any]]) -> DB:
    """Return the database of the service. The user is known."""
    database = direct[client.app[handlers.STORE].database.name]
    database.users.insert_one({"_id": ObjectId(USER), "email": "ann@example.com"})
    return database


def preferences(database: DB, user_id: str = USER) -> Any:
    """Return what the user's document says."""
    return ours(database, user_id).get("preferences")


# --- what a request does ----------------------------------------------------------------------------


async def test_to_look_at_the_page_changes_nothing(client: Client, linked: Settings, database: DB) -> None:
    before = user(database)
    for query in ("", "?choice=all", "?choice=undo-all"):
        for method in ("GET", "HEAD"):
            response = await client.request(method, link_path(linked) + query, headers=BROWSER)
            assert (response.status, response.content_type) == (200, "text/html")
            assert bool(await response.read()) == (method == "GET")
    assert user(database) == before


async def shown(client: Client, path: str, method: str = "GET") -> tuple[str, str, list[str]]:
    """Return the heading of the page, its sentence, and what its buttons ask for."""
    text = await (await client.request(method, path)).text()
    (heading,), (sentence,) = re.findall("<h1>(.*)</h1>", text), re.findall("<p>(.*)</p>", text)
    return heading, sentence, re.findall('action="([^"]*)"', text)


@pytest.mark.usefixtures("database")
async def test_the_page_tells_the_present_state_whenever_it_is_opened(client: Client, linked: Settings) -> None:
    path = link_path(linked)
    on = ("You get these e-mails.", ["?", "?choice=all"])
    off = ("You are unsubscribed", "You no longer get these e-mails.", ["?choice=undo", "?choice=all"])
    all_off = ("You are unsubscribed", "You only get e-mails that are required.", ["?choice=undo-all"])
    assert await shown(client, path) == ("Unsubscribe from these e-mails?", *on)
    for query, state in (("", off), ("?choice=all", all_off), ("?choice=undo-all", off)):
        assert await shown(client, path + query, "POST") == await shown(client, path) == state
    assert await shown(client, f"{path}?choice=undo", "POST") == ("You are subscribed again", *on)
    assert await shown(client, path) == ("Unsubscribe from these e-mails?", *on)
    assert await shown(client, f"{path}?choice=all", "POST") == all_off
    assert await shown(client, f"{path}?choice=undo", "POST") == ("You are subscribed again", *on)
    assert await shown(client, link_path(linked, "invoice_ready")) == all_off


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("ann@example.com", "a•••@example.com"),
        (" Å.b@sub.пример.рф ", "Å•••@sub.пример.рф"),
        ('"a b"@example.com', '"•••@example.com'),
        ("@example.com", ""),
        ("ann", ""),
        (None, ""),
        (["ann@example.com"], ""),
        ("a" * 2000 + "@example.com", ""),
    ],
)
def test_an_address_is_masked(address: object, said: str) -> None:
    assert masked(address) == said


@pytest.mark.parametrize("body", BODIES)
async def test_a_post_unsubscribes_whatever_its_body(client: Client, linked: Settings, database: DB, body: str) -> None:
    media_type, data = BODIES[body]
    for _ in range(2):  # again is no error
        response = await client.post(
            link_path(linked), data=data, headers={"Content-Type": media_type}, allow_redirects=False
        )
        assert (response.status, response.content_type) == (200, "text/html")
    assert preferences(database) == {"order_shipped": OFF}
    assert user(database).keys() == {"_id", "email", "notifier"}


async def test_the_documented_command_does_what_a_mail_program_does(
    client: Client, linked: Settings, database: DB
) -> None:
    page = (ROOT / "docs/preferences.md").read_text()
    (command,) = re.findall("^curl .*$", page, re.MULTILINE)
    typed = command.replace("https://notifications.example.com/u/TOKEN", f"{client.make_url(link_path(linked))}")
    process = await asyncio.create_subprocess_shell(needed_by(f"{typed} --silent"), stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert b"You are unsubscribed" in out
    assert preferences(database) == {"order_shipped": OFF}


async def test_each_choice_is_made_and_undone(client: Client, linked: Settings, database: DB) -> None:
    path = link_path(linked)
    stored = []
    for query in ("?choice=", "?choice=all", "?choice=undo-all", "?choice=undo", "?choice=undo"):
        assert (await client.post(path + query)).status == 200
        stored.append(preferences(database))
    assert stored == [{"order_shipped": OFF}, {"order_shipped": OFF, "*": OFF}, {"order_shipped": OFF}, None, None]
    await problem(response := await client.post(f"{path}?choice=everything"))
    assert response.status == 404
    assert preferences(database) is None


async def test_a_required_kind_stays_on_and_the_page_says_so(client: Client, linked: Settings, database: DB) -> None:
    path = link_path(linked, "invoice_ready")
    pages = [
        await (await client.request(method, path + query)).text()
        for method, query in (("GET", ""), ("POST", ""), ("POST", "?choice=undo"))
    ]
    assert len(set(pages)) == 1
    assert "These e-mails are required" in pages[0]
    assert "Invoices" in pages[0]
    assert re.findall('action="([^"]*)"', pages[0]) == ["?choice=all"]
    assert preferences(database) is None
    assert (await client.post(f"{path}?choice=all")).status == 200
    assert preferences(database) == {"*": OFF}


async def test_a_kind_that_has_left_the_table_can_be_turned_off(client: Client, linked: Settings, database: DB) -> None:
    path = link_path(linked, "weekly_news")
    assert "Weekly news" in await (await client.get(path)).text()
    assert (await client.post(path)).status == 200
    assert preferences(database) == {"weekly_news": OFF}


@pytest.mark.parametrize("query", ["", "?choice=all", "?choice=undo", "?choice=undo-all"])
async def test_an_unknown_user_is_no_error_and_not_created(
    client: Client, linked: Settings, database: DB, query: str
) -> None:
    assert (await shown(client, link_path(linked, user_id=OTHER) + query, "POST"))[0] == "You are unsubscribed"
    assert database.users.count_documents({}) == 1


@pytest.mark.parametrize("settings_", [{}, PROTECTED], ids=["no keys", "keys"])
async def test_anybody_with_the_link_may_post_from_anywhere(
    start: Start, linked: Settings, database: DB, settings_: dict[str, Any]
) -> None:
    client = await start(**LINKED, **settings_)
    foreign = {"Origin": "https://mail.example", "Sec-Fetch-Site": "cross-site"}
    assert (await client.post(link_path(linked), headers=foreign)).status == 200
    assert preferences(database) == {"order_shipped": OFF}


async def test_a_token_is_no_credential_and_a_credential_no_token(client: Client, linked: Settings) -> None:
    token = link_path(linked).removeprefix("/u/")
    response = await client.get(f"/list?user_id={USER}", headers={"Authorization": f"Bearer {token}"})
    assert response.status == 401
    assert (await client.post(f"/u/{KEY}")).status == 404


# --- what a request is answered ---------------------------------------------------------------------


@pytest.mark.usefixtures("database")
async def test_the_page_is_private_and_strict_and_masks_the_address(client: Client, linked: Settings) -> None:
    for method in ("GET", "POST"):
        response = await client.request(method, link_path(linked))
        headers, text = response.headers, await response.text()
        policy = set(headers["Content-Security-Policy"].split("; "))
        assert policy == {
            "default-src 'none'",
            "style-src 'self'",
            "base-uri 'none'",
            "form-action 'self'",
            "frame-ancestors 'none'",
        }
        assert (headers["Referrer-Policy"], headers["Cache-Control"]) == ("no-referrer", "no-store")
        assert (headers["X-Robots-Tag"], headers["X-Content-Type-Options"]) == ("noindex", "nosniff")
        assert "Shipped orders" in text
        assert "<dt>From</dt> <dd><bdi>Notifier &lt;noreply@example.com&gt;</bdi></dd>" in text
        assert "<dt>To</dt> <dd><bdi>a•••@example.com</bdi></dd>" in text
        assert not [secret for secret in (USER, "ann@example.com", "<script", "http") if secret in text]
        assert set(re.findall('(?:href|action)="([^"]*)"', text)) <= {"style.css", "?", "?choice=all", "?choice=undo"}
    style = await client.get("/u/style.css")
    assert (style.status, style.content_type) == (200, "text/css")


KIND = """
[order_shipped]
email = true
label = '<b>{data.x|"&"} & more'
names = {de = '<Sendungen>'}
"""


@pytest.mark.usefixtures("database")
async def test_the_page_calls_a_kind_by_its_name_or_else_by_its_label(
    start: Start, linked: Settings, tmp_path: Path
) -> None:
    kinds = tmp_path / "kinds.toml"
    kinds.write_text(KIND)
    client, path = await start(**LINKED | {"kinds_file": kinds}), link_path(linked)
    assert "<bdi>&lt;b&gt;&#34;&amp;&#34; &amp; more</bdi>" in await (await client.get(path)).text()
    text = await (await client.get(path, headers={"Accept-Language": "de"})).text()
    assert "<bdi>&lt;Sendungen&gt;</bdi>" in text


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize(
    ("header", "language", "label"),
    [
        ("", "en", "Shipped orders"),
        ("de-AT, en;q=0.5", "de", "Verschickte Bestellungen"),
        ("en;q=0.3, ru;q=0.7, xx", "ru", "Shipped orders"),
        ("fr;q=0, es;q=0.1", "es", "Shipped orders"),
        ("nl, AR-eg;q=0.8", "ar", "Shipped orders"),
        ("pt-BR", "pt", "Shipped orders"),
        ("fa-IR", "fa", "Shipped orders"),
        ("zh-Hant-TW", "zh-Hant", "Shipped orders"),
        ("zh-HK, zh;q=0.9", "zh-Hant", "Shipped orders"),
        ("zh-CN", "zh", "Shipped orders"),
        ("fr-CA;q=1.0,de;q=0.999", "fr", "Shipped orders"),
        ("*", "en", "Shipped orders"),
        (";;,q=,de;q=2,ru;q=x,\xe4, 12", "en", "Shipped orders"),
    ],
)
async def test_the_page_speaks_the_language_of_the_browser(
    client: Client, linked: Settings, header: str, language: str, label: str
) -> None:
    response = await client.get(link_path(linked), headers={"Accept-Language": header})
    text = await response.text()
    assert f'<html lang="{language}" dir="{"rtl" if language in {"ar", "fa"} else "ltr"}">' in text
    assert f"<bdi>{label}</bdi>" in text


def test_every_language_has_every_text() -> None:
    texts = tomllib.loads((ROOT / "web/unsubscribe.toml").read_text())
    assert [*texts] == ["en", "de", "ru", "fr", "es", "pt", "tr", "ar", "fa", "he", "ja", "zh", "zh-Hant"]
    assert {name: texts[name].keys() ^ texts["en"].keys() for name in texts} == {name: set() for name in texts}
    said = [text for of_one in texts.values() for text in of_one.values()]
    assert all(text == text.strip() != "" for text in said)
    used = {name for view in VIEWS for name in (view.heading, view.sentence, *dict(view.buttons).values())}
    assert used | {"from", "to"} == texts["en"].keys()


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_link_that_is_not_valid_is_a_problem_or_a_page(
    client: Client, linked: Settings, database: DB, method: str
) -> None:
    before = list(database.users.find())
    path = link_path(linked)[:-1]
    response = await client.request(method, path)
    body = await problem(response)
    assert (body["status"], body["detail"]) == (404, BY_EXCEPTION[NoSuchLink].detail)
    response = await client.request(method, path, headers=BROWSER | {"Accept-Language": "de"})
    assert (response.status, response.content_type, response.charset) == (404, "text/html", "utf-8")
    assert response.headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'self'")
    assert '<html lang="de"' in (text := await response.text())
    assert "Dieser Link ist ungültig" in text
    assert "<form" not in text
    assert list(database.users.find()) == before


async def test_without_links_there_is_no_page(start: Start, linked: Settings) -> None:
    client = await start(**PROTECTED)
    for method in ("GET", "POST"):
        response = await client.request(method, link_path(linked))
        await problem(response)
        assert response.status == 404


@hasty
async def test_without_mongodb_the_answer_says_when_to_try_again(
    start: Start, linked: Settings, mongod: Mongod, database: DB, caplog: pytest.LogCaptureFixture
) -> None:
    client = await start(**LINKED, **PROTECTED)
    with failing(mongod, ["findAndModify"], errorCode=24), caplog.at_level(logging.ERROR, "notifier.http"):
        answers = await asyncio.gather(
            *(
                client.post(link_path(linked), headers=headers)
                for headers in ({}, BROWSER, BROWSER | {"Accept-Language": "fr"})
            )
        )
        looked = await client.get(link_path(linked))
    assert looked.status == 200
    assert [(answer.status, answer.headers["Retry-After"]) for answer in answers] == [(503, "5")] * 3
    assert (await problem(answers[0]))["detail"] == BY_EXCEPTION[Unavailable].detail
    assert "Please try again later." in await answers[1].text()
    assert "Veuillez réessayer plus tard." in await answers[2].text()
    (line,) = [record.getMessage() for record in caplog.records if record.name == "notifier.http"]
    assert line == "requests fail: MongoDB cannot do it now: error 24 LockTimeout."
    assert preferences(database) is None

    async def is_accepted() -> None:
        assert (await client.post(link_path(linked))).status == 200

    await eventually_async(is_accepted)


async def test_no_token_reaches_a_log_or_a_metric(
    client: Client, linked: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    path = link_path(linked)
    with caplog.at_level(logging.DEBUG):
        for method in ("GET", "POST", "DELETE", "HEAD"):
            await client.request(method, path)
        await client.post(path + "x")
    metrics = await (await client.get("/metrics", headers={"Authorization": f"Bearer {KEY}"})).text()
    lines = [f"{vars(record)}" for record in caplog.records if record.name == "notifier.http"]
    assert len(lines) >= 5
    token = path.removeprefix("/u/")
    assert not [line for line in [*lines, metrics] if token[:20] in line or USER in line]
    assert 'route="/u/{token}"' in metrics
