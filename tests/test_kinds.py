"""The kinds of notification: the table in `KINDS_FILE`, and every place that reads it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from marshmallow import ValidationError

from api import openapi
from cli.environment import SettingsError
from kinds import SPECIFIED, Kind, load_kinds
from mail import formats
from schemas import CreateSchema, SelectionSchema
from settings import IdType, Settings
from tests.client import DB, PROTECTED, ROOT, TARGET, USER, Client, create, list_, owed, problem, settled, user
from tests.fixtures import Start
from tests.processes import COMPLETE, command, run_here
from tests.servers import MailServer, free_port
from tests.templates import write
from tests.windows import end_windows

SHOP = ROOT / "examples/kinds.toml"
CHANNELS = {
    "registration": (False, True),
    "new_login": (True, True),
    "order_shipped": (True, True),
    "invoice_ready": (True, True),
    "back_in_stock": (True, False),
    "question_answered": (True, True),
    "new_in_shop": (True, True),
}
"""Of the shop's kinds: whether each is kept, and whether it is e-mailed."""


def kinds_file(folder: Path, text: str) -> Path:
    path = folder / "kinds.toml"
    path.write_text(text)
    return path


# --- what is wrong with a file ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", ["Has no kinds."]),
        ("[a", ["Cannot be read as TOML: "]),
        ("[a]\n[a]", ["Cannot be read as TOML: ", "line 2"]),
        ("email = true", ["[email]: must be a table, named with 1 to 64 small letters"]),
        ("[[a]]\nemail = true", ["[a]: must be a table"]),
        ("[New-Post]", ["[New-Post]: must be a table, named with 1 to 64 small letters"]),
        ('["new post"]', ["[new post]: must be a table, named"]),
        ("[1st]", ["[1st]: must be a table, named"]),
        ('["ä"]', ["[ä]: must be a table, named"]),
        ('[""]', ["[]: must be a table, named"]),
        (f"[{'a' * 65}]", [f"[{'a' * 65}]: must be a table, named"]),
        ("[a.b]\nemail = true", ["[a]: there is no setting 'b'"]),
        (
            "[a]\nemails = true",
            [
                "[a]: there is no setting 'emails'; ",
                "the settings are in_app, email, required, priority, email_after, email_batch, collapse, label, ",
                "url, labels, name, names, icon, example.",
            ],
        ),
        ("[a]\nin_app = false", ["[a]: needs a channel: in_app or email must be true."]),
        ("[a]\nin_app = false\nemail = false", ["[a]: needs a channel"]),
        ("[a]\nemail = 1", ["[a]: email must be true or false."]),
        ('[a]\nrequired = "yes"', ["[a]: required must be true or false."]),
        ('[a]\npriority = "urgent"', ["[a]: priority must be high, normal or low."]),
        ("[a]\npriority = 1", ["[a]: priority must be high, normal or low."]),
        ("[a]\nexample = 5", ["[a]: example must be a table."]),
        ("[a]\nlabel = true", ["[a]: label must be one line of 1 to 500 characters"]),
        ('[a]\nlabels = "x"', ["[a]: labels must be by language, such as de or pt-BR: one line"]),
        ("[a.labels]\nde = 1", ["[a]: labels.de must be by language, such as de or pt-BR: one line"]),
        ('[a.labels]\ngerman = "x"', ["[a]: labels.german must be by language, such as de or pt-BR"]),
        ('[a.labels]\nde_DE = "x"', ["[a]: labels.de_DE must be by language"]),
        ('[a]\nlabel = " "', ["[a]: label must be one line of 1 to 500 characters"]),
        ('[a]\nlabel = "a\\nb"', ["[a]: label must be one line"]),
        ('[a]\nlabel = "a\\u202eb"', ["[a]: label must be one line"]),
        (f'[a]\nlabel = "{"x" * 501}"', ["[a]: label must be one line"]),
        ('[a]\nlabel = "{city}"', ["[a]: label must be one line", "with placeholders like {data.city}"]),
        ('[a]\nlabel = "{data.n, money}"', ["[a]: label must be", "the formats are number, date, time"]),
        ('[a]\nlabel = "{data.n, currency}"', ["[a]: label must be one line"]),
        ('[a]\nlabel = "{data.a"', ["[a]: label must be one line"]),
        ('[a]\nlabel = "{data}"', ["[a]: label must be one line"]),
        ('[a]\nlabel = "{data..a}"', ["[a]: label must be one line"]),
        ('[a]\nlabel = "}{"', ["[a]: label must be one line"]),
        ('[a.labels]\nde = "{x}"', ["[a]: labels.de must be by language"]),
        ('[a]\nurl = "/{x}"', ["[a]: url must be an address"]),
        (
            '[a]\nurl = "javascript:alert(1)"',
            ["[a]: url must be an address that begins with http://, https:// or a single /"],
        ),
        ('[a]\nurl = "JavaScript:alert(1)"', ["[a]: url must be an address"]),
        ('[a]\nurl = "data:text/html,x"', ["[a]: url must be an address"]),
        ('[a]\nurl = "//evil.example"', ["[a]: url must be an address"]),
        ('[a]\nurl = "/\\\\evil.example"', ["[a]: url must be an address"]),
        ('[a]\nurl = "orders/1"', ["[a]: url must be an address"]),
        ('[a]\nurl = "{data.url}"', ["[a]: url must be an address"]),
        ('[a]\nurl = "/a b"', ["[a]: url must be an address"]),
        ('[a]\nurl = ""', ["[a]: url must be an address"]),
        (
            '[A]\nin_app = false\n[b]\nmail = true\nurl = "ftp://x"\n[c]\nlabel = 1',
            [
                "[A]: must be a table, named",
                "[A]: needs a channel",
                "[b]: there is no setting 'mail'",
                "[b]: url must",
                "[c]: label",
            ],
        ),
    ],
)
def test_every_fault_of_a_kinds_file_is_named(
    environment: Callable[..., Settings], tmp_path: Path, text: str, sentences: list[str]
) -> None:
    with pytest.raises(SettingsError) as raised:
        environment(**COMPLETE, KINDS_FILE=str(kinds_file(tmp_path, text)), PORT="0")
    assert raised.value.faults.keys() == {"KINDS_FILE", "PORT"}
    found = " ".join(raised.value.faults["KINDS_FILE"])
    assert [sentence for sentence in sentences if sentence not in found] == []


