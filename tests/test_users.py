"""Users as a team has them: ids that are strings, addresses and languages at a path, users who must not be created."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pymongo.collection import Collection

from api.problems import BY_EXCEPTION
from cli.environment import SettingsError
from kinds import SPECIFIED
from mongo.errors import UnknownUser
from mongo.lanes import PROBE
from settings import IdType, Settings, UnknownUsers
from tests.client import DB, KEY, PROTECTED, SECRET, Client, create, list_, problem, read, token
from tests.faults import scripted
from tests.fixtures import Start
from tests.processes import COMPLETE, command
from tests.servers import MailServer
from tests.streams import listening
from tests.templates import write
from tests.waiting import eventually_async

ANN, BOB = "u7Qb3nJ2vKxYz", "u7Qb3nJ2vKxYZ"
"""Two users whose ids differ only in case."""
TARGET = "order/2024 №7"
METEOR = {
    "USERS_COLLECTION": "people",
    "EMAIL_FIELD": "emails.0.address",
    "LANGUAGE_FIELD": "profile.language",
    "ID_TYPE": "string",
    "UNKNOWN_USERS": "refuse",
}
People = Collection[dict[str, Any]]


def person(id_: str = ANN, **fields: Any) -> dict[str, Any]:
    """Return the document of a user as Meteor keeps it."""
    emails = [{"address": f"{id_}@example.com", "verified": True}, {"address": "second@example.com"}]
    return {"_id": id_, "services": {"password": {}}, "emails": emails, "profile": {"name": "A"}} | fields


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Return settings for users as Meteor keeps them."""
    return replace(
        settings,
        users_collection="people",
        email_field="emails.0.address",
        language_field="profile.language",
        id_type=IdType.STRING,
        unknown_users=UnknownUsers.REFUSE,
    )


@pytest.fixture
def people(database: DB) -> Iterator[People]:
    """Return the users' collection. At the end, check that no other was written to but the dead letters."""
    yield database["people"]
    assert set(database.list_collection_names()) <= {"people", "dead_mail", PROBE}


async def settled(people: People) -> None:
    """Wait until no e-mail is owed."""

    def nothing_owed() -> None:
        assert (
            people.count_documents(
                {"$or": [{"notifier.due": {"$exists": True}}, {"notifier.outbox.0": {"$exists": True}}]}
            )
            == 0
        )

    await eventually_async(nothing_owed)


def find(people: People, id_: str = ANN) -> dict[str, Any]:
    found = people.find_one({"_id": id_})
    assert found
    return found


# --- string ids, an address at a path ---------------------------------------------------------------


async def test_a_notification_is_kept_listed_streamed_read_and_mailed(
    client: Client, people: People, mail: MailServer
) -> None:
    people.insert_many([person(ANN), person(BOB)])
    async with listening(client, ANN) as events, listening(client, BOB) as of_bob:
        assert (await events.next())["elements"] == (await of_bob.next())["elements"] == 0
        await create(client, ANN, "new_login", target_id=TARGET, data={"city": "Oslo"})
        (item,) = (await list_(client, ANN))["list"]
        assert (item["user_id"], item["target_id"], item["is_new"]) == (ANN, TARGET, True)
        assert (await events.next())["latest"] == item
        await create(client, BOB, "new_post")
        assert (await of_bob.next())["latest"]["key"] == "new_post"
        assert await read(client, item["id"], BOB) == 404
        assert await read(client, item["id"], ANN) == 200
        assert (await events.next())["new"] == 0
    await settled(people)
    assert [recipient for recipient, _ in mail.received] == [f"{ANN}@example.com"]
    document = find(people)
    assert person(ANN).items() <= document.items()
    assert document.keys() - person().keys() == {"notifications", "notifier"}


ODD_IDS = [" ", "a b", "a/b", "../list?user_id=x&all=true#", "%2F%00", "ünï 🎉 שלום", "x" * 128, "🎉" * 128]
ODD_IDS += ["$where", "$$ROOT", "a.b.0", "{'a': 1}", "'\"<>&=+;\\", "0" * 24, "null", "\u202e\u200b"]


