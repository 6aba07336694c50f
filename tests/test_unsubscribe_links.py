"""Links to unsubscribe: the headers of e-mails that have them, and their tokens."""

from __future__ import annotations

import re
import string
from base64 import urlsafe_b64decode
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from config.checks import PUBLIC_URL_LENGTH
from mail.message import Sender, compose
from mail.templates import Content
from mail.unsubscribe import Links, NoSuchLink
from mongo.owed import OwedEmail
from settings import IdType, Settings
from tests.client import DB, KEY, OTHER, USER, create, settled
from tests.fixtures import Start
from tests.links import LINKED, link_path
from tests.servers import MailServer
from tests.templates import write

EMAIL = OwedEmail(
    document_id=1, user_id="1", id="a" * 24, key="x", at=datetime(2026, 1, 1, tzinfo=UTC), tries=0, token="0" * 24
)

# --- the headers of an e-mail -----------------------------------------------------------------------


async def test_emails_that_are_not_required_have_one_click_headers(
    start: Start, database: DB, mail: MailServer, settings: Settings
) -> None:
    client = await start(**LINKED)
    await create(client, key="order_shipped")
    await create(client, key="new_login")
    await settled(database)
    sent = {message["Subject"]: message for _, message in mail.received}
    url = sent["order_shipped"]["List-Unsubscribe"]
    assert re.fullmatch(r"<https://shop\.example/notifications/u/[\w-]+>", url)  # one line: not folded, not encoded
    assert url == f"<https://shop.example/notifications{link_path(replace(settings, **LINKED))}>"
    assert sent["order_shipped"]["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert not {"List-Unsubscribe", "List-Unsubscribe-Post"} & set(sent["new_login"].keys())


async def test_without_an_address_of_ours_an_email_has_no_link(start: Start, database: DB, mail: MailServer) -> None:
    client = await start(kinds_file=LINKED["kinds_file"], api_keys=(KEY,))
    response = await client.post(
        "/create", json={"user_id": USER, "key": "order_shipped"}, headers={"Authorization": f"Bearer {KEY}"}
    )
    assert response.status == 201
    await settled(database)
    ((_, message),) = mail.received
    assert "List-Unsubscribe" not in message


@pytest.mark.usefixtures("nobody_else")
async def test_a_failing_template_or_a_removed_kind_keeps_the_link(
    start: Start, database: DB, mail: MailServer, tmp_path: Path
) -> None:
    folder = write(tmp_path, {"order_shipped.txt": "{{ 1 / 0 }}"})
    client = await start(**LINKED, templates_dir=folder)
    await create(client, key="order_shipped")
    await settled(database)
    await client.close()
    other = tmp_path / "kinds.toml"
    other.write_text("[newsletter]\nemail = true\n")
    owing = await start(**LINKED, smtp_port=1)
    await create(owing, key="order_shipped")
    await owing.close()
    await start(**LINKED | {"kinds_file": other})
    await settled(database)
    assert [message["List-Unsubscribe-Post"] for _, message in mail.received] == ["List-Unsubscribe=One-Click"] * 2
    assert len({message["List-Unsubscribe"] for _, message in mail.received}) == 1


async def test_templates_have_the_link_too(start: Start, database: DB, mail: MailServer, tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        {
            "order_shipped.txt": "{{ unsubscribe_url }} {{ kind.name }} {{ kind.required }} {{ kind.label }}",
            "new_login.txt": "[{{ unsubscribe_url }}] {{ kind.required }}",
        },
    )
    client = await start(**LINKED, templates_dir=folder)
    for key in ("order_shipped", "new_login"):
        await create(client, key=key, data={"number": 7})
    await settled(database)
    shipped, login = sorted(mail.received, key=lambda found: found[1]["Subject"], reverse=True)
    link = shipped[1]["List-Unsubscribe"].strip("<>")
    assert shipped[1].get_payload(decode=True) == f"{link} order_shipped False Order 7 is on its way\r\n".encode()
    assert login[1].get_payload(decode=True) == b"[] True\r\n"


def test_the_longest_link_is_one_line_that_every_server_takes() -> None:
    prefix = "https://x.example/"
    url = prefix + "p" * (PUBLIC_URL_LENGTH - len(prefix))
    links = Links(Settings(id_type=IdType.STRING, public_url=url, unsubscribe_secrets=("u" * 32,)))
    user_id, kind = "😀" * 128, "k" * 64
    link = links.url(user_id, kind)
    assert link
    assert links.open(link.rpartition("/")[2]) == (user_id, kind)
    message = compose(
        EMAIL, Sender(Settings(smtp_from="noreply@example.com")), "a@b.example", Content("s", "t", None, link)
    )
    lines = message.split(b"\r\n")
    assert f"List-Unsubscribe: <{link}>".encode() in lines
    assert max(map(len, lines)) <= 998


# --- tokens -----------------------------------------------------------------------------------------


def sealed_by(*secrets: str, **changes: Any) -> Links:
    return Links(Settings(public_url="https://x.example", unsubscribe_secrets=secrets, **changes))


def token_of(links: Links, kind: str = "order_shipped", user_id: str = USER) -> str:
    url = links.url(user_id, kind)
    assert url
    return url.rpartition("/")[2]


def test_a_token_is_always_the_same_and_says_nothing_of_the_user() -> None:
    links = sealed_by("a" * 32)
    token = token_of(links)
    assert token == token_of(sealed_by("a" * 32))
    assert links.open(token) == (USER, "order_shipped")
    others = [token_of(links, "back_in_stock"), token_of(links, user_id=OTHER), token_of(sealed_by("b" * 32))]
    assert len({token, *others}) == 4
    assert not [other for other in others if other[:8] == token[:8] or other[-8:] == token[-8:]]
    for text in (USER, "order", "shipped"):
        assert text.encode() not in urlsafe_b64decode(token + "==")
        assert text not in token


def test_a_token_survives_the_rotation_of_secrets() -> None:
    old = token_of(sealed_by("a" * 32))
    rotated = sealed_by("b" * 32, "a" * 32)
    assert rotated.open(old) == rotated.open(token_of(rotated)) == (USER, "order_shipped")
    assert token_of(rotated) == token_of(sealed_by("b" * 32))
    with pytest.raises(NoSuchLink):
        sealed_by("b" * 32).open(old)


def test_the_keys_make_links_unless_there_are_secrets_for_that() -> None:
    by_keys = Links(Settings(public_url="https://x.example", api_keys=("a" * 32, "b" * 32)))
    assert token_of(by_keys) == token_of(sealed_by("a" * 32))
    with pytest.raises(NoSuchLink):
        sealed_by("c" * 32, api_keys=("a" * 32,)).open(token_of(by_keys))


def test_a_token_with_any_character_changed_opens_nothing() -> None:
    links = sealed_by("a" * 32)
    token = token_of(links)
    alphabet = string.ascii_letters + string.digits + "-_"
    forged = [token[:n] + other + token[n + 1 :] for n in range(len(token)) for other in alphabet if other != token[n]]
    forged += [token[:n] for n in range(len(token))] + [token + end for end in ("A", "=", "==", "AAAA", ".", " ", "é")]
    forged += [token[:9] + odd + token[9:] for odd in ("+", "/", "\n", "%", "\0")] + [token[::-1], token.swapcase()]
    opened = []
    for attempt in forged:
        try:
            opened.append(links.open(attempt))
        except NoSuchLink:
            continue
    assert opened == []
    assert len(forged) > 63 * len(token)


def test_a_link_to_an_id_of_another_type_opens_nothing() -> None:
    token = token_of(sealed_by("a" * 32, id_type=IdType.STRING), user_id="ann")
    with pytest.raises(NoSuchLink):
        sealed_by("a" * 32).open(token)