def test_a_faulty_kinds_file_ends_the_start_with_2(tmp_path: Path) -> None:
    path = kinds_file(tmp_path, "[A]\n[b]\nmail = true")
    done = run_here(cwd=tmp_path, **COMPLETE, KINDS_FILE=str(path), PORT="0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("The configuration is not valid:\n  KINDS_FILE: [A]: must be a table")
    assert "[b]: there is no setting 'mail'" in done.stderr
    assert "\n  PORT: " in done.stderr


def test_a_file_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    latin = tmp_path / "latin.toml"
    latin.write_bytes("[a]\nlabel = 'Grüße'".encode("latin-1"))
    for path in (tmp_path / "missing.toml", tmp_path, latin):
        done = run_here(cwd=tmp_path, **COMPLETE, KINDS_FILE=str(path))
        assert done.returncode == 2
        assert "KINDS_FILE: Cannot be read as TOML: " in done.stderr
    assert "No such file or directory" in run_here(cwd=tmp_path, **COMPLETE, KINDS_FILE="missing.toml").stderr


def test_a_template_of_no_kind_stops_the_start(tmp_path: Path) -> None:
    folder = write(tmp_path, {"order_shipped.de.subject.txt": "x", "new_post.txt": "x", "new_login.text.html": "x"})
    done = run_here(cwd=tmp_path, **COMPLETE, KINDS_FILE=str(SHOP), TEMPLATES_DIR=str(folder))
    assert done.returncode == 2
    for name in ("new_post.txt", "new_login.text.html"):
        assert f"{name}: not KEY.subject.txt, KEY.txt or KEY.html of a kind" in done.stderr
    assert "order_shipped" not in done.stderr


def test_names_labels_and_urls_may_reach_their_limits(tmp_path: Path) -> None:
    name, label = "a" * 64, "{data.a|}" + "ü" * 491
    text = (
        f'[{name}]\nlabel = "{label}"\nurl = "https://x.example/{{id}}/{{data.größe.x|0}}?k={{key}}#f"\n'
        f'[{name}.labels]\npt-BR = "{{data.name|Alguém}}"\nzh-Hans-CN = "消息"\n[x]\nemail=true\nin_app=false\n'
    )
    kinds = load_kinds(kinds_file(tmp_path, "\ufeff" + text))
    assert kinds.keys() == {name, "x"}
    assert (kinds[name].in_app, kinds[name].email, kinds[name].required) == (True, False, False)
    assert kinds[name].labels == {"pt-BR": "{data.name|Alguém}", "zh-Hans-CN": "消息"}


# --- a service with a shop's kinds ------------------------------------------------------------------


@pytest.fixture
async def shop(start: Start) -> Client:
    """Start the service with the kinds of a shop."""
    return await start(kinds_file=SHOP)


@pytest.mark.parametrize("key", CHANNELS)
async def test_each_kind_of_the_file_is_kept_and_mailed_as_it_says(
    shop: Client, database: DB, mail: MailServer, key: str
) -> None:
    await create(shop, key=key, target_id=TARGET, data={"number": 7})
    end_windows(database, key)
    await settled(database)
    kept = user(database).get("notifications", [])
    assert ([item["key"] for item in kept], [message["Subject"] for _, message in mail.received]) == tuple(
        [key] if channel else [] for channel in CHANNELS[key]
    )


async def test_an_unknown_kind_is_refused_and_the_known_ones_are_named(shop: Client, database: DB) -> None:
    for ask in (
        shop.post("/create", json={"user_id": USER, "key": "new_post"}),
        shop.post("/read", params={"user_id": USER, "key": "new_post"}),
    ):
        response = await ask
        assert response.status == 422
        assert (await problem(response))["errors"] == {"key": [f"Must be one of: {', '.join(CHANNELS)}."]}
    assert database.users.count_documents({}) == 0


async def test_read_marks_all_of_a_kind(shop: Client) -> None:
    for key in ("back_in_stock", "invoice_ready", "back_in_stock"):
        await create(shop, key=key)
    assert (await shop.post("/read", params={"user_id": USER, "key": "back_in_stock"})).status == 200
    page = await list_(shop)
    assert [(item["key"], item["is_new"]) for item in page["list"]] == [
        ("back_in_stock", False),
        ("invoice_ready", True),
        ("back_in_stock", False),
    ]


def test_two_tables_in_one_process_do_not_mix() -> None:
    shop = load_kinds(SHOP)
    of_shop, specified = (CreateSchema(IdType.OBJECTID, kinds) for kinds in (shop, SPECIFIED))
    assert of_shop.load({"user_id": USER, "key": "back_in_stock"})["kind"] is shop["back_in_stock"]
    assert specified.load({"user_id": USER, "key": "new_post"})["kind"] is SPECIFIED["new_post"]
    for schema, key in ((of_shop, "new_post"), (specified, "back_in_stock")):
        with pytest.raises(ValidationError):
            schema.load({"user_id": USER, "key": key})
    reading = [SelectionSchema(IdType.OBJECTID, kinds) for kinds in (shop, SPECIFIED)]
    assert [schema.load({"user_id": USER, "key": "new_login"})["key"] for schema in reading] == ["new_login"] * 2


async def test_kinds_are_told_to_everyone_and_only_once(start: Start) -> None:
    client = await start(kinds_file=SHOP, **PROTECTED)
    response = await client.get("/kinds")
    body = await response.json()
    assert (response.status, body["success"], list(body["data"])) == (200, True, list(CHANNELS))
    assert body["data"]["order_shipped"] == {
        "in_app": True,
        "email": True,
        "required": False,
        "label": "Order {data.number} is on its way",
        "url": "/orders/{target_id}",
        "labels": {"de": "Bestellung {data.number} ist unterwegs"},
        "name": "Shipped orders",
        "names": {"de": "Verschickte Bestellungen"},
        "example": {"number": 1027},
    }
    assert body["data"]["registration"] == {"in_app": False, "email": True, "required": True}
    for headers in ({}, {"Authorization": "Bearer nonsense"}, {"Origin": "https://a.example"}):
        response = await client.get("/kinds", headers=headers)
        assert (response.status, response.headers["Access-Control-Allow-Origin"]) == (200, "*")
    assert "max-age" in response.headers["Cache-Control"]
    response = await client.get("/kinds", headers={"If-None-Match": response.headers["ETag"]})
    assert (response.status, await response.read()) == (304, b"")
    other = await (await start()).get("/kinds", headers={"If-None-Match": response.headers["ETag"]})
    assert other.status == 200


async def test_the_api_accepts_the_kinds_and_examples_it_describes(shop: Client) -> None:
    document = await (await shop.get("/openapi.json")).json()
    assert document["components"]["schemas"]["Create"]["properties"]["key"]["enum"] == list(CHANNELS)
    parameters = {item["name"]: item["schema"] for item in document["paths"]["/read"]["post"]["parameters"]}
    assert parameters["key"]["enum"] == list(CHANNELS)
    content = document["paths"]["/create"]["post"]["requestBody"]["content"]["application/json"]
    for example in content["examples"].values():
        assert (await shop.post("/create", json=example["value"])).status == 201
    told = document["paths"]["/kinds"]["get"]["responses"]["200"]["content"]["application/json"]
    assert told["examples"]["example"]["value"] == await (await shop.get("/kinds")).json()


@pytest.mark.usefixtures("nobody_else")
async def test_a_removed_kind_is_still_listed_and_sent(
    start: Start, settings: Settings, database: DB, mail: MailServer, tmp_path: Path
) -> None:
    before = await start(kinds_file=SHOP, smtp_port=free_port())
    await create(before, key="order_shipped", data={"number": 7})
    await create(before, key="registration")
    await before.close()
    assert [email["key"] for email in owed(database)] == ["order_shipped", "registration"]
    later = kinds_file(tmp_path, "[parcel_lost]\nemail = true")
    after = await start(kinds_file=later, templates_dir=write(tmp_path, {"parcel_lost.txt": "x"}))
    await settled(database)
    assert {message["Subject"] for _, message in mail.received} == {"order_shipped", "registration"}
    (item,) = (await list_(after))["list"]
    assert (item["key"], item["data"], item["is_new"]) == ("order_shipped", {"number": 7}, True)
    assert (await after.post("/read", params={"user_id": USER, "all": "true"})).status == 200
    assert (await after.post("/create", json={"user_id": USER, "key": "order_shipped"})).status == 422
    assert (await command(settings, "mail", USER, KINDS_FILE=str(later)))[0] == 0


@pytest.mark.usefixtures("nobody_else")
async def test_a_dead_letter_of_a_removed_kind_can_be_sent_again(
    start: Start, settings: Settings, database: DB, mail: MailServer, tmp_path: Path
) -> None:
    async def refuse(stage: str, _recipient: str) -> str | None:
        return "550 5.1.1 unknown" if stage == "RCPT" else None

    mail.script = refuse
    before = await start(kinds_file=SHOP)
    await create(before, key="invoice_ready")
    await settled(database)
    await before.close()
    mail.script = None
    later = kinds_file(tmp_path, "[parcel_lost]")
    await start(kinds_file=later)
    code, out, _ = await command(settings, "retry", "--all", KINDS_FILE=str(later))
    assert (code, out) == (0, "Owed again: 1.\n")
    await settled(database)
    assert [message["Subject"] for _, message in mail.received] == ["invoice_ready"]


# --- without a file ---------------------------------------------------------------------------------


async def test_without_a_file_the_kinds_are_those_of_the_specification(client: Client, database: DB) -> None:
    told = (await (await client.get("/kinds")).json())["data"]
    assert {name: (kind["in_app"], kind["email"]) for name, kind in told.items()} == {
        "registration": (False, True),
        "new_message": (True, False),
        "new_post": (True, False),
        "new_login": (True, True),
    }
    response = await client.post("/create", json={"user_id": USER, "key": "new_message", "data": {"a": "é"}})
    assert (response.status, await response.read()) == (201, b'{"success": true}')
    (stored,) = user(database)["notifications"]
    response = await client.get("/list", params={"user_id": USER})
    assert await response.text() == (
        f'{{"success":true,"data":{{"elements":1,"new":1,"request":{{"user_id":"{USER}","skip":0,"limit":10}},'
        f'"list":[{{"id":"{stored["id"]}","timestamp":{stored["timestamp"]},"is_new":true,"user_id":"{USER}",'
        '"key":"new_message","data":{"a":"é"}}]}}'
    )
    response = await client.post("/read", params={"user_id": USER, "notification_id": stored["id"]})
    assert (response.status, await response.read()) == (200, b'{"success": true}')
    assert user(database).keys() == {"_id", "email", "notifications"}


def test_the_description_without_a_file_has_the_specified_kinds() -> None:
    document = openapi.describe(SPECIFIED, IdType.OBJECTID)
    properties: dict[str, Any] = document["components"]["schemas"]["Create"]["properties"]
    assert properties["key"]["enum"] == ["registration", "new_message", "new_post", "new_login"]
    assert re.fullmatch(properties["user_id"]["pattern"], USER)


# --- what a kind is called --------------------------------------------------------------------------

NOTIFICATION = {
    "id": "1" * 24,
    "timestamp": 1795406836,
    "target_id": None,
    "data": {
        "n": 7,
        "whole": 7.0,
        "part": 0.5,
        "total": 1234.5,
        "yes": True,
        "gap": None,
        "no": "",
        "list": [1, {"a": "é"}],
        "t": "{id}",
    },
}


@pytest.mark.parametrize(
    ("label", "said", "of_any"),
    [
        ("Order {data.n}", "Order 7", "Order …"),
        ("{data.name|Somebody} wrote {data.gap|something}", "Somebody wrote something", "Somebody wrote something"),
        ("[{data.name}{data.gap}{target_id}{data.no|no}]", "[………no]", "[………no]"),
        ("{data.whole} {data.part} {data.yes}", "7 0.5 true", "… … …"),
        ("{data.total} {data.total, number|none}", "1234.5 1,234.5", "… none"),
        ("{data.total, currency EUR} {timestamp, date}", "€1,234.50 Nov 23, 2026", "… …"),
        ("{data.list} {data.list.0} {data.list.1.a} {data.list.2|none}", '[1,{"a":"é"}] 1 é none', "… … … none"),
        ("{data.n.x|} {data.t} {timestamp}", " {id} Nov 23, 2026, 4:07\u202fAM", " … …"),
        (None, "Order shipped", "Order shipped"),
    ],
)
def test_a_label_is_said_as_the_bell_says_it(label: str | None, said: str, of_any: str) -> None:
    kind = Kind(name="order_shipped", label=label)
    assert (kind.say("en", NOTIFICATION, formats.write), kind.say(None, {}, formats.write)) == (said, of_any)


def test_a_long_field_is_cut_in_a_label() -> None:
    assert Kind(name="a", label="{data.x}!").say(None, {"data": {"x": "x" * 999}}, formats.write) == "x" * 200 + "!"


@pytest.mark.parametrize(
    ("language", "said"),
    [
        ("de", "deutsch"),
        ("de-CH", "deutsch"),
        ("DE_at_1996", "österreichisch"),
        ("pt-BR", "brasileiro"),
        ("pt", "plain"),
        ("d", "plain"),
        ("", "plain"),
        (None, "plain"),
        ("de;q=1", "plain"),
    ],
)
def test_a_label_is_in_the_language_or_in_its_base_language(language: str | None, said: str) -> None:
    labels = {"de": "deutsch", "de-AT": "österreichisch", "PT-br": "brasileiro"}
    assert Kind(name="a", label="plain", labels=labels).say(language, {}, formats.write) == said
