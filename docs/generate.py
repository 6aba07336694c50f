"""Writes what the documentation takes from the code: its tables, the map of the modules, `.env.example`, and OpenAPI.

The first line of each page links to the others, in the order of the table in the README.
"""

import argparse
import ast
import json
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import Field
from html import escape
from pathlib import Path
from typing import Any, Final

FOLDER: Final = Path(__file__).parent
ROOT: Final = FOLDER.parent
sys.path.insert(0, str(ROOT))

import openapi  # noqa: E402 - the modules below are found only now
import scale  # noqa: E402
from marshmallow import ValidationError  # noqa: E402
from openapi import ADVICE, INVALID_REQUEST, callers, meaning  # noqa: E402

from api.problems import PROBLEMS, problem_of  # noqa: E402
from handlers import ROUTES  # noqa: E402
from kinds import SPECIFIED  # noqa: E402
from mail.replies import BOUNCES  # noqa: E402
from mongo import document  # noqa: E402
from ops.metrics import Metrics  # noqa: E402
from schemas import ListSchema  # noqa: E402
from settings import IdType, Scope, default_of, grouped  # noqa: E402


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(head)
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def invalid() -> str:
    problem = problem_of(ValidationError(ListSchema(IdType.OBJECTID, SPECIFIED).validate(INVALID_REQUEST)))
    return f"```json\n{json.dumps(problem.document(), indent=2)}\n```"


def errors() -> str:
    rows = [
        [
            f"{problem.status}",
            escape(meaning(problem), quote=False),
            escape(ADVICE.get(problem.name, ""), quote=False),
            f"{problem.retry_after} s" if problem.retry_after else "",
        ]
        for problem in sorted(PROBLEMS, key=lambda problem: problem.status)
    ]
    return table(["status", "`detail`", "what to know", "`Retry-After`"], rows)


def access() -> str:
    rows = [[f"`{route.method} {route.path}`", *_callers(route.scope)] for route in ROUTES]
    return table(["route", "anyone", "page of another site", "backend with a key", "user with a token"], rows)


def _callers(scope: Scope | None) -> Iterable[str]:
    if scope is None:
        return "yes", "yes", "yes", "yes"
    of_token = "for their own inbox" if "token" in callers(scope) else "no"
    return "only while `API_KEYS` is unset", "only of `CORS_ORIGINS`", "yes", of_token


def settings() -> str:
    """Return a table of the settings for each of their groups."""
    head = ["variable", "default", "meaning"]
    return "\n\n".join(
        f"### {heading}\n\n{table(head, map(_row, rows.items()))}" for heading, rows in grouped().items()
    )


def _row(item: tuple[str, Field[Any]]) -> Iterable[str]:
    name, variable = item
    names = f"`{name}`, `{name}_FILE`" if variable.metadata["secret"] else f"`{name}`"
    default = f"`{shown}`" if (shown := default_of(variable)) else ""
    return names, default, escape(variable.metadata["help"], quote=False)


def env_example(text: str) -> str:
    """Return `.env.example` with its lines made anew. Only the settings of the first group are not commented out."""
    head, mark, _ = text.partition(ENV_MARK)
    lines = []
    for number, (heading, variables) in enumerate(grouped().items()):
        lines.append(f"\n# --- {heading} ---")
        for name, variable in variables.items():
            lines.append(f"{'#' if number else ''}{name}={EXAMPLES.get(name, default_of(variable))}")
    return f"{head}{mark}{chr(10).join(lines)}\n"


def bounces() -> str:
    return table(["code", "what it says", "source"], [[code, *said] for code, said in BOUNCES.items()])


def metrics() -> str:
    """Return the table of the metrics, with what `/metrics` says of each."""
    help_lines = re.findall(r"^# HELP (\w+) (.*)$", Metrics().render().decode(), re.MULTILINE)
    rows = [[f"`{name}`", text] for name, text in help_lines if not name.endswith("_created")]
    return table(["metric", "what it measures"], rows)


def user_document() -> str:
    shape = re.search(r"^```\n.*?^```$", document.__doc__ or "", re.DOTALL | re.MULTILINE)
    return shape[0] if shape else ""


def packages() -> str:
    """Return the table of the packages that the service needs, each with its reason."""
    lines = re.findall(r"^([\w-]+)==.*?  # (.+)$", (ROOT / "requirements.in").read_text(), re.MULTILINE)
    reasons = dict(reversed(lines))  # of two lines for one package, the first
    return table(["package", "what it does here"], ([name, reasons[name]] for name in sorted(reasons, key=str.lower)))


