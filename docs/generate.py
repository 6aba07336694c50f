"""Writes the tables that the pages of the documentation take from the code: errors, settings, costs."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import Field, fields
from html import escape
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent))

import scale  # noqa: E402
from marshmallow import ValidationError  # noqa: E402 - the modules below are found only now

from api.components import INVALID_REQUEST  # noqa: E402
from api.operation import Operation  # noqa: E402
from api.operations import operations  # noqa: E402
from api.problems import PROBLEMS, problem_of  # noqa: E402
from config.ids import IdType  # noqa: E402
from kinds import SPECIFIED  # noqa: E402
from mail.refusals import BOUNCES  # noqa: E402
from schemas import ListSchema  # noqa: E402
from settings import Settings  # noqa: E402


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown."""
    names = list(head)
    lines = [names, ["---"] * len(names), *(row for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def invalid() -> str:
    """Return the answer to an invalid request."""
    problem = problem_of(ValidationError(ListSchema(IdType.OBJECTID, SPECIFIED).validate(INVALID_REQUEST)))
    return f"```json\n{json.dumps(problem.document(), indent=2)}\n```"


def errors() -> str:
    """Return the table of all problems, by status."""
    rows = [
        [
            f"{problem.status}",
            escape(problem.meaning, quote=False),
            escape(problem.advice, quote=False),
            f"{problem.retry_after} s" if problem.retry_after else "",
        ]
        for problem in sorted(PROBLEMS, key=lambda problem: problem.status)
    ]
    return table(["status", "`detail`", "what to know", "`Retry-After`"], rows)


def access() -> str:
    """Return the table of who may call which route."""
    rows = [[f"`{route}`", *_callers(operation)] for route, operation in operations(SPECIFIED, IdType.OBJECTID).items()]
    return table(["route", "anyone", "page of another site", "backend with a key", "user with a token"], rows)


def _callers(operation: Operation) -> Iterable[str]:
    if not operation.callers:
        return "yes", "yes", "yes", "yes"
    of_token = "for their own inbox" if "token" in operation.callers else "no"
    of_key = "yes" if "key" in operation.callers else "no"
    return "only while `API_KEYS` is unset", "only of `CORS_ORIGINS`", of_key, of_token


def settings() -> str:
    """Return the table of the settings."""
    rows = [
        [_variable(field), _default(field.default), escape(field.metadata["help"], quote=False)]
        for field in fields(Settings)
    ]
    return table(["variable", "default", "meaning"], rows)


def _variable(field: Field[Any]) -> str:
    name = field.name.upper()
    return f"`{name}`, `{name}_FILE`" if field.metadata["secret"] else f"`{name}`"


def _default(value: Any) -> str:
    if isinstance(value, tuple):
        value = ",".join(f"{item:g}" for item in value)
    elif isinstance(value, float):
        value = f"{value:g}"
    value = getattr(value, "value", value)  # of an enum
    return "" if value in {None, ""} else f"`{value}`"


def bounces() -> str:
    """Return the table of the codes that suppress an address."""
    return table(["code", "what it says", "source"], [[code, *said] for code, said in BOUNCES.items()])


BLOCKS: Final[dict[str, Callable[[], str]]] = {
    "invalid": invalid,
    "errors": errors,
    "access": access,
    "settings": settings,
    "bounces": bounces,
    **{f"scale_{block.__name__}": block for block in scale.BLOCKS},
}
MARKED: Final = re.compile(r"(<!-- (\w+): made by `make docs` -->\n).*?(<!-- end of \2 -->)", re.DOTALL)


def renew(page: str) -> str:
    """Return the page with its blocks made anew."""
    return MARKED.sub(lambda found: f"{found[1]}\n{BLOCKS[found[2]]()}\n\n{found[3]}", page)


def main() -> int:
    """Write the pages, or with `--check` only compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is out of date")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="folder of the pages (default: that of this file)")
    options = parser.parse_args()
    pages = {path: path.read_text() for path in sorted(options.folder.glob("*.md"))}
    stale = [path for path, text in pages.items() if renew(text) != text]
    if options.check and stale:
        print(f"Out of date: {', '.join(path.name for path in stale)}. Run `make docs`.")
        return 1
    for path in stale:
        path.write_text(renew(pages[path]))
        print(f"Written: {path.name}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
