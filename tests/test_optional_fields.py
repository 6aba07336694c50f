"""The optional fields of a notification: each is in all places that must know it, or one of these tests fails."""

from __future__ import annotations

from dataclasses import fields
from datetime import UTC, datetime

import pytest

from kinds import PLACEHOLDER, SPECIFIED
from mail.message import fields_of
from mail.rendering import VARIABLES
from mongo.creation import Create
from mongo.document import OPTIONAL_FIELDS
from mongo.owed import load_emails, new_element
from schemas import CreateSchema
from settings import IdType, Settings
from tests.client import USER
from tests.description import DESCRIBED, example_of

(NOTIFICATION,) = example_of("GET /list")["data"]["list"]
NAMES = set(OPTIONAL_FIELDS)
VALUES = {name: NOTIFICATION[name] for name in OPTIONAL_FIELDS}


def created(**values: object) -> Create:
    body = {"user_id": USER, "key": "new_login", **values}
    return Create(**CreateSchema(IdType.OBJECTID, SPECIFIED).load(body), origin={})


def test_body_request_and_example_have_the_same_optional_fields() -> None:
    body = set(CreateSchema(IdType.OBJECTID, SPECIFIED).fields) - {"user_id", "user_ids", "key"}
    request = {field.name for field in fields(Create)} - {"user_id", "kind", "idempotency_key", "origin", "in_bulk"}
    listed = set(NOTIFICATION) - {"id", "timestamp", "is_new", "user_id", "key"}
    of_body = DESCRIBED["POST /create"]["requestBody"]["content"]["application/json"]["examples"]["all fields"]["value"]
    assert (body, request, listed, of_body.keys() - {"user_id", "key"}) == (NAMES, NAMES, NAMES, NAMES)


@pytest.mark.parametrize("name", OPTIONAL_FIELDS)
def test_templates_and_labels_may_use_each_optional_field(name: str) -> None:
    assert name in VARIABLES
    assert PLACEHOLDER.search(f"{{{name}}}") or PLACEHOLDER.search(f"{{{name}.city}}")


@pytest.mark.parametrize("name", OPTIONAL_FIELDS)
def test_each_optional_field_is_of_its_type(name: str) -> None:
    assert isinstance(VALUES[name], OPTIONAL_FIELDS[name])


@pytest.mark.parametrize("name", OPTIONAL_FIELDS)
def test_a_replay_with_another_optional_field_is_another(name: str) -> None:
    create = created(**VALUES)
    assert create.optional == VALUES
    others = created(**{other: value for other, value in VALUES.items() if other != name})
    assert others.fingerprint() != create.fingerprint()


def test_an_email_brings_all_optional_fields_to_its_template() -> None:
    element = new_element("1" * 24, "new_login", datetime.now(UTC), created(**VALUES).optional)
    (email,) = load_emails({"_id": 1, "notifier": {"outbox": [element]}}, element["token"], Settings())
    assert {name: fields_of(email)[name] for name in OPTIONAL_FIELDS} == VALUES