@pytest.mark.parametrize("id_", ODD_IDS)
async def test_an_id_may_have_any_character_but_control_characters(
    client: Client, people: People, mail: MailServer, id_: str
) -> None:
    people.insert_many([person(id_, emails=[{"address": "odd@example.com"}]), person(BOB)])
    async with listening(client, id_) as events:
        await asyncio.gather(create(client, id_, "new_login", target_id=id_), create(client, BOB))
        await events.catch_up(client, id_)
    pages = await asyncio.gather(*(list_(client, user_id) for user_id in [id_, BOB] * 40))
    assert {(page["elements"], page["list"][0]["user_id"]) for page in pages} == {(1, id_), (1, BOB)}
    assert pages[0]["list"][0]["target_id"] == id_
    assert (await client.post("/read", params={"user_id": id_, "target_id": id_})).status == 200
    assert (await list_(client, id_))["new"] == 0
    await settled(people)
    assert [recipient for recipient, _ in mail.received] == ["odd@example.com"]


@pytest.mark.parametrize("id_", ["", "x" * 129, "a\0", "a\nb", "\x1b[31m", "\x7f", "\x9b"])
async def test_another_id_is_refused_everywhere(client: Client, id_: str) -> None:
    for ask in (
        client.post("/create", json={"user_id": id_, "key": "new_post"}),
        client.get("/list", params={"user_id": id_}),
        client.get("/stream", params={"user_id": id_}),
        client.post("/read", params={"user_id": id_, "all": "true"}),
    ):
        response = await ask
        assert response.status == 422
        assert (await problem(response))["errors"] == {
            "user_id": ["Not 1 to 128 characters without control characters."]
        }


async def test_a_token_is_for_the_user_in_its_sub(start: Start, people: People) -> None:
    people.insert_many([person(ANN), person("a@b.example/ö")])
    client = await start(**PROTECTED)
    for id_, status in ((ANN, 200), (BOB, 403), (ANN.upper(), 403)):
        response = await client.get(
            "/list", params={"user_id": id_}, headers={"Authorization": f"Bearer {token(sub=ANN)}"}
        )
        assert response.status == status
    odd = {"Authorization": f"Bearer {token(sub='a@b.example/ö')}"}
    async with listening(client, "a@b.example/ö", **odd) as events:
        assert (await events.next())["elements"] == 0
    for sub in ("", "a\nb", "x" * 129, "a\ud800"):
        refused = await client.get(f"/list?user_id={ANN}", headers={"Authorization": f"Bearer {token(sub=sub)}"})
        assert refused.status == 401


async def test_the_commands_take_string_ids(start: Start, settings: Settings, people: People, mail: MailServer) -> None:
    people.insert_many([person(ANN), person("ü/ 1", emails=[{"address": "second@example.com"}])])
    mail.script = scripted({"RCPT": ["550 5.1.1 unknown", "550 5.1.1 unknown"]})
    client, protected = await start(), await start(**PROTECTED)
    for id_ in (ANN, "ü/ 1"):
        await create(client, id_, "registration")
    await settled(people)
    code, out, _ = await command(settings, "dead", **METEOR)
    assert (code, [text for text in (ANN, "ü/ 1", "registration") if text not in out]) == (0, [])
    code, out, _ = await command(settings, "mail", "ü/ 1", **METEOR)
    assert (code, "died" in out, "Suppressed: second@example.com" in out) == (0, True, True)
    code, out, _ = await command(settings, "retry", "--all", **METEOR)
    assert (code, out) == (0, "Owed again: 2.\n")
    await settled(people)
    assert {recipient for recipient, _ in mail.received} == {f"{ANN}@example.com", "second@example.com"}
    secrets = {"API_KEYS": KEY, "USER_TOKEN_SECRETS": SECRET}
    code, out, _ = await command(settings, "token", "ü/ 1", **METEOR, **secrets)
    headers = {"Authorization": f"Bearer {out.strip()}"}
    assert (await protected.get("/list", params={"user_id": "ü/ 1"}, headers=headers)).status == 200
    for name in ("mail", "token"):
        code, out, err = await command(settings, name, "a\tb", **METEOR, **secrets)
        assert (code, out) == (2, "")
        assert err == "USER_ID: Not 1 to 128 characters without control characters.\n"


async def test_a_letter_from_before_the_ids_changed_stops_no_retry(
    settings: Settings, database: DB, people: People
) -> None:
    letter = {"key": "new_login", "at": None, "tries": 1, "error": "x", "email": None, "request_id": None}
    database.dead_mail.insert_one({"_id": "1", "user_id": ANN, **letter})
    code, out, err = await command(settings, "retry", "--all", ID_TYPE="objectid", USERS_COLLECTION="people")
    assert (code, out, err) == (1, "Owed again: 0.\n", "1: its user no longer exists.\n")
    assert people.count_documents({}) == 0


# --- who are not created ----------------------------------------------------------------------------


