"""Addresses that were refused for good: which refusals count, what follows, and what lifts a suppression."""

from __future__ import annotations

from argparse import Namespace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiosmtplib import SMTPResponseException
from bson import ObjectId

from cli.emails import list_emails, retry_dead, show_status
from mail.replies import BOUNCES, Stage, bounce_code, judge
from mongo.suppression import NO_INDEX, SHARED_LIMIT
from settings import Settings, UnknownUsers
from store import open_store
from tests.client import DB, OTHER, PROTECTED, USER, Client, counted, create, ours, settled, token
from tests.fixtures import Start
from tests.servers import MailServer

GONE = "550 5.1.1 <gone@example.com>: no such user"


def code_of(reply: str, stage: Stage = Stage.RCPT) -> str | None:
    """Return the code for which a conversation that ended with this reply suppresses its address."""
    outcome = judge(SMTPResponseException(int(reply[:3]), reply[4:]), stage)
    return bounce_code(outcome.verdict, outcome.reply)


@pytest.mark.parametrize("code", BOUNCES)
@pytest.mark.parametrize("separator", [" ", "-"])
def test_the_codes_of_a_mailbox_that_does_not_exist_suppress(code: str, separator: str) -> None:
    assert code_of(f"550{separator}{code} The account does not exist") == code
    assert code_of(f"550 {code}") == code


NO_BOUNCES = [
    "451 4.1.1 try again",
    "450 5.1.1 contradicts itself",
    "550 no such user",
    "550 5.1.0 other address status",
    "550 5.1.3 bad syntax",
    "550 5.1.11 none of the table",
    "550 5.2.1 mailbox disabled",
    "552 5.2.2 mailbox full",
    "552 5.1.1 mailbox full",
    "550 5.1.1 The recipient is over quota",
    "550 5.1.1 out of storage space in the mailbox: insufficient mailbox storage",
    "550 5.7.1 no such user",
    "550 5.7.26 unauthenticated",
    "550 5.1.8 bad sender",
    "550 5.1.1 sender address rejected",
    "550 5.1.1 blocked using zen.spamhaus.org",
    "550 5.1.1 refused for the reputation of 192.0.2.1",
    "550 5.1.1 message rejected under a local policy",
    "550 5.1.1 Daily user sending limit exceeded",
    "554 5.1.2 relay access denied",
]
GONE_FOR_GOOD = [
    "550 5.1.1 <abuse@example.com>: Recipient address rejected: User unknown",
    "550 5.1.1 <joe@blockfi.com>: user unknown",
    "550 5.1.1 policy@spf.example does not exist here",
    "550 5.1.1 mx1.antispam.example said: no such user",
]


@pytest.mark.parametrize("reply", GONE_FOR_GOOD)
def test_words_inside_addresses_and_hosts_are_ignored(reply: str) -> None:
    assert code_of(reply) == "5.1.1"


@pytest.mark.parametrize("reply", NO_BOUNCES)
def test_policy_reputation_and_everything_else_never_suppresses(reply: str) -> None:
    assert code_of(reply) is None


@pytest.mark.parametrize("stage", Stage)
def test_the_reply_to_rcpt_or_to_the_message_suppresses(stage: Stage) -> None:
    assert bool(code_of(GONE, stage)) is (stage not in {Stage.CONNECT, Stage.MAIL})


# --- what follows -----------------------------------------------------------------------------------


async def bounce(
    client: Client, database: DB, mail: MailServer, reply: str = GONE, address: str = "gone@example.com"
) -> int:
    """Let an e-mail to `USER` be refused with this reply; return how many recipients the server was then asked for."""
    asked = []

    async def script(stage: str, recipient: str) -> str | None:
        if stage == "RCPT":
            asked.append(recipient)
        return reply if stage == "RCPT" and recipient == "gone@example.com" and reply[0] == "5" else None

    mail.script = script
    database.users.update_one({"_id": ObjectId(USER)}, {"$set": {"email": address}}, upsert=True)
    await create(client, key="registration")
    await settled(database)
    return len(asked)


async def test_after_a_bounce_emails_die_without_a_conversation(client: Client, database: DB, mail: MailServer) -> None:
    assert await bounce(client, database, mail) == 1
    suppression = ours(database)["suppression"]
    assert {name: suppression[name] for name in ("address", "code")} == {"address": "gone@example.com", "code": "5.1.1"}
    assert abs((datetime.now(UTC) - suppression["at"]).total_seconds()) < 60
    assert await bounce(client, database, mail) == 0
    first, second = database.dead_mail.find().sort("died_at")
    assert first["error"] == f"RCPT: {GONE}"
    assert second["error"] == "Suppressed: no e-mail is sent to this address (5.1.1)."
    assert (first["tries"], second["tries"]) == (1, 0)
    await counted(client, 'notifier_emails_total{outcome="dead",reason="suppressed"}', 1)


