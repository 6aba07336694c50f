"""The OpenAPI document of the service, as the tests read it."""

from __future__ import annotations

from typing import Any

from jsonschema import Draft202012Validator

from api import openapi
from api.problems import MEDIA_TYPE, PROBLEMS
from kinds import SPECIFIED
from settings import IdType

DOCUMENT = openapi.describe(SPECIFIED, IdType.OBJECTID)
DESCRIBED = {
    f"{method.upper()} {path}": operation
    for path, item in DOCUMENT["paths"].items()
    for method, operation in item.items()
}
"""The operations of the document, by method and path."""
EXCEPTIONS = {problem.name: problem.exception for problem in PROBLEMS}


def outcomes(operation: str) -> set[int | type[Exception]]:
    """Return what an operation may answer: the statuses of its successes, and the exceptions of its problems."""
    found: set[int | type[Exception]] = set()
    for status, response in DESCRIBED[operation]["responses"].items():
        examples = response.get("content", {}).get(MEDIA_TYPE, {}).get("examples", {})
        found |= {EXCEPTIONS[name] for name in examples} or {int(status)}
    return found


def example_of(operation: str, status: int = 200) -> Any:
    """Return the example of a success."""
    (content,) = DESCRIBED[operation]["responses"][f"{status}"]["content"].values()
    (shown,) = content["examples"].values()
    return shown["value"]


def assert_conforms(value: object, schema: dict[str, Any]) -> None:
    """Check a value against a schema of the document."""
    Draft202012Validator(schema | {"components": DOCUMENT["components"]}).validate(value)