async def test_an_unknown_user_is_refused_and_nothing_is_written(client: Client, people: People) -> None:
    keys = list(SPECIFIED)

    async def ask(n: int) -> int:
        headers = {"Idempotency-Key": f"{n}"} if n % 3 else {}
        body = {"user_id": f"nobody {n % 5}", "key": keys[n % len(keys)]}
        response = await client.post("/create", json=body, headers=headers)
        assert (await problem(response))["detail"] == BY_EXCEPTION[UnknownUser].detail
        return response.status

    assert await asyncio.gather(*(ask(n) for n in range(64))) == [404] * 64
    assert (await list_(client, "nobody 1"))["elements"] == 0
    async with listening(client, "nobody 1") as events:
        assert (await events.next())["elements"] == 0
    assert await read(client, "x", "nobody 1") == 404
    assert people.count_documents({}) == 0


async def test_known_users_are_served_among_unknown_ones(client: Client, people: People) -> None:
    people.insert_many([person(f"known {n}") for n in range(4)])

    async def ask(n: int) -> tuple[bool, int]:
        id_ = f"known {n % 4}" if n % 2 else f"unknown {n % 4}"
        return bool(n % 2), (await client.post("/create", json={"user_id": id_, "key": "new_post"})).status

    assert set(await asyncio.gather(*(ask(n) for n in range(64)))) == {(True, 201), (False, 404)}
    assert people.count_documents({}) == 4
    assert sum(len(user["notifications"]) for user in people.find() if "notifications" in user) == 32


async def test_a_user_created_later_is_served_under_the_same_key(client: Client, people: People) -> None:
    body, headers = {"user_id": ANN, "key": "new_post"}, {"Idempotency-Key": "k"}
    assert (await client.post("/create", json=body, headers=headers)).status == 404
    people.insert_one(person())
    for replayed in (None, "true"):
        response = await client.post("/create", json=body, headers=headers)
        assert (response.status, response.headers.get("Idempotent-Replayed")) == (201, replayed)
    assert (await list_(client, ANN))["elements"] == 1


async def test_a_created_user_has_the_address_in_the_configured_field(
    start: Start, people: People, mail: MailServer
) -> None:
    client = await start(email_field="mail", unknown_users=UnknownUsers.CREATE)
    await create(client, ANN, "registration")
    people.insert_one({"_id": BOB, "mail": "bob@example.com", "email": "wrong@example.com"})
    await create(client, BOB, "registration")
    await settled(people)
    assert find(people).keys() == {"_id", "mail", "notifier"}
    assert find(people)["mail"] == "new-user@example.com"
    assert {recipient for recipient, _ in mail.received} == {"new-user@example.com", "bob@example.com"}


# --- what stands at the paths -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"emails": None},
        {"emails": "ann@example.com"},
        {"emails": [None, {"address": "ann@example.com"}]},
        {"emails": [["address", "ann@example.com"]]},
        {"emails": {"address": "ann@example.com"}},
        {"emails": [{"address": 7}]},
        {"emails": [{"address": {"x": "ann@example.com"}}]},
        {"emails": [{"address": "not an address"}]},
        {"emails": [{"address": "ann@example.com\r\nBcc: eve@example.com"}]},
        {"emails": [{}]},
    ],
)
async def test_a_value_that_is_no_address_makes_a_dead_letter(
    client: Client, database: DB, people: People, mail: MailServer, fields: dict[str, Any]
) -> None:
    people.insert_many([person(ANN, **fields), person(BOB)])
    for id_ in (ANN, BOB):
        await create(client, id_, "registration")
    await settled(people)
    assert [recipient for recipient, _ in mail.received] == [f"{BOB}@example.com"]
    assert [letter["user_id"] for letter in database.dead_mail.find()] == [ANN]


async def test_templates_are_in_the_language_of_the_users_document(
    start: Start, people: People, mail: MailServer, tmp_path: Path
) -> None:
    files = {
        "new_login.subject.txt": "Hello",
        "new_login.txt": "English",
        "new_login.de.subject.txt": "Hallo",
        "new_login.pt-BR.subject.txt": "Ola",
    }
    languages: dict[object, str] = {
        "de": "Hallo",
        "de-AT": "Hallo",
        "DE_at": "Hallo",
        "pt-br": "Ola",
        "pt": "Hello",
        "subject": "Hello",
        "-".join(["de"] * 100_000): "Hello",
        7: "Hello",
    }
    people.insert_many([person(f"{n}", profile={"language": language}) for n, language in enumerate(languages)])
    people.insert_many([person("no-profile", profile=None), person("a-list", profile=[{"language": "de"}])])
    client = await start(templates_dir=write(tmp_path, files))
    for document in people.find({}, {"_id": 1}):
        await create(client, document["_id"], "new_login")
    await settled(people)
    subjects = {recipient.removesuffix("@example.com"): message["Subject"] for recipient, message in mail.received}
    expected = {f"{n}": subject for n, subject in enumerate(languages.values())}
    assert subjects == expected | {"no-profile": "Hello", "a-list": "Hello"}
    assert {str(message.get_payload()).strip() for _, message in mail.received} == {"English"}


