"""One message over SMTPS: what it says, where it goes, and on which connection."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import pytest
from bson import ObjectId

from settings import Security
from tests.client import DB, USER, Client, create, settled, user
from tests.fixtures import Start
from tests.servers import MailServer, localhost, smtp_server


async def test_the_message_carries_the_key_to_the_users_address(client: Client, database: DB, mail: MailServer) -> None:
    database.users.insert_one({"_id": ObjectId(USER), "email": "ann@bücher.example"})
    await create(client, key="new_login")
    await settled(database)
    ((recipient, message),) = mail.received
    assert recipient == "ann@xn--bcher-kva.example"
    assert message["From"] == '"Notifier" <noreply@example.com>'
    assert message["Subject"] == "new_login"
    assert message.get_payload() == "new_login\r\n"
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["Message-ID"] == f"<{user(database)['notifications'][0]['id']}@example.com>"
    assert message["Date"]
    assert mail.logins == 1


@pytest.mark.parametrize(
    "address",
    [
        None,
        "",
        "nobody",
        "a@b.example, c@d.example",
        7,
        ["a@b.example"],
        "a@b.c\r\nX: y",
        ["@"],
        {"@": 1},
        "@",
        b"a@b.c",
    ],
)
async def test_an_email_without_a_valid_address_becomes_a_dead_letter(
    client: Client, database: DB, mail: MailServer, address: object
) -> None:
    database.users.insert_one({"_id": ObjectId(USER), **({} if address is None else {"email": address})})
    await create(client, key="registration")
    await settled(database)
    (letter,) = database.dead_mail.find()
    assert "address" in letter["error"]
    assert (letter["user_id"], letter["key"], letter["tries"]) == (USER, "registration", 1)
    assert mail.received == []


async def test_connections_are_kept_for_the_next_message(client: Client, database: DB, mail: MailServer) -> None:
    for n in range(5):
        await create(client, f"{n:024x}", "registration")
        await settled(database)
    assert (len(mail.received), mail.connections) == (5, 1)


@pytest.mark.parametrize("security", [Security.AUTO, Security.STARTTLS])
async def test_starttls_is_used_before_the_login(
    start: Start, database: DB, server_tls: ssl.SSLContext, security: Security
) -> None:
    async with smtp_server(None, starttls=server_tls) as mail:
        client = await start(smtp_port=mail.port, smtp_security=security)
        await create(client, key="registration")
        await settled(database)
        assert (len(mail.received), mail.logins) == (1, 1)


async def test_a_host_may_end_with_a_dot(
    start: Start, database: DB, mail: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a dot, the resolver tries no search domains. Certificates have none."""
    resolve = asyncio.BaseEventLoop.getaddrinfo

    async def getaddrinfo(loop: asyncio.BaseEventLoop, host: str, *args: Any, **options: Any) -> Any:
        return await resolve(loop, host.removesuffix("."), *args, **options)

    monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)
    client = await start(smtp_host=f"{localhost()}.")
    await create(client, key="registration")
    await settled(database)
    assert len(mail.received) == 1