def modules() -> str:
    """Return the table of all modules. Each is described by the first line of its own docstring or comment."""
    rows = [[f"`{path.name}`", _first_line(path)] for path in sorted(ROOT.glob("*.py")) if "test" not in path.name]
    for folder in FOLDERS:
        rows.append([f"**`{folder}/`**", f"**{_first_line(ROOT / folder / '__init__.py')}**"])
        rows += [[f"`{path.name}`", _first_line(path)] for path in sorted(ROOT.glob(f"{folder}/[!_]*.py"))]
    rows.append(["**`web/`**", "**What browsers get: the bell, the demo page, and the page to unsubscribe.**"])
    scripts = sorted(ROOT.glob("web/*.js")) + sorted(ROOT.glob("web/inbox/*.js"))
    rows += [[f"`{path.relative_to(ROOT / 'web')}`", _first_line(path)] for path in scripts]
    return table(["module", "what it does"], rows)


def _first_line(path: Path) -> str:
    text = path.read_text()
    if path.suffix == ".js":
        return escape(text.removeprefix("// ").partition("\n")[0].partition(". ")[0].rstrip(".") + ".", quote=False)
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]


def navigation(page: Path) -> str:
    """Return the first line of a page: its own name, and links to the others."""
    named = re.findall(r"^\| \[([^]]+)\]\(docs/(\w+\.md)\) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    links = (f"**{name}**" if file == page.name else f"[{name}]({file})" for name, file in named)
    return " · ".join(["[notifier](../README.md)", *links])


ENV_MARK: Final = "# Made by `make docs`:\n"
EXAMPLES: Final = {
    "EMAIL": "test@example.com",
    "DB_URI": "'mongodb://mongodb-1/dbdata6'",
    "SMTP_HOST": "smtp.example.com",
    "SMTP_LOGIN": "''",
    "SMTP_PASSWORD": "''",
    "TEMPLATE_FIELDS": "name,profile.name",
    "API_KEYS": "'KEY,metrics:KEY'",
    "CORS_ORIGINS": "https://app.example.com",
    "PUBLIC_URL": "https://notifications.example.com",
    "LOCAL_NAMES": "192.168.1.5",
    "SMTP_OAUTH_TOKEN_URL": "https://login.microsoftonline.com/TENANT_ID/oauth2/v2.0/token",
    "SMTP_OAUTH_SCOPE": "https://outlook.office365.com/.default",
}
"""Values of `.env.example` that are not the default."""
BLOCKS: Final[dict[str, Callable[[], str]]] = {
    "invalid": invalid,
    "errors": errors,
    "access": access,
    "settings": settings,
    "bounces": bounces,
    "user_document": user_document,
    "metrics": metrics,
    "packages": packages,
    "modules": modules,
    **{f"scale_{block.__name__}": block for block in scale.BLOCKS},
}
BESIDE: Final = ("README.md", ".env.example", "api/openapi.json")  # what is made outside the folder
FOLDERS: Final = ("mongo", "mail", "api", "ops", "cli", "config")
NAVIGATION: Final = re.compile(r"\A\[notifier\]\(\.\./README\.md\) ·.*")
MARKED: Final = re.compile(r"(<!-- (\w+): made by `make docs` -->\n).*?(<!-- end of \2 -->)", re.DOTALL)


def renew(path: Path, text: str) -> str:
    if path.name == ".env.example":
        return env_example(text)
    if path.name == "openapi.json":
        return f"{json.dumps(openapi.document(), indent=1, ensure_ascii=False)}\n"
    text = NAVIGATION.sub(lambda _: navigation(path), text)
    return MARKED.sub(lambda block: f"{block[1]}\n{BLOCKS[block[2]]()}\n\n{block[3]}", text)


def main() -> int:
    """Write the pages, or with `--check` only compare them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is out of date")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="folder of the pages (default: that of this file)")
    options = parser.parse_args()
    paths = [*options.folder.glob("*.md"), *(options.folder.parent / name for name in BESIDE)]
    pages = {path: path.read_text() for path in sorted(paths) if path.exists()}
    stale = [path for path, text in pages.items() if renew(path, text) != text]
    if options.check and stale:
        print(f"Out of date: {', '.join(path.name for path in stale)}. Run `make docs`.")
        return 1
    for path in stale:
        path.write_text(renew(path, pages[path]))
        print(f"Written: {path.name}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