# --- documents and collections that are in the way ---------------------------------------------------


async def test_an_address_as_an_id_is_not_logged(
    start: Start, people: People, caplog: pytest.LogCaptureFixture
) -> None:
    for id_ in ("ann@example.com", "ann"):
        people.insert_one(person(id_, notifications=["theirs"], notifier="theirs"))
    with caplog.at_level(logging.DEBUG, "notifier"):
        client = await start()
        for id_ in ("ann@example.com", "ann"):
            for key in SPECIFIED:
                assert (await client.post("/create", json={"user_id": id_, "key": key})).status == 409
            assert (await client.post("/read", params={"user_id": id_, "all": "true"})).status == 409
        for whose in ("document ann", "a document whose _id is an address"):
            for name in ("notifications", "notifier"):
                assert caplog.text.count(f"the field `{name}` of {whose}, which") == 1
    assert "@" not in caplog.text


async def test_ids_that_are_equal_by_collation_are_not_mixed_up(start: Start, database: DB, people: People) -> None:
    database.create_collection("people", collation={"locale": "en", "strength": 1})
    people.insert_one(person(ANN))
    client = await start(email_field="email", unknown_users=UnknownUsers.CREATE)
    await create(client, ANN)
    for id_ in (ANN.upper(), ANN.lower()):
        assert (await list_(client, id_))["elements"] == 0
        response = await client.post("/create", json={"user_id": id_, "key": "new_post"})
        assert response.status == 409
        assert (await client.post("/read", params={"user_id": id_, "all": "true"})).status == 200
        async with listening(client, id_) as events:
            assert (await events.next())["elements"] == 0
    assert (await list_(client, ANN))["new"] == 1


@pytest.mark.parametrize(
    ("variables", "faults"),
    [
        ({"EMAIL_FIELD": "emails.0.address"}, {"EMAIL_FIELD"}),
        ({"EMAIL_FIELD": "$email"}, {"EMAIL_FIELD"}),
        ({"EMAIL_FIELD": "emails..address", "UNKNOWN_USERS": "refuse"}, {"EMAIL_FIELD"}),
        ({"EMAIL_FIELD": "notifications.0.to", "UNKNOWN_USERS": "refuse"}, {"EMAIL_FIELD"}),
        ({"EMAIL_FIELD": "notifier"}, {"EMAIL_FIELD"}),
        ({"LANGUAGE_FIELD": "notifier.language"}, {"LANGUAGE_FIELD"}),
        ({"TEMPLATE_FIELDS": "name,notifier.recent"}, {"TEMPLATE_FIELDS"}),
        ({"TEMPLATE_FIELDS": "name,,x"}, {"TEMPLATE_FIELDS"}),
        ({"LANGUAGE_FIELD": "profile."}, {"LANGUAGE_FIELD"}),
        ({"LANGUAGE_FIELD": "_id"}, {"LANGUAGE_FIELD"}),
        ({"USERS_COLLECTION": "dead_mail"}, {"USERS_COLLECTION"}),
        ({"USERS_COLLECTION": "system.users"}, {"USERS_COLLECTION"}),
        ({"USERS_COLLECTION": "a$b"}, {"USERS_COLLECTION"}),
        ({"ID_TYPE": "uuid", "UNKNOWN_USERS": "ignore"}, {"ID_TYPE", "UNKNOWN_USERS"}),
    ],
)
def test_every_fault_of_these_settings_is_named(
    environment: Callable[..., Settings], variables: dict[str, str], faults: set[str]
) -> None:
    with pytest.raises(SettingsError) as raised:
        environment(**COMPLETE, **variables)
    assert raised.value.faults.keys() == faults


def test_the_settings_of_meteor_are_accepted(environment: Callable[..., Settings], settings: Settings) -> None:
    found = environment(**COMPLETE, **METEOR)
    assert [name for name in METEOR if getattr(found, name.lower()) != getattr(settings, name.lower())] == []