async def test_a_refusal_for_policy_suppresses_nothing(client: Client, database: DB, mail: MailServer) -> None:
    assert await bounce(client, database, mail, "550 5.7.17 mailbox owner has changed") == 1
    assert "suppression" not in ours(database)
    assert await bounce(client, database, mail) == 1


async def test_only_the_same_address_is_suppressed_in_any_form(client: Client, database: DB, mail: MailServer) -> None:
    await bounce(client, database, mail)
    assert await bounce(client, database, mail, address="new@example.com") == 1
    assert [recipient for recipient, _ in mail.received] == ["new@example.com"]
    assert await bounce(client, database, mail, address=" gone@example.com ") == 0


@pytest.mark.parametrize("value", ["yes", {"address": "gone@example.com"}, [1]], ids=repr)
async def test_a_bounce_replaces_a_suppression_that_makes_no_sense(
    client: Client, database: DB, mail: MailServer, value: Any
) -> None:
    database.users.insert_one({"_id": ObjectId(USER), "notifier": {"suppression": value}})
    assert await bounce(client, database, mail) == 1
    assert ours(database)["suppression"].keys() == {"address", "code", "at", "confirmed"}
    assert await bounce(client, database, mail) == 0


# --- setting and lifting one ------------------------------------------------------------------------


async def suppress(client: Client, body: object = None, **options: Any) -> Any:
    response = await client.post("/suppress", params={"user_id": USER}, json=body, **options)
    return response.status, (await response.json()).get("data")


SUPPRESSED, NOT = (200, {"suppressed": True}), (200, {"suppressed": False})


async def test_a_webhook_sets_and_lifts_a_suppression(client: Client, database: DB, mail: MailServer) -> None:
    database.users.insert_one({"_id": ObjectId(USER), "email": "gone@example.com"})
    response = await client.post("/suppress", params={"user_id": USER})  # as curl -X POST does, without a body
    assert (response.status, ours(database)["suppression"]["code"]) == (200, "reported")
    assert await suppress(client, {"suppressed": False}) == NOT
    assert "suppression" not in ours(database)
    assert await suppress(client, {"address": "old@example.com", "code": "5.1.1"}) == NOT
    assert await suppress(client, {"address": " gone@Example.COM", "code": "complaint"}) == SUPPRESSED
    assert await suppress(client, {"address": "old@example.com"}) == SUPPRESSED  # as it was
    assert await suppress(client, {"address": "Gone User <GONE@example.com>", "code": "5.1.1"}) == SUPPRESSED
    assert await suppress(client, {"address": "<gone@example.com>"}) == SUPPRESSED
    assert ours(database)["suppression"]["address"] == "gone@example.com"
    assert (await suppress(client, {"code": "550 5.1.1 <ann@example.com>: no such user"}))[0] == 422
    assert await bounce(client, database, mail) == 0
    assert await suppress(client, {"suppressed": False}) == NOT
    assert await bounce(client, database, mail) == 1


async def test_a_user_without_an_address_has_none_to_suppress(client: Client, database: DB) -> None:
    assert (await suppress(client, {}))[0] == 404
    database.users.insert_one({"_id": ObjectId(USER), "email": ["none"]})
    assert await suppress(client, {}) == NOT
    assert "suppression" not in ours(database)


async def by_address(client: Client, address: object, **fields: Any) -> Any:
    """Call without a user; return the status and the data or the errors."""
    response = await client.post("/suppress", json={"address": address, **fields})
    body = await response.json()
    return response.status, body.get("data") or body.get("errors")


INDEXES: list[Any] = [
    ("email", {}),
    ([("email", -1), ("name", 1)], {}),
    ("email", {"collation": {"locale": "en", "strength": 2}}),
    ("email", {"unique": True, "sparse": True}),
]


@pytest.mark.parametrize(("keys", "options"), INDEXES)
async def test_an_index_finds_the_users_who_have_an_address(
    client: Client, database: DB, keys: Any, options: dict[str, Any]
) -> None:
    first, second = ObjectId(USER), ObjectId(OTHER)
    shared = "ann@example.com" if not options.get("unique") else "other@example.com"
    database.users.insert_many([{"_id": first, "email": "ann@example.com"}, {"_id": second, "email": shared}])
    database.users.create_index(keys, **options)
    assert await by_address(client, "Ann <ANN@Example.com>", code="5.1.1") == SUPPRESSED
    found = [user_["_id"] for user_ in database.users.find({"notifier.suppression.address": "ann@example.com"})]
    assert found == ([first, second] if shared == "ann@example.com" else [first])
    assert await by_address(client, "ann@example.com", suppressed=False) == NOT
    assert database.users.count_documents({"notifier.suppression": {"$exists": True}}) == 0
    assert await by_address(client, "nobody@example.com") == NOT


