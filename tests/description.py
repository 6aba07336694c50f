"""The OpenAPI document of the service, as the tests read it."""

from __future__ import annotations

from typing import Any

from jsonschema import Draft202012Validator

import handlers
from api import openapi
from config.ids import IdType
from kinds import SPECIFIED

DOCUMENT = openapi.describe(handlers.ROUTES, SPECIFIED, IdType.OBJECTID)
DESCRIBED = {
    f"{method.upper()} {path}": operation
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
}
"""The operations of the document, by method and path."""


def assert_conforms(value: object, schema: dict[str, Any]) -> None:
    """Check a value against a schema of the document."""
    Draft202012Validator(schema | {"components": DOCUMENT["components"]}).validate(value)