async def test_the_index_decides_whether_the_case_matters(client: Client, database: DB) -> None:
    database.users.insert_one({"_id": ObjectId(USER), "email": "Ann@Example.com"})
    database.users.create_index("email", name="exact")
    assert await by_address(client, "ann@example.com") == NOT
    database.users.drop_index("exact")
    database.users.create_index("email", collation={"locale": "en", "strength": 2})
    assert await by_address(client, "ann@example.com") == SUPPRESSED
    assert ours(database)["suppression"]["address"] == "Ann@example.com"


async def test_an_index_finds_an_address_in_an_array(start: Start, database: DB) -> None:
    client = await start(email_field="emails.0.address", unknown_users=UnknownUsers.REFUSE)
    one, other = {"address": "one@example.com"}, {"address": "other@example.com"}
    database.users.insert_one({"_id": ObjectId(USER), "emails": [one, other]})
    database.users.create_index("emails.address")
    assert await by_address(client, "other@example.com") == NOT  # to which no e-mail goes
    assert await by_address(client, "one@example.com") == SUPPRESSED


@pytest.mark.parametrize(
    ("keys", "options"),
    [
        (None, {}),
        ([("name", 1), ("email", 1)], {}),
        ("email", {"partialFilterExpression": {"active": True}}),
        ([("email", "text")], {}),
        ("email", {"hidden": True}),
    ],
)
async def test_without_an_index_an_address_alone_is_refused(
    client: Client, database: DB, keys: Any, options: dict[str, Any]
) -> None:
    database.users.insert_one({"_id": ObjectId(USER), "email": "ann@example.com"})
    if keys:
        database.users.create_index(keys, **options)
    assert await by_address(client, "ann@example.com") == (422, {"user_id": [NO_INDEX]})
    assert (await by_address(client, None))[0] == 422
    assert await suppress(client, {"address": "ann@example.com"}) == SUPPRESSED


async def test_an_address_that_very_many_users_have_is_refused(client: Client, database: DB) -> None:
    """The service gives all users that it creates the same."""
    database.users.create_index("email")
    database.users.insert_many([{"email": "new-user@example.com"} for _ in range(SHARED_LIMIT + 1)])
    many = "More than 100 users have it: give user_id."
    assert await by_address(client, "new-user@example.com") == (422, {"address": [many]})


async def test_only_a_backend_may_suppress(start: Start, database: DB) -> None:
    client = await start(**PROTECTED)
    database.users.insert_one({"_id": ObjectId(USER), "email": "a@example.com"})
    assert (await suppress(client, {}, headers={"Authorization": f"Bearer {token()}"}))[0] == 403
    assert "suppression" not in ours(database)


async def test_operators_see_it_and_a_retry_lifts_it(
    settings: Settings, client: Client, database: DB, mail: MailServer, capsys: pytest.CaptureFixture[str]
) -> None:
    await bounce(client, database, mail)
    mail.script = None
    options = Namespace(user_id=USER, json=False, all=True, ids=[])
    async with open_store(settings) as store:
        await list_emails(store, options)
        await show_status(store, options)
        output = capsys.readouterr().out
        assert "Suppressed: gone@example.com gets no e-mails since" in output
        assert "Suppressed        1; `mail` shows a user's address and why" in output
        assert await retry_dead(store, options) == 0
        await settled(database)
        assert [recipient for recipient, _ in mail.received] == ["gone@example.com"]
        await show_status(store, options)
        assert "Suppressed        none" in capsys.readouterr().out
    assert "suppression" not in ours(database)


# --- a suppression is provisional --------------------------------------------------------------------


@pytest.mark.parametrize("exists", [True, False])
async def test_an_email_two_days_later_is_tried_and_decides(
    client: Client, database: DB, mail: MailServer, exists: bool
) -> None:
    await bounce(client, database, mail)
    assert ours(database)["suppression"]["confirmed"] is False
    earlier = datetime.now(UTC) - timedelta(hours=49)
    database.users.update_one({"_id": ObjectId(USER)}, {"$set": {"notifier.suppression.at": earlier}})
    assert await bounce(client, database, mail, "250 OK" if exists else GONE) == 1
    if exists:
        assert "suppression" not in (ours(database) or {})
    else:
        assert ours(database)["suppression"]["confirmed"] is True
        assert await bounce(client, database, mail) == 0


@pytest.mark.parametrize(("code", "confirmed"), [("5.1.1", False), ("complaint", True), ("5.7.1", True)])
async def test_only_a_report_of_an_unknown_mailbox_is_provisional(
    client: Client, database: DB, code: str, confirmed: bool
) -> None:
    await create(client, key="new_post")
    await client.post(f"/suppress?user_id={USER}", json={"code": code})
    assert ours(database)["suppression"]["confirmed"] is confirmed
